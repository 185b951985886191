"""Tensor parallelism by the plan that transformers ships with a model: each rank of a group computes its heads."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

HEADS = 2  # the dimension of (B, T, heads, width of a head) that is split
STYLES: dict[str, ParallelStyle] = {
    "colwise": ColwiseParallel(),
    "rowwise": RowwiseParallel(),
    "colwise_gather_output": ColwiseParallel(output_layouts=Replicate()),
    "rowwise_split_input": RowwiseParallel(input_layouts=Replicate()),
    "replicated_with_grad_allreduce": SequenceParallel(sequence_dim=HEADS, use_local_output=True),  # norms of heads
}


def split_over(model: Any, mesh: DeviceMesh) -> None:
    """Split a causal model's linear layers over ``mesh``, in place; all other parameters are held by each rank.

    Every parameter becomes a DTensor of ``mesh``, so that `fully_shard` puts all of them on one mesh: gradient
    clipping and fused AdamW take no others together.

    Args:
        model: A model of transformers, on the meta device or not.
        mesh: The ranks of one tensor group, one dimension.

    Raises:
        ValueError: The model has no plan, or one that cannot be followed on so many ranks.
    """
    styles = tensor_plan(model, mesh.size())
    parallelize_module(model, mesh, styles)
    for name, module in model.named_modules():
        if name not in styles and owned(module):
            distribute_module(module, mesh, None, replicated, local_output)  # type: ignore[arg-type]  # as documented
    model.tie_weights()


def tensor_plan(model: Any, ranks: int) -> dict[str, ParallelStyle]:
    """How each linear layer, by name, is split over ``ranks``.

    Raises:
        ValueError: The model has no plan, one with a style that is not in `STYLES`, or one that leaves out a
            parameter beside those that it splits; or ``ranks`` does not divide heads or a layer's width.
    """
    decoder = model.get_decoder()
    prefix = next(f"{name}." for name, module in model.named_modules() if module is decoder)
    plan, kind = getattr(decoder.config, "base_model_tp_plan", None), type(model).__name__
    if not plan:
        raise ValueError(f"tensor_parallel={ranks}: transformers ships no tensor parallel plan for {kind}. Leave "
                         "tensor_parallel out; weights are sharded all the same.")
    for name in ("num_attention_heads", "num_key_value_heads"):
        if (count := getattr(decoder.config, name, None) or ranks) % ranks:
            raise ValueError(f"tensor_parallel={ranks} does not divide {name}={count} of {kind}; choose a divisor.")
    found = {}
    for name, module in decoder.named_modules():
        planned = planned_style(name, plan) if owned(module) else None
        if planned is not None and planned not in STYLES:
            raise ValueError(f"tensor_parallel={ranks}: the plan of {kind} has the style {planned!r} for {name}, and "
                             f"lit_cpt follows {', '.join(STYLES)}. Leave tensor_parallel out.")
        if planned is not None:
            check_width(name, module, planned, ranks)
            found[prefix + name] = STYLES[planned]
    beside = {name.rpartition(".")[0] for name in found}
    for name, module in model.named_modules():
        if owned(module) and name not in found and {name, name.rpartition(".")[0]} & beside:
            raise ValueError(f"tensor_parallel={ranks}: the plan of {kind} says nothing of {name}, which works on a "
                             "part of the heads. Leave tensor_parallel out.")
    return found


def planned_style(name: str, plan: dict[str, str]) -> str | None:
    """What the plan says of a module of the repeated blocks; embedding and final norm are left whole."""
    pattern = re.sub(r"\.\d+\.", ".*.", name)
    return plan.get(pattern) if pattern != name else None


def check_width(name: str, module: nn.Module, style: str, ranks: int) -> None:
    """Refuse a linear layer that cannot be split evenly.

    Raises:
        ValueError: ``ranks`` does not divide the dimension that is split.
    """
    if isinstance(module, nn.Linear):
        width = module.in_features if style.startswith("rowwise") else module.out_features
        if width % ranks:
            raise ValueError(f"tensor_parallel={ranks} does not divide the width {width} of {name}; choose a divisor.")


def owned(module: nn.Module) -> bool:
    """Whether a module has parameters of its own."""
    return next(module.parameters(recurse=False), None) is not None


def replicated(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    """Inputs that all ranks of the group have alike, for a module whose parameters are DTensors."""
    return tuple(DTensor.from_local(one, mesh, [Replicate()], run_check=False) if isinstance(one, torch.Tensor) else one
                 for one in inputs)


def local_output(module: nn.Module, output: Any, _: DeviceMesh) -> Any:
    """The output as a plain tensor again."""
    found = local(output)  # a view: an operation in place would lose the hooks that FSDP2 hangs on its groups' outputs
    return found.clone() if found.requires_grad and isinstance(module, (nn.Embedding, nn.Linear)) else found


def local(value: Any) -> Any:
    """This rank's part of a DTensor; anything else as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def check_shared(batch: torch.Tensor, mesh: DeviceMesh) -> None:
    """Refuse batches that differ within a tensor group, whose ranks compute one forward pass together.

    Raises:
        ValueError: They differ; raised on every rank of the group.
    """
    places = torch.arange(1, batch.numel() + 1, device=batch.device)
    digest = (batch.flatten() * places).sum()
    extremes = torch.stack([digest, -digest])
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=mesh.get_group())
    if int(extremes.sum()):
        raise ValueError(f"the {mesh.size()} ranks of a tensor group were given different batches. Let the data loader "
                         "deal samples out by trainer.distributed_sampler_kwargs (as BlendDataModule does), not by "
                         "the rank among all ranks.")
