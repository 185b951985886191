"""Reads documents out of jsonl, parquet and txt files, whole or piece by piece, and names the line of every fault.

A piece of a plain text file is a byte range: the lines that *begin* in it are its own, so pieces that
tile a file yield each line once. Compressed files cannot be entered in the middle: they are one piece.
"""

import hashlib
import json
import string
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Literal

Format = Literal["jsonl", "parquet", "txt"]
BOM = b"\xef\xbb\xbf"  # the mark that some programs write before UTF-8
BLOCK_BYTES = 1 << 18
LARGEST_DOCUMENT = 1 << 25  # 32 MiB; a tokenizer needs some 30 bytes of memory per byte of one document
SHOWN_KEYS = 12


@dataclass(frozen=True)
class TextRule:
    r"""How a record becomes the text of one document.

    Args:
        text_key: Field of a jsonl or parquet record that holds the text.
        text_template: Joins several fields instead, e.g. ``"Question: {question}\nAnswer: {answer}"``.
        txt_document: What one document of a txt file is: the whole ``file`` or each ``line``.

    Raises:
        ValueError: The key is empty or the template names no plain field.

    >>> TextRule(text_template="Q: {q}").text({"q": "why?"})
    'Q: why?'
    """

    text_key: str = "text"
    text_template: str | None = None
    txt_document: Literal["file", "line"] = "file"

    def __post_init__(self) -> None:
        if self.txt_document not in ("file", "line"):
            raise ValueError(f"txt_document={self.txt_document!r} is not known; choose 'file' or 'line'.")
        if not self.text_key:
            raise ValueError("text_key is empty; name the field that holds the text, e.g. 'text'.")
        if self.text_template is None:
            return
        given = f"text_template={self.text_template!r}"
        try:
            fields = self.fields
        except ValueError as error:
            raise ValueError(f"{given}: {error}; write fields as {{name}} and a literal brace twice.") from None
        if not fields or not all(name.isidentifier() for name in fields):
            raise ValueError(f"{given} must name fields as {{name}}; it names {list(fields)}.")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields a record must have."""
        if self.text_template is None:
            return (self.text_key,)
        parsed = string.Formatter().parse(self.text_template)
        return tuple(dict.fromkeys(name for _, name, _, _ in parsed if name is not None))

    def text(self, record: dict[str, Any]) -> str:
        """The text of ``record``; ``ValueError`` says which field is missing or is not text."""
        for name in self.fields:
            if name not in record:
                raise ValueError(f"no key {name!r}; the keys are {shown(record)}")
            value = record[name]
            number = self.text_template is not None and isinstance(value, (int, float))
            if not isinstance(value, str) and (not number or isinstance(value, bool)):
                raise ValueError(f"key {name!r} holds {type(value).__name__}, not a string")
        if self.text_template is None:
            return str(record[self.text_key])
        return self.text_template.format_map(record)


def shown(names: Iterable[str]) -> str:
    """``names`` for an error message: quoted, and cut after a dozen."""
    names = list(names)
    return ", ".join(map(repr, names[:SHOWN_KEYS])) + (", ..." if len(names) > SHOWN_KEYS else "")


@dataclass(frozen=True)
class Piece:
    """A stretch of one input file, read by one worker.

    Args:
        path: The file; a name ending in ``.gz`` or ``.zst`` is decompressed.
        format: How its records are written.
        start: First byte of the stretch.
        stop: Byte after the last one.
        groups: Parquet only: first row group and the one after the last.
    """

    path: str
    format: Format
    start: int
    stop: int
    groups: tuple[int, int] | None = None


@dataclass(frozen=True)
class Fault:
    """A record that could not be read; ``str()`` is ``file:line: what was wrong``."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


class Damaged(Exception):
    """The rest of a file cannot be read; the message says why."""


