"""Loglikelihoods of continuations: planned forwards, split over the ranks, only the needed logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers.cache_utils import Cache

from lit_cpt.harness.encoder import Pair
from lit_cpt.harness.network import Network, repeated
from lit_cpt.harness.planning import Job, Row, forwards, merge_rows, plan, share_jobs
from lit_cpt.harness.ranks import Ranks

CHUNK = 512  # positions whose logits are held in float32 at once


def loglikelihoods(network: Network, ranks: Ranks, pairs: Sequence[Pair], budget: int, most_rows: int,
                   shortest_prefix: int | None = 64, tell: Callable[[int, int, str], None] = lambda *_: None
                   ) -> tuple[list[tuple[float, bool]], int]:
    """For each pair of context and continuation, its log-probability and whether greedy decoding would give it.

    Args:
        network: The model.
        ranks: Who shares the work; every rank gets all results.
        pairs: Tokens of context and continuation.
        budget: Tokens a forward.
        most_rows: Rows a forward.
        shortest_prefix: Shared prefixes from this length on are computed once; None computes all anew.
        tell: Told after each forward how many of how many are made.

    Returns:
        The results, in nats, and how many requests were cut to the model's window.
    """
    rows, cut = merge_rows(pairs, network.window, network.encodes)
    budget = min(budget, -(-sum(len(row.tokens) for row in rows) // ranks.size))  # a batch for each rank
    shares = share_jobs(plan(rows, budget, most_rows, shortest_prefix if network.caches else None), ranks.size)
    found = torch.zeros(len(pairs), 2, dtype=torch.float64)
    steps = run(network, shares[ranks.rank], found)
    with ranks.together():
        total = max(map(forwards, shares)) if ranks.lockstep else forwards(shares[ranks.rank])
        for made in range(total):
            ranks.anyone(True)
            if next(steps, None) is None:
                network.idle()
            tell(made + 1, total, "forwards")
    found = ranks.sum(found.to(ranks.device)).cpu() if ranks.size > 1 else found
    return [(value, bool(greedy)) for value, greedy in found.tolist()], cut


def run(network: Network, jobs: Sequence[Job], found: torch.Tensor) -> Iterator[bool]:
    """Work through ``jobs``, writing to ``found``; yields after each call of the model."""
    for job in jobs:
        cache = None
        if job.prefix:
            cache = network.prefill(network.tensor([job.prefix]))
            yield True
        for batch in job.batches:
            if network.encodes:
                score_answers(network, batch, found)
            else:
                score_batch(network, batch, len(job.prefix), cache, found)
            yield True


def score_batch(network: Network, batch: Sequence[Row], prefix: int, cache: Cache | None, found: torch.Tensor) -> None:
    """One forward of the rows behind their common prefix; fills the lines of ``found`` that they answer.

    Rows are padded on the right, where a causal model does not look.
    """
    longest = max(len(row.tokens) for row in batch)
    tokens = network.tensor([row.tokens[prefix:] + (0,) * (longest - len(row.tokens)) for row in batch])
    keep = sorted({len(row.tokens) - prefix - 1 - back for row in batch for back in range(row.scored)})
    if cache is None:
        logits = network.logits(tokens, keep)
    else:
        places = torch.arange(prefix, longest, device=network.device).expand(len(batch), -1)
        logits = network.logits(tokens, keep, repeated(cache, len(batch)), places=places)
    column = {place: index for index, place in enumerate(keep)}
    spots: dict[tuple[int, int], int] = {}  # (row, column) whose logits are read, numbered
    asked: list[tuple[int, int, int]] = []  # (request, spot, token)
    for number, row in enumerate(batch):
        for request, continuation in row.answers:
            first = len(row.tokens) - prefix - len(continuation)
            asked += [(request, spots.setdefault((number, column[first + offset]), len(spots)), token)
                      for offset, token in enumerate(continuation)]
    note(network, logits, spots, asked, found)


def score_answers(network: Network, batch: Sequence[Row], found: torch.Tensor) -> None:
    """The same of an encoder–decoder: it reads the contexts, and its answers are the continuations."""
    wanted = [row.answers[0][1] for row in batch]  # the same for all requests of a row
    contexts = [row.tokens[:-len(continuation)] for row, continuation in zip(batch, wanted, strict=True)]
    logits, _ = network.answered(contexts, [continuation[:-1] for continuation in wanted])
    places = ((number, place) for number, continuation in enumerate(wanted) for place in range(len(continuation)))
    spots = {spot: index for index, spot in enumerate(places)}
    asked = [(request, spots[number, place], token) for number, row in enumerate(batch)
             for request, continuation in row.answers for place, token in enumerate(continuation)]
    note(network, logits, spots, asked, found)


def note(network: Network, logits: torch.Tensor, spots: dict[tuple[int, int], int],
         asked: list[tuple[int, int, int]], found: torch.Tensor) -> None:
    """Fill the lines of ``found`` that the tokens ``asked`` at ``spots`` of ``logits`` answer."""
    values, greedy = read_spots(network, logits, list(spots), asked)
    requests = torch.tensor([request for request, _, _ in asked])
    found[:, 1][requests] = 1.0
    found[:, 0].index_add_(0, requests, values)
    found[:, 1][requests[~greedy]] = 0.0


def read_spots(network: Network, logits: torch.Tensor, spots: list[tuple[int, int]],
               asked: list[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each asked token, float64, and whether it is the likeliest; both on the CPU."""
    rows, columns = network.tensor(list(zip(*spots, strict=True)))
    by_spot = sorted(range(len(asked)), key=lambda index: asked[index][1])
    values, likeliest, done = [], [], 0
    for first in range(0, len(spots), CHUNK):
        picked = logits[rows[first : first + CHUNK], columns[first : first + CHUNK]].float()
        end = done
        while end < len(by_spot) and asked[by_spot[end]][1] < first + CHUNK:
            end += 1
        mine = [asked[index] for index in by_spot[done:end]]
        lines, targets = network.tensor([(spot - first, token) for _, spot, token in mine]).T
        values.append(picked[lines, targets] - picked.logsumexp(-1)[lines])
        likeliest.append(picked.argmax(-1)[lines] == targets)
        done = end
    order = torch.tensor(by_spot)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return torch.cat(values).double().cpu()[back], torch.cat(likeliest).cpu()[back]
