"""One forward of any Hugging Face language model: only the logits that are needed, with or without a cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.utils import resolve_max_length
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput

from lit_cpt.objectives import is_encoder_decoder

CACHED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
CACHE_NAMES = ("cache", "past_key_values")  # what forward calls it: from transformers 5.24 on, and before
USUAL_WINDOW = 2048  # tokens, where neither config nor tokenizer names a window; lm-eval's default


class Network:
    """The model as the evaluation calls it.

    Args:
        model: Model whose forward takes ``input_ids`` and gives ``.logits``. Of a DistributedDataParallel the
            module inside is called, whose forward does not talk to the other ranks; of a compiled one that which was
            compiled, since every length would be compiled anew.
        tokenizer: Asked for the window where the model's config names none.
        window: Longest input in tokens; None takes the model's.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, window: int | None = None) -> None:
        self.model = inner(model)
        self.device = device_of(self.model)
        config = getattr(self.model, "config", None)
        self.window = window or resolve_max_length(config, tokenizer, default=USUAL_WINDOW)
        accepted = accepted_by(type(self.model))
        self.selects, self.places = "logits_to_keep" in accepted, "position_ids" in accepted
        kinds = set(getattr(config, "layer_types", None) or ())
        self.cache_name = next((name for name in CACHE_NAMES if name in accepted), None)
        self.encodes = is_encoder_decoder(self.model)
        self.caches = self.cache_name is not None and kinds <= CACHED_LAYERS and not self.encodes
        self.forwards = 0
        self.tokens = 0

    def tensor(self, values: Any) -> torch.Tensor:
        """Whole numbers on the model's device."""
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def logits(self, tokens: torch.Tensor, keep: Sequence[int] | None = None, cache: Cache | None = None,
               mask: torch.Tensor | None = None, places: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of a causal model, shape (B, K, V).

        Args:
            tokens: Shape (B, T).
            keep: The K positions of T whose logits are wanted; None means the last one.
            cache: Keys and values of earlier tokens; this forward's are added.
            mask: Shape (B, earlier + T), 1 where there is a token; None where all are.
            places: Position of each token in its text, shape (B, T); None counts from 0.
        """
        self.forwards += 1
        self.tokens += tokens.numel()
        settings: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            assert self.cache_name is not None, "a cache for a model that takes none"
            settings[self.cache_name] = cache
        if mask is not None:
            settings["attention_mask"] = mask
        if places is not None and self.places:
            settings["position_ids"] = places
        if self.selects:
            settings["logits_to_keep"] = 1 if keep is None else self.tensor(keep)
        found: torch.Tensor = self.model(input_ids=tokens, **settings).logits
        if self.selects:
            return found
        return found[:, -1:] if keep is None else found[:, self.tensor(keep)]

    def answered(self, contexts: Sequence[Sequence[int]] | Sequence[torch.Tensor],
                 answers: Sequence[Sequence[int]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits of an encoder–decoder.

        Args:
            contexts: What its encoder reads, for each of the B rows; or what it made of that before.
            answers: What its decoder has given so far, K tokens at most.

        Returns:
            Logits behind its start token and each of those, shape (B, K + 1, V); those of a shorter answer are padded
            on the right. And what the encoder made of each context, shape (its tokens, D).
        """
        read = [one if isinstance(one, torch.Tensor) else self.tensor(list(one)) for one in contexts]
        lengths, padded = [len(one) for one in read], pad_sequence(read, batch_first=True)
        mask = (torch.arange(max(lengths), device=self.device) < self.tensor(lengths)[:, None]).long()
        labels = pad_sequence([self.tensor([*answer, 0]) for answer in answers], batch_first=True)
        model: Any = self.model  # which puts its start token before the labels and drops the last
        given = {"input_ids": padded} if padded.ndim == 2 else {"encoder_outputs": BaseModelOutput(padded)}
        found = model(attention_mask=mask, decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
                      use_cache=False, **given)
        self.forwards += 1
        self.tokens += labels.numel() + (padded.numel() if padded.ndim == 2 else 0)
        states = found.encoder_last_hidden_state
        return found.logits, [row[:length] for row, length in zip(states, lengths, strict=True)]

    def idle(self) -> None:
        """A forward of one token: what a rank without work does while the others gather weights."""
        if self.encodes:
            self.answered([[0]], [[]])
        else:
            self.logits(torch.zeros(1, 1, dtype=torch.long, device=self.device))

    def prefill(self, tokens: torch.Tensor) -> Cache:
        """Keys and values of ``tokens``, shape (1, T); full ones, whatever windows the layers have."""
        cache = DynamicCache()
        self.logits(tokens, cache=cache)
        return cache


def inner(model: nn.Module) -> nn.Module:
    """The model inside of DistributedDataParallel and `torch.compile`."""
    held = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
    return inner(held) if isinstance(held, nn.Module) else model


def repeated(cache: Cache, rows: int) -> Cache:
    """A cache of one row as ``rows`` equal ones; the original can be used again."""
    copy = DynamicCache()
    for index, (keys, values) in enumerate(states_of(cache)):
        copy.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
    return copy


def states_of(cache: Cache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, shape (rows, heads, tokens, width)."""
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]


def accepted_by(kind: type) -> set[str]:
    """Names that a model's forward takes: its own, and those of the classes it hands ``**settings`` on to."""
    names: set[str] = set()
    for one in kind.__mro__:
        forward = vars(one).get("forward")
        if forward is not None:
            taken = inspect.signature(forward).parameters
            names |= set(taken)
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
                break
    return names


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes; sharded weights may lie elsewhere."""
    weight = next(model.parameters())
    return torch.device(weight.device_mesh.device_type) if isinstance(weight, DTensor) else weight.device
