"""The manifest of a prepared source: which text, which tokenizer, how many tokens; readable without torch."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_cpt.publishing import publish_text

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1
VALIDATION = "validation"  # folder of the held-out split, in the source's own


@dataclass(frozen=True)
class TokenizerFacts:
    """The tokenizer a source was written with.

    Args:
        name: Folder or hub name it was loaded from.
        fingerprint: Hash of what decides its tokens; equal fingerprints give equal tokens.
        vocabulary: Token ids run from 0 to ``vocabulary - 1``.
        eos_token: Text of the token that ends every document.
        eos_token_id: Its id.
        bos_token_id: Id of the token that begins every document; None where documents have none.
    """

    name: str
    fingerprint: str
    vocabulary: int
    eos_token: str
    eos_token_id: int
    bos_token_id: int | None = None


@dataclass(frozen=True)
class Split:
    """Size of one litdata dataset: the train split in the folder itself, or ``validation/`` in it."""

    tokens: int
    documents: int
    chunks: int


@dataclass(frozen=True)
class InputFile:
    """One input file as it was read.

    Args:
        path: Absolute path.
        bytes: Size on disk.
        mtime_ns: Time of its last change, in ns.
        sha256: One digest per piece the file was read in, each over one of so many equal stretches of its
            bytes; a file read whole has one, the digest ``sha256sum`` prints.
    """

    path: str
    bytes: int
    mtime_ns: int
    sha256: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a prepared source holds and what it was made from.

    Args:
        tokenizer: The tokenizer.
        dtype: Type of the tokens on disk, ``uint16`` or ``int32``.
        train: Size of the train split.
        validation: Size of the validation split; 0 chunks where there is none.
        empty_documents: Documents without text, left out.
        skipped_documents: Records that could not be read, left out (``on_error="skip"``).
        skipped: The first 1000 of them, each ``file:line: what was wrong``.
        inputs: The input files, in the order of their documents.
        settings: Every setting that decides the tokens.
        versions: Of the packages that wrote the source.
    """

    tokenizer: TokenizerFacts
    dtype: str
    train: Split
    validation: Split
    empty_documents: int
    skipped_documents: int
    skipped: tuple[str, ...]
    inputs: tuple[InputFile, ...]
    settings: dict[str, Any]
    versions: dict[str, str]

    def save(self, folder: str | Path) -> None:
        """Write ``folder/manifest.json``, whole or not at all."""
        write_json(Path(folder) / FILE_NAME, {"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read ``folder/manifest.json``.

        Raises:
            FileNotFoundError: The folder is missing, or was not written by ``lit-cpt prepare``.
            ValueError: The manifest is damaged or of a newer format.
        """
        path = Path(folder) / FILE_NAME
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder {str(folder)!r}; name one that `lit-cpt prepare` wrote.")
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} is not a prepared source (it has no {FILE_NAME}); "
                f"run `lit-cpt prepare --input ... --tokenizer ... --output {folder}`."
            )
        try:
            content = json.loads(path.read_bytes())
            version = int(content.pop("format_version"))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(damaged(path, error)) from None
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {version}; this lit_cpt reads up to {FORMAT_VERSION}. "
                "Upgrade lit_cpt, or prepare the source again."
            )
        try:
            return cls.from_dict(content)
        except (KeyError, TypeError) as error:
            raise ValueError(damaged(path, error)) from None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Manifest":
        """The manifest that ``asdict`` turned into ``content``; ``TypeError`` where a field is off."""
        inputs = tuple(InputFile(**{**entry, "sha256": tuple(entry["sha256"])}) for entry in content["inputs"])
        parsed = {
            "tokenizer": TokenizerFacts(**content["tokenizer"]),
            "train": Split(**content["train"]),
            "validation": Split(**content["validation"]),
            "skipped": tuple(content["skipped"]),
            "inputs": inputs,
        }
        return cls(**{**content, **parsed})


def read_index(folder: str | Path) -> list[dict[str, Any]]:
    """The chunks in ``folder/index.json``, each with ``filename``, ``chunk_bytes`` and ``dim``, its tokens.

    Raises:
        ValueError: There is no such file, or it is damaged.
    """
    path = Path(folder) / "index.json"
    try:
        chunks: list[dict[str, Any]] = json.loads(path.read_bytes())["chunks"]
        for chunk in chunks:
            chunk["filename"], int(chunk["chunk_bytes"]), int(chunk["dim"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(damaged(path, error)) from None
    return chunks


def check_chunks(folder: str | Path) -> None:
    """See that every chunk of a local source is there, whole by its size; one listing of the folder.

    Raises:
        ValueError: One is not.
    """
    for split in filter(Path.is_dir, (Path(folder), Path(folder) / VALIDATION)):
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(split)}
        for chunk in read_index(split):
            name, size = chunk["filename"], chunk["chunk_bytes"]
            if sizes.get(name) != size:
                found = f"has {sizes[name]:,} bytes, not {size:,}" if name in sizes else "is missing"
                raise ValueError(f"{split / name} {found}: copy the source again, or prepare it again with "
                                 "--overwrite.")


def damaged(path: Path, error: Exception) -> str:
    """The message for a file of a source that cannot be read."""
    return f"{path} is damaged ({type(error).__name__}: {error}); prepare the source again with --overwrite."


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` through a neighbour and a rename, so that readers see all of it or none."""
    publish_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
