"""Next-token cross-entropy straight from hidden states: the logits of all positions never exist at once."""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_cpt.footprint import SMALL, chunk_rows
from lit_cpt.routing import Routing, is_routed

log = logging.getLogger(__name__)

PROBE = 8  # tokens by which a model is asked whether its head is plain
METHOD = "loss_of_blocks"  # the attribute of a sharded model that computes the loss


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                         bias: torch.Tensor | None = None, z_loss: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy (nats) of ``hidden @ weight.T + bias``, in fp32, with at most a chunk of logits in memory.

    In fp32 and without z-loss this is `torch.nn.functional.linear_cross_entropy`, where torch (2.13 and later) has
    it. In bf16 that function returns the loss rounded to bf16, that is to 1/16 at a loss of 9, and so chunks of our
    own are recomputed in the backward pass.

    Args:
        hidden: Shape (N, D).
        weight: Shape (V, D), in the dtype of ``hidden`` or, under autocast, in fp32.
        targets: Shape (N,), each in 0 .. V - 1.
        bias: Shape (V,).
        z_loss: Weight of the mean squared logarithm of the softmax's normaliser, which keeps logits from drifting
            (PaLM, arXiv 2204.02311, section 5: 1e-4); 0 leaves it out.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    options = getattr(nn, "LinearCrossEntropyOptions", None)
    if options is not None and hidden.dtype == torch.float32 and bias is None and not z_loss:
        loss: torch.Tensor = F.linear_cross_entropy(hidden, weight, targets, options=options())
        return loss
    rows = chunk_rows(weight.shape[1])
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        total = total + checkpoint(summed, part, weight, wanted, bias, z_loss, use_reentrant=False)
    return total / len(targets)


def summed(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None,
           z_loss: float) -> torch.Tensor:
    """Summed cross-entropy and z-loss of one chunk."""
    return token_losses(F.linear(hidden, weight, bias), targets, z_loss).sum()


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

    Raises:
        ValueError: ``router_loss`` for a model without routers; at the first call, documents that the model cannot
            keep apart.
    """

    def __init__(self, model: nn.Module, z_loss: float = 0.0, eos: int | None = None,
                 router_loss: float = 0.0) -> None:
        if router_loss and not is_routed(model):
            raise ValueError(f"router_loss={router_loss}, but {type(model).__name__} is no mixture of experts: leave "
                             "it out.")
        self.model, self.z_loss, self.plain = model, z_loss, None if can_split(model) else False
        self.eos, self.apart = eos, eos is None
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
            loss, routers = self.split(inputs, targets, self.z_loss)
        else:
            found = self.model(**inputs)
            logits, routers = found.logits.flatten(0, 1), getattr(found, "router_logits", None)
            loss = token_losses(logits, targets, self.z_loss).mean() if self.z_loss else (
                F.cross_entropy(logits.float(), targets))
        return loss + self.routing.loss(routers) if routed and self.routing and routers else loss

    def inputs(self, tokens: torch.Tensor) -> dict[str, Any]:
        """What the model's forward gets; with a cache, transformers would drop the mask that positions imply."""
        positions = {} if self.eos is None else {"position_ids": document_positions(tokens, self.eos)}
        return {"input_ids": tokens, "use_cache": False, **positions}

    def check_apart(self, tokens: torch.Tensor) -> None:
        """Refuse a model whose attention crosses documents all the same: tried out at the first call.

        Raises:
            ValueError: Another first document changes what the model says of the second.
        """
        if self.apart:
            return
        probes = [torch.tensor([[first, self.eos, 0, 1, 2]], device=tokens.device) for first in (0, 1)]

        def crossing(**positions: torch.Tensor) -> float:
            one, other = (self.evaluated(input_ids=probe, use_cache=False, **positions)[:, 2:] for probe in probes)
            return float((one.float() - other.float()).abs().max())

        try:  # of experts the rounding may differ with the tokens beside, but by far less than the tokens' effect
            self.apart = crossing(position_ids=self.inputs(probes[0])["position_ids"]) <= crossing() / 10
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
        return torch.equal(hidden, given) and torch.equal(found, logits)


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


def split_loss(model: Any, inputs: dict[str, Any], targets: torch.Tensor, z_loss: float) -> tuple[torch.Tensor, Any]:
    """The loss through decoder and `linear_cross_entropy`, and the routers' logits where they were asked for.

    A function of the model, so that FSDP2 can wrap it.
    """
    found, head = model.get_decoder()(**inputs), model.get_output_embeddings()
    loss = linear_cross_entropy(found.last_hidden_state.flatten(0, 1), head.weight, targets, head.bias, z_loss)
    return loss, getattr(found, "router_logits", None)
