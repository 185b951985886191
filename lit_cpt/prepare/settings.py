"""The settings of a preparation that decide its tokens."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lit_cpt.documents import TextRule


@dataclass(frozen=True)
class PrepareSettings:
    r"""What decides the tokens of a prepared source, besides its inputs and its tokenizer.

    Args:
        text_key: Field of a jsonl or parquet record that holds the text.
        text_template: Joins several fields instead, e.g. ``"Question: {question}\nAnswer: {answer}"``.
        format: How the inputs are written; ``auto`` goes by their names.
        txt_document: What one document of a txt file is: the whole ``file`` or each ``line``.
        validation: Share of the documents, chosen by a hash of their text, kept for validation; in [0, 1).
        bos: Begin every document with the tokenizer's BOS token too.
        on_error: ``fail`` stops at a record that cannot be read, ``skip`` counts and lists it.
        chunk_bytes: Size of a litdata chunk.
        part_bytes: Size of the stretch of input one worker takes at a time; by default 1/256 of the
            inputs, but 4 MiB at least and 256 MiB at most. Each part ends in a short chunk.

    Raises:
        ValueError: A value is out of its range.
    """

    text_key: str = "text"
    text_template: str | None = None
    format: Literal["auto", "jsonl", "parquet", "txt"] = "auto"
    txt_document: Literal["file", "line"] = "file"
    validation: float = 0.005
    bos: bool = False
    on_error: Literal["fail", "skip"] = "fail"
    chunk_bytes: int = 1 << 26
    part_bytes: int | None = None

    def __post_init__(self) -> None:
        self.rule  # noqa: B018 - a rule that cannot be built refuses here
        for name, accepted in (
            ("format", ("auto", "jsonl", "parquet", "txt")),
            ("on_error", ("fail", "skip")),
        ):
            if (value := getattr(self, name)) not in accepted:
                raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(accepted)}.")
        if not 0 <= self.validation < 1:
            raise ValueError(
                f"validation={self.validation} is no share; give a number from 0 (none) to below 1, e.g. 0.005."
            )
        for name in ("chunk_bytes", "part_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} is too small; give a positive number of bytes.")

    @property
    def rule(self) -> TextRule:
        """How a record becomes text."""
        return TextRule(self.text_key, self.text_template, self.txt_document)

    def identity(self) -> dict[str, Any]:
        """The settings two runs must share to give the same tokens.

        ``on_error`` is not among them: a run that stopped at a broken line may go on with ``skip``.
        """
        return {name: value for name, value in asdict(self).items() if name != "on_error"}
