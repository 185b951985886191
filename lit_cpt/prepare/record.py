"""What a worker notes about a finished part, for whoever puts the parts together."""

from dataclasses import dataclass, field

LISTED_FAULTS = 1000


@dataclass
class PartRecord:
    """What became of one part.

    Args:
        train_tokens: Tokens of its train documents, EOS included.
        train_documents: Those documents.
        validation_tokens: Tokens of its validation documents.
        validation_documents: Those documents.
        empty: Documents without text.
        skipped: Records that could not be read.
        faults: The first of them, ``file:line: what was wrong``.
        bytes: Input read, as it lies on disk.
        sha256: Digest of each piece.
    """

    train_tokens: int = 0
    train_documents: int = 0
    validation_tokens: int = 0
    validation_documents: int = 0
    empty: int = 0
    skipped: int = 0
    faults: list[str] = field(default_factory=list)
    bytes: int = 0
    sha256: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return self.train_tokens + self.validation_tokens

    @property
    def documents(self) -> int:
        """Documents of both splits."""
        return self.train_documents + self.validation_documents
