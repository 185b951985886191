"""The judge's process: pid 1 of the sandbox. It holds the tests and asks the candidate's process for answers."""

from __future__ import annotations

import ast
import builtins
import contextlib
import fcntl
import importlib
import json
import math
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

from lit_cpt.sandbox.confine import PR_SET_PDEATHSIG, confine_candidate, drop_privileges, limit_resources
from lit_cpt.sandbox.enter import DEVICES, enter
from lit_cpt.sandbox.servant import serve, silence
from lit_cpt.sandbox.syscalls import prctl
from lit_cpt.sandbox.wire import Gone, Line, from_plain, to_plain

UNBOUNDED = 2**40  # bytes of a message that our own side wrote


class Candidate:
    """The candidate as the judge sees it: a process that answers, until it breaks off.

    Args:
        line: To its process.
        process: Its id.
    """

    def __init__(self, line: Line, process: int) -> None:
        self.line, self.process = line, process
        self.broken: str | None = None

    def ask(self, deed: str, *details: Any) -> Any:
        """One answer of the candidate; what it raised is raised here."""
        try:
            self.line.send([deed, *details])
            answer = self.line.receive()
        except TimeoutError:
            self.broken = self.broken or "timed out"
            raise
        except Gone:
            self.broken = self.broken or self.epitaph()
            raise
        if "error" in answer:
            name, text = map(str, answer["error"])
            if name == "MemoryError":
                self.broken = "killed: memory"
            raise error_of(name, text)
        return answer["value"]

    def function(self, name: str) -> Any:
        """A stand-in for the candidate's function of this name."""
        def stand_in(*arguments: Any, **keywords: Any) -> Any:
            return from_plain(self.ask("call", name, to_plain(list(arguments)), to_plain(keywords)))
        stand_in.__name__ = name
        return stand_in

    def epitaph(self) -> str:
        """How its process ended."""
        while True:  # it closed its line; does it live on?
            child, status = os.waitpid(self.process, os.WNOHANG)
            if child:
                break
            if time.monotonic() > self.line.deadline:
                return "timed out"
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGXCPU:
            return "killed: processor time"
        return f"killed: {signal.Signals(-code).name}" if code < 0 else f"left early with status {code}"


def error_of(name: str, text: str) -> Exception:
    """The error that a candidate raised, as one of Python's own; never one that ends an interpreter."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # Unicode errors want more than a text
            return kind(text)
    return RuntimeError(f"{name}: {text}")


def names_for(code: ast.Module, task: dict[str, str], candidate: Candidate) -> dict[str, Any]:
    """The names that the tests run with: the prompt's own, the entry point, and what else the candidate has."""
    names: dict[str, Any] = {"__name__": "tests"}
    exec(compile(task["prompt"], "<prompt>", "exec"), names)
    names.pop(task["entry_point"], None)
    used = {node.id for node in ast.walk(code) if isinstance(node, ast.Name) and not hasattr(builtins, node.id)}
    used -= names.keys()  # the helpers stay the benchmark's own
    told = candidate.ask("describe", sorted(used))
    for name in used & told.keys():
        kind, data = told[name]
        if kind == "function":
            names[name] = candidate.function(name)
        elif kind == "module" and name in sys.stdlib_module_names:
            names[name] = importlib.import_module(name)  # ours of that name
        elif kind == "data":
            names[name] = from_plain(data)
    return names


def judge(task: dict[str, str], candidate: Candidate) -> str:
    """Run the tests against the candidate: ``ok``, or what went wrong."""
    try:
        candidate.ask("load", task["candidate"])
        code = ast.parse(task["test"], "<tests>")
        exec(compile(code, "<tests>", "exec"), names_for(code, task, candidate))
    except BaseException as error:  # tests raise what they like
        reason = f"failed: {type(error).__name__}: {error}".removesuffix(": ")[:300]
        return candidate.broken or reason
    return candidate.broken or "ok"  # a broken line counts, even if the tests swallowed its error


def start_candidate(order: dict[str, Any], inbox: Line) -> Candidate:
    """Fork the candidate's process and wait until it is confined; nothing of the task has been read yet."""
    limits = order["limits"]
    (to_us, from_it), (to_it, from_us) = os.pipe(), os.pipe()
    process = os.fork()
    if not process:
        for ours in (to_us, from_us, inbox.source, inbox.target, order["lifeline"]):
            os.close(ours)
        become_candidate(order, Line(to_it, from_it, UNBOUNDED))
    os.close(from_it)
    os.close(to_it)
    line = Line(to_us, from_us, limits["output_bytes"], time.monotonic() + limits["wall_seconds"])
    said = line.receive()  # the candidate's code has not begun, so this is our own word
    if said != "confined":
        raise OSError(said)
    return Candidate(line, process)


def become_candidate(order: dict[str, Any], line: Line) -> NoReturn:
    """Give up what a candidate may not have, then serve."""
    os.setsid()  # a signal to its group reaches nobody else
    for number in (signal.SIGTERM, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        confine_candidate(order["limits"], [*order["binds"], *DEVICES], [order["work"], os.devnull],
                          must_lock=order["kind"] == "namespaces")
    except OSError as error:
        line.send(str(error))
        os._exit(1)
    line.send("confined")
    serve(line)


def kill_all(order: dict[str, Any]) -> None:
    """End every process of a weak sandbox; the strong ones end with their first process."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for process in [-1] if order["uid"] else children(os.getpid()):  # -1: all of our own uid
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            os.waitpid(-1, 0)  # orphans become ours, so this ends when the last is gone


def children(parent: int) -> list[int]:
    """Processes whose parent is ``parent``."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8") as file:
            if int(file.read().rpartition(")")[2].split()[1]) == parent:
                found.append(int(name))
    return found


def main() -> None:
    """Read an order, enter the sandbox, then read the task and write one line of JSON: the reason."""
    os.umask(0o022)
    inbox = Line(os.dup(0), os.dup(1), UNBOUNDED)
    order = inbox.receive()
    try:
        enter(order)
        silence()
        drop_privileges(order["uid"])
        limit_resources(order["limits"], math.ceil(order["limits"]["wall_seconds"]) + 2)
        follow(order)
        candidate = start_candidate(order, inbox)
    except OSError as error:
        conclude(order, inbox, f"unavailable: {error}")
    signal.signal(signal.SIGALRM, lambda *_: conclude(order, inbox, "timed out"))  # the tests, too, may not end
    signal.setitimer(signal.ITIMER_REAL, order["limits"]["wall_seconds"])
    conclude(order, inbox, judge(inbox.receive(), candidate))  # only now is there a task in this process


def follow(order: dict[str, Any]) -> None:
    """End when asked to, and when the other end of the lifeline closes, because the trainer is gone or done with us."""
    for number in (signal.SIGTERM, signal.SIGIO):
        signal.signal(number, lambda *_: finish(order))
    line = order["lifeline"]
    fcntl.fcntl(line, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(line, fcntl.F_SETFL, fcntl.fcntl(line, fcntl.F_GETFL) | fcntl.FASYNC)
    if any(select.select([line], [], [], 0)):
        finish(order)  # it closed before we listened


def conclude(order: dict[str, Any], inbox: Line, reason: str) -> NoReturn:
    """Say the last word, and end."""
    os.write(inbox.target, json.dumps(reason).encode() + b"\n")
    finish(order)


def finish(order: dict[str, Any]) -> NoReturn:
    """End, and everything with us."""
    if order["kind"] == "weak":
        kill_all(order)
    os._exit(0)
