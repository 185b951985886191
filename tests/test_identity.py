from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import LENGTH, write_source

from lit_cpt.blends import Blend
from lit_cpt.identity import Difference, accepted_changes, content_of, differences, identity_of, index_of
from lit_cpt.manifest import InputFile, Manifest
from lit_cpt.recipe import AdamW, Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import WSD, Cosine

TOKENS = 4 * LENGTH
GENERAL = Phase("general", Blend({"a": 0.6, "b": 0.4}))
LATE = Phase("late", Blend({"a": 0.1, "b": 0.9}), Trigger(step=6))
RECIPE = Recipe(10 * TOKENS, Cosine(1e-2), [GENERAL, LATE])


def identity(sources, recipe=RECIPE, **changed):
    data = {"batch": Batch(LENGTH, 4), "seed": 42, "window": 8, "shards": 1, **changed}
    return identity_of(recipe, SimpleNamespace(used={name: sources[name] for name in recipe.sources}, **data))


def told(sources, recipe=RECIPE, seen=3 * TOKENS, **changed):
    """The differences of a run that is resumed with something else, as a message tells them."""
    now = identity(sources, recipe, **changed)
    return [str(difference) for difference in differences(identity(sources), now, seen)]


def test_an_identity_is_plain_values_and_differs_from_itself_in_nothing(sources):
    mine = identity(sources)
    assert json.loads(json.dumps(mine)) == mine
    assert differences(json.loads(json.dumps(mine)), identity(sources), 10 * TOKENS) == []


@pytest.mark.parametrize(("recipe", "changed", "message"), [
    (RECIPE, {"seed": 7}, "data.seed: 42 -> 7"),
    (RECIPE, {"window": 2}, "data.window: 8 -> 2"),
    (RECIPE, {"shards": 2}, "data.shards: 1 -> 2"),
    (replace(RECIPE, token_horizon=20 * TOKENS), {}, "recipe.token_horizon: 320 -> 640"),
    (replace(RECIPE, curve=Cosine(1e-2, 1e-5)), {},
     "recipe.curve: init_args.eta_min=0.0001 -> init_args.eta_min=1e-05"),
    (replace(RECIPE, optimizer=AdamW(clip=0.5)), {}, "recipe.optimizer: clip=1.0 -> clip=0.5"),
    (replace(RECIPE, phases=[GENERAL]), {}, "recipe.phases.late: there -> not there"),
    (replace(RECIPE, phases=[GENERAL, replace(LATE, when=Trigger(step=7))]), {},
     "recipe.phases.late: when.step=6 -> when.step=7"),
    (replace(RECIPE, phases=[replace(GENERAL, blend=Blend({"a": 0.5, "b": 0.5})), LATE]), {},
     "recipe.phases.general: blend.weights.a=0.6, blend.weights.b=0.4 -> blend.weights.a=0.5, blend.weights.b=0.5")])
def test_what_decides_the_run_is_told_apart_under_its_name_on_the_command_line(sources, recipe, changed, message):
    assert told(sources, recipe, **changed) == [message]


def test_another_kind_of_curve_is_told(sources):
    [message] = told(sources, replace(RECIPE, curve=WSD(1e-2)))
    assert message.startswith("recipe.curve: class_path=Cosine")
    assert "-> class_path=WSD" in message


def test_a_name_alone_is_a_difference_and_an_order_too(sources):
    assert told(sources, replace(RECIPE, phases=[GENERAL, replace(LATE, name="qa")])) == [
        "recipe.phases.late: name=late -> name=qa"]


def test_a_phase_appended_in_the_future_is_none_nor_are_the_sources_it_brings(sources):
    longer = replace(RECIPE, phases=[GENERAL, LATE, Phase("last", Blend({"c": 1.0}), Trigger(step=8))])
    assert told(sources, longer, seen=8 * TOKENS) == []
    assert told(sources, longer, seen=9 * TOKENS) == [
        "recipe.phases.last: not there -> begins at 256 tokens, and 288 are trained"]


def test_a_phase_appended_on_a_metric_cannot_have_begun(sources):
    longer = replace(RECIPE, phases=[GENERAL, LATE, Phase("last", Blend({"c": 1.0}), Trigger(metric="val/a/loss < 1"))])
    assert told(sources, longer, seen=10 * TOKENS) == []


# Sources -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path):
    """Two sources of one's own."""
    return {name: str(write_source(tmp_path / name, number, 40)) for number, name in enumerate("ab")}


