"""`lit-cpt ablate`: its plan, its arms bit for bit, and how it is stopped and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import LENGTH

from lit_cpt.ablate_command import ablate_parser, places
from lit_cpt.arguments import parse
from lit_cpt.cli import main
from lit_cpt.events import read_events
from lit_cpt.lab import running
from lit_cpt.ledger import read_ledger
from lit_cpt.report import load_run

ROOT = Path(__file__).parents[1]
STEPS, GLOBAL = 20, 4
EARLY, LATE = 11, 15  # where the rate has fallen to a half and a fifth
STOPPER = '''
import multiprocessing, os, signal, time
from lightning.pytorch import Callback

class StopTheGrid(Callback):
    """Ctrl-C for the command that started this run, once."""
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 5 and not trainer.ckpt_path and not trainer.fit_loop._should_accumulate():
            os.kill(multiprocessing.parent_process().pid, signal.SIGINT)
            time.sleep(1)
'''


def write_grid(folder, sources, tiny, **parts):
    phases = [{"name": "first", "blend": {"weights": {"a": 0.6, "b": 0.4}}},
              {"name": "late", "blend": {"weights": {"a": 0.1, "b": 0.2, "c": 0.7}}, "when": {"eta_over_eta_max": 0.2}}]
    run = {"seed_everything": 7, "model": {"architecture": tiny},
           "recipe": {"token_horizon": STEPS * GLOBAL * LENGTH, "phases": phases,
                      "curve": {"class_path": "Cosine", "init_args": {"eta_max": 0.01}}},
           "data": {"sources": sources, "sequence_length": LENGTH, "global_batch": GLOBAL, "micro_batch": 2,
                    "workers": 0}}
    grid = {"base": ["base", "hardware/cpu", run, {"trainer": {"log_every_n_steps": 2}}],
            "axes": {"switch": {"recipe.phases.1.when.eta_over_eta_max": [0.2, 0.5]}}, "control": {"switch": 0.2}}
    (folder / "grid.yaml").write_text(yaml.safe_dump({**grid, **parts}))


def in_this_process(jobs, slots):
    """Runs the jobs one after the other, without what a process costs."""
    for job in jobs.values():
        assert job.ready()
        assert main(job.arguments()) == 0


@pytest.fixture(scope="module")
def lab(sources, tiny, tmp_path_factory):
    """A grid that was trained: its folder."""
    folder, before = tmp_path_factory.mktemp("lab"), os.getcwd()
    write_grid(folder, sources, tiny)
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(running, "run_side_by_side", in_this_process)
            assert main(["ablate", "grid.yaml", "--output", "lab"]) == 0
        assert main(["fit", "--config", "lab/arms/switch=0.5.yaml", "--run", "alone"]) == 0
    finally:
        os.chdir(before)
    return folder


def last(run: Path):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)


def leaves(value):
    """The tensors and numbers in a checkpoint's part."""
    if isinstance(value, dict):
        return [leaf for member in value.values() for leaf in leaves(member)]
    return [leaf for member in value for leaf in leaves(member)] if isinstance(value, (list, tuple)) else [value]


def same(one, other):
    """Whether two leaves are equal to the bit."""
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_an_arm_on_a_shared_trunk_is_the_run_alone_to_the_bit(lab):
    arm, alone = last(lab / "lab/runs/switch=0.5"), last(lab / "alone")
    assert arm["global_step"] == STEPS
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        mine, theirs = leaves(arm[part]), leaves(alone[part])
        assert len(mine) == len(theirs) > 1
        differ = [(one, other) for one, other in zip(mine, theirs, strict=True) if not same(one, other)]
        assert not differ, part


def test_an_arm_trained_only_what_it_does_not_share(lab):
    events = [(event["event"], event["step"]) for event in read_events(lab / "lab/runs/switch=0.5")]
    assert events == [("start", 0), ("branch", EARLY - 1), ("resume", EARLY - 1), ("change", EARLY - 1),
                      ("phase", EARLY), ("finish", STEPS)]
    saved = sorted(path.name for path in (lab / "lab/runs/switch=0.5/checkpoints").glob("step-*"))
    assert saved[0] == f"step-{EARLY:08d}.ckpt"
    [change] = [event for event in read_events(lab / "lab/runs/switch=0.5") if event["event"] == "change"]
    assert (change["field"], change["was"], change["now"]) == ("recipe.phases.late", "when.eta_over_eta_max=0.2",
                                                               "when.eta_over_eta_max=0.5")


