"""Sources in object stores: which folders are remote, how their files come here, and what is worth another try.

litdata's downloaders do the talking, for every store they know; when to try again is decided here, because
theirs give up after two seconds of "slow down" (obstore) or hardly ever (boto3).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_cpt.manifest import FILE_NAME as MANIFEST
from lit_cpt.manifest import Manifest
from lit_cpt.shelf import INDEX, is_used

FIRST_DELAY, LONGEST_DELAY = 0.1, 10.0  # seconds between tries
QUIET_SECONDS = 5.0  # of trying again before the log says so
LEFTOVER_SECONDS = 86_400.0  # after which a staging folder belongs to a process that died
BOTO3 = ("s3://", "r2://")
BUSY_STATUS = {408, 425, 429}
BUSY_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded",
              "RequestTimeout", "InternalError", "ServiceUnavailable"}
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError",
                  "_CredentialsConfigurationError"}
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

log = logging.getLogger(__name__)


class Unreachable(OSError):
    """A remote file that cannot be had: the store refused it, or did not answer for ``retry_seconds``.

    Attributes:
        refused: Whether another try would not have helped.
        missing: Whether it was refused because there is no such file, or no such bucket.
    """

    refused = missing = False


@dataclass(frozen=True)
class Storage:
    """How to reach the object stores.

    Args:
        options: litdata's ``storage_options``, handed to the store's client: ``endpoint_url`` and
            ``aws_access_key_id`` for S3, for example. Without them the client looks where it always does.
        retry_seconds: How long a file is tried for before the run stops.
        attempt_seconds: After which a request that has not ended is begun anew, where it broke off.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    retry_seconds: float = 600.0
    attempt_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("retry_seconds", "attempt_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0: it counts seconds.")


@dataclass(frozen=True)
class RemoteSource:
    """A remote folder of chunks, and the local folder that stands for it."""

    url: str
    folder: Path


def is_remote(folder: str | Path) -> bool:
    """Whether a folder lies in a store that litdata downloads from: ``s3://...``, ``gs://...``, ``local:/...``.

    >>> is_remote("s3://bucket/web"), is_remote("/data/web")
    (True, False)
    """
    if ":" not in str(folder):
        return False  # without asking litdata, which takes seconds to import
    from litdata.streaming.downloader import _DOWNLOADERS

    return str(folder).startswith(tuple(_DOWNLOADERS))


def stage_metadata(url: str, cache: Path | str, storage: Storage) -> Path:
    """Bring a prepared source's manifest and indexes here, whole or not at all.

    The folder's name holds a digest of them: content that changed lies in another folder, so processes that
    still read the former one are not disturbed, and a former one that nobody reads any more is removed.

    Args:
        url: The source as `lit-cpt prepare` wrote it, in a store.
        cache: Folder on this node; any number of its processes may share it and call at once.
        storage: How to reach the store.

    Returns:
        A folder like the source itself, without its chunks.

    Raises:
        Unreachable: The store refuses, or ``url`` is no prepared source.
        ValueError: The source is damaged or compressed.
    """
    url = url.rstrip("/")
    home = Path(cache) / name_of(url, storage)
    home.mkdir(parents=True, exist_ok=True)
    fetcher = Fetcher(url, storage)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=home) as name:
        staging = Path(name) / "source"
        staging.mkdir()
        digest = hashlib.sha256()
        for file in fetched_metadata(fetcher, staging):
            digest.update(file.read_bytes())
        folder = home / digest.hexdigest()[:16]
        try:
            staging.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else it was here before, or another process was faster
    remove_former(home, folder)
    return folder


def fetched_metadata(fetcher: Fetcher, staging: Path) -> Iterator[Path]:
    """The metadata files of a source, one by one as they come into ``staging``."""
    for name in (MANIFEST, INDEX):
        fetcher.fetch(name, staging / name)
        yield staging / name
    check_uncompressed(staging / INDEX, fetcher.url)
    if Manifest.load(staging).validation.chunks:
        (staging / "validation").mkdir()
        fetcher.fetch(f"validation/{INDEX}", staging / "validation" / INDEX)
        yield staging / "validation" / INDEX


