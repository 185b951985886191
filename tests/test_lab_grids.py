"""Grids that share runs: variables, repetitions for the noise floor, controls within a stratum, rehearsals."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from lit_cpt.ablate_command import course_of, grids_of, restricted
from lit_cpt.cli import main
from lit_cpt.lab.grid import grid_of, read_grid, rehearsed, runs_of
from lit_cpt.lab.trunk import budget, plan_legs
from lit_cpt.settings import find_config

BASE = {"model": {"pretrained": "{models}/{start}"}, "data": {"seed": 0},
        "recipe": {"token_horizon": "1M", "phases": [], "curve": {"eta_min": 0}}}
SHIPPED = sorted(path.stem for path in (Path(str(files("lit_cpt"))) / "configs" / "ablations").glob("*.yaml")
                 if path.stem != "microworld")


def grid(given=None, **parts):
    return grid_of({"variables": {"models": "m"}, "base": BASE, "axes": {"blend": {"old": {}, "new": {"data.mix": 1}}},
                    "replicates": {"start": {"a": {}, "b": {}}}, "control": {"blend": "old"}, **parts}, given)


# Variables and labels --------------------------------------------------------------------------------------------


def test_a_name_in_braces_is_a_variable_or_the_arms_value_of_an_axis():
    assert [arm.config["model"]["pretrained"] for arm in grid().arms] == ["m/a", "m/b"] * 2
    assert grid({"models": "/data"}).arms[0].config["model"]["pretrained"] == "/data/a"
    other = grid(base={**BASE, "note": ["{blend}", "{unknown}"]})
    assert other.arms[-1].config["note"] == ["new", "{unknown}"]


@pytest.mark.parametrize(("variables", "parts", "message"), [
    ({"model": "x"}, {}, "it has no variable 'model'; its variables are models"),
    ({}, {"variables": ["a"]}, r"variables is \['a'\]: write NAME: VALUE"),
    ({}, {"noise": {"data.seed": [1]}}, r"noise is {'data.seed': \[1\]}: write again: {data.seed"),
    ({}, {"noise": {"again": {"data.seed": [1]}, "of": {"blend": "newer"}}}, "noise.of.blend is newer: the axis")])
def test_bad_variables_and_repetitions_are_refused(variables, parts, message):
    with pytest.raises(ValueError, match=message):
        grid(variables, **parts)


# Repetitions -----------------------------------------------------------------------------------------------------


def test_the_control_is_repeated_in_every_replicate_unless_another_arm_is_named():
    again = {"again": {"data.seed": [7, 8]}}
    assert [arm.name for arm in grid(noise=again).arms if arm.again] == [
        f"blend=old,start={start},again={seed}" for seed in (7, 8) for start in "ab"]
    found = [arm for arm in grid(noise={**again, "of": {"blend": "new"}}).arms if arm.again]
    assert {(arm.treatment, arm.config["data"]["seed"]) for arm in found} == {("blend=new", 7), ("blend=new", 8)}
    assert {(arm.pair, arm.block) for arm in found} == {("start=a", "start=a"), ("start=b", "start=b")}


# Controls --------------------------------------------------------------------------------------------------------


def test_an_axis_that_the_control_leaves_out_divides_the_comparisons():
    found = grid(axes={"length": {"recipe.token_horizon": ["1M", "3M"]}, "blend": {"old": {}, "new": {"data.mix": 1}}})
    assert found.controls == {f"length={length},blend={blend}": f"length={length},blend=old"
                              for length in ("1M", "3M") for blend in ("old", "new")}
    assert [arm.treatment for arm in found.arms if found.is_control(arm)] == [
        "length=1M,blend=old", "length=1M,blend=old", "length=3M,blend=old", "length=3M,blend=old"]


# Several grids ---------------------------------------------------------------------------------------------------


def test_arms_that_grids_have_in_common_are_one_run():
    other = grid(axes={"blend": {"newest": {"data.mix": 2}, "usual": {}}}, control={"blend": "usual"})
    runs, placed = runs_of({"one": grid(), "two": other})
    assert list(runs) == ["one/blend=old,start=a", "one/blend=old,start=b", "one/blend=new,start=a",
                          "one/blend=new,start=b", "two/blend=newest,start=a", "two/blend=newest,start=b"]
    assert placed["two"]["blend=usual,start=b"] == "one/blend=old,start=b"
    alone, _ = runs_of({"one": grid()})
    assert list(alone) == [arm.name for arm in grid().arms]


def test_only_some_values_of_an_axis_may_be_asked_for():
    grids = {"one": grid(noise={"again": {"data.seed": [7]}})}
    part = restricted(grids, [("start", "a"), ("nowhere", "x")])["one"]
    assert [arm.name for arm in part.arms] == ["blend=old,start=a", "blend=new,start=a", "blend=old,start=a,again=7"]
    assert restricted(grids, [("start", "a"), ("start", "b")]) == restricted(grids, []) == grids
    with pytest.raises(ValueError, match="--only blend=new leaves one without its control"):
        restricted(grids, [("blend", "new")])


def test_two_grids_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "grid.yaml").write_text(yaml.safe_dump(
            {"base": BASE, "axes": {"x": {"data.seed": [1]}}, "control": {"x": 1}}))
    with pytest.raises(ValueError, match="two of these grids have one name"):
        grids_of([str(tmp_path / "a/grid.yaml"), str(tmp_path / "b/grid.yaml")], {}, 1.0)


# Rehearsals ------------------------------------------------------------------------------------------------------


def test_a_rehearsal_trains_a_share_in_whole_steps_and_at_least_ten():
    arm = grid().arms[0]
    assert rehearsed(arm, 0.5, 512).config["recipe"]["token_horizon"] == 977 * 512
    assert rehearsed(arm, 0.001, 512).config["recipe"]["token_horizon"] == 10 * 512
    assert arm.config["recipe"]["token_horizon"] == "1M"


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"--rehearse {share:g}: give a share"):
        grids_of([], {}, share)


@pytest.mark.parametrize("option", ["set", "only"])
def test_what_is_set_or_asked_for_is_a_name_with_a_value(option, capsys):
    assert main(["ablate", "ablations/first_three", f"--{option}", "worlds", "--plan"]) == 2
    assert f"--{option} worlds: write NAME=VALUE" in capsys.readouterr().err


# The grids that are shipped --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return {name: read_grid(f"ablations/{name}") for name in SHIPPED}


def test_every_grid_that_is_promised_is_there():
    assert set(SHIPPED) >= {"first_three", "switch_point", "schedules", "horizons", "base_budget", "blend_weights",
                            "optimizer_state", "architectures"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_grid_has_three_bases_and_a_noise_floor(shipped, name):
    arms = shipped[name].arms
    assert len({arm.pair for arm in arms}) >= 3
    assert {arm.pair for arm in arms if arm.again} == {arm.pair for arm in arms}
    assert any(shipped[name].is_control(arm) for arm in arms)


@pytest.mark.parametrize("name", SHIPPED)
def test_arms_of_a_shipped_grid_train_the_same_tokens_unless_that_is_compared(shipped, name):
    grid = shipped[name]
    for arm in grid.arms:
        control = next(one for one in grid.arms if one.treatment == grid.controls[arm.treatment])
        assert course_of(arm).steps == course_of(control).steps, arm.name


def test_the_switch_points_cost_at_most_six_tenths_of_separate_runs(shipped):
    courses = {arm.name: course_of(arm) for arm in shipped["switch_point"].arms if not arm.again}
    assert budget(plan_legs(courses)).share <= 0.6


def test_schedules_holds_every_curve_and_one_of_ones_own_and_all_switch_at_the_same_step(shipped):
    courses = [course_of(arm).recipe for arm in shipped["schedules"].arms]
    kinds = {type(recipe.curve).__name__ for recipe in courses}
    assert kinds == {"Cosine", "Constant", "Linear", "WSD", "InverseSqrt", "Warmup", "Rewarm", "Exponential"}
    assert {tuple(recipe.start_steps(512)) for recipe in courses} == {(0, 1139)}


def test_all_shipped_grids_have_the_same_recipe_in_common(shipped):
    _, placed = runs_of(shipped)
    usual = {name: {run for arm, run in placed[name].items() if "world=0" in arm and "again" not in arm}
             for name in shipped}
    common = set.intersection(*(runs_ for name, runs_ in usual.items() if name != "first_three"))
    assert len(common) == 1


CURVE = '''
from dataclasses import dataclass
from lit_cpt.schedules import Curve

@dataclass(frozen=True)
class Stairs(Curve):
    """Half the rate after each quarter."""
    eta_max: float

    def eta(self, progress: float) -> float:
        return self.eta_max / 2 ** min(3, int(4 * progress))
'''


def test_a_curve_in_a_file_of_ones_own_stands_beside_ours(tmp_path, monkeypatch):
    (tmp_path / "my_curves.py").write_text(CURVE)
    monkeypatch.syspath_prepend(tmp_path)
    grid = yaml.safe_load(find_config("ablations/schedules").read_text())
    grid["axes"]["curve"] = {"usual": {}, "stairs": {
        "recipe.curve": {"class_path": "my_curves.Stairs", "init_args": {"eta_max": 6e-4}},
        "recipe.phases.1.when": {"eta_over_eta_max": 0.2}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**grid, "control": {"curve": "usual"}}))
    arms = {arm.treatment: arm for arm in read_grid(tmp_path / "grid.yaml").arms}
    stairs = course_of(arms["curve=stairs"]).recipe
    assert stairs.eta_at(0) == 6e-4
    assert stairs.start_steps(512) == [0, 1200]  # where an eighth of the rate is reached first
