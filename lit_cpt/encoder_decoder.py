"""The loss of an encoder–decoder model on blocks of tokens, by an objective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lit_cpt.losses import SMALL, NextTokenLoss, linear_cross_entropy, token_losses
from lit_cpt.objectives import Draw, Objective, PrefixLM, is_encoder_decoder


class EncoderDecoderLoss(NextTokenLoss):
    """The mean cross-entropy of what the decoder predicts, from what the encoder reads.

    Unlike `NextTokenLoss` it lets the model do to its hidden states what it likes (T5 scales them): the whole model
    is called with a head that hands them on, and only what comes behind the head is tried out.

    Args:
        model: An encoder–decoder model of transformers; of a sharded one every rank must call alike.
        objective: How a block is split.
        eos: The token that ends a text.
        z_loss: See `losses.linear_cross_entropy`.

    Raises:
        ValueError: The model does not say what its decoder starts with; at the first call, a batch or a vocabulary
            that the objective does not suit.
    """

    def __init__(self, model: Any, objective: Objective, eos: int, z_loss: float = 0.0) -> None:
        super().__init__(model, z_loss)
        self.objective, self.end, self.checked = objective, eos, False
        try:
            self.read_and_predicted(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long))
        except ValueError as error:
            raise ValueError(f"{type(model).__name__} does not say what its decoder starts with: {error} Add "
                             "decoder_start_token_id to its config, for T5 the pad token.") from error

    def __call__(self, blocks: torch.Tensor, draw: Draw | None = None) -> torch.Tensor:
        """Mean over all targets in ``blocks``, shape (B, L); without ``draw`` split as for a validation."""
        vocabulary = int(self.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        if not self.checked:
            self.objective.check(blocks, vocabulary)
            self.checked = True
        read, targets = self.objective.split(blocks, self.end, draw)
        inputs = self.read_and_predicted(read, targets)
        if 4 * targets.numel() * vocabulary > SMALL and self.head_is_plain(targets):
            loss, each = self.split(inputs, targets.flatten(), self.z_loss)
        else:
            each = token_losses(self.model(**inputs).logits.flatten(0, 1), targets.flatten(), self.z_loss)
            loss = each.mean()
        self.of_samples = each.detach().view(len(blocks), -1).mean(1)
        mean: torch.Tensor = loss
        return mean

    def read_and_predicted(self, read: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        """What the model's forward gets: the decoder sees its targets one behind, its start token before them."""
        model: Any = self.model
        return {"input_ids": read, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(targets),
                "use_cache": False}

    def tried(self, tokens: torch.Tensor) -> bool:
        """Whether what the head gives are the logits, the very tensor: BART adds a bias to it that may be zero."""
        model: Any = self.model
        given: list[torch.Tensor] = []
        hook = model.get_output_embeddings().register_forward_hook(lambda module, inputs, found: given.append(found))
        try:
            logits = self.evaluated(**self.read_and_predicted(tokens, tokens))
        finally:
            hook.remove()
        return len(given) == 1 and given[0] is logits

    @staticmethod
    def through_head(model: Any, inputs: dict[str, Any], targets: torch.Tensor,
                     z_loss: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss from what goes into the head; a function of the model, so that FSDP2 can wrap it."""
        head = model.get_output_embeddings()
        with handing_on(head):
            hidden = model.forward(**inputs).logits
        return linear_cross_entropy(hidden.flatten(0, 1), head.weight, targets, head.bias, z_loss)


def suited_objective(model: Any, objective: Objective | None, **causal: float | bool) -> Objective | None:
    """The objective to train ``model`` by: ``objective``, or where none is given `PrefixLM`; None if it is causal.

    Args:
        model: A model of transformers.
        objective: What was asked for.
        causal: Settings that only causal models have.

    Raises:
        ValueError: Something that this kind of model cannot be trained with.
    """
    kind = type(model).__name__.removeprefix("FSDP")
    if not is_encoder_decoder(model):
        if objective is not None:
            raise ValueError(f"model.objective={objective} is for encoder–decoder models, and {kind} has no encoder: "
                             "leave it out, and every token is predicted from those before it.")
        return None
    for name, value in causal.items():
        if value:
            raise ValueError(f"model.{name}={value} is for causal models, and {kind} is an encoder–decoder: leave it "
                             "out.")
    return objective or PrefixLM()


@contextmanager
def handing_on(module: nn.Module) -> Iterator[None]:
    """Within it, ``module`` gives back what it gets."""
    module.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del module.forward
