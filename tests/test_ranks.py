"""Two processes on a CPU train what one does, sample for sample, and hand over to each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import LENGTH, ideal_stream, name_of

from lit_cpt.events import read_events

pytestmark = pytest.mark.slow

FIRST, SECOND = {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.1, "b": 0.2, "c": 0.7}
GLOBAL, MICRO, STEPS, STOP, SWITCH = 4, 1, 20, 8, 15
IDEAL = ideal_stream([(0, FIRST), (SWITCH * GLOBAL, SECOND)], STEPS * GLOBAL)
CALLBACKS = '''
import json, os, signal
from pathlib import Path
from lightning.pytorch import Callback

class Recorder(Callback):
    """Writes what each rank trains: one line a micro-batch."""
    def __init__(self, folder: str) -> None:
        self.folder = folder
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        line = [batch[:, :4].tolist(), float(outputs["loss"]) * trainer.accumulate_grad_batches,
                trainer.optimizers[0].param_groups[0]["lr"]]
        with open(Path(self.folder) / f"rank{trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\\n")

class SignalAt(Callback):
    """Interrupts the last rank, as a scheduler might, in the middle of a step."""
    def __init__(self, step: int) -> None:
        self.step = step
    def on_train_batch_start(self, trainer, *_):
        last = trainer.global_rank == trainer.world_size - 1
        if trainer.global_step == self.step and last and not trainer.ckpt_path:
            self.step = None
            os.kill(os.getpid(), signal.SIGINT)
'''


def write_config(folder, sources, tiny, *callbacks):
    recipe = {"token_horizon": STEPS * GLOBAL * LENGTH,
              "curve": {"class_path": "Cosine", "init_args": {"eta_max": 1e-3}},
              "phases": [{"name": "first", "blend": {"weights": FIRST}},
                         {"name": "late", "blend": {"weights": SECOND}, "when": {"eta_over_eta_max": 0.2}}]}
    data = {"sources": sources, "sequence_length": LENGTH, "global_batch": GLOBAL, "micro_batch": MICRO, "workers": 1}
    config = {"recipe": recipe, "model": {"architecture": tiny}, "data": data,
              "trainer": {"callbacks+": [{"class_path": f"my_callbacks.{name}", "init_args": values}
                                         for name, values in callbacks]}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "my_callbacks.py").write_text(CALLBACKS)


def fit(folder, ranks, *more):
    """`lit-cpt fit` in ``folder`` on as many ranks; returns what it left with and said."""
    command = [sys.executable, "-m", "lit_cpt", "fit", "--config", "base", "--config", "hardware/cpu", "--config",
               "run.yaml", "--run", "run", "--trainer.accelerator", "cpu", "--trainer.devices", str(ranks),
               "--trainer.strategy", "ddp" if ranks > 1 else "auto", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240,
                          check=False)


def trained(folder, ranks):
    """Micro-batches in the order of the global stream: names, losses, rates; the ranks' turns interleaved."""
    lines = [[json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()]
             for rank in range(ranks)]
    assert len({len(of_rank) for of_rank in lines}) == 1
    turns = [turn for turns in zip(*lines, strict=True) for turn in turns]
    return [name_of(torch.tensor(block)) for turn in turns for block in turn[0]], [turn[1] for turn in turns]


def saved(folder):
    return torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=False)


def same(mine, other):
    """Weights and clock of two runs, equal but for the order in which gradients are added."""
    assert (mine["global_step"], mine["lit_cpt"]) == (other["global_step"], other["lit_cpt"])
    for name, value in other["state_dict"].items():
        torch.testing.assert_close(mine["state_dict"][name], value, rtol=0, atol=1e-6)


@pytest.fixture(scope="module", params=[1, 2], ids=["one-rank", "two-ranks"])
def cut(request, sources, tiny, tmp_path_factory):
    """A run on one or two ranks, interrupted after STOP steps: folder and ranks."""
    folder = tmp_path_factory.mktemp("cut")
    write_config(folder, sources, tiny, ("Recorder", {"folder": str(folder)}), ("SignalAt", {"step": STOP - 1}))
    ran = fit(folder, request.param)
    assert ran.returncode == 1, ran.stderr
    assert f"stopped at step {STOP}; saved " in ran.stderr
    return folder, request.param


@pytest.fixture(scope="module")
def one_rank(sources, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    write_config(folder, sources, tiny, ("Recorder", {"folder": str(folder)}))
    ran = fit(folder, 1)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_two_ranks_train_the_ideal_stream_and_switch_where_planned(one_rank, sources, tiny, tmp_path):
    write_config(tmp_path, sources, tiny, ("Recorder", {"folder": str(tmp_path)}))
    ran = fit(tmp_path, 2)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("beside training") == 1  # one rank speaks
    names, losses = trained(tmp_path, 2)
    alone, losses_alone = trained(one_rank, 1)
    assert names == alone == IDEAL
    assert losses == pytest.approx(losses_alone, abs=1e-5)
    [start, phase, finish] = read_events(tmp_path / "run")
    assert (start["world_size"], finish["event"], finish["step"]) == (2, "finish", STEPS)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert phase["step"] == plan["phases"][1]["start"]["step"] == SWITCH
    same(saved(tmp_path), saved(one_rank))


def test_a_run_goes_on_with_another_number_of_ranks(cut, one_rank):
    folder, before = cut
    after = 3 - before
    names, _ = trained(folder, before)
    assert names == IDEAL[: STOP * GLOBAL]
    for rank in range(before):
        (folder / f"rank{rank}.jsonl").unlink()
    ran = fit(folder, after, "--ckpt_path", "last")
    assert ran.returncode == 0, ran.stderr
    rest, losses = trained(folder, after)
    assert rest == IDEAL[STOP * GLOBAL :]
    assert losses == pytest.approx(trained(one_rank, 1)[1][STOP * GLOBAL :], abs=1e-5)
    events = {event["event"]: event for event in read_events(folder / "run")}
    assert (events["start"]["world_size"], events["resume"]["world_size"]) == (before, after)
    assert (events["resume"]["step"], events["phase"]["step"], events["finish"]["step"]) == (STOP, SWITCH, STEPS)
    same(saved(folder), saved(one_rank))
