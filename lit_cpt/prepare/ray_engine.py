"""Preparation by a Ray cluster: a task per shard, tried again where its machine fails, and then the merge.

A task does what `lit-cpt prepare --shard` does. Ray carries nothing but the shard's number: inputs, tokenizer and
output lie on a disk that all nodes share. Ray is imported here alone, when an engine starts.
"""

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lit_cpt.manifest import Manifest
from lit_cpt.prepare.job import STATE, Job, part_folder
from lit_cpt.prepare.parts import Part, describe
from lit_cpt.prepare.progress import Progress
from lit_cpt.prepare.publish import remove
from lit_cpt.prepare.record import PartRecord
from lit_cpt.prepare.run import begin, locked, prepare_shard, prepare_source
from lit_cpt.prepare.settings import PrepareSettings
from lit_cpt.prepare.shard import Shard

log = logging.getLogger(__name__)
RETRIES = 3  # of a task whose worker or node died; what it had finished is kept
TURNS = 4  # shards for each task that runs at a time, so that a node that is slow or comes late does fewer
LOOK_EVERY_SECONDS = 1.0
CONNECT_SECONDS = 10.0
END_SECONDS = 10.0
SEEN_WITHIN_SECONDS = 90.0  # NFS by default shows a new folder within 60


@dataclass(frozen=True)
class RayEngine:
    """Prepares a source on the nodes of a Ray cluster.

    Args:
        address: Of the cluster, as ``ray.init`` takes it; ``auto`` is the one that this machine belongs to, or what
            RAY_ADDRESS names. Where Ray is connected already, that cluster is used.
        shards: Tasks to cut the work into; by default four for each that can run at a time, but not more than parts.

    Raises:
        ValueError: ``shards`` is less than one.
    """

    address: str = "auto"
    shards: int | None = None

    def __post_init__(self) -> None:
        if self.shards is not None and self.shards < 1:
            raise ValueError(f"shards={self.shards} is too few; give 1 or more, or nothing for some per core.")

    def prepare(
        self,
        inputs: list[str],
        tokenizer: str,
        output: str | Path,
        settings: PrepareSettings | None = None,
        workers: int | None = None,
        overwrite: bool = False,
    ) -> Manifest:
        """What `prepare_source` does, with the same bytes as a result.

        Args:
            inputs: As for `prepare_source`; all nodes have to see them under the same paths.
            tokenizer: As for `prepare_source`; a folder has to be seen by all nodes.
            output: A folder that all nodes share under the same path.
            settings: As for `prepare_source`.
            workers: Processes of each task, and the cores it takes; None for one.
            overwrite: As for `prepare_source`.

        Returns:
            The manifest of the finished source.

        Raises:
            ValueError: As for `prepare_source`, or Ray or its cluster is missing, or a node does not see the files.
            RuntimeError: A task was lost more often than it is retried, or as for `prepare_source`.
            OSError: As for `prepare_source`.
            KeyboardInterrupt: Stopped by Ctrl-C; finished parts are kept.
        """
        ray = import_ray()
        folder, job, finished = begin(inputs, tokenizer, output, settings, workers, overwrite)
        if finished is not None:
            return finished
        with connected(ray, self.address):
            most = at_a_time(ray, workers or 1)
            with locked(folder):
                if overwrite:
                    remove(folder)
                    (folder / STATE).mkdir()
                job.save(folder / STATE)
            shards = deal(job, folder / STATE, self.shards or TURNS * most)
            if shards:
                run_tasks(ray, shards, job, folder, workers or 1)
        return prepare_source(inputs, tokenizer, folder, settings, workers, merge=True)


