"""A batch that answers grow in: rows enter and leave while keys and values stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from lit_cpt.harness.network import Network, states_of


@dataclass
class Span:
    """The part of the buffers in use: rows before ``rows``, columns from ``start`` to ``end``, where all rows end."""

    rows: int = 0
    start: int = 0
    end: int = 0


class BufferedLayer(DynamicLayer):
    """Keys and values of one layer in buffers that are written in place; transformers' own grow by copying.

    Args:
        span: What is in use, shared by all layers.
        keys: Buffer of shape (rows, heads, columns, width).
        values: The same for values.
    """

    def __init__(self, span: Span, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.span, self.all_keys, self.all_values = span, keys, values
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
               ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token's keys and values behind each row; returns those of the whole rows."""
        rows, first, last = self.span.rows, self.span.start, self.span.end
        self.all_keys[:rows, :, last] = key_states[:, :, 0]
        self.all_values[:rows, :, last] = value_states[:, :, 0]
        return self.all_keys[:rows, :, first : last + 1], self.all_values[:rows, :, first : last + 1]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.span.end - self.span.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the mask covers, and where they begin."""
        return self.get_seq_length() + query_length, 0


class CachedBatch:
    """Rows that share their forwards, with cached keys and values, aligned on the right.

    Args:
        network: The model.
        rows: Most rows at a time.
        columns: Tokens in the longest row, prompt and answer.
    """

    def __init__(self, network: Network, rows: int, columns: int) -> None:
        self.network, self.most = network, rows
        self.columns = columns + max(64, columns // 4)  # room to move on before rows are shifted back
        self.span = Span()
        self.lengths: list[int] = []
        self.layers: list[BufferedLayer] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def admit(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Add rows; returns the logits of their next tokens, shape (new rows, V).

        No prompt may be longer than those admitted before it: then there is room on the left of the rows.
        """
        longest, before = max(map(len, prompts)), len(self)
        cache = DynamicCache()
        logits = _padded_logits(self.network, prompts, cache)
        if not before:
            self.span.start, self.span.end = 0, longest
        first = self.span.end - longest
        assert first >= 0, "a longer prompt came after shorter ones"
        if not self.layers:
            self.layers = [self._buffers(*states) for states in states_of(cache)]
        new = slice(before, before + len(prompts))
        for mine, (keys, values) in zip(self.layers, states_of(cache), strict=True):
            mine.all_keys[new, :, first : self.span.end] = keys
            mine.all_values[new, :, first : self.span.end] = values
        self.lengths += map(len, prompts)
        self._tighten()
        return logits

    def _buffers(self, keys: torch.Tensor, values: torch.Tensor) -> BufferedLayer:
        """Empty buffers for a layer with such keys and values."""
        made = [one.new_zeros(self.most, one.shape[1], self.columns, one.shape[3]) for one in (keys, values)]
        return BufferedLayer(self.span, made[0], made[1])

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add one token to each row; returns the logits of the next ones, shape (rows, V)."""
        span = self.span
        if span.end + 1 > self.columns:
            self._shift_back()
        lengths = self.network.tensor(self.lengths)[:, None]
        column = torch.arange(span.start, span.end + 1, device=self.network.device)
        mask = (column >= span.end - lengths).long()
        logits = self.network.logits(self.network.tensor(list(tokens))[:, None], cache=Cache(layers=list(self.layers)),
                                     mask=mask, places=lengths)
        span.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        return logits[:, -1]

    def drop(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        last, span = len(self) - 1, self.span
        if row != last:
            for layer in self.layers:
                for states in (layer.all_keys, layer.all_values):
                    states[row, :, span.start : span.end] = states[last, :, span.start : span.end]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self._tighten()

    def _tighten(self) -> None:
        """Forget columns that no row reaches."""
        self.span.rows = len(self)
        self.span.start = self.span.end - max(self.lengths, default=0)

    def _shift_back(self) -> None:
        """Move what is in use to the left end of the buffers."""
        span = self.span
        for layer in self.layers:
            for states in (layer.all_keys, layer.all_values):
                used = states[: span.rows, :, span.start : span.end].clone()
                states[: span.rows, :, : used.shape[2]] = used
        span.start, span.end = 0, span.end - span.start


class PlainBatch:
    """The same for models without a cache of keys and values: every token costs a forward of the whole rows."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.texts: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.texts)

    def admit(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Add rows; returns the logits of their next tokens."""
        self.texts += [list(prompt) for prompt in prompts]
        return _padded_logits(self.network, prompts, None)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add one token to each row; returns the logits of the next ones."""
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        return _padded_logits(self.network, self.texts, None)

    def drop(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        self.texts[row] = self.texts[-1]
        self.texts.pop()


class EncodedBatch(PlainBatch):
    """The same for encoder–decoders: each context is encoded once, every token decodes the whole answers anew."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.states: list[torch.Tensor] = []

    def admit(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Add rows; returns the logits of their first tokens."""
        self.texts += [[] for _ in prompts]
        logits, states = self.network.answered(prompts, [[] for _ in prompts])
        self.states += states
        return logits[:, -1]

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add one token to each row; returns the logits of the next ones."""
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        logits, _ = self.network.answered(self.states, self.texts)
        return logits[range(len(self)), [len(text) for text in self.texts]]

    def drop(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        super().drop(row)
        self.states[row] = self.states[-1]
        self.states.pop()


def _padded_logits(network: Network, prompts: Sequence[Sequence[int]], cache: Cache | None) -> torch.Tensor:
    """Logits behind each prompt, padded on the left; fills ``cache``."""
    longest = max(map(len, prompts))
    if longest == min(map(len, prompts)):
        return network.logits(network.tensor([list(prompt) for prompt in prompts]), cache=cache)[:, -1]
    tokens = network.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = network.tensor([len(prompt) for prompt in prompts])[:, None]
    places = torch.arange(longest, device=network.device) - (longest - lengths)
    return network.logits(tokens, cache=cache, mask=(places >= 0).long(), places=places.clamp(min=0))[:, -1]
