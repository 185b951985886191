"""How values cross between judge and candidate: as plain data, so that no object's behaviour comes along.

JSON, because reading it runs nobody's code; what JSON does not know is an object with the one key that names it.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Iterable
from typing import Any

SMALL = 2**63  # larger whole numbers travel in base 16, which takes linear time
PLAIN: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16), "tuple": lambda items: tuple(map(from_plain, items)),
    "set": lambda items: set(map(from_plain, items)), "frozenset": lambda items: frozenset(map(from_plain, items)),
    "dict": lambda pairs: {from_plain(key): from_plain(value) for key, value in pairs},
    "bytes": bytes.fromhex, "complex": lambda parts: complex(*parts), "range": lambda parts: range(*parts),
    "items": lambda items: iter(list(map(from_plain, items)))}


class Gone(Exception):
    """The other side closed the line."""


def to_plain(value: Any) -> Any:
    """JSON of a value: of subclasses what they are made of, of other iterables their items.

    >>> to_plain({"a": (1, 2.5)})
    {'dict': [['a', {'tuple': [1, 2.5]}]]}
    """
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < SMALL else {"int": hex(value)}
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[to_plain(key), to_plain(item)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [to_plain(item) for item in value]}
    if isinstance(value, Iterable):
        return {"items": [to_plain(item) for item in value]}
    raise TypeError(f"a {type(value).__name__} is not plain data and cannot cross between tests and candidate")


def from_plain(data: Any) -> Any:
    """The value of `to_plain`'s JSON; other iterables come back as an iterator.

    >>> from_plain(to_plain([{"a": (1, 2.5)}, {2**80}, b"x", 1j, None]))
    [{'a': (1, 2.5)}, {1208925819614629174706176}, b'x', 1j, None]
    """
    if isinstance(data, list):
        return [from_plain(item) for item in data]
    if isinstance(data, dict):
        (kind, inner), = data.items()
        return PLAIN[kind](inner)
    return data


class Line:
    """Messages over two pipes: JSON behind eight bytes of length.

    Args:
        source: File descriptor to read.
        target: File descriptor to write.
        longest: Bytes of the longest message taken.
        deadline: Of `time.monotonic`; past it both directions raise TimeoutError.
    """

    def __init__(self, source: int, target: int, longest: int, deadline: float = float("inf")) -> None:
        self.source, self.target, self.longest, self.deadline = source, target, longest, deadline
        os.set_blocking(target, False)

    def wait(self, reading: list[int], writing: list[int]) -> None:
        """Until a pipe is ready."""
        left = self.deadline - time.monotonic()
        ready = left > 0 and any(select.select(reading, writing, [], min(left, 1e6)))
        if not ready:
            raise TimeoutError("no answer in time")

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        parts = []
        while size:
            self.wait([self.source], [])
            parts.append(os.read(self.source, min(size, 2**20)))
            if not parts[-1]:
                raise Gone
            size -= len(parts[-1])
        return b"".join(parts)

    def receive(self) -> Any:
        """The next message."""
        size = int.from_bytes(self.read(8), "big")
        if size > self.longest:
            raise ValueError(f"an answer of {size} bytes; {self.longest} is the most")
        return json.loads(self.read(size))

    def send(self, message: Any) -> None:
        """Write one message."""
        rest = memoryview(pack(message))
        while rest:
            self.wait([], [self.target])
            try:
                rest = rest[os.write(self.target, rest):]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Gone from None


def pack(message: Any) -> bytes:
    """One message as it goes over a `Line`."""
    body = json.dumps(message).encode()
    return len(body).to_bytes(8, "big") + body
