"""Matrix products in 8 bits, by torchao: of the linear layers in a model's blocks, over the same fp32 weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

CAPABILITY = (8, 9)  # of CUDA, the least that multiplies in 8 bits: Ada; Hopper has 9.0
MULTIPLE = 16  # what torch's product in 8 bits asks of both sizes of a weight
INSTEAD = "or train with compute_dtype bfloat16."


def import_float8() -> ModuleType:
    """``torchao.float8``.

    Raises:
        ValueError: torchao is not installed, or does not go with this torch.
    """
    try:
        from torchao import float8
    except ImportError as error:
        raise ValueError(f"compute_dtype='float8' needs torchao 0.17 or newer, one that goes with torch "
                         f'{torch.__version__} ({error}): pip install "lit-cpt[fp8]", {INSTEAD}') from None
    found: ModuleType = float8
    return found


def multiply_in_float8(model: Any, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Have the linear layers of ``blocks`` multiply in 8 bits, in place: names, shapes and dtypes stay.

    Inputs and weights are rounded to e4m3, gradients to e5m2, each tensor scaled by its own largest value
    (torchao's default). A layer with a size that is no multiple of 16 is left as it is. A CPU rounds so too, and
    multiplies in fp32.

    Args:
        model: A model of transformers, on the meta device or not.
        blocks: Its blocks, not yet sharded.
        device: That it will train on.

    Raises:
        ValueError: A GPU that cannot, a mixture of experts, or a model without any such layer.
    """
    check_device(device)
    kind = type(model).__name__
    if any(name.endswith("experts") for block in blocks for name, _ in block.named_modules()):
        raise ValueError(f"compute_dtype='float8': {kind} is a mixture of experts, whose experts and routers it does "
                         "not serve. Train it with compute_dtype bfloat16.")
    fitting = [module for block in blocks for module in block.modules() if fits(module)]
    if not fitting:
        raise ValueError(f"compute_dtype='float8': no block of {kind} has an nn.Linear whose sizes are multiples of "
                         f"{MULTIPLE}. Train it with compute_dtype bfloat16.")
    float8, emulate = import_float8(), device.type == "cpu"
    config = float8.Float8LinearConfig(pad_inner_dim=True, emulate=emulate)  # the tokens of a batch may be any number
    for block in blocks:
        float8.convert_to_float8_training(block, module_filter_fn=lambda module, _: fits(module), config=config)
    log.info("%d linear layers multiply in float8%s", len(fitting), ", which this CPU emulates" if emulate else "")


def check_device(device: torch.device) -> None:
    """Refuse a GPU that does not multiply in 8 bits.

    Raises:
        ValueError: Its capability is below `CAPABILITY`.
    """
    if device.type == "cuda" and (has := torch.cuda.get_device_capability(device)) < CAPABILITY:
        raise ValueError("compute_dtype='float8' needs a GPU of capability {}.{} or more (Ada, Hopper, Blackwell), and "
                         "{} has {}.{}. Train on another, {}".format(*CAPABILITY, device, *has, INSTEAD))


def fits(module: nn.Module) -> bool:
    """Whether ``module`` is a linear layer of sizes that can be multiplied in 8 bits."""
    return isinstance(module, nn.Linear) and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE)