@dataclass
class DocumentReader:
    """Iterates over the documents of one piece.

    Yields a ``str`` per document, in order, and a ``Fault`` per record that is none. After the last
    item ``sha256`` covers exactly the bytes ``[start, stop)`` of the file as it lies on disk.

    Args:
        piece: What to read.
        rule: How a record becomes text.
    """

    piece: Piece
    rule: TextRule
    position: int = field(init=False)
    digest: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.position = self.piece.start
        self.digest = hashlib.sha256()
        self._lines_before: int | None = None
        self._line = 0  # lines of the piece read so far
        self._first_offset = 0

    @property
    def bytes_read(self) -> int:
        """Bytes of the piece read so far, as they lie on disk."""
        return min(self.position, self.piece.stop) - self.piece.start

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes of the piece read so far."""
        return str(self.digest.hexdigest())

    def __iter__(self) -> Iterator[str | Fault]:
        try:
            if self.piece.format == "parquet":
                yield from self.parquet_rows()
            elif self.piece.format == "txt" and self.rule.txt_document == "file":
                yield self.whole_file()
            else:
                yield from self.line_documents()
        except OSError as error:
            yield self.fault(self._line + 1, f"cannot be read: {error.strerror or error}")
        except Damaged as error:
            yield self.fault(self._line + 1, str(error))

    def fault(self, line: int, what: str) -> Fault:
        """A fault at the ``line``-th line of this piece, numbered from the start of the file."""
        if self._lines_before is None:
            self._lines_before = self.count_lines_before(self._first_offset)
        return Fault(self.piece.path, self._lines_before + line, what)

    def count_lines_before(self, offset: int) -> int:
        """Newlines in the first ``offset`` bytes; read only when a fault has to be named."""
        lines = 0
        if offset:
            with open(self.piece.path, "rb") as file:
                while offset > 0 and (block := file.read(min(BLOCK_BYTES, offset))):
                    lines += block.count(b"\n")
                    offset -= len(block)
        return lines

    def raw_blocks(self, file: IO[bytes], start: int) -> Iterator[bytes]:
        """Bytes from ``start`` to the end of the file; hashes those that belong to the piece."""
        file.seek(start)
        self.position = start
        while block := file.read(BLOCK_BYTES):
            inside = slice(max(self.piece.start - self.position, 0), max(self.piece.stop - self.position, 0))
            self.digest.update(memoryview(block)[inside])
            self.position += len(block)
            yield block

    def blocks(self, file: IO[bytes]) -> Iterator[bytes]:
        """Text bytes of the piece, from one byte before it (a plain file) or from the start."""
        if self.piece.path.endswith((".gz", ".zst")):
            return inflate(self.raw_blocks(file, 0), self.piece.path)
        return self.raw_blocks(file, max(self.piece.start - 1, 0))

    def own_lines(self) -> Iterator[bytes]:
        """Lines that begin inside the piece, without their newline."""
        compressed = self.piece.path.endswith((".gz", ".zst"))
        start, stop = self.piece.start, self.piece.stop
        first = True
        with open(self.piece.path, "rb") as file:
            for offset, line in split_lines(self.blocks(file), max(start - 1, 0)):
                if offset < start:
                    continue  # its beginning lies in the piece before
                if offset >= stop and not compressed:
                    return
                if first:
                    first, self._first_offset = False, offset
                    if offset == 0:
                        line = line.removeprefix(BOM)
                yield line

    def line_documents(self) -> Iterator[str | Fault]:
        """Documents of a jsonl or line-wise txt piece."""
        for line in self.own_lines():
            self._line += 1
            if self.piece.format == "jsonl" and (not line or line.isspace()):
                continue
            try:
                yield self.line_text(line)
            except ValueError as error:
                yield self.fault(self._line, str(error))
        if self._line == 0 and self.piece.format == "jsonl" and self.piece.start == 0:
            yield self.fault(1, "the file is empty")

    def line_text(self, line: bytes) -> str:
        """The document a line holds; ``ValueError`` says what is wrong with it."""
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"byte 0x{line[error.start]:02x} is not UTF-8 (column {error.start + 1})") from None
        if self.piece.format == "txt":
            return text.removesuffix("\r")
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"broken JSON: {error.msg} (column {error.colno})") from None
        except RecursionError:
            raise ValueError("broken JSON: nested too deeply") from None
        if not isinstance(record, dict):
            raise ValueError(f"a JSON {type(record).__name__}, not an object with keys")
        return self.encodable(self.rule.text(record))

    @staticmethod
    def encodable(text: str) -> str:
        r"""``text`` itself; a lone surrogate (``\ud800`` in JSON) is no character a tokenizer can read."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text holds the lone surrogate {text[error.start]!r}") from None
        return text

    def whole_file(self) -> str | Fault:
        """The whole file as one document."""
        pieces, size = [], 0
        with open(self.piece.path, "rb") as file:
            for block in self.blocks(file):
                pieces.append(block)
                size += len(block)
                if size > LARGEST_DOCUMENT:
                    raise Damaged(
                        f"one document of more than {LARGEST_DOCUMENT:,} bytes; split the file, or read each "
                        "line as a document (--txt_document line)"
                    )
        data = b"".join(pieces).removeprefix(BOM)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"byte 0x{data[error.start]:02x} is not UTF-8"
            return self.fault(data.count(b"\n", 0, error.start) + 1, what)

    def parquet_rows(self) -> Iterator[str | Fault]:
        """Documents of the piece's row groups; a fault's line is the row, counted from 1."""
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.ParquetFile(self.piece.path, pre_buffer=False)
        except pyarrow.ArrowException as error:
            raise Damaged(f"not a parquet file: {str(error).splitlines()[0]}") from None
        with table:
            names = table.schema_arrow.names
            if missing := [name for name in self.rule.fields if name not in names]:
                raise Damaged(f"no column {missing[0]!r}; the columns are {shown(names)}")
            first, last = self.piece.groups or (0, table.num_row_groups)
            row = sum(table.metadata.row_group(group).num_rows for group in range(first))
            rows = sum(table.metadata.row_group(group).num_rows for group in range(first, last))
            if rows == 0 and first == 0:
                raise Damaged("the file is empty")
            self._lines_before, number = row, 0
            batches = table.iter_batches(256, list(range(first, last)), list(self.rule.fields), use_threads=False)
            try:
                for batch in batches:
                    for record in batch.to_pylist():
                        number += 1
                        yield self.record_text(record, number)
                    share = (self.piece.stop - self.piece.start) * number // rows
                    self.position = self.piece.start + share
            except (pyarrow.ArrowException, UnicodeDecodeError) as error:
                yield self.fault(number + 1, f"cannot be read: {str(error).splitlines()[0]}")
        self.hash_range()

    def record_text(self, record: dict[str, Any], row: int) -> str | Fault:
        """The text of a parquet row, or what is wrong with it."""
        try:
            return self.encodable(self.rule.text(record))
        except ValueError as error:
            return self.fault(row, str(error))

    def hash_range(self) -> None:
        """Hash the piece's bytes; row groups are not read in order of bytes, so this is a second, cached read."""
        with open(self.piece.path, "rb") as file:
            for _ in self.raw_blocks(file, self.piece.start):
                if self.position >= self.piece.stop:
                    break


