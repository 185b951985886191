"""Runs a preparation from start to finish, or on from where it stopped."""

import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lit_cpt.manifest import FILE_NAME, Manifest, TokenizerFacts, write_json
from lit_cpt.prepare.job import STATE, Job, part_folder
from lit_cpt.prepare.parts import Part
from lit_cpt.prepare.progress import Progress
from lit_cpt.prepare.publish import publish, read_record, remove
from lit_cpt.prepare.settings import PrepareSettings
from lit_cpt.prepare.shard import Shard, check_whole
from lit_cpt.prepare.tokens import dtype_of

log = logging.getLogger(__name__)
LOCK_WAIT_SECONDS = 10.0
ONE_THREAD = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def prepare_source(
    inputs: list[str],
    tokenizer: str,
    output: str | Path,
    settings: PrepareSettings | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    merge: bool = False,
) -> Manifest:
    """Tokenise text files into a source: litdata chunks and a manifest.

    The bytes written depend on the inputs, the tokenizer and the settings, never on ``workers`` or on
    how often the run was stopped. A second run continues an unfinished one and does nothing for a
    finished one.

    Args:
        inputs: Files, folders (read recursively) and globs.
        tokenizer: Folder of a tokenizer, or its name on the hub.
        output: Folder to write.
        settings: What else decides the tokens.
        workers: Processes that tokenise; None for one per core.
        overwrite: Start anew: remove what an earlier preparation wrote in ``output``.
        merge: Only finish what `prepare_shard` has done: refuse if a part is missing.

    Returns:
        The manifest of the finished source.

    Raises:
        ValueError: Input, settings or tokenizer are wrong, a record cannot be read, or ``output`` holds
            something else.
        FileNotFoundError: An input or the tokenizer is missing.
        OSError: The disk is full or refuses.
        RuntimeError: A worker died.
        KeyboardInterrupt: Stopped by Ctrl-C; finished parts are kept.
    """
    if merge and overwrite:
        raise ValueError("overwrite would remove what merge is to put together; give one of them.")
    folder, job, finished = begin(inputs, tokenizer, output, settings, workers, overwrite)
    if finished is not None:
        return finished
    state = folder / STATE
    with locked(folder) as lock:
        if overwrite:
            remove(folder)
            state.mkdir()
        begun = (state / "job.json").is_file()
        try:
            if merge:
                check_whole(job, state)
            job.save(state)
            facts = tokenise(job, job.parts, folder, workers or cores(), lock)
            manifest = publish(folder, job, facts, dtype_of(facts.vocabulary))
        except ValueError:
            if not begun:
                give_up(folder, job)
            raise
    log.info("%s is finished: %s", folder, summary(manifest))
    for fault in manifest.skipped[:10]:
        log.warning("skipped %s", fault)
    return manifest


def prepare_shard(
    inputs: list[str],
    tokenizer: str,
    output: str | Path,
    shard: Shard,
    settings: PrepareSettings | None = None,
    workers: int | None = None,
) -> None:
    """Do the parts of one shard of `prepare_source`, beside other machines that do theirs; then merge.

    Args:
        inputs: As for `prepare_source`, and the same for every shard.
        tokenizer: As for `prepare_source`.
        output: A folder that all machines share.
        shard: Which parts.
        settings: As for `prepare_source`.
        workers: As for `prepare_source`.

    Raises:
        ValueError: As for `prepare_source`, or this very shard is being done.
        OSError: As for `prepare_source`.
    """
    folder, job, finished = begin(inputs, tokenizer, output, settings, workers, overwrite=False)
    if finished is not None:
        return
    state = folder / STATE
    mine = shard.of(job.parts)
    with locked(folder, shared=True), locked(shard.place(state)) as lock:
        with locked(state):  # two that begin at once write the same file
            if not (state / "job.json").is_file():
                job.save(state)
        if mine:
            tokenise(job, mine, folder, workers or cores(), lock)
    log.info("shard %s of %s is finished: %d of %d parts. When all are: the same command with --merge instead",
             shard, folder, len(mine), len(job.parts))


def give_up(folder: Path, job: Job) -> None:
    """Leave nothing of a job that ended in its first run over a mistake, unless it has made tokens to go on with."""
    parts = [part_folder(folder / STATE, part) for part in job.parts]
    if not any(read_record(part).tokens for part in parts if part.is_dir()):
        shutil.rmtree(folder / STATE)
        with suppress(OSError):  # there is more in it
            folder.rmdir()


