"""The size of any causal model of transformers, from its own code on the meta device: no weight is ever made."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from lit_cpt.footprint import ModelSize
from lit_cpt.objectives import is_encoder_decoder
from lit_cpt.parallel import blocks_of
from lit_cpt.routing import is_routed
from lit_cpt.weights import build_model

COUNTED = "lit_cpt_counted"  # the name under which transformers knows our stand-in for attention


class FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps: its input, its output and a number per row; not the matrix between."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """An output of the right shape, (B, T, H, D)."""
        output = query.new_empty((query.shape[0], query.shape[2], query.shape[1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Never asked for: sizes come from the forward pass."""
        raise NotImplementedError


class Count:
    """Counts, in a forward pass, what is kept for the backward pass and the work of attention.

    Args:
        model: On the meta device.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.flops = model, 0.0
        self.kept: dict[int, torch.UntypedStorage] = {}  # by identity: a storage that is held stays one object
        self.weights = {id(storage): storage for storage in (one.untyped_storage() for one in model.parameters())}
        self.by_block: list[int] = []

    @property
    def bytes(self) -> int:
        """Kept so far."""
        return sum(storage.nbytes() for storage in self.kept.values())

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a tensor that autograd saves, unless it is a weight."""
        storage = tensor.untyped_storage()
        if id(storage) not in self.weights:
            self.kept[id(storage)] = storage
        return tensor

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any,
               sliding_window: int | None = None, **_: Any) -> tuple[torch.Tensor, None]:
        """In the place of attention: two products for each of the positions that a token attends to, by half."""
        length = query.shape[2]
        window = min(sliding_window or length, length)
        attended = window * (1 - window / (2 * length))  # of a causal mask, on average
        self.flops += 2 * query.shape[1] * (query.shape[3] + value.shape[3]) * attended
        return FusedAttention.apply(query, key, value), None

    def run(self, length: int) -> None:
        """One sequence of ``length`` tokens."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(COUNTED, self.attend)
        self.model.set_attn_implementation(COUNTED)
        for block in blocks_of(self.model):
            block.register_forward_hook(lambda *_: self.by_block.append(self.bytes))
        tokens = torch.zeros(1, length, dtype=torch.long, device="meta")
        mask = torch.empty(1, 1, 1, 1, device="meta")  # any of four dimensions: transformers then makes none
        with saved_tensors_hooks(self.keep, lambda tensor: tensor):
            self.model.get_decoder()(input_ids=tokens, attention_mask=mask, use_cache=False)


def model_size(given: str | dict[str, Any], sequence_length: int, dtype: torch.dtype) -> ModelSize:
    """What decides a model's memory and work.

    Args:
        given: Folder, hub name or values of its config.
        sequence_length: Tokens of a sequence, on which attention depends.
        dtype: Of forward and backward.

    Raises:
        ValueError: It cannot be read, has no list of blocks, or is an encoder–decoder.
    """
    with torch.device("meta"):
        model: Any = build_model(None, given, dtype).train()
    if is_encoder_decoder(model):
        raise ValueError(f"{type(model).__name__} is an encoder–decoder model, whose memory is not planned: leave "
                         "--gpu out.")
    counted, scale = Count(model), 1.0 / sequence_length
    if is_routed(model):  # the product of all experts is defined for bfloat16 alone
        counted, scale = Count(model.to(torch.bfloat16)), dtype.itemsize / 2 / sequence_length
    counted.run(sequence_length)
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks_of(model)]
    saved = [after - before for before, after in zip([0, *counted.by_block], counted.by_block, strict=False)]
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = embedding is head
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()), block=max(blocks), blocks=sum(blocks),
        embedding=0 if tied else embedding.numel(), count=len(blocks), width=head.shape[1], vocabulary=head.shape[0],
        matrix_parameters=matrix_parameters(model, tied), attention_flops=counted.flops,
        saved=counted.bytes * scale, saved_block=max(saved) * scale)


def matrix_parameters(model: Any, tied: bool) -> int:
    """Weights that each token meets in a matrix product."""
    config, lookup = model.config, {id(module.weight) for module in model.modules()
                                    if isinstance(module, torch.nn.Embedding)}
    experts = next((getattr(config, name) for name in ("num_local_experts", "num_experts", "n_routed_experts")
                    if getattr(config, name, None)), 1)
    active = getattr(config, "num_experts_per_tok", None) or experts
    total = sum(parameter.numel() * (active / experts if ".experts." in name else 1)
                for name, parameter in model.named_parameters() if parameter.ndim > 1 and id(parameter) not in lookup)
    return round(total) + (model.get_output_embeddings().weight.numel() if tied else 0)
