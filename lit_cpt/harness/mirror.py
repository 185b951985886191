"""The mirror of evaluation data: hub-shaped folders with a manifest, fetched once, checked anywhere. No torch.

A mirror is ``<root>/<repository>/README.md`` with a ``configs:`` header, as hub repositories have it, the parquet
files that it names, and ``<root>/MANIFEST.json``: rows and sha256 of each.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lit_cpt.harness.families import PAPER_LANGUAGES
from lit_cpt.publishing import publish_text

MANIFEST = "MANIFEST.json"


Patterns = dict[str, dict[str, tuple[str, ...]]]
"""Where files lie in a repository: by config and split, patterns as its header has them."""


@dataclass(frozen=True)
class Need:
    """What a family reads of one repository.

    Args:
        splits: Splits every config must have; empty means each that it has.
        configs: Configs that must be there; empty means each that the README names.
        columns: Columns that every file must have.
    """

    splits: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def choose(self, patterns: Patterns) -> Patterns:
        """The part of ``patterns`` that is needed."""
        return {config: {split: place for split, place in splits.items() if split in (self.splits or splits)}
                for config, splits in patterns.items() if config in (self.configs or patterns)}

    def lacking(self, found: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[str]:
        """What ``found`` has not, of the needed configs and splits; as the end of a sentence about a repository."""
        missing = [f"lacks config {config!r}" for config in self.configs if config not in found]
        there = [config for config in self.configs or found if config in found]
        return missing + [f"has no files for split {split!r} of {config!r}" for config in there for split in self.splits
                          if not found[config].get(split)]


def mmlu_subjects() -> tuple[str, ...]:
    """The 57 subjects, as lm-eval's task files name them."""
    spec = importlib.util.find_spec("lm_eval")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in Path(folder, "tasks", "mmlu", "default").glob("mmlu_*.yaml")]
    return tuple(sorted(path.stem.removeprefix("mmlu_") for path in files))


def needs(languages: Sequence[str] = PAPER_LANGUAGES) -> dict[str, Need]:
    """What the paper's families read, by repository; of MGSM these languages."""
    return {
        "cais/mmlu": Need(("dev", "test"), mmlu_subjects(), ("question", "choices", "answer")),
        "Rowan/hellaswag": Need(("train", "validation"), (), ("activity_label", "ctx_a", "ctx_b", "endings", "label")),
        "openai/openai_humaneval": Need(("test",), (), ("prompt", "canonical_solution", "test", "entry_point")),
        "juletxara/mgsm": Need(("train", "test"), tuple(languages), ("question", "answer", "answer_number")),
    }


def read_patterns(repository: Path) -> Patterns:
    """Where the files of each config and split lie, as the README's ``configs:`` header says.

    Raises:
        FileNotFoundError: There is no README.md.
        ValueError: It has no ``configs:`` header, or one that cannot be read.
    """
    readme = repository / "README.md"
    if not readme.is_file():
        raise FileNotFoundError(f"{readme} is missing: a mirrored repository has the README.md of its hub repository, "
                                "whose configs: header names the files. Fetch the mirror anew.")
    header = read_header(readme.read_text(encoding="utf-8"))
    if not header.get("configs"):
        raise ValueError(f"{readme} has no configs: header between two lines of ---, so nobody knows its splits. "
                         "Fetch the mirror anew.")
    try:
        return {config["config_name"]: _splits(config["data_files"]) for config in header["configs"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{readme} has a configs: header that cannot be read ({error!r}): each config has a "
                         "config_name, and data_files with split and path. Fetch the mirror anew.") from error


def read_header(text: str) -> dict[str, Any]:
    """What stands between the first two lines of ``---``; empty where that is nothing."""
    return dict(_header(text))


@lru_cache(maxsize=64)
def _header(text: str) -> Mapping[str, Any]:
    """The header of a README; parsed once for each text."""
    import yaml

    parts = text.replace("\r\n", "\n").split("---\n", 2)
    try:
        found = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}


