"""One part's documents as batches of train and validation tokens: a pure function of the part."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from lit_cpt.documents import DocumentReader, Fault
from lit_cpt.prepare.parts import Part
from lit_cpt.prepare.record import LISTED_FAULTS, PartRecord
from lit_cpt.prepare.settings import PrepareSettings
from lit_cpt.prepare.tokens import Encoder

BATCH_CHARACTERS = 1 << 19


class UnreadableInput(ValueError):
    """A record cannot be read and ``on_error`` is ``fail``."""


def in_validation(text: str, share: float) -> bool:
    """Whether a document belongs to the validation split: decided by its text and ``share`` alone.

    So copies stay on one side, other inputs or another order move nothing, and a larger share keeps
    every document of a smaller one.
    """
    if share == 0:
        return False
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


@dataclass
class TokenStream:
    """Iterates over pairs of train and validation tokens, shape (tokens,) each; ``record`` counts along.

    Args:
        part: What to read.
        settings: How.
        encoder: The tokenizer.
        dtype: Of the tokens.

    Raises:
        UnreadableInput: At the first record that cannot be read, when ``on_error`` is ``fail``.
    """

    part: Part
    settings: PrepareSettings
    encoder: Encoder
    dtype: np.dtype
    record: PartRecord = field(default_factory=PartRecord)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for texts in self.batches():
            yield self.tokens_of(texts)

    def batches(self) -> Iterator[list[str]]:
        """Documents with text, some 512 Ki characters at a time, and what remains at the end."""
        texts: list[str] = []
        characters = 0
        for text in self.documents():
            texts.append(text)
            characters += len(text)
            if characters >= BATCH_CHARACTERS:
                yield texts
                texts, characters = [], 0
        yield texts

    def documents(self) -> Iterator[str]:
        """Documents with text of all pieces."""
        done = 0
        for piece in self.part.pieces:
            reader = DocumentReader(piece, self.settings.rule)
            for item in reader:
                self.record.bytes = done + max(reader.bytes_read, 0)
                if isinstance(item, Fault):
                    self.skip(item)
                elif not item or item.isspace():
                    self.record.empty += 1
                else:
                    yield item
            done += piece.stop - piece.start
            self.record.bytes = done
            self.record.sha256.append(reader.sha256)

    def skip(self, fault: Fault) -> None:
        """Count a record that cannot be read, or stop at it."""
        if self.settings.on_error == "fail":
            raise UnreadableInput(str(fault))
        self.record.skipped += 1
        if len(self.record.faults) < LISTED_FAULTS:
            self.record.faults.append(str(fault))

    def tokens_of(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Train and validation tokens of some documents."""
        code = "H" if self.dtype == np.uint16 else "i"
        train, validation = array(code), array(code)
        held_out = 0
        for text, ids in zip(texts, self.encoder(texts), strict=True):
            if in_validation(text, self.settings.validation):
                validation.extend(array(code, ids))
                held_out += 1
            else:
                train.extend(array(code, ids))
        self.record.train_tokens += len(train)
        self.record.train_documents += len(texts) - held_out
        self.record.validation_tokens += len(validation)
        self.record.validation_documents += held_out
        return np.array(train, self.dtype), np.array(validation, self.dtype)
