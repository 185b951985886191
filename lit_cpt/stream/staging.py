"""Sources that lie in an object store: where their chunks are kept on this node, and how many bytes that may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_cpt.units import parse_bytes

if TYPE_CHECKING:
    from lit_cpt.remote import Storage
    from lit_cpt.store import ChunkStore


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
        from lit_cpt.remote import Storage

        return Storage(self.storage_options, self.retry_seconds, self.attempt_seconds)

    @property
    def folder(self) -> Path:
        """`cache` as a path."""
        return Path(self.cache).expanduser()

    def staged(self, sources: Mapping[str, str]) -> dict[str, str]:
        """Where each source's metadata lies: in its own folder, or in the cache for a remote one."""
        if not any("://" in source or source.startswith("local:") for source in sources.values()):
            return dict(sources)
        from lit_cpt.remote import is_remote, stage_metadata

        return {name: str(stage_metadata(source, self.folder, self.storage)) if is_remote(source) else source
                for name, source in sources.items()}


@dataclass(frozen=True)
class Staging:
    """What each process of a stream needs to keep the chunks of remote sources at hand.

    Args:
        sources: Source name to (URL, local folder with its metadata), remote ones only.
        remote: Cache and client settings.
    """

    sources: Mapping[str, tuple[str, str]]
    remote: Remote

    def open(self) -> ChunkStore:
        """The store of chunks, for the process that calls this."""
        from lit_cpt.store import ChunkStore

        return ChunkStore(self.sources, parse_bytes(self.remote.cache_bytes), self.remote.storage)
