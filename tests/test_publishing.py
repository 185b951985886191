from __future__ import annotations

import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from lit_cpt.publishing import disk_error, publish, publish_folder, publish_text, taken_back


@contextmanager
def files_of_at_most(limit):
    """A disk that takes no more than so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    publish_text(path, "old")
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        publish_text(path, "new" * 1000)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_what_torch_says_of_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    with files_of_at_most(1000), pytest.raises(OSError, match=r"File too large: '.*weights\.pt'"):
        publish(tmp_path / "weights.pt", lambda file: torch.save(torch.zeros(10_000), file))
    assert list(tmp_path.iterdir()) == []


def test_text_is_written_as_utf_8_into_a_folder_that_need_not_be_there(tmp_path):
    publish_text(tmp_path / "new" / "text", "ä\n")
    assert (tmp_path / "new" / "text").read_bytes() == b"\xc3\xa4\n"


def test_several_may_write_the_same_text_at_once(tmp_path):
    together = Barrier(2)

    def write(_):
        for number in range(50):
            together.wait(10)
            publish_text(tmp_path / str(number), "text" * 1000)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, range(50)))
    assert {path.read_text() for path in tmp_path.iterdir()} == {"text" * 1000}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_takes_its_place_whole_and_the_one_before_it_goes(tmp_path, replaced):
    aside, folder = tmp_path / ".model.writing", tmp_path / "model"
    aside.mkdir()
    (aside / "new").touch()
    if replaced:
        folder.mkdir()
        (folder / "old").touch()
    publish_folder(aside, folder)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/new"]


def test_a_folder_that_cannot_take_its_place_leaves_the_one_before(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(FileNotFoundError, match="writing"):
        publish_folder(tmp_path / ".model.writing", folder)
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_error_of_the_disk_is_found_behind_others_and_on_other_ranks():
    full = OSError(28, "No space left on device")
    wrapped = RuntimeError("torch")
    wrapped.__cause__ = full
    assert disk_error(wrapped) is full
    assert disk_error(CheckpointException("write", {0: (RuntimeError("other"), []), 1: (wrapped, [])})) is full
    assert disk_error(RuntimeError("nothing of the disk")) is None
    assert disk_error(None) is None


@pytest.mark.parametrize(("begun", "left"), [
    (False, ["old.log"]), (True, ["new", "new/new.log", "new.log", "old.log"])])
def test_what_an_error_ends_before_it_has_begun_is_taken_back(tmp_path, begun, left):
    def fail(folder):
        with taken_back(folder, ("*.log",), lambda: begun):
            folder.mkdir(exist_ok=True)
            (folder / "new.log").write_text("new")
            raise KeyError

    (tmp_path / "old.log").write_text("old")
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(KeyError):
            fail(folder)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == sorted(left)
