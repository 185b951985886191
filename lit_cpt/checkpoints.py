"""Checkpoints that are whole or not there: written aside, renamed, and told apart from damaged ones when found.

A run's checkpoints lie in ``RUN/checkpoints``: ``step-00001000.ckpt`` and so on, and links that name one of
them, ``last.ckpt`` (the newest) and ``best.ckpt`` (of a monitored metric).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_cpt.publishing import COMPLETE, WRITING, publish

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)


# Writing -----------------------------------------------------------------------------------------------------


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that it is there whole or not at all.

    Lightning's own makes a copy in memory first, and its temporary file may lie on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to the file ``path``; a path that is no local one is left to Lightning.

        Raises:
            OSError: It could not be written, for example because the disk is full. ``path`` is as it was.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            publish(Path(path), lambda file: torch.save(checkpoint, file))


def clear_leftovers(folder: Path) -> None:
    """Remove what a run left that was killed while it wrote."""
    for path in folder.glob(WRITING.format("*")):
        remove(path)


def remove(path: Path) -> None:
    """Remove a checkpoint; a folder is no checkpoint any more from the first moment on."""
    if path.is_dir() and not path.is_symlink():
        (path / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def point(folder: Path, name: str, target: Path) -> None:
    """Let the link ``folder/name.ckpt`` name ``target``, which lies in ``folder``; it never names nothing.

    Where the filesystem has no links there is none: what is newest is then seen from the files themselves.
    """
    aside = folder / WRITING.format(f"{name}.ckpt")
    try:
        aside.unlink(missing_ok=True)
        aside.symlink_to(target.name)
        os.replace(aside, folder / f"{name}.ckpt")
    except OSError as error:
        aside.unlink(missing_ok=True)
        if error.errno in FULL:
            raise
        log.info("%s.ckpt is left out: this filesystem has no links (%s)", name, error.strerror)


# Finding -----------------------------------------------------------------------------------------------------


def damage(path: Path) -> str | None:
    """What is wrong with the checkpoint ``path``; None if it is whole.

    The bytes of the tensors are not read: a file is whole if its table of contents, which is written last,
    is there and names nothing past its end.
    """
    if path.is_dir():
        return None if (path / COMPLETE).is_file() else f"it has no file {COMPLETE}: it was not written to its end"
    size = path.stat().st_size
    if size == 0:
        return "it is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        return f"its table of contents cannot be read, so it ends too early or is no checkpoint: {error}"
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        return "it is an archive of something else than a checkpoint"
    ends = max(entry.header_offset + entry.compress_size for entry in entries)
    return None if ends <= size else f"it names {ends:,} bytes but has {size:,}"


def step_of(path: Path) -> int | None:
    """The optimizer step that a checkpoint's name tells: the last number in it."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else None


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return folder / f"step-{step:08d}.ckpt"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, newest first; links are none.

    ``last.ckpt`` tells the newest. What another callback wrote after it and for a later step is newer still.
    The rest goes by step, or by time where some name tells no step.
    """
    found = [path for path in folder.glob("*.ckpt") if not path.is_symlink()]
    times = {path: path.stat().st_mtime_ns for path in found}
    if any(step_of(path) is None for path in found):
        found.sort(key=lambda path: times[path], reverse=True)
    else:
        found.sort(key=lambda path: (step_of(path), times[path]), reverse=True)
    last = (folder / "last.ckpt").resolve()
    if not (folder / "last.ckpt").is_symlink() or last.parent != folder.resolve() or not last.exists():
        return found
    last = folder / last.name

    def later(path: Path) -> bool:
        steps = step_of(path), step_of(last)
        return times[path] > times[last] and (None in steps or steps[0] > steps[1])  # type: ignore[operator]

    newer = [path for path in found if path != last and later(path)]
    return [*newer, last, *(path for path in found if path != last and path not in newer)]


def newest_whole(folder: Path, before: int | None = None) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint of a run, and the newer ones that are damaged, each with what is wrong.

    Args:
        folder: Of the checkpoints.
        before: Look only at those whose name tells a step before this one.
    """
    damaged: dict[Path, str] = {}
    for path in checkpoints_in(folder):
        if before is not None and (step := step_of(path)) is not None and step >= before:
            continue
        wrong = damage(path)
        if wrong is None:
            return path, damaged
        damaged[path] = wrong
    return None, damaged


