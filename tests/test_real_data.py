"""Real text through the commands, and a real interruption: what users do, as processes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_cpt.events import read_events
from lit_cpt.manifest import Manifest
from lit_cpt.plan import source_blocks

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
STEPS, INTERRUPT, GLOBAL, LENGTH = 200, 110, 8, 64
CONFIG = {
    "recipe": {"token_horizon": STEPS * GLOBAL * LENGTH,
               "curve": {"class_path": "Cosine", "init_args": {"eta_max": 1e-3}},
               "phases": [{"name": "general", "blend": {"weights": {"wiki": 0.7, "code": 0.3}}},
                          {"name": "qa", "blend": {"weights": {"wiki": 0.4, "code": 0.2, "gsm8k": 0.4}},
                           "when": {"eta_over_eta_max": 0.2}}]},
    "model": {"pretrained": "model"},
    "data": {"sources": {"wiki": "data/wiki", "code": "data/code", "gsm8k": "data/gsm8k"}, "sequence_length": LENGTH,
             "global_batch": GLOBAL, "micro_batch": 4, "workers": 2, "validation_blocks": 8},
    "trainer": {"val_check_interval": 0.5},
}
FIT = ["--config", "base", "--config", "hardware/cpu", "--config", "run.yaml"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data is not at {REAL}")]


def start(folder, *arguments, log=subprocess.PIPE):
    """`lit-cpt` as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, "-m", "lit_cpt", *arguments], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=log)


def lit_cpt(folder, *arguments):
    process = start(folder, *arguments)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with three prepared sources, a model with its tokenizer, and a config."""
    folder = tmp_path_factory.mktemp("real")
    tokenizer = ["--tokenizer", str(REAL / "tokenizer-gpt2"), "--workers", "1"]
    texts = [str(REAL / "text" / f"wikitext2_{split}.txt") for split in ("valid", "test")]
    lit_cpt(folder, "prepare", "--input", *texts, *tokenizer, "--output", "data/wiki", "--txt-document", "line")
    lit_cpt(folder, "prepare", "--input", f"{sysconfig.get_path('stdlib')}/*.py", "--format", "txt", *tokenizer,
            "--output", "data/code")
    lit_cpt(folder, "prepare", "--input", str(REAL / "text" / "gsm8k_train.jsonl.gz"), *tokenizer, "--output",
            "data/gsm8k", "--text-template", r"Question: {question}\nAnswer: {answer}".replace(r"\n", "\n"))
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(
        vocab_size=50257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True))
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(REAL / "tokenizer-gpt2").save_pretrained(folder / "model")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def logged(run):
    """(step, loss) as TensorBoard has them by now."""
    reader = EventAccumulator(str(run))
    reader.Reload()
    return [(point.step, point.value) for point in reader.Scalars("train/loss")]


def last_logged(run):
    try:
        return logged(run)[-1][0]
    except (KeyError, IndexError, OSError):  # the run has not begun to log
        return 0


def interrupt(process, run, step):
    """SIGINT once ``run`` has logged ``step``."""
    until = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < until:
        if (run.exists() and last_logged(run)) >= step:
            process.send_signal(signal.SIGINT)
            return
        time.sleep(0.02)
    pytest.fail(f"the run ended (exit {process.poll()}) before it could be interrupted")


def test_the_sources_hold_the_tokens_of_their_text(work):
    sources = {name: work / folder for name, folder in CONFIG["data"]["sources"].items()}
    manifests = {name: Manifest.load(folder) for name, folder in sources.items()}
    assert len({manifest.tokenizer.fingerprint for manifest in manifests.values()}) == 1
    assert manifests["gsm8k"].train.documents + manifests["gsm8k"].validation.documents == 7473
    assert 400_000 < manifests["wiki"].train.tokens < 700_000
    blocks = source_blocks(sources, LENGTH)
    for name, manifest in manifests.items():
        assert manifest.validation.documents > 0 or name == "code"  # of a few hundred files none may fall to it
        assert 0.95 < blocks[name] * (LENGTH + 1) / manifest.train.tokens <= 1


def test_a_run_interrupted_and_resumed_by_the_printed_command_ends_bit_identical(work):
    planned = lit_cpt(work, "plan", *FIT)
    assert "qa       eta_over_eta_max=0.2     143" in planned
    assert planned.strip() in lit_cpt(work, "fit", *FIT, "--run", "runs/whole")

    process = start(work, "fit", *FIT, "--run", "runs/cut")
    interrupt(process, work / "runs" / "cut", INTERRUPT)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1, said
    [stop] = [event for event in read_events(work / "runs" / "cut") if event["event"] == "stop"]
    assert INTERRUPT <= stop["step"] < STEPS
    assert f"stopped at step {stop['step']}; saved runs/cut/checkpoints/step-{stop['step']:08d}.ckpt" in said
    assert "Traceback" not in said
    [resume] = [line.removeprefix("resume with: ") for line in said.splitlines() if line.startswith("resume with: ")]
    assert resume == f"lit-cpt fit {' '.join(FIT)} --run runs/cut --ckpt_path last"
    lit_cpt(work, *shlex.split(resume)[1:])

    whole, resumed = (torch.load(work / "runs" / run / "checkpoints" / "last.ckpt", weights_only=False)
                      for run in ("whole", "cut"))
    assert (whole["global_step"], whole["lit_cpt"]) == (STEPS, resumed["lit_cpt"])
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    one, other = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (whole, resumed))
    assert all(torch.equal(value, other[index][name]) for index in one for name, value in one[index].items())
    for run in ("whole", "cut"):
        [phase] = [event for event in read_events(work / "runs" / run) if event["event"] == "phase"]
        assert (phase["step"], phase["tokens_seen"]) == (143, 143 * GLOBAL * LENGTH)
    losses = logged(work / "runs" / "whole")
    assert losses[-1][0] == STEPS
    assert losses[-1][1] < losses[0][1] - 1
