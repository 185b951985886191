"""Sources that lie in an object store: where their chunks are kept on this node, and how many bytes that may take."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_cpt.manifest import VALIDATION
from lit_cpt.remote import RemoteSource, Storage, is_remote, stage_metadata
from lit_cpt.shelf import chunks_of
from lit_cpt.store import ChunkStore, check_budget
from lit_cpt.units import parse_bytes


@dataclass(frozen=True)
class Remote:
    """How sources in an object store are read.

    Args:
        cache: Folder on this node that holds what is being read, shared by its ranks.
        cache_bytes: What it may hold ("100GB"); a run whose open windows need more is refused at start.
        storage_options: Handed to litdata as they are, such as {endpoint_url: ..., aws_access_key_id: ...}.
        retry_seconds: How long a store that cannot be reached is tried again before the run stops.
        attempt_seconds: How long one attempt may take.
    """

    cache: str = "~/.cache/lit_cpt"
    cache_bytes: int | str = "100GB"
    storage_options: dict[str, Any] = field(default_factory=dict)
    retry_seconds: float = 600.0
    attempt_seconds: float = 60.0

    def __post_init__(self) -> None:
        parse_bytes(self.cache_bytes, "remote.cache_bytes")
        for name in ("retry_seconds", "attempt_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"remote.{name}={getattr(self, name)} must be a positive number of seconds.")

    @property
    def storage(self) -> Storage:
        """What the store's client needs."""
        return Storage(self.storage_options, self.retry_seconds, self.attempt_seconds)

    @property
    def folder(self) -> Path:
        """`cache` as a path."""
        return Path(self.cache).expanduser()

    def staged(self, sources: Mapping[str, str]) -> dict[str, str]:
        """Where each source's metadata lies: in its own folder, or in the cache for a remote one."""
        return {name: str(stage_metadata(source, self.folder, self.storage)) if is_remote(source) else source
                for name, source in sources.items()}


class Staging:
    """What the processes of a node need to keep the chunks of remote sources at hand.

    Args:
        sources: Source name to where it lies, local ones included.
        folders: Source name to the local folder with its metadata (`Remote.staged`).
        remote: Cache and client settings.
    """

    def __init__(self, sources: Mapping[str, str], folders: Mapping[str, str], remote: Remote) -> None:
        self.remote = remote
        self.sources: dict[str, RemoteSource] = {}
        for name, folder in folders.items():
            if folder == sources[name]:
                continue
            self.sources[name] = RemoteSource(sources[name], Path(folder))
            if (held_out := Path(folder) / VALIDATION).is_dir():
                self.sources[f"{name}/{VALIDATION}"] = RemoteSource(f"{sources[name]}/{VALIDATION}", held_out)

    def __contains__(self, name: object) -> bool:
        """Whether the source of this name is remote."""
        return name in self.sources

    def open(self) -> ChunkStore | None:
        """A store of chunks, for the process that calls this; None where nothing is remote."""
        budget = parse_bytes(self.remote.cache_bytes)
        return ChunkStore(self.sources, budget, self.remote.storage) if self.sources else None

    def check(self, names: Collection[str], shards: int, window: int) -> None:
        """Refuse a cache that is too small for the open windows of this node.

        Args:
            names: Sources that the stream reads.
            shards: Shards that the ranks of this node read.
            window: Chunks in a window.

        Raises:
            ValueError: It is; the message says how much is needed.
        """
        sizes = {name: [chunk.bytes for chunk in chunks_of(self.sources[name].folder)]
                 for name in names if name in self}
        check_budget(parse_bytes(self.remote.cache_bytes), sizes, shards, window)
