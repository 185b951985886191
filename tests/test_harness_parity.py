"""Ours against lm-eval's own HFLM: loglikelihoods within 1e-3 nats, texts equal, on upstream's task definitions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from harness_world import SMALL, Trusting, build_mirror, build_model, build_tokenizer, requests_of
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lit_cpt.harness import FAMILIES
from lit_cpt.harness.encoder import Encoder
from lit_cpt.harness.evaluation import Kept, evaluate
from lit_cpt.harness.guard import eval_guard
from lit_cpt.harness.language_model import LiveLM
from lit_cpt.harness.network import Network
from lit_cpt.harness.planning import merge_rows, plan
from lit_cpt.harness.ranks import Ranks
from lit_cpt.harness.requests import GENERATES

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
KINDS = ("loglikelihood", GENERATES)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Mirror, tokenizer, and a second copy of the tokenizer for HFLM, which changes it."""
    root = tmp_path_factory.mktemp("parity")
    return build_mirror(root / "mirror"), build_tokenizer(root / "ours"), build_tokenizer(root / "theirs")


def live(model, tokenizer, budget=512, **settings):
    network = Network(model, tokenizer)
    return LiveLM(network, Encoder(tokenizer), Ranks(network.device), budget, **settings)


def assert_parity(model, requests, tokenizer, batch=1):
    """HFLM's answers to everything that ``requests`` were answered by us."""
    hflm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    for kind in KINDS:
        for golds in (False, True):
            asked = requests.instances(kind, golds)
            if asked:
                compare(asked, getattr(hflm, asked[0].request_type)(asked, disable_tqdm=True))


def compare(asked, theirs):
    for request, answer in zip(asked, theirs, strict=True):
        mine = request.resps[0]
        if isinstance(answer, str):
            assert mine == answer
        else:
            assert mine[0] == pytest.approx(answer[0], abs=1e-3)
            assert mine[1] == answer[1]


@pytest.mark.parametrize("budget", [64, 16_384])
@pytest.mark.parametrize("one", SMALL, ids=lambda one: one.name)
def test_answers_are_hflms_at_every_batch_size(world, one, budget):
    mirror, tokenizer, other = world
    model, kept = build_model(), Kept()
    found = evaluate(model, tokenizer, [one], mirror, sandbox=Trusting(), kept=kept, token_budget=budget)[one.name]
    assert (found.status, found.counts["truncated"], found.counts["nonfinite"]) == ("ok", 0, 0), found.traceback
    assert_parity(model, requests_of(kept, one.name), other)


def test_scores_are_the_same_at_three_batch_sizes(world):
    mirror, tokenizer, _ = world
    model, kept = build_model(), Kept()
    first, *others = (evaluate(model, tokenizer, SMALL, mirror, sandbox=Trusting(), kept=kept, token_budget=budget)
                      for budget in (64, 512, 16_384))
    for other in others:
        for name in first:
            for task, table in first[name].documents.items():
                for metric, values in table.items():
                    tolerance = 1e-5 if metric == "bits_per_byte" else 0
                    assert other[name].documents[task][metric] == pytest.approx(values, abs=tolerance)


@pytest.mark.parametrize("kind", [
    {"kind": "mistral", "sliding_window": 16}, {"kind": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4,
                                                "n_positions": 2048}], ids=["sliding windows", "learned positions"])
def test_prefixes_are_shared_by_any_kind_of_attention(world, kind):
    mirror, tokenizer, other = world
    model, kept = build_model(**kind), Kept()
    found = evaluate(model, tokenizer, [SMALL[0]], mirror, kept=kept)["mmlu"]
    pairs = [kept.encoder(tokenizer).pairs[one.args] for one in requests_of(kept, "mmlu").instances(KINDS[0])]
    assert found.counts["tokens"] < sum(len(row.tokens) for row in merge_rows(pairs, 2048)[0]) / 1.5
    assert_parity(model, requests_of(kept, "mmlu"), other)


