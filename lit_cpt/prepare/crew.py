"""The processes that tokenise: `python -m lit_cpt.prepare.crew STATE WORKERS PARTS`, started by `prepare_source`.

The crew is a process of its own because litdata's `optimize` takes over the signal handlers and the start
method of whoever calls it. It imports torch and loads the tokenizer once, then forks a process per part.
It tells its progress as lines of JSON on standard output and ends, with all it started, when standard
input closes: nothing outlives a killed run.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch

from lit_cpt.manifest import write_json
from lit_cpt.prepare.job import Job, part_folder
from lit_cpt.prepare.parts import Part
from lit_cpt.prepare.record import PartRecord
from lit_cpt.prepare.stream import TokenStream, UnreadableInput
from lit_cpt.prepare.tokens import Encoder, dtype_of, load_tokenizer, tokenizer_facts

SPOOL = "validation.tokens"
RECORD = "record.json"
SPOOL_READ = 1 << 20  # tokens


@dataclass(frozen=True)
class Events:
    """Lines of JSON to the process that started the crew; each fits one atomic write to a pipe."""

    descriptor: int

    def emit(self, **event: Any) -> None:
        """Send one event."""
        os.write(self.descriptor, json.dumps(event).encode() + b"\n")

    def error(self, kind: str, message: str, errno: int = 0) -> None:
        """Say why the run cannot go on; the first error counts."""
        self.emit(error=kind, message=message.encode()[:1800].decode(errors="ignore"), errno=errno)


@dataclass(frozen=True)
class Crew:
    """What every process of the crew shares.

    Args:
        job: The plan.
        state: Folder of the unfinished work.
        which: The parts to do; None for all of them and, after them, the validation split.
        encoder: The tokenizer, loaded once and inherited by every fork.
        dtype: Of the tokens on disk.
        events: Where progress goes.
    """

    job: Job
    state: Path
    which: list[int] | None
    encoder: Encoder
    dtype: str
    events: Events

    def run(self, workers: int) -> bool:
        """Do every unfinished part, then the validation split if they are all; False when a process failed."""
        parts = [part for part in self.job.parts if self.which is None or part.index in self.which]
        tasks = [partial(self.write_part, part) for part in parts if not part_folder(self.state, part).is_dir()]
        last = [self.write_validation] if self.which is None else []
        return self.run_all(tasks, workers) and self.run_all(last, 1)

    def run_all(self, tasks: list[Any], workers: int) -> bool:
        """Run each task in a forked process of its own, ``workers`` at a time."""
        fork = multiprocessing.get_context("fork")
        waiting = deque(tasks)
        live: list[ForkProcess] = []
        while waiting or live:
            while waiting and len(live) < workers:
                process = fork.Process(target=self.guarded, args=(waiting.popleft(),))
                process.start()
                live.append(process)
            if sys.stdin.fileno() in wait([*(process.sentinel for process in live), sys.stdin.fileno()]):
                os.killpg(0, signal.SIGKILL)  # whoever started the crew is gone
            for process in [process for process in live if not process.is_alive()]:
                live.remove(process)
                if process.exitcode:
                    self.events.error("RuntimeError", f"a worker ended with exit code {process.exitcode}")
                    return False
        return True

    def guarded(self, task: Any) -> None:
        """Run ``task``; an error is told as an event, in the words of its cause."""
        try:
            task()
        except Exception as error:
            # litdata hands on the traceback of its worker as text; a full disk must still read as one.
            found = re.findall(r"OSError: \[Errno (\d+)\] ([^\n]*)", f"OSError: {error}\n{error}")
            if found:
                self.events.error("OSError", found[-1][1].rstrip("."), int(found[-1][0]))
            else:
                self.events.error("RuntimeError", str(error)[-1500:])
            traceback.print_exc()
            os._exit(1)  # an ordinary end would wait for whatever litdata left running

    def write_part(self, part: Part) -> None:
        """Tokenise one part into its folder, which appears only when it is whole."""
        folder = part_folder(self.state, part)
        writing = empty_folder(folder.with_name(folder.name + ".writing"))
        self.optimize(partial(part_tokens, part=part, crew=self, folder=writing), writing)
        told = json.loads((writing / RECORD).read_bytes())["train_tokens"] if (writing / RECORD).is_file() else -1
        self.check(writing, told)
        os.rename(writing, folder)

    def check(self, folder: Path, told: int) -> None:
        """Refuse chunks that hold less than the ``told`` tokens: litdata misses a worker that failed at its end."""
        chunks = json.loads((folder / "index.json").read_bytes())["chunks"]
        missing = told - sum(chunk["dim"] for chunk in chunks)
        if told >= 0 and missing > 0:  # was it the disk? then this write fails as litdata's did
            (folder / "probe").write_bytes(bytes(missing * np.dtype(self.dtype).itemsize))
        if missing:
            raise RuntimeError("a tokenising process was killed; is there enough memory? Fewer --workers need less.")

    def write_validation(self) -> None:
        """Gather the validation tokens of all parts, in order, in one dataset."""
        folder = self.state / "validation"
        spools = [part_folder(self.state, part) / SPOOL for part in self.job.parts]
        if folder.is_dir() or not any(spool.stat().st_size for spool in spools):
            return
        writing = empty_folder(folder.with_name("validation.writing"))
        self.optimize(partial(spooled_tokens, spools=spools, dtype=self.dtype), writing)
        self.check(writing, sum(spool.stat().st_size for spool in spools) // np.dtype(self.dtype).itemsize)
        os.rename(writing, folder)

    def optimize(self, tokens: Any, folder: Path) -> None:
        """Write what the generator function ``tokens`` yields as litdata chunks in ``folder``."""
        for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
            os.environ[name] = str(folder / name.lower())  # litdata's own choice is shared by all of a machine
        litdata.optimize(
            tokens,
            inputs=[0],
            output_dir=str(folder),
            chunk_bytes=self.job.settings.chunk_bytes,
            num_workers=1,
            item_loader=litdata.TokensLoader(),
            start_method="fork",
            keep_data_ordered=False,  # True starts one more process, which a failed worker waits for in vain
            reorder_files=False,
            verbose=False,
        )
        for name in ("data_optimizer_cache_folder", "data_optimizer_data_cache_folder"):
            shutil.rmtree(folder / name, ignore_errors=True)


def empty_folder(folder: Path) -> Path:
    """``folder``, new and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def part_tokens(_: int, part: Part, crew: Crew, folder: Path) -> Iterator[torch.Tensor]:
    """Train tokens of one part; spools its validation tokens and leaves its record in ``folder``."""
    stream = TokenStream(part, crew.job.settings, crew.encoder, np.dtype(crew.dtype))
    done = PartRecord()
    try:
        with open(folder / SPOOL, "wb") as spool:
            for train, validation in stream:
                spool.write(validation.tobytes())
                if len(train):
                    yield torch.from_numpy(train)
                now = stream.record
                crew.events.emit(
                    bytes=now.bytes - done.bytes,
                    documents=now.documents - done.documents,
                    tokens=now.tokens - done.tokens,
                )
                done = PartRecord(**asdict(now))
    except UnreadableInput as error:
        crew.events.error("ValueError", f"{error}. Mend it, or pass over such records with --on-error skip.")
        raise
    write_json(folder / RECORD, asdict(stream.record))


def spooled_tokens(_: int, spools: list[Path], dtype: str) -> Iterator[torch.Tensor]:
    """Tokens of the spool files, one after the other."""
    for spool in spools:
        with open(spool, "rb") as file:
            while len(tokens := np.fromfile(file, dtype=dtype, count=SPOOL_READ)):
                yield torch.from_numpy(tokens)


def main(state: Path, workers: int, which: list[int] | None) -> int:
    """Run the crew; its events go where standard output went."""
    events = Events(os.dup(1))
    os.dup2(2, 1)  # whatever a library prints joins standard error
    job = Job.load(state)
    if any(piece.format == "parquet" for part in job.parts for piece in part.pieces):
        import pyarrow.parquet  # noqa: F401 - once here, not once per fork
    try:
        tokenizer = load_tokenizer(job.tokenizer)
        facts = tokenizer_facts(tokenizer, job.tokenizer, job.settings.bos)
    except ValueError as error:
        events.error("ValueError", str(error))
        return 1
    events.emit(tokenizer=asdict(facts))
    crew = Crew(job, state, which, Encoder(tokenizer, facts), dtype_of(facts.vocabulary), events)
    return 0 if crew.run(workers) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])))