def check_uncompressed(index: Path, url: str) -> None:
    """Refuse chunks that cannot be read where they lie."""
    config = json.loads(index.read_bytes())["config"]
    for setting in ("compression", "encryption"):
        if config.get(setting):
            raise ValueError(f"{url} was written with {setting}={config[setting]!r}; its chunks are mapped into memory "
                             f"as they are. Prepare it again without {setting}.")


def name_of(url: str, storage: Storage) -> str:
    """A folder name for ``url``: its last part, made safe, and a digest that tells equal ones apart."""
    place = f"{storage.options.get('endpoint_url', '')} {url}"
    last = re.sub(r"[^A-Za-z0-9._-]", "_", url.rsplit("/", 1)[-1].rsplit(":", 1)[-1])
    return f"{last}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def remove_former(home: Path, current: Path) -> None:
    """Delete what ``home`` holds of former content that no process reads, and what crashed processes left."""
    for folder in home.iterdir():
        if folder.name.startswith(".staging-"):
            try:
                stale = time.time() - folder.stat().st_mtime > LEFTOVER_SECONDS
            except FileNotFoundError:
                continue
        else:
            stale = folder != current and not any(is_used(place) for place in (folder, folder / "validation"))
        if stale:
            log.info("removing %s: not the content of the source any more", folder)
            shutil.rmtree(folder, ignore_errors=True)


class Fetcher:
    """Brings files of one remote folder here, trying again for as long as that may help.

    Several threads may use one; a forked process makes its own.

    Args:
        url: The remote folder.
        storage: How to reach it.
        chunks: Whether it fetches chunks. Other files are fetched before workers fork, and obstore, the
            faster client, does not survive a fork.
    """

    def __init__(self, url: str, storage: Storage, chunks: bool = False) -> None:
        self.url, self.storage, self.chunks = url.rstrip("/"), storage, chunks
        self._downloader: Any = None
        self._lock = threading.Lock()

    def fetch(self, name: str, path: Path, size: int | None = None, stop: threading.Event | None = None) -> None:
        """Write the file ``name`` to ``path``.

        Args:
            name: Of the file in the remote folder.
            path: Where it shall lie; whoever calls has it for itself.
            size: Bytes it must have.
            stop: Ends the trying once set.

        Raises:
            Unreachable: At once for what another try cannot mend, or after ``retry_seconds``.
        """
        insist(lambda: self._attempt(name, path, size), f"{self.url}/{name}", self.storage, self._renew, stop)

    def _renew(self) -> None:
        """Let the next attempt make a client."""
        self._downloader = None

    def _attempt(self, name: str, path: Path, size: int | None) -> Exception | None:
        """Try once; what went wrong, or None."""
        path.unlink(missing_ok=True)
        try:
            self._download(f"{self.url}/{name}", path)
            found = path.stat().st_size
        except FileNotFoundError as error:  # litdata swallows it, and that is how a missing object ends
            return ConnectionError(str(error)) if self.url.startswith("hf://") else FileNotFoundError("no such file")
        except Exception as error:
            return error
        if size is None or found == size:
            return None
        wrong = f"it has {found} bytes, the index says {size}"
        return ConnectionError(wrong) if found < size else ValueError(wrong)

    def _download(self, url: str, path: Path) -> None:
        from litdata.streaming.downloader import Downloader

        with self._lock:
            downloader = self._downloader = self._downloader or connect(self.url, path.parent, self.storage)
        if self.chunks or type(downloader).download_fileobj is Downloader.download_fileobj:
            downloader.download_file(url, str(path))
        else:
            with open(path, "wb") as file:
                downloader.download_fileobj(url, file)


