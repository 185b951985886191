"""Processes that are born with the imports done: a tenth of the time, for very many runs.

A nursery is a process that has imported everything and forks on request; the child becomes the leader of a session of
its own. It calls what the `lit-cpt` command calls, on several ranks having forked the others first, as Lightning's
launcher would start them; or it watches over forks that run a program as torchrun would start it.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIT = ("lit_cpt.training", "lit_cpt.parallel", "transformers.models.llama.modeling_llama")  # what `fit` imports
PATIENCE = 20.0  # seconds that ranks have to end after SIGTERM, when another one has failed
LIMIT = 300.0  # seconds after which a program counts as hung
nurseries = threading.local()


class Child:
    """A forked run, as far as it is used like a `subprocess.Popen`."""

    def __init__(self, server: subprocess.Popen[str], pid: int) -> None:
        self.pid, self.returncode = pid, 1
        self.waiter = threading.Thread(target=self.listen, args=(server,), daemon=True)
        self.waiter.start()

    def listen(self, server: subprocess.Popen[str]) -> None:
        """Wait until the nursery tells the end."""
        assert server.stdout is not None
        self.returncode = os.waitstatus_to_exitcode(int(server.stdout.readline()))

    def poll(self) -> int | None:
        """The status, or None while it runs."""
        return None if self.waiter.is_alive() else self.returncode

    def wait(self) -> int:
        """The status, once it has ended."""
        self.waiter.join()
        return self.returncode


def born(request: Mapping[str, Any], environment: Mapping[str, str], modules: Sequence[str] = FIT) -> Child:
    """Start what is asked for, by this thread's nursery with these modules.

    Args:
        request: ``arguments``, ``ranks``, ``folder`` to run in, ``log`` to write; ``program``, if it is not lit-cpt.
        environment: Of the run, and of the nursery when it starts.
        modules: Imported by the nursery.
    """
    servers = nurseries.__dict__.setdefault("servers", {})
    if modules not in servers:
        servers[modules] = subprocess.Popen([sys.executable, __file__, *modules], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, text=True, env=dict(environment))
    server: subprocess.Popen[str] = servers[modules]
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps({**request, "environment": dict(environment)}) + "\n")
    server.stdin.flush()
    return Child(server, int(server.stdout.readline()))


def torchrun(program: Path, ranks: int, *arguments: str,
             modules: Sequence[str] = FIT) -> subprocess.CompletedProcess[str]:
    """Run ``program`` to its end on so many ranks; what all of them said is in ``stderr``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        request = {"program": str(program), "arguments": arguments, "ranks": ranks, "folder": str(Path.cwd()),
                   "log": str(log)}
        child = born(request, environment, modules)
        child.waiter.join(LIMIT)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        said = log.read_text(errors="replace") if log.exists() else ""
        return subprocess.CompletedProcess([str(program), *arguments], child.wait(), "", said)


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def become(request: dict[str, Any]) -> None:
    """Turn this fork into the run that is asked for: a session, an environment, a log."""
    os.setsid()
    os.chdir(request["folder"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for handle, stream in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(handle, stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request.get("program", "lit-cpt"), *request["arguments"]]
    tempfile.tempdir = None
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())


def command(arguments: Sequence[str], ranks: int) -> int:
    """`lit-cpt`, the other ranks started by the first, as Lightning does."""
    from lit_cpt.cli import main

    if ranks > 1:
        os.environ.update(WORLD_SIZE=str(ranks), NODE_RANK="0", LOCAL_RANK="0")
        for rank in range(1, ranks):
            if os.fork() == 0:
                os.environ["LOCAL_RANK"] = str(rank)
                break
    return main(list(arguments))


def watched(program: str, ranks: int) -> int:
    """``program`` on so many ranks, as torchrun starts and ends them: where one fails, the others are ended."""
    children = set()
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
                              GROUP_RANK="0", TORCHELASTIC_RUN_ID="nursery")
            runpy.run_path(program, run_name="__main__")
            return 0
        children.add(child)
    failed, deadline = 0, float("inf")
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        children.discard(child)
        if status and not failed:
            failed, deadline = os.waitstatus_to_exitcode(status), time.monotonic() + PATIENCE
        for each in children if failed else ():
            os.kill(each, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(0.02)
    return failed and 1


def serve(modules: Sequence[str]) -> int:
    """Fork a run for each line of the input, and tell its process id and then its status."""
    for name in modules:
        importlib.import_module(name)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever the imports print is no answer
        for line in iter(sys.stdin.readline, ""):
            request = json.loads(line)
            child = os.fork()
            if child == 0:
                become(request)
                if "program" in request:
                    return watched(request["program"], request["ranks"])
                return command(request["arguments"], request["ranks"])
            print(child, file=answers, flush=True)
            print(os.waitpid(child, 0)[1], file=answers, flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(serve(sys.argv[1:]))