def test_a_source_may_move_and_be_touched(mine, tmp_path):
    before = identity(mine)
    moved = {**mine, "a": str(shutil.move(mine["a"], tmp_path / "elsewhere"))}
    (tmp_path / "elsewhere" / "index.json").touch()
    assert differences(before, identity(moved), 0) == []


def test_other_content_is_another_source(mine, tmp_path):
    before = identity(mine)
    [difference] = differences(before, identity({**mine, "b": str(write_source(tmp_path / "other", 1, 41))}), 0)
    assert difference.field == "data.sources.b"
    assert difference.was == f"content {before['data.sources']['b'][:12]}"


def test_another_tokenizer_is_told_by_its_fingerprint(mine, tmp_path):
    other = {name: str(write_source(tmp_path / f"{name}2", number, 40, "e" * 64)) for number, name in enumerate("ab")}
    told = differences(identity(mine), identity(other), 0)
    assert Difference("data.tokenizer", "ffffffffffff", "eeeeeeeeeeee") in told


def test_what_a_source_was_made_from_is_its_content_and_where_that_lay_is_not(mine):
    manifest = Manifest.load(mine["a"])
    base = content_of(manifest, b"index")

    def content(index=b"index", **changed):
        return content_of(replace(manifest, **changed), index)

    def input_of(path, sha, mtime=0):
        return (InputFile(path, 10, mtime, (sha,)),)

    assert content(b"other") != base
    assert content(settings={"text_key": "body"}) != base
    assert content(settings={"tokenizer": "/here", "tokenizer_files": ["x"]}) == base
    assert content(inputs=input_of("/x", "1")) != content(inputs=input_of("/x", "2"))
    assert content(inputs=input_of("/x", "1")) == content(inputs=input_of("/y", "1", 5))
    assert index_of(mine["a"]) == (Path(mine["a"]) / "index.json").read_bytes()
    assert index_of(Path(mine["a"]).parent) == b""


def test_a_data_module_of_ones_own_is_compared_in_what_it_has(sources):
    own = identity_of(RECIPE, SimpleNamespace(batch=Batch(LENGTH, 4)))
    assert "data.seed" not in own
    assert differences(identity(sources), own, 0) == []
    assert differences(own, identity(sources), 0) == []


# Allowing ------------------------------------------------------------------------------------------------------


def test_a_difference_is_refused_with_every_cure(sources):
    now = identity(sources, replace(RECIPE, phases=[GENERAL]), seed=7)
    with pytest.raises(ValueError, match=r"not the one that the checkpoint was saved by \(96 tokens seen\)\. data\.seed"
                       r": 42 -> 7; recipe\.phases\.late: there -> not there\. Restore what was, or accept the change "
                       r"with --allow-change data\.seed --allow-change recipe\.phases\.late\."):
        accepted_changes(identity(sources), now, 96, [])
    with pytest.raises(ValueError, match=r"seen\)\. data.seed: 42 -> 7\. Restore"):
        accepted_changes(identity(sources), now, 96, ["recipe.phases.late"])


@pytest.mark.parametrize("allowed", [["data.seed", "recipe.phases.late"],
                                     ["recipe.phases", "data.seed", "data.window"]])
def test_what_is_allowed_is_accepted_and_told(sources, allowed):
    now = identity(sources, replace(RECIPE, phases=[GENERAL]), seed=7)
    assert [change.field for change in accepted_changes(identity(sources), now, 96, allowed)] == [
        "data.seed", "recipe.phases.late"]


def test_a_field_that_there_is_not_is_refused_with_those_there_are(sources):
    with pytest.raises(ValueError, match=r"--allow-change data\.sed: there is no such field; there are recipe\."
                       r"token_horizon, .*data\.seed, .*recipe\.phases\.late, data\.sources\.a, data\.sources\.b\."):
        accepted_changes(identity(sources), identity(sources), 0, ["data.sed"])
    with pytest.raises(ValueError, match=r"--allow-change recipe\.phases\.lat: there is no such field"):
        accepted_changes(identity(sources), identity(sources), 0, ["recipe.phases.lat"])


@pytest.mark.parametrize("field", ["data.sequence_length", "data.global_batch"])
def test_the_geometry_of_a_batch_cannot_be_allowed(sources, field):
    with pytest.raises(ValueError, match=f"--allow-change {field}: it ties steps to tokens and cannot change in a run"):
        accepted_changes(identity(sources), identity(sources), 0, [field])


def test_identities_are_compared_without_torch():
    code = "import sys, lit_cpt.identity\nprint('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "False", ran.stderr