def test_an_arms_folder_reads_as_the_run_alone(lab):
    arm, alone = load_run(lab / "lab/runs/switch=0.5"), load_run(lab / "alone")
    timed = [tag for tag in alone.scalars if not tag.startswith(("speed/", "memory/", "eta/"))]
    assert len(timed) > 10
    assert {tag: arm.scalars[tag] for tag in timed} == {tag: alone.scalars[tag] for tag in timed}
    assert read_ledger(arm.path) == read_ledger(alone.path)
    assert (arm.recipe, arm.plan["phases"], arm.missing) == (alone.recipe, alone.plan["phases"], alone.missing)


def test_the_results_are_written_with_the_cost(lab):
    found = json.loads((lab / "lab/results.json").read_text())
    assert found["budget"]["share"] == pytest.approx((2 * STEPS - EARLY + 1) / (2 * STEPS))
    line = next(line for line in found["lines"] if (line["measure"], line["treatment"]) == ("val/c", "switch=0.5"))
    losses = {name: load_run(lab / "lab/runs" / name).validation["c"][-1][1] for name in ("switch=0.2", "switch=0.5")}
    assert line["difference"] == losses["switch=0.5"] - losses["switch=0.2"]
    assert "Arms of the grid" in (lab / "lab/report.html").read_text()
    page = (lab / "lab/grid.html").read_text()
    assert "val/c against the switch point" in page
    assert "no chart of forgetting against gain: no arm has losses and scores from its beginning on" in page
    assert "no evaluation at the end of switch=0.2, switch=0.5" in (lab / "lab/results.txt").read_text()


CLAIMS = {"claims": [{"claim": "Late is better", "paper": "nobody", "measure": {"a": 0.5, "b": 0.5},
                      "comparisons": [{"better": "grid/switch=0.2", "worse": "other/switch=0.5"},
                                      {"better": "grid/switch=0.2", "worse": "start"}]}]}


def test_two_grids_train_what_they_have_in_common_once_and_decide_claims(lab, sources, tiny, capsys, monkeypatch):
    monkeypatch.chdir(lab)
    monkeypatch.setattr(running, "run_side_by_side", in_this_process)
    grid = yaml.safe_load(Path("grid.yaml").read_text())
    grid["axes"]["switch"]["recipe.phases.1.when.eta_over_eta_max"] = [0.5, 0.1]
    Path("other.yaml").write_text(yaml.safe_dump({**grid, "control": {"switch": 0.5}}))
    Path("claims.yaml").write_text(yaml.safe_dump(CLAIMS))
    assert main(["ablate", "grid.yaml", "other.yaml", "--output", "both", "--claims", "claims.yaml"]) == 0
    runs = sorted(str(path.parent.relative_to("both/runs")) for path in Path("both/runs").rglob("plan.json"))
    assert runs == ["grid/switch=0.2", "grid/switch=0.5", "other/switch=0.1"]
    said, summary = capsys.readouterr().out, Path("both/summary.md").read_text()
    assert summary.index("| Late is better") < summary.index("**grid**") < summary.index("**other**")
    assert summary.split("\n\n")[0] in said
    losses = {name: load_run(Path("both/runs/grid") / name).validation for name in ("switch=0.2", "switch=0.5")}
    gap = sum(losses["switch=0.5"][name][-1][1] - losses["switch=0.2"][name][-1][1] for name in "ab") / 2
    since = sum(losses["switch=0.2"][name][0][1] - losses["switch=0.2"][name][-1][1] for name in "ab") / 2
    rows = [line for line in summary.splitlines() if "switch=0.2" in line][:2]
    assert f"| {gap:+.3f} " in rows[0]
    assert f"| {since:+.3f} " in rows[1]
    assert {path.name for path in Path("both/other").iterdir()} >= {"grid.html", "report.html", "results.json"}


def test_claims_that_cannot_be_read_are_told_before_anything_is_trained(lab, capsys, monkeypatch):
    monkeypatch.chdir(lab)
    assert main(["ablate", "grid.yaml", "--output", "never", "--claims", "grid.yaml"]) == 2
    assert "grid.yaml has no `claims:`" in capsys.readouterr().err
    assert not Path("never").exists()


