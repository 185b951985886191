"""Runs as tidy pandas frames, one row one observation: for plots and tables of one's own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_cpt.report.comparison import AVERAGE
from lit_cpt.report.runs import Run

if TYPE_CHECKING:
    import pandas as pd

LOSS = re.compile(r"(train|val)/(.+)/loss")

Rows = Iterable[tuple[Any, ...]]


class Frames:
    """Frames of one run or of several, which the first column, ``run``, tells apart.

    Everywhere ``step`` is the number of optimizer steps made, and ``tokens`` the tokens that the run had seen by then
    (not a number where the folder does not tell how many a step has). What a run did not write gives an empty frame
    with the same columns. pandas is imported with the first frame.

    Args:
        runs: Name to run, as from `load_run`.
    """

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = runs

    @cached_property
    def scalars(self) -> pd.DataFrame:
        """All that was logged: ``run, step, tokens, tag, value``; tags as in TensorBoard, such as ``train/loss``."""
        return self.table(("step", "tokens", "tag", "value"), scalar_rows)

    @cached_property
    def losses(self) -> pd.DataFrame:
        """Losses by source: ``run, step, tokens, split, source, loss``.

        ``split`` is ``train`` or ``val``; ``loss`` is in nats a token. The loss over all sources is the tag
        ``train/loss`` of `scalars`.
        """
        return self.table(("step", "tokens", "split", "source", "loss"), loss_rows)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Evaluations: ``run, step, tokens, family, score, low, high, items``.

        Scores lie in [0, 1], ``low`` and ``high`` are the ends of their 95 % intervals, ``items`` the questions asked.
        The family ``average`` is the mean of those that count in it. What could not be scored has no row.
        """
        return self.table(("step", "tokens", "family", "score", "low", "high", "items"), score_rows)

    @cached_property
    def ledger(self) -> pd.DataFrame:
        """What was trained on: ``run, step, tokens, phase, source, source_tokens, epochs, share``.

        ``source_tokens`` and ``epochs`` (passes over the source) are of the run up to ``step``; ``share``, in [0, 1],
        is of the tokens since the line before; ``phase`` is the one at ``step``.
        """
        return self.table(("step", "tokens", "phase", "source", "source_tokens", "epochs", "share"), ledger_rows)

    @cached_property
    def events(self) -> pd.DataFrame:
        """The diary: ``run, time, step, tokens, kind, details``; ``time`` in UTC, ``details`` a dictionary."""
        frame = self.table(("time", "step", "tokens", "kind", "details"), event_rows)
        import pandas as pd

        return frame.assign(time=pd.to_datetime(frame["time"], unit="s", utc=True).dt.floor("ms"))

    @cached_property
    def plan(self) -> pd.DataFrame:
        """Planned and made: ``run, phase, source, weight, source_tokens, epochs, trained``.

        ``weight`` is the source's share of the phase's blend, ``source_tokens`` and ``epochs`` are what the phase was
        to train of it, and ``trained`` the tokens that it did, by the last line of the ledger.
        """
        return self.table(("phase", "source", "weight", "source_tokens", "epochs", "trained"), plan_rows)

    def table(self, columns: tuple[str, ...], rows: Callable[[Run], Rows]) -> pd.DataFrame:
        """One frame over all runs."""
        import pandas as pd

        return pd.DataFrame.from_records([(name, *row) for name, run in self.runs.items() for row in rows(run)],
                                         columns=["run", *columns])


def tokens_at(run: Run, step: int) -> float:
    """Tokens that ``run`` had seen after ``step`` optimizer steps; NaN where it does not tell."""
    return step * (run.tokens_per_step or math.nan)


def scalar_rows(run: Run) -> Rows:
    """Rows of `Frames.scalars`."""
    for tag, points in run.scalars.items():
        yield from ((step, tokens_at(run, step), tag, value) for step, value in points)


def loss_rows(run: Run) -> Rows:
    """Rows of `Frames.losses`."""
    for tag, points in run.scalars.items():
        if match := LOSS.fullmatch(tag):
            yield from ((step, tokens_at(run, step), match[1], match[2], loss) for step, loss in points)


def score_rows(run: Run) -> Rows:
    """Rows of `Frames.scores`."""
    for each in run.scored:
        step, families = each["step"], {name: one for name, one in each["families"].items() if one["score"] is not None}
        if average := each["average"]:
            counted = [families[name]["items"] for name in each.get("averaged", families)]
            families[AVERAGE] = {**average, "items": sum(counted)}
        yield from ((step, tokens_at(run, step), name, one["score"], one["low"], one["high"], one["items"])
                    for name, one in families.items())


def ledger_rows(run: Run) -> Rows:
    """Rows of `Frames.ledger`."""
    for line in run.ledger:
        step = line["step"]
        yield from ((step, tokens_at(run, step), line["phase"], source, trained,
                     line["epochs"].get(source, math.nan), line["share"].get(source, 0.0))
                    for source, trained in line["tokens"].items())


def event_rows(run: Run) -> Rows:
    """Rows of `Frames.events`."""
    for event in run.events:
        details = {key: value for key, value in event.items() if key not in ("event", "time", "step", "tokens_seen")}
        yield event["time"], event.get("step"), event.get("tokens_seen"), event["event"], details


def plan_rows(run: Run) -> Rows:
    """Rows of `Frames.plan`."""
    trained = run.ledger[-1]["phases"] if run.ledger else {}
    for phase in run.plan.get("phases", []):
        made = trained.get(phase["name"], {})
        yield from ((phase["name"], part["name"], part["weight"], part["tokens"], part["epochs"],
                     made.get(part["name"], 0) if run.ledger else math.nan) for part in phase["sources"])
