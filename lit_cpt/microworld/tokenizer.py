"""Trains the world's tokenizer: byte-level BPE, saved as a folder that Hugging Face loads."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_cpt.microworld.world import World

VOCABULARY_SIZE = 1536
END_OF_TEXT = "<eos>"
DOCUMENTS_PER_SOURCE = 3000


def train_tokenizer(
    world: World, directory: str | Path, vocabulary_size: int = VOCABULARY_SIZE
) -> PreTrainedTokenizerFast:
    """Train on up to 3000 documents of each source and save to ``directory``; under a second.

    ``<eos>`` is token 0; encoding adds no special token. Digits are not split, so a small number, a name and
    an attribute are one token each and a model of half a million parameters can learn them.

    Args:
        world: Its seed decides which documents are sampled.
        directory: Made if missing; `transformers.AutoTokenizer.from_pretrained` reads it without a network.
        vocabulary_size: Tokens including ``<eos>`` and the 256 bytes; a tiny world may give fewer.

    Returns:
        The tokenizer that was saved.

    Raises:
        ValueError: ``vocabulary_size`` has no room for the bytes and ``<eos>``.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary_size <= len(alphabet):
        raise ValueError(
            f"vocabulary_size={vocabulary_size}: {len(alphabet)} bytes and {END_OF_TEXT} come first. "
            f"Give at least {len(alphabet) + 1}."
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(sample(world), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT
    )
    tokenizer.save_pretrained(str(directory))
    return tokenizer


def sample(world: World) -> list[str]:
    """The documents the tokenizer is trained on, fixed by the world's seed."""
    rng = random.Random(world.seed + 9)
    return [
        text
        for documents in world.documents.values()
        for text in rng.sample(documents, min(len(documents), DOCUMENTS_PER_SOURCE))
    ]
