"""Which files a preparation reads, and how they are cut into parts that any worker may take."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lit_cpt.documents import Format, Piece
from lit_cpt.manifest import InputFile

FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "txt"}
COMPRESSED = (".gz", ".zst")
COMPRESSION_RATIO = 4  # text shrinks about this much; balances parts, decides nothing else
SMALLEST_PART = 1 << 22
LARGEST_PART = 1 << 28


@dataclass(frozen=True)
class Part:
    """What one worker reads at a time; its tokens depend on nothing else.

    Args:
        index: Its place in the finished source.
        pieces: Its stretches of input, in order.
    """

    index: int
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """Size of its pieces on disk."""
        return sum(piece.stop - piece.start for piece in self.pieces)


def format_of(path: str) -> Format | None:
    """Format by name (``a.jsonl.gz`` is jsonl), or None for an unknown suffix."""
    stem, suffix = os.path.splitext(path)
    if suffix in COMPRESSED:
        suffix = os.path.splitext(stem)[1]
    return FORMATS.get(suffix)


def find_inputs(inputs: Iterable[str], format: str = "auto") -> list[tuple[InputFile, Format]]:
    """Files named by ``inputs``, each once, in the order given; folders and globs are sorted by path.

    Args:
        inputs: Files, folders (read recursively) and globs (``**`` crosses folders).
        format: ``auto`` goes by suffix; else the format of every file named or globbed.

    Raises:
        FileNotFoundError: A path is missing, or a glob or folder yields nothing.
        ValueError: The format of a file cannot be told.
    """
    found: dict[str, Format] = {}
    for given in inputs:
        for path in expand(given, format):
            known = format_of(path) if format == "auto" else format
            if known is None:
                raise ValueError(
                    f"{path}: unknown suffix {os.path.splitext(path)[1]!r}; known are {', '.join(FORMATS)}, plain or "
                    "followed by .gz or .zst. To say how the file is written, pass --format jsonl|parquet|txt."
                )
            if known == "parquet" and path.endswith(COMPRESSED):
                raise ValueError(f"{path}: a compressed parquet file cannot be read; decompress it first.")
            found.setdefault(os.path.abspath(path), known)  # type: ignore[arg-type]
    if not found:
        raise ValueError("no input given; name files, folders or globs, e.g. --input 'data/*.jsonl.gz'.")
    return [(describe(path), known) for path, known in found.items()]


def describe(path: str) -> InputFile:
    """Size and time of a file."""
    status = os.stat(path)
    return InputFile(path, status.st_size, status.st_mtime_ns)


def expand(given: str, format: str) -> list[str]:
    """Files that one input names."""
    if os.path.isdir(given):
        return files_in(given, format)
    if os.path.exists(given):
        return [given]
    if not glob.has_magic(given):
        raise FileNotFoundError(f"input {given!r} does not exist; give a file, a folder or a glob.")
    matches = sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))
    if not matches:
        raise FileNotFoundError(f"input {given!r} matches no file; `**` is needed to cross folders.")
    return matches


def files_in(folder: str, format: str) -> list[str]:
    """Files of a known format anywhere in ``folder``, sorted; hidden ones and other suffixes are left out."""
    every = sorted(
        str(path)
        for path in Path(folder).rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if files := [path for path in every if (known := format_of(path)) and format in ("auto", known)]:
        return files
    held = Counter(os.path.splitext(path)[1] or "(no suffix)" for path in every).most_common(5)
    content = ", ".join(f"{count} {suffix}" for suffix, count in held) or "no file"
    wanted = ", ".join(FORMATS) if format == "auto" else format
    raise FileNotFoundError(
        f"folder {folder!r} holds no {wanted} file (it holds {content}). "
        f"Name other suffixes by a glob and a format: --input '{folder.rstrip('/')}/**/*.md' --format txt"
    )


def cut(inputs: list[tuple[InputFile, Format]], by_line: bool, part_bytes: int | None = None) -> list[Part]:
    """Cut the inputs into parts: a function of the inputs alone, never of the workers.

    Args:
        inputs: The files.
        by_line: A txt file may be cut between lines.
        part_bytes: Size of a part; None: see ``PrepareSettings``.

    Returns:
        Parts in the order of the inputs. Large plain files are cut evenly into several, small files
        share one.
    """
    if part_bytes is None:
        part_bytes = min(max(sum(weight(file) for file, _ in inputs) // 256, SMALLEST_PART), LARGEST_PART)
    parts: list[list[Piece]] = [[]]
    filled = 0
    for file, format in inputs:
        for piece in pieces_of(file, format, by_line, part_bytes):
            size = weight(file) if file.path.endswith(COMPRESSED) else piece.stop - piece.start
            if parts[-1] and filled + size > part_bytes:
                parts.append([])
                filled = 0
            parts[-1].append(piece)
            filled += size
    return [Part(index, tuple(pieces)) for index, pieces in enumerate(parts)]


def weight(file: InputFile) -> int:
    """Bytes of text in a file, by its size and whether it is compressed."""
    return file.bytes * (COMPRESSION_RATIO if file.path.endswith(COMPRESSED) else 1)


def pieces_of(file: InputFile, format: Format, by_line: bool, part_bytes: int) -> Iterator[Piece]:
    """The pieces that tile one file."""
    count = -(-file.bytes // part_bytes)
    if format == "parquet":
        yield from row_group_pieces(file, count)
    elif count < 2 or file.path.endswith(COMPRESSED) or (format == "txt" and not by_line):
        yield Piece(file.path, format, 0, file.bytes)
    else:
        for index in range(count):
            yield Piece(file.path, format, file.bytes * index // count, file.bytes * (index + 1) // count)


def row_group_pieces(file: InputFile, count: int) -> Iterator[Piece]:
    """At most ``count`` pieces of whole row groups; a file that cannot be opened is one piece, and fails there."""
    import pyarrow
    import pyarrow.parquet

    groups = 1
    if count > 1:
        try:
            groups = pyarrow.parquet.read_metadata(file.path).num_row_groups
        except (OSError, pyarrow.ArrowException):
            count = 1
    count = min(count, groups)
    if count < 2:
        yield Piece(file.path, "parquet", 0, file.bytes)
        return
    for index in range(count):
        first, last = groups * index // count, groups * (index + 1) // count
        yield Piece(file.path, "parquet", file.bytes * index // count, file.bytes * (index + 1) // count, (first, last))
