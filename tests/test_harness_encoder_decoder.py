"""Encoder–decoders against lm-eval's HFLM with its seq2seq backend: loglikelihoods within 1e-3 nats, answers alike."""

from __future__ import annotations

import pytest
import torch
from harness_world import HELLASWAG, build_mirror, build_tokenizer, requests_of
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from test_encoder_decoder import KINDS

from lit_cpt.harness.encoder import Encoder
from lit_cpt.harness.evaluation import Kept, evaluate
from lit_cpt.harness.guard import eval_guard
from lit_cpt.harness.language_model import LiveLM
from lit_cpt.harness.network import Network
from lit_cpt.harness.planning import merge_rows
from lit_cpt.harness.ranks import Ranks
from lit_cpt.harness.requests import GENERATES
from lit_cpt.weights import build_model


def ending_tokenizer(folder):
    """One that ends what it encodes, as T5's does."""
    from tokenizers.processors import TemplateProcessing

    made = build_tokenizer(folder, bos=False)
    made.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made


def model_of(kind, sharpness=1.0):
    torch.manual_seed(0)
    model = build_model(None, KINDS[kind]).eval()
    for parameter in model.parameters():
        parameter.data *= sharpness
    return model


def live(model, tokenizer, budget, window=None):
    network = Network(model, tokenizer, window)
    return LiveLM(network, Encoder(tokenizer, network.encodes), Ranks(network.device), budget)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("seq2seq")
    return (build_mirror(root / "mirror", documents=4), ending_tokenizer(root / "ours"),
            ending_tokenizer(root / "theirs"))


@pytest.mark.parametrize("budget", [64, 16_384])
def test_continuations_are_scored_as_hflm_does(world, budget):
    mirror, tokenizer, other = world
    model, kept = model_of("t5"), Kept()
    found = evaluate(model, tokenizer, [HELLASWAG], mirror, limit=3, kept=kept, token_budget=budget)["hellaswag"]
    assert found.status == "ok", found.traceback
    asked = requests_of(kept, "hellaswag").instances("loglikelihood")
    hflm = HFLM(pretrained=model, tokenizer=other, batch_size=1, backend="seq2seq")
    for request, (value, greedy) in zip(asked, hflm.loglikelihood(asked, disable_tqdm=True), strict=True):
        assert request.resps[0] == (pytest.approx(value, abs=1e-3), greedy)


@pytest.mark.parametrize("budget", [16, 4096])
def test_answers_are_hflms(world, budget):
    _, tokenizer, other = world
    model, until = model_of("umt5", sharpness=2.0), {"until": ["moon", "\n", "u"], "do_sample": False}
    contexts = ["red cat", "the sun runs over seven stones " * 3, "blue", "glass river house", "A B C", "eight " * 9]
    # HFLM would add the context's length to max_gen_toks
    ours, theirs = ([Instance(GENERATES, {}, (context, {**until, **room}), 0) for context in contexts]
                    for room in ({"max_gen_toks": 12}, {"max_length": 13}))
    hflm = HFLM(pretrained=model, tokenizer=other, batch_size=1, backend="seq2seq")
    with eval_guard(model):
        found = live(model, tokenizer, budget).generate_until(ours)
    assert found == hflm.generate_until(theirs, disable_tqdm=True)
    assert len(set(found)) == 6
    assert "leeps" in found  # ended by an end of text; others by a stop string, or by their room


def test_texts_empty_contexts_and_long_contexts_are_scored_as_hflm_does(world):
    _, tokenizer, other = world
    model = model_of("t5")
    hflm = HFLM(pretrained=model, tokenizer=other, batch_size=1, backend="seq2seq", max_length=12)
    pairs = [("", " red cat"), ("red  ", "moon"), ("red cat " * 9, " sun moon"), ("a", "b c"), ("a", "b c")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("red cat " * 20, "moon")]
    lm = live(model, tokenizer, 64, window=12)
    with eval_guard(model):
        mine, whole = lm.loglikelihood(requests), lm.loglikelihood_rolling(texts)
    for one, theirs in zip(mine, hflm.loglikelihood(requests, disable_tqdm=True), strict=True):
        assert one == (pytest.approx(theirs[0], abs=1e-3), theirs[1])
    assert whole == pytest.approx(hflm.loglikelihood_rolling(texts, disable_tqdm=True), abs=1e-3)
    assert lm.truncated == 1


def test_a_context_and_its_continuation_are_told_apart_where_their_tokens_are_not():
    rows, cut = merge_rows([((1, 2), (3,)), ((1,), (2, 3)), ((1, 2), (3,)), ((9, 9, 9, 9), (4,))], 3, apart=True)
    assert [(row.tokens, row.answers) for row in rows] == [
        ((1, 2, 3), [(0, (3,)), (2, (3,))]), ((1, 2, 3), [(1, (2, 3))]), ((9, 9, 9, 4), [(3, (4,))])]
    assert cut == 1
    with pytest.raises(ValueError, match="request 0 has a continuation of 4 tokens"):
        merge_rows([((1,), (1, 2, 3, 4))], 3, apart=True)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["t5", "t5gemma"])
def test_a_row_says_what_it_says_alone_and_with_what_was_encoded_before(kind):
    network = Network(model_of(kind))
    contexts, answers = [[5, 6, 7, 8, 9], [10, 11], [12]], [[20, 21], [], [22, 23, 24]]
    together, states = network.answered(contexts, answers)
    again, _ = network.answered(states, answers)
    for row, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        alone, _ = network.answered([context], [answer])
        for found in (together, again):
            torch.testing.assert_close(found[row, :len(answer) + 1], alone[0], atol=1e-3, rtol=1e-3)
