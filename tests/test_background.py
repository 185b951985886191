"""Checkpoints written while training goes on: what is in them, when they are there, and what a failure leaves."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from lit_cpt.background import BackgroundWriter
from lit_cpt.publishing import COMPLETE, disk_error


@pytest.fixture
def alone():
    """This process as the only rank of a group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class GatedDisk(FileSystemWriter):
    """Writes when it is let, or fails."""

    gate = threading.Event()
    failing = False

    def write_data(self, plan, planner):
        assert self.gate.wait(60)
        if self.failing:
            raise OSError(28, "No space left on device")
        return super().write_data(plan, planner)


@pytest.fixture
def disk(monkeypatch):
    monkeypatch.setattr(GatedDisk, "gate", threading.Event())
    return GatedDisk


def read(folder):
    state = {"weight": torch.zeros(1000)}
    dcp.load(state, checkpoint_id=folder)
    return state["weight"], torch.load(folder / "meta.pt", weights_only=True)


@pytest.mark.usefixtures("alone")
def test_what_changes_after_the_start_is_not_in_the_checkpoint(tmp_path, disk):
    writer, weight, rest = BackgroundWriter(disk), torch.ones(1000), {"step": 3}
    writer.start({"weight": weight}, rest, tmp_path / "one.ckpt")
    weight.zero_()
    rest["step"] = 4
    assert not (tmp_path / "one.ckpt").exists()
    disk.gate.set()
    assert writer.wait() == (tmp_path / "one.ckpt", None)
    kept, said = read(tmp_path / "one.ckpt")
    assert torch.equal(kept, torch.ones(1000))
    assert said == {"step": 3}
    assert (tmp_path / "one.ckpt" / COMPLETE).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["one.ckpt"]


@pytest.mark.usefixtures("alone")
def test_a_second_checkpoint_of_the_same_tensors_holds_their_new_values(tmp_path, disk):
    disk.gate.set()
    writer, weight = BackgroundWriter(disk), torch.ones(1000)
    for number in range(3):
        writer.start({"weight": weight.fill_(number)}, {"step": number}, tmp_path / "same.ckpt")
        assert writer.wait() == (tmp_path / "same.ckpt", None)
        kept, said = read(tmp_path / "same.ckpt")
        assert (float(kept[0]), said["step"]) == (number, number)


@pytest.mark.usefixtures("alone")
def test_what_is_to_follow_waits_until_the_checkpoint_is_whole(tmp_path, disk):
    writer, path, seen = BackgroundWriter(disk), tmp_path / "one.ckpt", []
    writer.later(lambda: seen.append("at once"))
    writer.start({"weight": torch.ones(10)}, {}, path)
    writer.later(lambda: seen.append(path.is_dir()))
    assert seen == ["at once"]
    disk.gate.set()
    writer.wait()
    assert seen == ["at once", True]
    writer.later(lambda: seen.append("after"))
    assert seen[2:] == ["after"]
    assert writer.wait() == (None, None)


@pytest.mark.usefixtures("alone")
def test_a_folder_that_cannot_be_made_is_told_at_once_and_the_next_checkpoint_is_written(tmp_path, disk):
    disk.gate.set()
    writer = BackgroundWriter(disk)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/.one.ckpt.writing"):
        writer.start({"weight": torch.ones(10)}, {}, tmp_path / "file" / "one.ckpt")
    assert writer.wait() == (None, None)
    writer.start({"weight": torch.ones(1000)}, {}, tmp_path / "two.ckpt")
    assert writer.wait() == (tmp_path / "two.ckpt", None)


@pytest.mark.usefixtures("alone")
def test_a_full_disk_leaves_what_was_there_and_nothing_follows(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(disk, "failing", True)
    writer, seen = BackgroundWriter(disk), []
    (tmp_path / "one.ckpt").mkdir()
    writer.start({"weight": torch.ones(10)}, {}, tmp_path / "one.ckpt")
    writer.later(lambda: seen.append("deleted"))
    disk.gate.set()
    assert writer.ended.wait(60)
    writer.later(lambda: seen.append("deleted late"))
    path, failure = writer.wait()
    assert path == tmp_path / "one.ckpt"
    assert disk_error(failure).errno == 28
    assert seen == []
    assert [one.name for one in tmp_path.iterdir()] == ["one.ckpt"]
    monkeypatch.setattr(disk, "failing", False)
    writer.start({"weight": torch.ones(1000)}, {}, tmp_path / "two.ckpt")
    assert writer.wait() == (tmp_path / "two.ckpt", None)
