"""The launch files: several nodes, as far as one machine goes, that are preempted or lose a rank and come back."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import LENGTH, VOCABULARY, ran_with_mounts, small_disk
from object_store import object_store_fixture  # noqa: F401
from test_mirror import mirror_of
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from lit_cpt.events import read_events
from lit_cpt.mirror import read_index, step

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "configs" / "launch"
SLURM = Path(__file__).parent / "projects" / "slurm"
GLOBAL, STEPS = 4, 12
MODEL = {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32,
         "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
CALLBACKS = '''
import os, signal, time
from pathlib import Path
from lightning.pytorch import Callback

class Trouble(Callback):
    """Once in the life of a run, at a step: the last rank is killed, or the job waits for a signal to come."""
    def __init__(self, step: int, kind: str) -> None:
        self.step, self.kind, self.mark = step, kind, Path("trouble")
    def on_train_batch_start(self, trainer, *_):
        last = trainer.global_rank == trainer.world_size - 1
        if trainer.global_step != self.step or self.mark.exists():
            return
        if self.kind == "kill" and last:
            while Path("hold").exists() or not Path("run/checkpoints/last.ckpt").exists():
                time.sleep(0.05)
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "wait" and last:
            self.mark.touch()
            time.sleep(3)
'''


def prepare(folder, sources, step, kind):
    """A folder to launch from."""
    folder.mkdir()
    (folder / "my_callbacks.py").write_text(CALLBACKS)
    recipe = {"token_horizon": STEPS * GLOBAL * LENGTH,
              "curve": {"class_path": "Cosine", "init_args": {"eta_max": 1e-2}},
              "phases": [{"name": "only", "blend": {"weights": {"a": 0.6, "b": 0.4}}}]}
    data = {"sources": sources, "sequence_length": LENGTH, "global_batch": GLOBAL, "workers": 0,
            "validation_blocks": 0}
    (folder / "run.yaml").write_text(yaml.safe_dump({
        "recipe": recipe, "model": {"architecture": MODEL}, "data": data, "trainer": {
            "accelerator": "cpu", "strategy": {"class_path": "lit_cpt.parallel.ShardedStrategy"},
            "callbacks": [{"class_path": "lit_cpt.callbacks.GracefulStopCallback"},
                          {"class_path": "lit_cpt.callbacks.RunCheckpointCallback", "init_args": {"every_n_steps": 4}},
                          {"class_path": "my_callbacks.Trouble", "init_args": {"step": step, "kind": kind}}]}}))
    return folder


ARGUMENTS = ["--config", "base", "--config", "run.yaml", "--run", "run"]


def start(folder, script, *more, **environment):
    """Start a launch file in ``folder``."""
    programs = Path(sys.executable).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{ROOT}", "CUDA_VISIBLE_DEVICES": "",
                   "PATH": f"{SLURM}:{programs}:{os.environ['PATH']}", **environment}
    return subprocess.Popen([str(LAUNCH / script), *ARGUMENTS, *more], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process):
    """What a process said, and its exit status."""
    said = process.communicate(timeout=240)[0]
    return process.returncode, said


def job(folder, *more, **environment):
    """A job of SLURM on two nodes."""
    return start(folder, "slurm.sh", *more, SLURM_JOB_ID="4711", SLURM_JOB_NUM_NODES="2", SLURM_NTASKS_PER_NODE="1",
                 SLURM_JOB_NAME="lit-cpt", MASTER_PORT=str(free_port()), REQUEUED=str(folder / "requeued"),
                 **environment)


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def saved(folder, step):
    """Weights and moments of a checkpoint."""
    file = folder / f"{step}.pt"
    dcp_to_torch_save(folder / "run" / "checkpoints" / f"step-{step:08d}.ckpt", file)
    state = torch.load(file, weights_only=False)
    return {"weights": state["state_dict"], **{
        f"moments of {name}": one for name, one in state["optimizer_0"]["state"].items()}}


def resumed_at(folder):
    """The steps that attempts of a run went on from."""
    return [event["step"] for event in read_events(folder / "run") if event["event"] == "resume"]


def assert_equal(mine, other):
    assert mine.keys() == other.keys()
    for name, values in other.items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(mine[name][key]), torch.as_tensor(value)), (name, key)


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    """What a job leaves that nothing befell."""
    folder = prepare(tmp_path_factory.mktemp("launch") / "whole", sources, -1, "none")
    status, said = ended(job(folder))
    assert status == 0, said
    assert not (folder / "requeued").exists()
    return saved(folder, STEPS)


@pytest.mark.slow
def test_a_preempted_slurm_job_saves_comes_back_and_ends_as_if_nothing_had_been(whole, sources, tmp_path):
    folder = prepare(tmp_path / "preempted", sources, 6, "wait")
    process = job(folder)
    while not (folder / "trouble").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B: does
    status, said = ended(process)
    assert status == 0, said
    assert (folder / "requeued").read_text() == "requeue 4711\n"
    assert "saved run/checkpoints/step-00000007.ckpt" in said
    status, said = ended(job(folder, SLURM_RESTART_COUNT="1"))
    assert status == 0, said
    assert_equal(saved(folder, STEPS), whole)


@pytest.mark.slow
def test_a_slurm_job_that_loses_a_rank_ends_soon_says_so_and_comes_back_so_often_and_no_more(sources, tmp_path):
    folder = prepare(tmp_path / "lost", sources, 6, "kill")
    process = job(folder)
    while not (folder / "trouble").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    killed = time.monotonic()
    status, said = ended(process)
    assert time.monotonic() - killed < 30  # of which ending the other rank is a small part
    assert status == 128 + signal.SIGKILL, said
    assert (folder / "requeued").read_text() == "requeue 4711\n"
    (folder / "trouble").unlink()
    status, said = ended(job(folder, SLURM_RESTART_COUNT="3", RESTARTS="3"))
    assert "slurm.sh: started again 3 times already; RESTARTS=N allows more." in said
    assert status == 1
    assert (folder / "requeued").read_text() == "requeue 4711\n"


def torchrun(folder, nodes, ranks, restarts):
    """What torchrun.sh said on each of several nodes, and their exit statuses."""
    node = {"NODES": str(nodes), "GPUS": str(ranks), "PORT": str(free_port()), "RESTARTS": str(restarts)}
    processes = [start(folder, "torchrun.sh", **node) for _ in range(nodes)]
    statuses, said = zip(*map(ended, processes), strict=True)
    return list(statuses), "".join(said)


@pytest.mark.slow
def test_torchrun_on_two_nodes_starts_all_ranks_again_when_one_is_killed_and_goes_on_exactly(whole, sources, tmp_path):
    folder = prepare(tmp_path / "torchrun", sources, 6, "kill")
    statuses, said = torchrun(folder, nodes=2, ranks=1, restarts=1)
    assert statuses == [0, 0], said
    assert (folder / "trouble").exists()
    assert "may not find each other" not in said  # by luck they may, see `warn_of_stale_addresses`
    assert said.count("checkpoint run/checkpoints/step-00000004.ckpt") == 1  # neither start made it anew
    assert_equal(saved(folder, STEPS), whole)


@pytest.mark.slow
def test_torchrun_that_may_not_start_again_ends_soon_and_names_the_rank_that_was_killed(sources, tmp_path):
    folder = prepare(tmp_path / "ended", sources, 6, "kill")
    [status], said = torchrun(folder, nodes=1, ranks=2, restarts=0)
    assert time.time() - (folder / "trouble").stat().st_mtime < 30
    assert status == 1
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in said.split("Root Cause")[1]
    assert said.count("Traceback") == 1  # torchrun's own
@pytest.fixture
def store(object_store):
    """The environment that tells a job where its mirror is."""
    return {"AWS_ENDPOINT_URL": object_store.endpoint, "AWS_ACCESS_KEY_ID": "job", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.mark.slow
def test_a_job_that_lost_its_folder_comes_back_from_the_mirror_and_ends_as_if_nothing_had_been(
        whole, sources, tmp_path, object_store, store):
    folder, mirror = prepare(tmp_path / "mirrored", sources, 6, "kill"), mirror_of(object_store, "launch")
    (folder / "hold").touch()
    process = job(folder, "--mirror", mirror.url, **store)
    while not (there := read_index(mirror.objects).checkpoints):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    (folder / "hold").unlink()
    status, said = ended(process)
    assert status == 128 + signal.SIGKILL, said
    name = "step-00000004.ckpt"
    assert {f"{name}/__{rank}_0.distcp" for rank in range(2)} < {*there[name]}
    shutil.rmtree(folder / "run")
    status, said = ended(job(folder, "--mirror", mirror.url, SLURM_RESTART_COUNT="1", **store))
    assert status == 0, said
    assert resumed_at(folder) == [4]
    assert_equal(saved(folder, STEPS), whole)
    assert [step(name) for name in read_index(mirror.objects).newest_first] == [STEPS, 8]  # as in the run's folder


@pytest.mark.slow
def test_a_full_disk_ends_all_ranks_and_with_space_the_run_ends_as_if_nothing_was(
        whole, sources, tmp_path, object_store, store):
    if ran_with_mounts(f"{__file__}::test_a_full_disk_ends_all_ranks_and_with_space_the_run_ends_as_if_nothing_was"):
        return
    folder, mirror = prepare(tmp_path / "full", sources, -1, "none"), mirror_of(object_store, "full")
    with small_disk(folder / "run" / "checkpoints", 400 << 10) as disk:  # one checkpoint and a half
        status, said = ended(job(folder, "--mirror", mirror.url, **store))
        assert status == 1, said
        assert re.search(r"lit-cpt fit: the disk is full \(.*No space left on device: 'run/checkpoints/"
                         r"step-00000008.ckpt'\). Free some space and go on from run/checkpoints/step-00000004.ckpt, "
                         r"the newest whole checkpoint.\nresume with: lit-cpt fit .*--ckpt_path last\n", said)
        assert "Traceback" not in said
        assert sorted(path.name for path in disk.iterdir()) == ["last.ckpt", "step-00000004.ckpt"]
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        status, said = ended(job(folder, "--mirror", mirror.url, SLURM_RESTART_COUNT="1", **store))
        assert status == 0, said
        assert resumed_at(folder) == [4]
        assert [step(name) for name in read_index(mirror.objects).newest_first] == [STEPS, 8]
        assert_equal(saved(folder, STEPS), whole)


def test_the_slurm_file_tells_how_it_is_to_be_started(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    ran = subprocess.run([str(LAUNCH / "slurm.sh")], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "start this with sbatch --nodes N --ntasks-per-node GPUS" in ran.stderr


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_a_launch_file_can_be_run_and_is_sound_shell(script):
    assert os.access(LAUNCH / script, os.X_OK)
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)