@pytest.mark.parametrize(("pad", "bos"), [(False, False), (False, True), (True, False)])
def test_tokenizers_without_pad_or_bos_tokens_are_handled_as_hflm_does(world, tmp_path, pad, bos):
    mirror, _, _ = world
    ours, theirs = (build_tokenizer(tmp_path / name, pad, bos) for name in ("ours", "theirs"))
    model, kept = build_model(), Kept()
    evaluate(model, ours, [SMALL[0], SMALL[3]], mirror, limit=2, kept=kept)
    assert ours.pad_token_id == (2 if pad else None)
    for name in ("mmlu", "mgsm"):
        assert_parity(model, requests_of(kept, name), theirs)


def test_contexts_longer_than_the_window_are_cut_on_the_left_and_counted(world):
    mirror, tokenizer, other = world
    model, kept = build_model(window=100), Kept()
    found = evaluate(model, tokenizer, [SMALL[0], SMALL[3]], mirror, limit=2, kept=kept)
    assert found["mmlu"].counts["truncated"] == found["mmlu"].counts["requests"] == 24
    assert found["mgsm"].counts["truncated"] >= 6
    for name in ("mmlu", "mgsm"):
        assert_parity(model, requests_of(kept, name), other)


def test_answers_that_fill_the_window_are_shortened_where_hflm_stops(world):
    mirror, tokenizer, other = world
    model, kept = build_model(window=24), Kept()
    found = evaluate(model, tokenizer, [SMALL[2]], mirror, limit=2, kept=kept, sandbox=Trusting())["humaneval"]
    assert (found.status, found.counts["shortened"]) == ("ok", 2)
    asked = requests_of(kept, "humaneval").instances(GENERATES)
    with pytest.raises(AssertionError, match="requested max tokens to generate"):
        HFLM(pretrained=model, tokenizer=other, batch_size=1).generate_until(asked, disable_tqdm=True)


def test_special_tokens_in_texts_and_empty_contexts_are_encoded_as_hflm_does(world):
    _, tokenizer, other = world
    pairs = [("", " red cat"), ("", "<s> red"), ("<s>red dog ", "sun"), ("red  \n", " moon"), ("a", "b"), (" ", "cat")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    model = build_model()
    hflm = HFLM(pretrained=model, tokenizer=other, batch_size=1)
    usable = requests[:-1]  # HFLM cannot score a context of spaces alone
    with eval_guard(model):
        mine = live(model, tokenizer).loglikelihood(requests)
    for one, theirs in zip(mine, hflm.loglikelihood(usable, disable_tqdm=True), strict=False):
        assert one == (pytest.approx(theirs[0], abs=1e-3), theirs[1])


def test_whole_texts_are_scored_in_hflms_windows(world):
    _, tokenizer, other = world
    model = build_model(window=32)
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("red cat " * 40, "moon", "a b c " * 9)]
    theirs = HFLM(pretrained=model, tokenizer=other, batch_size=1).loglikelihood_rolling(requests, disable_tqdm=True)
    with eval_guard(model):
        assert live(model, tokenizer).loglikelihood_rolling(requests) == pytest.approx(theirs, abs=1e-3)


def test_equal_inputs_make_one_row_and_prefixes_one_forward(world):
    mirror, tokenizer, _ = world
    kept, model = Kept(), build_model()
    evaluate(model, tokenizer, [SMALL[0]], mirror, kept=kept)
    pairs = [kept.encoder(tokenizer).pairs[one.args] for one in requests_of(kept, "mmlu").instances(KINDS[0])]
    rows, cut = merge_rows(pairs, 2048)
    assert (len(pairs), len(rows), cut) == (72, 18, 0)
    jobs = plan(rows, 16_384, 128, 64)
    assert [bool(job.prefix) for job in jobs] == [True] * 3
    assert sorted(answer for job in jobs for batch in job.batches for row in batch for answer, _ in row.answers
                  ) == list(range(72))