def import_ray() -> Any:
    """The module.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError('engine=ray needs Ray, which is not installed: pip install "lit-cpt[ray]", here and on every '
                         "node of the cluster; or prepare with --engine local.") from None
    return ray


@contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Be a driver of the cluster; one that the caller has connected stays so.

    Raises:
        ValueError: No cluster answers, or it refuses.
    """
    if ray.is_initialized():
        yield
        return
    try:
        check_answers(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # Ray has no one class for it: ConnectionError, ValueError, RuntimeError ...
        told = " ".join(str(error).split())
        raise ValueError(f"no Ray cluster can be used at address={address!r} ({told}). Start one with `ray start "
                         "--head`, or name one that runs with --address HOST:PORT.") from None
    try:
        yield
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Knock at ``HOST:PORT``: Ray itself tries for minutes where nobody is.

    Raises:
        OSError: Nobody is there.
        ValueError: The port is no number.
    """
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), CONNECT_SECONDS).close()


def at_a_time(ray: Any, workers: int) -> int:
    """Tasks of ``workers`` cores each that the cluster can run at a time, and one at least.

    Raises:
        ValueError: No node has so many cores, so that a task would wait for ever.
    """
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    if 0 < max(cores) < workers:  # a head without cores has its nodes started as they are needed
        raise ValueError(f"workers={workers} are more than any node of the Ray cluster has cores ({max(cores)}); a "
                         f"task runs on one node: give --workers {max(cores)} or fewer.")
    log.info("Ray: nodes %d, cores %d", len(cores), sum(cores))
    return max(1, sum(count // workers for count in cores))


def deal(job: Job, state: Path, most: int) -> list[Shard]:
    """The shards that have work left, of ``most`` or as many as there are parts."""
    count = max(1, min(most, len(job.parts)))
    shards = [Shard(index, count) for index in range(count)]
    return [shard for shard in shards if unfinished(shard.of(job.parts), state)]


def unfinished(parts: list[Part], state: Path) -> list[Part]:
    """Those of ``parts`` that are still to be done."""
    return [part for part in parts if not part_folder(state, part).is_dir()]


def run_tasks(ray: Any, shards: list[Shard], job: Job, folder: Path, workers: int) -> None:
    """Have the cluster do ``shards``; the first error is raised here as without Ray, and ends the others."""
    digest = digest_of(folder / STATE)
    task = ray.remote(num_cpus=workers, max_retries=RETRIES)(do_shard)
    tasks = [task.remote(shard, str(folder), digest, workers) for shard in shards]
    log.info("Ray: tasks %d, cores each %d, parts %d", len(tasks), workers, len(job.parts))
    try:
        follow(ray, tasks, job, folder / STATE)
    except KeyboardInterrupt:
        log.warning("stopped; finished parts are kept in %s. Run the same command again to continue.", folder)
        raise
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        told = " ".join(str(error).split())
        raise RuntimeError(f"a task was lost, and again in each of {RETRIES} retries ({told}). Finished parts are "
                           f"kept in {folder}; run the same command again to continue.") from None
    finally:
        for left in tasks:  # none of those that have ended minds
            ray.cancel(left, force=True)
        ray.wait(tasks, num_returns=len(tasks), timeout=END_SECONDS)


def follow(ray: Any, tasks: list[Any], job: Job, state: Path) -> None:
    """Wait for all tasks; what they have finished is read from the shared folder."""
    todo = unfinished(list(job.parts), state)
    total = sum(part.bytes for part in job.parts)
    with closing(Progress(total, total - sum(part.bytes for part in todo))) as progress:
        last = time.monotonic()
        while tasks or (todo and time.monotonic() - last < SEEN_WITHIN_SECONDS):
            if tasks:
                ended, tasks = ray.wait(tasks, timeout=LOOK_EVERY_SECONDS)
                ray.get(ended)
                last = time.monotonic()
            else:
                time.sleep(LOOK_EVERY_SECONDS)
            left = unfinished(todo, state)
            for part in set(todo) - set(left):
                done = PartRecord(**json.loads((part_folder(state, part) / "record.json").read_bytes()))
                progress.add(done.bytes, done.documents, done.tokens)
            todo = left


def digest_of(state: Path) -> str:
    """Of the plan that lies in the shared folder; empty where there is none."""
    plan = state / "job.json"
    return hashlib.sha256(plan.read_bytes()).hexdigest() if plan.is_file() else ""


def do_shard(shard: Shard, folder: str, digest: str, workers: int) -> None:
    """A task: do one shard of the plan whose ``digest`` is given, as `lit-cpt prepare --shard` does."""
    job = seen_from_here(Path(folder) / STATE, digest)
    prepare_shard([file.path for file in job.inputs], job.tokenizer, folder, shard, job.settings, workers)


def seen_from_here(state: Path, digest: str) -> Job:
    """The plan, read on this node, which sees all that it needs.

    Raises:
        ValueError: Output, tokenizer or an input is not what the machine that began sees.
    """
    node, cure = socket.gethostname(), "all nodes have to share it on one disk, under the same path."
    if digest_of(state) != digest:
        raise ValueError(f"node {node!r} does not see what was begun in output {str(state.parent)!r}: {cure}")
    job = Job.load(state)
    if job.tokenizer_files is not None and not os.path.isdir(job.tokenizer):
        raise ValueError(f"node {node!r} does not see tokenizer {job.tokenizer!r}: {cure}")
    for file in job.inputs:
        if not os.path.isfile(file.path):
            raise ValueError(f"node {node!r} does not see input {file.path!r}: {cure}")
        if (found := describe(file.path)) != file:
            raise ValueError(f"node {node!r} sees another file at input {file.path!r} ({found.bytes:,} bytes, not "
                             f"{file.bytes:,}, or of another time): {cure}")
    return job
