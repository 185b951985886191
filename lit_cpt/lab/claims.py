"""Claims that were written down before the runs, and what the arms of grids say of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from tabulate import tabulate

from lit_cpt.intervals import Interval
from lit_cpt.lab.arms_table import AVERAGE, Outcome, between, counted, line_of, probability
from lit_cpt.lab.significance import holm, t_interval, t_probability

START = "start"  # the better arm itself, before its first step
BLOCK = re.compile(r"^```ya?ml\n(.*?)^```", re.S | re.M)
REPRODUCED, CONTRARY, OPEN = "reproduced", "not reproduced", "cannot be told at this scale"

Outcomes = Mapping[str, Mapping[str, Outcome]]  # GRID/ARM to replicate to what came of it


@dataclass(frozen=True)
class Contrast:
    """Two arms of which one is said to be better.

    Args:
        better: GRID/ARM.
        worse: GRID/ARM, or ``start``: the better one before its first step.
    """

    better: str
    worse: str


@dataclass(frozen=True)
class Claim:
    """What is claimed, and by which comparisons it stands or falls.

    Args:
        claim: In a sentence.
        paper: What the claim is taken from.
        comparisons: All of which it needs.
        measure: None for the average of the scores; else sources with weights, whose summed validation losses count,
            and the smaller is the better.
    """

    claim: str
    paper: str
    comparisons: tuple[Contrast, ...]
    measure: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Finding:
    """What the arms say of one comparison; differences are positive where the claim is right.

    Args:
        contrast: Which arms.
        count: Replicates that have both; 0 where the comparison was not made.
        difference: In points of the average, or nats per token; None where it was not made.
        over_items: 95 % interval over questions; None for losses.
        over_replicates: 95 % interval over replicates; None for fewer than two.
        p: Two-sided p-value over replicates.
        p_holm: The same, corrected for the number of all comparisons that were made.
    """

    contrast: Contrast
    count: int = 0
    difference: float | None = None
    over_items: Interval | None = None
    over_replicates: Interval | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """Whether zero lies outside every interval, and on which side; one replicate can tell nothing."""
        if self.over_replicates is None:
            return OPEN
        known = [found for found in (self.over_items, self.over_replicates) if found is not None]
        if all(found.low > 0 for found in known):
            return REPRODUCED
        return CONTRARY if all(found.high < 0 for found in known) else OPEN


@dataclass(frozen=True)
class Judgement:
    """A claim with what was found."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """Reproduced if every comparison is; not, if one is not; else it cannot be told."""
        if not all(found.count for found in self.findings):
            return "not run"
        verdicts = {found.verdict for found in self.findings}
        return CONTRARY if CONTRARY in verdicts else REPRODUCED if verdicts == {REPRODUCED} else OPEN


def read_claims(path: str | Path) -> tuple[Claim, ...]:
    """The claims of a YAML file, or of the YAML block of a Markdown file that has ``claims:``.

    Raises:
        ValueError: It holds none, or one that lacks a part; the message names it.
    """
    text = Path(path).read_text(encoding="utf-8")
    for block in [*BLOCK.findall(text), *[text] * (Path(path).suffix in (".yaml", ".yml"))]:
        try:
            content = yaml.safe_load(block)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if isinstance(content, dict) and content.get("claims"):
            return tuple(claim_of(given, f"{path}: claim {number}")
                         for number, given in enumerate(content["claims"], start=1))
    raise ValueError(f"{path} has no `claims:`; write them in YAML, in a Markdown file in a ```yaml block "
                     "(docs/ablations.md).")


def claim_of(given: Any, where: str) -> Claim:
    """A claim of a file.

    Raises:
        ValueError: A part is lacking or unknown.
    """
    try:
        contrasts = tuple(Contrast(**pair) for pair in given["comparisons"])
        return Claim(**{**given, "comparisons": contrasts})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: {error}; it has claim, paper, comparisons: [{{better: GRID/ARM, worse: GRID/ARM}}] "
                         "and perhaps measure.") from None


def judge(claims: Sequence[Claim], outcomes: Outcomes) -> list[Judgement]:
    """What the outcomes say of each claim; comparisons of arms that are not there were not made."""
    found = [finding(contrast, claim.measure, outcomes) for claim in claims for contrast in claim.comparisons]
    corrected = iter([replace(one, p_holm=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)])
    return [Judgement(claim, tuple(next(corrected) for _ in claim.comparisons)) for claim in claims]


def finding(contrast: Contrast, measure: Mapping[str, float] | None, outcomes: Outcomes) -> Finding:
    """What the outcomes say of one comparison."""
    better = outcomes.get(contrast.better, {})
    if measure is not None:
        worse = better if contrast.worse == START else outcomes.get(contrast.worse, {})
        gaps = [(arm.block, before - after) for pair, arm in better.items() if pair in worse
                if (after := weighted(measure, arm.losses)) is not None
                if (before := weighted(measure, arm.first_losses if contrast.worse == START else worse[pair].losses))
                is not None]
        independent = counted(gaps)
        return Finding(contrast, len(gaps), fmean(gap for _, gap in gaps), None, t_interval(independent),
                       t_probability(independent)) if gaps else Finding(contrast)
    worse = outcomes.get(contrast.worse, {})
    both = [pair for pair, arm in better.items() if pair in worse and arm.evaluation and worse[pair].evaluation]
    if not both:
        return Finding(contrast)
    line = line_of(AVERAGE, contrast.better, {pair: better[pair] for pair in both}, worse)
    return Finding(contrast, len(both), line.difference, line.over_items, line.over_replicates, line.p)


def weighted(weights: Mapping[str, float], losses: Mapping[str, float]) -> float | None:
    """The weighted sum of losses; None if one is lacking."""
    if not weights.keys() <= losses.keys():
        return None
    return sum(weight * losses[source] for source, weight in weights.items())


def digest(path: str | Path) -> str:
    """SHA-256 of a file: of the claims as they were when the arms were judged."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def render_claims(judgements: Sequence[Judgement], path: str | Path) -> str:
    """The claims as a table in Markdown, a row for each comparison."""
    rows = []
    for judged in judgements:
        for place, found in enumerate(judged.findings):
            first = [judged.claim.claim, judged.claim.paper] if place == 0 else ["", ""]
            rows.append([*first, *figures(found, 1 if judged.claim.measure is None else 3),
                         judged.verdict if place == 0 else ""])
    head = ["claim", "paper", "better", "minus", "n", "difference", "over items", "over replicates", "p (Holm)",
            "verdict"]
    table = tabulate([[text.replace("|", "\\|") for text in row] for row in rows], head, tablefmt="pipe",
                     disable_numparse=True)
    return f"{table}\n\nClaims, comparisons and rules: {Path(path).name}, sha256 {digest(path)}."


def figures(found: Finding, digits: int) -> list[str]:
    """Arms, replicates, difference and intervals of a comparison."""
    gap = "-" if found.difference is None else f"{found.difference:+.{digits}f}"
    return [found.contrast.better, found.contrast.worse, str(found.count), gap, between(found.over_items, digits),
            between(found.over_replicates, digits), probability(found.p_holm)]
