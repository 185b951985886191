"""Families, suites and results: what is known of an evaluation before torch is."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_cpt.harness import FAMILIES, Effort, Family, FamilyResult, Results, Score, Suite, family
from lit_cpt.harness.families import LANGUAGES, mgsm_tasks
from lit_cpt.harness.results import mean_score


def test_the_families_use_the_papers_shots():
    assert {name: one.shots for name, one in FAMILIES.items()} == {"mmlu": 5, "hellaswag": 0, "humaneval": 0, "mgsm": 8}
    assert FAMILIES["mgsm"].tasks == ("mgsm_native_cot_es", "mgsm_native_cot_ja", "mgsm_native_cot_th")


def test_all_languages_of_mgsm_can_be_asked_for():
    assert len(family("mgsm:all").tasks) == len(LANGUAGES) == 11
    assert family("mgsm:fr+de").tasks == ("mgsm_native_cot_fr", "mgsm_native_cot_de")
    assert family("mgsm:fr").shots == 8


def test_any_other_name_is_a_task_at_its_own_settings():
    assert family("arc_easy") == Family("arc_easy", ("arc_easy",))


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="mgsm has no language xx; it has bn, de, .*Write 'mgsm:es"):
        family("mgsm:es+xx")
    with pytest.raises(ValueError, match="no language \\(none given\\)"):
        mgsm_tasks([])


@pytest.mark.parametrize(("settings", "message"), [
    ({"tasks": ()}, "family 'x' has no tasks"),
    ({"tasks": ("a",), "shots": -1}, "family 'x' has shots=-1; give 0 or more"),
    ({"tasks": ("a",), "max_gen_toks": 0}, "family 'x' has max_gen_toks=0; give 1 or more"),
])
def test_a_family_that_cannot_be_run_cannot_be_made(settings, message):
    with pytest.raises(ValueError, match=message):
        Family("x", **settings)


def test_the_vocabulary_of_evaluation_imports_without_torch():
    code = ("import sys, lit_cpt.harness, lit_cpt.harness.mirror\n"
            "print([name for name in ('torch', 'lm_eval', 'datasets') if name in sys.modules])")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                         cwd=Path(__file__).parent.parent)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr


# Results -----------------------------------------------------------------------------------------------


def test_a_mean_comes_with_its_standard_error():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    score = mean_score(values)
    spread = sum((value - 0.6) ** 2 for value in values) / 4
    assert score.value == pytest.approx(0.6)
    assert score.stderr == pytest.approx(math.sqrt(spread / 5))
    assert (mean_score([]), mean_score([0.5])) == (Score(None, None, 0), Score(0.5, None, 1))


def test_results_tell_their_scores_and_turn_into_json():
    one = FamilyResult("mmlu", scores={"mmlu/acc": Score(0.25, 0.1, 4), "mmlu/x": Score(None, None, 0)},
                       documents={"mmlu_anatomy": {"doc_id": [0.0], "bits_per_byte": [math.nan]}},
                       counts={"nonfinite": 2}, seconds={"total": 3.0})
    results = Results({"mmlu": one})
    assert results["mmlu"].value("mmlu/acc") == 0.25
    assert results.ok
    assert list(results) == ["mmlu"]
    written = json.loads(json.dumps(results.to_dict(), allow_nan=False))
    assert written["families"]["mmlu"]["documents"]["mmlu_anatomy"]["bits_per_byte"] == [None]
    with pytest.raises(KeyError, match="mmlu \\(ok\\) has no score 'mmlu/f1'; it has mmlu/acc, mmlu/x"):
        one.value("mmlu/f1")


# What a config asks -----------------------------------------------------------------------------------------


def test_a_suite_gives_families_with_its_settings():
    suite = Suite(["mmlu", "mgsm:all"], shots={"mmlu": 0}, max_gen_toks={"mgsm": 64}, limit={"mmlu": 20})
    mmlu, mgsm = suite.families
    assert (suite.names, mmlu.shots, mgsm.shots, mgsm.max_gen_toks) == (("mmlu", "mgsm"), 0, 8, 64)
    assert (suite.limit_of("mmlu"), suite.limit_of("mgsm"), suite.whole.limit) == (20, None, None)
    assert Suite(limit=5).limit_of("hellaswag") == 5


def test_the_mirror_comes_from_the_suite_or_the_environment(monkeypatch):
    monkeypatch.delenv("LIT_CPT_EVAL_DATA", raising=False)
    assert Suite().root is None
    monkeypatch.setenv("LIT_CPT_EVAL_DATA", "/data/mirror")
    assert str(Suite().root) == "/data/mirror"
    assert str(Suite(data="here").root) == "here"


@pytest.mark.parametrize(("settings", "message"), [
    ({"tasks": []}, "leaves nothing to evaluate"),
    ({"tasks": "mmlu"}, "tasks='mmlu' is one text"),
    ({"tasks": ["mgsm:es", "mgsm:fr"]}, "names mgsm twice"),
    ({"limit": 0}, "limit=0 must be 1 or more"),
    ({"limit": {"mmlu": -3}}, "limit=-3 of mmlu must be 1 or more"),
    ({"limit": {"mmlv": 3}}, "limit for 'mmlv', which is not evaluated"),
    ({"shots": {"mmlu": -1}}, "shots=-1 of mmlu must be 0 or more"),
    ({"max_gen_toks": {"mgsm": 0}}, "max_gen_toks=0 of mgsm must be 1 or more"),
])
def test_a_suite_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Suite(**settings)


@pytest.mark.parametrize(("settings", "message"), [
    ({"seconds": 0.0}, "seconds=0.0 must be positive"), ({"token_budget": 0}, "token_budget=0 must be 1 or more"),
    ({"most_failures": 0}, "most_failures=0 must be 1 or more")])
def test_an_effort_of_nothing_is_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Effort(**settings)
