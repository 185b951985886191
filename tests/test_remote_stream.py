"""The stream over object stores: the same samples as from a local disk, each node fetching little more than its own."""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import replace

import pytest
import yaml
from conftest import LENGTH, name_of, write_source
from object_store import EXPIRED, Fault, object_store_fixture  # noqa: F401

from lit_cpt.blends import Blend
from lit_cpt.cli import main
from lit_cpt.data import BlendDataModule
from lit_cpt.data_check import check_data
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.remote import Unreachable
from lit_cpt.schedules import Cosine
from lit_cpt.stream import Remote

ROWS = {"big": 2048, "small": 37}
FIRST, SECOND = {"big": 0.95, "small": 0.05}, {"big": 0.8, "small": 0.2}
STEPS, GLOBAL, SHARDS = 500, 8, 8
BLOCK_BYTES = (LENGTH + 1) * 4
RECIPE = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-2), [Phase("first", Blend(FIRST)),
                                                        Phase("late", Blend(SECOND), Trigger(eta_over_eta_max=0.2))])


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    root = tmp_path_factory.mktemp("remote-sources")
    return {name: str(write_source(root / name, number, rows)) for number, (name, rows) in enumerate(ROWS.items())}


def data_of(sources, cache, options=None, size="20KB", recipe=RECIPE, **settings):
    remote = Remote(str(cache), size, options or {}, retry_seconds=120, attempt_seconds=5)
    return BlendDataModule(recipe, sources, LENGTH, GLOBAL, **{
        "micro_batch": 1, "workers": 0, "window": 1, "shards": SHARDS, "remote": remote, **settings})


@pytest.fixture
def as_rank(monkeypatch):
    def set_rank(rank, world):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("GLOBAL_RANK", str(rank))

    return set_rank


def read(data, steps, world=1, switch=200):
    """(source, row) of this rank's samples, step by step."""
    loader = data.loader(world)
    loader.plan([(switch * GLOBAL, SECOND)])
    count = GLOBAL // world // data.batch.micro_batch
    batches = iter(loader)
    steps = [[name_of(block) for batch in itertools.islice(batches, count) for block in batch] for _ in range(steps)]
    batches.close()
    return steps


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_source_gives_the_stream_of_a_local_one(local, tmp_path, workers):
    remote = {name: f"local:{folder}" for name, folder in local.items()}
    here = read(data_of(local, tmp_path), 260)
    assert read(data_of(remote, tmp_path / "cache", workers=workers), 260) == here


def test_validation_blocks_are_brought_here(local, tmp_path):
    data = data_of({name: f"local:{folder}" for name, folder in local.items()}, tmp_path)
    assert data.validation_names == ["big", "small"]
    rows = [[name_of(block) for batch in loader for block in batch] for loader in data.val_dataloader()]
    assert rows == [[(source, row) for row in range(6)] for source in (0, 1)]


def test_data_check_reads_a_remote_source(local, tmp_path):
    data = data_of({**local, "big": f"local:{local['big']}"}, tmp_path)
    assert check_data(data, 20).passed


def test_a_plan_knows_the_size_of_a_remote_source(local, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sources = {name: f"local:{folder}" for name, folder in local.items()}
    data = {"sources": sources, "sequence_length": LENGTH, "global_batch": GLOBAL, "remote": {"cache": "cache"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"recipe": RECIPE.describe(), "data": data}))
    assert main(["plan", "--config", "run.yaml", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert all(source["epochs"] for source in plan["sources"])


def test_a_cache_below_the_live_set_is_refused_with_what_is_needed(local, tmp_path):
    data = data_of({name: f"local:{folder}" for name, folder in local.items()}, tmp_path, size=5000)
    with pytest.raises(ValueError, match="a cache of 5e-06 GB is too small: 2 sources x 8 shards x 2 windows"):
        data.loader(1)


def test_shards_that_do_not_divide_the_global_batch_are_refused(local, tmp_path):
    with pytest.raises(ValueError, match="shards=3 does not divide global_batch=8"):
        data_of(local, tmp_path, shards=3)


# S3 ----------------------------------------------------------------------------------------------------


@pytest.fixture
def uploaded(local, object_store):
    return {name: object_store.upload(folder, name) for name, folder in local.items()}


@pytest.mark.slow
def test_four_nodes_fetch_little_more_than_they_train_on_and_repeat_nothing(local, uploaded, object_store, tmp_path,
                                                                           as_rank):
    nodes, here = 4, read(data_of(local, tmp_path), STEPS)
    steps = [[] for _ in range(STEPS)]
    ratios = []
    for node in range(nodes):
        as_rank(node, nodes)
        object_store.heal()
        mine = read(data_of(uploaded, tmp_path / f"node{node}", object_store.options()), STEPS, nodes)
        fetched = sum(request.bytes for request in object_store.requests("chunk-") if "validation" not in request.path)
        ratios.append(fetched / (STEPS * GLOBAL / nodes * BLOCK_BYTES))
        for step, samples in zip(steps, mine, strict=True):
            step += samples
    assert [sorted(step) for step in steps] == [sorted(step) for step in here]
    assert max(ratios) <= 1.3, ratios
    first_epoch = [row for step in steps[:190] for source, row in step if source == 0]
    assert len(first_epoch) == len(set(first_epoch))


@pytest.mark.parametrize("fault", [Fault("error", share=0.3),
                                   Fault("error", status=500, code="InternalError", share=0.3),
                                   Fault("drop", share=0.3), Fault("half", share=0.3)],
                         ids=["slow-down", "internal-error", "dropped", "cut-short"])
def test_faults_of_the_store_leave_the_stream_as_it_is(local, uploaded, object_store, tmp_path, fault):
    here = read(data_of(local, tmp_path), 40)
    object_store.fail(fault)
    assert read(data_of(uploaded, tmp_path / "cache", object_store.options()), 40) == here
    assert any(request.fault for request in object_store.requests("chunk-"))


def test_expired_credentials_end_the_run_at_once_and_say_so(uploaded, object_store, tmp_path, as_rank):
    data = data_of(uploaded, tmp_path, object_store.options())
    loader = data.loader(1)
    object_store.fail(EXPIRED)
    with pytest.raises(Unreachable, match="ExpiredToken.*Renew the credentials"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_refuses_is_one_line_on_the_command_line(uploaded, object_store, tmp_path, capsys, workers):
    data = {"sources": uploaded, "sequence_length": LENGTH, "global_batch": GLOBAL, "workers": workers, "window": 1,
            "remote": {"cache": str(tmp_path / "cache"), "storage_options": object_store.options()}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"recipe": RECIPE.describe(), "data": data}))
    object_store.fail(replace(EXPIRED, match="chunk-"))
    assert main(["data", "check", str(tmp_path / "run.yaml"), "--steps", "2"]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("lit-cpt data: s3://sources/")
    assert ("ExpiredToken" in told) == (workers == 0)  # a forked worker's client asks by HEAD, which has no body
    assert "Renew the credentials" in told


@pytest.mark.slow
def test_a_run_outlasts_an_outage_of_30_seconds(local, uploaded, object_store, tmp_path, caplog):
    here = read(data_of(local, tmp_path), 60)
    data = data_of(uploaded, tmp_path / "cache", object_store.options())
    loader = data.loader(1)
    object_store.fail(Fault("error", match="", method="", seconds=30))
    with caplog.at_level(logging.WARNING):
        names = [name_of(block) for batch in itertools.islice(loader, 60 * GLOBAL) for block in batch]
    assert names == [name for step in here for name in step]
    assert "store unreachable for" in caplog.text
