"""Prepared sources as litdata datasets, and the check that one tokenizer made them all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from litdata import StreamingDataset, TokensLoader

from lit_cpt.manifest import Manifest


def open_source(folder: str | Path, sequence_length: int) -> StreamingDataset:
    """A prepared source as a litdata dataset of blocks of ``sequence_length + 1`` tokens.

    A block is one sequence of inputs and, shifted by one, its targets.

    Raises:
        FileNotFoundError: ``folder`` is no prepared source.
    """
    Manifest.load(folder)
    return StreamingDataset(str(folder), item_loader=TokensLoader(block_size=sequence_length + 1))


def check_tokenizers(folders: Mapping[str, str | Path], fingerprint: str | None = None,
                     owner: str = "the model") -> None:
    """Refuse sources that were not all tokenised alike.

    Args:
        folders: Source name to prepared folder.
        fingerprint: What every source must have; the first source's where not given.
        owner: Whose fingerprint that is, for the error.

    Raises:
        ValueError: A source was made with another tokenizer.
    """
    for name, folder in folders.items():
        manifest = Manifest.load(folder)
        if fingerprint is None:
            fingerprint, owner = manifest.tokenizer.fingerprint, f"source {name!r}"
        if manifest.tokenizer.fingerprint != fingerprint:
            raise ValueError(
                f"source {name!r} ({folder}) was tokenised with {manifest.tokenizer.name!r}, fingerprint "
                f"{manifest.tokenizer.fingerprint[:12]}; {owner} has {fingerprint[:12]}. "
                "Prepare it again with the model's tokenizer."
            )
