"""One candidate, one sandbox: started, watched from outside, ended with all its processes, leaving nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lit_cpt.sandbox.kinds import command, make_order
from lit_cpt.sandbox.limits import Limits, Verdict
from lit_cpt.sandbox.wire import pack

GRACE_SECONDS = 5.0  # beyond the limit of wall time, for an interpreter to start on a busy machine
STOP_SECONDS = 1.0  # between asking a sandbox to end and ending it


@dataclass(frozen=True)
class Task:
    """A candidate and how it is tested; `pool.Sandbox.run` says what the four are."""

    candidate: str
    test: str
    prompt: str = ""
    entry_point: str = ""


class Cells:
    """The sandboxes that run now."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.closed = False

    def judge(self, kind: str, limits: Limits, task: Task) -> Verdict:
        """Score one candidate; what goes wrong around it is a verdict too."""
        began = time.monotonic()
        try:
            with work_folder(kind) as work:
                reason = self.reason_for(make_order(kind, limits, work), task)
        except (OSError, subprocess.SubprocessError) as error:
            reason = f"unavailable: {error}"
        return Verdict(reason == "ok", reason, time.monotonic() - began)

    def reason_for(self, order: dict[str, Any], task: Task) -> str:
        """What the judge says, or what became of it."""
        if order["kind"] == "weak" and order["uid"]:
            os.chown(order["work"], order["uid"], order["uid"])
        with self.started(order) as process:
            limit = order["limits"]["wall_seconds"] + GRACE_SECONDS
            try:
                said, complaint = process.communicate(pack(order) + pack(vars(task)), timeout=limit)
            except subprocess.TimeoutExpired:
                return "timed out"
        try:
            return str(json.loads(said.partition(b"\n")[0]))  # the first word holds
        except ValueError:
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            return f"worker died (exit status {process.returncode}) {last}".strip()

    @contextlib.contextmanager
    def started(self, order: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
        """A fresh interpreter in a session of its own, never a fork of this process; ended with the context."""
        home = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": order["work"], "TMPDIR": order["work"]}
        order["lifeline"], held = os.pipe()  # the judge ends when nobody holds it, whatever became of us
        try:
            with self.lock:
                if self.closed:
                    raise OSError("this sandbox is closed")
                process = subprocess.Popen(command(order), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                           stderr=subprocess.PIPE, cwd="/", env=home, start_new_session=True,
                                           pass_fds=[order["lifeline"]])
                self.running.add(process)
        except BaseException:
            os.close(held)
            raise
        finally:
            os.close(order["lifeline"])
        try:
            yield process
        finally:
            os.close(held)
            self.stop(process)

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Ask it to take its processes along, then kill it and its group; reap it and close its pipes."""
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        with self.lock:
            self.running.discard(process)

    def close(self) -> None:
        """End every sandbox that runs and let none start."""
        with self.lock:
            self.closed = True
            running = list(self.running)
        for process in running:
            process.terminate()


@contextlib.contextmanager
def work_folder(kind: str) -> Iterator[str]:
    """Where a candidate may write; a strong sandbox has its own ``/tmp`` in memory, and this machine's disk no part."""
    if kind != "weak":
        yield "/tmp"
        return
    folder = tempfile.mkdtemp(prefix="lit-cpt-sandbox-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
