"""The mirror of evaluation data: hub-shaped folders with a manifest, fetched once, checked anywhere. No torch.

A mirror is ``<root>/<repository>/README.md`` with a ``configs:`` header, as hub repositories have it, the parquet
files that it names, and ``<root>/MANIFEST.json``: rows and sha256 of each.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from lit_cpt.harness.families import PAPER_LANGUAGES

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Need:
    """What a family reads of one repository.

    Args:
        splits: Splits every config must have.
        configs: Configs that must be there; empty means each that the README names.
        files: Patterns of the files to fetch.
    """

    splits: tuple[str, ...]
    configs: tuple[str, ...] = ()
    files: tuple[str, ...] = ("README.md", "*.parquet")


def mmlu_subjects() -> tuple[str, ...]:
    """The 57 subjects, as lm-eval's task files name them."""
    spec = importlib.util.find_spec("lm_eval")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in Path(folder, "tasks", "mmlu", "default").glob("mmlu_*.yaml")]
    return tuple(sorted(path.stem.removeprefix("mmlu_") for path in files))


def needs(languages: Sequence[str] = PAPER_LANGUAGES) -> dict[str, Need]:
    """What the paper's families read, by repository; of MGSM these languages."""
    return {
        "cais/mmlu": Need(("dev", "test"), mmlu_subjects(), ("README.md", "*/dev-*.parquet", "*/test-*.parquet")),
        "Rowan/hellaswag": Need(("train", "validation")),
        "openai/openai_humaneval": Need(("test",)),
        "juletxara/mgsm": Need(("train", "test"), tuple(languages),
                               ("README.md", *(f"{language}/*" for language in languages))),
    }


def read_configs(repository: Path) -> dict[str, dict[str, list[Path]]]:
    """Files by config and split, as the README's ``configs:`` header says; splits without files are left out.

    Raises:
        FileNotFoundError: There is no README.md.
        ValueError: It has no ``configs:`` header.
    """
    readme = repository / "README.md"
    if not readme.is_file():
        raise FileNotFoundError(f"{readme} is missing: a mirrored repository has the README.md of its hub repository, "
                                "whose configs: header names the files. Fetch the mirror anew.")
    header = _header(readme, readme.stat().st_mtime_ns)
    if not header.get("configs"):
        raise ValueError(f"{readme} has no configs: header between two lines of ---, so nobody knows its splits. "
                         "Fetch the mirror anew.")
    found: dict[str, dict[str, list[Path]]] = {}
    for config in header["configs"]:
        entries = config["data_files"]
        entries = [{"split": "train", "path": entries}] if isinstance(entries, str) else entries
        splits = {entry["split"]: sorted(_matches(repository, entry["path"])) for entry in entries}
        found[config["config_name"]] = {split: files for split, files in splits.items() if files}
    return found


@lru_cache(maxsize=64)
def _header(readme: Path, mtime_ns: int) -> dict[str, Any]:
    """What stands between the first two lines of ``---``; parsed once for each state of the file."""
    import yaml

    parts = readme.read_text(encoding="utf-8").split("---\n", 2)
    found = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    return found if isinstance(found, dict) else {}


def _matches(repository: Path, patterns: str | Sequence[str]) -> list[Path]:
    """Files of ``repository`` that a ``path:`` entry names."""
    listed = [patterns] if isinstance(patterns, str) else patterns
    return [path for pattern in listed for path in repository.glob(pattern) if path.is_file()]


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


def describe(data: Path, repositories: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Rows and sha256 of every parquet file, by path in the mirror."""
    import pyarrow.parquet as pq

    return {path.relative_to(data).as_posix(): {"rows": pq.read_metadata(path).num_rows, "sha256": file_digest(path)}
            for path in files_of(data, repositories) if path.suffix == ".parquet"}


def write_manifest(data: Path, repositories: Iterable[str]) -> Path:
    """Write (or add to) ``MANIFEST.json``; returns its path."""
    path = data / MANIFEST
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = {name: facts for name, facts in known.items() if (data / name).is_file()}
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({**kept, **describe(data, repositories)}, indent=1, sort_keys=True) + "\n",
                     encoding="utf-8")
    os.replace(draft, path)
    return path


def check(data: str | Path, repositories: Sequence[str] | None = None,
          languages: Sequence[str] = PAPER_LANGUAGES) -> list[str]:
    """What is wrong with a mirror, one sentence each; an empty list means it is whole.

    Args:
        data: Its root.
        repositories: Those that must be there; None asks for those of the paper's families.
        languages: Of MGSM.
    """
    root = Path(data)
    if not root.is_dir():
        return [f"{root} is not a folder: fetch the mirror on a connected machine and copy it here."]
    wanted = needs(languages)
    asked = list(wanted) if repositories is None else list(repositories)
    problems = [problem for name in asked for problem in _check_repository(root, name, wanted.get(name, Need(())))]
    return problems + _check_manifest(root, {name: wanted.get(name, Need(())) for name in asked})


def _check_repository(root: Path, name: str, need: Need) -> list[str]:
    if not (root / name).is_dir():
        return [f"{root / name} is missing: fetch {name} into this mirror."]
    try:
        configs = read_configs(root / name)
    except (OSError, ValueError) as error:
        return [str(error)]
    problems = [f"{name} lacks config {config!r}: fetch it anew." for config in need.configs if config not in configs]
    for config in need.configs or configs:
        problems += [f"{name} has no files for split {split!r} of {config!r}: fetch it anew."
                     for split in need.splits if split not in configs.get(config, {split: []})]
    return problems


def _check_manifest(root: Path, wanted: Mapping[str, Need]) -> list[str]:
    path = root / MANIFEST
    if not path.is_file():
        return [f"{path} is missing: nothing says what the files should be. Fetch the mirror anew."]
    try:
        manifest: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return [f"{path} cannot be read: it is not JSON. Fetch the mirror anew."]
    patterns = [f"{name}/{pattern}" for name, need in wanted.items() for pattern in need.files]
    mine = {name: facts for name, facts in manifest.items() if any(fnmatch(name, pattern) for pattern in patterns)}
    problems = []
    for name, facts in mine.items():
        if not (root / name).is_file():
            problems.append(f"{name} is in the manifest but not in the mirror: fetch it anew.")
        elif file_digest(root / name) != facts.get("sha256"):
            problems.append(f"{name} has sha256 {file_digest(root / name)[:12]}…, the manifest says "
                            f"{str(facts.get('sha256'))[:12]}…: the copy is damaged or another version. Fetch it anew.")
    there = {path.relative_to(root).as_posix() for path in files_of(root, wanted) if path.suffix == ".parquet"}
    added = sorted(there - set(manifest))
    return problems + [f"{name} is not in the manifest: somebody added it by hand." for name in added]
