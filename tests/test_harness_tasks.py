"""Upstream's tasks on a mirror: the prompts are lm-eval's own, whatever the limit, and they are made once."""

from __future__ import annotations

import shutil
from dataclasses import replace

import datasets
import evaluate
import pytest
from harness_world import HELLASWAG, HUMANEVAL, MGSM, MMLU, SMALL, build_mirror, mmlu_rows, write_repository
from lm_eval.utils import env

from lit_cpt.harness import Family, family
from lit_cpt.harness.requests import GENERATES, RequestStore, render, task_documents
from lit_cpt.harness.tasks import FEWSHOT_SEED, compiled_templates, load_tasks, sample_documents


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    return build_mirror(tmp_path_factory.mktemp("tasks") / "mirror")


def upstream_requests(task):
    """What lm-eval asks in a full run."""
    task.set_fewshot_seed(FEWSHOT_SEED)
    task.build_all_requests()
    return [(one.doc_id, one.idx, one.request_type, one.args) for one in task.instances]


@pytest.mark.parametrize("one", SMALL, ids=lambda one: one.name)
@pytest.mark.parametrize("limit", [None, 2])
def test_requests_are_those_of_a_full_run_of_lm_eval(mirror, one, limit):
    for name, task in load_tasks(one, mirror).tasks.items():
        numbers = sample_documents(name, len(task_documents(task)), limit, seed=5)
        mine = [(asked.doc_id, asked.idx, asked.request_type, asked.args)
                for document in render(task, numbers, one.gold, lambda: None) for asked in document.asked]
        assert mine == [request for request in upstream_requests(task) if request[0] in numbers]
        assert len({request[0] for request in mine}) == (limit or 6)


def test_gold_answers_are_right_choices_or_texts(mirror):
    store = RequestStore()
    golds = {one.name: store.get(one, mirror, None, 0).documents for one in SMALL}
    for document in golds["mmlu"]["mmlu_anatomy"]:
        assert document.gold == document.content["answer"]
    for document in golds["hellaswag"]["hellaswag"]:
        assert document.gold == int(document.content["label"])
    for document in golds["humaneval"]["humaneval"]:
        assert document.gold.args == (document.content["prompt"], document.content["canonical_solution"])
    for document in golds["mgsm"]["mgsm_native_cot_ja"]:
        assert document.gold.args == (document.asked[0].args[0], f" {document.content['answer_number']}")


def test_shots_and_room_are_the_familys(mirror):
    tasks = load_tasks(MGSM, mirror).tasks
    assert {task.get_config("num_fewshot") for task in tasks.values()} == {8}
    assert {task.get_config("generation_kwargs")["max_gen_toks"] for task in tasks.values()} == {12}


def test_a_missing_repository_is_named_with_the_way_to_get_it(mirror, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no cais/mmlu: run `lit-cpt eval-data fetch --data"):
        load_tasks(MMLU, tmp_path)


def test_a_missing_config_is_named(tmp_path):
    partial = build_mirror(tmp_path / "partial", subjects=("anatomy",))
    with pytest.raises(ValueError, match="cais/mmlu has no config 'astronomy'; it has anatomy"):
        load_tasks(MMLU, partial)


@pytest.mark.slow  # reads the index of all of lm-eval's tasks
def test_an_unknown_task_is_refused_and_any_known_one_is_taken(tmp_path):
    with pytest.raises(ValueError, match="lm-eval has no task, group or tag no_such_task"):
        load_tasks(family("no_such_task"), tmp_path)
    rows = [{"question": f"What is {row}?", "id": str(row), "answerKey": "B",
             "choices": {"text": ["one", "two", "three", "four"], "label": ["A", "B", "C", "D"]}} for row in range(4)]
    write_repository(tmp_path, "allenai/ai2_arc", {"ARC-Easy": {"train": rows, "validation": rows, "test": rows}})
    documents = RequestStore().get(family("arc_easy"), tmp_path, None, 0).documents["arc_easy"]
    assert documents[0].asked[0].args == ("Question: What is 0?\nAnswer:", " one")
    assert documents[0].gold == 1


def test_upstream_is_as_it_was_afterwards(mirror):
    before = datasets.load_dataset, evaluate.load, datasets.are_progress_bars_disabled()
    load_tasks(HUMANEVAL, mirror)
    with pytest.raises(FileNotFoundError):
        load_tasks(MMLU, mirror / "nowhere")
    assert (datasets.load_dataset, evaluate.load, datasets.are_progress_bars_disabled()) == before
    assert "from_string" not in vars(env)


def test_a_template_is_compiled_once():
    with compiled_templates():
        assert env.from_string("{{x}}") is env.from_string("{{x}}")
    assert env.from_string("{{x}}") is not env.from_string("{{x}}")


def test_a_sample_depends_on_nothing_but_task_size_limit_and_seed():
    assert sample_documents("a", 100, 5, 1) == sample_documents("a", 100, 5, 1)
    assert sample_documents("a", 100, 5, 1) != sample_documents("a", 100, 5, 2)
    assert sample_documents("a", 100, 5, 1) != list(range(5))
    assert sample_documents("a", 3, 5, 1) == [0, 1, 2]


def test_requests_are_kept_until_something_changes(mirror, tmp_path):
    copy = shutil.copytree(mirror, tmp_path / "mirror")
    store = RequestStore()
    first = store.get(MMLU, copy, 2, 0)
    first.documents["mmlu_anatomy"][0].asked[0].resps = [(0.0, True)]
    assert store.get(MMLU, copy, 2, 0) is first
    assert store.rendered == 6
    assert first.documents["mmlu_anatomy"][0].asked[0].resps == []
    assert store.get(replace(MMLU, shots=1), copy, 2, 0) is not first
    second = store.get(MMLU, copy, 2, 0)
    assert store.get(MMLU, copy, 3, 0) is not second
    assert store.get(MMLU, copy, 2, 0) is second
    import random

    write_repository(copy, "cais/mmlu", {name: {"dev": mmlu_rows(random.Random(9), 5),
                                                "test": mmlu_rows(random.Random(1), 6)}
                                         for name in ("anatomy", "astronomy", "virology")})
    third = store.get(MMLU, copy, 2, 0)
    assert third.loaded.hashes != second.loaded.hashes
    assert third.documents["mmlu_anatomy"][0].asked[0].args != second.documents["mmlu_anatomy"][0].asked[0].args


def test_work_between_documents_can_be_stopped(mirror):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    with pytest.raises(Stop):
        RequestStore().get(HELLASWAG, mirror, None, 0, check=stop)


def test_requests_can_be_asked_for_by_kind(mirror):
    requests = RequestStore().get(HUMANEVAL, mirror, None, 0)
    assert len(requests.instances(GENERATES)) == len(requests.instances(GENERATES, golds=True)) == 6
    assert requests.instances("loglikelihood") == []
    assert requests.loaded.runs_programs
    assert isinstance(HUMANEVAL, Family)
