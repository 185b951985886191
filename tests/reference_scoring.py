"""A second reading of the world's scores, plain and slow: no lm-eval, no cache, no batching by tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_cpt.microworld.probes import ChoiceProbe, CodeProbe
from lit_cpt.microworld.world import World

CHOICE_BATCH, GENERATION_BATCH = 64, 80  # rows; sorted by length, so a batch holds hardly any padding
CODE_TOKENS, NUMBER_TOKENS = 24, 10


@dataclass(frozen=True)
class FamilyScore:
    """How one family was answered.

    Attributes:
        hits: 1 or 0 for each probe, in the world's order.
        clusters: The cluster of each probe; resample these for an interval (`lit_cpt.intervals`).
    """

    hits: tuple[int, ...]
    clusters: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Share of hits in [0, 1]; nan for a family without probes."""
        return sum(self.hits) / len(self.hits) if self.hits else float("nan")


def score_probes(model: nn.Module, tokenizer: Any, world: World) -> dict[str, FamilyScore]:
    """Ask ``model`` all probes of ``world``; every training flag of the model is as before afterwards.

    Knowledge goes by the log-likelihood of the options, completion by log-likelihood per character (its
    options differ in length), code by running the greedy continuation in `run_program`, math and transfer by
    the first integer of the greedy continuation. Each prompt follows one end-of-text token, as each document
    did in training.

    Args:
        model: Called as ``model(input_ids=..., use_cache=False).logits``; on one device.
        tokenizer: A Hugging Face tokenizer with an end-of-text token.
        world: Whose probes to ask.

    Returns:
        Family to its score, for every family of ``world.probes``. Average `FAMILIES`, leave transfer out.

    Raises:
        ValueError: ``tokenizer`` has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer.eos_token_id=None: prompts begin with it. Set tokenizer.eos_token.")
    with evaluating(model), torch.no_grad():
        return {
            family: FamilyScore(
                hits=tuple(hits(model, tokenizer, probes, per_character=family == "completion")),
                clusters=tuple(probe.cluster for probe in probes),
            )
            for family, probes in world.probes.items()
        }


def hits(model: nn.Module, tokenizer: Any, probes: Sequence[Any], per_character: bool) -> list[int]:
    """1 or 0 for each of ``probes``, which are all of one kind."""
    if not probes:
        return []
    if isinstance(probes[0], ChoiceProbe):
        scores = option_scores(model, tokenizer, probes, per_character)
        return [probe.grade(row) for probe, row in zip(probes, scores, strict=True)]
    length = CODE_TOKENS if isinstance(probes[0], CodeProbe) else NUMBER_TOKENS
    texts = generate(model, tokenizer, [probe.prompt for probe in probes], length)
    return [probe.grade(text) for probe, text in zip(probes, texts, strict=True)]


def option_scores(
    model: nn.Module, tokenizer: Any, probes: Sequence[ChoiceProbe], per_character: bool
) -> list[list[float]]:
    """The log-likelihood of every option after its prompt, in nats (per character if asked)."""
    prompts = encode(tokenizer, [probe.prompt for probe in probes], begin=True)
    options = [option for probe in probes for option in probe.options]
    owners = [index for index, probe in enumerate(probes) for _ in probe.options]
    rows = [(prompts[owner], tail) for owner, tail in zip(owners, encode(tokenizer, options), strict=True)]
    flat = [0.0] * len(rows)
    for batch in batches([len(prompt) + len(tail) for prompt, tail in rows], CHOICE_BATCH):
        likelihoods = tail_likelihoods(model, tokenizer.eos_token_id, [rows[index] for index in batch])
        for index, likelihood in zip(batch, likelihoods, strict=True):
            flat[index] = likelihood / len(options[index]) if per_character else likelihood
    scores: list[list[float]] = [[] for _ in probes]
    for owner, score in zip(owners, flat, strict=True):
        scores[owner].append(score)
    return scores


def tail_likelihoods(model: nn.Module, padding: int, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """The log-likelihood of each tail after its prompt, in nats; padding stands on the right."""
    ids = padded([prompt + tail for prompt, tail in rows], padding, device_of(model))  # (B, T)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()  # (B, T - 1, V)
    targets = ids[:, 1:]
    likelihoods = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)  # (B, T - 1)
    in_tail = torch.zeros_like(targets, dtype=torch.bool)
    for row, (prompt, tail) in enumerate(rows):
        in_tail[row, len(prompt) - 1 : len(prompt) + len(tail) - 1] = True
    sums: list[float] = likelihoods.double().masked_fill(~in_tail, 0).sum(-1).tolist()
    return sums


def generate(model: nn.Module, tokenizer: Any, prompts: Sequence[str], length: int) -> list[str]:
    """The greedy continuation of each prompt, up to end of text or ``length`` tokens."""
    encoded = encode(tokenizer, prompts, begin=True)
    texts = [""] * len(prompts)
    for batch in batches([len(ids) for ids in encoded], GENERATION_BATCH):
        continued = continue_greedily(model, tokenizer.eos_token_id, [encoded[index] for index in batch], length)
        for index, tokens in zip(batch, continued, strict=True):
            texts[index] = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    return texts


def continue_greedily(model: nn.Module, end: int, prompts: Sequence[list[int]], length: int) -> list[list[int]]:
    """The most likely ``length`` tokens after each prompt, one at a time; each cut before ``end``."""
    ids = padded([prompt + [end] * length for prompt in prompts], end, device_of(model))
    rows = torch.arange(len(prompts), device=ids.device)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)
    done = torch.zeros_like(starts, dtype=torch.bool)
    for step in range(length):
        seen = ids[:, : int(starts.max()) + step]
        logits = model(input_ids=seen, use_cache=False).logits[rows, starts + step - 1]  # (B, V)
        following = logits.argmax(-1)
        ids[rows, starts + step] = following
        done |= following == end
        if bool(done.all()):
            break
    generated = [row[start : start + length] for row, start in zip(ids.tolist(), starts.tolist(), strict=True)]
    return [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in generated]


def encode(tokenizer: Any, texts: Sequence[str], begin: bool = False) -> list[list[int]]:
    """Token ids of each text; with ``begin`` the end-of-text token stands before them."""
    first = [tokenizer.eos_token_id] if begin else []
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [first + ids for ids in encoded]


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of ``size``, shortest first."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def padded(rows: Sequence[list[int]], padding: int, device: torch.device) -> Tensor:
    """``rows`` as one tensor, shape (rows, longest), padded on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows], device=device)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter."""
    return next(model.parameters()).device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts ``model`` in eval mode; afterwards each of its modules has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