def test_a_grid_that_is_trained_is_only_told_again(lab, capsys, monkeypatch):
    monkeypatch.chdir(lab)
    assert main(["ablate", "grid.yaml", "--output", "lab", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("lab/results.json").read_text())


def test_a_folder_takes_more_arms_but_no_other_ones(lab, sources, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(lab)
    write_grid(tmp_path, sources, {**tiny, "hidden_size": 32})
    assert main(["ablate", str(tmp_path / "grid.yaml"), "--output", "lab"]) == 2
    told = capsys.readouterr().err
    assert "lab/arms/switch=0.2.yaml is the config of another run than this grid's switch=0.2: name another" in told
    asked = []
    monkeypatch.setattr(running, "run_side_by_side", lambda jobs, slots: asked.extend(
        [name, job.ready(), job.arguments()] for name, job in jobs.items()) or 1 / 0)
    write_grid(tmp_path, sources, tiny, axes={"switch": {"recipe.phases.1.when.eta_over_eta_max": [0.2, 0.5, 0.1]}})
    assert main(["ablate", str(tmp_path / "grid.yaml"), "--output", "lab"]) == 1  # 1 / 0
    [[name, ready, arguments]] = asked
    assert (name, ready) == ("switch=0.1", True)
    kept = arguments[arguments.index("--ckpt_path") + 1]  # its trunk was trained before anyone asked for a branch point
    assert kept == "lab/runs/switch=0.2/checkpoints/step-00000010.ckpt"


def test_the_plan_tells_the_tree_and_its_cost_and_trains_nothing(sources, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path, sources, tiny, replicates={"seed": {"data.seed": [1, 2], "seed_everything": [1, 2]}})
    assert main(["ablate", "grid.yaml", "--output", "lab", "--plan", "--tokens_per_second", "2"]) == 0
    told = capsys.readouterr().out
    assert "switch=0.5,seed=2" in told
    assert "0.750 of separate runs" in told
    assert "16m 00s instead of 21m 20s at 2 tokens a second" in told
    assert main(["ablate", "grid.yaml", "--plan", "--json"]) == 0
    arms = json.loads(capsys.readouterr().out)["arms"]
    assert arms["switch=0.5,seed=2"] == {"parent": "switch=0.2,seed=2", "start": 10, "steps": 20, "tokens_per_step": 32}
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


@pytest.mark.parametrize(("parts", "options", "message"), [
    ({}, [], "--output names no folder"),
    ({}, ["--output", "x", "--workers", "0"], "--workers 0: at least 1 arm"),
    ({}, ["--plan", "--tokens_per_second", "0"], "--tokens_per_second 0: give a number above 0"),
    ({}, ["--plan", "--task", "2/2"], "--task 2/2: write I/N, the I-th of N tasks, counted from 0, such as 0/4"),
    ({"base": ["base"]}, ["--plan"], "recipe.phases.1.when.eta_over_eta_max: the base.s recipe.phases is None, which"),
    ({"base": ["base"], "axes": {"a": {"data.seed": [1]}}, "control": {"a": 1}}, ["--plan"], "arm a=1: no recipe: add"),
    ({"axes": {"floor": {"recipe.curve.init_args.eta_min": [0.002, 3]}}, "control": {"floor": 3}}, ["--plan"],
     "arm floor=0.002: "),
    ({"axes": {"a": {"x": {"recipe.token_horizn": 3}}}, "control": {"a": "x"}}, ["--plan"], "arm a=x: .*token_horizn"),
    ({"axes": {"a": {"x": {"mirror": "s3://b/c"}}}, "control": {"a": "x"}}, ["--plan"], "a=x: mirror is each run's"),
    ({"axes": {"a": {"x": {"modle.pretrained": 3}}}, "control": {"a": "x"}}, ["--plan"],
     "arm a=x: its config: a config takes no modle")])
def test_a_mistake_is_one_message(sources, tiny, tmp_path, capsys, monkeypatch, parts, options, message):
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path, sources, tiny, **parts)
    assert main(["ablate", "grid.yaml", *options]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(message, said), said


def test_an_arm_trains_on_each_device_or_so_many_at_once():
    given = parse(ablate_parser(), ["grid.yaml", "--devices", "0", "2,3"])
    assert places(1, given["devices"]) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    assert places(2, []) == [{}, {}]


@pytest.mark.slow
def test_ctrl_c_ends_the_arms_saved_and_the_same_command_goes_on(sources, tiny, tmp_path, capfd, monkeypatch,
                                                                 interruptible):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stopping.py").write_text(STOPPER)
    write_grid(tmp_path, sources, tiny)
    grid = yaml.safe_load((tmp_path / "grid.yaml").read_text())
    grid["base"].append({"trainer": {"callbacks+": {"class_path": "stopping.StopTheGrid"}}})
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    assert main(["ablate", "grid.yaml", "--output", "lab", "--workers", "2"]) == 1
    assert "stopped" in capfd.readouterr().err
    trunk, arm = Path("lab/runs/switch=0.2"), Path("lab/runs/switch=0.5")
    assert read_events(trunk)[-1]["event"] == "stop"
    stopped = last(trunk)["global_step"]
    assert stopped in (5, 6)
    assert not arm.exists()
    assert main(["ablate", "grid.yaml", "--output", "lab", "--workers", "2"]) == 0, Path("lab/logs").glob("*")
    assert [event["step"] for event in read_events(trunk) if event["event"] == "resume"] == [stopped]
    assert [event["step"] for event in read_events(arm) if event["event"] == "resume"] == [stopped, EARLY - 1]
    assert last(arm)["global_step"] == last(trunk)["global_step"] == STEPS


WAITER = '''
import signal
from pathlib import Path
from lightning.pytorch import Callback

class WaitForATerm(Callback):
    """Waits, once, until a signal has been heeded."""
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 5 and not trainer.ckpt_path and not Path("waiting").exists():
            Path("waiting").touch()
            signal.pause()
'''


def array_task(folder, number, **environment):
    """A task of an array of two SLURM jobs, numbered from 1."""
    own = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2",
           "SLURM_JOB_ID": f"471{number}", "REQUEUED": str(folder / "requeued"), "PYTHONPATH": f"{folder}:{ROOT}",
           "PATH": f"{ROOT / 'tests/projects/slurm'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.Popen([str(ROOT / "configs/launch/slurm_array.sh"), "grid.yaml", "--output", "lab"], cwd=folder,
                            env={**os.environ, **own, **environment}, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


STAND_IN = '''#!/usr/bin/env bash
echo "$@" > called
exec sleep "${STAND_IN_SECONDS:-0}"
'''


@pytest.fixture
def stand_in(tmp_path):
    """A folder with a `lit-cpt` that notes how it was called, and its place on the path."""
    (tmp_path / "lit-cpt").write_text(STAND_IN)
    (tmp_path / "lit-cpt").chmod(0o755)
    return {"PATH": f"{tmp_path}:{ROOT / 'tests/projects/slurm'}:{os.environ['PATH']}"}


def test_a_task_of_an_array_is_counted_from_the_arrays_first(tmp_path, stand_in):
    task = array_task(tmp_path, 7, SLURM_ARRAY_TASK_MIN="5", SLURM_ARRAY_TASK_COUNT="4", **stand_in)
    assert task.wait(20) == 0
    assert (tmp_path / "called").read_text() == "ablate grid.yaml --output lab --task 2/4\n"


@pytest.mark.parametrize(("restarts", "status"), [("2", 0), ("3", 1)])
def test_a_task_of_an_array_comes_back_so_often_and_no_more(tmp_path, stand_in, restarts, status):
    task = array_task(tmp_path, 1, RESTARTS="3", SLURM_RESTART_COUNT=restarts, STAND_IN_SECONDS="20", **stand_in)
    while not (tmp_path / "called").exists():
        assert task.poll() is None, task.communicate()[0]
        time.sleep(0.02)
    task.send_signal(signal.SIGTERM)
    said = task.communicate(timeout=15)[0]
    assert task.returncode == status, said
    assert (tmp_path / "requeued").exists() == (status == 0)
    assert ("slurm_array.sh: started again 3 times already; RESTARTS=N allows more." in said) == (status == 1)


def test_a_task_without_a_tree_ends_at_once_and_says_so(sources, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path, sources, tiny)
    assert main(["ablate", "grid.yaml", "--output", "lab", "--task", "1/2"]) == 0
    assert "nothing falls to task 1/2: the grid has work for 1\n" in capsys.readouterr().out
    assert not Path("lab").exists()


@pytest.mark.slow
def test_an_array_of_slurm_jobs_trains_a_grid_comes_back_when_preempted_and_the_last_writes_the_results(
        sources, tiny, tmp_path):
    (tmp_path / "waiter.py").write_text(WAITER)
    write_grid(tmp_path, sources, tiny, replicates={"seed": {"data.seed": [1, 2]}})
    grid = yaml.safe_load((tmp_path / "grid.yaml").read_text())
    grid["base"].append({"trainer": {"callbacks+": {"class_path": "waiter.WaitForATerm"}}})
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    first = array_task(tmp_path, 1)
    while not (tmp_path / "waiting").exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B: does
    said = first.communicate(timeout=120)[0]
    assert first.returncode == 0, said
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    again = array_task(tmp_path, 1)
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0, said
    assert "2 of 4 arms are left to other tasks; the last of them writes the results" in said
    assert not (tmp_path / "lab/results.txt").exists()
    last_one = array_task(tmp_path, 2)
    said = last_one.communicate(timeout=120)[0]
    assert last_one.returncode == 0, said
    assert "switch=0.5" in (tmp_path / "lab/results.txt").read_text()
    resumed = [event["step"] for event in read_events(tmp_path / "lab/runs/switch=0.2,seed=1")
               if event["event"] == "resume"]
    assert resumed == [last_stop(tmp_path / "lab/runs/switch=0.2,seed=1")]


def last_stop(run):
    """The step at which a run was stopped last."""
    return [event["step"] for event in read_events(run) if event["event"] == "stop"][-1]
