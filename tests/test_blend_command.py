"""`lit-cpt blend suggest`: what it prints is a recipe, its reasons are true, and each mistake is told in a line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import LENGTH, SIZES
from test_evaluations import evaluation, score

from lit_cpt.blend_design import Rule, suggest
from lit_cpt.blends import MANY_EPOCHS
from lit_cpt.cli import main
from lit_cpt.evaluations import write_evaluation
from lit_cpt.schedules import Cosine
from lit_cpt.source_facts import SourceFacts

SOURCES = {"web": {"tokens": "2T", "share": 0.7, "tier": "low"},
           "books": {"tokens": "10B", "share": 0.1, "tier": "high"},
           "code": {"tokens": "150B", "share": 0.2, "score": 0.3, "target": 0.6},
           "questions": {"tokens": "9B", "kind": "qa"}}
GIVEN = {"token_horizon": "300B", "eta_max": 4.5e-5, "sources": SOURCES}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with `sources.yaml`."""
    write(tmp_path, GIVEN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, content):
    (folder / "sources.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def printed(capsys, *arguments):
    assert main(["blend", "suggest", "sources.yaml", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_what_is_printed_is_the_recipe_of_the_suggested_weights(here, capsys):
    facts = {name: SourceFacts(**one) for name, one in SOURCES.items()}
    switch = Cosine(4.5e-5).progress(9e-6) * 300e9
    blends = suggest(facts, (switch, 300e9 - switch), Rule())
    recipe = yaml.safe_load(printed(capsys))["recipe"]
    assert [phase["blend"]["weights"] for phase in recipe["phases"]] == [
        {name: one.weight for name, one in blend.items()} for blend in blends]
    assert [phase.get("when") for phase in recipe["phases"]] == [None, {"eta_over_eta_max": 0.2}]
    assert list(recipe["phases"][1]["blend"]["weights"]) == list(SOURCES)  # in the order of the file


def test_each_weight_has_its_reason_beside_it(here, capsys):
    lines = {line.split(":")[0].strip(): line.split("# ")[1] for line in printed(capsys).splitlines() if "here" in line}
    assert lines["web"].startswith("0.7 of pretraining x 0.5 (low); ")
    assert lines["code"].startswith("0.2 of pretraining x 1 (medium) x 2.5 (weak); ")
    assert " before others' caps; " in lines["code"]
    assert "before its cap at 4 epochs in all; " in lines["books"]
    assert lines["questions"] == "1 of QA data x 1 (medium); 1.44 epochs here"


def test_the_example_in_the_docs_is_what_is_printed(here, capsys):
    text = (Path(__file__).parent.parent / "docs" / "recipe.md").read_text(encoding="utf-8")
    (here / "sources.yaml").write_text(re.search(r"```yaml\n(# sources.yaml\n.*?)```", text, re.DOTALL)[1])
    assert printed(capsys) == re.search(r"\$ cat recipe.yaml\n(.*?)(\$|```)", text, re.DOTALL)[1]


def test_a_plan_of_what_is_printed_repeats_no_source_too_often(sources, here, capsys):
    facts = {"a": {"folder": sources["a"], "tier": "low"}, "b": {"folder": sources["b"], "tier": "high"},
             "c": {"folder": sources["c"], "kind": "qa"}}
    write(here, {"token_horizon": 15_000, "eta_max": 1e-3, "sequence_length": LENGTH, "sources": facts})
    (here / "recipe.yaml").write_text(printed(capsys))
    assert main(["plan", "--config", "recipe.yaml", "--data.global_batch", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    epochs = {source["name"]: source["epochs"] for source in told["sources"]}
    assert epochs["b"] == pytest.approx(MANY_EPOCHS, abs=3 / SIZES["b"] * MANY_EPOCHS)
    assert max(epochs.values()) < MANY_EPOCHS * (1 + 3 / SIZES["b"])
    assert told["phases"][1]["start"]["fraction"] == pytest.approx(0.7113, abs=2e-3)


def test_options_stand_in_the_file_or_behind_it(here, capsys):
    behind = printed(capsys, "--qa.qa_share", "0.1", "--general.replay", "0.8", "--max-epochs", "2",
                     "--eta-over-eta-max", "0.5")
    write(here, {**GIVEN, "qa": {"qa_share": 0.1}, "general": {"replay": 0.8}, "max_epochs": 2,
                 "eta_over_eta_max": 0.5})
    assert printed(capsys) == behind
    assert "0.25 pretraining mix, 0.65 by quality and weakness (up to x 4), 0.1 question-answer data" in behind
    assert "when: {eta_over_eta_max: 0.5}   # 50.32% of the horizon" in behind
    assert "before its cap at 2 epochs in all" in behind


def test_json_holds_recipe_and_reasons(here, capsys):
    told = json.loads(printed(capsys, "--json"))
    assert told["recipe"] == {**yaml.safe_load(printed(capsys))["recipe"], "curve": told["recipe"]["curve"],
                              "optimizer": told["recipe"]["optimizer"]}
    assert (told["switch_tokens"], told["rule"]["qa"]["weakness"]) == (round(Cosine(1.0).progress(0.2) * 300e9), 3.0)
    assert told["blends"]["qa"]["books"]["capped"]


def test_scores_come_from_an_evaluation(here, capsys):
    path = write_evaluation(here, evaluation(score("humaneval", (1, 0, 0, 0))))
    sources = {**SOURCES, "code": {"tokens": "150B", "share": 0.2, "family": "humaneval", "target": 0.5}}
    write(here, {**GIVEN, "evaluation": str(path), "sources": sources})
    assert "x 1.5 (weak)" in printed(capsys)


@pytest.mark.parametrize("name", ["yes", "a: b", "12", "# no", "Bücher"])
def test_any_name_of_a_source_stays_what_it_is(here, capsys, name):
    write(here, {**GIVEN, "sources": {**SOURCES, name: {"tokens": "1B", "share": 0.1}}})
    assert name in yaml.safe_load(printed(capsys))["recipe"]["phases"][0]["blend"]["weights"]


def test_suggesting_imports_no_torch(here):
    code = ("import sys\nfrom lit_cpt.cli import main\nstatus = main(['blend', 'suggest', 'sources.yaml', '--json'])\n"
            "print([name for name in ('torch', 'lightning', 'litdata', 'transformers') if name in sys.modules])\n"
            "sys.exit(status)")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, "[]"), ran.stderr


@pytest.mark.parametrize(("words", "said"), [
    ([], "required: file, token_horizon, eta_max, sources"),
    (["gone.yaml"], "gone.yaml: there is no such file; write one such as `sources: "),
    (["text"], "text holds 'web'; write a mapping"),
    (["sources.yaml", "--maxepochs", "3"], "--maxepochs 3. Did you mean max_epochs?"),
    (["sources.yaml", "--token_horizon", "0"], "a phase trains 0 tokens: give a token_horizon"),
    (["sources.yaml", "--eta_over_eta_max", "0.001"], "is never reached: this curve runs from 4.5e-05"),
    (["sources.yaml", "--sequence_length", "0"], "sequence_length=0 must be at least 1"),
    (["sources.yaml", "--sources.web.tier", "best"], "source 'web': tier='best' is not known; choose low"),
    (["sources.yaml", "--sources.web.tokns", "3B"], "SourceFacts takes no tokns; .* Did you mean tokens?"),
    (["sources.yaml", "--sources.web.folder", "gone", "--sources.web.tokens", "null"],
     "source 'web': there is no folder 'gone'"),
    (["sources.yaml", "--sources.web.family", "mmlu"], "source 'web': family='mmlu' needs --evaluation FILE"),
    (["sources.yaml", "--sources.web.family", "mmlu", "--evaluation", "gone"], "gone: there is no such file"),
    (["sources.yaml", "--sources.web.family", "mmlu", "--evaluation", "evals/step00000010.json"],
     "source 'web': evals/step00000010.json has no score of family 'mmlu'; it has mgsm")])
def test_a_mistake_is_told_in_one_line(here, capsys, words, said):
    (here / "text").write_text("web")
    write_evaluation(here, evaluation(score("mgsm")))
    assert main(["blend", "suggest", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lit-cpt blend: ")
    assert re.search(said.replace("?", r"\?"), line), line


def test_a_deed_that_is_not_there_is_told(capsys):
    assert main(["blend", "design"]) == 2
    assert "blend design: there is only `lit-cpt blend suggest FILE" in capsys.readouterr().err
