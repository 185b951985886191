"""Every config that lit_cpt ships is found, loads, says only what differs from a default, and fits the others."""

from __future__ import annotations

import importlib
import inspect
import itertools
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM

import lit_cpt
from lit_cpt.callbacks import EvalCallback
from lit_cpt.cli import main
from lit_cpt.data import BlendDataModule
from lit_cpt.harness import Effort, Suite
from lit_cpt.module import ContinuedPretraining
from lit_cpt.occasions import Occasions
from lit_cpt.recipe import AdamW, Phase, Recipe, Trigger
from lit_cpt.settings import SHIPPED, find_config, read_config
from lit_cpt.weights import config_of

ROOT = Path(__file__).parent.parent / "configs"
# Grids are no configs: tests/test_lab_grids.py has them.
NAMES = sorted(str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.rglob("*.yaml")
               if "axes" not in yaml.safe_load(path.read_text(encoding="utf-8")))
RECIPES, HARDWARE = ([name for name in NAMES if name.startswith(part)] for part in ("recipes/", "hardware/"))
GROUPS = {"trainer": Trainer, "data": BlendDataModule, "model": ContinuedPretraining, "recipe": Recipe,
          "optimizer": AdamW, "when": Trigger, "phases": Phase, "suite": Suite, "effort": Effort}
OF_ONE = {(EvalCallback, "when"): Occasions}  # arguments that mean something else in one class
named = pytest.mark.parametrize("name", NAMES)


def class_of(path):
    """The class that ``class_path`` means: lit_cpt's own may be written without their module."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module) if module else lit_cpt, name)


def at_their_default(values, kind, where):
    """Keys of ``values``, arguments of ``kind``, that repeat a default, however deep."""
    defaults = {name: item.default for name, item in inspect.signature(kind).parameters.items()}
    for key, value in values.items():
        name = key.removesuffix("+")
        assert name in defaults, f"{where}.{key} is no argument of {kind.__name__}"
        if value == defaults[name]:
            yield f"{where}.{key}"
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and "class_path" in item:
                yield from at_their_default(item.get("init_args", {}), class_of(item["class_path"]), f"{where}.{key}")
            elif isinstance(item, dict) and name in GROUPS:
                yield from at_their_default(item, OF_ONE.get((kind, name), GROUPS[name]), f"{where}.{key}")


@named
def test_a_config_is_found_by_name_and_is_the_one_at_the_top_level(name):
    assert find_config(name).samefile(ROOT / f"{name}.yaml")
    assert find_config(name).is_relative_to(SHIPPED)


@named
def test_a_config_says_why_it_is_there(name):
    assert (ROOT / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


@named
def test_a_config_repeats_no_default(name):
    config = read_config(find_config(name))
    repeated = [key for group, values in config.items() if group != "seed_everything"
                for key in at_their_default(values, GROUPS[group], group)]
    assert not repeated, f"{name} states {repeated} at the default: leave it out"


def test_a_default_that_is_repeated_is_found():
    assert list(at_their_default({"workers": 2, "seed": 1}, BlendDataModule, "data")) == ["data.workers"]
    phases = [{"name": "x", "when": {"eta": None, "step": 3}}]
    curve = {"class_path": "WSD", "init_args": {"eta_max": 1, "decay": 0.2}}
    assert list(at_their_default({"curve": curve, "phases": phases}, Recipe, "recipe")) == [
        "recipe.curve.decay", "recipe.phases.when.eta"]


@named
def test_only_the_base_lists_callbacks_others_append(name):
    config = read_config(find_config(name))
    assert name == "base" or "callbacks" not in config.get("trainer", {})


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_plans_dry(name, capsys):
    assert main(["plan", "--config", name]) == 0
    assert "300B tokens in" in capsys.readouterr().out


def test_the_papers_two_statements_are_two_recipes_that_differ_in_the_trigger_alone():
    paper, tokens = (read_config(find_config(name))["recipe"] for name in ("recipes/paper", "recipes/paper_tokens"))
    assert (paper["phases"][1].pop("when"), tokens["phases"][1].pop("when")) == ({"eta_over_eta_max": 0.2},
                                                                                 {"tokens": "250B"})
    assert paper == tokens


def holds(merged, stated):
    """Whether a merged config says what a file stated; a class also says its defaults."""
    if not isinstance(stated, dict):
        return merged == stated
    return all(holds(merged.get(key), value) for key, value in stated.items())


@pytest.mark.parametrize(("recipe", "hardware"), itertools.product(RECIPES, HARDWARE))
def test_base_recipe_and_hardware_make_a_run_that_fit_accepts(recipe, hardware, capsys):
    names = {source for phase in read_config(find_config(recipe))["recipe"]["phases"]
             for source in phase["blend"]["weights"]}
    arguments = ["--config", "base", "--config", recipe, "--config", hardware, "--model.pretrained", "my/model",
                 "--data.sources", yaml.safe_dump({name: f"data/{name}" for name in names}, default_flow_style=True)]
    assert main(["fit", *arguments, "--print_config"]) == 0
    merged = yaml.safe_load(capsys.readouterr().out)
    assert [callback["class_path"].rpartition(".")[2] for callback in merged["trainer"]["callbacks"]] == [
        "PhaseSwitchCallback", "GracefulStopCallback", "RunCheckpointCallback", "TokenLedgerCallback",
        "StabilityCallback", "ForgettingCallback", "ThroughputCallback", "DashboardCallback", "RunProgressBar"]
    own = read_config(find_config(hardware))["trainer"]
    assert all(holds(merged["trainer"][key], value) for key, value in own.items())
    assert merged["trainer"]["max_epochs"] == 1
    assert set(merged["data"]["sources"]) == names
    assert [phase["name"] for phase in merged["recipe"]["phases"]] == ["general", "qa"]


def test_the_papers_model_has_the_papers_size():
    architecture = read_config(find_config("models/nemotron4_15b"))["model"]["architecture"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(architecture))
    assert sum(weight.numel() for weight in model.parameters()) == 15_628_775_424
    assert model.config.hidden_act == "relu2"
    assert model.config.rope_parameters["partial_rotary_factor"] == 0.5


def test_a_run_takes_evaluation_along_by_name(capsys):
    arguments = ["--config", "base", "--config", "recipes/paper", "--config", "hardware/cpu", "--config", "tasks/paper"]
    assert main(["fit", *arguments, "--model.pretrained", "my/model", "--data.sources", "{web: x}",
                 "--print_config"]) == 0
    merged = yaml.safe_load(capsys.readouterr().out)
    last = merged["trainer"]["callbacks"][-1]
    assert last["class_path"].endswith("EvalCallback")
    assert last["init_args"]["suite"]["limit"] == {"mmlu": 20, "hellaswag": 500, "mgsm": 80}
    assert len(last["init_args"]["when"]["fractions"]) == 9