def _splits(entries: Any) -> dict[str, tuple[str, ...]]:
    """Patterns by split, of the forms that ``data_files:`` may have: a path, some paths, or some splits."""
    listed = [entries] if isinstance(entries, str) else entries
    found: dict[str, tuple[str, ...]] = {}
    for entry in listed:
        split, path = ("train", entry) if isinstance(entry, str) else (entry["split"], entry["path"])
        found[split] = (*found.get(split, ()), *([path] if isinstance(path, str) else path))
    return found


def read_configs(repository: Path) -> dict[str, dict[str, list[Path]]]:
    """Files by config and split, as the README's ``configs:`` header says; splits without files are left out.

    Raises:
        FileNotFoundError: There is no README.md.
        ValueError: It has no ``configs:`` header, or one that cannot be read.
    """
    found = {}
    for config, splits in read_patterns(repository).items():
        files = {split: sorted({path for pattern in patterns for path in repository.glob(pattern) if path.is_file()})
                 for split, patterns in splits.items()}
        found[config] = {split: paths for split, paths in files.items() if paths}
    return found


def files_of(data: Path, repositories: Iterable[str]) -> list[Path]:
    """Parquet files and READMEs of the repositories, sorted."""
    return sorted(path for name in repositories for path in (data / name).rglob("*")
                  if path.suffix == ".parquet" or path.name == "README.md")


@lru_cache(maxsize=4096)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """sha256 of a file; read once for each state of it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, remembered until its size or time changes."""
    state = path.stat()
    return _digest(str(path), state.st_size, state.st_mtime_ns)


def data_hash(data: Path, repository: str) -> str:
    """One hash over the names and contents of a mirrored repository's files."""
    whole = hashlib.sha256()
    for path in files_of(data, [repository]):
        whole.update(f"{path.relative_to(data).as_posix()} {file_digest(path)}\n".encode())
    return "sha256:" + whole.hexdigest()


def folder_hash(folder: Path) -> str:
    """One hash over the names and contents of all files in a folder of tasks."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        whole.update(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n".encode())
    return "sha256:" + whole.hexdigest()


def facts_of(path: Path) -> dict[str, Any]:
    """Rows and sha256 of a parquet file.

    Raises:
        ValueError: It is not one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return {"rows": pq.read_metadata(path).num_rows, "sha256": file_digest(path)}
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file ({error}): the copy is damaged. Fetch it anew.") from error


def read_manifest(root: Path) -> dict[str, dict[str, Any]]:
    """Rows and sha256 by path; empty where there is no manifest.

    Raises:
        ValueError: It is not what a manifest is.
    """
    path = root / MANIFEST
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(facts, dict) for facts in found.values()):
        raise ValueError(f"{path} cannot be read: it is not JSON of rows and sha256 by path. Fetch the mirror anew.")
    return found


def write_manifest(data: Path, repositories: Iterable[str], brought: Collection[Path] | None = None) -> Path:
    """Write (or add to) ``MANIFEST.json``; returns its path.

    Args:
        data: Root of the mirror.
        repositories: Those whose files are described.
        brought: Files known to be good. What the manifest says of others stays, so that a file which was damaged is
            not described as it is now; None describes all anew.

    Raises:
        ValueError: A file to be described is not parquet.
    """
    try:
        known = read_manifest(data)
    except ValueError:
        known = {}
    kept = {name: facts for name, facts in known.items() if (data / name).is_file()}
    there = [path for path in files_of(data, repositories) if path.suffix == ".parquet"]
    fresh = [path for path in there
             if brought is None or path in brought or path.relative_to(data).as_posix() not in kept]
    publish_text(data / MANIFEST, json.dumps(
        {**kept, **{path.relative_to(data).as_posix(): facts_of(path) for path in fresh}}, indent=1, sort_keys=True)
        + "\n")
    return data / MANIFEST
