"""Greedy answers by continuous batching: finished rows leave, new ones enter, every rank at its own prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from lit_cpt.harness.decoding import CachedBatch, EncodedBatch, PlainBatch
from lit_cpt.harness.network import Network
from lit_cpt.harness.planning import KEPT_PER_TOKEN
from lit_cpt.harness.ranks import Ranks
from lit_cpt.harness.stops import Stops

LONG = 512  # tokens from which on a prompt fills a forward by itself


@dataclass(frozen=True)
class Prompt:
    """What to go on from.

    Args:
        number: Place among the requests.
        tokens: Already cut to leave ``room`` in the model's window.
        room: Most new tokens.
        stops: What ends the answer.
    """

    number: int
    tokens: tuple[int, ...]
    room: int
    stops: Stops


@dataclass(frozen=True)
class Answer:
    """A finished answer: its text, and whether every logit that led to it was finite."""

    text: str
    finite: bool
    tokens: int


@dataclass
class Growing:
    """An answer that is being generated."""

    prompt: Prompt
    tokens: list[int] = field(default_factory=list)
    finite: bool = True

    def finished(self) -> bool:
        """Whether it is over; an answer from broken logits ends at once."""
        return not self.finite or len(self.tokens) >= self.prompt.room or self.prompt.stops.over(self.tokens)

    def answer(self) -> Answer:
        """The finished answer."""
        return Answer(self.prompt.stops.text(self.tokens), self.finite, len(self.tokens))


def fit(tokens: tuple[int, ...], room: int, window: int, apart: bool = False) -> tuple[tuple[int, ...], int]:
    """Prompt and room that fit the window together, or each for itself where they are ``apart``.

    As HFLM: the prompt is cut on the left to leave ``room``. Where ``room`` alone fills the window HFLM stops with
    an assertion; here half of the window is the prompt's at most, and the answer has what is left.

    >>> fit((1, 2, 3, 4), 2, window=5), fit((1, 2, 3, 4), 9, window=5)
    (((2, 3, 4), 2), ((3, 4), 3))
    """
    if apart:
        return tokens[-window:], min(room, window)
    if room < window:
        return tokens[-(window - room):], room
    kept = tokens[-max(1, window // 2):]
    return kept, min(room, window - len(kept))


def generate(network: Network, ranks: Ranks, prompts: Sequence[Prompt], budget: int, most_rows: int,
             done: Callable[[Prompt, Answer], None] = lambda prompt, answer: None,
             tell: Callable[[int, int, str], None] = lambda *_: None) -> dict[int, Answer]:
    """Answers of all prompts, by number, on every rank.

    Args:
        network: The model.
        ranks: Who shares the work.
        prompts: All of them, on every rank the same.
        budget: Tokens a forward, and a quarter of the tokens that the cache holds.
        most_rows: Rows a forward.
        done: Called on the rank that finishes an answer, while others are still being generated.
        tell: Told after each forward how many of how many answers of this rank are finished.
    """
    ordered = sorted(prompts, key=lambda prompt: (-len(prompt.tokens), prompt.number))
    mine = ordered[ranks.rank :: ranks.size]
    longest = max((len(prompt.tokens) + prompt.room for prompt in mine), default=1)
    rows = max(1, min(most_rows, len(mine), KEPT_PER_TOKEN * budget // longest))
    batch: CachedBatch | PlainBatch = EncodedBatch(network) if network.encodes else (
        CachedBatch(network, rows, longest) if network.caches else PlainBatch(network))
    queue, growing, answers = deque(mine), list[Growing](), dict[int, Answer]()
    with ranks.together():
        while ranks.anyone(bool(queue or growing)):
            free = rows - len(growing)
            if queue and (not growing or free >= max(1, min(rows // 8, len(queue)))):
                entering = take(queue, free, budget, alone=not ranks.lockstep)
                growing += entering
                read(entering, batch.admit([one.prompt.tokens for one in entering]))
            elif growing:
                read(growing, batch.step([one.tokens[-1] for one in growing]))
            else:
                network.idle()
            for row in reversed([row for row, one in enumerate(growing) if one.finished()]):
                prompt, answer = growing[row].prompt, growing[row].answer()
                answers[prompt.number] = answer
                done(prompt, answer)
                batch.drop(row)
                growing[row] = growing[-1]
                growing.pop()
            tell(len(answers), len(mine), "answers")
    return ranks.merge(answers)


def take(queue: deque[Prompt], free: int, budget: int, alone: bool) -> list[Growing]:
    """The next prompts, at most ``free`` and of ``budget`` tokens together (but one at least).

    With ``alone`` long ones share a forward with their equals only: without padding there is no mask, and attention
    does half the work. In lock-step a forward gathers all weights, which costs more than padding does.
    """
    longest, entering = len(queue[0].tokens), list[Growing]()
    while queue and len(entering) < free and (not entering or (len(entering) + 1) * longest <= budget):
        if alone and longest >= LONG and len(queue[0].tokens) != longest:
            break
        entering.append(Growing(queue.popleft()))
    return entering


def read(growing: Sequence[Growing], logits: torch.Tensor) -> None:
    """Give each row its likeliest next token; logits of shape (rows, V)."""
    highest, tokens = logits.float().max(-1)
    for one, value, token in zip(growing, torch.isfinite(highest).tolist(), tokens.tolist(), strict=True):
        one.tokens.append(token)
        one.finite = one.finite and value
