"""The norm of a step's gradient, which judges the step, bounds it and is logged: measured once for all three."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """2-norm of the gradients of ``parameters``, over all shards: a plain number on their device."""
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
