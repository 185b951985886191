"""Next-token cross-entropy straight from hidden states: the logits of all positions never exist at once."""

from __future__ import annotations

import logging
import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional as F

from lit_cpt.footprint import SMALL, chunk_rows
from lit_cpt.routing import Routing, is_routed
from lit_cpt.tensor_parallel import local

log = logging.getLogger(__name__)

PROBE = 8  # tokens by which a model is asked whether its head is plain
METHOD = "loss_of_blocks"  # the attribute of a sharded model that computes the loss


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                         bias: torch.Tensor | None = None, z_loss: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy (nats) of ``hidden @ weight.T + bias``, in fp32, with at most a chunk of logits in memory.

    Args:
        hidden: Shape (N, D).
        weight: Shape (V, D), in the dtype of ``hidden`` or, under autocast, in fp32.
        targets: Shape (N,), each in 0 .. V - 1.
        bias: Shape (V,).
        z_loss: Weight of the mean squared logarithm of the softmax's normaliser, which keeps logits from drifting
            (PaLM, arXiv 2204.02311, section 5: 1e-4); 0 leaves it out.

    Returns:
        The mean, and the loss of each position, shape (N,), which has no gradient.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():
        hidden, weight, bias = hidden.detach(), weight.detach(), bias.detach() if bias is not None else None
    found: tuple[torch.Tensor, torch.Tensor] = ChunkedCrossEntropy.apply(hidden, weight, bias, targets, z_loss)
    return found


class ChunkedCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy`; each chunk of logits is differentiated while it is there, and not computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                targets: torch.Tensor, z_loss: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and losses; what is kept are the slopes of the sum, by hidden states, weight and bias."""
        by_hidden, by_weight, by_bias = (
            torch.zeros_like(one) if wanted and one is not None else None
            for one, wanted in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True))
        losses, rows = [], chunk_rows(weight.shape[1])
        for part, wanted, begin in zip(hidden.split(rows), targets.split(rows), range(0, len(targets), rows),
                                       strict=True):
            found, slopes = losses_and_slopes(F.linear(part, weight, bias).float(), wanted, z_loss)
            losses.append(found)
            if by_bias is not None:
                by_bias += slopes.sum(0)
            slopes = slopes.to(part.dtype)
            if by_hidden is not None:
                by_hidden[begin : begin + rows] = slopes @ weight
            if by_weight is not None:
                by_weight.addmm_(slopes.T, part)
        ctx.save_for_backward(by_hidden, by_weight, by_bias)
        each = torch.cat(losses)
        ctx.mark_non_differentiable(each)
        ctx.count = len(each)
        return each.mean(), each

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The kept slopes, as the mean's."""
        scale = slopes[0] / ctx.count
        return *(None if one is None else one * scale for one in ctx.saved_tensors), None, None


def losses_and_slopes(logits: torch.Tensor, targets: torch.Tensor,
                      z_loss: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each position, shape (N,), and its slopes by ``logits``, shape (N, V), which take their memory."""
    places = targets[:, None]
    norm = logits.logsumexp(-1, keepdim=True)
    losses = norm - logits.gather(1, places) + z_loss * norm.square()
    slopes = logits.sub_(norm).exp_()
    if z_loss:
        slopes.mul_(1 + 2 * z_loss * norm)
    return losses.squeeze(1), slopes.scatter_add_(1, places, -torch.ones_like(norm))


def token_losses(logits: torch.Tensor, targets: torch.Tensor, z_loss: float = 0.0) -> torch.Tensor:
    """Cross-entropy of each position, shape (N,), in fp32, with z-loss where asked; ``logits`` have shape (N, V)."""
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return losses + z_loss * logits.float().logsumexp(-1).square() if z_loss else losses


class NextTokenLoss:
    """The loss of a Hugging Face causal model on blocks of tokens.

    Models differ in what they do between their last hidden state and the logits (scaling, soft caps). Whether the
    head is a plain projection is seen in one forward of a few tokens; where it is not, the model's own logits serve.

    Args:
        model: The model; of a sharded one every rank must call alike.
        z_loss: See `linear_cross_entropy`.
        eos: The token that ends a document: then no token attends to an earlier document, and positions count from
            each document's beginning. None lets attention cross documents, as in the paper.
        router_loss: Weight of the load-balancing loss of a mixture of experts (`routing.balance_loss`), while it
            trains; 0 only watches the routers.
        joined: Whether the model gets a batch as one sequence, in which samples are documents: flash attention keeps
            the documents of a single sequence apart only.

    Raises:
        ValueError: ``router_loss`` for a model without routers; at the first call, documents that the model cannot
            keep apart.
    """

    def __init__(self, model: nn.Module, z_loss: float = 0.0, eos: int | None = None,
                 router_loss: float = 0.0, joined: bool = False) -> None:
        for name, weight in (("z_loss", z_loss), ("router_loss", router_loss)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}={weight} must be a finite weight of at least 0, such as 1e-4.")
        if router_loss and not is_routed(model):
            raise ValueError(f"router_loss={router_loss}, but {type(model).__name__} is no mixture of experts: leave "
                             "it out.")
        self.model, self.z_loss, self.plain = model, z_loss, None if can_split(model) else False
        self.eos, self.apart, self.joined = eos, eos is None, joined
        self.of_samples: torch.Tensor | None = None  # the last call's loss of each sample, without the routers'
        self.routing = Routing(model, router_loss) if is_routed(model) else None
        self.split: Callable[..., Any] = types.MethodType(self.through_head, model)
        if isinstance(model, FSDPModule):
            setattr(model, METHOD, self.split)
            register_fsdp_forward_method(model, METHOD)  # gathers weights as forward does
            self.split = getattr(model, METHOD)

    def __call__(self, blocks: torch.Tensor) -> torch.Tensor:
        """Mean over every position of ``blocks``, shape (B, T + 1): each predicts the next."""
        tokens, targets = blocks[:, :-1], blocks[:, 1:].flatten()
        self.check_apart(tokens)
        vocabulary = getattr(getattr(self.model, "config", None), "vocab_size", 0)
        routed = self.routing is not None and torch.is_grad_enabled()
        inputs = {**self.inputs(tokens), **({"output_router_logits": True} if routed else {})}
        if 4 * targets.numel() * vocabulary > SMALL and self.head_is_plain(tokens):
            loss, each, routers = self.split(inputs, targets, self.z_loss)
        else:
            found = self.model(**inputs)
            each, routers = token_losses(found.logits.flatten(0, 1), targets, self.z_loss), getattr(
                found, "router_logits", None)
            loss = each.mean()
        self.of_samples = each.detach().view(len(blocks), -1).mean(1)
        return loss + self.routing.loss(routers) if routed and self.routing and routers else loss

    def inputs(self, tokens: torch.Tensor) -> dict[str, Any]:
        """What the model's forward gets; with a cache, transformers would drop the mask that positions imply."""
        if self.eos is None:
            return {"input_ids": tokens, "use_cache": False}
        positions = document_positions(tokens, self.eos)
        if self.joined:
            tokens, positions = tokens.reshape(1, -1), positions.reshape(1, -1)
        return {"input_ids": tokens, "use_cache": False, "position_ids": positions}

    def check_apart(self, tokens: torch.Tensor) -> None:
        """Refuse a model whose attention crosses documents all the same: tried out at the first call.

        Raises:
            ValueError: Another first document changes what the model says of the second.
        """
        if self.apart:
            return
        probes = [torch.tensor([[first, self.eos, 0, 1, 2]] * 2, device=tokens.device) for first in (0, 1)]

        def crossing(masked: bool) -> float:
            given = [self.inputs(probe) if masked else {"input_ids": probe, "use_cache": False} for probe in probes]
            one, other = (self.evaluated(**inputs).view(*probes[0].shape, -1)[:, 2:].float() for inputs in given)
            return float((one - other).abs().max())

        try:  # of experts the rounding may differ with the tokens beside, but by far less than the tokens' effect
            self.apart = crossing(masked=True) <= crossing(masked=False) / 10
        except TypeError:  # its forward takes no position_ids
            self.apart = False
        if not self.apart:
            raise ValueError(f"mask_documents=True, but {type(self.model).__name__} cannot keep the documents of a "
                             "sequence apart (attention crosses them whatever its position_ids). Leave mask_documents "
                             "out, or use a model that can, such as Llama, Qwen or Nemotron.")

    @staticmethod
    def through_head(model: Any, inputs: dict[str, Any], targets: torch.Tensor, z_loss: float) -> Any:
        """`split_loss`; a subclass may have its own."""
        return split_loss(model, inputs, targets, z_loss)

    @torch.no_grad()
    def evaluated(self, **inputs: Any) -> torch.Tensor:
        """Logits without dropout."""
        training = self.model.training
        self.model.eval()
        try:
            logits: torch.Tensor = self.model(**inputs).logits
            return logits
        finally:
            self.model.train(training)

    def head_is_plain(self, tokens: torch.Tensor) -> bool:
        """Whether logits are the head's projection of the last hidden states: tried out at the first call."""
        if self.plain is None:
            self.plain = self.tried(tokens[:1, :PROBE])
            if not self.plain:
                log.info("%s does more to its logits than a projection: the loss needs them all at once",
                         type(self.model).__name__)
        return self.plain

    def tried(self, tokens: torch.Tensor) -> bool:
        """Whether the decoder's output goes into the head, and the head's becomes the logits, to the bit."""
        model: Any = self.model
        passed: dict[str, Any] = {}

        def note(name: str, outputs: bool) -> Callable[..., None]:
            return lambda module, given, found: passed.update({name: found if outputs else (given[0], found)})

        hooks = [model.get_decoder().register_forward_hook(note("decoder", True)),
                 model.get_output_embeddings().register_forward_hook(note("head", False))]
        try:
            logits = self.evaluated(**self.inputs(tokens))
        finally:
            for hook in hooks:
                hook.remove()
        if passed.keys() != {"decoder", "head"}:
            return False
        hidden, (given, found) = passed["decoder"].last_hidden_state, passed["head"]
        return torch.equal(hidden, local(given)) and torch.equal(found, logits)


def can_split(model: Any) -> bool:
    """Whether a model has a decoder and a linear head, to be called one after the other."""
    parts = (getattr(model, name, None) for name in ("get_decoder", "get_output_embeddings"))
    decoder, head = (part() if callable(part) else None for part in parts)
    return decoder is not None and decoder is not model and isinstance(head, nn.Linear)


def document_positions(tokens: torch.Tensor, eos: int) -> torch.Tensor:
    """Position of each token in its document, shape (B, T); a document begins at 0 and after each ``eos``.

    transformers reads off such positions which tokens may attend to each other (its packed sequences).
    """
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins = torch.zeros_like(tokens, dtype=torch.bool)
    begins[:, 1:] = tokens[:, :-1] == eos
    return places - places.where(begins, 0).cummax(1).values


def split_loss(model: Any, inputs: dict[str, Any], targets: torch.Tensor,
               z_loss: float) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """The loss and its parts, through decoder and `linear_cross_entropy`, and the routers' logits if asked for.

    A function of the model, so that FSDP2 can wrap it.
    """
    found, head = model.get_decoder()(**inputs), model.get_output_embeddings()
    loss_of = grouped_cross_entropy if isinstance(head.weight, DTensor) else linear_cross_entropy
    loss, each = loss_of(found.last_hidden_state.flatten(0, 1), head.weight, targets, head.bias, z_loss)
    return loss, each, getattr(found, "router_logits", None)


def grouped_cross_entropy(hidden: torch.Tensor, weight: DTensor, targets: torch.Tensor, bias: DTensor | None,
                          z_loss: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`linear_cross_entropy` where all ranks of a tensor group have all of it: each does some of the positions."""
    mesh, partial = weight.device_mesh, [Partial()]

    def mine(value: torch.Tensor) -> torch.Tensor:
        whole = DTensor.from_local(value, mesh, [Replicate()], run_check=False)
        return whole.redistribute(placements=[Shard(0)]).to_local()

    wanted = mine(targets)
    mean, each = linear_cross_entropy(mine(hidden), weight.to_local(grad_placements=partial), wanted,
                                      bias if bias is None else bias.to_local(grad_placements=partial), z_loss)
    total = DTensor.from_local(mean * len(wanted), mesh, partial, run_check=False).full_tensor()
    losses = DTensor.from_local(each, mesh, [Shard(0)], run_check=False, shape=targets.shape, stride=(1,))
    return total / len(targets), losses.full_tensor()
