"""The result of an evaluation as a file: scores document by document, what failed, and how it was made. Torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_cpt.intervals import Interval, average_interval, cluster_interval
from lit_cpt.publishing import publish_text

SIDES = ("scores", "failures")


@dataclass(frozen=True)
class FamilyScore:
    """One family's score.

    Args:
        family: The family.
        metric: The metric that stands for it, such as ``acc`` or ``exact_match_flexible_extract``.
        documents: What was asked, as ``task/row``.
        clusters: What each document stands or falls together with: itself, or the same problem in other languages.
        hits: The metric of each document, mostly 0 or 1; empty where it is not one number a document.
        bits_per_byte: Bits that the model needs for a byte of the right answer, mean over documents; None where nobody
            knows it.
        bits: The same of each document, None where it has no right answer to score; empty if none has.
        metrics: Of each task and group, every metric and its standard error (``acc``, ``acc_stderr``).
        shots: Worked examples in the prompts, by task.
        limit: Documents taken of each task; None for all.
        seed: Of that draw.
        max_new_tokens: Most new tokens of an answer; None where nothing is generated.
        versions: Of the task definitions.
        data: Hash of each dataset that was read.
        seconds: Of wall clock.
        tokens: Run through the model, on the first rank.
        cut: Prompts that were longer than the model's window and lost their beginning.
        shortened: Answers that had less room than ``max_new_tokens``, for the same reason.
    """

    family: str
    metric: str
    documents: tuple[str, ...]
    clusters: tuple[str, ...]
    hits: tuple[float, ...]
    bits_per_byte: float | None
    bits: tuple[float | None, ...]
    metrics: dict[str, dict[str, float]]
    shots: dict[str, int]
    limit: int | None
    seed: int | None
    max_new_tokens: int | None
    versions: dict[str, str]
    data: dict[str, str]
    seconds: float
    tokens: int = 0
    cut: int = 0
    shortened: int = 0

    @cached_property
    def interval(self) -> Interval:
        """The mean of the hits with its 95 % interval, in [0, 1] for accuracies; without hits the metric alone."""
        if self.hits:
            return cluster_interval(self.hits, self.clusters)
        value = self.metrics.get(self.family, {}).get(self.metric, math.nan)
        error = 1.96 * self.metrics.get(self.family, {}).get(f"{self.metric}_stderr", math.nan)
        return Interval(value, value - error, value + error)

    def describe(self) -> dict[str, Any]:
        """Plain values; whole numbers as such, for there may be 14,042 of them."""
        plain = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "family"}
        ends = {name: finite(value) for name, value in
                (("score", self.interval.value), ("low", self.interval.low), ("high", self.interval.high))}
        bits = [None if value is None else float(f"{value:.6g}") for value in self.bits]
        hits = [int(hit) if float(hit).is_integer() else hit for hit in self.hits]
        metrics = {task: {name: value for name, value in found.items() if math.isfinite(value)}
                   for task, found in self.metrics.items()}
        return {**ends, "items": len(self.documents), **plain, "metrics": metrics, "hits": hits, "bits": bits,
                "documents": list(self.documents), "clusters": list(self.clusters)}


@dataclass(frozen=True)
class Failure:
    """A family that has no score that counts.

    Args:
        family: The family.
        status: ``unavailable`` (data or sandbox missing), ``error``, ``timeout``, ``oom``, ``nonfinite`` (NaN or
            infinite answers), or ``disabled`` (it failed too often).
        reason: In a line.
        traceback: Of the rank it happened on.
        seconds: Until it failed.
    """

    family: str
    status: str
    reason: str
    traceback: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """All that one evaluation found.

    Args:
        step: Optimizer steps made.
        tokens_seen: Tokens trained; None where nobody counts them.
        model: What was evaluated.
        reasons: Why then: ``start``, ``steps``, ``tokens``, ``fraction``, ``phase``, ``end``, ``asked``.
        full: Whether all documents were asked.
        scores: Of the families that could be scored.
        failures: Of those that could not.
        seconds: Of wall clock, all in all.
        packages: Versions of what it was made with.
        time: When, in seconds since 1970.
        aside: Families that do not count in the average.
    """

    step: int
    tokens_seen: int | None
    model: str
    reasons: tuple[str, ...]
    full: bool
    scores: tuple[FamilyScore, ...]
    failures: tuple[Failure, ...]
    seconds: float
    packages: dict[str, str]
    time: float
    aside: tuple[str, ...] = ()

    def score(self, family: str) -> FamilyScore | None:
        """The score of a family; None if it has none."""
        return next((one for one in self.scores if one.family == family), None)

    @property
    def averaged(self) -> list[FamilyScore]:
        """The scores that count in the average."""
        return [one for one in self.scores if one.hits and one.family not in self.aside]

    @cached_property
    def average(self) -> Interval | None:
        """The mean over families with its interval; None if one failed, for a mean of fewer would read as a jump."""
        counted = self.averaged
        if not counted or any(one.family not in self.aside for one in self.failures):
            return None
        return average_interval({one.family: one.hits for one in counted},
                                {one.family: one.clusters for one in counted})

    def describe(self) -> dict[str, Any]:
        """Plain values for strict JSON, as a report reads them."""
        plain = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in SIDES}
        average = self.average
        return {**plain, "reasons": list(self.reasons),
                "families": {one.family: one.describe() for one in self.scores},
                "failures": {one.family: {key: value for key, value in asdict(one).items() if key != "family"}
                             for one in self.failures},
                "averaged": [one.family for one in self.averaged] if average else [],
                "average": {"score": average.value, "low": average.low, "high": average.high} if average else None}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Evaluation:
        """The evaluation that `describe` described.

        Raises:
            ValueError: It lacks a field.
        """
        try:
            scores = tuple(FamilyScore(name, *(as_tuple(one[item.name]) for item in fields(FamilyScore)[1:]))
                           for name, one in plain["families"].items())
            failures = tuple(Failure(name, **one) for name, one in plain["failures"].items())
            rest = {item.name: as_tuple(plain[item.name]) for item in fields(cls)
                    if item.name not in SIDES}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no evaluation: {type(error).__name__} {error}") from None
        return cls(scores=scores, failures=failures, **rest)

    @classmethod
    def read(cls, path: str | Path) -> Evaluation:
        """The evaluation in a file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds no evaluation.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file. Give one that `lit-cpt eval --json FILE` wrote, "
                                    "or RUN/evals/step########.json.")
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} holds no evaluation ({' '.join(str(error).split())}): give a file that "
                             "`lit-cpt eval --json FILE` wrote, or RUN/evals/step########.json.") from None


def as_tuple(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(value) if isinstance(value, list) else value


def finite(value: float) -> float | None:
    """``value`` if JSON has a word for it."""
    return value if math.isfinite(value) else None


def write_evaluation(run_dir: str | Path, evaluation: Evaluation) -> Path:
    """Write ``RUN/evals/step########.json``, whole or not at all.

    Raises:
        OSError: It could not be written; what was there is as it was.
    """
    path = Path(run_dir) / "evals" / f"step{evaluation.step:08d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_text(path, json.dumps(evaluation.describe(), separators=(",", ":"), allow_nan=False))
    return path


def evaluations_in(run_dir: str | Path) -> tuple[list[Evaluation], list[str]]:
    """The evaluations of a run, steps ascending, and what is wrong with files that hold none."""
    found, wrong = [], []
    for path in sorted(Path(run_dir).glob("evals/step*.json")):
        try:
            found.append(Evaluation.read(path))
        except (ValueError, OSError) as error:
            wrong.append(str(error))
    return sorted(found, key=lambda one: one.step), wrong
