"""prepare and report from end to end, on tiny inputs."""

from __future__ import annotations

import json

import pytest
from run_configs import RUN, printed, write_configs
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lit_cpt.cli import main
from lit_cpt.manifest import Manifest


@pytest.fixture
def here(sources, tmp_path, monkeypatch):
    """A folder with the configs of a run, to work in."""
    write_configs(tmp_path, sources)
    monkeypatch.chdir(tmp_path)
    return tmp_path

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
