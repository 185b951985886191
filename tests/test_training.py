"""`lit-cpt fit` and `validate` on tiny sources, through the command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import LENGTH, SIZES, write_source
from object_store import object_store_fixture  # noqa: F401
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_mirror import mirror_of

from lit_cpt.blends import Blend
from lit_cpt.cli import main
from lit_cpt.events import read_events
from lit_cpt.mirror import Index, write_index
from lit_cpt.plan import plan
from lit_cpt.recipe import Batch, Phase, Recipe, Trigger
from lit_cpt.restarts import RankLost
from lit_cpt.schedules import Cosine
from lit_cpt.training import RunFolderCallback, gathered, resume_command, scale_here, training_command

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


# The mirror ----------------------------------------------------------------------------------------------


@pytest.fixture
def mirrored(whole, object_store, monkeypatch):
    """The mirror of a run that ended, reached as the environment tells."""
    for name, value in (("ENDPOINT_URL", object_store.endpoint), ("ACCESS_KEY_ID", "tester"),
                        ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    mirror = mirror_of(object_store, "training")
    name = f"step-{STEPS:08d}.ckpt"
    mirror.objects.put(whole / "checkpoints" / name, name)
    write_index(mirror.objects, Index().having(name, {name: (whole / "checkpoints" / name).stat().st_size}))
    return mirror.url


@pytest.mark.slow
def test_a_run_is_found_in_its_mirror_by_a_machine_that_has_nothing_of_it(mirrored, whole, here, capsys):
    (here / "mirror.yaml").write_text(yaml.safe_dump({"mirror": {"url": mirrored, "storage": {"retry_seconds": 60.0}}}))
    fit(capsys, "--config", "mirror.yaml", "--ckpt_path", "auto")
    assert yaml.safe_load((here / "run" / "config.yaml").read_text())["mirror"]["url"] == mirrored
    assert (saved(here / "run")["global_step"], read_events(here / "run")[0]["event"]) == (STEPS, "resume")
    assert main(["checkpoint", "inspect", mirrored]) == 0
    assert f"{mirrored}/step-{STEPS:08d}.ckpt" in capsys.readouterr().out
    assert main(["fit", *COMMON, "--run", "other", "--mirror", mirrored]) == 2
    assert f"{mirrored} holds a run already. Resume it with --ckpt_path last" in capsys.readouterr().err


@pytest.mark.parametrize(("mirror", "says"), [
    ("s3://nowhere/run", r"checkpoints cannot be copied to s3://nowhere/run: .*NoSuchBucket.* Check bucket"),
    ("runs/first", r"'runs/first' is no folder in a store")])
def test_a_wrong_mirror_is_refused_before_anything_is_trained(mirrored, here, capsys, mirror, says):
    assert main(["fit", *COMMON, "--run", "run", "--mirror", mirror]) == 2
    said = capsys.readouterr().err
    assert re.search(says, said)
    assert [line for line in said.splitlines() if line.startswith("lit-cpt") or "Traceback" in line] == [
        said.splitlines()[-1]]
    assert not (here / "run").exists()


def test_a_mirror_needs_the_callback_that_copies(mirrored, here, capsys):
    config = {"trainer": {"callbacks": [{"class_path": "lit_cpt.callbacks.PhaseSwitchCallback"}]}}
    (here / "bare.yaml").write_text(yaml.safe_dump({**config, "mirror": mirrored}))
    assert main(["fit", *COMMON, "--config", "bare.yaml", "--run", "run"]) == 2
    assert f"mirror='{mirrored}' needs lit_cpt.callbacks.RunCheckpointCallback" in capsys.readouterr().err


# The run folder ------------------------------------------------------------------------------------------


def test_a_run_leaves_config_recipe_plan_events_curves_and_its_last_checkpoint(whole):
    assert yaml.safe_load((whole / "recipe.yaml").read_text()) == {"recipe": RECIPE.describe()}
    blocks = {name: SIZES[name] for name in FIRST}
    expected = plan(RECIPE, Batch(LENGTH, GLOBAL), blocks).describe()
    assert json.loads((whole / "plan.json").read_text()).items() >= json.loads(json.dumps(expected)).items()
    assert [event["event"] for event in read_events(whole)] == ["start", "phase", "finish"]
    assert (saved(whole)["global_step"], saved(whole)["lit_cpt"]["tokens_seen"]) == (STEPS, RECIPE.horizon)
    assert [step for step, _ in rates(whole)] == [10, 20]


def test_the_plan_of_a_run_holds_what_it_then_did(whole):
    told = json.loads((whole / "plan.json").read_text())
    assert told["agenda"]["validations"] == {"count": 11, "first": [0, 2, 4], "last": STEPS}
    reader = EventAccumulator(str(whole))
    reader.Reload()
    assert [point.step for point in reader.Scalars("val/a/loss")] == [*range(0, STEPS + 1, 2)]
    assert told["agenda"]["checkpoints"] == {"count": 11, "first": [2, 4, 6], "last": STEPS}  # and at the switch
    weights = saved(whole)["state_dict"]
    assert told["checkpoint_bytes"] == 12 * sum(weight.numel() for name, weight in weights.items()
                                                if not name.endswith("lm_head.weight"))  # tied
    assert (told["departures"], "scale" in told) == (["begins with random weights; the paper: pretrained ones"], False)


@pytest.mark.parametrize(("device", "strategy", "told"), [
    ("NVIDIA H100 80GB HBM3", "lit_cpt.parallel.ShardedStrategy", True), ("NVIDIA H100 80GB HBM3", "x.Other", False),
    ("NVIDIA GeForce RTX 4090", "lit_cpt.parallel.ShardedStrategy", False)])
def test_memory_and_hours_are_planned_where_strategy_and_device_are_known(tiny, monkeypatch, device, strategy, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device)
    config = {"model": {"architecture": tiny}, "data": {"micro_batch": 2}, "trainer": {
        "devices": "auto", "strategy": {"class_path": strategy, "init_args": {"compute_dtype": "bfloat16"}}}}
    data = SimpleNamespace(batch=Batch(LENGTH, GLOBAL, 2), recipe=RECIPE)
    found = scale_here(SimpleNamespace(world_size=2), data, config).get("scale")
    assert (found is not None) == told
    if found:
        assert found["layout"]["ranks"] == 2
        assert found["hours"] > 0
    config["model"]["architecture"] = "no/such/model"
    assert scale_here(SimpleNamespace(world_size=2), data, config) == {}


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
                                                                "events.jsonl", "ledger.jsonl", "checkpoints"}


# Recipes on the command line ---------------------------------------------------------------------------------


def test_keys_of_the_recipe_are_overridden_one_by_one(here, capsys):
    fit(capsys, "--recipe.token_horizon", "1k", "--recipe.curve.init_args.eta_max", "5e-3",
        "--recipe.optimizer.weight_decay", "0")
    recipe = yaml.safe_load((here / "run" / "recipe.yaml").read_text())["recipe"]
    assert (recipe["token_horizon"], recipe["curve"]["init_args"]["eta_max"]) == (1000, 5e-3)
    assert (recipe["optimizer"]["weight_decay"], recipe["optimizer"]["betas"]) == (0, [0.9, 0.95])
    assert saved(here / "run")["global_step"] == 32


def test_a_recipe_may_be_a_file_of_its_own_and_the_runs_config_holds_it(here, capsys, monkeypatch):
    (here / "mine.yaml").write_text(yaml.safe_dump({**RECIPE.describe(), "token_horizon": 320}))
    setup, moved = RunFolderCallback.setup, []
    monkeypatch.setattr(RunFolderCallback, "setup", lambda *given, **stage: (
        monkeypatch.setattr(os, "chdir", moved.append), setup(*given, **stage)))
    fit(capsys, "--recipe", "mine.yaml", "--recipe.token_horizon", "384")
    assert saved(here / "run")["global_step"] == 12
    assert yaml.safe_load((here / "run" / "config.yaml").read_text())["recipe"]["token_horizon"] == 384
    assert moved == []  # TensorBoard's writer and others work in the background, on paths that may be relative


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
    assert said[-2:] == ["lit-cpt fit: stopped at step 10; saved run/checkpoints/step-00000010.ckpt",
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




# A resume as another run ---------------------------------------------------------------------------------------

CUT = ["--trainer.max_steps", "6"]


@pytest.fixture(scope="module")
def cut_run(sources, tiny, tmp_path_factory):
    """A run of 6 of its 20 steps: its folder."""
    folder, before = tmp_path_factory.mktemp("cut"), os.getcwd()
    write_config(folder, sources, tiny)
    os.chdir(folder)
    try:
        assert main(["fit", *COMMON, "--run", "run", *CUT]) == 0
    finally:
        os.chdir(before)
    return folder / "run"


@pytest.fixture
def cut(cut_run, here):
    """A copy of it, to resume in the folder one works in."""
    shutil.copytree(cut_run, here / "run", symlinks=True)
    return here / "run"


def phases(*more):
    """The phases of the recipe, and more, as an option."""
    return ["--recipe.phases", json.dumps([*RECIPE.describe()["phases"], *more])]


@pytest.mark.parametrize(("change", "message"), [
    (["--data.seed", "7"], "data.seed: 42 -> 7"),
    (["--data.window", "2"], "data.window: 8 -> 2"),
    (["--recipe.token_horizon", "704"], "recipe.token_horizon: 640 -> 704"),
    (["--recipe.curve.init_args.eta_max", "2e-2"], "recipe.curve: init_args.eta_max=0.01"),
    (["--recipe.optimizer.clip", "0.5"], "recipe.optimizer: clip=1.0 -> clip=0.5"),
    (["--recipe.phases", json.dumps([RECIPE.describe()["phases"][0],
                                     {**RECIPE.describe()["phases"][1], "when": {"eta_over_eta_max": 0.3}}])],
     "recipe.phases.late: when.eta_over_eta_max=0.2 -> when.eta_over_eta_max=0.3"),
    (["--allow-change", "data.sed"], "--allow-change data.sed: there is no such field; there are recipe.t"),
    (["--allow_change=data.global_batch"], "--allow-change data.global_batch: it ties steps to tokens"),
    (["--allow-change", "data.window", "--data.seed", "7"], "data.seed: 42 -> 7"),
    (["--allow-change"], "--allow-change names no FIELD, such as data.seed")])
def test_a_resume_as_another_run_is_refused_with_the_difference_and_leaves_the_run_as_it_was(
        cut, capsys, change, message):
    before = states(cut)
    assert main(["fit", *COMMON, "--run", "run", "--ckpt_path", "last", *change]) == 2
    said = capsys.readouterr().err.splitlines()
    told = [line for line in said if line.startswith("lit-cpt fit: ")]
    assert len(told) == 1
    assert message in told[0]
    if " -> " in message:
        assert told[0].endswith(f"accept the change with --allow-change {message.split(':')[0]}.")
    assert not [line for line in said if "resume with" in line]
    assert states(cut) == before


@pytest.mark.parametrize(("change", "fields"), [
    (["--data.seed", "7", "--allow-change", "data.seed"], ["data.seed"]),
    (["--recipe.curve.init_args.eta_max", "2e-2", "--recipe.optimizer.clip", "0.5", "--allow-change=recipe.curve",
      "--allow_change", "recipe.optimizer"], ["recipe.curve", "recipe.optimizer"]),
    (["--recipe.token_horizon", "704", "--allow-change", "[recipe.token_horizon, data.seed]"],
     ["recipe.token_horizon"])])
def test_a_change_that_is_allowed_is_made_recorded_and_from_then_on_the_runs_own(cut, capsys, change, fields):
    fit(capsys, "--ckpt_path", "last", *change, "--trainer.max_steps", "9")
    events = read_events(cut)
    assert [event["field"] for event in events if event["event"] == "change"] == fields
    assert yaml.safe_load((cut / "config.yaml").read_text())["allow_change"] == []
    without = [word for word in change if "allow" not in word and not word.startswith(("recipe.", "data.", "["))]
    fit(capsys, "--ckpt_path", "last", *without)
    assert saved(cut)["global_step"] == (22 if "704" in change else 20)


def test_a_phase_may_be_appended_in_the_future_and_not_in_the_past(cut, capsys):
    later = {"name": "more", "blend": {"weights": {"c": 1.0}}, "when": {"step": 18}}
    late = {**RECIPE.describe()["phases"][1], "blend": {"weights": {"c": 1.0}}}
    assert main(["fit", *COMMON, "--run", "run", "--ckpt_path", "last", "--recipe.phases",
                 json.dumps([RECIPE.describe()["phases"][0], late])]) == 2
    assert "recipe.phases.late: blend.weights" in capsys.readouterr().err
    fit(capsys, "--ckpt_path", "last", *phases(later))
    assert [(event["phase"], event["step"]) for event in read_events(cut) if event["event"] == "phase"] == [
        ("late", SWITCH), ("more", 18)]


@pytest.mark.parametrize(("fingerprint", "rows", "field"), [("f" * 64, SIZES["b"] + 1, "data.sources.b"),
                                                            ("e" * 64, SIZES["b"], "data.tokenizer")])
def test_another_source_or_tokenizer_is_refused(cut, sources, tmp_path, capsys, fingerprint, rows, field):
    other = {name: str(write_source(tmp_path / f"other-{name}", number, rows if name == "b" else SIZES[name],
                                    fingerprint)) for number, name in enumerate(SIZES)
             if name == "b" or fingerprint[0] == "e"}
    before = states(cut)
    assert main(["fit", *COMMON, "--run", "run", "--ckpt_path", "last",
                 *(word for name, folder in other.items() for word in (f"--data.sources.{name}", folder))]) == 2
    assert f" {field}: " in capsys.readouterr().err
    assert states(cut) == before


def test_micro_batch_workers_and_the_place_of_a_source_may_change(whole, cut, sources, tmp_path, capsys):
    moved = shutil.copytree(sources["a"], tmp_path / "moved")
    fit(capsys, "--ckpt_path", "last", "--data.micro_batch", "4", "--data.workers", "1", "--data.sources.a", str(moved))
    one, other = saved(whole)["state_dict"], saved(cut)["state_dict"]
    assert all(torch.allclose(value, other[name], atol=1e-4) for name, value in one.items())


def test_a_checkpoint_from_before_identities_still_resumes(cut, capsys):
    path = cut / "checkpoints" / os.readlink(cut / "checkpoints" / "last.ckpt")
    old = torch.load(path, weights_only=False)
    del old["lit_cpt"]["identity"], old["lit_cpt_state"]
    torch.save(old, path)
    fit(capsys, "--ckpt_path", "last", "--recipe.optimizer.clip", "0.5")
    assert saved(cut)["global_step"] == STEPS


# What goes wrong, and how to go on -----------------------------------------------------------------------------


def test_a_truncated_newest_checkpoint_is_passed_over_told_and_recorded(whole, cut, capsys, caplog):
    newest = cut / "checkpoints" / "step-00000006.ckpt"
    with newest.open("rb+") as file:
        file.truncate(newest.stat().st_size // 2)
    fit(capsys, "--ckpt_path", "last")
    assert "step-00000006.ckpt is damaged (its table of contents cannot be read" in caplog.text
    assert "going on from run/checkpoints/step-00000004.ckpt" in caplog.text
    events = [event for event in read_events(cut) if event["event"] in ("resume", "damaged")]
    assert [(event["event"], event["step"]) for event in events] == [("resume", 4), ("damaged", 4)]
    one, other = saved(whole)["state_dict"], saved(cut)["state_dict"]
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_damaged_file_is_refused_and_another_named(cut, capsys):
    newest = cut / "checkpoints" / "step-00000006.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main(["fit", *COMMON, "--run", "run", "--ckpt_path", str(newest)]) == 2
    assert "resume with --ckpt_path run/checkpoints/step-00000004.ckpt." in capsys.readouterr().err


def test_best_is_resumed_and_validated(here, capsys):
    config = {"trainer": {"callbacks": [
        {"class_path": "lit_cpt.callbacks.PhaseSwitchCallback"}, {
            "class_path": "lit_cpt.callbacks.RunCheckpointCallback", "init_args": {"monitor": "val/a/loss"}}]}}
    (here / "best.yaml").write_text(yaml.safe_dump(config))
    fit(capsys, "--config", "best.yaml")
    best = os.readlink(here / "run" / "checkpoints" / "best.ckpt")
    assert main(["validate", *COMMON, "--run", "run", "--ckpt_path", "best"]) == 0
    losses = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[2:]}
    reader = EventAccumulator(str(here / "run"))
    reader.Reload()
    values = {point.step: point.value for point in reader.Scalars("val/a/loss")}
    assert best == f"step-{min(values, key=values.get):08d}.ckpt"
    assert losses["a"] == pytest.approx(min(values.values()), abs=1e-4)


BREAKER = '''
import errno
from lightning.pytorch import Callback
from lit_cpt.checkpoints import WholeCheckpointIO

class Break(Callback):
    """Fails after a step."""
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 7 and not trainer.ckpt_path:
            raise ArithmeticError("as told")

class FullDisk(WholeCheckpointIO):
    """Has room for the checkpoints up to a step."""
    step = 4
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if checkpoint["global_step"] > self.step:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        super().save_checkpoint(checkpoint, path, storage_options)
'''


@pytest.fixture
def breaker(here, monkeypatch):
    """A module `breaker` with what fails."""
    (here / "breaker.py").write_text(BREAKER)
    monkeypatch.syspath_prepend(str(here))
    yield here
    sys.modules.pop("breaker", None)


def test_a_run_that_fails_says_how_to_resume_from_what_was_saved(whole, breaker, capsys):
    option = "--trainer.callbacks+=breaker.Break"
    assert main(["fit", *COMMON, "--run", "run", option]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "ArithmeticError: as told" in said
    assert said[-1] == f"resume with: lit-cpt fit {' '.join(COMMON)} --run run {option} --ckpt_path last"
    assert main(["fit", *COMMON, "--run", "run", option, "--ckpt_path", "last"]) == 0
    assert [(event["event"], event["step"]) for event in read_events(breaker / "run")][:2] == [
        ("start", 0), ("resume", 7)]
    one, other = saved(whole)["state_dict"], saved(breaker / "run")["state_dict"]
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_full_disk_loses_nothing_and_says_how_to_go_on(breaker, capsys):
    assert main(["fit", *COMMON, "--run", "run", "--trainer.plugins=breaker.FullDisk"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("lit-cpt fit: the disk is full ([Errno 28] No space left on device: 'run/checkpoints/")
    assert said[-2].endswith("go on from run/checkpoints/step-00000004.ckpt, the newest whole checkpoint.")
    assert said[-1].endswith("--ckpt_path last")
    assert not [line for line in said if "Traceback" in line]
    fit(capsys, "--ckpt_path", "last")
    assert [(event["event"], event["step"]) for event in read_events(breaker / "run")][:2] == [
        ("start", 0), ("resume", 4)]


def test_a_disk_that_was_full_from_the_start_lets_the_same_command_run_again(breaker, capsys, monkeypatch):
    import breaker as module

    monkeypatch.setattr(module.FullDisk, "step", 0)
    command = ["fit", *COMMON, "--run", "run", "--trainer.plugins=breaker.FullDisk"]
    assert main(command) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("lit-cpt fit: the disk is full (")
    assert said.endswith("). Free some space and run the same command again.")
    monkeypatch.setattr(module.FullDisk, "step", STEPS)
    assert main(command) == 0


@pytest.mark.parametrize(("error", "recorded"), [(ValueError("a reason"), True),
                                                 (dist.DistBackendError("gone"), False)])
def test_torchrun_is_told_why_a_rank_failed_but_not_that_it_lost_another(error, recorded, tmp_path, monkeypatch):
    def fail(words):
        raise error

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr("lit_cpt.training.gathered", fail)
    with pytest.raises(type(error) if recorded else RankLost):
        training_command(["fit"])
    assert (tmp_path / "error.json").exists() == recorded


# Arguments -----------------------------------------------------------------------------------------------------


def test_fields_that_may_change_are_gathered_however_they_are_spelled():
    assert gathered(["fit", "--run", "x"]) == ["fit", "--run", "x"]
    assert gathered(["fit", "--allow-change", "a", "--run", "x", "--allow_change=b", "--allow_change", "[c, d]"]) == [
        "fit", "--run", "x", '--allow_change=["a", "b", "c", "d"]']
    for words in (["--allow-change"], ["--allow-change", "--run"], ["--allow_change="]):
        with pytest.raises(ValueError, match="--allow-change names no FIELD, such as data.seed"):
            gathered(["fit", *words])


def test_the_command_to_resume_is_the_one_that_was_given():
    assert resume_command(["fit", "--ckpt_path", "x", "--a", "b c", "--ckpt_path=y"]) == (
        "lit-cpt fit --a 'b c' --ckpt_path last")
