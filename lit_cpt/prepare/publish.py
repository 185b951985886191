"""Turns finished parts into a source: chunks are renamed into place, then the indexes, then the manifest."""

import hashlib
import json
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_cpt.manifest import FILE_NAME, VALIDATION, InputFile, Manifest, Split, TokenizerFacts, write_json
from lit_cpt.prepare.job import STATE, Job, part_folder
from lit_cpt.prepare.record import LISTED_FAULTS, PartRecord

INDEX = "index.json"
PACKAGES = ("lit-cpt", "litdata", "tokenizers", "transformers")


def publish(folder: Path, job: Job, facts: TokenizerFacts, dtype: str) -> Manifest:
    """Put the finished parts of ``folder/.prepare`` together; may be repeated after it was cut short.

    The train split lies in ``folder`` itself, the validation split in ``folder/validation``. Nobody can
    read the source before its ``index.json``, and it is not finished before its ``manifest.json``; both
    appear whole.

    Raises:
        ValueError: No document has any text, or a record was skipped and ``on_error`` is ``fail``.
        OSError: A chunk is missing or cut short.
    """
    state = folder / STATE
    records = [read_record(part_folder(state, part)) for part in job.parts]
    faults = [fault for record in records for fault in record.faults]
    if faults and job.settings.on_error == "fail":
        raise ValueError(faults[0])
    if not any(record.tokens for record in records):
        raise ValueError("no document of the inputs has any text; nothing was written.")
    chunks, config = [], None
    for part in job.parts:
        index = json.loads((part_folder(state, part) / INDEX).read_bytes())
        config = config or index["config"]
        for chunk in index["chunks"]:
            name = f"chunk-{part.index}-{chunk['filename'].rsplit('-', 1)[1]}"
            move(part_folder(state, part) / chunk["filename"], folder / name, chunk["chunk_bytes"])
            chunks.append({**chunk, "filename": name})
    validation = publish_validation(state / VALIDATION, folder / VALIDATION)
    if chunks:
        write_index(folder, chunks, config)
    manifest = Manifest(
        tokenizer=facts,
        dtype=dtype,
        train=Split(
            sum(record.train_tokens for record in records),
            sum(record.train_documents for record in records),
            len(chunks),
        ),
        validation=Split(
            sum(record.validation_tokens for record in records),
            sum(record.validation_documents for record in records),
            validation,
        ),
        empty_documents=sum(record.empty for record in records),
        skipped_documents=sum(record.skipped for record in records),
        skipped=tuple(faults[:LISTED_FAULTS]),
        inputs=hashed_inputs(job, records),
        settings=job.identity(),
        versions=versions(),
    )
    manifest.save(folder)
    shutil.rmtree(state)
    return manifest


def read_record(folder: Path) -> PartRecord:
    """What the worker noted about a finished part."""
    return PartRecord(**json.loads((folder / "record.json").read_bytes()))


def move(source: Path, target: Path, size: int) -> None:
    """Rename a chunk into place, unless an earlier run did; its size must be as the index says."""
    if source.exists():
        os.replace(source, target)
    if not target.exists() or target.stat().st_size != size:
        raise OSError(f"{target} should have {size:,} bytes; it was cut short. Run again with --overwrite.")


def publish_validation(source: Path, target: Path) -> int:
    """Rename the validation split into place; returns its number of chunks."""
    if source.is_dir():
        index = json.loads((source / INDEX).read_bytes())
        write_index(source, index["chunks"], index["config"])
        shutil.rmtree(target, ignore_errors=True)
        os.rename(source, target)
    return len(json.loads((target / INDEX).read_bytes())["chunks"]) if target.is_dir() else 0


def write_index(folder: Path, chunks: list[dict[str, Any]], config: Any) -> None:
    """Write litdata's index of ``folder``; equal content gives equal bytes.

    litdata keys its download cache by ``updated_at`` and puts the time there; a hash serves as well.
    """
    content = {"chunks": chunks, "config": config}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    write_json(folder / INDEX, {**content, "updated_at": digest[:16]})


def hashed_inputs(job: Job, records: list[PartRecord]) -> tuple[InputFile, ...]:
    """The input files, with the digests the workers took while reading."""
    digests: dict[str, list[str]] = {file.path: [] for file in job.inputs}
    for part, record in zip(job.parts, records, strict=True):
        for piece, digest in zip(part.pieces, record.sha256, strict=True):
            digests[piece.path].append(digest)
    return tuple(InputFile(file.path, file.bytes, file.mtime_ns, tuple(digests[file.path])) for file in job.inputs)


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide the result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def remove(folder: Path) -> None:
    """Remove what a preparation wrote in ``folder``, and nothing else; the manifest goes first."""
    for name in (FILE_NAME, INDEX):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("chunk-*.bin"):
        path.unlink()
    for name in (VALIDATION, STATE):
        shutil.rmtree(folder / name, ignore_errors=True)
