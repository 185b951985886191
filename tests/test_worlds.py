"""Worlds on disk: what they hold, what is pretrained in them, and that nothing is done twice."""

from __future__ import annotations

import json

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lit_cpt import worlds
from lit_cpt.cli import main
from lit_cpt.events import append_event, read_events
from lit_cpt.microworld import FAMILIES, LABORATORY, SHAPES, Proportions, World
from lit_cpt.weights import build_model
from lit_cpt.worlds import BASES, LENGTH, PRETRAINING, SEQUENCES, architecture, fit_arguments, pretraining_config

SMALL = Proportions(entities=60, activities=12, web=600, books=200, code=200, multi=300, code_probes=12,
                    largest_first=6, largest_second=3, qa_problems=20, qa_programs=10)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small world's folder without its tokens."""
    folder = tmp_path_factory.mktemp("world")
    worlds.build_world(folder, 3, proportions=SMALL)
    for name in [*PRETRAINING, "qa", "qa_few", "qa_held_out"]:
        (folder / "data" / name).mkdir(parents=True)
    return folder


def test_the_laboratorys_world_has_more_to_learn_than_the_quickstarts():
    assert (LABORATORY.activities, LABORATORY.largest_first, LABORATORY.largest_second) == (144, 12, 6)
    assert LABORATORY.held_out_programs > Proportions().held_out_programs
    world = World(0, LABORATORY)
    assert world.contamination() == []
    assert len(world.probes["completion"]) == 4 * 144
    assert {activity.split()[-1] for activity in world.procedures.steps} >= {"camping", "wiring"}


def test_a_worlds_folder_holds_text_questions_and_a_model_config_with_its_tokenizer(root):
    assert {path.stem for path in (root / "text").iterdir()} == {*PRETRAINING, "qa", "qa_held_out"}
    assert {path.stem for path in (root / "questions").glob("*.yaml")} == {*FAMILIES, "transfer"}
    assert AutoConfig.from_pretrained(str(root / "architecture")).vocab_size == len(
        AutoTokenizer.from_pretrained(str(root / "architecture")))


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_a_model_of_the_worlds_vocabulary(root, shape):
    worlds.write_shape(root, shape)
    model = build_model(None, str(architecture(root, shape)))
    kind = AutoModelForSeq2SeqLM if shape == "encoder_decoder" else AutoModelForCausalLM
    assert type(model) in kind._model_mapping.values()
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(str(architecture(root, shape))))


def test_shapes_are_smaller_alike_and_larger(root):
    def count(shape):
        worlds.write_shape(root, shape)
        return sum(one.numel() for one in build_model(None, str(architecture(root, shape))).parameters())

    dense, experts = count("dense"), count("moe")
    assert count("small") < 0.6 * dense < 1.8 * dense < count("large")
    inactive = 3 * 2 * 3 * 96 * 128  # layers, experts that a token is not sent to, matrices of an expert
    assert abs(experts - inactive - dense) < 0.01 * dense  # routers


def test_pretraining_is_asked_the_worlds_questions_and_reads_all_but_the_few(root):
    config = pretraining_config(root, PRETRAINING, 100, 3)
    assert set(config["data"]["sources"]) == {*PRETRAINING, "qa", "qa_held_out"}
    assert config["recipe"]["token_horizon"] == 100 * LENGTH * SEQUENCES
    suite = config["trainer"]["callbacks+"][0]["init_args"]["suite"]
    assert suite["tasks"] == [*FAMILIES, "transfer"]
    assert suite["folder"] == str(root / "questions")
    assert pretraining_config(root, PRETRAINING, 100, 3, "moe")["model"] == {
        "architecture": str(root / "architecture_moe")}


def test_the_early_base_is_pretrained_a_fifth_as_long_by_a_schedule_of_its_own():
    assert (BASES["early"].share, BASES["early"].shape) == (0.2, "dense")
    assert {name for name, base in BASES.items() if base.share == 1} == {"full", *SHAPES} - {"dense"}


def test_a_run_is_started_resumed_or_left_as_it_stands(root, tmp_path, capsys):
    config = pretraining_config(root, PRETRAINING, 100, 3)
    arguments = fit_arguments(tmp_path, "full", config)
    assert arguments[-2:] == ["--run", str(tmp_path / "runs" / "full")]
    assert yaml.safe_load((tmp_path / "configs" / "full.yaml").read_text()) == config
    saved = worlds.checkpoint(tmp_path / "runs" / "full")
    saved.parent.mkdir(parents=True)
    saved.touch()
    assert fit_arguments(tmp_path, "full", config)[-2:] == ["--ckpt_path", "last"]
    append_event(tmp_path / "runs" / "full", "finish", step=100)
    assert fit_arguments(tmp_path, "full", config) == []
    assert "is finished already" in capsys.readouterr().out


@pytest.mark.parametrize("last", ["start", "finish"])
def test_a_rehearsed_model_is_never_taken_for_the_whole_one(root, tmp_path, last):
    fit_arguments(tmp_path, "full", pretraining_config(root, PRETRAINING, 11, 3))
    append_event(tmp_path / "runs" / "full", last, step=11)
    with pytest.raises(FileExistsError, match="full was begun by another recipe.*name another folder"):
        fit_arguments(tmp_path, "full", pretraining_config(root, PRETRAINING, 3600, 3))


def test_a_run_that_was_never_begun_may_take_another_recipe(root, tmp_path):
    for steps in (11, 3600):
        config = pretraining_config(root, PRETRAINING, steps, 3)
        assert fit_arguments(tmp_path, "full", config)
        assert yaml.safe_load((tmp_path / "configs" / "full.yaml").read_text()) == config


@pytest.mark.slow
def test_worlds_and_the_models_in_them_are_made_once_and_by_the_same_seed_the_same(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worlds, "LABORATORY", SMALL)
    command = ["worlds", "--seeds", "7", "--models", "full", "moe", "--workers", "2", "--rehearse", "0.003"]
    assert main(command) == 0, capfd.readouterr()
    for name in ("full", "moe"):
        assert read_events(tmp_path / "worlds/7/runs" / name)[-1]["step"] == 11
        assert (tmp_path / "worlds/7/models" / name / "config.json").exists()
    assert json.loads((tmp_path / "worlds/7/models/moe/config.json").read_text())["model_type"] == "mixtral"
    questions = (tmp_path / "worlds/7/text/qa.jsonl").read_text().splitlines()
    few = (tmp_path / "worlds/7/text/qa_few.jsonl").read_text().splitlines()
    assert few == questions[:round(0.3 * len(questions))]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert main([*command[:-1], "0.004"]) == 2
    assert "was begun by another recipe" in capfd.readouterr().err
    assert main([*command[:4], "full", *command[6:], "--output", "again"]) == 0
    for made in ("models/full/model.safetensors", "data/web/chunk-0-0.bin", "text/qa.jsonl", "questions/math.jsonl"):
        assert (tmp_path / "again/7" / made).read_bytes() == (tmp_path / "worlds/7" / made).read_bytes()
