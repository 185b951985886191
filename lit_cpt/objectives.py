"""What is asked of an encoder–decoder model: which part of a block its encoder reads, which its decoder predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from lit_cpt.blends import Integers, mixed, shuffled


class Draw(NamedTuple):
    """Where in a run a batch stands: what decides how its blocks are split, on any number of ranks and after a resume.

    Args:
        seed: The data's.
        step: Optimizer steps made before it.
        first: Number of its first block among all that the run trains.
    """

    seed: int
    step: int
    first: int


class Objective(ABC):
    """How a block is split, the same two lengths for each of a batch.

    Subclass it for one of your own, as a frozen dataclass: its text is what a resumed run is compared by.
    """

    @abstractmethod
    def split(self, blocks: torch.Tensor, eos: int, draw: Draw | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What the encoder reads and what the decoder predicts, shapes (B, N) and (B, M).

        Args:
            blocks: Shape (B, L).
            eos: The token that ends a text.
            draw: Decides what is random; None is a validation, where every block is split alike.
        """

    def check(self, blocks: torch.Tensor, vocabulary: int) -> None:  # noqa: B027  # most have nothing to refuse
        """Refuse, before the first step, a model or data that the objective does not suit.

        Args:
            blocks: The first batch, shape (B, L).
            vocabulary: Tokens that the model knows.
        """


@dataclass(frozen=True)
class PrefixLM(Objective):
    """The encoder reads the beginning of a block and the decoder predicts the rest (arXiv 1910.10683, section 3.2.3).

    All blocks of an optimizer step are split at the same place, so that the mean over its micro-batches and ranks is
    the mean over all of its targets; a validation splits in the middle.

    Args:
        least: Share of a block that each side gets at least, 0 to 0.5; the place is drawn evenly from what is left.
            0 is T5's way, where a step may have a single target in each block; 0.5 always splits in the middle.

    Raises:
        ValueError: ``least`` is out of range.
    """

    least: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 0.5:
            raise ValueError(f"PrefixLM least={self.least} must be 0 to 0.5: each side's share of a block.")

    def split(self, blocks: torch.Tensor, eos: int, draw: Draw | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The beginning and an ``eos`` behind it, as T5's tokenizer ends what an encoder reads; the rest."""
        length = blocks.shape[1]
        least = max(1, int(self.least * length))
        place = length // 2 if draw is None else least + mixed(draw.seed, draw.step) % max(1, length - 2 * least)
        return ended(blocks[:, :place], eos), blocks[:, place:]


@dataclass(frozen=True)
class SpanCorruption(Objective):
    """Spans are cut out of what the encoder reads, and the decoder fills the gaps (arXiv 1910.10683, section 3.1.4).

    As T5's ``random_spans_noise_mask``: each block has the same number of spans and of tokens in them, text and
    spans take turns, and their lengths are drawn evenly. The encoder reads a sentinel in the place of each span, the
    decoder predicts each sentinel and its span; an end of text closes both.

    Args:
        first_sentinel: Token of ``<extra_id_0>``; the others count down from it. 32099 in T5's own tokenizer,
            ``tokenizer.convert_tokens_to_ids("<extra_id_0>")`` in any.
        sentinels: How many the tokenizer has.
        density: Share of the tokens that is cut out, above 0 and below 1.
        mean_span: Mean length of a span in tokens, 1 or more.

    Raises:
        ValueError: A setting is out of range.
    """

    first_sentinel: int
    sentinels: int = 100
    density: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.sentinels <= self.first_sentinel + 1:
            raise ValueError(f"SpanCorruption first_sentinel={self.first_sentinel}, sentinels={self.sentinels}: they "
                             "count down from the first one, and none may be below 0.")
        if not (0 < self.density < 1 and self.mean_span >= 1):
            raise ValueError(f"SpanCorruption density={self.density}, mean_span={self.mean_span}: give a share above 0 "
                             "and below 1, and a mean of 1 or more tokens.")

    def split(self, blocks: torch.Tensor, eos: int, draw: Draw | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Text with sentinels for spans, and spans behind their sentinels; each with an ``eos`` behind it."""
        rows, length = blocks.shape
        keys = [(draw.seed, draw.first + row) if draw is not None else () for row in range(rows)]
        cut = np.stack([self.mask(length, *key) for key in keys])
        first = cut & ~np.roll(cut, 1, 1)  # of each span; a block never begins with one
        return (ended(self.marked(blocks, ~cut | first, first), eos),
                ended(self.marked(blocks, cut | np.roll(first, -1, 1), np.roll(first, -1, 1)), eos))

    def counts(self, length: int) -> tuple[int, int]:
        """Tokens that are cut out of ``length``, and spans that they make."""
        tokens = min(max(round(length * self.density), 1), length - 1)
        return tokens, min(max(round(tokens / self.mean_span), 1), length - tokens)

    def mask(self, length: int, *keys: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of ``length`` tokens are cut out; ``keys`` decide."""
        tokens, spans = self.counts(length)
        lengths = np.stack([segments(length - tokens, spans, *keys, 0), segments(tokens, spans, *keys, 1)], 1)
        return np.repeat(np.arange(2 * spans) % 2 == 1, lengths.ravel())

    def marked(self, blocks: torch.Tensor, kept: np.ndarray[Any, Any], marks: np.ndarray[Any, Any]) -> torch.Tensor:
        """The tokens that are ``kept``, sentinels counting down where the ``marks`` are; equally many in each row."""
        sentinels = np.where(marks, self.first_sentinel + 1 - marks.cumsum(1), -1)
        places = np.nonzero(kept)[1].reshape(len(kept), -1)
        found, picked = (torch.from_numpy(one).to(blocks.device) for one in (sentinels, places))
        return torch.where(found < 0, blocks, found).gather(1, picked)

    def check(self, blocks: torch.Tensor, vocabulary: int) -> None:
        """Refuse sentinels that the model does not know or the data holds, and blocks with more spans than sentinels.

        Raises:
            ValueError: One of these.
        """
        if self.first_sentinel >= vocabulary:
            raise ValueError(f"first_sentinel={self.first_sentinel} is beyond the model's vocabulary of {vocabulary}: "
                             "give the token of the tokenizer's <extra_id_0>.")
        _, spans = self.counts(blocks.shape[1])
        if spans > self.sentinels:
            raise ValueError(f"a block of {blocks.shape[1]} tokens has {spans} spans, and there are only "
                             f"{self.sentinels} sentinels: raise mean_span, or prepare shorter sequences.")
        last = self.first_sentinel - spans + 1
        if found := sorted(set(blocks[(blocks >= last) & (blocks <= self.first_sentinel)].tolist())):
            raise ValueError(f"the data holds token {found[0]}, which first_sentinel={self.first_sentinel} makes a "
                             "sentinel: give the token of the tokenizer's <extra_id_0>.")


def ended(tokens: torch.Tensor, eos: int) -> torch.Tensor:
    """``tokens``, shape (B, N), with ``eos`` behind each row."""
    return F.pad(tokens, (0, 1), value=eos)


def segments(count: int, parts: int, *keys: int) -> Integers:
    """Lengths of ``parts`` pieces of ``count``, each 1 or more; ``keys`` draw one of all ways to cut, evenly."""
    cuts = np.sort(shuffled(count - 1, *keys)[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=count)


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model of transformers has an encoder beside its decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
