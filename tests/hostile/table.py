"""The table of hostile programs: what each tried, what the sandbox said, and what was left of it.

    python tests/hostile/table.py [--kind namespaces] [--only "fork bomb"]

Exits with 1 if one of them got out, stayed, took longer than its limit, or was not told from an honest failure.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import forging
import greedy
import reaching
from program import Program

from lit_cpt.sandbox import Limits, Sandbox, Verdict
from lit_cpt.sandbox.cells import GRACE_SECONDS
from lit_cpt.sandbox.enter import ROOT

PROGRAMS = [*greedy.PROGRAMS, *reaching.PROGRAMS, *forging.PROGRAMS]
LIMITS = Limits(wall_seconds=3.0, cpu_seconds=2, memory_bytes=256 * 2**20, processes=12, disk_bytes=4 * 2**20)
PATIENCE_SECONDS = 5.0  # for processes that are being killed


@dataclass(frozen=True)
class Bait:
    """What the programs reach for."""

    secret: Path
    outside: Path
    listener: socket.socket
    abstract: socket.socket

    def fill(self, text: str) -> str:
        """A program's text with this machine's names in it."""
        names = {"secret": self.secret, "outside": self.outside, "trainer": os.getpid(),
                 "port": self.listener.getsockname()[1], "abstract": self.abstract.getsockname()[1:].decode()}
        for name, value in names.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text

    def taken(self) -> list[str]:
        """What shows that one of them was here."""
        found = [f"wrote {path.name}" for path in self.outside.iterdir()]
        if self.secret.read_text() != "secret":
            found.append("changed the secret")
        for listener in (self.listener, self.abstract):
            with contextlib.suppress(BlockingIOError):
                listener.accept()
                found.append("connected")
        return found


@contextlib.contextmanager
def bait() -> Iterator[Bait]:
    """A secret, a folder open to everybody, a port and an abstract socket."""
    os.environ["LIT_CPT_SECRET"] = "of the trainer"
    with tempfile.TemporaryDirectory(prefix="lit-cpt-bait-") as folder, \
            socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        os.chmod(folder, 0o711)
        home, outside = Path(folder) / "home", Path(folder) / "outside"
        home.mkdir()
        outside.mkdir()
        outside.chmod(0o777)
        (home / "secret").write_text("secret")
        abstract.bind(f"\0lit-cpt-{os.getpid()}")
        abstract.listen()
        for one in (listener, abstract):
            one.setblocking(False)
        yield Bait(home / "secret", outside, listener, abstract)


def processes() -> set[str]:
    """Ids of processes that live in a nested process namespace or run a judge, and of this process's zombies."""
    found, depth = set(), len(own_namespaces())
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = dict(re.findall(r"^(\w+):\s*(.*)$", (folder / "status").read_text(), re.M))
            inside = len(status.get("NSpid", "").split()) > depth
            judges = b"lit_cpt.sandbox.judge" in (folder / "cmdline").read_bytes()
            zombie = status["PPid"] == str(os.getpid()) and status["State"].startswith("Z")
            if inside or judges or zombie:
                found.add(folder.name)
    return found


def own_namespaces() -> list[str]:
    """This process's ids, one for each process namespace that it lives in."""
    return re.findall(r"^NSpid:\s*(.*)$", Path("/proc/self/status").read_text(), re.M)[0].split()


def files() -> set[str]:
    """Work folders, mounts over the sandbox's root and System V memory."""
    folders = {str(path) for path in Path(tempfile.gettempdir()).glob("lit-cpt-sandbox-*")}
    mounts = {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4] == ROOT}
    return folders | mounts | set(Path("/proc/sysvipc/shm").read_text().splitlines())


def leftovers(processes_before: set[str], files_before: set[str]) -> set[str]:
    """What is there that was not there before, once everything had time to go."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        left = (processes() - processes_before) | (files() - files_before)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    program: Program
    verdict: Verdict
    escapes: list[str]
    left: set[str]

    def faults(self) -> list[str]:
        """What the sandbox failed to do; empty is right."""
        found = [*self.escapes, *(f"left {name}" for name in sorted(self.left))]
        if self.verdict.passed:
            found.append("passed")
        if self.verdict.seconds > LIMITS.wall_seconds + GRACE_SECONDS:
            found.append("took too long")
        if not re.search(self.program.says, self.verdict.reason) or self.verdict.reason.startswith("unavailable"):
            found.append(f"expected {self.program.says!r}")
        return found


def attempt(sandbox: Sandbox, program: Program, lures: Bait) -> Outcome:
    """Run one program, and look around."""
    before = processes(), files()
    verdict = sandbox.run(lures.fill(program.candidate), program.test, program.prompt, "f" if program.prompt else "")
    return Outcome(program, verdict, lures.taken(), leftovers(*before))


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 if every program was held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", help="bubblewrap, namespaces or weak; by default the best there is")
    parser.add_argument("--only", help="a pattern of names")
    chosen = parser.parse_args(arguments)
    weak = chosen.kind == "weak"
    kinds = {} if not chosen.kind else {"kinds": () if weak else (chosen.kind,), "allow_weak_sandbox": weak}
    held, tried = 0, [program for program in PROGRAMS if re.search(chosen.only or "", program.name)]
    with bait() as lures, Sandbox(LIMITS, workers=1, **kinds) as sandbox:
        print(f"sandbox: {sandbox.kind}, as uid {os.getuid()}; limits: {dataclasses.asdict(LIMITS)}")
        print(f"{'program':42} {'seconds':>7}  {'escaped':7} {'left':4}  reason")
        for program in tried:
            outcome = attempt(sandbox, program, lures)
            faults = outcome.faults()
            held += not faults
            escaped = "yes" if outcome.escapes or outcome.verdict.passed else "no"
            print(f"{program.name:42} {outcome.verdict.seconds:7.2f}  {escaped:7} {len(outcome.left):4}  "
                  f"{outcome.verdict.reason[:90]}{f'   <-- {faults}' if faults else ''}", flush=True)
    print(f"hostile: {held}/{len(tried)}")
    return int(held < len(tried))


if __name__ == "__main__":
    sys.exit(main())
