"""Processes of `lit-cpt fit` that are born with the imports done: a tenth of the time, for very many kills.

A nursery is a process that has imported everything and forks on request; the child becomes the leader of a session of
its own and calls what the command calls. On several ranks it forks the others first, as a launcher would start them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def born(arguments: Sequence[str], ranks: int, folder: Path, environment: Mapping[str, str], log: Path) -> Child:
    """Start ``lit-cpt`` with these arguments, by this thread's nursery."""
    if not hasattr(nurseries, "server"):
        nurseries.server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            text=True, env=dict(environment))
    server: subprocess.Popen[str] = nurseries.server
    assert server.stdin is not None
    assert server.stdout is not None
    request = {"arguments": list(arguments), "ranks": ranks, "folder": str(folder), "environment": dict(environment),
               "log": str(log)}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return Child(server, int(server.stdout.readline()))


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def become(request: dict[str, Any]) -> None:
    """Turn this fork into the run that is asked for: a session, an environment, a log, one process a rank."""
    os.setsid()
    os.chdir(request["folder"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for handle, stream in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(handle, stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["lit-cpt", *request["arguments"]]
    tempfile.tempdir = None
    if request["ranks"] > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port(), WORLD_SIZE=str(request["ranks"]),
                          NODE_RANK="0", LOCAL_RANK="0")
        for rank in range(1, request["ranks"]):
            if os.fork() == 0:
                os.environ["LOCAL_RANK"] = str(rank)
                break


def serve() -> int:
    """Fork a run for each line of the input, and tell its process id and then its status."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import lit_cpt.training  # noqa: F401
    from lit_cpt.cli import main

    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever the imports print is no answer
        for line in iter(sys.stdin.readline, ""):
            request = json.loads(line)
            child = os.fork()
            if child == 0:
                become(request)
                return main(request["arguments"])
            print(child, file=answers, flush=True)
            print(os.waitpid(child, 0)[1], file=answers, flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(serve())
