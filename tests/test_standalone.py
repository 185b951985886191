"""Evaluating what is saved: checkpoints of runs, run folders, Hugging Face folders; one process and two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import LENGTH, write_source
from harness_world import build_mirror, build_model, build_tokenizer

from lit_cpt.cli import main
from lit_cpt.evaluations import Evaluation, evaluations_in
from lit_cpt.events import read_events
from lit_cpt.harness import Effort, Suite
from lit_cpt.prepare.tokens import tokenizer_fingerprint
from lit_cpt.report import load_run
from lit_cpt.standalone import evaluate_saved, from_checkpoint, newest_of, open_subject

EFFORT = Effort(token_budget=512)
STEPS = 4
GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 7}  # as a model on the hub may ask for


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A mirror, and the Hugging Face folder of a tiny model."""
    folder = tmp_path_factory.mktemp("world")
    model = build_model()
    model.generation_config.update(**GENERATION)
    model.save_pretrained(folder / "model")
    build_tokenizer(folder / "model")
    return build_mirror(folder / "mirror", documents=4), folder / "model"


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A run of `lit-cpt fit` on that model, with the EvalCallback in its YAML; two phases."""
    folder = tmp_path_factory.mktemp("run")
    from transformers import AutoTokenizer

    fingerprint = tokenizer_fingerprint(AutoTokenizer.from_pretrained(world[1]))
    sources = {name: str(write_source(folder / name, place, 100, fingerprint)) for place, name in enumerate("ab")}
    asked = {"class_path": "lit_cpt.callbacks.EvalCallback", "init_args": {
        "suite": {"tasks": ["hellaswag", "mmlu_anatomy"], "data": str(world[0]), "limit": {"hellaswag": 2}},
        "when": {"every_tokens": 2 * 4 * LENGTH, "full": ["end"]}, "effort": {"token_budget": 512}}}
    phases = [{"name": "one", "blend": {"weights": {"a": 0.5, "b": 0.5}}},
              {"name": "two", "blend": {"weights": {"a": 0.1, "b": 0.9}}, "when": {"step": 3}}]
    config = {"recipe": {"token_horizon": STEPS * 4 * LENGTH, "phases": phases,
                         "curve": {"class_path": "Cosine", "init_args": {"eta_max": 1e-3}}},
              "model": {"pretrained": str(world[1])},
              "data": {"sources": sources, "sequence_length": LENGTH, "global_batch": 4, "micro_batch": 4,
                       "workers": 0},
              "trainer": {"callbacks+": [asked]}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "base", "--config", "hardware/cpu", "--config", str(folder / "run.yaml"), "--run",
                 str(folder / "run")]) == 0
    return folder / "run"


def suite(world, *tasks, **settings):
    return Suite(tasks or ("hellaswag",), **{"data": str(world[0]), "limit": 2, **settings})


# A run from YAML -------------------------------------------------------------------------------------------


def test_a_run_from_yaml_is_evaluated_at_its_turns_and_every_so_many_tokens(run):
    found, wrong = evaluations_in(run)
    assert ({each.step: each.reasons for each in found}, wrong) == (
        {0: ("start",), 2: ("tokens",), 3: ("phase",), 4: ("tokens", "end")}, [])
    assert [each.tokens_seen for each in found] == [0, 64, 96, 128]
    assert [len(each.score("hellaswag").documents) for each in found] == [2, 2, 2, 4]
    events = [event for event in read_events(run) if event["event"] == "evaluation"]
    assert [event["step"] for event in events] == [0, 2, 3, 4]
    assert read_events(run)[-1]["event"] == "finish"
    assert {path.stem for path in (run / "checkpoints").glob("step*")} >= {"step-00000003", "step-00000004"}
    scalars = load_run(run).scalars
    assert [step for step, _ in scalars["eval/hellaswag/acc_norm"]] == [0, 2, 3, 4]
    assert [step for step, _ in scalars["eval/average"]] == [0, 2, 3, 4]


def test_a_run_resumed_into_an_evaluation_asks_and_trains_as_the_whole_one(run, tmp_path):
    checkpoint = run / "checkpoints" / "step-00000003.ckpt"  # saved at the switch, before the evaluation there
    configs = ["--config", "base", "--config", "hardware/cpu", "--config", str(run.parent / "run.yaml")]
    assert main(["fit", *configs, "--run", str(tmp_path / "run"), "--ckpt_path", str(checkpoint)]) == 0
    whole, resumed = (evaluations_in(folder)[0][-2:] for folder in (run, tmp_path / "run"))
    for one, other in zip(whole, resumed, strict=True):
        assert (one.step, one.reasons) == (other.step, other.reasons)
        assert [score.bits for score in one.scores] == [score.bits for score in other.scores]
    mine, theirs = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
                    for folder in (run, tmp_path / "run"))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_report_shows_a_run_with_evaluations(run, tmp_path, capsys):
    assert main(["report", str(run), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "hellaswag" in page


# What is named ---------------------------------------------------------------------------------------------


def test_a_checkpoint_a_run_and_its_exported_model_score_alike(world, run, tmp_path):
    last = run / "checkpoints" / "last.ckpt"
    by_file, by_run = (evaluate_saved(str(place), suite(world), EFFORT) for place in (last, run))
    assert (by_file.step, by_file.tokens_seen, by_file.reasons) == (STEPS, STEPS * 4 * LENGTH, ("asked",))
    subject = open_subject(str(last), None, torch.float32)
    subject.model.save_pretrained(tmp_path / "exported")
    subject.tokenizer.save_pretrained(tmp_path / "exported")
    by_model = evaluate_saved(str(tmp_path / "exported"), suite(world), EFFORT)
    for other in (by_run, by_model):
        assert other.scores[0].hits == by_file.scores[0].hits
        assert other.scores[0].bits == by_file.scores[0].bits
    whole = evaluations_in(run)[0][-1].score("hellaswag")
    asked = evaluate_saved(str(last), suite(world, limit=None), EFFORT).scores[0]
    assert (asked.documents, asked.hits) == (whole.documents, whole.hits)  # as the callback found in the run


def test_a_checkpoint_tells_its_model_without_the_runs_config(world, run, tmp_path):
    alone = shutil.copy((run / "checkpoints" / "last.ckpt").resolve(), tmp_path / "alone.ckpt")
    subject = from_checkpoint(tmp_path / "alone.ckpt", None, torch.float32)
    assert (subject.step, subject.name) == (STEPS, str(alone))


def test_what_cannot_be_evaluated_is_named(world, run, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.ckpt: there is no such file or folder"):
        open_subject("nothing.ckpt", None, torch.float32)
    with pytest.raises(FileNotFoundError, match="is neither a Hugging Face folder .* nor a run"):
        newest_of(tmp_path)
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes((run / "checkpoints" / "last.ckpt").resolve().read_bytes()[:5000])
    with pytest.raises(ValueError, match="broken.ckpt is damaged: its table of contents"):
        open_subject(str(broken), None, torch.float32)
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="foreign.ckpt was not written by lit_cpt"):
        open_subject(str(tmp_path / "foreign.ckpt"), None, torch.float32)
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    saved["lit_cpt"] = {**saved["lit_cpt"], "tokenizer": None}
    torch.save(saved, tmp_path / "mute.ckpt")
    with pytest.raises(ValueError, match="mute.ckpt names no tokenizer"):
        open_subject(str(tmp_path / "mute.ckpt"), None, torch.float32)
    saved["lit_cpt"] = {**saved["lit_cpt"], "architecture": None}
    torch.save(saved, tmp_path / "shapeless.ckpt")
    with pytest.raises(ValueError, match="shapeless.ckpt does not tell its model's architecture"):
        open_subject(str(tmp_path / "shapeless.ckpt"), None, torch.float32)


def test_weights_are_in_the_precision_that_is_asked(world):
    subject = open_subject(str(world[1]), None, torch.bfloat16)
    assert {weight.dtype for weight in subject.model.parameters()} == {torch.bfloat16}
    found = evaluate_saved(str(world[1]), suite(world), EFFORT, precision="bfloat16").scores[0]
    exact = evaluate_saved(str(world[1]), suite(world), EFFORT).scores[0]
    assert found.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=0.05)
    assert found.bits_per_byte != exact.bits_per_byte


# Exporting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_run_is_loaded_by_transformers_with_the_same_weights(run, tmp_path, capsys, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["export", "--checkpoint", str(run), "--output", str(tmp_path / "out"), "--dtype", dtype]) == 0
    assert f"parameters in {dtype}" in capsys.readouterr().out
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert read.dtype == getattr(torch, dtype)
    subject = open_subject(str(run), None, getattr(torch, dtype))
    tokens = torch.arange(3, 40)[None]
    assert torch.equal(read.eval()(tokens).logits, subject.model.eval()(tokens).logits)
    assert {name: getattr(read.generation_config, name) for name in GENERATION} == GENERATION
    text = "red sun over river"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode(text) == subject.tokenizer.encode(text)


def test_an_export_replaces_nothing_unasked(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    arguments = ["export", "--checkpoint", str(run), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "out is there already; name another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert main([*arguments, "--overwrite"]) == 0
    assert not (tmp_path / "out" / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert main([*arguments[:-1], str(tmp_path / "other"), "--dtype", "int8"]) == 2
    assert "--dtype int8: choose float32, bfloat16, float16" in capsys.readouterr().err


# Several processes -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_of_torchrun_find_what_one_does(world, run, tmp_path):
    command = ["-m", "lit_cpt", "eval", "--checkpoint", str(run), "--tasks", "hellaswag,mmlu_anatomy,mgsm", "--data",
               str(world[0]), "--max_gen_toks", "{mgsm: 8}", "--json", str(tmp_path / "two.json")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run([*launcher, *command], capture_output=True, text=True, check=False, timeout=300,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("hellaswag") == 1
    two = Evaluation.read(tmp_path / "two.json")
    one = evaluate_saved(str(run), suite(world, "hellaswag", "mmlu_anatomy", "mgsm", limit=None,
                                         max_gen_toks={"mgsm": 8}), Effort())
    assert [replace(score, seconds=0, tokens=0, bits=(), bits_per_byte=0, metrics={}) for score in two.scores] == [
        replace(score, seconds=0, tokens=0, bits=(), bits_per_byte=0, metrics={}) for score in one.scores]
    for ours, theirs in zip(one.scores, two.scores, strict=True):
        assert theirs.bits == pytest.approx(ours.bits, abs=1e-4)


def test_results_are_one_strict_json(world, run, tmp_path, capsys):
    assert main(["eval", "--checkpoint", str(run), "--tasks", "hellaswag", "--data", str(world[0]), "--limit", "2",
                 "--json", str(tmp_path / "found.json")]) == 0
    assert "hellaswag" in capsys.readouterr().out
    plain = json.loads((tmp_path / "found.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert plain["families"]["hellaswag"]["items"] == 2
