"""Real objects that the tests share: sources whose blocks name themselves, and tiny models."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from litdata import TokensLoader
from litdata.streaming import Cache

from lit_cpt.manifest import Manifest, Split, TokenizerFacts

LENGTH = 8  # tokens trained in a block of the test sources
VOCABULARY = 64
SIZES = {"a": 400, "b": 150, "c": 37}


def named_block(source: int, row: int, length: int = LENGTH) -> torch.Tensor:
    """A block that says which one it is: source, then the row in base 64, then filler."""
    head = [source, row // VOCABULARY**2, row // VOCABULARY % VOCABULARY, row % VOCABULARY]
    filler = [(row * 7 + place * 3) % VOCABULARY for place in range(length + 1 - len(head))]
    return torch.tensor(head + filler, dtype=torch.int32)


def name_of(block: torch.Tensor) -> tuple[int, int]:
    """(source, row) of a `named_block`."""
    source, high, middle, low = (int(token) for token in block[:4])
    return source, (high * VOCABULARY + middle) * VOCABULARY + low


def write_blocks(folder: Path, blocks: list[torch.Tensor], blocks_per_chunk: int = 16) -> None:
    """A litdata dataset of these blocks."""
    size = blocks_per_chunk * blocks[0].numel() if blocks else 1
    cache = Cache(str(folder), chunk_size=size, item_loader=TokensLoader())
    for index, block in enumerate(blocks):
        cache._add_item(index, block)
    cache.done()
    cache.merge()


def write_source(folder: Path, source: int, rows: int, fingerprint: str = "f" * 64,
                 validation: int = 6) -> Path:
    """A prepared source of ``rows`` named blocks."""
    write_blocks(folder, [named_block(source, row) for row in range(rows)])
    if validation:
        write_blocks(folder / "validation", [named_block(source, row) for row in range(validation)])
    tokens = rows * (LENGTH + 1)
    tokenizer = TokenizerFacts("test", fingerprint, VOCABULARY, "<eos>", 0)
    held_out = Split(validation * (LENGTH + 1), validation, min(validation, 1))
    Manifest(tokenizer, "int32", Split(tokens, rows, 1), held_out, 0, 0, (), (), {}, {}).save(folder)
    return folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three sources, a (400 blocks), b (150) and c (37)."""
    root = tmp_path_factory.mktemp("sources")
    return {name: str(write_source(root / name, number, rows))
            for number, (name, rows) in enumerate(SIZES.items())}


@pytest.fixture
def tiny() -> dict[str, object]:
    """Config values of a Llama of a few thousand parameters."""
    return {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
            "tie_word_embeddings": True}
