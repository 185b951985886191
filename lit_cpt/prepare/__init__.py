"""Raw text to a source of litdata token chunks with a manifest: `lit-cpt prepare`."""

from typing import Literal

from lit_cpt.manifest import Manifest
from lit_cpt.prepare.ray_engine import RayEngine
from lit_cpt.prepare.run import prepare_shard, prepare_source
from lit_cpt.prepare.settings import PrepareSettings
from lit_cpt.prepare.shard import Shard
from lit_cpt.prepare.tokens import tokenizer_fingerprint

__all__ = ["PrepareSettings", "RayEngine", "Shard", "prepare", "prepare_shard", "prepare_source",
           "tokenizer_fingerprint"]


def prepare(
    input: list[str],
    tokenizer: str,
    output: str,
    text_key: str = "text",
    text_template: str | None = None,
    format: Literal["auto", "jsonl", "parquet", "txt"] = "auto",
    txt_document: Literal["file", "line"] = "file",
    validation: float = 0.005,
    bos: bool = False,
    on_error: Literal["fail", "skip"] = "fail",
    workers: int | None = None,
    overwrite: bool = False,
    shard: str | None = None,
    merge: bool = False,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    shards: int | None = None,
) -> Manifest | None:
    r"""Tokenise text into a source that training reads: litdata chunks and a manifest.

    Reads jsonl, parquet and txt, plain or .gz or .zst. Every document ends with the tokenizer's EOS
    token. A second run continues a stopped one and does nothing for a finished one; the result is the
    same for any number of workers.

    Args:
        input: Files, folders (read recursively) and globs, e.g. 'data/*.jsonl.gz'.
        tokenizer: Folder of a Hugging Face tokenizer, or its name on the hub.
        output: Folder to write: the train split, with the validation split in OUTPUT/validation.
        text_key: Field of a jsonl or parquet record that holds the text.
        text_template: Joins several fields instead, e.g. 'Question: {question}\nAnswer: {answer}'.
        format: How the inputs are written; auto goes by their names. 'src/**/*.py' needs txt.
        txt_document: What one document of a txt file is: the whole file or each line.
        validation: Share of the documents kept for validation, chosen by a hash of their text.
        bos: Begin every document with the tokenizer's BOS token too.
        on_error: fail stops at a record that cannot be read and names its line; skip lists it in the manifest.
        workers: Processes that tokenise; by default one per core, and with engine ray one per task.
        overwrite: Start anew: remove what an earlier preparation wrote in the output folder.
        shard: i/n, with i from 0 to n - 1: do this share only, beside n - 1 other machines with the same output
            folder. Repeat a share that failed.
        merge: After all shares: the same command with this instead makes them one source, and copies nothing.
        engine: local is this machine; ray has a Ray cluster do shards as tasks, and merges them. All nodes have to
            share the inputs, a tokenizer that is a folder, and the output folder.
        address: Of the Ray cluster, e.g. head:6379; by default auto, the one that this machine belongs to.
        shards: Tasks for the Ray cluster; by default four for each that can run at a time.

    Returns:
        The manifest of the finished source; None of a shard.
    """
    check_together(engine, address, shards, shard, merge, overwrite)
    settings = PrepareSettings(text_key, text_template, format, txt_document, validation, bos, on_error)
    if engine == "ray":
        return RayEngine(address or "auto", shards).prepare(input, tokenizer, output, settings, workers, overwrite)
    if shard is None:
        return prepare_source(input, tokenizer, output, settings, workers, overwrite, merge)
    prepare_shard(input, tokenizer, output, Shard.parse(shard), settings, workers)
    return None


def check_together(engine: str, address: str | None, shards: int | None, shard: str | None, merge: bool,
                   overwrite: bool) -> None:
    """Refuse what does not go together.

    Raises:
        ValueError: An option of one engine with the other, a whole preparation's with a shard, or no such engine.
    """
    if engine not in ("local", "ray"):
        raise ValueError(f"engine={engine!r} is not known; choose local or ray.")
    if engine == "ray" and (shard or merge):
        raise ValueError(f"{f'shard={shard}' if shard else 'merge'} does not go with engine=ray, which deals the "
                         "shards and merges them itself; leave it out.")
    for name, value in (("address", address), ("shards", shards)):
        if engine == "local" and value is not None:
            raise ValueError(f"{name}={value} is for a Ray cluster, and the engine is local; add --engine ray, or "
                             f"leave --{name} out.")
    if shard and (merge or overwrite):
        raise ValueError(f"shard={shard} goes with neither merge nor overwrite: shards first, then merge; and to start "
                         "anew, remove the output folder by hand.")
