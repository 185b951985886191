"""Which forwards score a set of loglikelihood requests: equal inputs once, shared prefixes once. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lit_cpt.harness.encoder import Pair

KEPT_PER_TOKEN = 4  # tokens of a shared prefix's cache that may be held for each token of the budget
WORTH_SHARING = 1024  # tokens saved, from which on a forward for the prefix alone pays

Work = TypeVar("Work")


@dataclass
class Row:
    """One input of the model and the requests it answers.

    Args:
        tokens: Context and continuation without its last token, cut on the left to the window. Of an encoder–decoder
            the context so cut and the whole continuation.
        answers: (request, continuation): each is scored on the last ``len(continuation)`` positions.
    """

    tokens: tuple[int, ...]
    answers: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    @property
    def scored(self) -> int:
        """How many positions at the end are scored."""
        return max(len(continuation) for _, continuation in self.answers)


@dataclass
class Job:
    """Batches whose rows all begin with ``prefix``, which is computed once."""

    prefix: tuple[int, ...]
    batches: list[list[Row]]

    @property
    def cost(self) -> int:
        """Tokens through the model, padding included."""
        return len(self.prefix) + sum(batch_tokens(batch, len(self.prefix)) for batch in self.batches)


def batch_tokens(batch: Sequence[Row], prefix: int) -> int:
    """Tokens of one forward."""
    return len(batch) * (max(len(row.tokens) for row in batch) - prefix)


def merge_rows(pairs: Sequence[Pair], window: int, apart: bool = False) -> tuple[list[Row], int]:
    """One row for each input that differs, and how many requests were cut to the window.

    The four letters of a multiple-choice question that are one token each make one row, unless the model reads
    contexts ``apart`` from continuations: an encoder–decoder has a window for each.

    Raises:
        ValueError: A request has no continuation, or one longer than the window.
    """
    rows: dict[tuple[tuple[int, ...], int], Row] = {}
    cut = 0
    for index, (context, continuation) in enumerate(pairs):
        if not 0 < len(continuation) <= window:
            raise ValueError(f"request {index} has a continuation of {len(continuation)} tokens; 1 to {window} (the "
                             "model's window) can be scored. Leave the document out, or evaluate a longer window.")
        cut += len(context) > window if apart else len(context) + len(continuation) > window + 1
        tokens = context[-window:] + continuation if apart else (context + continuation)[-(window + 1) : -1]
        rows.setdefault((tokens, apart * len(continuation)), Row(tokens)).answers.append((index, continuation))
    return list(rows.values()), cut


def common_prefix(rows: Sequence[Row]) -> int:
    """Tokens that all rows begin with, short of what is scored."""
    first, last = min(row.tokens for row in rows), max(row.tokens for row in rows)
    length = next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other),
                  min(len(first), len(last)))
    return min(length, min(len(row.tokens) - row.scored for row in rows))


def batched(rows: Sequence[Row], prefix: int, budget: int, most_rows: int) -> list[list[Row]]:
    """Rows in batches of at most ``budget`` tokens (one row may have more), longest first."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (-len(row.tokens), row.tokens)):
        rows_now = len(batches[-1]) + 1 if batches else 1
        longest = len(batches[-1][0].tokens) if batches else 0
        fits = rows_now * (longest - prefix) <= budget and rows_now * longest <= KEPT_PER_TOKEN * budget
        if batches and fits and rows_now <= most_rows:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def plan(rows: Sequence[Row], budget: int, most_rows: int, shortest_prefix: int | None) -> list[Job]:
    """Jobs for all rows; those with the same first ``shortest_prefix`` tokens share what they have in common.

    Args:
        rows: As `merge_rows` gives them.
        budget: Tokens a forward.
        most_rows: Rows a forward.
        shortest_prefix: Shared tokens it takes to look closer; None shares nothing. A prefix is computed apart
            where that saves `WORTH_SHARING` tokens.
    """
    loose: list[Row] = []
    clusters: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        if shortest_prefix is None or len(row.tokens) <= shortest_prefix:
            loose.append(row)
        else:
            clusters.setdefault(row.tokens[:shortest_prefix], []).append(row)
    jobs = []
    for cluster in clusters.values():
        prefix = common_prefix(cluster) if len(cluster) > 1 else 0
        if prefix < (shortest_prefix or 1) or prefix * (len(cluster) - 1) < WORTH_SHARING:
            loose += cluster
        else:
            jobs.append(Job(cluster[0].tokens[:prefix], batched(cluster, prefix, budget, most_rows)))
    return jobs + ([Job((), batched(loose, 0, budget, most_rows))] if loose else [])


def share_jobs(jobs: Sequence[Job], ranks: int) -> list[list[Job]]:
    """Each rank's jobs; a large one is split, and every part computes the prefix again."""
    if ranks == 1:
        return [list(jobs)]
    most = max(1, -(-sum(job.cost for job in jobs) // ranks))
    pieces = []
    for job in jobs:
        share: list[list[Row]] = []
        for batch in job.batches:
            if share and Job(job.prefix, [*share, batch]).cost > most:
                pieces.append(Job(job.prefix, share))
                share = []
            share.append(batch)
        pieces.append(Job(job.prefix, share))
    return share_out([(piece.cost, piece) for piece in pieces], ranks)


def forwards(jobs: Sequence[Job]) -> int:
    """Calls of the model that the jobs take."""
    return sum(bool(job.prefix) + len(job.batches) for job in jobs)


def share_out(work: Sequence[tuple[int, Work]], ranks: int) -> list[list[Work]]:
    """Pieces of work, dearest first, each to the rank that has least; the same on every rank.

    >>> share_out([(5, "a"), (3, "b"), (3, "c"), (1, "d")], 2)
    [['a', 'd'], ['b', 'c']]
    """
    shares: list[list[Work]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for cost, piece in sorted(work, key=lambda one: -one[0]):
        lightest = loads.index(min(loads))
        shares[lightest].append(piece)
        loads[lightest] += cost
    return shares
