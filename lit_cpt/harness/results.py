"""What an evaluation found: plain values that print, compare and turn into JSON. No torch, no lm-eval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["ok", "nonfinite", "timeout", "unavailable", "oom", "error"]


@dataclass(frozen=True)
class Score:
    """One metric over the documents it was taken on.

    Args:
        value: Its value; None where no document had a finite answer.
        stderr: Standard error of ``value``; None where there is no formula for it.
        documents: How many documents ``value`` is taken over.
    """

    value: float | None
    stderr: float | None
    documents: int


def mean_score(values: Sequence[float]) -> Score:
    """Mean and its standard error (sample standard deviation over the root of the count).

    >>> mean_score([0.0, 1.0])
    Score(value=0.5, stderr=0.5, documents=2)
    """
    count = len(values)
    if not count:
        return Score(None, None, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Score(mean, None, 1)
    spread = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Score(mean, math.sqrt(spread / count), count)


@dataclass
class FamilyResult:
    """One family's outcome.

    Args:
        name: The family.
        status: ``ok``; ``nonfinite`` (some answers were NaN or infinite and are left out of every score);
            ``timeout``; ``unavailable`` (data or sandbox missing); ``oom``; ``error``.
        scores: By ``task/metric``, such as ``mmlu/acc``, ``mmlu_stem/acc``, ``mgsm_es/exact_match_strict_match``,
            ``humaneval/pass_at_1``, ``mmlu/bits_per_byte``.
        documents: Per task and metric, one value a document, beside ``doc_id``: what paired comparisons need.
            A document without a finite answer is not in the lists.
        clusters: Per task and document of ``documents``, what it stands or falls together with: documents of one
            name are resampled together.
        metric: The one that stands for the family; empty where nothing was scored.
        counts: ``documents``, ``requests``, ``nonfinite`` (documents), ``truncated`` (requests longer than the
            model's window, cut on the left), ``shortened`` (answers that had less room than max_gen_toks),
            ``forwards``, ``tokens`` (through the model, on this rank).
        seconds: Of wall clock: ``prepare``, ``run``, ``score`` and ``total``.
        shots: Per task.
        max_gen_toks: Per task that generates.
        versions: Per task and group, as its definition says.
        data: Hash of each dataset the tasks read.
        error: What went wrong, on which rank.
        traceback: Of the rank that failed.
    """

    name: str
    status: Status = "ok"
    scores: dict[str, Score] = field(default_factory=dict)
    documents: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    clusters: dict[str, list[str]] = field(default_factory=dict)
    metric: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    shots: dict[str, int] = field(default_factory=dict)
    max_gen_toks: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None

    def value(self, name: str) -> float | None:
        """The value of score ``name``, such as ``mmlu/acc``.

        Raises:
            KeyError: There is no such score; the message has those there are.
        """
        if name not in self.scores:
            raise KeyError(f"{self.name} ({self.status}) has no score {name!r}; it has "
                           f"{', '.join(sorted(self.scores)) or 'none'}.")
        return self.scores[name].value


@dataclass
class Results:
    """All families of one evaluation, in the order they were asked for.

    Args:
        families: By name.
        settings: limit, seed, token budget, window, world size, tokenizer, versions of packages.
    """

    families: dict[str, FamilyResult] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> FamilyResult:
        return self.families[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.families)

    @property
    def ok(self) -> bool:
        """Whether every family was scored in full."""
        return all(one.status == "ok" for one in self.families.values())

    def to_dict(self) -> dict[str, Any]:
        """The same as lists, dicts and numbers, ready for strict JSON: None where a number is NaN or infinite."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def _finite(value: Any) -> Any:
    """``value`` with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
