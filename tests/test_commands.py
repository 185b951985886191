"""prepare, plan and report from end to end, on tiny inputs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from conftest import LENGTH, SIZES
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lit_cpt.blends import Blend
from lit_cpt.cli import main
from lit_cpt.commands import ignored, planned_arguments
from lit_cpt.manifest import Manifest
from lit_cpt.plan import plan, render
from lit_cpt.recipe import Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import WSD, Cosine

FIRST, SECOND = {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.1, "b": 0.2, "c": 0.7}
RECIPE = Recipe(640, Cosine(1e-2), [Phase("first", Blend(FIRST)),
                                    Phase("late", Blend(SECOND), Trigger(eta_over_eta_max=0.2))])
BATCH = Batch(LENGTH, 4)


@pytest.fixture
def here(sources, tmp_path, monkeypatch):
    """A folder with the configs of a run: recipe.yaml, data.yaml, and model.yaml with what moves no token."""
    files = {
        "recipe.yaml": {"recipe": RECIPE.describe()},
        "data.yaml": {"data": {"sources": sources, "sequence_length": LENGTH, "global_batch": 4, "micro_batch": 2,
                               "workers": 7, "window": 3}},
        "model.yaml": {"seed_everything": 3, "run": "x", "model": {"pretrained": "nowhere"},
                       "trainer": {"devices": 64, "callbacks+": [{"class_path": "no.such.Callback"}]}}}
    for name, content in files.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = ["plan", "--config", "base", "--config", "recipe.yaml", "--config", "data.yaml", "--config", "model.yaml"]


def printed(capsys, *arguments):
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# plan ----------------------------------------------------------------------------------------------------


def test_the_plan_printed_is_the_plan(here, capsys):
    assert printed(capsys, *RUN).rstrip() == render(plan(RECIPE, BATCH, SIZES)).rstrip()


def test_a_later_configs_phases_replace_an_earlier_ones(here, capsys):
    phases = [{"name": "one", "blend": {"weights": {"a": 1.0}}},
              {"name": "two", "blend": {"weights": {"b": 1.0}}, "when": {"fraction": 0.5}}]  # as many, another trigger
    (here / "mine.yaml").write_text(yaml.safe_dump({"recipe": {"phases": phases}}))
    told = json.loads(printed(capsys, *RUN, "--config", "mine.yaml", "--json"))
    assert [(phase["name"], phase["when"]) for phase in told["phases"]] == [("one", None), ("two", "fraction=0.5")]
    assert json.loads(printed(capsys, *RUN, "--recipe.phases", json.dumps(phases), "--json")) == told


def test_the_plan_as_json_is_the_plan(here, capsys):
    told = json.loads(printed(capsys, *RUN, "--json"))
    assert told == json.loads(json.dumps(plan(RECIPE, BATCH, SIZES).describe()))


@pytest.mark.parametrize("more", [
    ["--trainer.devices", "8"], ["--trainer.devices=8"], ["--trainer.fast_dev_run"], ["--run", "there"],
    ["--ckpt_path", "last"], ["--seed_everything", "9"], ["--model.architecture", "x"], ["--data.workers", "0"],
    ["--data.validation_blocks=0"], ["--trainer.callbacks+", "my.Callback"], ["--trainer.devices", "-1"],
    ["--weights_only", "true"]], ids=" ".join)
def test_arguments_of_fit_that_move_no_token_are_ignored(here, capsys, more):
    plain = printed(capsys, *RUN)
    assert printed(capsys, *RUN, *more) == plain
    assert printed(capsys, RUN[0], *more, *RUN[1:]) == plain


def test_arguments_that_move_tokens_are_heeded_wherever_they_stand(here, capsys):
    told = json.loads(printed(capsys, *RUN, "--trainer.fast_dev_run", "--data.seed", "7", "--run", "x",
                              "--data.global_batch=8", "--recipe.token_horizon", "4k", "--json"))
    expected = plan(Recipe("4k", RECIPE.curve, RECIPE.phases), Batch(LENGTH, 8), SIZES, 7)
    assert told == json.loads(json.dumps(expected.describe()))


def test_configs_are_merged_as_fit_merges_them(here, capsys):
    (here / "wsd.yaml").write_text("recipe: {curve: {class_path: WSD, init_args: {decay: 0.3}}}")
    (here / "one.yaml").write_text(yaml.safe_dump({"data": {"sources": {"c": "nowhere"}}}))
    told = json.loads(printed(capsys, *RUN, "--config", "wsd.yaml", "--json"))
    assert told == json.loads(json.dumps(plan(Recipe(640, WSD(1e-2, decay=0.3), RECIPE.phases), BATCH,
                                              SIZES).describe()))
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
    assert [key for key in ("--trainer", "--trainer.devices", "--model.pretrained", "--run", "--data.workers",
                            "--data.seed", "--data.sources.a", "--recipe.curve", "--json", "--data") if ignored(key)
            ] == ["--trainer", "--trainer.devices", "--model.pretrained", "--run", "--data.workers"]
    assert planned_arguments(["--trainer.x", "1", "--json", "--plot", "p.png"]) == ["--json", "--plot", "p.png"]


def test_a_plan_is_drawn_into_a_file_whose_folder_it_makes(here, capsys):
    printed(capsys, *RUN, "--plot", "plots/plan.png")
    assert (here / "plots" / "plan.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_planning_imports_no_torch(here):
    code = (f"import sys\nfrom lit_cpt.cli import main\nstatus = main({RUN})\n"
            "print([name for name in ('torch', 'lightning', 'litdata', 'transformers') if name in sys.modules])\n"
            "sys.exit(status)")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, "[]"), ran.stderr


# prepare and report ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of one token per byte."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab={**letters, "<end>": len(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(folder)
    return str(folder)


def test_text_becomes_a_source_that_a_plan_counts(here, tokenizer, capsys):
    lines = [json.dumps({"question": f"what is {n}", "answer": f"it is {n}"}) for n in range(50)]
    (here / "asked.jsonl").write_text("\n".join(lines))
    (here / "told.txt").write_text("a line\n" * 3 + "the last line\n")
    common = ["--tokenizer", tokenizer, "--workers", "1", "--validation", "0"]
    printed(capsys, "prepare", "--input", "asked.jsonl", *common, "--text-template", "{question}? {answer}.",
            "--output", "out/asked")
    printed(capsys, "prepare", "--input", "told.txt", *common, "--txt-document=line", "--output", "out/told")
    asked, told = Manifest.load(here / "out" / "asked"), Manifest.load(here / "out" / "told")
    texts = [f"what is {n}? it is {n}." for n in range(50)]
    assert (asked.train.documents, asked.train.tokens) == (50, sum(map(len, texts)) + 50)
    assert (told.train.documents, told.train.tokens) == (4, 3 * len("a line") + len("the last line") + 4)

    recipe = "[{name: only, blend: {weights: {asked: 0.9, told: 0.1}}}]"
    drawn = json.loads(printed(capsys, "plan", "--config", "recipe.yaml", "--recipe.phases", recipe,
                               "--data.sequence_length", "8", "--data.global_batch", "4",
                               "--data.sources", "{asked: out/asked, told: out/told}", "--json"))
    blocks = {"asked": asked.train.tokens // 9, "told": told.train.tokens // 9}
    assert {source["name"]: source["epochs"] for source in drawn["sources"]} == {
        source["name"]: source["samples"] / blocks[source["name"]] for source in drawn["sources"]}


def test_a_second_preparation_with_other_settings_is_refused_and_changes_nothing(here, tokenizer, capsys):
    (here / "told.txt").write_text("a line\nanother\n")
    again = ["prepare", "--input", "told.txt", "--tokenizer", tokenizer, "--workers", "1", "--output", "out"]
    printed(capsys, *again)
    assert main([*again, "--txt-document", "line"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Manifest.load("out").train.documents == 1


def test_a_run_is_reported_on_one_page(here, capsys):
    (here / "runs" / "one").mkdir(parents=True)
    (here / "runs" / "one" / "plan.json").write_text(printed(capsys, *RUN, "--json"))
    out = printed(capsys, "report", "runs/one", "--output", "pages/one.html", "--title", "A tiny run")
    assert out.strip() == "pages/one.html"
    page = (here / "pages" / "one.html").read_text(encoding="utf-8")
    assert "A tiny run" in page
    assert "late" in page
