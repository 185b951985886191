"""Checkpoints in an object store: which are there, and how they come back to a machine that has none."""

from __future__ import annotations

import os
from functools import cache

import pytest
import torch
from object_store import Fault, object_store_fixture, server  # noqa: F401

from lit_cpt.checkpoints import found_checkpoint
from lit_cpt.mirror import Index, Mirror, fetched, opened_index, read_index, restore, write_index
from lit_cpt.objects import provider_of
from lit_cpt.publishing import COMPLETE
from lit_cpt.remote import Storage, Unreachable

STEPS = ("step-00000003.ckpt", "step-00000006.ckpt", "step-00000009.ckpt")


@cache
def client(endpoint):
    """The client that these tests share; to make one takes a tenth of a second."""
    return provider_of("s3://sources", Storage(server().options()))


def mirror_of(object_store, name, retry_seconds=20.0):
    mirror = Mirror(f"s3://sources/mirror/{name}", Storage(object_store.options(), retry_seconds, attempt_seconds=5.0))
    mirror.objects._provider = client(object_store.endpoint)
    return mirror


def save_file(path, content=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"content": content}, path)
    return path


def save_folder(path, content=0):
    path.mkdir(parents=True)
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"):
        (path / name).write_text(f"{name} {content}")
    (path / COMPLETE).touch()
    return path


