"""The result file: written whole, read back, and averaged only where nothing failed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from lit_cpt.evaluations import Evaluation, Failure, FamilyScore, evaluations_in, write_evaluation


def score(family="mmlu", hits=(1, 0, 1, 1), **settings):
    names = tuple(f"{family}_a/{row}" for row in range(len(hits)))
    given = {"family": family, "metric": "acc", "documents": names, "clusters": names, "hits": tuple(map(float, hits)),
             "bits_per_byte": 1.5, "bits": (1.0, 2.0, None, 1.5)[: len(hits)], "metrics": {family: {"acc": 0.75}},
             "shots": {f"{family}_a": 5}, "limit": None, "seed": None, "max_new_tokens": None,
             "versions": {f"{family}_a": "1.0"}, "data": {"cais/mmlu": "sha256:1"}, "seconds": 2.0, "tokens": 10}
    return FamilyScore(**{**given, **settings})


def evaluation(*scores, failures=(), **settings):
    given = {"step": 10, "tokens_seen": 1000, "model": "m", "reasons": ("steps",), "full": False,
             "scores": scores or (score(),), "failures": tuple(failures), "seconds": 3.0, "packages": {"torch": "2.14"},
             "time": 1.0}
    return Evaluation(**{**given, **settings})


def test_a_file_gives_back_what_was_written(tmp_path):
    made = evaluation(score(), score("mgsm", (0.5, 1)), failures=[Failure("humaneval", "error", "why", "trace", 1.0)])
    path = write_evaluation(tmp_path, made)
    assert path == tmp_path / "evals" / "step00000010.json"
    assert Evaluation.read(path) == made
    assert evaluations_in(tmp_path) == ([made], [])


def test_whole_numbers_are_written_as_such_and_no_number_is_nan(tmp_path):
    made = evaluation(score(hits=(1, 0, 1, 1)), score("perplexity", (), metric="ppl", documents=("x/0",),
                                                      clusters=("x/0",), metrics={"perplexity": {"ppl": math.inf}}))
    text = write_evaluation(tmp_path, made).read_text()
    assert '"hits":[1,0,1,1]' in text
    plain = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert plain["families"]["perplexity"]["score"] is None


def test_a_score_is_the_mean_over_documents_with_an_interval_over_clusters():
    alone = score(hits=[1, 0] * 50).interval
    together = replace(score(hits=[1, 0] * 50), clusters=tuple(str(row // 25) for row in range(100))).interval
    assert alone.value == together.value == 0.5
    assert together.high - together.low < alone.high - alone.low  # every cluster is half right
    single = score(hits=(), metrics={"mmlu": {"acc": 0.4, "acc_stderr": 0.1}}).interval
    assert (single.value, round(single.low, 3), round(single.high, 3)) == (0.4, 0.204, 0.596)


def test_the_average_is_over_families_and_only_where_none_failed():
    both = evaluation(score(hits=(1, 1, 1, 1)), score("mgsm", (0, 1)))
    assert both.average.value == 0.75
    assert evaluation(score(), failures=[Failure("mgsm", "timeout", "late")]).average is None
    assert evaluation(score(), failures=[Failure("mgsm", "timeout", "late")]).describe()["averaged"] == []


def test_fourteen_thousand_documents_take_a_second_and_little_memory():
    import tracemalloc

    big = score(hits=[1, 0] * 7021, bits=())
    tracemalloc.start()
    assert big.interval.value == 0.5
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()


@pytest.mark.parametrize(("text", "said"), [("not json", "holds no evaluation"), ("[1]", "holds no evaluation"),
                                            ('{"step": 1}', "holds no evaluation .it is no evaluation: KeyError")])
def test_what_is_no_evaluation_is_named(tmp_path, text, said):
    path = tmp_path / "evals" / "step00000001.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        Evaluation.read(path)
    found, wrong = evaluations_in(tmp_path)
    assert (found, len(wrong)) == ([], 1)
    with pytest.raises(FileNotFoundError, match="nothing.json: there is no such file"):
        Evaluation.read(tmp_path / "nothing.json")
