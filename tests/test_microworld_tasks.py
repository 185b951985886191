"""The world's questions as lm-eval tasks: scored as a second, plain reading scores them."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reference_scoring import score_probes
from test_microworld import SMALL, oracle_text
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lit_cpt.harness import Suite
from lit_cpt.harness.evaluation import Kept, evaluate
from lit_cpt.microworld import World, write_model_config
from lit_cpt.microworld.probes import ChoiceProbe
from lit_cpt.microworld.tasks import write_tasks
from lit_cpt.microworld.tokenizer import END_OF_TEXT, train_tokenizer

NAMES = ["knowledge", "completion", "code", "math", "transfer"]


@pytest.fixture(scope="module")
def small():
    return World(0, SMALL)


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_model_config(folder, len(train_tokenizer(small, folder, vocabulary_size=600)))
    assert write_tasks(small, folder / "written", END_OF_TEXT) == NAMES
    (folder / "written").rename(folder / "tasks")  # it may be moved
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


class Oracle(nn.Module):
    """Knows for a share of a world's probes which token follows; after anything else all tokens are alike."""

    def __init__(self, world: World, tokenizer, share: float = 1.0) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.vocabulary = len(tokenizer)
        self.following: dict[tuple[int, ...], int] = {}
        rng = random.Random(0)
        for probe in (probe for probes in world.probes.values() for probe in probes if rng.random() < share):
            answer = probe.options[probe.answer] if isinstance(probe, ChoiceProbe) else oracle_text(probe)
            prompt, tail = tokenizer([probe.prompt, answer], add_special_tokens=False)["input_ids"]
            ids = [0, *prompt, *tail, 0]
            for end in range(len(prompt) + 1, len(ids)):
                self.following[tuple(ids[:end])] = ids[end]

    def forward(self, input_ids, use_cache, attention_mask=None):
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for row, ids in enumerate(input_ids.tolist()):
            for position in range(len(ids)):
                # Rows may be padded on the left with the end of text, which begins every prompt.
                first = max(index for index in range(position + 1) if ids[index] == 0)
                following = self.following.get(tuple(ids[first : position + 1]))
                if following is not None:
                    logits[row, position, following] = 20
        return SimpleNamespace(logits=logits)


def asked(model, tokenizer, folder, names=None):
    """Family -> hits and clusters, by lm-eval's tasks on our harness."""
    suite = Suite(names or NAMES, folder=str(folder / "tasks"))
    found = evaluate(model, tokenizer, suite.families, None, kept=Kept())
    assert found.ok, [one.traceback for one in found.families.values()]
    return {name: (tuple(one.documents[name][one.metric]), tuple(one.clusters[name]))
            for name, one in found.families.items()}


def assert_agreement(model, tokenizer, folder, world):
    """Every probe has the same hit, and every family the same clusters, as in the plain reading."""
    expected = score_probes(model, tokenizer, world)
    found = asked(model, tokenizer, folder)
    for name, score in expected.items():
        assert found[name][0] == score.hits, name
        assert found[name][1] == tuple(f"{name}/{cluster}" for cluster in score.clusters)
    return expected


def test_a_model_that_knows_every_answer_scores_one(small, tokenizer, folder):
    scores = assert_agreement(Oracle(small, tokenizer), tokenizer, folder, small)
    assert {family: score.accuracy for family, score in scores.items()} == dict.fromkeys(small.probes, 1.0)


def test_a_model_that_knows_half_of_them_is_scored_item_by_item(small, tokenizer, folder):
    scores = assert_agreement(Oracle(small, tokenizer, 0.5), tokenizer, folder, small)
    assert all(0 < score.accuracy < 1 for score in scores.values())


def test_a_model_that_knows_the_answers_of_another_world_does_not(small, tokenizer, folder):
    scores = assert_agreement(Oracle(World(1, SMALL), tokenizer), tokenizer, folder, small)
    assert max(scores["code"].accuracy, scores["math"].accuracy) < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_transformer_is_scored_as_in_the_plain_reading(small, tokenizer, folder, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # sharp, so that argmaxes are no matter of rounding
    scores = assert_agreement(model, tokenizer, folder, small)
    assert 0 < scores["knowledge"].accuracy < 1


def test_completion_goes_by_likelihood_per_character_and_knowledge_does_not(small, tokenizer, folder):
    class Indifferent(Oracle):
        def forward(self, input_ids, use_cache, attention_mask=None):
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.vocabulary))

    found = asked(Indifferent(small, tokenizer), tokenizer, folder, ["knowledge", "completion"])
    for family, per_character in (("knowledge", False), ("completion", True)):
        expected = [probe.grade([-len(tokenizer(option)["input_ids"]) / (len(option) if per_character else 1)
                                 for option in probe.options]) for probe in small.probes[family]]
        assert 0 < sum(expected) < len(expected)
        assert list(found[family][0]) == expected


def test_stock_lm_eval_scores_the_tasks_alike(small, tokenizer, folder):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    manager = TaskManager(include_defaults=False, include_path=str(folder / "tasks"))
    loaded = manager.load(["knowledge", "completion", "math"])
    found = lm_eval.evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16), loaded, bootstrap_iters=0)
    ours = asked(model, tokenizer, folder)
    for name, metric in (("knowledge", "acc,none"), ("completion", "acc_norm,none"), ("math", "acc,none")):
        hits = ours[name][0]
        assert found["results"][name][metric] == pytest.approx(sum(hits) / len(hits))


def test_a_family_without_probes_writes_a_task_without_documents(tmp_path):
    import dataclasses

    world = World(0, dataclasses.replace(SMALL, code_probes=0))
    write_tasks(world, tmp_path, END_OF_TEXT)
    assert (Path(tmp_path) / "code.jsonl").read_text() == ""