def files_in(path):
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path.parent)): file.stat().st_size for file in files}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A mirror with three checkpoints, the second of which is a folder, and where they came from."""
    source, mirror, index = tmp_path_factory.mktemp("source"), mirror_of(server(), "filled"), Index()
    for name, save in zip(STEPS, (save_file, save_folder, save_file), strict=True):
        path = save(source / name, name)
        for file in files_in(path):
            mirror.objects.put(source / file, file)
        index = index.having(name, files_in(path))
    write_index(mirror.objects, Index(index.checkpoints, index.last, STEPS[1]))
    return mirror, source


def same(one, other):
    files = files_in(one)
    return files == files_in(other) and all(
        (one.parent / name).read_bytes() == (other.parent / name).read_bytes() for name in files)


# The index -----------------------------------------------------------------------------------------------------


def test_the_newest_is_the_last_that_training_came_by():
    index = Index().having(STEPS[0], {}).having(STEPS[2], {}).having(STEPS[1], {})
    assert (index.last, index.newest_first) == (STEPS[2], [*reversed(STEPS)])
    back = Index(index.checkpoints, STEPS[0])
    assert back.newest_first == [STEPS[0]]
    assert back.having("step-00000004.ckpt", {}).newest_first == ["step-00000004.ckpt", STEPS[0]]


def test_what_is_taken_out_is_not_the_best_any_more():
    index = Index({STEPS[0]: {}, STEPS[1]: {}}, STEPS[1], STEPS[0]).without(STEPS[0])
    assert index == Index({STEPS[1]: {}}, STEPS[1], None)


def test_a_mirror_is_empty_at_first_and_tells_what_was_written(object_store):
    objects = mirror_of(object_store, "empty").objects
    assert read_index(objects) == Index()
    write_index(objects, Index({STEPS[0]: {STEPS[0]: 7}}, STEPS[0], None))
    assert opened_index(objects) == Index({STEPS[0]: {STEPS[0]: 7}}, STEPS[0], None)


@pytest.mark.parametrize("text", ["half {", '{"other": 1}', "[]"])
def test_an_index_of_something_else_is_refused(object_store, text):
    objects = mirror_of(object_store, "other").objects
    objects.put_text(text, "checkpoints.json")
    with pytest.raises(ValueError, match="mirror/other/checkpoints.json is no index of checkpoints"):
        read_index(objects)


def test_a_store_that_cannot_be_written_to_is_the_users_mistake_and_an_outage_is_not(object_store):
    objects = mirror_of(object_store, "denied", retry_seconds=0.2).objects
    object_store.fail(Fault("error", status=403, code="AccessDenied", match="", method="PUT"))
    with pytest.raises(ValueError, match="checkpoints cannot be copied to s3://sources/mirror/denied: .*AccessDenied"):
        opened_index(objects)
    object_store.fail(Fault("drop", match="", method="PUT"))
    with pytest.raises(Unreachable, match="could not be had"):
        opened_index(objects)


def test_a_mirror_is_a_folder_in_a_store():
    with pytest.raises(ValueError, match="'runs/first' is no folder in a store"):
        Mirror("runs/first")


# Bringing back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "name", "link"), [("last", STEPS[2], "last"), ("auto", STEPS[2], "last"),
                                                     ("best", STEPS[1], "best")])
def test_an_empty_folder_gets_what_was_asked_for(filled, tmp_path, asked, name, link):
    mirror, source = filled
    folder = tmp_path / "run" / "checkpoints"
    restore(mirror, folder, asked)
    assert os.readlink(folder / f"{link}.ckpt") == name
    assert same(folder / name, source / name)
    assert [path.name for path in folder.glob("*.ckpt") if not path.is_symlink()] == [name]
    assert found_checkpoint(tmp_path / "run", asked) == str(folder / name)


def test_what_is_here_and_as_new_is_not_fetched(filled, object_store, tmp_path):
    mirror, _ = filled
    save_file(tmp_path / "here" / STEPS[2], "mine")
    object_store.heal()
    restore(mirror, tmp_path / "here", "last")
    assert torch.load(tmp_path / "here" / STEPS[2])["content"] == "mine"
    assert not object_store.requests("step-")


def test_what_is_here_and_older_or_damaged_is_replaced(filled, tmp_path):
    mirror, source = filled
    folder = tmp_path / "here"
    save_file(folder / STEPS[0])
    (folder / STEPS[2]).write_bytes(b"half")
    restore(mirror, folder, "auto")
    assert same(folder / STEPS[2], source / STEPS[2])


@pytest.mark.parametrize("broken", ["gone", "short"])
def test_one_that_is_damaged_in_the_store_is_passed_over_and_named(filled, tmp_path, caplog, monkeypatch, broken):
    mirror, source = filled
    older, newer = read_index(mirror.objects).checkpoints[STEPS[1]], "step-00000012.ckpt"
    if broken == "short":  # as long as the index says, and yet no checkpoint
        (tmp_path / newer).write_bytes(bytes(7))
        mirror.objects.put(tmp_path / newer, newer)
    index = Index({STEPS[1]: older, newer: {newer: 7}}, newer)
    monkeypatch.setattr("lit_cpt.mirror.read_index", lambda objects: index)
    restore(mirror, tmp_path / "here", "last")
    assert same(tmp_path / "here" / STEPS[1], source / STEPS[1])
    assert f"{mirror.url}/{newer} is damaged" in caplog.text
    assert sorted(path.name for path in (tmp_path / "here").glob("*.ckpt")) == ["last.ckpt", STEPS[1]]


def test_a_download_that_breaks_off_leaves_nothing_and_no_older_one_is_taken(filled, object_store, tmp_path):
    mirror, _ = filled
    object_store.fail(Fault("half", match="step-"))
    hasty = Mirror(mirror.url, Storage(object_store.options(), 0.2, 5.0))
    with pytest.raises(Unreachable, match=f"{STEPS[2]} could not be had"):
        restore(hasty, tmp_path / "here", "last")
    assert [path for path in (tmp_path / "here").iterdir() if "step" in path.name] == []


def test_a_new_run_does_not_mix_with_the_one_that_is_there(filled, tmp_path):
    mirror, _ = filled
    with pytest.raises(FileExistsError, match=f"{mirror.url} holds a run already. Resume it with --ckpt_path last"):
        restore(mirror, tmp_path / "here", None)
    restore(mirror, tmp_path / "here", str(tmp_path / "x.ckpt"))
    assert not (tmp_path / "here").exists()


def test_an_empty_mirror_brings_nothing(object_store, tmp_path):
    restore(mirror_of(object_store, "nothing"), tmp_path / "here", "auto")
    assert not (tmp_path / "here").exists()


@pytest.mark.slow
def test_one_is_fetched_by_its_url_or_the_newest_by_that_of_the_run(filled, object_store, tmp_path, monkeypatch):
    mirror, source = filled
    for name, value in (("AWS_ENDPOINT_URL", object_store.endpoint), ("AWS_ACCESS_KEY_ID", "tester"),
                        ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    assert same(fetched(mirror.url, tmp_path / "newest"), source / STEPS[2])
    assert same(fetched(f"{mirror.url}/{STEPS[1]}", tmp_path / "one"), source / STEPS[1])
    with pytest.raises(FileNotFoundError, match="step-00000004.ckpt: there is no whole checkpoint.*names step-0"):
        fetched(f"{mirror.url}/step-00000004.ckpt", tmp_path / "none")
