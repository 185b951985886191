"""Files and folders that are there whole or not at all: written aside, brought to the disk, and renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

COMPLETE = "COMPLETE"  # the file that a checkpoint which is a folder gets last
WRITING = ".{}.writing"  # how a thing is called while it is written


def publish(path: Path, write: Callable[[BinaryIO], object], mark: str = "") -> None:
    """Let ``write`` fill a file beside ``path``, bring it to the disk, and give it its name.

    Args:
        path: Of the file.
        write: Fills it.
        mark: Part of the name of the file beside it; without one a killed writer's is overwritten by the next.

    Raises:
        OSError: What the disk said, with the file's name; torch hides it in a RuntimeError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(WRITING.format(path.name + mark))
    try:
        with open(aside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        said = disk_error(error)
        if said is None or said is error:
            raise
        raise OSError(said.errno, said.strerror, str(path)) from error
    sync_folder(path.parent)


def publish_text(path: Path, text: str) -> None:
    """Give ``path`` this content; see `publish`. Several processes, also of several machines, may do so at once."""
    publish(path, lambda file: file.write(text.encode()), f".{token_hex(8)}")


def publish_folder(aside: Path, folder: Path) -> None:
    """Give the folder ``aside``, whose files are on the disk, the name ``folder``; one that has it is replaced.

    Raises:
        OSError: It could not be renamed; what was there is as it was.
    """
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    replaced = folder.exists()
    if replaced:
        folder.rename(old)
    try:
        aside.rename(folder)
    except OSError:
        if replaced:
            old.rename(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def taken_back(folder: Path, patterns: Sequence[str], begun: Callable[[], bool]) -> Iterator[None]:
    """Leave ``folder`` as it was where an error ends what is done in here before it has ``begun``.

    Args:
        folder: It and the folders above it are removed if they were made in here and are empty in the end.
        patterns: Of the files in it that are removed if they were made in here.
        begun: Whether what is there is to stay.
    """
    before = set(matching(folder, patterns))
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if not begun():
            for file in set(matching(folder, patterns)) - before:
                file.unlink(missing_ok=True)
            with suppress(OSError):  # there is more in it
                for path in made:
                    path.rmdir()
        raise


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Files of ``folder`` by patterns."""
    return [path for pattern in patterns for path in folder.glob(pattern)]


def disk_error(error: BaseException | None) -> OSError | None:
    """The error of the disk that ``error`` is or was raised upon, on this rank or on another that tells of it."""
    while error is not None and not isinstance(error, OSError):
        told = getattr(error, "failures", None)  # of torch's CheckpointException: rank -> (error, where)
        if isinstance(told, dict):
            return next((found for one, _ in told.values() if (found := disk_error(one)) is not None), None)
        error = error.__cause__ or error.__context__
    return error


def sync_folder(folder: Path) -> None:
    """Bring the names in ``folder`` to the disk, where the filesystem can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def sync_file(file: Path) -> None:
    """Bring what ``file`` holds to the disk."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())
