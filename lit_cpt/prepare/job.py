"""The plan of one preparation: kept in the output folder while it is unfinished, so that a second run continues it."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_cpt.documents import Piece
from lit_cpt.manifest import InputFile, write_json
from lit_cpt.prepare.parts import Part, cut, find_inputs
from lit_cpt.prepare.settings import PrepareSettings
from lit_cpt.prepare.tokens import files_digest

STATE = ".prepare"


@dataclass(frozen=True)
class Job:
    """Everything that decides the bytes of a finished source, and how the work is cut.

    Args:
        settings: The settings.
        tokenizer: Folder or hub name of the tokenizer.
        tokenizer_files: Hash of the files in that folder; None for a hub name.
        inputs: The input files.
        parts: The parts, in the order of the finished source.
    """

    settings: PrepareSettings
    tokenizer: str
    tokenizer_files: str | None
    inputs: tuple[InputFile, ...]
    parts: tuple[Part, ...]

    @classmethod
    def plan(cls, inputs: list[str], tokenizer: str, settings: PrepareSettings) -> "Job":
        """The job of these inputs; reads names and sizes, and the footers of large parquet files."""
        if os.path.exists(tokenizer):
            tokenizer = os.path.abspath(tokenizer)
        digest = files_digest(tokenizer)
        files = find_inputs(inputs, settings.format)
        parts = cut(files, settings.txt_document == "line", settings.part_bytes)
        return cls(settings, tokenizer, digest, tuple(file for file, _ in files), tuple(parts))

    def identity(self) -> dict[str, Any]:
        """The settings and the tokenizer, as the manifest keeps them."""
        return {**self.settings.identity(), "tokenizer": self.tokenizer, "tokenizer_files": self.tokenizer_files}

    def save(self, state: Path) -> None:
        """Write ``state/job.json``."""
        write_json(state / "job.json", asdict(self))

    @classmethod
    def load(cls, state: Path) -> "Job":
        """Read what ``save`` wrote."""
        content = json.loads((state / "job.json").read_bytes())
        parts = [Part(part["index"], tuple(map(piece_of, part["pieces"]))) for part in content["parts"]]
        return cls(
            settings=PrepareSettings(**content["settings"]),
            tokenizer=content["tokenizer"],
            tokenizer_files=content["tokenizer_files"],
            inputs=tuple(InputFile(**{**entry, "sha256": ()}) for entry in content["inputs"]),
            parts=tuple(parts),
        )

    def differences(self, identity: dict[str, Any], inputs: tuple[InputFile, ...]) -> list[str]:
        """How this job differs from one with another ``identity`` and other ``inputs``, a line each."""
        lines = []
        for name, now in self.identity().items():
            if name not in identity or identity[name] != now:
                lines.append(f"{name} was {identity.get(name)!r} and is {now!r}")
        before, after = ({file.path: file for file in files} for files in (inputs, self.inputs))
        for path in dict.fromkeys([*before, *after]):
            if path not in after:
                lines.append(f"input {path} is no longer named")
            elif path not in before:
                lines.append(f"input {path} is new")
            elif before[path].bytes != after[path].bytes:
                lines.append(f"input {path} had {before[path].bytes:,} bytes and has {after[path].bytes:,}")
            elif before[path].mtime_ns != after[path].mtime_ns:
                lines.append(f"input {path} has changed since")
        if not lines and list(before) != list(after):
            lines.append("the inputs come in another order")
        return lines


def piece_of(content: dict[str, Any]) -> Piece:
    """The piece that ``asdict`` turned into ``content``."""
    groups = content["groups"]
    return Piece(**{**content, "groups": tuple(groups) if groups else None})


def part_folder(state: Path, part: Part) -> Path:
    """Where a part lies once it is finished; the folder appears whole, by a rename."""
    return state / f"part-{part.index:06d}"
