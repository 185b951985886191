"""A hub on the loopback: serves folders as dataset repositories, over the addresses that huggingface_hub asks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 50  # files that one answer tells of


def git_hash(content: bytes) -> str:
    """The hash by which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """What is served, and what was asked.

    Args:
        revisions: (repository, revision) -> folder.
    """

    def __init__(self, revisions: dict[tuple[str, str], Path]) -> None:
        self.revisions = revisions
        self.fails: dict[str, list[int]] = {}  # part of an address -> statuses to answer with, in turn
        self.cuts: dict[str, int] = {}  # part of an address -> answers that end in the middle, in turn
        self.lies: set[str] = set()  # paths whose sha256 is told wrongly
        self.asked: list[str] = []

    def commit(self, repository: str, revision: str) -> str:
        """The commit that a revision names."""
        return hashlib.sha1(f"{repository} {revision}".encode()).hexdigest()

    def folder(self, repository: str, revision: str) -> Path | None:
        """The files of a revision or commit."""
        for (name, known), folder in self.revisions.items():
            if name == repository and revision in (known, self.commit(name, known)):
                return folder
        return None


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            part = next((part for part, left in self.hub.cuts.items() if part in self.path and left), None)
            self.wfile.write(body if part is None else body[: len(body) // 2])
            if part is not None:
                self.hub.cuts[part] -= 1
                self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        for part, statuses in self.hub.fails.items():
            if part in path and statuses:
                status = statuses.pop(0)
                codes = {401: "GatedRepo", 404: "RepoNotFound"}
                return self.answer(status, b"no", **({"X_Error_Code": codes[status]} if status in codes else {}))
        parts = path.strip("/").split("/")
        if len(parts) < 5:
            return self.answer(404, b"")
        if parts[:2] == ["api", "datasets"]:
            return self.describe("/".join(parts[2:4]), parts[4], "/".join(parts[5:]))
        repository = "/".join(parts[1:3])
        return self.file(repository, parts[4], "/".join(parts[5:]))

    def describe(self, repository: str, what: str, revision: str) -> None:
        folder = self.hub.folder(repository, revision)
        if folder is None:
            known = any(name == repository for name, _ in self.hub.revisions)
            return self.answer(404, b"", X_Error_Code="RevisionNotFound" if known else "RepoNotFound")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if what == "revision":
            body: Any = {"id": repository, "sha": self.hub.commit(repository, revision), "private": False,
                         "siblings": [{"rfilename": path.relative_to(folder).as_posix()} for path in files]}
        else:
            return self.page([self.entry(path, folder) for path in files])
        return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def page(self, entries: list[dict[str, Any]]) -> None:
        """Some of the files, and where the others are told of."""
        address = urlsplit(self.path)
        first = int(parse_qs(address.query).get("cursor", ["0"])[0])
        more: dict[str, str] = {}
        if first + PAGE < len(entries):
            host = self.headers["Host"]
            more = {"Link": f'<http://{host}{address.path}?recursive=True&cursor={first + PAGE}>; rel="next"'}
        self.answer(200, json.dumps(entries[first : first + PAGE]).encode(), Content_Type="application/json", **more)

    def entry(self, path: Path, folder: Path) -> dict[str, Any]:
        """What the hub tells of a file: git's hash, and the sha256 of one that is stored as large."""
        content = path.read_bytes()
        told: dict[str, Any] = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": len(content),
                                "oid": git_hash(content)}
        if path.suffix == ".parquet":
            known = "0" * 64 if told["path"] in self.hub.lies else hashlib.sha256(content).hexdigest()
            told["lfs"] = {"oid": known, "size": len(content), "pointerSize": 130}
        return told

    def file(self, repository: str, revision: str, name: str) -> None:
        folder = self.hub.folder(repository, revision)
        if folder is None or not (folder / name).is_file():
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        body = (folder / name).read_bytes()
        known = hashlib.sha256(body).hexdigest() if name.endswith(".parquet") else git_hash(body)
        headers = {"ETag": f'"{known}"', "X_Repo_Commit": revision, "Accept_Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked and self.command == "GET":
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            return self.answer(206, body[first:], Content_Range=f"bytes {first}-{len(body) - 1}/{len(body)}", **headers)
        return self.answer(200, body, **headers)


@contextmanager
def serving(revisions: dict[tuple[str, str], Path]) -> Iterator[tuple[Hub, str]]:
    """A hub and its address."""
    hub = Hub(revisions)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
