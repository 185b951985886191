"""The ranks of an evaluation: who does what, what they agree on, and when they stop together."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from lit_cpt.harness.programs import NoSandbox
from lit_cpt.harness.results import Status


class DeadlinePassed(RuntimeError):
    """The evaluation's time is over."""


class RankFailed(RuntimeError):
    """What went wrong on one rank, raised on all of them.

    Args:
        status: What a `FamilyResult` calls it.
        message: Error and rank.
        trace: Traceback of the rank it happened on.
    """

    def __init__(self, status: Status, message: str, trace: str) -> None:
        super().__init__(message)
        self.status: Status = status
        self.trace = trace


def classify(error: BaseException) -> Status:
    """What a `FamilyResult` calls an error."""
    if isinstance(error, DeadlinePassed):
        return "timeout"
    if isinstance(error, torch.OutOfMemoryError):
        return "oom"
    return "unavailable" if isinstance(error, (FileNotFoundError, ConnectionError, NoSandbox)) else "error"


class Ranks:
    """This process among those that evaluate together.

    lm-eval sees one process: every rank builds the same requests, and the work on them is split here.

    Args:
        device: Where the ranks' flags and sums live.
        lockstep: Whether ranks must call the model equally often, because its weights are sharded.
        group: The ranks that split the work, where not all do: with tensor parallelism one of each tensor group, whose
            ranks do the same. Errors and deadlines are agreed on by all ranks in any case.
        deadline: `time.monotonic()` at which to stop; None never does.
        interrupted: Whether somebody asked to stop sooner.
    """

    def __init__(self, device: torch.device, lockstep: bool = False, group: dist.ProcessGroup | None = None,
                 deadline: float | None = None, interrupted: Callable[[], bool] = lambda: False) -> None:
        several = dist.is_available() and dist.is_initialized()
        self.device, self.group, self.deadline, self.interrupted = device, group, deadline, interrupted
        self.rank = dist.get_rank(group) if several else 0
        self.size = dist.get_world_size(group) if several else 1
        self.place, self.all = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        self.lockstep = lockstep and self.all > 1

    def late(self) -> bool:
        """Whether the time is over here."""
        return self.interrupted() or (self.deadline is not None and time.monotonic() > self.deadline)

    def said_late(self) -> str:
        """Why there is no time left."""
        if self.interrupted():
            return "the evaluation was interrupted"
        return "the evaluation's time is over; give it more, a smaller limit, or fewer families"

    def check_alone(self) -> None:
        """Raise past the deadline; for work that no other rank waits for."""
        if self.late():
            raise DeadlinePassed(self.said_late())

    def anyone(self, busy: bool) -> bool:
        """Whether there is work left: here, or in lock-step on any rank.

        Raises:
            DeadlinePassed: It has, here, or in lock-step on any rank: then on all of them.
        """
        if not self.lockstep:
            self.check_alone()
            return busy
        flags = torch.tensor([float(busy), float(self.late())], device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        somebody, late = flags.tolist()
        if late:
            raise DeadlinePassed(self.said_late())
        return bool(somebody)

    def agree(self, error: BaseException | None) -> None:
        """Fail together: raises on every rank if any rank brings an error.

        Raises:
            RankFailed: With the status, message and traceback of the first rank that failed.
        """
        mine = None
        if isinstance(error, RankFailed):  # agreed on before
            mine = (error.status, str(error), error.trace)
        elif error is not None:
            where = f"rank {self.place}: " if self.all > 1 else ""
            trace = "".join(traceback.format_exception(error))[-4000:]
            mine = (classify(error), f"{where}{type(error).__name__}: {error}", trace)
        everybody: list[Any] = [mine] * self.all
        if self.all > 1:
            dist.all_gather_object(everybody, mine)
        for theirs in everybody:
            if theirs is not None:
                raise RankFailed(*theirs)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Work of this rank, after which the ranks exchange results: if it fails on one, it fails on all."""
        problem = None
        try:
            yield
        except Exception as error:
            problem = error
        self.agree(problem)

    def gather(self, mine: Any) -> list[Any]:
        """What each rank brings, by rank."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self.group)
        return found

    def merge(self, mine: dict[Any, Any]) -> dict[Any, Any]:
        """All ranks' entries; later ranks win where two have the same key."""
        return {key: value for part in self.gather(mine) for key, value in part.items()}

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values
