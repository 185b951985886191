"""Two evaluations side by side, document by document."""

from __future__ import annotations

import math

import pytest
from test_evaluations import evaluation, score

from lit_cpt.evaluations import Failure
from lit_cpt.score_changes import (
    change_since,
    compare,
    render_comparison,
    render_evaluation,
    shared,
    summary_line,
    tags,
)


def test_documents_are_paired_by_name_whatever_their_number_and_order():
    first = score(hits=(1, 0, 1, 1))
    second = score(hits=(0, 1), documents=("mmlu_a/3", "mmlu_a/1"), clusters=("x", "y"), bits=(2.0, None))
    both = shared(first, second)
    assert (both.first, both.second, both.clusters) == ((1.0, 0.0), (0.0, 1.0), ("x", "y"))
    assert both.bits == (0.5,)


def test_other_data_or_other_documents_are_not_paired():
    assert shared(score(), score(data={"cais/mmlu": "sha256:2"})) is None
    assert shared(score(), score(documents=("b/0", "b/1", "b/2", "b/3"))) is None


def test_the_change_since_the_baseline_is_over_the_documents_of_both():
    baseline = evaluation(score(hits=(1, 0, 1, 1)))
    subset = score(hits=(1, 1), documents=("mmlu_a/0", "mmlu_a/1"), clusters=("a", "b"), bits=())
    assert change_since(baseline, subset) == 0.5
    assert change_since(None, subset) is None
    assert change_since(evaluation(score("mgsm")), subset) is None


def test_the_log_line_tells_scores_changes_and_failures():
    now = evaluation(score(hits=(1, 1, 1, 1)), failures=[Failure("mgsm", "timeout", "late")], step=1200)
    line = summary_line(now, evaluation(score(hits=(1, 1, 0, 0))))
    assert line == "evaluated step 1,200 (1k tokens): mmlu 100.0 (+50.0), 1.500 bits/byte; mgsm timeout; 3s"
    assert "average 87.5" in summary_line(evaluation(score(hits=(1, 1, 1, 1)), score("arc")), None)


def test_tags_hold_what_tensorboard_can_show():
    metrics = {"mmlu": {"acc": 0.75, "acc_stderr": 0.1, "bits_per_byte": 1.5}, "mmlu_stem": {"acc": 0.5},
               **{f"mmlu_{index}": {"acc": 0.5} for index in range(57)}}
    now = evaluation(score(metrics=metrics), score("mgsm", (1, 0), metrics={"mgsm": {"acc": math.nan},
                                                                           "mgsm_es": {"acc": 1.0}}),
                     failures=[Failure("humaneval", "error", "why", None, 4.0)])
    found = tags(now, evaluation(score(hits=(0, 0, 0, 0))))
    assert found == {"eval/mmlu/acc": 0.75, "eval/mmlu/bits_per_byte": 1.5, "eval/mmlu_stem/acc": 0.5,
                     "eval/mmlu/change": 0.75, "eval/mmlu/ok": 1.0, "eval/mmlu/seconds": 2.0, "eval/mgsm_es/acc": 1.0,
                     "eval/mgsm/ok": 1.0, "eval/mgsm/seconds": 2.0, "eval/humaneval/ok": 0.0,
                     "eval/humaneval/seconds": 4.0}
    assert tags(evaluation(), None)["eval/average"] == 0.75
    assert tags(evaluation(), None)["eval/mmlu/change"] == 0.0


def test_a_comparison_has_a_row_for_each_family_and_their_average():
    first = evaluation(score(hits=[0] * 40 + [1] * 40, bits=(2.0,) * 80), score("mgsm", [0, 1] * 20, bits=()))
    second = evaluation(score(hits=[1] * 80, bits=(1.5,) * 80), score("mgsm", [0, 1] * 20, bits=()))
    found = compare(first, second)
    assert [row.family for row in found.rows] == ["mmlu", "mgsm", "average"]
    mmlu, mgsm, average = found.rows
    assert mmlu.difference.value == 0.5
    assert mmlu.difference.excludes_zero
    assert (mmlu.bits_difference.value, mgsm.bits_difference) == (-0.5, None)
    assert (mgsm.difference.value, mgsm.difference.low, mgsm.difference.high) == (0.0, 0.0, 0.0)
    assert (average.documents, average.difference.value) == (120, 0.25)
    text = render_comparison(found, ("before", "after"))
    assert "50.0 [" in text
    assert "+50.0 [" in text
    assert found.describe()["rows"][0]["difference"]["value"] == 0.5


@pytest.mark.parametrize(("settings", "note"), [
    ({"shots": {"mmlu_a": 0}}, "mmlu: worked examples differ, so prompts or answers are not alike: 5 and 0"),
    ({"versions": {"mmlu_a": "2.0"}}, "mmlu: task versions differ"),
    ({"max_new_tokens": 64}, "mmlu: new tokens differ"),
    ({"data": {"cais/mmlu": "other"}}, "mmlu: the data are not the same, so documents cannot be paired"),
    ({"documents": ("b/0", "b/1", "b/2", "b/3")}, "mmlu: no document was asked in both"),
    ({"metric": "acc_norm"}, "mmlu: acc in the first, acc_norm in the second"),
    ({"hits": (1, 0), "documents": ("mmlu_a/0", "mmlu_a/1"), "clusters": ("a", "b"), "bits": ()},
     "mmlu: 4 and 2 documents, of which both have 2"),
    ({"family": "arc"}, "mmlu: only in the first"),
])
def test_what_makes_a_difference_doubtful_is_said(settings, note):
    found = compare(evaluation(score()), evaluation(score(**settings)))
    assert any(each.startswith(note) for each in found.notes), found.notes
    assert "!" in render_comparison(found, ("a", "b"))


def test_versions_and_failures_are_said():
    found = compare(evaluation(score(), failures=[Failure("mgsm", "timeout", "late")]),
                    evaluation(score(), packages={"torch": "2.15"}))
    assert "mgsm: timeout in the first (late)" in found.notes
    assert "made with torch 2.14 and 2.15" in found.notes


def test_nothing_to_compare_is_said():
    found = compare(evaluation(score()), evaluation(score("arc")))
    assert render_comparison(found, ("a", "b")).startswith("Nothing can be compared")


def test_an_evaluation_is_a_table_with_its_failures_below():
    text = render_evaluation(evaluation(score(), score("mgsm", (1, 0), cut=3, shortened=2, max_new_tokens=512, bits=(),
                                                       bits_per_byte=None),
                                        failures=[Failure("humaneval", "unavailable", "no sandbox")]))
    assert "75.0 [" in text
    assert "average" not in text
    for said in ("! humaneval: unavailable: no sandbox", "! mgsm: 3 prompts were longer", "! mgsm: 2 answers had less"):
        assert said in text
    assert "average" in render_evaluation(evaluation(score(), score("mgsm", (1, 0))))
