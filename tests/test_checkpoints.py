from __future__ import annotations

import errno
import logging
import os
import resource
import zipfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import make_trainer, small_disk
from lightning.fabric.plugins.io import TorchCheckpointIO

from lit_cpt.checkpoints import (
    WholeCheckpointIO,
    checkpoints_in,
    clear_leftovers,
    damage,
    found_checkpoint,
    newest_whole,
    point,
    remove,
    save,
    save_now,
    step_of,
    write_whole,
)

SMALL = {"state_dict": {"weight": torch.arange(1000.0)}, "global_step": 3}


def write(path, age=0.0, content=SMALL):
    """A whole checkpoint, written so many seconds ago."""
    WholeCheckpointIO().save_checkpoint(content, path)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return path


def cut(path, share=0.6):
    """Cut a file short, as a full disk or a copy that was broken off does."""
    with path.open("rb+") as file:
        file.truncate(int(path.stat().st_size * share))
    return path


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def run(tmp_path):
    """A run's folder with checkpoints of steps 100, 200 and 300."""
    for age, step in enumerate((300, 200, 100)):
        write(tmp_path / "checkpoints" / f"step-{step:08d}.ckpt", age)
    return tmp_path


# Writing -------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "new" / "folder" / "x.ckpt"
    WholeCheckpointIO().save_checkpoint(SMALL, path)
    loaded = WholeCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["weight"], SMALL["state_dict"]["weight"])
    assert [file.name for file in path.parent.iterdir()] == ["x.ckpt"]


def test_a_value_that_cannot_be_saved_leaves_the_file_as_it_was(tmp_path):
    write(tmp_path / "x.ckpt")
    before = content(tmp_path)
    with pytest.raises(Exception, match="[Pp]ickle"):
        WholeCheckpointIO().save_checkpoint({**SMALL, "hook": lambda: None}, tmp_path / "x.ckpt")
    assert content(tmp_path) == before


@contextmanager
def small_files(folder):
    """Files of one MiB at most: needs no rights, but says EFBIG where a disk says ENOSPC."""
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("limit", "number"), [
    (partial(small_disk, size=1 << 20), errno.ENOSPC), (small_files, errno.EFBIG)])
def test_a_full_disk_says_so_and_leaves_the_checkpoint_before(tmp_path, limit, number):
    with limit(tmp_path / "small") as folder:
        write(folder / "x.ckpt")
        before = content(folder)
        with pytest.raises(OSError, match="x.ckpt") as caught:
            WholeCheckpointIO().save_checkpoint({"weight": torch.zeros(1 << 20)}, folder / "x.ckpt")
        assert (caught.value.errno, caught.value.filename) == (number, str(folder / "x.ckpt"))
        assert content(folder) == before
        assert damage(folder / "x.ckpt") is None


def test_a_path_that_is_no_local_one_and_options_are_left_to_lightning(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        WholeCheckpointIO().save_checkpoint(SMALL, tmp_path / "x.ckpt", storage_options={})
    WholeCheckpointIO().save_checkpoint(SMALL, f"file://{tmp_path}/y.ckpt")
    assert damage(tmp_path / "y.ckpt") is None


def test_half_written_files_are_cleared_and_nothing_else(run):
    folder = run / "checkpoints"
    before = content(folder)
    (folder / ".step-00000400.ckpt.writing").write_bytes(b"half")
    (folder / ".last.ckpt.writing").symlink_to("nowhere")
    clear_leftovers(folder)
    assert content(folder) == before


def test_a_checkpoint_is_removed_be_it_a_file_or_a_folder(run):
    folder = run / "checkpoints"
    (folder / "sharded.ckpt").mkdir()
    (folder / "sharded.ckpt" / "COMPLETE").touch()
    remove(folder / "sharded.ckpt")
    remove(folder / "step-00000300.ckpt")
    remove(folder / "step-00000300.ckpt")
    assert sorted(content(folder)) == ["step-00000100.ckpt", "step-00000200.ckpt"]


def test_without_links_nothing_is_lost_but_the_name(run, monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    point(run / "checkpoints", "last", run / "checkpoints" / "step-00000300.ckpt")
    assert "last.ckpt is left out: this filesystem has no links (Operation not permitted)" in caplog.text
    assert found_checkpoint(run, "last") == str(run / "checkpoints" / "step-00000300.ckpt")
    assert found_checkpoint(run, "auto") == found_checkpoint(run, "last")


# Wholeness -----------------------------------------------------------------------------------------------------


def test_a_whole_checkpoint_has_no_damage(run):
    assert [damage(path) for path in checkpoints_in(run / "checkpoints")] == [None] * 3
    torch.save(SMALL, run / "torch.ckpt")
    assert damage(run / "torch.ckpt") is None


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.01])
def test_a_truncated_checkpoint_is_seen_wherever_it_was_cut(tmp_path, share):
    assert "its table of contents cannot be read" in damage(cut(write(tmp_path / "x.ckpt"), share))


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "folder.ckpt").mkdir()
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("a.txt", "a")
    assert damage(tmp_path / "empty.ckpt") == "it is empty"
    assert "is no checkpoint" in damage(tmp_path / "text.ckpt")
    assert damage(tmp_path / "zip.ckpt") == "it is an archive of something else than a checkpoint"
    assert damage(tmp_path / "folder.ckpt") == "it has no file COMPLETE: it was not written to its end"
    (tmp_path / "folder.ckpt" / "COMPLETE").touch()
    assert damage(tmp_path / "folder.ckpt") is None


