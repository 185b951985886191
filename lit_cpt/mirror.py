"""A run's checkpoints in an object store: found there, and brought back to a machine that has none.

A store cannot rename, so one small object tells what is there: ``checkpoints.json`` names every whole checkpoint, its
files and their sizes. It is written after the last file of a new checkpoint, and before the first one of an old
checkpoint is deleted; a store replaces an object whole, so a checkpoint is there whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from filelock import FileLock

from lit_cpt.checkpoints import damage, newest_whole, point, step_of
from lit_cpt.objects import ObjectFolder
from lit_cpt.publishing import WRITING, publish_folder, sync_file, sync_folder
from lit_cpt.remote import Storage, Unreachable

INDEX = "checkpoints.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mirror:
    """Where the checkpoints of one run are copied to.

    Args:
        url: A folder of its own: ``s3://bucket/run1``, ``r2://...`` or ``gs://...``.
        storage: How to reach the store.

    Raises:
        ValueError: ``url`` is none of these.
    """

    url: str
    storage: Storage = field(default_factory=Storage)

    def __post_init__(self) -> None:
        ObjectFolder(self.url, self.storage)

    @cached_property
    def objects(self) -> ObjectFolder:
        """What lies there."""
        return ObjectFolder(self.url, self.storage)


@dataclass(frozen=True)
class Index:
    """What a mirror holds.

    Args:
        checkpoints: Name of each whole checkpoint to its objects, below the mirror's URL, and their bytes.
        last: The newest one that training has reached; one that is still on its way may be named.
        best: That of the monitored metric.
    """

    checkpoints: dict[str, dict[str, int]] = field(default_factory=dict)
    last: str | None = None
    best: str | None = None

    def having(self, name: str, files: dict[str, int]) -> Index:
        """With this checkpoint, which is the newest if its step is."""
        last = name if self.last is None or step(name) >= step(self.last) else self.last
        return replace(self, checkpoints={**self.checkpoints, name: files}, last=last)

    def without(self, *names: str) -> Index:
        """Without these checkpoints."""
        return replace(self, checkpoints={name: files for name, files in self.checkpoints.items() if name not in names},
                       best=None if self.best in names else self.best)

    @property
    def newest_first(self) -> list[str]:
        """The checkpoints that training came by; not those of a future that it went back from."""
        past = [name for name in self.checkpoints if self.last is None or step(name) <= step(self.last)]
        return sorted(past, key=step, reverse=True)


def step(name: str) -> int:
    """The step of a checkpoint of this name; -1 where it tells none."""
    found = step_of(Path(name))
    return -1 if found is None else found


def read_index(objects: ObjectFolder) -> Index:
    """What a mirror holds; nothing where there is none yet.

    Raises:
        Unreachable: The store refused, or did not answer.
        ValueError: Something else lies there under that name.
    """
    text = objects.get_text(INDEX)
    try:
        return Index() if text is None else Index(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{objects.url}/{INDEX} is no index of checkpoints ({error}): name another folder.") from error


def write_index(objects: ObjectFolder, index: Index) -> None:
    """Replace what a mirror says that it holds."""
    objects.put_text(json.dumps(asdict(index), indent=1), INDEX)


def opened_index(objects: ObjectFolder) -> Index:
    """What a mirror holds, once it is known that it can be written to.

    Raises:
        Unreachable: The store did not answer.
        ValueError: It refused to read or to write.
    """
    try:
        index = read_index(objects)
        write_index(objects, index)
    except Unreachable as error:
        if not error.refused:
            raise
        raise ValueError(f"checkpoints cannot be copied to {objects.url}: {error}") from error
    return index


# Bringing back -------------------------------------------------------------------------------------------------


def restore(mirror: Mirror, folder: Path, asked: str | None) -> None:
    """Bring the checkpoint that ``asked`` means to a run's folder, if the mirror has a newer one than lies there.

    All processes of a node may call this at once; one of them works.

    Args:
        mirror: Where the run's checkpoints are copied to.
        folder: The run's folder of checkpoints.
        asked: ``last``, ``auto`` or ``best``; a path is not looked for in the mirror.

    Raises:
        FileExistsError: A new run (``asked`` is None) would mix with the one that the mirror holds.
        Unreachable: The store refused, or did not answer.
    """
    if asked not in (None, "last", "auto", "best"):
        return
    objects = mirror.objects
    index = read_index(objects)
    if asked is None and index.checkpoints:
        raise FileExistsError(f"{mirror.url} holds a run already. Resume it with --ckpt_path last, or name another "
                              "folder for this one.")
    names = index.newest_first if asked != "best" else [index.best] if index.best else []
    if not names:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / WRITING.format("restoring")):
        here = newest_whole(folder)[0] if asked != "best" else (folder / "best.ckpt").resolve()
        for name in names:
            if here is not None and here.exists() and step(here.name) >= step(name):
                return
            wrong = bring(objects, name, index.checkpoints[name], folder)
            if wrong is None:
                point(folder, "best" if asked == "best" else "last", folder / name)
                return
            log.warning("%s/%s is damaged (%s): looking for an older one", mirror.url, name, wrong)


def bring(objects: ObjectFolder, name: str, files: dict[str, int], folder: Path) -> str | None:
    """Download a checkpoint into ``folder``, whole or not at all; what is wrong with it, None if nothing is.

    Raises:
        Unreachable: The store refused, or did not answer.
    """
    aside = folder / WRITING.format(name)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for file, size in files.items():
            place = aside / file
            place.parent.mkdir(parents=True, exist_ok=True)
            objects.get(file, place, size)
            sync_file(place)
        if (wrong := damage(aside / name)) is not None:
            return wrong
        if (aside / name).is_dir():
            publish_folder(aside / name, folder / name)
        else:
            os.replace(aside / name, folder / name)
            sync_folder(folder)
    except Unreachable as error:
        if not error.missing:
            raise
        return str(error)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    log.info("checkpoint %s came from %s", folder / name, objects.url)
    return None


def fetched(url: str, folder: Path) -> Path:
    """The checkpoint that ``url`` names, or the newest one of the mirror that it is, downloaded into ``folder``.

    Raises:
        FileNotFoundError: There is none.
        Unreachable: The store refused, or did not answer.
    """
    root, _, name = url.rstrip("/").rpartition("/")
    root, wanted = (root, name) if name.endswith(".ckpt") else (url, None)
    objects = Mirror(root).objects
    index = read_index(objects)
    for one in index.newest_first if wanted is None else [wanted]:
        if one in index.checkpoints and bring(objects, one, index.checkpoints[one], folder) is None:
            return folder / one
    raise FileNotFoundError(f"{url}: there is no whole checkpoint. {root}/{INDEX} names "
                            f"{', '.join(index.checkpoints) or 'none'}.")
