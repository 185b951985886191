"""The world's questions as lm-eval tasks: scored as a second, plain reading scores them."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import lm_eval
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from reference_scoring import score_probes
from test_microworld import SMALL, oracle_text
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from lit_cpt.harness import Suite
from lit_cpt.harness.evaluation import Kept, evaluate
from lit_cpt.microworld import World, write_model_config
from lit_cpt.microworld.probes import ChoiceProbe
from lit_cpt.microworld.tasks import questions, write_tasks
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


class Speaking(PreTrainedModel, GenerationMixin):
    """An oracle as stock lm-eval takes a model: it also generates, from the whole text each time."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__(PretrainedConfig(vocab_size=oracle.vocabulary, max_position_embeddings=512, eos_token_id=0,
                                          num_hidden_layers=1))
        self.oracle = oracle

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        return {"input_ids": input_ids}

    def forward(self, input_ids, **_):
        return CausalLMOutput(logits=self.oracle(input_ids, use_cache=False).logits)


def stock_hits(model, tokenizer, folder):
    """Family -> hits, by stock lm-eval and its own Hugging Face model."""
    manager = TaskManager(include_defaults=False, include_path=str(folder / "tasks"))
    asking = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=16)
    found = lm_eval.evaluate(asking, manager.load(NAMES), bootstrap_iters=0, log_samples=True)
    return {name: tuple(int(sample["acc_norm" if name == "completion" else "acc"])
                        for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"]))
            for name in NAMES}


def test_stock_lm_eval_scores_every_probe_alike(small, tokenizer, folder):
    oracle = Oracle(small, tokenizer, 0.5)
    found = stock_hits(Speaking(oracle), tokenizer, folder)
    assert found == {name: score.hits for name, score in score_probes(oracle, tokenizer, small).items()}
    assert all(0 < sum(hits) < len(hits) for hits in found.values())


def test_stock_lm_eval_scores_a_transformer_alike(small, tokenizer, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    found = stock_hits(model, tokenizer, folder)
    assert found == {name: score.hits for name, score in score_probes(model, tokenizer, small).items()}


def test_every_question_begins_with_one_end_of_text_token(small, tokenizer, folder):
    for name in NAMES:
        documents = questions(folder / "tasks" / f"{name}.jsonl")
        prompts = tokenizer([probe.prompt for probe in small.probes[name]], add_special_tokens=False)["input_ids"]
        assert tokenizer(list(documents["text"]))["input_ids"] == [[tokenizer.eos_token_id, *ids] for ids in prompts]


FRAGMENTS = ["\n", "\ndef", "def", "    return ", "n", "nums", " + 1", "7", " 12", "", "x"]
PIECES = st.lists(st.sampled_from(FRAGMENTS), max_size=9)


@given(pieces=PIECES, after=PIECES, right=st.booleans())
def test_what_stands_behind_a_stop_string_is_not_graded(small, pieces, after, right):
    code, number = small.probes["code"][0], small.probes["math"][0]
    for probe, stop in ((code, "\ndef"), (number, "\n")):
        text = (oracle_text(probe) if right else "") + "".join(pieces)
        assert probe.grade(text.split(stop)[0]) == probe.grade(text) == probe.grade(text + stop + "".join(after))


def test_a_family_without_probes_has_no_task(tmp_path):
    world = World(0, dataclasses.replace(SMALL, code_probes=0))
    assert write_tasks(world, tmp_path, END_OF_TEXT) == ["knowledge", "completion", "math", "transfer"]
    assert not list(tmp_path.glob("code.*"))