def found_checkpoint(run: Path, asked: str | None, skipped: Callable[[Path, str, Path], None] | None = None
                     ) -> str | None:
    """The checkpoint that ``--ckpt_path`` means; None to start anew.

    Args:
        run: The run's folder.
        asked: ``last`` for the newest whole one, ``auto`` for that or, where the run has none, a new start, ``best``
            for that of the monitored metric, a path, or None.
        skipped: Told of each newer one that is damaged: which, what is wrong, and what is taken instead.

    Raises:
        FileNotFoundError: It is not there.
        FileExistsError: A new run would mix with the one that ``run`` holds.
        ValueError: It is damaged.
    """
    folder = run / "checkpoints"
    if run.exists() and not run.is_dir():
        raise FileExistsError(f"--run {run} is a file; name a folder, such as --run runs/{run.stem}.")
    if (above := next((path for path in run.parents if path.is_file()), None)) is not None:
        raise FileExistsError(f"--run {run}: {above} is a file; name a folder elsewhere.")
    if asked in (None, "auto") and not any(folder.glob("*.ckpt")):
        return None
    if asked is None:
        raise FileExistsError(f"{run} holds a run already. Resume it with --ckpt_path last, or start another with "
                              "--run DIR.")
    if asked in ("last", "auto"):
        return str(last_checkpoint(folder, skipped or warn_of_skipped))
    path = (folder / "best.ckpt").resolve() if asked == "best" else Path(asked)
    if asked == "best" and not path.exists():
        raise FileNotFoundError(f"--ckpt_path best: there is no best.ckpt in {folder}. Give `last` or a file, or let "
                                "RunCheckpointCallback monitor a metric, such as val/NAME/loss.")
    if not path.exists():
        raise FileNotFoundError(f"--ckpt_path {asked}: no such file. Give `last` or a file of {folder}.")
    if (wrong := damage(path)) is not None:
        whole, _ = newest_whole(folder)
        instead = f"The newest whole one of this run is {whole}: resume with --ckpt_path {whole}." if whole else (
            f"There is no whole one in {folder}.")
        raise ValueError(f"--ckpt_path {asked} is damaged: {wrong}. {instead}")
    return str(folder / path.name if asked == "best" else path)


def last_checkpoint(folder: Path, skipped: Callable[[Path, str, Path], None]) -> Path:
    """The newest whole checkpoint; see `found_checkpoint`."""
    path, damaged = newest_whole(folder)
    if path is None:
        wrong = "".join(f" {broken.name} is damaged: {what}." for broken, what in damaged.items())
        raise FileNotFoundError(f"--ckpt_path last: there is no {'whole ' * bool(damaged)}checkpoint in {folder}."
                                f"{wrong} Leave --ckpt_path out to start, or name the run's folder with --run DIR.")
    for broken, what in damaged.items():
        skipped(broken, what, path)
    return path


def warn_of_skipped(broken: Path, what: str, instead: Path) -> None:
    """Say which checkpoint is passed over, and why."""
    log.warning("%s is damaged (%s): going on from %s", broken, what, instead)


# Saving from a running Trainer -------------------------------------------------------------------------------


def folder_of(trainer: Trainer) -> Path:
    """The folder of a run's checkpoints."""
    return Path(trainer.default_root_dir) / "checkpoints"


def write_whole(trainer: Trainer) -> None:
    """Let ``trainer`` write whole checkpoints, unless the user gave it a CheckpointIO."""
    try:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
    except NotImplementedError:
        log.debug("%s writes its checkpoints itself", type(trainer.strategy).__name__)


def save(trainer: Trainer, path: Path) -> None:
    """Save ``path`` and let ``last.ckpt`` name it; all ranks call this, and all fail if one does.

    A strategy that writes while training goes on returns sooner: see `when_saved`.

    Raises:
        OSError: It, or the one before that was still being written, could not be written.
    """
    failure: OSError | None = None
    try:
        trainer.save_checkpoint(path)
    except OSError as error:
        if trainer.world_size == 1:
            raise
        failure = error
        trainer.strategy.barrier("Trainer.save_checkpoint")  # where the others wait
    if trainer.world_size > 1 and not trainer.strategy.reduce_boolean_decision(failure is None):
        raise failure or OSError(errno.EIO, "another rank could not write it", str(path))
    if trainer.is_global_zero:
        if path.is_dir():
            publish(path / COMPLETE, lambda file: file.write(b""))
        when_saved(trainer, lambda: point(path.parent, "last", path))


def when_saved(trainer: Trainer, action: Callable[[], object]) -> None:
    """Do ``action`` when the checkpoint that is being written is whole: at once, where training waits for it."""
    later = getattr(trainer.strategy, "when_saved", None)
    action() if later is None else later(action)


def finish_saving(trainer: Trainer) -> None:
    """Wait for the checkpoint that is being written; all ranks call this.

    Raises:
        OSError: It could not be written.
    """
    finish = getattr(trainer.strategy, "finish_saving", None)
    if finish is not None:
        finish()


def finish_copying(trainer: Trainer) -> None:
    """Wait until the mirror, if there is one, has what was saved; nothing is saved after this. All ranks call it."""
    for callback in saving_callbacks(trainer):
        callback.finish_copying()


def save_now(trainer: Trainer, reason: str) -> Path:
    """Save the step that was made, unless it is saved already; all ranks call this.

    Args:
        trainer: A Trainer that fits.
        reason: Why, for the log: ``switch``, ``branch``, ``evaluation``, ``signal``, ``end`` ... A checkpoint at a
            ``switch`` or ``branch`` is kept for good, and written when every callback has seen the end of the batch.

    Returns:
        The checkpoint: of the Trainer's `RunCheckpointCallback`, or written here where it has none.
    """
    for callback in saving_callbacks(trainer):
        return Path(callback.save_step(trainer, reason))
    write_whole(trainer)
    path = step_path(folder_of(trainer), trainer.global_step)
    save(trainer, path)
    return path


def saving_callbacks(trainer: Trainer) -> Iterator[Any]:
    """The callbacks that know which steps are saved."""
    return (callback for callback in trainer.checkpoint_callbacks if hasattr(callback, "save_step"))
