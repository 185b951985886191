"""Brings evaluation data into a mirror: from the hub on a connected machine, or from a folder of the same shape."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from lit_cpt.harness.checking import check
from lit_cpt.harness.families import PAPER_LANGUAGES
from lit_cpt.harness.hub import Offer, offer, take
from lit_cpt.harness.mirror import (
    Need,
    Patterns,
    file_digest,
    files_of,
    needs,
    read_header,
    read_manifest,
    read_patterns,
    write_manifest,
)
from lit_cpt.publishing import publish_text

log = logging.getLogger(__name__)

CONVERTED = "refs/convert/parquet"  # where the hub keeps its own parquet copies of data sets that have none
REVISIONS = "REVISIONS.json"


def fetch(data: str | Path, repositories: Sequence[str] | None = None,
          languages: Sequence[str] = PAPER_LANGUAGES, source: str | Path | None = None) -> Path:
    """Bring the repositories' README and parquet files into a mirror, and write its manifest.

    What is there already is not brought again, so that a fetch which was cut short can be repeated; what is there and
    is not as its origin has it is replaced. HumanEval's metric needs nothing from the hub: programs run in lit_cpt's
    own sandbox.

    Args:
        data: Root of the mirror; made where it is missing.
        repositories: Dataset repositories of the hub; None means those of the paper's families.
        languages: Of MGSM.
        source: Folder of the same shape to copy from, instead of the hub.

    Returns:
        The manifest's path. Beside it, ``REVISIONS.json`` tells the hub's commit of each repository.

    Raises:
        FileNotFoundError: ``source`` lacks a repository.
        Unreachable: The hub refuses a repository, or does not answer.
        ValueError: ``data`` is a file, or ``source`` itself; what arrived is not what the families read, or not what
            the manifest of ``source`` says.
    """
    root, wanted = Path(data), needs(languages)
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file; the mirror is a folder. Name another, or one that is still to be made.")
    if source is not None and Path(source).resolve() == root.resolve():
        raise ValueError(f"{source} is the mirror itself: --from names another one. To look at it, use `eval-data "
                         "check`.")
    asked = list(wanted) if repositories is None else list(repositories)
    brought: list[Path] = []
    for name in asked:
        log.info("%s -> %s", name, root / name)
        need = wanted.get(name, Need())
        brought += download(name, root, need) if source is None else copy(name, Path(source), root, need)
    path = write_manifest(root, asked, brought)
    problems = check(root, asked, languages)
    if problems:
        raise ValueError(f"what arrived is not what the families read: {' '.join(problems)}")
    return path


def download(name: str, root: Path, need: Need) -> list[Path]:
    """Download what a family reads of a repository; where it has no parquet files, the hub's own copies of it.

    Returns:
        The parquet files; each is as the hub has it.

    Raises:
        Unreachable: The hub refuses it, or does not answer.
        ValueError: It has not what the family reads.
    """
    target, before = root / name, known_patterns(root / name)
    offered = offer(name)
    if "README.md" in offered.files:
        take(offered, ["README.md"], target)
    patterns = known_patterns(target) or patterns_by_place(offered.files)
    paths = need.choose(matching(offered, patterns))
    lacking = need.lacking(paths) if paths else ["has no parquet files of its own"]
    if lacking:
        log.info("%s %s: taking the hub's conversion", name, lacking[0])
        offered = offer(name, CONVERTED)
        patterns = patterns_by_place(offered.files)
        paths = need.choose(matching(offered, patterns))
        if not paths or need.lacking(paths):
            raise ValueError(f"{name} {lacking[0]}, and the hub's conversion has {', '.join(patterns) or 'nothing'}. "
                             "Take it from a mirror that has it, with --from FOLDER.")
    chosen = [path for splits in paths.values() for files in splits.values() for path in files]
    take(offered, chosen, target)
    write_header(target, {**before, **patterns})
    note_revision(root, name, offered.commit)
    return [target / path for path in chosen]


def matching(offered: Offer, patterns: Patterns) -> Patterns:
    """Parquet files of the hub by config and split; those without any are left out."""
    found: Patterns = {}
    for config, splits in patterns.items():
        files = {split: tuple(path for path in offered.files if path.endswith(".parquet")
                              and any(fnmatch(path, pattern) for pattern in place)) for split, place in splits.items()}
        if any(files.values()):
            found[config] = {split: paths for split, paths in files.items() if paths}
    return found


def copy(name: str, source: Path, root: Path, need: Need) -> list[Path]:
    """Copy what a family reads of a mirrored repository.

    Returns:
        The parquet files; each is as the manifest of ``source`` says, where that tells of it.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A file is not what the manifest of ``source`` says.
    """
    if not (source / name).is_dir():
        raise FileNotFoundError(f"{source / name}: there is no such folder. --from names the root of another mirror, "
                                "with folders such as cais/mmlu in it.")
    manifest, before = read_manifest(source), known_patterns(root / name)
    if not manifest:
        log.warning("%s has no manifest: nobody can tell whether its files are as they were", source)
    there = [path.relative_to(source / name).as_posix() for path in files_of(source, [name])]
    patterns = known_patterns(source / name) or patterns_by_place(there)
    chosen = {path for splits in need.choose(patterns).values() for place in splits.values() for pattern in place
              for path in (source / name).glob(pattern) if path.suffix == ".parquet"}
    for path in sorted(chosen):
        copy_file(path, root / path.relative_to(source), manifest.get(path.relative_to(source).as_posix(), {}))
    if (source / name / "README.md").is_file():
        copy_file(source / name / "README.md", root / name / "README.md", {})
    write_header(root / name, {**before, **patterns})
    if (commit := read_revisions(source).get(name)) is not None:
        note_revision(root, name, commit)
    return sorted(root / path.relative_to(source) for path in chosen)


def copy_file(path: Path, target: Path, facts: Mapping[str, Any]) -> None:
    """Copy a file, whole or not at all.

    Raises:
        ValueError: The copy has not the sha256 of ``facts``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.arriving")
    try:
        shutil.copyfile(path, draft)
        if "sha256" in facts and file_digest(draft) != facts["sha256"]:
            raise ValueError(f"{path} has sha256 {file_digest(draft)[:12]}…, the manifest beside it says "
                             f"{str(facts['sha256'])[:12]}…: the copy is damaged. Take it from another mirror.")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def known_patterns(repository: Path) -> Patterns:
    """What the README's header says, or nothing."""
    try:
        return read_patterns(repository)
    except (OSError, ValueError):
        return {}


