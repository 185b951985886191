"""An S3 server on the loopback (moto's) behind a proxy that injects faults, for tests and benchmarks.

Both run in one process of their own, so that tests may fork. Everything is settable while clients talk to it::

    with ObjectStore() as store:
        url = store.upload(folder, "web")                       # "s3://sources/web"
        store.fail(Fault("error", status=503, seconds=30))      # an outage of 30 s
        stage_metadata(url, cache, Storage(store.options()))
        print(store.requests())
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest

CONTROL = "/-/control"
BUCKET = "sources"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the requests it fits.

    Args:
        kind: ``error`` (answers ``status`` and ``code``), ``drop`` (hangs up without an answer), ``half`` (hangs
            up in the middle of the body) or ``stall`` (sends half of the body, then nothing more).
        status: HTTP status of an ``error``.
        code: S3's code of an ``error``.
        match: Part of the path.
        method: HTTP method; empty for any.
        share: Share of the requests, drawn at random.
        count: At most so many requests.
        seconds: For so long.
    """

    kind: str
    status: int = 503
    code: str = "SlowDown"
    match: str = "chunk-"
    method: str = "GET"
    share: float = 1.0
    count: int | None = None
    seconds: float | None = None


EXPIRED = Fault("error", status=400, code="ExpiredToken", match="", method="")  # as S3 itself answers


@dataclass(frozen=True)
class Request:
    """A request as the proxy answered it: ``status`` 0 where it hung up; ``bytes`` of the body that were sent."""

    method: str
    path: str
    status: int
    bytes: int
    fault: str | None
    who: str  # the access key, so that one server can tell its clients apart


