"""Programs the model wrote: scored by a sandbox while generation goes on, in place of the hub's `code_eval`."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

log = logging.getLogger(__name__)


class Sandbox(Protocol):
    """What runs a program; `lit_cpt.sandbox.Sandbox` does. A verdict has ``passed`` and ``reason``."""

    def submit(self, candidate: str, test: str, prompt: str = "", entry_point: str = "") -> Future[Any]:
        """Start a program; the future holds its verdict."""
        ...


class NoSandbox(RuntimeError):
    """A family runs what the model wrote, and there is nothing to run it in."""


class LaterSandbox:
    """A sandbox that is opened when a family first needs one: whoever runs no programs need not have any.

    Args:
        open_one: Opens it; what it raises is why programs cannot be run.
    """

    def __init__(self, open_one: Callable[[], Any]) -> None:
        self.open_one = open_one
        self.opened: Any = None

    def preflight(self) -> str | None:
        """Open it and try it out: None, or why programs cannot be run."""
        try:
            self.opened = self.opened or self.open_one()
        except (RuntimeError, OSError) as error:
            return str(error)
        problem: str | None = self.opened.preflight()
        return problem

    def submit(self, candidate: str, test: str, prompt: str = "", entry_point: str = "") -> Future[Any]:
        """Start a program."""
        self.opened = self.opened or self.open_one()
        started: Future[Any] = self.opened.submit(candidate, test, prompt, entry_point)
        return started

    def close(self) -> None:
        """End what runs."""
        if self.opened is not None:
            self.opened.close()
            self.opened = None


def digest(candidate: str, test: str) -> str:
    """What a program and its test are known by."""
    return hashlib.sha256(f"{len(candidate)} {candidate}{test}".encode()).hexdigest()


def pass_at(k: int, tried: int, right: int) -> float:
    """Unbiased estimate that one of ``k`` programs is right, of which ``right`` of ``tried`` were.

    >>> pass_at(1, 4, 1), pass_at(2, 2, 1)
    (0.25, 1.0)
    """
    return 1.0 - math.comb(tried - right, k) / math.comb(tried, k)


class ProgramScorer:
    """Stands where lm-eval's tasks expect ``evaluate.load("code_eval")``.

    Args:
        sandbox: Runs the programs; None while tasks are loaded, when upstream tries the scorer on a toy.
    """

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self.sandbox = sandbox
        self.running: dict[str, tuple[Future[Any], tuple[str, str, str, str]]] = {}
        self.verdicts: dict[str, bool] = {}

    def start(self, candidate: str, test: str, prompt: str = "", entry_point: str = "") -> None:
        """Start a program now; `compute` asks for its verdict later."""
        key = digest(candidate, test)
        if self.sandbox is not None and key not in self.running and key not in self.verdicts:
            asked = (candidate, test, prompt, entry_point)
            self.running[key] = (self.sandbox.submit(*asked), asked)

    def finish(self) -> dict[str, bool]:
        """Wait for every program that was started; returns their verdicts by digest.

        A program whose sandbox was killed is tried once more: killed again, it is taken to be its own doing.

        Raises:
            NoSandbox: The sandbox could not try a program.
        """
        running, self.running = self.running, {}
        found = {}
        for key, (future, asked) in running.items():
            verdict = future.result()
            if self.sandbox is not None and str(getattr(verdict, "reason", "")).startswith("worker died"):
                log.warning("a sandbox was killed while it scored (%s): trying its program again", verdict.reason)
                verdict = self.sandbox.submit(*asked).result()
            if str(getattr(verdict, "reason", "")).startswith("unavailable"):
                raise NoSandbox(f"the sandbox did not try a program: {verdict.reason}. See `Sandbox.preflight()`.")
            found[key] = bool(verdict.passed)
        self.verdicts |= found
        return found

    def verdict(self, candidate: str, test: str) -> bool:
        """Whether a program passes; runs it if nobody has."""
        key = digest(candidate, test)
        if key not in self.verdicts:
            self.start(candidate, test)
            self.finish()
        return self.verdicts.get(key, False)

    def compute(self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1,),
                **_: Any) -> tuple[dict[str, float], dict[int, list[bool]]]:
        """``pass@k`` as the hub's ``code_eval`` gives it, and the verdicts by problem."""
        found = {index: [self.verdict(one, reference) for one in tried]
                 for index, (tried, reference) in enumerate(zip(predictions, references, strict=True))}
        rates = {}
        for count in k:
            values = [pass_at(count, len(one), sum(one)) for one in found.values() if len(one) >= count]
            if values:
                rates[f"pass@{count}"] = math.fsum(values) / len(values)
        return rates, found
