"""Runs `lit-cpt` commands as processes, so many at once, and ends them all, each saved, if it is ended itself."""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PROGRAM = "lit_cpt"
LOOK_SECONDS = 0.2
SAY_SECONDS = 20.0
# What takes seconds to import, and most arms need. The processes are forked from one that has done it.
IMPORTED = ["lit_cpt.training", "lit_cpt.callbacks", "lit_cpt.harness.evaluation", "lm_eval.tasks", "lm_eval.models",
            "transformers.models.llama.modeling_llama"]

Environment = Mapping[str, str]


class ArmFailed(RuntimeError):
    """A run did not come to its end; its log tells why."""


@dataclass(frozen=True)
class Job:
    """One command to run.

    Args:
        log: Where its output goes.
        arguments: Makes `lit-cpt`'s arguments when it is started.
        ready: Whether it can be started.
    """

    log: Path
    arguments: Callable[[], list[str]]
    ready: Callable[[], bool] = lambda: True


def run_side_by_side(jobs: Mapping[str, Job], slots: Sequence[Environment]) -> None:
    """Run all jobs to their ends, in their order where several are ready; a failure ends no other job.

    Args:
        jobs: By name.
        slots: What each of the places adds to the environment of the job that runs in it, such as a device.

    Raises:
        ArmFailed: A job failed; its log is named, and what could not be started without it.
    """
    waiting, failed, free = dict(jobs), [], list(slots)
    running: dict[str, tuple[BaseProcess, Environment]] = {}
    said = time.monotonic()
    with sigterm_as_ctrl_c():
        try:
            while True:
                for name in [name for name, job in waiting.items() if free and job.ready()][:len(free)]:
                    job, slot = waiting.pop(name), free.pop(0)
                    running[name] = (start(job, slot), slot)
                if not running:
                    break
                time.sleep(LOOK_SECONDS)
                for name in [name for name, (process, _) in running.items() if process.exitcode is not None]:
                    process, slot = running.pop(name)
                    free.append(slot)
                    failed += [name] * bool(process.exitcode)
                    log.info("%s: %s", name, "failed" if process.exitcode else "done")
                if time.monotonic() - said > SAY_SECONDS:
                    said = time.monotonic()
                    for name in running:
                        log.info("%s: %s", name, last_line(jobs[name].log) or "starting")
        finally:
            for process, _ in running.values():  # each saves and ends; a second SIGINT after Ctrl-C's own would not
                process.terminate()
            for process, _ in running.values():
                process.join()
    if failed or waiting:
        told = [f"the run {name} failed; see {jobs[name].log}" for name in failed]
        raise ArmFailed("; ".join([*told, *(f"{name} waits for what is not there" for name in waiting)])
                        + ". The same command goes on with what is left.")


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, by which a scheduler ends a job, raise KeyboardInterrupt as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start(job: Job, slot: Environment) -> BaseProcess:
    """`lit-cpt` in a process of its own; one thread, unless the environment says otherwise."""
    ways = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in ways else "spawn")
    context.set_forkserver_preload(IMPORTED)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.touch()  # it is looked into, perhaps before a slow start has come to writing
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **slot}
    process: BaseProcess = context.Process(target=enter, args=([PROGRAM, *job.arguments()], str(job.log), environment,
                                                               os.getcwd()))
    process.start()
    return process


def enter(command: list[str], log_file: str, environment: Environment, folder: str) -> None:
    """Be a command, in a process that was forked for it, and end with its status."""
    import torch

    with open(log_file, "ab") as file:  # a descriptor is all that is wanted
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # the variable was read when torch was imported
    sys.argv = command
    # By the name of this module Lightning starts the other ranks of an arm that has several devices.
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def last_line(log_file: Path) -> str:
    """What a run said last."""
    return log_file.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