def begin(inputs: list[str], tokenizer: str, output: str | Path, settings: PrepareSettings | None,
          workers: int | None, overwrite: bool) -> tuple[Path, Job, Manifest | None]:
    """Output folder, job, and the manifest where the job is finished already; refuses what cannot be done."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} is too few; give 1 or more, or nothing for one per core.")
    if "://" in str(output):
        raise ValueError(f"output {str(output)!r} is no local folder; prepare locally, then copy the folder there.")
    folder = Path(output).absolute()
    job = Job.plan(inputs, tokenizer, settings or PrepareSettings())
    finished = check_output(folder, job, overwrite)
    if finished is not None:
        log.info("%s is finished already: %s", folder, summary(finished))
    else:
        (folder / STATE).mkdir(parents=True, exist_ok=True)
    return folder, job, finished


def summary(manifest: Manifest) -> str:
    """One line on what a source holds."""
    return (
        f"{manifest.train.tokens:,} tokens in {manifest.train.documents:,} documents for training, "
        f"{manifest.validation.tokens:,} in {manifest.validation.documents:,} for validation, "
        f"{manifest.empty_documents:,} empty, {manifest.skipped_documents:,} skipped"
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_output(folder: Path, job: Job, overwrite: bool) -> Manifest | None:
    """What ``folder`` holds: the manifest of this very job when it is finished, None when there is work.

    Raises:
        ValueError: It holds another job or something else; nothing is deleted.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {str(folder)!r} is a file; name a new folder.")
    state = folder / STATE
    ours = (folder / FILE_NAME).is_file() or state.is_dir()
    if not ours and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"output {str(folder)!r} holds something else ({min(os.listdir(folder))!r}); nothing was deleted. "
            "Name a new or empty folder."
        )
    if overwrite or not ours:
        return None
    differences: list[str] = []
    manifest = None
    if (folder / FILE_NAME).is_file():
        manifest = Manifest.load(folder)
        differences = job.differences(manifest.settings, manifest.inputs)
    elif (state / "job.json").is_file():
        before = Job.load(state)
        differences = job.differences(before.identity(), before.inputs)
    if differences:
        what = "a finished" if manifest else "an unfinished"
        raise ValueError(
            f"output {str(folder)!r} holds {what} preparation that differs: {'; '.join(differences[:5])}. "
            "Name another --output, or pass --overwrite to start anew."
        )
    return manifest


@contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[int]:
    """Hold a folder, alone or with others; workers inherit the lock, so it is free when the last of them is gone."""
    lock = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    try:
        while True:
            try:
                fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(f"another `lit-cpt prepare` is at work in {str(folder)!r}; wait for it.") from None
                time.sleep(0.05)
        yield lock
    finally:
        os.close(lock)


def tokenise(job: Job, parts: Sequence[Part], folder: Path, workers: int, lock: int) -> TokenizerFacts:
    """Have a crew do what is unfinished of ``parts``, and the validation split if these are all of the job's.

    Returns:
        What it says about the tokenizer.
    """
    state = folder / STATE
    finished = [part for part in parts if part_folder(state, part).is_dir()]
    if finished:
        log.info("continuing: %d of %d parts are finished", len(finished), len(parts))
    progress = Progress(sum(part.bytes for part in parts), sum(part.bytes for part in finished))
    todo = len(parts) - len(finished)
    which = [part.index for part in parts] if len(parts) < len(job.parts) else None
    told = state / ("crew.log" if which is None else f"crew-{parts[0].index:06d}.log")
    with open(told, "wb") as errors:
        crew = start_crew(state, max(1, min(workers, todo)), lock, errors, which)
        try:
            facts = follow(crew, state, progress, told)
        except KeyboardInterrupt:
            log.warning("stopped; finished parts are kept in %s. Run the same command again to continue.", folder)
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(crew.pid, signal.SIGKILL)
            crew.wait()
            for pipe in (crew.stdin, crew.stdout):
                if pipe is not None:
                    pipe.close()
            progress.close()
    names = ["*.writing"] if which is None else [f"{part_folder(state, part).name}.writing" for part in parts]
    for unfinished in (path for name in names for path in state.glob(name)):
        shutil.rmtree(unfinished, ignore_errors=True)
    return facts


def start_crew(state: Path, workers: int, lock: int, errors: Any, which: list[int] | None
               ) -> "subprocess.Popen[bytes]":
    """Start the crew in a session of its own, so that Ctrl-C reaches us alone and it ends as a group."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DATA_OPTIMIZER_")}
    environment |= dict.fromkeys(ONE_THREAD, "1")
    environment |= {"TOKENIZERS_PARALLELISM": "false", "DISABLE_VERSION_CHECK": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "lit_cpt.prepare.crew", str(state), str(workers), json.dumps(which)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        pass_fds=(lock,),
        start_new_session=True,
    )


def follow(crew: "subprocess.Popen[bytes]", state: Path, progress: Progress, told: Path) -> TokenizerFacts:
    """Read the crew's events to their end; its first error is raised here."""
    facts = None
    assert crew.stdout is not None
    for line in crew.stdout:
        event = json.loads(line)
        if "error" in event:
            raise error_of(event)
        if "tokenizer" in event:
            facts = check_tokenizer(TokenizerFacts(**event["tokenizer"]), state)
        else:
            progress.add(**event)
    if crew.wait() or facts is None:
        last = told.read_text(errors="replace").strip().splitlines()[-5:]
        raise RuntimeError(f"the tokenising process ended with exit code {crew.returncode}: {' | '.join(last)}")
    return facts


def error_of(event: dict[str, Any]) -> Exception:
    """The exception an error event stands for."""
    if event["error"] == "OSError":
        message = f"{event['message']}; nothing was published. Mend it and run the same command again to continue."
        return OSError(event["errno"], message)
    return {"ValueError": ValueError}.get(event["error"], RuntimeError)(event["message"])


def check_tokenizer(facts: TokenizerFacts, state: Path) -> TokenizerFacts:
    """Remember the tokenizer of an unfinished run; ``ValueError`` when it was another one before."""
    path = state / "tokenizer.json"
    with locked(state):  # shards may come here at once
        if not path.exists():
            write_json(path, vars(facts))
    before = TokenizerFacts(**json.loads(path.read_bytes()))
    if before != facts:
        raise ValueError(
            f"tokenizer {facts.name!r} is {facts.fingerprint[:20]}..., and was {before.fingerprint[:20]}... when this "
            "preparation began. Name another --output, or pass --overwrite to start anew."
        )
    return facts
