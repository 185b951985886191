"""`lit-cpt fit` and `validate` on tiny sources, through the command."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest
import torch
import yaml
from conftest import LENGTH, SIZES
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_cpt.blends import Blend
from lit_cpt.cli import main
from lit_cpt.events import read_events
from lit_cpt.plan import plan
from lit_cpt.recipe import Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine
from lit_cpt.training import found_checkpoint

FIRST, SECOND = {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.1, "b": 0.2, "c": 0.7}
GLOBAL, STEPS, SWITCH = 4, 20, 15
RECIPE = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-2), [
    Phase("first", Blend(FIRST)), Phase("late", Blend(SECOND), Trigger(eta_over_eta_max=0.2))])
COMMON = ["--config", "base", "--config", "hardware/cpu", "--config", "run.yaml"]
STOPPER = '''
import os, signal
from lightning.pytorch import Callback

class SignalAt(Callback):
    """Interrupts the run once, in the middle of a step."""
    def __init__(self, step: int) -> None:
        self.step = step
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step and not trainer.ckpt_path:
            self.step = -1
            os.kill(os.getpid(), signal.SIGINT)
'''


def write_config(folder, sources, tiny):
    data = {"sources": sources, "sequence_length": LENGTH, "global_batch": GLOBAL, "micro_batch": 2, "workers": 0}
    (folder / "run.yaml").write_text(yaml.safe_dump(
        {"recipe": RECIPE.describe(), "model": {"architecture": tiny}, "data": data}))


@pytest.fixture
def here(sources, tiny, tmp_path, monkeypatch):
    """A folder with the config of a run, to work in."""
    write_config(tmp_path, sources, tiny)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(sources, tiny, tmp_path_factory):
    """A run that nobody stopped: its folder."""
    folder, before = tmp_path_factory.mktemp("whole"), os.getcwd()
    write_config(folder, sources, tiny)
    os.chdir(folder)
    try:
        assert main(["fit", *COMMON, "--run", "run"]) == 0
    finally:
        os.chdir(before)
    return folder / "run"


def fit(capsys, *more):
    """`lit-cpt fit` into the folder `run`, to its end; what it printed."""
    status = main(["fit", *COMMON, "--run", "run", *more])
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


def saved(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)


def states(run):
    """What a folder holds, to the byte."""
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()
            and "tfevents" not in path.name}


def rates(run):
    """(step, eta) as logged."""
    reader = EventAccumulator(str(run))
    reader.Reload()
    return [(point.step, point.value) for point in reader.Scalars("train/eta")]


# The run folder ------------------------------------------------------------------------------------------


def test_a_run_leaves_config_recipe_plan_events_curves_and_its_last_checkpoint(whole):
    assert yaml.safe_load((whole / "recipe.yaml").read_text()) == {"recipe": RECIPE.describe()}
    blocks = {name: SIZES[name] for name in FIRST}
    expected = plan(RECIPE, Batch(LENGTH, GLOBAL), blocks).describe()
    assert json.loads((whole / "plan.json").read_text()) == json.loads(json.dumps(expected))
    assert [event["event"] for event in read_events(whole)] == ["start", "phase", "finish"]
    assert (saved(whole)["global_step"], saved(whole)["lit_cpt"]["tokens_seen"]) == (STEPS, RECIPE.horizon)
    assert [step for step, _ in rates(whole)] == [10, 20]


def test_the_config_of_a_run_trains_it_again(whole, here, capsys):
    assert main(["fit", "--config", str(whole / "config.yaml"), "--run", "again"]) == 0, capsys.readouterr().err
    one, other = saved(whole)["state_dict"], saved(here / "again")["state_dict"]
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_switch_falls_at_the_planned_step(whole):
    planned = json.loads((whole / "plan.json").read_text())["phases"][1]["start"]
    [phase] = [event for event in read_events(whole) if event["event"] == "phase"]
    assert (phase["step"], phase["tokens_seen"], phase["phase"]) == (planned["step"], planned["tokens"], "late")
    assert phase["step"] == SWITCH
    assert phase["eta"] == pytest.approx(planned["eta"])


def test_the_plan_is_printed_before_training_and_the_end_after(here, capsys):
    out = fit(capsys)
    assert out.startswith("640 tokens in 20 steps of 32 tokens; LR 0.01 to 0.0001")
    assert out.splitlines()[-1] == "run: 20 steps, 640 tokens. To read it: lit-cpt report run"


def test_a_run_without_a_logger_still_has_its_folder(here, capsys):
    fit(capsys, "--trainer.logger", "false", "--data.validation_blocks", "0")
    assert {path.name for path in (here / "run").iterdir()} == {"config.yaml", "recipe.yaml", "plan.json",
                                                                "events.jsonl", "checkpoints"}


# Recipes on the command line ---------------------------------------------------------------------------------


def test_keys_of_the_recipe_are_overridden_one_by_one(here, capsys):
    fit(capsys, "--recipe.token_horizon", "1k", "--recipe.curve.init_args.eta_max", "5e-3",
        "--recipe.optimizer.weight_decay", "0")
    recipe = yaml.safe_load((here / "run" / "recipe.yaml").read_text())["recipe"]
    assert (recipe["token_horizon"], recipe["curve"]["init_args"]["eta_max"]) == (1000, 5e-3)
    assert (recipe["optimizer"]["weight_decay"], recipe["optimizer"]["betas"]) == (0, [0.9, 0.95])
    assert saved(here / "run")["global_step"] == 32


def test_a_recipe_may_be_a_file_of_its_own(here, capsys):
    (here / "mine.yaml").write_text(yaml.safe_dump({**RECIPE.describe(), "token_horizon": 320}))
    fit(capsys, "--recipe", "mine.yaml", "--recipe.token_horizon", "384")
    assert saved(here / "run")["global_step"] == 12


@pytest.mark.parametrize(("curve", "expected"), [
    ({"class_path": "WSD", "init_args": {"eta_max": 1e-2, "decay": 0.5, "shape": "linear"}}, {10: 1e-2, 20: 1e-4}),
    ({"class_path": "Warmup", "init_args": {"fraction": 0.5, "curve": {
        "class_path": "lit_cpt.Linear", "init_args": {"eta_max": 1e-2}}}}, {5: 5e-3, 10: 1e-2, 15: 5.05e-3})])
def test_curves_are_chosen_by_class_path(here, capsys, curve, expected):
    (here / "curve.yaml").write_text(yaml.safe_dump({"recipe": {**RECIPE.describe(), "curve": curve}}))
    fit(capsys, "--config", "curve.yaml", "--trainer.log_every_n_steps", "5")
    logged = dict(rates(here / "run"))
    assert {step: logged[step] for step in expected} == pytest.approx(expected, rel=1e-5)


def test_a_curve_of_ones_own_switches_where_it_falls(here, capsys, monkeypatch):
    (here / "my_curves.py").write_text(
        "from dataclasses import dataclass\nfrom lit_cpt import Curve\n\n@dataclass(frozen=True)\n"
        "class Stairs(Curve):\n    eta_max: float\n    fall: float = 0.5\n\n    def eta(self, progress):\n"
        "        return self.eta_max * (1.0 if progress < self.fall else 0.1)\n")
    monkeypatch.syspath_prepend(str(here))
    (here / "mine.yaml").write_text(yaml.safe_dump({"recipe": {"curve": {
        "class_path": "my_curves.Stairs", "init_args": {"eta_max": 1e-2, "fall": 0.4}}}}))
    out = fit(capsys, "--config", "mine.yaml")
    [phase] = [event for event in read_events(here / "run") if event["event"] == "phase"]
    assert (phase["step"], phase["eta"]) == (8, pytest.approx(1e-3))
    assert re.search(r"late +eta_over_eta_max=0.2 +8 ", out)


# validate ----------------------------------------------------------------------------------------------------


def test_validate_prints_the_loss_of_each_source_and_leaves_the_run_as_it_was(whole, here, capsys):
    before = states(whole)
    files = sorted(whole.iterdir())
    assert main(["validate", *COMMON, "--run", str(whole), "--ckpt_path", "last"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[2:]] == ["a", "b", "c"]
    reader = EventAccumulator(str(whole))
    reader.Reload()
    for source, loss in lines[2:]:
        assert float(loss) == pytest.approx(reader.Scalars(f"val/{source}/loss")[-1].value, abs=1e-4)
    assert (states(whole), sorted(whole.iterdir())) == (before, files)


def test_validate_needs_no_run(here, capsys):
    assert main(["validate", *COMMON, "--run", "nowhere"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert all(3.5 < float(row.split()[1]) < 4.7 for row in rows)  # random weights: about ln 64
    assert len(rows) == 3
    assert not (here / "nowhere").exists()


# Stop and resume -----------------------------------------------------------------------------------------------


def test_a_stopped_run_says_how_to_resume_and_ends_as_the_whole_one(whole, here, capsys, monkeypatch):
    (here / "stopper.py").write_text(STOPPER)
    monkeypatch.syspath_prepend(str(here))
    stopper = "--trainer.callbacks+={class_path: stopper.SignalAt, init_args: {step: 9}}"
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert main(["fit", *COMMON, "--run", "run", stopper]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == ["lit-cpt fit: stopped at step 10; saved run/checkpoints/last.ckpt",
                         f"resume with: lit-cpt fit {' '.join(COMMON)} --run run '{stopper}' --ckpt_path last"]
    assert not [line for line in said if "Traceback" in line]
    assert {number: signal.getsignal(number) for number in before} == before
    fit(capsys, stopper, "--ckpt_path", "last")
    assert [event["event"] for event in read_events(here / "run")] == ["start", "stop", "resume", "phase", "finish"]
    one, other = saved(whole), saved(here / "run")
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


def test_the_resume_line_names_the_checkpoint_once(here, capsys, monkeypatch):
    (here / "restopper.py").write_text(STOPPER.replace(" and not trainer.ckpt_path", ""))
    monkeypatch.syspath_prepend(str(here))
    for step, resume in ((3, []), (6, ["--ckpt_path", "last"]), (9, ["--ckpt_path=run/checkpoints/last.ckpt"])):
        stopper = f"--trainer.callbacks+={{class_path: restopper.SignalAt, init_args: {{step: {step}}}}}"
        assert main(["fit", *COMMON, *resume, "--run", "run", stopper]) == 1
        resumed = capsys.readouterr().err.splitlines()[-1]
        assert resumed.startswith(f"resume with: lit-cpt fit {' '.join(COMMON)} --run run ")
        assert resumed.count("--ckpt_path") == 1
        assert resumed.endswith(" --ckpt_path last")


def test_a_folder_that_holds_a_run_is_not_trained_into_again(whole, here, capsys):
    before = states(whole)
    assert main(["fit", *COMMON, "--run", str(whole)]) == 2
    assert f"{whole} holds a run already. Resume it with --ckpt_path last, or start another" in capsys.readouterr().err
    assert states(whole) == before


def test_a_resume_with_another_batch_is_refused_and_leaves_the_run_as_it_was(whole, here, capsys):
    before = states(whole)
    assert main(["fit", *COMMON, "--run", str(whole), "--ckpt_path", "last", "--data.global_batch", "8"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("lit-cpt fit: the checkpoint was trained with global_batch=4, this run has 8")
    assert said[-1].endswith("Resume with --data.global_batch 4.")
    assert states(whole) == before


def test_the_newest_checkpoint_is_the_last(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, name in enumerate(["last", "00000200", "00000100"]):
        (folder / f"{name}.ckpt").touch()
        os.utime(folder / f"{name}.ckpt", (time.time() - age, time.time() - age))
    assert found_checkpoint(tmp_path, "last") == str(folder / "last.ckpt")
    (folder / "00000200.ckpt").touch()
    os.utime(folder / "00000200.ckpt", (time.time() + 9, time.time() + 9))
    assert found_checkpoint(tmp_path, "last") == str(folder / "00000200.ckpt")
    assert found_checkpoint(tmp_path, str(folder / "00000100.ckpt")) == str(folder / "00000100.ckpt")


def test_a_new_run_needs_no_checkpoint_and_no_folder(tmp_path):
    assert found_checkpoint(tmp_path / "new", None) is None
    assert found_checkpoint(tmp_path, None) is None


@pytest.mark.parametrize(("asked", "kind", "message"), [
    ("last", FileNotFoundError, "--ckpt_path last: there is no checkpoint in .*checkpoints. Leave --ckpt_path out"),
    ("no.ckpt", FileNotFoundError, "--ckpt_path no.ckpt: no such file. Give `last` or a file of .*checkpoints")])
def test_a_checkpoint_that_is_not_there_is_asked_for_in_vain(tmp_path, asked, kind, message):
    with pytest.raises(kind, match=message):
        found_checkpoint(tmp_path, asked)


def test_a_run_folder_is_no_file(tmp_path):
    (tmp_path / "run.yaml").touch()
    with pytest.raises(FileExistsError, match="--run .*run.yaml is a file; name a folder, such as --run runs/run"):
        found_checkpoint(tmp_path / "run.yaml", None)
