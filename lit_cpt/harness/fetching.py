"""Brings evaluation data into a mirror: from the hub on a connected machine, or from a folder of the same shape."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_cpt.harness.families import PAPER_LANGUAGES
from lit_cpt.harness.mirror import Need, check, files_of, needs, read_configs, write_manifest
from lit_cpt.remote import Unreachable

log = logging.getLogger(__name__)

CONVERTED = "refs/convert/parquet"  # where the hub keeps its own parquet copies of data sets that have none


def fetch(data: str | Path, repositories: Sequence[str] | None = None,
          languages: Sequence[str] = PAPER_LANGUAGES, source: str | Path | None = None) -> Path:
    """Bring the repositories' README and parquet files into a mirror, and write its manifest.

    What is there already is not brought again, so that a fetch which was cut short can be repeated. HumanEval's metric
    needs nothing from the hub: programs run in lit_cpt's own sandbox.

    Args:
        data: Root of the mirror; made where it is missing.
        repositories: Dataset repositories of the hub; None means those of the paper's families.
        languages: Of MGSM.
        source: Folder of the same shape to copy from, instead of the hub.

    Returns:
        The manifest's path.

    Raises:
        FileNotFoundError: ``source`` lacks a repository.
        Unreachable: The hub refuses a repository, or does not answer.
        ValueError: What arrived is not what the families read; the message lists the problems.
    """
    root, wanted = Path(data), needs(languages)
    asked = list(wanted) if repositories is None else list(repositories)
    for name in asked:
        need = wanted.get(name, Need(()))
        log.info("%s -> %s", name, root / name)
        if source is not None:
            copy(Path(source) / name, root / name, need)
        else:
            download(name, root / name, need)
        complete_header(root / name)
    path = write_manifest(root, asked)
    problems = check(root, asked, languages)
    if problems:
        raise ValueError(f"what arrived is not what the families read: {' '.join(problems)}")
    return path


def copy(source: Path, target: Path, need: Need) -> None:
    """Copy what a family reads of a mirrored repository.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such folder. --from names the root of another mirror, with "
                                "folders such as cais/mmlu in it.")
    for path in dict.fromkeys(path for pattern in need.files for path in source.rglob(pattern) if path.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)


def download(name: str, target: Path, need: Need) -> None:
    """Download what a family reads of a repository; where it has no parquet files, the hub's own copies of it.

    Raises:
        Unreachable: The hub refuses it, or does not answer.
    """
    bring(name, target, list(need.files))
    if not any(path.suffix == ".parquet" for path in files_of(target.parent, [target.name])):
        log.info("%s has no parquet files of its own: taking the hub's conversion", name)
        places = [f"{config}/{split}/*.parquet" for config in need.configs or ("*",) for split in need.splits]
        bring(name, target, places, CONVERTED)


def bring(name: str, target: Path, patterns: list[str], revision: str | None = None) -> None:
    """The hub's files that ``patterns`` name; of its main branch where no ``revision`` is given."""
    from huggingface_hub import constants, errors, snapshot_download

    if constants.is_offline_mode():
        raise Unreachable(f"{name} cannot be fetched: HF_HUB_OFFLINE is set. Unset it on a machine with a connection, "
                          "and copy the mirror from there.")
    try:
        snapshot_download(name, repo_type="dataset", revision=revision, local_dir=target, allow_patterns=patterns)
    except errors.LocalEntryNotFoundError as error:
        raise Unreachable(f"{name} cannot be fetched: {constants.ENDPOINT} does not answer ({cause(error)}). Fetch on "
                          "a machine with a connection and copy the mirror, or name another hub with HF_ENDPOINT."
                          ) from error
    except (errors.HfHubHTTPError, ConnectionError) as error:
        raise Unreachable(f"{name} cannot be fetched: {constants.ENDPOINT} refuses it ({cause(error)}). If it asks for "
                          "an account, log in with `hf auth login`.") from error


def cause(error: BaseException) -> str:
    """What lies at the bottom of an error, in a line."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def complete_header(repository: Path) -> None:
    """Give a README without a ``configs:`` header one that names the files as they lie: nobody finds them otherwise."""
    try:
        read_configs(repository)
    except FileNotFoundError:
        text = ""
    except ValueError:
        text = (repository / "README.md").read_text(encoding="utf-8")
    else:
        return
    found = configs_by_place(repository)
    if found:
        parts = text.split("---\n", 2)
        known = yaml.safe_load(parts[1]) if text.startswith("---\n") and len(parts) == 3 else None
        header = yaml.safe_dump({**(known if isinstance(known, dict) else {}), "configs": found}, sort_keys=False)
        rest = parts[2] if known is not None else text
        (repository / "README.md").write_text(f"---\n{header}---\n{rest}", encoding="utf-8")


def configs_by_place(repository: Path) -> list[dict[str, Any]]:
    """Configs and splits as ``<config>/<split>-*.parquet`` or ``<config>/<split>/*.parquet`` tell them."""
    found: dict[str, dict[str, str]] = {}
    for path in files_of(repository.parent, [repository.name]):
        parts = path.relative_to(repository).parts
        if path.suffix == ".parquet" and len(parts) == 2:
            split = parts[1].partition("-")[0].removesuffix(".parquet")
            found.setdefault(parts[0], {})[split] = f"{parts[0]}/{split}*"
        elif path.suffix == ".parquet" and len(parts) == 3:
            found.setdefault(parts[0], {})[parts[1]] = f"{parts[0]}/{parts[1]}/*.parquet"
    return [{"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
            for config, splits in found.items()]
