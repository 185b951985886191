"""What changed between two evaluations, document by document: for the log, TensorBoard and the terminal. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tabulate import tabulate

from lit_cpt.evaluations import Evaluation, FamilyScore
from lit_cpt.intervals import Interval, average_difference, average_interval, cluster_interval, paired_difference
from lit_cpt.units import format_count, format_seconds

GROUPS = ("mmlu_stem", "mmlu_humanities", "mmlu_social_sciences", "mmlu_other")
MANY_TASKS = 12  # beyond them a family's tasks get no tags of their own


@dataclass(frozen=True)
class Shared:
    """What two scores of a family have in common.

    Args:
        first: Hits of the first, one for each shared document.
        second: Hits of the second.
        clusters: What these documents stand or fall together with.
        bits: Bits per byte of the right answer, second minus first, where both have them.
        bit_clusters: Of these documents.
    """

    first: tuple[float, ...]
    second: tuple[float, ...]
    clusters: tuple[str, ...]
    bits: tuple[float, ...] = ()
    bit_clusters: tuple[str, ...] = ()

    @property
    def difference(self) -> Interval:
        """Second minus first, with its 95 % interval, paired by document."""
        return paired_difference(self.second, self.first, self.clusters)

    @property
    def bits_difference(self) -> Interval | None:
        """Bits per byte, second minus first, with its 95 % interval; None where nobody knows them."""
        return cluster_interval(self.bits, self.bit_clusters) if self.bits else None


@dataclass(frozen=True)
class Change:
    """One row of a comparison.

    Args:
        family: The family, or ``average``.
        documents: How many both were asked.
        first: The first's score over them.
        second: The second's.
        difference: Second minus first, paired by document.
        bits_per_byte: Of both, over all that each was asked.
        bits_difference: Second minus first in bits per byte, paired by document: less is better.
    """

    family: str
    documents: int
    first: Interval
    second: Interval
    difference: Interval
    bits_per_byte: tuple[float | None, float | None] = (None, None)
    bits_difference: Interval | None = None


@dataclass(frozen=True)
class Comparison:
    """Two evaluations side by side.

    Args:
        rows: Families that both have, the average over them last.
        notes: What keeps them from being compared, or makes it doubtful, each in a sentence.
    """

    rows: tuple[Change, ...]
    notes: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        rows = [{"family": row.family, "documents": row.documents, "bits_per_byte": list(row.bits_per_byte),
                 **{name: vars(value) if (value := getattr(row, name)) else None
                    for name in ("first", "second", "difference", "bits_difference")}} for row in self.rows]
        return {"rows": rows, "notes": list(self.notes)}


def shared(first: FamilyScore, second: FamilyScore) -> Shared | None:
    """What both were asked; None if nothing, or if the same names are not the same documents."""
    if any(second.data.get(name, value) != value for name, value in first.data.items()):
        return None
    known = dict(zip(first.documents, zip_longest(first.hits, first.bits), strict=False))
    both = [(*known[name], hit, bits, cluster) for name, hit, bits, cluster
            in zip_longest(second.documents, second.hits, second.bits, second.clusters) if name in known]
    hits = [(before, after, cluster) for before, _, after, _, cluster in both
            if before is not None and after is not None]
    bits = [(after - before, cluster) for _, before, _, after, cluster in both
            if before is not None and after is not None]
    return Shared(*zip(*hits, strict=True), *(zip(*bits, strict=True) if bits else ())) if hits else None


def change_since(baseline: Evaluation | None, score: FamilyScore) -> float | None:
    """How far a family is above the baseline, over the documents both were asked; None where that is not known."""
    before = baseline.score(score.family) if baseline is not None else None
    both = shared(before, score) if before is not None else None
    return None if both is None else (math.fsum(both.second) - math.fsum(both.first)) / len(both.first)


def summary_line(evaluation: Evaluation, baseline: Evaluation | None) -> str:
    """One line for the log: per cent and the change since the baseline in points.

    It reads ``evaluated step 1,200 (2.46M tokens): mmlu 31.2 (+1.3), hellaswag unavailable; average 42.0; 74s``.
    """
    parts = []
    for score in evaluation.scores:
        change = change_since(baseline, score)
        since = "" if change is None else f" ({100 * change:+.1f})"
        bits = "" if score.bits_per_byte is None else f", {score.bits_per_byte:.3f} bits/byte"
        parts.append(f"{score.family} {100 * score.interval.value:.1f}{since}{bits}")
    parts += [f"{one.family} {one.status}" for one in evaluation.failures]
    tokens = "" if evaluation.tokens_seen is None else f" ({format_count(evaluation.tokens_seen)} tokens)"
    average = "" if evaluation.average is None else f"; average {100 * evaluation.average.value:.1f}"
    return (f"evaluated step {evaluation.step:,}{tokens}: {'; '.join(parts)}{average}; "
            f"{format_seconds(evaluation.seconds)}")


def tags(evaluation: Evaluation, baseline: Evaluation | None) -> dict[str, float]:
    """Scalars for a logger, such as ``eval/mmlu/acc``, ``eval/mmlu/change`` and ``eval/mgsm_es/...``; finite ones only.

    The baseline's own changes are 0. Of a family with very many tasks only its groups are among them.
    """
    found: dict[str, float] = {}
    for score in evaluation.scores:
        few = len(score.metrics) <= MANY_TASKS
        for task, metrics in score.metrics.items():
            if task == score.family or few or task in GROUPS:
                found |= {f"eval/{task}/{name}": value for name, value in metrics.items()
                          if not name.endswith("stderr")}
        if (change := change_since(baseline or evaluation, score)) is not None:
            found[f"eval/{score.family}/change"] = change
        found |= {f"eval/{score.family}/ok": 1.0, f"eval/{score.family}/seconds": score.seconds}
    for one in evaluation.failures:
        found |= {f"eval/{one.family}/ok": 0.0, f"eval/{one.family}/seconds": one.seconds}
    if evaluation.average is not None:
        found["eval/average"] = evaluation.average.value
    return {name: value for name, value in found.items() if math.isfinite(value)}


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """How ``second`` differs from ``first``, over the documents that both were asked."""
    rows, both = [], {}
    for score in second.scores:
        before = first.score(score.family)
        found = shared(before, score) if before is not None else None
        if before is not None and found is not None and before.metric == score.metric:
            both[score.family] = found
            rows.append(Change(score.family, len(found.first), cluster_interval(found.first, found.clusters),
                               cluster_interval(found.second, found.clusters), found.difference,
                               (before.bits_per_byte, score.bits_per_byte), found.bits_difference))
    for name in second.aside:
        both.pop(name, None)
    if len(both) > 1:
        clusters = {name: one.clusters for name, one in both.items()}
        ours, theirs = ({name: getattr(one, side) for name, one in both.items()} for side in ("first", "second"))
        rows.append(Change("average", sum(len(one.first) for one in both.values()), average_interval(ours, clusters),
                           average_interval(theirs, clusters), average_difference(theirs, ours, clusters)))
    return Comparison(tuple(rows), tuple(notes_on(first, second)))


def notes_on(first: Evaluation, second: Evaluation) -> list[str]:
    """What a reader must know before believing a difference."""
    names = dict.fromkeys([*(score.family for side in (first, second) for score in side.scores),
                           *(failure.family for side in (first, second) for failure in side.failures)])
    return [note for name in names for note in notes_on_family(name, first, second)] + [
        f"made with {package} {first.packages.get(package)} and {second.packages.get(package)}"
        for package in dict.fromkeys([*first.packages, *second.packages])
        if first.packages.get(package) != second.packages.get(package)]


def notes_on_family(name: str, first: Evaluation, second: Evaluation) -> list[str]:
    """The same for one family."""
    failed = [f"{name}: {failure.status} in the {place} ({failure.reason})" for place, side in
              (("first", first), ("second", second)) for failure in side.failures if failure.family == name]
    one, other = first.score(name), second.score(name)
    if one is None or other is None:
        return failed or [f"{name}: only in the {'second' if one is None else 'first'}"]
    if one.metric != other.metric:
        return [f"{name}: {one.metric} in the first, {other.metric} in the second"]
    if any(other.data.get(key, value) != value for key, value in one.data.items()):
        return [f"{name}: the data are not the same, so documents cannot be paired"]
    both = set(one.documents) & set(other.documents)
    if not both:
        return [f"{name}: no document was asked in both"]
    found = []
    if len(both) < max(len(one.documents), len(other.documents)):
        found.append(f"{name}: {len(one.documents):,} and {len(other.documents):,} documents, of which both have "
                     f"{len(both):,}")
    for field, what in (("shots", "worked examples"), ("max_new_tokens", "new tokens"), ("versions", "task versions")):
        if getattr(one, field) != getattr(other, field):
            found.append(f"{name}: {what} differ, so prompts or answers are not alike: {told(getattr(one, field))} and "
                         f"{told(getattr(other, field))}")
    return found


def told(value: Any) -> str:
    """A setting in few words: of one for each task, the values that occur."""
    return ", ".join(sorted({str(one) for one in value.values()})) if isinstance(value, dict) else str(value)


def render_comparison(found: Comparison, names: tuple[str, str]) -> str:
    """The comparison as text for a terminal: per cent with 95 % intervals."""
    rows = [[row.family, f"{row.documents:,}", per_cent(row.first), per_cent(row.second), str(row.difference),
             bits_change(row)] for row in found.rows]
    head = ["family", "documents", *names, "difference", "bits/byte"]
    table = tabulate(rows, head, disable_numparse=True, colalign=("left", *["right"] * 5)) if rows else (
        "Nothing can be compared.")
    marked = "\n".join(f"! {note}" for note in found.notes)
    return (f"{table}\n\nIn brackets 95 % intervals over the documents, the difference paired by document."
            + (f"\n{marked}" if marked else ""))


def render_evaluation(found: Evaluation) -> str:
    """An evaluation as text for a terminal."""
    rows = [[one.family, one.metric, f"{len(one.documents):,}", per_cent(one.interval), bits_text(one.bits_per_byte),
             told(one.shots), format_seconds(one.seconds)] for one in found.scores]
    if found.average is not None and len(found.scores) > 1:
        rows.append(["average", "", "", per_cent(found.average), "", "", format_seconds(found.seconds)])
    head = ["family", "metric", "documents", "per cent", "bits/byte", "shots", "took"]
    table = tabulate(rows, head, disable_numparse=True, colalign=("left", "left", *["right"] * 5)) if rows else ""
    failed = "\n".join([*(f"! {one.family}: {one.status}: {one.reason}" for one in found.failures),
                        *(f"! {one.family}: {one.cut:,} prompts were longer than the model's window and lost their "
                          "beginning" for one in found.scores if one.cut),
                        *(f"! {one.family}: {one.shortened:,} answers had less room than {one.max_new_tokens} tokens"
                          for one in found.scores if one.shortened)])
    return "\n\n".join(part for part in (table, failed) if part)


def per_cent(interval: Interval) -> str:
    """A score with its interval, in per cent."""
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def bits_change(row: Change) -> str:
    """How bits per byte changed, with its interval."""
    found = row.bits_difference
    return "-" if found is None else f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def bits_text(value: float | None) -> str:
    """Bits per byte, or a dash."""
    return "-" if value is None else f"{value:.3f}"
