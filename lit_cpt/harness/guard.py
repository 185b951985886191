"""Leaving training as it was: flags, random states, compiled graphs, sharded weights."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextlib.contextmanager
def random_states() -> Iterator[None]:
    """Give python's, numpy's and torch's generators their states back afterwards."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def eval_guard(model: nn.Module) -> Iterator[None]:
    """Evaluate inside it: eval mode, no gradients, nothing compiled; afterwards every flag and generator is as before.

    Gradients and the optimizer are not touched.

    Raises:
        RuntimeError: Inside `torch.inference_mode`: a sharded model gathered there cannot be trained afterwards.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("evaluation inside torch.inference_mode would leave sharded weights that training cannot "
                           "update: call it outside of Lightning's validation hooks, or give the Trainer "
                           "inference_mode=False.")
    flags = {module: module.training for module in model.modules()}
    # Where dynamo was never imported nothing is compiled, and importing it takes seconds.
    stance = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    with random_states(), torch.no_grad(), stance:
        try:
            model.eval()
            yield
        finally:
            for module, training in flags.items():
                module.training = training


def is_sharded(model: nn.Module) -> bool:
    """Whether calling ``model`` gathers weights from other ranks (FSDP2)."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


@contextlib.contextmanager
def sharded_again(model: nn.Module, gather: bool) -> Iterator[None]:
    """Leave every FSDP2 module sharded; inside, with ``gather``, keep weights whole once they were gathered.

    FSDP2 leaves the root gathered after a forward. A first training step on weights gathered under ``no_grad``
    has the right loss and gradients, and the step after it wrong ones (torch 2.15), so they are given back.

    Args:
        model: Sharded or not.
        gather: The whole model must fit on each rank; ranks may then call it at their own pace, once they have called
            it a first time together. Afterwards `fully_shard`'s default holds: all but the root are resharded after
            each forward.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        for part in parts if gather else ():
            part.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        for part in parts:
            if gather:
                part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()
