"""Copies to a mirror while training goes on: when they are there, what is deleted when, and what a failure leaves."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from object_store import EXPIRED, Fault, object_store_fixture  # noqa: F401
from test_mirror import STEPS, mirror_of, same, save_file, save_folder

from lit_cpt.checkpoints import remove
from lit_cpt.copying import Copier, parts_of
from lit_cpt.mirror import INDEX, Index, read_index, restore, write_index

UPLOADS = {"match": "step-", "method": "PUT"}


def index_of(mirror):
    return read_index(mirror.objects)


def in_order(object_store):
    """What was changed in the store: PUT of the index or of a checkpoint's file, DELETE."""
    return [(one.method, one.path.split("?")[0].split("/", 4)[-1]) for one in object_store.requests()
            if one.method in ("PUT", "DELETE")]


def wait_until(claim, seconds=10.0):
    ends = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.parametrize("save", [save_file, save_folder])
def test_the_index_names_a_checkpoint_after_its_last_file_and_an_old_one_no_more_before_its_first_is_deleted(
        object_store, tmp_path, save):
    mirror = mirror_of(object_store, save.__name__)
    old, new = save(tmp_path / STEPS[0]), save(tmp_path / STEPS[1])
    copier = Copier(mirror, None)
    copier.add(old)
    copier.finish()
    copier = Copier(mirror, old.name)
    object_store.heal()
    copier.add(new)
    copier.retire(old, lambda: remove(old))
    copier.finish()
    changes = in_order(object_store)
    first, second = [place for place, change in enumerate(changes) if change == ("PUT", INDEX)]
    assert {name.split("/")[0] for _, name in changes[:first]} == {new.name}
    assert {change[0] for change in changes[second + 1:]} == {"DELETE"}
    if save is save_folder:
        assert changes[first - 1] == ("PUT", f"{new.name}/COMPLETE")
    assert list(index_of(mirror).checkpoints) == [new.name]
    assert not old.exists()
    restore(mirror, tmp_path / "again", "last")
    assert same(tmp_path / "again" / new.name, new)


def test_each_rank_has_the_parts_that_it_wrote(tmp_path):
    path = save_folder(tmp_path / STEPS[0])
    parts = [{name.split("/")[1] for name in parts_of(path, rank, 2)} for rank in range(2)]
    assert parts == [{".metadata", "__0_0.distcp", "meta.pt"}, {"__1_0.distcp"}]
    assert parts_of(save_file(tmp_path / STEPS[1]), 0, 2) == [STEPS[1]]
    assert parts_of(tmp_path / STEPS[1], 1, 2) == []


@pytest.mark.slow
def test_training_goes_on_and_what_is_deleted_meanwhile_stays_until_it_is_copied(object_store, tmp_path):
    mirror = mirror_of(object_store, "held")
    paths = [save_file(tmp_path / name) for name in STEPS]
    object_store.fail(Fault("stall", match=STEPS[0], method="PUT", count=1))
    copier = Copier(mirror, None)
    began = time.monotonic()
    copier.add(paths[0])
    wait_until(lambda: copier.busy == paths[0])
    copier.add(paths[1])
    copier.retire(paths[0], paths[0].unlink)
    copier.add(paths[2])
    copier.retire(paths[1], paths[1].unlink)
    assert time.monotonic() - began < 1.0
    assert [path.exists() for path in paths] == [True, False, True]
    copier.finish()
    assert [path.exists() for path in paths] == [False, False, True]
    assert list(index_of(mirror).checkpoints) == [STEPS[2]]


@pytest.mark.parametrize("fault", [EXPIRED, Fault("error", status=403, code="AccessDenied", **UPLOADS)],
                         ids=lambda one: one.code)
def test_a_copy_that_fails_is_told_deletes_nothing_and_is_made_up_for(object_store, tmp_path, caplog, fault):
    mirror = mirror_of(object_store, f"fails-{fault.code}")
    caplog.set_level(logging.INFO, "lit_cpt")
    paths = [save_file(tmp_path / name) for name in STEPS]
    copier = Copier(mirror, None)
    copier.add(paths[0])
    wait_until(lambda: not copier.waiting and copier.busy is None)
    object_store.fail(fault)
    copier.add(paths[1])
    copier.retire(paths[0], lambda: None)
    wait_until(lambda: copier.failed)
    object_store.heal()
    assert f"checkpoint {STEPS[1]} is NOT in {mirror.url}: " in caplog.text
    assert f"whole in {tmp_path}; training goes on" in caplog.text
    assert list(index_of(mirror).checkpoints) == [STEPS[0]]
    copier.add(paths[2])
    copier.finish()
    assert sorted(index_of(mirror).checkpoints) == [STEPS[1], STEPS[2]]
    assert "not in " not in caplog.text.replace("is NOT in", "")


def test_what_is_not_copied_in_the_end_is_named(object_store, tmp_path, caplog):
    mirror = mirror_of(object_store, "named", retry_seconds=0.2)
    copier = Copier(mirror, None)
    object_store.fail(Fault("drop", **UPLOADS))
    copier.add(save_file(tmp_path / STEPS[0]))
    copier.finish()
    assert f"not in {mirror.url}: {STEPS[0]}; whole in the run's folder" in caplog.text
    assert index_of(mirror) == Index()


def test_the_best_is_named_once_it_is_there_and_one_that_is_written_anew_is_replaced(object_store, tmp_path):
    mirror = mirror_of(object_store, "best")
    copier = Copier(mirror, None)
    copier.add(save_file(tmp_path / STEPS[0], "first"))
    copier.prefer(tmp_path / STEPS[0])
    copier.finish()
    assert index_of(mirror).best == STEPS[0]
    copier = Copier(mirror, STEPS[0])
    object_store.heal()
    copier.add(save_file(tmp_path / STEPS[0], "written anew"))
    copier.finish()
    assert in_order(object_store) == [("PUT", INDEX), ("PUT", STEPS[0]), ("PUT", INDEX), ("PUT", INDEX)]
    assert index_of(mirror).best == STEPS[0]
    restore(mirror, tmp_path / "again", "best")
    assert same(tmp_path / "again" / STEPS[0], tmp_path / STEPS[0])


def test_another_run_is_not_mixed_with(object_store):
    mirror = mirror_of(object_store, "other-run")
    write_index(mirror.objects, Index({STEPS[0]: {}}, STEPS[0]))
    with pytest.raises(FileExistsError, match=f"{mirror.url} holds the checkpoints of another run"):
        Copier(mirror, None)
    assert not [thread for thread in threading.enumerate() if thread.name == "mirror"]
