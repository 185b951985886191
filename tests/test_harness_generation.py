"""Continuous batching gives what decoding one by one gives, for every batch and kind of model."""

from __future__ import annotations

import pytest
import torch
from harness_world import build_model, build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cpt.harness.decoding import CachedBatch, PlainBatch
from lit_cpt.harness.encoder import Encoder
from lit_cpt.harness.generation import Prompt, fit, generate
from lit_cpt.harness.network import Network
from lit_cpt.harness.ranks import Ranks
from lit_cpt.harness.stops import Stops


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def one_by_one(model, tokens, room, end):
    """Greedy decoding without cache or batch."""
    text = list(tokens)
    while len(text) - len(tokens) < room:
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
        if text[-1] == end:
            break
    return text[len(tokens):]


class Numbers(Stops):
    """Stops that give tokens as they are, so that answers can be compared token by token."""

    def text(self, tokens):
        return " ".join(map(str, tokens))


def make_prompts(tokenizer, rooms, end=7):
    stops = Numbers(tokenizer, [], frozenset([end]))
    generator = torch.Generator().manual_seed(len(rooms))
    lengths = torch.randint(1, 30, (len(rooms),), generator=generator).tolist()
    return [Prompt(number, tuple(torch.randint(3, 512, (length,), generator=generator).tolist()), room, stops)
            for number, (length, room) in enumerate(zip(lengths, rooms, strict=True))]


KINDS = {
    "full attention": {"kind": "llama"},
    "sliding windows": {"kind": "mistral", "sliding_window": 8},
    "learned positions": {"kind": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "alternating windows": {"kind": "gemma3_text", "sliding_window": 8, "head_dim": 8, "query_pre_attn_scalar": 8,
                            "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.no_grad()
def test_batched_answers_are_those_of_decoding_one_by_one(tokenizer, kind):
    model = build_model(window=128, **KINDS[kind]).eval()
    prompts = make_prompts(tokenizer, [20, 3, 40, 1, 12, 33, 8, 25])
    network = Network(model)
    assert network.caches
    found = generate(network, Ranks(network.device), prompts, budget=64, most_rows=3)
    for prompt in prompts:
        assert found[prompt.number].text == " ".join(map(str, one_by_one(model, prompt.tokens, prompt.room, 7)))


@settings(max_examples=8, deadline=None)
@given(rooms=st.lists(st.integers(1, 24), min_size=1, max_size=6), rows=st.integers(1, 4),
       budget=st.sampled_from([1, 40, 400]))
def test_answers_do_not_depend_on_the_batch(tokenizer, rooms, rows, budget):
    with torch.no_grad():
        model = build_model(window=128).eval()
        network, prompts = Network(model), make_prompts(tokenizer, rooms)
        alone = generate(network, Ranks(network.device), prompts, budget=10_000, most_rows=1)
        assert generate(network, Ranks(network.device), prompts, budget=budget, most_rows=rows) == alone


@torch.no_grad()
def test_long_prompts_are_read_alone_and_answered_the_same(tokenizer, monkeypatch):
    model = build_model(window=128).eval()
    prompts, network = make_prompts(tokenizer, [5, 9, 2, 7, 7, 3]), Network(model)
    batched = generate(network, Ranks(network.device), prompts, 640, 4)
    monkeypatch.setattr("lit_cpt.harness.generation.LONG", 10)
    masks = []
    model.register_forward_pre_hook(lambda _, __, settings: masks.append(settings.get("attention_mask")),
                                    with_kwargs=True)
    assert generate(network, Ranks(network.device), prompts, 640, 4) == batched
    assert sum(mask is None for mask in masks) >= sum(len(prompt.tokens) >= 10 for prompt in prompts) > 0


@torch.no_grad()
def test_a_model_without_a_cache_answers_the_same(tokenizer):
    model = build_model(window=128).eval()
    prompts, network = make_prompts(tokenizer, [5, 9, 2]), Network(model)
    cached = generate(network, Ranks(network.device), prompts, 64, 2)
    network.caches = False
    assert generate(network, Ranks(network.device), prompts, 64, 2) == cached


@torch.no_grad()
def test_buffers_are_shifted_back_when_their_end_is_reached():
    model = build_model(window=512).eval()
    network = Network(model)
    batch, plain = CachedBatch(network, rows=2, columns=20), PlainBatch(network)
    for one in (batch, plain):
        one.admit([[5, 6, 7], [8, 9]])
    for step in range(120):  # far more columns than there are: rows leave and others enter
        tokens = [20 + step % 7, 30 + step % 5]
        assert torch.allclose(batch.step(tokens), plain.step(tokens), atol=1e-3), step
        if step % 15 == 14:
            for one in (batch, plain):
                one.drop(0)
                one.drop(0)
                one.admit([[5, 6, 7], [8, 9]])
    assert len(batch) == len(plain) == 2


@torch.no_grad()
def test_an_answer_from_broken_logits_ends_and_says_so(tokenizer):
    model = build_model(window=128).eval()
    model.lm_head.weight.fill_(float("nan"))
    network = Network(model)
    found = generate(network, Ranks(network.device), make_prompts(tokenizer, [9, 9]), 64, 2)
    assert [(answer.finite, answer.tokens) for answer in found.values()] == [(False, 1), (False, 1)]


def test_answers_are_handed_out_while_others_grow(tokenizer):
    model, order = build_model(window=128).eval(), []
    network = Network(model)
    with torch.no_grad():
        generate(network, Ranks(network.device), make_prompts(tokenizer, [30, 1, 2]), 640, 3,
                 lambda prompt, answer: order.append((prompt.number, network.forwards)))
    assert order[0][0] == 1
    assert order[0][1] < order[-1][1]


@pytest.mark.parametrize(("length", "room", "window", "kept", "left"), [
    (10, 4, 20, 10, 4), (30, 4, 20, 16, 4), (10, 20, 20, 10, 10), (30, 99, 20, 10, 10), (3, 99, 20, 3, 17),
])
def test_prompt_and_answer_fit_the_window(length, room, window, kept, left):
    tokens, space = fit(tuple(range(length)), room, window)
    assert (tokens, space) == (tuple(range(length))[-kept:], left)
    assert len(tokens) + space <= window


@given(st.text(alphabet="ab\nc問題： ", max_size=30), st.sampled_from([["\nc"], ["問題："], ["ab", "\n"], [" "]]))
@settings(max_examples=60, deadline=None)
def test_a_stop_string_is_seen_at_the_token_that_completes_it(tokenizer, text, strings):
    stops, tokens = Stops(tokenizer, strings, frozenset()), tokenizer.encode(text, add_special_tokens=False)
    whole = [tokenizer.decode(tokens[:end]) for end in range(1, len(tokens) + 1)]
    first = next((end for end, part in enumerate(whole, 1) if any(one in part for one in strings)), None)
    seen = next((end for end in range(1, len(tokens) + 1) if stops.over(tokens[:end])), None)
    assert seen == first
    assert not any(one in stops.text(tokens) for one in strings)


def test_an_end_token_is_seen_and_not_told(tokenizer):
    stops = Stops(tokenizer, ["</s>"], frozenset([tokenizer.eos_token_id]))
    tokens = [*tokenizer.encode("red cat", add_special_tokens=False), tokenizer.eos_token_id]
    assert stops.over(tokens)
    assert stops.text(tokens) == "red cat"


def test_a_tokenizer_without_an_end_is_refused(tokenizer, tmp_path):
    other = build_tokenizer(tmp_path)
    other.eos_token = None
    with pytest.raises(ValueError, match="has no EOS token"):
        Encoder(other)