def insist(attempt: Callable[[], Exception | None], name: str, storage: Storage, renew: Callable[[], None],
           stop: threading.Event | None = None) -> None:
    """Make attempts for as long as that may help.

    Args:
        attempt: Tells what went wrong, None if nothing did.
        name: Of the file, for the log.
        storage: How long to go on.
        renew: Called once before a refusal is believed: a new client reads credentials anew, and they may rotate.
        stop: Ends the trying once set.

    Raises:
        Unreachable: At once for what another try cannot mend, or after ``retry_seconds``.
    """
    begun, delay, told, renewed = time.monotonic(), FIRST_DELAY, False, False
    stop = stop or threading.Event()
    while (error := attempt()) is not None:
        seconds = time.monotonic() - begun
        cure = refusal(error)
        if cure and not renewed:
            renewed = True
            renew()
            continue
        if cure:
            refused = Unreachable(f"{name} was refused: {in_short(error)}. {cure}")
            refused.refused, refused.missing = True, is_missing(error)
            raise refused from error
        if seconds + delay > storage.retry_seconds or stop.is_set():
            raise Unreachable(f"{name} could not be had for {seconds:.0f} s: {in_short(error)}. Is the "
                              "store reachable from this node? To wait longer, raise retry_seconds.") from error
        if seconds > QUIET_SECONDS and not told:
            told = True
            log.warning("%s: store unreachable for %.0f s (%s), retrying for up to %.0f s", name, seconds,
                        in_short(error), storage.retry_seconds)
        stop.wait(delay * random.uniform(0.5, 1.0))
        delay = min(2 * delay, LONGEST_DELAY)
    if told:
        log.warning("%s: reachable again after %.0f s", name, time.monotonic() - begun)


def connect(url: str, folder: Path, storage: Storage) -> Any:
    """The downloader that litdata has for ``url``, without retries of its own where that can be said.

    It gets no list of chunks: litdata looks sizes up in it by base name, which merged parts share.
    """
    from litdata.streaming import downloader

    options = client_options(url, storage, 1)  # boto3 begins a broken body anew, five times
    if url.startswith(BOTO3):
        client: dict[str, Any] = downloader._OBSTORE_CLIENT_OPTIONS
        client["timeout"] = f"{storage.attempt_seconds * 1000:.0f}ms"
        endpoint = options.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(
            "AWS_ENDPOINT_URL") or ""
        if endpoint.startswith("http://"):
            client["allow_http"] = True  # obstore refuses plain http otherwise
    return downloader.get_downloader(url, str(folder), [], options, {})


def client_options(url: str, storage: Storage, attempts: int) -> dict[str, Any]:
    """What a client of ``url`` is made with: each request ends soon and is made so often."""
    options = dict(storage.options)
    if url.startswith(BOTO3):
        from botocore.config import Config

        given = options.get("config") or Config()
        mine = Config(connect_timeout=min(10.0, storage.attempt_seconds), read_timeout=storage.attempt_seconds / 5,
                      retries={"total_max_attempts": attempts})
        options["config"] = mine.merge(Config(**given) if isinstance(given, Mapping) else given)
    return options


def refusal(error: Exception) -> str | None:
    """How to mend what another try cannot; None for an error that may pass."""
    status, code = status_of(error)
    if status >= 500 or status in BUSY_STATUS or code in BUSY_CODES:
        return None
    if status in (400, 401, 403) or type(error).__name__ in NO_CREDENTIALS:
        return ("Renew the credentials if they have expired, and check what they may do with this bucket (the "
                "environment of this node, or the storage options).")
    if is_missing(error):
        return (f"Check bucket, prefix and endpoint; a source must lie there whole, with its {MANIFEST}, as `lit-cpt "
                "prepare` wrote it.")
    if isinstance(error, OSError) and error.errno in DISK:
        return "Make room on this node's disk or make the folder writable; a smaller cache budget needs less."
    if status or isinstance(error, (ImportError, TypeError, ValueError, LookupError, AttributeError)):
        return "Check the URL and the storage options; if the source was written anew, start again to read it."
    return None


def is_missing(error: Exception) -> bool:
    """Whether there is no such file or bucket."""
    return status_of(error)[0] == 404 or isinstance(error, FileNotFoundError)


def status_of(error: Exception) -> tuple[int, str]:
    """HTTP status and the store's code of any client's error; 0 and "" where there are none."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), response.get("Error", {}).get("Code", "")
    for holder in (error, response):  # Azure and Google; Hugging Face
        for name in ("status_code", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return int(value), ""
    status = re.search(r"status code: (\d{3})", str(error))  # obstore
    code = re.search(r"<Code>(\w+)</Code>", str(error))
    return int(status.group(1)) if status else 0, code.group(1) if code else ""


def in_short(error: Exception) -> str:
    """An error on one line of at most 300 characters."""
    return f"{type(error).__name__}: " + " ".join(str(error).split("Debug source")[0].split())[:280]
