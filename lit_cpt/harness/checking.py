"""Whether a mirror of evaluation data is whole: files, hashes, columns. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from lit_cpt.harness.families import PAPER_LANGUAGES
from lit_cpt.harness.mirror import (
    MANIFEST,
    Need,
    file_digest,
    files_of,
    needs,
    read_configs,
    read_manifest,
    read_patterns,
)


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
    problems = [problem for name in asked for problem in _check_repository(root, name, wanted.get(name, Need()))]
    return problems + _check_manifest(root, {name: wanted.get(name, Need()) for name in asked})


def _check_repository(root: Path, name: str, need: Need) -> list[str]:
    if not (root / name).is_dir():
        return [f"{root / name} is missing: fetch {name} into this mirror."]
    try:
        configs = read_configs(root / name)
    except (OSError, ValueError) as error:
        return [str(error)]
    problems = [f"{name} {what}: fetch it anew." for what in need.lacking(configs)]
    wanted = [path for config in need.configs or configs for split, paths in configs.get(config, {}).items()
              if split in (need.splits or (split,)) for path in paths]
    return problems + [problem for path in wanted for problem in _check_file(root, path, need)]


def _check_file(root: Path, path: Path, need: Need) -> list[str]:
    """Whether a file can be read, and has rows and the columns that tasks ask for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = path.relative_to(root).as_posix()
    try:
        with pq.ParquetFile(path) as file:
            rows, columns = file.metadata.num_rows, file.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        return [f"{name} cannot be read as parquet ({str(error).splitlines()[0]}): fetch it anew."]
    if not rows:
        return [f"{name} has no rows: fetch it anew."]
    missing = [column for column in need.columns if column not in columns]
    return [f"{name} lacks column {', '.join(missing)}; it has {', '.join(columns)}. It is another data set: fetch it "
            "anew."] if missing else []


def _check_manifest(root: Path, wanted: Mapping[str, Need]) -> list[str]:
    if not (root / MANIFEST).is_file():
        return [f"{root / MANIFEST} is missing: nothing says what the files should be. Fetch the mirror anew."]
    try:
        manifest = read_manifest(root)
    except ValueError as error:
        return [str(error)]
    patterns = _needed_patterns(root, wanted)
    problems = []
    for name, facts in manifest.items():
        if not any(fnmatch(name, pattern) for pattern in patterns):
            continue
        if not (root / name).is_file():
            problems.append(f"{name} is in the manifest but not in the mirror: fetch it anew.")
        elif file_digest(root / name) != facts.get("sha256"):
            problems.append(f"{name} has sha256 {file_digest(root / name)[:12]}…, the manifest says "
                            f"{str(facts.get('sha256'))[:12]}…: the copy is damaged or another version. Fetch it anew.")
    there = {path.relative_to(root).as_posix() for path in files_of(root, wanted) if path.suffix == ".parquet"}
    added = sorted(there - set(manifest))
    return problems + [f"{name} is not in the manifest: somebody added it by hand." for name in added]


def _needed_patterns(root: Path, wanted: Mapping[str, Need]) -> list[str]:
    """Patterns of the needed files, from the mirror's root; all of a repository's where its README tells none."""
    found = []
    for name, need in wanted.items():
        try:
            chosen = need.choose(read_patterns(root / name))
        except (OSError, ValueError):
            found.append(f"{name}/*")
            continue
        found += [f"{name}/{pattern}" for splits in chosen.values() for place in splits.values() for pattern in place]
    return found
