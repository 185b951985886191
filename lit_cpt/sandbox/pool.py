"""Scores programs in sandboxes, several at a time, while generation goes on."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from lit_cpt.sandbox.cells import Cells, Task
from lit_cpt.sandbox.kinds import STRONG, why_not
from lit_cpt.sandbox.limits import Limits, Verdict

MOST_WORKERS = 8
GOOD = ("def double(x):\n    return 2 * x", "assert double(2) == 4")
BAD = ("def double(x):\n    return 3 * x", "assert double(2) == 4")
ESCAPE = """
import os, socket
def escapes():
    deeds = {"reads /etc/passwd": lambda: open("/etc/passwd").read(), "reads /proc": lambda: os.listdir("/proc"),
             "writes to /var/tmp": lambda: open("/var/tmp/lit-cpt-escape", "w"), "opens a socket": socket.socket}
    done = []
    for name, deed in deeds.items():
        try:
            deed()
            done.append(name)
        except OSError:
            pass
    return done
"""

log = logging.getLogger(__name__)


class SandboxUnavailable(RuntimeError):
    """No way here to keep a candidate apart from the machine."""


class Sandbox:
    """Runs programs that nobody has read, and says whether they pass their tests.

    Args:
        limits: What one candidate may use.
        allow_weak_sandbox: Where neither bubblewrap nor namespaces work, go on with limits of resources only.
        workers: Candidates at a time; by default one for each core, 8 at most.
        kinds: Strong kinds to try, in this order.

    Raises:
        SandboxUnavailable: None of the kinds works here; the message says why and how to mend it.
    """

    def __init__(self, limits: Limits | None = None, allow_weak_sandbox: bool = False, workers: int | None = None,
                 kinds: tuple[str, ...] = STRONG) -> None:
        unknown = set(kinds) - set(STRONG)
        if unknown:
            raise ValueError(f"kinds={kinds} has {sorted(unknown)}; strong ones are {', '.join(STRONG)}. The weak one "
                             "is let in by allow_weak_sandbox=True.")
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers} must be 1 or more: each scores one candidate at a time.")
        self.limits = limits or Limits()
        self.kind = first_that_works((*kinds, "weak") if allow_weak_sandbox else kinds)
        if self.kind == "weak":
            log.warning("candidates run in a weak sandbox: limits of resources, but files, network and processes "
                        "of this machine are not walled off")
        self.cells = Cells()
        self.pool = ThreadPoolExecutor(workers or min(MOST_WORKERS, cores()), "sandbox")

    def run(self, candidate: str, test: str, prompt: str = "", entry_point: str = "") -> Verdict:
        """Score one candidate here and now.

        Args:
            candidate: The program under test: prompt and completion. Nobody has read it.
            test: Python that calls the candidate's functions by name and raises where they are wrong:
                HumanEval's test with its ``check(entry_point)``. Trusted as much as any dependency.
            prompt: Trusted definitions that the test uses, HumanEval's prompt: with it a candidate cannot
                replace the benchmark's helpers by its own.
            entry_point: The one name of the prompt that the candidate answers for.

        Returns:
            The verdict; never an exception of the candidate's making.
        """
        return self.cells.judge(self.kind, self.limits, Task(candidate, test, prompt, entry_point))

    def submit(self, candidate: str, test: str, prompt: str = "", entry_point: str = "") -> Future[Verdict]:
        """Score one candidate in the pool; the arguments are those of `run`."""
        return self.pool.submit(self.run, candidate, test, prompt, entry_point)

    def preflight(self) -> str | None:
        """Try a good program, a bad one and one that tries to get out: None, or why not to rely on this sandbox."""
        good, bad = self.run(*GOOD), self.run(*BAD)
        if not good.passed:
            return f"a correct program did not pass: {good.reason}"
        if bad.passed or not bad.reason.startswith("failed: AssertionError"):
            return f"a wrong program was not found out: {bad.reason}"
        escape = self.run(ESCAPE, "found = escapes()\nassert not found, found")
        return None if escape.passed or self.kind == "weak" else f"a program got out: {escape.reason}"

    def close(self) -> None:
        """Drop what waits, end what runs."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.cells.close()
        self.pool.shutdown(wait=True)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def first_that_works(kinds: tuple[str, ...]) -> str:
    """The first of the kinds in which a correct program passes."""
    failures = []
    for kind in kinds:
        verdict = Cells().judge(kind, Limits(), Task(*GOOD))
        if verdict.passed:
            return kind
        failures.append(f"{kind}: {verdict.reason.removeprefix('unavailable: ')}")
    raise SandboxUnavailable(why_not(failures))
