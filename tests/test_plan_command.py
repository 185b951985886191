"""`lit-cpt plan` from end to end, on tiny inputs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from datetime import datetime

import pytest
import yaml
from conftest import LENGTH, SIZES
from run_configs import BATCH, RECIPE, RUN, printed, write_configs

from lit_cpt.cli import main
from lit_cpt.data import BlendDataModule
from lit_cpt.forecast import Setup, forecast, render_forecast
from lit_cpt.plan import plan
from lit_cpt.plan_command import DATA, planned_arguments
from lit_cpt.recipe import Batch, Recipe
from lit_cpt.schedules import WSD


@pytest.fixture
def here(sources, tmp_path, monkeypatch):
    """A folder with the configs of a run, to work in."""
    write_configs(tmp_path, sources)
    monkeypatch.chdir(tmp_path)
    return tmp_path


BASE = {"val_check_interval": 0.1, "callbacks": [f"lit_cpt.callbacks.{name}" for name in (
    "RunCheckpointCallback", "ForgettingCallback")]}


def setup(recipe=RECIPE, batch=BATCH, seed=42, **more):
    """What RUN's configs say."""
    return Setup(recipe, batch, seed, tuple(SIZES), SIZES, **{"trainer": BASE, "model": {"pretrained": "nowhere"},
                                                           "ranks": 2, **more})


def as_json(described):
    return json.loads(json.dumps(described.describe()))


# The command ----------------------------------------------------------------------------------------------------


def test_the_plan_printed_is_the_plan(here, capsys):
    assert printed(capsys, *RUN) == render_forecast(forecast(setup())) + "\n"


def test_a_later_configs_phases_replace_an_earlier_ones(here, capsys):
    phases = [{"name": "one", "blend": {"weights": {"a": 1.0}}},
              {"name": "two", "blend": {"weights": {"b": 1.0}}, "when": {"fraction": 0.5}}]  # as many, another trigger
    (here / "mine.yaml").write_text(yaml.safe_dump({"recipe": {"phases": phases}}))
    told = json.loads(printed(capsys, *RUN, "--config", "mine.yaml", "--json"))
    assert [(phase["name"], phase["when"]) for phase in told["phases"]] == [("one", None), ("two", "fraction=0.5")]
    assert json.loads(printed(capsys, *RUN, "--recipe.phases", json.dumps(phases), "--json")) == told


def test_the_plan_as_json_is_the_plan(here, capsys):
    told = json.loads(printed(capsys, *RUN, "--json"))
    assert told == as_json(forecast(setup()))
    assert told.items() >= as_json(plan(RECIPE, BATCH, SIZES)).items()


@pytest.mark.parametrize("more", [
    ["--trainer.devices", "1"], ["--trainer.devices=1"], ["--trainer.fast_dev_run"], ["--run", "there"],
    ["--ckpt_path", "last"], ["--seed_everything", "9"], ["--model.z_loss", "1e-4"], ["--data.workers", "0"],
    ["--data.validation_blocks=1"], ["--trainer.callbacks+", "my.Callback"], ["--trainer.devices", "-1"],
    ["--weights_only", "true"], ["--data.window", "9"]], ids=" ".join)
def test_arguments_of_fit_that_change_nothing_that_is_planned_are_ignored(here, capsys, more):
    plain = printed(capsys, *RUN)
    assert printed(capsys, *RUN, *more) == plain
    assert printed(capsys, RUN[0], *more, *RUN[1:]) == plain


def test_arguments_that_move_tokens_are_heeded_wherever_they_stand(here, capsys):
    told = json.loads(printed(capsys, *RUN, "--trainer.fast_dev_run", "--data.seed", "7", "--run", "x",
                              "--data.global_batch=8", "--recipe.token_horizon", "4k", "--json"))
    longer = Recipe("4k", RECIPE.curve, RECIPE.phases)
    assert told == as_json(forecast(setup(longer, Batch(LENGTH, 8, 2), 7)))


def test_configs_are_merged_as_fit_merges_them(here, capsys):
    (here / "wsd.yaml").write_text("recipe: {curve: {class_path: WSD, init_args: {decay: 0.3}}}")
    (here / "one.yaml").write_text(yaml.safe_dump({"data": {"sources": {"c": "nowhere"}}}))
    told = json.loads(printed(capsys, *RUN, "--config", "wsd.yaml", "--json"))
    assert told == as_json(forecast(setup(Recipe(640, WSD(1e-2, decay=0.3), RECIPE.phases))))
    assert main([*RUN, "--config", "one.yaml"]) == 2
    assert "source 'c': there is no folder 'nowhere'" in capsys.readouterr().err
    later = json.loads(printed(capsys, *RUN, "--recipe.token_horizon", "1280", "--config", "recipe.yaml", "--json"))
    assert later["token_horizon"] == 640  # what stands later holds