def split_lines(blocks: Iterable[bytes], offset: int = 0) -> Iterator[tuple[int, bytes]]:
    r"""Lines of ``blocks`` with the offset at which each begins, counted from ``offset``.

    Raises:
        Damaged: A line is longer than ``LARGEST_DOCUMENT``.

    >>> list(split_lines([b"a\nb", b"c\n\nd"]))
    [(0, b'a'), (2, b'bc'), (5, b''), (6, b'd')]
    """
    begun: list[bytes] = []
    size = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > LARGEST_DOCUMENT:
            raise Damaged(f"a line of more than {LARGEST_DOCUMENT:,} bytes; is it the right format?")
        for following in others:
            line = b"".join(begun)
            yield offset, line
            offset += len(line) + 1
            begun, size = [following], len(following)
    line = b"".join(begun)
    if line and (offset or line != BOM):  # a file of nothing but the mark has no line
        yield offset, line


def inflate(blocks: Iterable[bytes], path: str) -> Iterator[bytes]:
    """Decompressed bytes of a ``.gz`` or ``.zst`` file of one or more members.

    Raises:
        Damaged: The stream is broken or ends in the middle.
    """
    kind = "gzip" if path.endswith(".gz") else "zstd"
    stream: Any = None
    try:
        for block in blocks:
            while block and (stream is not None or block.strip(b"\0")):  # gzip files may end in zero padding
                stream = decompressor(kind) if stream is None else stream
                if text := stream.decompress(block):
                    yield text
                block = stream.unused_data if stream.eof else b""
                stream = None if stream.eof else stream
    except Exception as error:
        if isinstance(error, zlib.error) or type(error).__name__ == "ZstdError":
            raise Damaged(f"broken {kind} stream: {error}") from None
        raise
    if stream is not None:
        raise Damaged(f"the {kind} stream ends in the middle; is the file complete?")


def decompressor(kind: str) -> Any:
    """A streaming decompressor of one ``gzip`` or ``zstd`` member."""
    if kind == "gzip":
        return zlib.decompressobj(wbits=31)
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()