def patterns_by_place(paths: Iterable[str]) -> Patterns:
    """Where files lie, as ``<config>/<split>-*.parquet`` or ``<config>/<split>/*.parquet`` tell it.

    >>> patterns_by_place(["es/test-00000-of-00001.parquet", "ja/test/0000.parquet"])
    {'es': {'test': ('es/test*',)}, 'ja': {'test': ('ja/test/*.parquet',)}}
    """
    found: Patterns = {}
    for path in paths:
        parts = path.split("/")
        if path.endswith(".parquet") and len(parts) == 2:
            split = parts[1].partition("-")[0].removesuffix(".parquet")
            found.setdefault(parts[0], {})[split] = (f"{parts[0]}/{split}*",)
        elif path.endswith(".parquet") and len(parts) == 3:
            found.setdefault(parts[0], {})[parts[1]] = (f"{parts[0]}/{parts[1]}/*.parquet",)
    return found


def write_header(repository: Path, patterns: Patterns) -> None:
    """Let a README name the configs and splits whose files are here, and no others; the rest of it stays.

    `datasets` refuses a folder whose first config has no files, or which lacks splits that ``dataset_info`` tells of.
    """
    readme = repository / "README.md"
    text = readme.read_text(encoding="utf-8").replace("\r\n", "\n") if readme.is_file() else ""
    known = read_header(text)
    rest = text.split("---\n", 2)[2] if known else text
    here = {config: {split: list(place) for split, place in splits.items()
                     if any(path.is_file() for pattern in place for path in repository.glob(pattern))}
            for config, splits in patterns.items()}
    configs = [{"config_name": config, "data_files": [
        {"split": split, "path": place if len(place) > 1 else place[0]} for split, place in splits.items()]}
        for config, splits in here.items() if splits]
    kept = {key: value for key, value in known.items() if key not in ("configs", "dataset_info")}
    header = yaml.safe_dump({**kept, "configs": configs}, sort_keys=False, allow_unicode=True)
    publish_text(readme, f"---\n{header}---\n{rest}")


def read_revisions(root: Path) -> dict[str, str]:
    """The hub's commits by repository; empty where nobody knows them."""
    try:
        found = json.loads((root / REVISIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def note_revision(root: Path, name: str, commit: str) -> None:
    """Write into ``REVISIONS.json`` which commit of the hub a repository is from."""
    known = read_revisions(root)
    publish_text(root / REVISIONS, json.dumps({**known, name: commit}, indent=1, sort_keys=True) + "\n")