def test_a_plan_needs_neither_sources_nor_model(capsys):
    told = json.loads(printed(capsys, "plan", "--config", "recipes/paper", "--data.sequence_length", "4096", "--json"))
    switch = told["phases"][1]["start"]
    assert switch["fraction"] == pytest.approx(0.7113, abs=5e-5)
    assert {source["epochs"] for source in told["sources"]} == {None}


def test_arguments_of_fit_are_told_from_those_of_a_plan():
    given = ["--trainer.x", "1", "--trainer.callbacks+=C", "--json", "--plot", "p.png", "--run", "r", "--data.seed=3"]
    assert planned_arguments(given) == ["--json", "--plot", "p.png", "--data.seed=3"]


def test_a_plan_is_drawn_into_a_file_whose_folder_it_makes(here, capsys):
    printed(capsys, *RUN, "--plot", "plots/plan.png")
    assert (here / "plots" / "plan.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_planning_imports_no_torch(here):
    code = (f"import sys\nfrom lit_cpt.cli import main\nstatus = main({RUN})\n"
            "print([name for name in ('torch', 'lightning', 'litdata', 'transformers') if name in sys.modules])\n"
            "sys.exit(status)")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, "[]"), ran.stderr


def test_the_defaults_of_the_data_are_the_data_modules():
    own = {name: item.default for name, item in inspect.signature(BlendDataModule).parameters.items()}
    assert set(DATA) == set(own) - {"recipe", "allow_change"}
    given = {name: default for name, (_, default) in DATA.items() if name not in ("sources", "remote")}
    assert given == {name: own[name] for name in given}


@pytest.mark.parametrize(("more", "told"), [
    (["--data.sorces", "{a: there}"], "Did you mean data.sources"),
    (["--config", "wrong.yaml"], "Did you mean data.sources"),
    (["--config", "group.yaml"], "allow_change. Did you mean trainer?"),
    (["--recipe.token_horizn", "3"], "Did you mean recipe.token_horizon"),
    (["--tokens_per_secnd", "3"], "Did you mean tokens_per_second"),
    (["--tokens_per_second", "0"], "--tokens_per_second 0: give a number above 0"),
    (["--data.shards", "3"], "shards=3 does not divide global_batch=4"),
    (["--trainer.devices", "3"], "global_batch=4 is no multiple of micro_batch x ranks = 2 x 3"),
    (["--config", "eval.yaml"], "EvalCallback.when takes no every_step; it takes every_tokens, every_steps")])
def test_a_mistake_gets_one_message_that_tells_the_cure(here, capsys, more, told):
    (here / "wrong.yaml").write_text("data: {sorces: {a: there}}")
    (here / "group.yaml").write_text("tranier: {devices: 1}")
    (here / "eval.yaml").write_text("trainer: {callbacks+: [{class_path: lit_cpt.callbacks.EvalCallback, "
                                    "init_args: {when: {every_step: 3}}}]}")
    assert main([*RUN, *more]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line


def test_what_stands_last_of_the_callbacks_settings_decides_the_schedule(here, capsys):
    own = {"class_path": "lit_cpt.callbacks.RunCheckpointCallback", "init_args": {"every_n_steps": 7}}
    (here / "mine.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [own], "limit_val_batches": 0}}))
    more = ["--config", "mine.yaml", "--trainer.callbacks.init_args.keep_every", "5"]
    told = json.loads(printed(capsys, *RUN, *more, "--json"))["agenda"]
    assert (told["validations"], told["checkpoints"]["first"], told["checkpoints"]["count"]) == (None, [5, 7, 10], 6)


def test_dates_are_told_where_a_speed_is(here, capsys):
    lines = printed(capsys, *RUN, "--tokens_per_second", "64").splitlines()
    assert lines[-1].startswith("at 64 tokens/s, training alone, if started now: late begins ")
    when = json.loads(printed(capsys, *RUN, "--tokens_per_second", "1", "--json"))["dates"]
    seconds = datetime.fromisoformat(when["end"]) - datetime.fromisoformat(when["late"])
    assert abs(seconds.total_seconds() - (640 - 480)) <= 60
