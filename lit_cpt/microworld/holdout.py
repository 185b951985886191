"""Decides what is held out, by hash: the same for every document and in every order of drawing."""

from __future__ import annotations

import hashlib


def hash_share(seed: int, *key: object) -> float:
    """A number in [0, 1) in steps of 0.0001, fixed by ``seed`` and ``key``.

    ``hash_share(seed, ...) < share`` holds out that share of all keys. MD5 because Python's own ``hash``
    of a string differs between processes.
    """
    digest = hashlib.md5(repr((seed, *key)).encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 10_000 / 10_000
