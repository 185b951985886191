"""The routers of a mixture of experts: how evenly they deal tokens out, and the loss that evens it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def is_routed(model: Any) -> bool:
    """Whether a model of transformers has routers whose logits it can return."""
    return hasattr(getattr(model, "config", None), "output_router_logits")


def dealt(logits: torch.Tensor, chosen: int) -> torch.Tensor:
    """Tokens that each expert of a layer gets, shape (E,), fp32; ``logits`` have shape (N, E)."""
    picked = logits.topk(chosen, dim=-1).indices.flatten()
    return torch.zeros_like(logits[0], dtype=torch.float32).index_add_(
        0, picked, torch.ones_like(picked, dtype=torch.float32))


def balance_loss(logits: Sequence[torch.Tensor], chosen: int) -> torch.Tensor:
    """The load-balancing loss of the Switch Transformer (arXiv 2101.03961, equations 4 to 6) over all layers.

    Args:
        logits: Of each layer's router, shape (N, E).
        chosen: Experts that a token goes to.

    Returns:
        Experts times the summed products of each expert's share of tokens and mean probability: ``chosen`` where
        all is even, more where it is not.
    """
    whole = torch.cat(tuple(logits))
    shares = dealt(whole, chosen) / len(whole)
    return whole.shape[-1] * (shares * whole.float().softmax(-1).mean(0)).sum()


class Routing:
    """The routers of a model as the loss sees them.

    Args:
        model: A model with routers (`is_routed`).
        weight: Of the load-balancing loss in the training loss.
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        config: Any = model.config
        self.chosen, self.weight = int(config.num_experts_per_tok), weight
        self.noted: dict[str, torch.Tensor] = {}  # of the last forward: loss, and (layers, experts) tokens

    def loss(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """Note a forward, by the logits of its routers; its part of the training loss."""
        balance = balance_loss(logits, self.chosen)
        with torch.no_grad():
            loads = torch.stack([dealt(layer, self.chosen) for layer in logits])
        self.noted = {"router/loss": balance.detach(), "router/loads": loads}
        return self.weight * balance


def router_metrics(totals: Mapping[str, torch.Tensor], passes: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is logged of routers.

    Args:
        totals: Sums of what `Routing` noted, by the same names; empty without routers.
        passes: Forwards in them.

    Returns:
        ``router/loss`` is the load-balancing loss; ``router/busiest`` and ``router/idlest`` are the loads of the
        expert with the most and the least tokens in any layer, 1 being an even share.
    """
    if "router/loads" not in totals:
        return {}
    even = totals["router/loads"] / totals["router/loads"].mean(-1, keepdim=True)
    return {"router/loss": totals["router/loss"] / passes, "router/busiest": even.max(), "router/idlest": even.min()}
