"""A folder of an object store to write to: files go up, come down and are deleted, through faults that pass.

litdata's providers do the talking; `lit_cpt.remote` decides when another try is worth it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lit_cpt.remote import Storage, Unreachable, client_options, insist

SCHEMES = ("s3", "r2", "gs")  # those that litdata writes to
PART_ATTEMPTS = 5  # of one request, before a file of perhaps thousands of parts is begun anew


class ObjectFolder:
    """Files under one URL; what is put is there whole or not at all, for a store has no half files.

    Several threads may use one.

    Args:
        url: ``s3://bucket/folder``, ``r2://...`` or ``gs://...``.
        storage: How to reach it. Large files go in parts, as boto3 does by default.

    Raises:
        ValueError: ``url`` is none of these, or names no folder in a bucket.
    """

    def __init__(self, url: str, storage: Storage) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.netloc or not parts.path.strip("/"):
            raise ValueError(f"{url!r} is no folder in a store that can be written to: give "
                             f"{', '.join(f'{one}://BUCKET/FOLDER' for one in SCHEMES)}.")
        self.url, self.storage = url.rstrip("/"), storage
        self._provider: Any = None

    def put(self, path: Path, name: str) -> None:
        """Let the file ``name`` hold what ``path`` holds.

        Raises:
            Unreachable: The store refused it, or did not answer for ``retry_seconds``.
        """
        self._do(lambda provider, url: provider.upload_file(str(path), url), name)

    def put_text(self, text: str, name: str) -> None:
        """Let the file ``name`` hold ``text``; see `put`."""
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            self.put(Path(file.name), name)

    def get(self, name: str, path: Path, size: int | None = None) -> None:
        """Write the file ``name``, of ``size`` bytes, to ``path``; see `put`."""
        def download(provider: Any, url: str) -> None:
            provider.download_file(url, str(path))
            if size is not None and (found := path.stat().st_size) != size:
                raise ValueError(f"it has {found} bytes, not {size}")

        self._do(download, name)

    def get_text(self, name: str) -> str | None:
        """What the file ``name`` holds; None where there is none. See `put`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text"
            try:
                self.get(name, path)
            except Unreachable as error:
                if error.missing:
                    return None
                raise
            return path.read_text(encoding="utf-8")

    def delete(self, name: str) -> None:
        """Delete what begins with ``name``, a file or a folder; see `put`."""
        self._do(lambda provider, url: provider.delete_file_or_directory(url), name)

    def _do(self, deed: Callable[[Any, str], object], name: str) -> None:
        def attempt() -> Exception | None:
            try:
                self._provider = self._provider or provider_of(self.url, self.storage)
                deed(self._provider, f"{self.url}/{name}")
            except Exception as error:  # boto3 hides the store's answer in an error of its own
                hidden = error.__context__ if type(error).__name__ == "S3UploadFailedError" else None
                return hidden if isinstance(hidden, Exception) else error
            return None

        insist(attempt, f"{self.url}/{name}", self.storage, self._renew)

    def _renew(self) -> None:
        self._provider = None


def provider_of(url: str, storage: Storage) -> Any:
    """What litdata reads and writes ``url`` with."""
    from litdata.streaming import fs_provider

    kinds = {"s3": fs_provider.S3FsProvider, "r2": fs_provider.R2FsProvider, "gs": fs_provider.GCPFsProvider}
    return kinds[urlsplit(url).scheme](client_options(url, storage, PART_ATTEMPTS))