def test_a_model_that_hands_its_settings_on_is_called_like_its_parent(world):
    from transformers import LlamaForCausalLM

    class Handing(LlamaForCausalLM):
        def forward(self, input_ids=None, **settings):
            return super().forward(input_ids, **settings)

    class Closed(LlamaForCausalLM):
        def forward(self, input_ids=None, use_cache=None):
            return super().forward(input_ids, use_cache=use_cache)

    mirror, tokenizer, _ = world
    config = build_model().config
    assert Network(Handing(config)).caches
    assert Network(Handing(config)).selects
    tables = []
    for kind in (LlamaForCausalLM, Handing, Closed):
        torch.manual_seed(0)
        found = evaluate(kind(config), tokenizer, [SMALL[0]], mirror, kept=Kept())["mmlu"]
        tables.append(found.documents["mmlu_anatomy"]["bits_per_byte"])
    assert tables[0] == tables[1] == pytest.approx(tables[2], abs=1e-5)


def test_a_continuation_without_tokens_is_refused():
    with pytest.raises(ValueError, match="request 0 has a continuation of 0 tokens; 1 to 9"):
        merge_rows([((1, 2), ())], 9)


def test_a_task_that_samples_is_refused(world):
    _, tokenizer, _ = world
    request = Instance(GENERATES, {}, ("red", {"do_sample": True, "temperature": 0.7}), 0, ("dice", 0, 1))
    with pytest.raises(ValueError, match="task 'dice' asks for do_sample=True.*answers here are greedy"):
        live(build_model(), tokenizer).generate_until([request])


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data is not at {REAL}")
@pytest.mark.parametrize(("name", "limit", "room"), [("mmlu", 1, None), ("hellaswag", 24, None),
                                                     ("humaneval", 12, 48), ("mgsm", 3, 32)])
def test_answers_are_hflms_on_the_real_data(name, limit, room):
    from dataclasses import replace

    from transformers import AutoTokenizer

    ours, theirs = (AutoTokenizer.from_pretrained(REAL / "tokenizer-gpt2") for _ in range(2))
    model = build_model(window=4096, vocab_size=50257, bos_token_id=50256, eos_token_id=50256, pad_token_id=50256)
    kept, one = Kept(), replace(FAMILIES[name], max_gen_toks=room)
    found = evaluate(model, ours, [one], REAL / "eval-mirror", limit=limit, kept=kept, sandbox=Trusting(),
                     token_budget=4096)[name]
    assert found.status == "ok", found.traceback
    assert found.counts["documents"] == limit * len(found.shots)
    assert_parity(model, requests_of(kept, name), theirs, batch=2)
    assert all(torch.isfinite(torch.tensor(score.value)) for score in found.scores.values())


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LIT_CPT_WHOLE_MMLU"), reason="takes half an hour: set LIT_CPT_WHOLE_MMLU=1")
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data is not at {REAL}")
def test_all_of_mmlu_is_scored_as_hflm_does(tmp_path):
    kept = Kept()
    texts = [one.asked[0].args[0] for listed in kept.requests.get(FAMILIES["mmlu"], REAL / "eval-mirror", 4, 0)
             .documents.values() for one in listed]
    ours, theirs = (build_tokenizer(tmp_path / name, texts=texts, size=2048) for name in ("ours", "theirs"))
    model = build_model(window=8192, vocab_size=2048, num_hidden_layers=1)
    found = evaluate(model, ours, ["mmlu"], REAL / "eval-mirror", kept=kept)["mmlu"]
    assert (found.status, found.counts["documents"], found.counts["requests"]) == ("ok", 14_042, 56_168)
    print(f"mmlu/acc {found.scores['mmlu/acc']}, {found.counts}, {found.seconds}")
    assert_parity(model, requests_of(kept, "mmlu"), theirs, batch=4)