# Finding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "step"), [("step-00001000", 1000), ("00000200", 200), ("epoch=0-step=77", 77),
                                            ("last", None), ("phase-late", None)])
def test_the_name_tells_the_step(name, step):
    assert step_of(Path(f"{name}.ckpt")) == step


def test_the_newest_is_the_one_of_the_latest_step_whatever_the_times_say(run):
    os.utime(run / "checkpoints" / "step-00000100.ckpt")
    assert [step_of(path) for path in checkpoints_in(run / "checkpoints")] == [300, 200, 100]


def test_where_a_name_tells_no_step_time_decides(run):
    written = write(run / "checkpoints" / "mine.ckpt", -5)
    assert checkpoints_in(run / "checkpoints")[0] == written
    os.utime(written, (1, 1))
    assert checkpoints_in(run / "checkpoints")[-1] == written


def test_last_tells_the_newest_also_after_going_back_to_an_earlier_step(run):
    folder = run / "checkpoints"
    point(folder, "last", write(folder / "step-00000250.ckpt", -2))
    assert [step_of(path) for path in checkpoints_in(folder)] == [250, 300, 200, 100]
    assert len(checkpoints_in(folder)) == 4  # the link is none of them


def test_what_another_callback_wrote_after_last_is_newer(run):
    folder = run / "checkpoints"
    point(folder, "last", folder / "step-00000300.ckpt")
    write(folder / "epoch=0-step=310.ckpt", -5)
    write(folder / "epoch=0-step=290.ckpt", -5)
    assert [step_of(path) for path in checkpoints_in(folder)] == [310, 300, 290, 200, 100]


def test_a_link_that_names_nothing_or_lies_elsewhere_tells_nothing(run, tmp_path_factory):
    folder = run / "checkpoints"
    point(folder, "last", folder / "gone.ckpt")
    assert step_of(checkpoints_in(folder)[0]) == 300
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt").symlink_to(write(tmp_path_factory.mktemp("other") / "step-00000900.ckpt"))
    assert step_of(checkpoints_in(folder)[0]) == 300


def test_a_truncated_newest_is_passed_over_and_told(run, caplog):
    folder = run / "checkpoints"
    point(folder, "last", folder / "step-00000300.ckpt")
    cut(folder / "step-00000300.ckpt")
    assert found_checkpoint(run, "last") == str(folder / "step-00000200.ckpt")
    assert f"{folder / 'step-00000300.ckpt'} is damaged (its table of contents" in caplog.text
    assert f"): going on from {folder / 'step-00000200.ckpt'}" in caplog.text
    told = []
    found_checkpoint(run, "last", lambda *what: told.append(what))
    assert [(broken.name, instead.name) for broken, _, instead in told] == [
        ("step-00000300.ckpt", "step-00000200.ckpt")]
    assert newest_whole(folder)[0] == folder / "step-00000200.ckpt"


