"""How a contract fails: it says which of our files depends on what changed, and what to do there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def relied_on(file: str, reason: str) -> Iterator[None]:
    """What stands below must hold: ``file`` counts on it, for this reason."""
    with told(file, f"{file} counts on this: {reason}. Mend it there, or keep the new version out in pyproject.toml."):
        yield


@contextmanager
def worked_around(file: str, workaround: str) -> Iterator[None]:
    """What stands below is a defect; once it fails, the workaround in ``file`` may be dropped."""
    with told(file, f"this seems mended upstream. Once the oldest version that pyproject.toml allows has it too, the "
                    f"workaround in {file} may be dropped: {workaround}."):
        yield


@contextmanager
def told(file: str, message: str) -> Iterator[None]:
    """Whatever fails below fails with ``message``."""
    assert (ROOT / file).exists(), f"{file} is gone: name the file that depends on this now, or drop the contract"
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:  # the latter is what `pytest.raises` fails with
        raise AssertionError(f"{message}\nSeen: {type(error).__name__}: {error}") from error