class ObjectStore:
    """The server, the proxy before it, and the handle on both; a context manager.

    Attributes:
        endpoint: Where clients should connect: the proxy.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__)], stdout=subprocess.PIPE,
                                        stdin=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the object store did not start: is moto[server] installed?"
        self.server, self.endpoint = line.split()
        self._client.create_bucket(Bucket=BUCKET)

    def __enter__(self) -> ObjectStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End server and proxy."""
        self.process.kill()
        self.process.wait()

    @cached_property
    def _client(self) -> Any:
        import boto3

        return boto3.client("s3", **{**self.options(), "endpoint_url": self.server})

    def options(self, who: str = "tester") -> dict[str, str]:
        """litdata's ``storage_options`` for a client that the log calls ``who``."""
        return {"endpoint_url": self.endpoint, "aws_access_key_id": who, "aws_secret_access_key": "secret",
                "region_name": "us-east-1"}

    def upload(self, folder: Path | str, prefix: str) -> str:
        """Put every file of a folder under ``prefix``, past the proxy; returns the URL."""
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder)}"
                self._client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def delete(self, key: str) -> None:
        """Take one object away."""
        self._client.delete_object(Bucket=BUCKET, Key=key)

    def fail(self, *faults: Fault) -> None:
        """These faults from now on; the first that fits a request is the one it gets."""
        self._control({"faults": [asdict(fault) for fault in faults]})

    def heal(self) -> None:
        """No faults, no delay, no limit, an empty log."""
        self._control({"faults": [], "delay": 0.0, "bytes_per_second": 0.0, "log": []})

    def shape(self, delay: float = 0.0, bytes_per_second: float = 0.0) -> None:
        """Seconds before every answer, and the rate of each connection (0: as fast as it goes)."""
        self._control({"delay": delay, "bytes_per_second": bytes_per_second})

    def requests(self, match: str = "") -> list[Request]:
        """What was asked since `heal`, oldest first, where the path holds ``match``."""
        return [Request(**entry) for entry in self._control({}) if match in entry["path"]]

    def _control(self, change: dict[str, Any]) -> Any:
        request = urllib.request.Request(self.endpoint + CONTROL, json.dumps(change).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@cache
def server() -> ObjectStore:
    """One server for all tests of a process."""
    store = ObjectStore()
    atexit.register(store.close)
    return store


@pytest.fixture(name="object_store")
def object_store_fixture() -> Iterator[ObjectStore]:
    """The server in good health; what was uploaded by earlier tests is still there."""
    server().heal()
    yield server()
    server().heal()


class Proxy:
    """Forwards requests to the server at ``port``; faults, delay and rate are set by posts to `CONTROL`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.state: dict[str, Any] = {"faults": [], "delay": 0.0, "bytes_per_second": 0.0, "log": []}
        self.since = time.monotonic()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        try:
            while await self.answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; returns whether the connection stays open."""
        first, headers = await read_head(reader)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ", 2)
        if path == CONTROL:
            await self.control(json.loads(body), writer)
            return True
        fault = self.fault_of(method, path)
        who = re.search(r"Credential=([^/]+)/", headers.get("authorization", ""))
        entry = {"method": method, "path": path, "status": 0, "bytes": 0, "fault": fault and fault["kind"],
                 "who": who.group(1) if who else ""}
        self.state["log"].append(entry)
        await asyncio.sleep(self.state["delay"])
        if fault and fault["kind"] == "drop":
            return False
        if fault and fault["kind"] == "error":
            status, head, content = error_answer(fault)
        else:
            status, head, content = await self.forward(first, headers, body)
        entry["status"] = status
        writer.write(head)
        return await self.send(writer, b"" if method == "HEAD" else content, fault, entry)

    def fault_of(self, method: str, path: str) -> dict[str, Any] | None:
        """The first fault that fits, which is then used up by one."""
        for fault in self.state["faults"]:
            active = fault["seconds"] is None or time.monotonic() - self.since < fault["seconds"]
            if (active and fault["match"] in path and fault["method"] in ("", method) and fault["count"] != 0
                    and random.random() < fault["share"]):
                fault["count"] = None if fault["count"] is None else fault["count"] - 1
                return dict(fault)
        return None

    async def control(self, change: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Take the new settings, answer with the log."""
        self.state.update(change)
        if "faults" in change:
            self.since = time.monotonic()
        content = json.dumps(self.state["log"]).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        await writer.drain()

    async def forward(self, first: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, bytes]:
        """The server's own answer: status, head, body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        kept = [f"{name}: {value}" for name, value in headers.items() if name not in ("connection", "expect")]
        writer.write("\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin1") + body)
        answer, found = await read_head(reader)
        content = b"" if first.startswith("HEAD") else await reader.read()
        writer.close()
        found.pop("connection", None)
        if not first.startswith("HEAD"):
            found["content-length"] = str(len(content))
        lines = [answer, *(f"{name}: {value}" for name, value in found.items()), "", ""]
        return int(answer.split()[1]), "\r\n".join(lines).encode("latin1"), content

    async def send(self, writer: asyncio.StreamWriter, content: bytes, fault: dict[str, Any] | None,
                   entry: dict[str, Any]) -> bool:
        """The body, at the rate and up to the fault; returns whether the connection stays open."""
        cut = fault is not None and fault["kind"] in ("half", "stall")
        wanted = content[:len(content) // 2] if cut else content
        rate = self.state["bytes_per_second"]
        step = max(1, min(65536, int(rate / 20))) if rate else max(1, len(wanted))
        for place in range(0, len(wanted), step):
            writer.write(wanted[place:place + step])
            await writer.drain()
            entry["bytes"] += len(wanted[place:place + step])
            if rate:
                await asyncio.sleep(step / rate)
        await writer.drain()
        if cut and fault and fault["kind"] == "stall":
            await asyncio.sleep(3600)
        return not cut


async def read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """First line and headers (names in lower case) of a message."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return lines[0], {name.strip().lower(): value.strip() for name, _, value in pairs}


def error_answer(fault: dict[str, Any]) -> tuple[int, bytes, bytes]:
    """S3's error document."""
    content = (f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{fault['code']}</Code>"
               "<Message>injected</Message></Error>").encode()
    head = (f"HTTP/1.1 {fault['status']} Injected\r\nContent-Type: application/xml\r\n"
            f"Content-Length: {len(content)}\r\n\r\n")
    return fault["status"], head.encode(), content


async def serve_both() -> None:
    """Run server and proxy until standard input closes, that is until the parent is gone."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    proxy = await asyncio.start_server(Proxy(port).serve, "127.0.0.1", 0, limit=2**20)
    public = proxy.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port} http://127.0.0.1:{public}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(serve_both())