def test_without_a_whole_one_every_damage_is_told(run):
    for path in checkpoints_in(run / "checkpoints"):
        cut(path)
    with pytest.raises(FileNotFoundError, match=r"--ckpt_path last: there is no whole checkpoint in .*checkpoints\. "
                       r"step-00000300.ckpt is damaged: .* step-00000100.ckpt is damaged: .*Leave --ckpt_path out"):
        found_checkpoint(run, "last")


def test_best_is_what_best_names(run):
    folder = run / "checkpoints"
    with pytest.raises(FileNotFoundError, match="--ckpt_path best: there is no best.ckpt in .*monitor a metric"):
        found_checkpoint(run, "best")
    point(folder, "best", folder / "step-00000200.ckpt")
    assert found_checkpoint(run, "best") == str(folder / "step-00000200.ckpt")


def test_a_damaged_file_that_is_asked_for_is_refused_and_the_newest_whole_one_named(run):
    folder = run / "checkpoints"
    broken = cut(folder / "step-00000300.ckpt")
    with pytest.raises(ValueError, match=f"--ckpt_path {broken} is damaged: its table .*resume with --ckpt_path "
                       f"{folder / 'step-00000200.ckpt'}"):
        found_checkpoint(run, str(broken))
    for path in checkpoints_in(folder)[1:]:
        remove(path)
    with pytest.raises(ValueError, match="There is no whole one in .*checkpoints"):
        found_checkpoint(run, str(broken))
    assert found_checkpoint(run, str(write(run / "other.ckpt"))) == str(run / "other.ckpt")


@pytest.mark.parametrize(("asked", "message"), [
    ("last", "--ckpt_path last: there is no checkpoint in .*checkpoints. Leave --ckpt_path out"),
    ("no.ckpt", "--ckpt_path no.ckpt: no such file. Give `last` or a file of .*checkpoints")])
def test_a_checkpoint_that_is_not_there_is_asked_for_in_vain(tmp_path, asked, message):
    with pytest.raises(FileNotFoundError, match=message):
        found_checkpoint(tmp_path, asked)


def test_a_new_run_neither_mixes_with_another_nor_goes_into_a_file(run, tmp_path_factory):
    with pytest.raises(FileExistsError, match=f"{run} holds a run already. Resume it with --ckpt_path last"):
        found_checkpoint(run, None)
    empty = tmp_path_factory.mktemp("empty")
    assert found_checkpoint(empty, None) is found_checkpoint(empty, "auto") is None
    (empty / "run.yaml").touch()
    with pytest.raises(FileExistsError, match="--run .*run.yaml is a file; name a folder, such as --run runs/run"):
        found_checkpoint(empty / "run.yaml", None)


# Saving from a Trainer -----------------------------------------------------------------------------------------


class Foreign(pl.LightningModule):
    """A module that knows nothing of lit_cpt."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(folder, **settings):
    trainer = make_trainer(folder, max_steps=3, **settings)
    trainer.fit(Foreign(), torch.utils.data.DataLoader(torch.ones(20, 2)))
    return trainer


def test_without_a_callback_that_saves_the_step_is_saved_here(tmp_path):
    trainer = trained(tmp_path)
    path = save_now(trainer, "signal")
    assert path == tmp_path / "checkpoints" / "step-00000003.ckpt"
    assert torch.load(path, weights_only=False)["global_step"] == 3
    assert os.readlink(tmp_path / "checkpoints" / "last.ckpt") == path.name


def test_only_lightnings_own_io_is_replaced(tmp_path):
    class Own(TorchCheckpointIO):
        pass

    for plugins, kind in (([], WholeCheckpointIO), ([Own()], Own)):
        trainer = make_trainer(tmp_path, plugins=plugins)
        write_whole(trainer)
        assert type(trainer.strategy.checkpoint_io) is kind


def test_a_checkpoint_that_is_a_folder_is_marked_when_it_is_whole(tmp_path):
    class Sharded(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            Path(path).mkdir(parents=True)

    save(trained(tmp_path, plugins=[Sharded()]), tmp_path / "checkpoints" / "step-00000003.ckpt")
    assert found_checkpoint(tmp_path, "last") == str(tmp_path / "checkpoints" / "step-00000003.ckpt")
