"""One forward of any Hugging Face causal model: only the logits that are needed, with or without a cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.utils import resolve_max_length
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import DynamicCache
from transformers.cache_utils import Cache

CACHED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
CACHE_NAMES = ("cache", "past_key_values")  # what forward calls it: from transformers 5.24 on, and before
USUAL_WINDOW = 2048  # tokens, where neither config nor tokenizer names a window; lm-eval's default


class Network:
    """The model as the evaluation calls it.

    Args:
        model: Causal model whose forward takes ``input_ids`` and gives ``.logits``. Of a DistributedDataParallel the
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
        self.caches = self.cache_name is not None and kinds <= CACHED_LAYERS
        self.forwards = 0
        self.tokens = 0

    def tensor(self, values: Any) -> torch.Tensor:
        """Whole numbers on the model's device."""
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def logits(self, tokens: torch.Tensor, keep: Sequence[int] | None = None, cache: Cache | None = None,
               mask: torch.Tensor | None = None, places: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of shape (B, K, V).

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

    def idle(self) -> None:
        """A forward of one token: what a rank without work does while the others gather weights."""
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
