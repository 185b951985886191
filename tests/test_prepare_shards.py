"""Several machines prepare one source: the bytes are those of one machine, whatever fails or comes twice."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import content, save_tokenizer, sentences

from lit_cpt.cli import main
from lit_cpt.prepare import PrepareSettings, Shard, prepare_shard, prepare_source
from lit_cpt.prepare.run import locked

SETTINGS = PrepareSettings(validation=0.1, part_bytes=3000, chunk_bytes=2000)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Inputs, a tokenizer, and the source that one machine makes of them."""
    folder = tmp_path_factory.mktemp("world")
    inputs = []
    for seed in range(4):
        path = folder / f"{seed}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(40, seed)))
        inputs.append(str(path))
    tokenizer = str(save_tokenizer(folder / "tokenizer"))
    prepare_source(inputs, tokenizer, folder / "alone", SETTINGS, workers=2)
    return inputs, tokenizer, folder / "alone"


@given(st.integers(1, 9), st.integers(0, 40))
def test_each_part_is_in_one_shard(count, parts):
    dealt = [part for index in range(count) for part in Shard(index, count).of(range(parts))]
    assert sorted(dealt) == list(range(parts))


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/4", "0/0", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=rf"shard='?{text}'? is none: give i/n with i from 0 to n - 1"):
        Shard.parse(text)


@pytest.mark.slow
def test_shards_and_merge_give_the_bytes_of_one_machine(world, tmp_path):
    inputs, tokenizer, alone = world
    for index in (2, 0, 1):
        prepare_shard(inputs, tokenizer, tmp_path / "out", Shard(index, 3), SETTINGS, workers=1)
        assert not (tmp_path / "out" / "manifest.json").exists()
    prepare_source(inputs, tokenizer, tmp_path / "out", SETTINGS, workers=1, merge=True)
    assert content(tmp_path / "out") == content(alone)


@pytest.mark.slow
def test_shards_may_work_at_the_same_time_and_one_may_be_repeated(world, tmp_path):
    inputs, tokenizer, alone = world
    failures = []

    def work(index):
        try:
            prepare_shard(inputs, tokenizer, tmp_path / "out", Shard(index, 2), SETTINGS, workers=1)
        except BaseException as error:
            failures.append(error)

    machines = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
    assert not failures
    work(1)
    prepare_source(inputs, tokenizer, tmp_path / "out", SETTINGS, workers=1, merge=True)
    assert content(tmp_path / "out") == content(alone)


@pytest.mark.slow
def test_a_shard_begins_while_another_one_has_been_at_work_for_long(world, tmp_path, monkeypatch):
    inputs, tokenizer, _ = world
    monkeypatch.setattr("lit_cpt.prepare.run.LOCK_WAIT_SECONDS", 0.1)
    prepare_shard(inputs, tokenizer, tmp_path / "out", Shard(0, 3), SETTINGS, workers=1)
    with locked(tmp_path / "out", shared=True):
        prepare_shard(inputs, tokenizer, tmp_path / "out", Shard(1, 3), SETTINGS, workers=1)
    with pytest.raises(ValueError, match=r"parts are missing in .*: run --shard 2/3, then merge"):
        prepare_source(inputs, tokenizer, tmp_path / "out", SETTINGS, merge=True)


@pytest.mark.slow
def test_merging_too_soon_names_the_shards_that_are_missing(world, tmp_path):
    inputs, tokenizer, _ = world
    for index in (0, 2):
        prepare_shard(inputs, tokenizer, tmp_path / "out", Shard(index, 4), SETTINGS, workers=1)
    with pytest.raises(ValueError, match=r"parts are missing in .*: run --shard 1/4, --shard 3/4, then merge"):
        prepare_source(inputs, tokenizer, tmp_path / "out", SETTINGS, merge=True)


def test_a_shard_of_other_settings_is_refused(world, tmp_path):
    inputs, tokenizer, _ = world
    prepare_shard(inputs, tokenizer, tmp_path / "out", Shard(0, 2), SETTINGS, workers=1)
    other = PrepareSettings(validation=0.2, part_bytes=3000, chunk_bytes=2000)
    with pytest.raises(ValueError, match="an unfinished preparation that differs: validation was 0.1 and is 0.2"):
        prepare_shard(inputs, tokenizer, tmp_path / "out", Shard(1, 2), other, workers=1)
    with pytest.raises(ValueError, match=r"an unfinished preparation that differs: input .*3.jsonl is no longer named"):
        prepare_shard(inputs[:3], tokenizer, tmp_path / "out", Shard(1, 2), SETTINGS, workers=1)


@pytest.mark.slow
def test_more_shards_than_parts_leave_some_without_work(world, tmp_path):
    inputs, tokenizer, _ = world
    settings = PrepareSettings()  # one part
    for index in range(2):
        prepare_shard(inputs, tokenizer, tmp_path / "out", Shard(index, 2), settings, workers=1)
    assert prepare_source(inputs, tokenizer, tmp_path / "out", settings, merge=True).train.documents > 100


def test_a_finished_source_is_left_alone(world):
    inputs, tokenizer, alone = world
    before = content(alone)
    prepare_shard(inputs, tokenizer, alone, Shard(0, 2), SETTINGS)
    assert content(alone) == before


def test_a_whole_preparation_waits_for_shards_and_says_so(world, tmp_path, monkeypatch):
    inputs, tokenizer, _ = world
    monkeypatch.setattr("lit_cpt.prepare.run.LOCK_WAIT_SECONDS", 0.1)
    prepare_shard(inputs, tokenizer, tmp_path / "out", Shard(0, 2), SETTINGS, workers=1)
    with locked(tmp_path / "out", shared=True), pytest.raises(ValueError, match="another `lit-cpt prepare` is at work"):
        prepare_source(inputs, tokenizer, tmp_path / "out", SETTINGS, merge=True)


@pytest.mark.slow
def test_the_command_does_shards_and_merges(world, tmp_path, capsys):
    inputs, tokenizer, _ = world
    command = ["prepare", "--input", *inputs, "--tokenizer", tokenizer, "--output", str(tmp_path / "out")]
    assert main([*command, "--shard", "4/4"]) == 2
    assert "shard=4/4 is none" in capsys.readouterr().err
    assert main([*command, "--shard", "0/1", "--overwrite"]) == 2
    assert "goes with neither merge nor overwrite" in capsys.readouterr().err
    for more in (["--shard", "0/1"], ["--merge"]):
        ran = subprocess.run([sys.executable, "-m", "lit_cpt", *command, *more], capture_output=True, text=True,
                             check=False)
        assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "manifest.json").is_file()
