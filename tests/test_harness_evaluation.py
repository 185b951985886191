"""evaluate(): oracle answers score 1, empty ones 0; failures stay in their family; training is left as it was."""

from __future__ import annotations

import math
import random
import time
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness_world import (
    HUMANEVAL,
    LANGUAGES,
    MGSM,
    SMALL,
    Trusting,
    build_mirror,
    build_model,
    build_tokenizer,
    requests_of,
)
from lm_eval.api.group import Group

from lit_cpt.harness.evaluation import Kept, Options, evaluate, give
from lit_cpt.harness.guard import eval_guard
from lit_cpt.harness.programs import NoSandbox, ProgramScorer
from lit_cpt.harness.progress import Progress
from lit_cpt.harness.requests import GENERATES, RequestStore
from lit_cpt.harness.results import mean_score
from lit_cpt.harness.scoring import score_family
from lit_cpt.harness.tasks import program_scorers


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    return build_mirror(root / "mirror"), build_tokenizer(root / "tokenizer")


@pytest.fixture
def requests(world):
    """All families' requests, unanswered."""
    store = RequestStore()
    return {one.name: store.get(one, world[0], None, 0) for one in SMALL}


# Scripted answers on the real task definitions -------------------------------------------------------


BY_NAME = {one.name: one for one in SMALL}


def oracle(document, task):
    """What a model that knows everything says."""
    if document.asked[0].request_type == "loglikelihood":
        return [(-1.0, True) if index == document.gold else (-9.0, False) for index in range(len(document.asked))]
    if task == "humaneval":
        return [document.content["canonical_solution"]]
    closing = LANGUAGES[task[-2:]][2]
    return [f"1 + 1 = 2. {closing.format(document.content['answer_number'])}"]


def empty(document, task):
    """What a model that says nothing says: nothing, and the least likely choice is the right one."""
    if document.asked[0].request_type == "loglikelihood":
        return [(-99.0, False) if index == document.gold else (-1.0, False) for index in range(len(document.asked))]
    return [""]


def scores_of(requests, answers):
    found = {}
    for name, one in requests.items():
        one.loaded.scorer.sandbox = Trusting()
        for task, documents in one.documents.items():
            for document in documents:
                give(document.asked, answers(document, task))
        found |= score_family(BY_NAME[name], one, set(), False).scores
    return found


@pytest.mark.parametrize(("answers", "value"), [(oracle, 1.0), (empty, 0.0)])
def test_oracles_score_one_and_empty_answers_nothing(requests, answers, value):
    scores = scores_of(requests, answers)
    assert {name: score.value for name, score in scores.items()} == dict.fromkeys(scores, value)
    assert set(scores) >= {"mmlu/acc", "mmlu_anatomy/acc", "hellaswag/acc", "hellaswag/acc_norm",
                           "humaneval/pass_at_1", "mgsm/exact_match_strict_match", "mgsm_es/exact_match_strict_match",
                           "mgsm_ja/exact_match_flexible_extract", "mgsm_th/exact_match_strict_match"}


def test_programs_are_scored_by_their_own_sandbox_after_other_loads(world):
    stores = [RequestStore(), RequestStore()]  # upstream gives both the same module of metrics
    asked = [{"humaneval": store.get(HUMANEVAL, world[0], None, 0)} for store in stores]
    for one in (asked[0], asked[1], asked[0]):
        assert scores_of(one, oracle)["humaneval/pass_at_1"].value == 1.0
        one["humaneval"].forget_answers()


def test_a_scorer_from_the_hub_is_not_used(world):
    one = RequestStore().get(HUMANEVAL, world[0], None, 0)

    class Hubs:
        name = "code_eval"

        def compute(self, **_):
            raise AssertionError("this would run programs outside of the sandbox")

    [(space, name)] = program_scorers(one.loaded.tasks["humaneval"])
    before, space[name] = space[name], Hubs()
    try:
        assert scores_of({"humaneval": one}, oracle)["humaneval/pass_at_1"].value == 1.0
        assert isinstance(space[name], Hubs)
        space[name] = None
        one.forget_answers()
        with pytest.raises(NoSandbox, match="task humaneval runs programs by other means than code_eval"):
            scores_of({"humaneval": one}, oracle)
    finally:
        space[name] = before


def test_a_group_is_scored_over_the_documents_of_its_tasks(requests):
    one = requests["mmlu"]
    for place, documents in enumerate(one.documents.values()):
        for document in documents[: 2 * place]:
            give(document.asked, oracle(document, "mmlu"))
        for document in documents[2 * place:]:
            give(document.asked, empty(document, "mmlu"))
    group = Group("mmlu_some", aggregate_metric_list=[SimpleNamespace(metric="acc", weight_by_size=True)])
    for task in list(one.loaded.tasks.values())[1:]:
        group.add(task)
    one.loaded.groups.append(group)
    scores = score_family(BY_NAME["mmlu"], one, set(), False).scores
    assert scores["mmlu/acc"] == mean_score([0.0] * 12 + [1.0] * 6)
    assert scores["mmlu_some/acc"] == mean_score([0.0] * 6 + [1.0] * 6)
    group.aggregate_metric_list[0].weight_by_size = False
    score = score_family(BY_NAME["mmlu"], one, set(), False).scores["mmlu_some/acc"]
    assert (score.value, score.documents) == (0.5, 12)
    assert score.stderr == pytest.approx(math.hypot(*[mean_score([1.0] * k + [0.0] * (6 - k)).stderr for k in (2, 4)])
                                         / 2)


def test_documents_without_a_finite_answer_are_counted_and_left_out(requests):
    one = requests["mmlu"]
    for documents in one.documents.values():
        for document in documents:
            give(document.asked, oracle(document, "mmlu"))
    first, second = one.documents["mmlu_anatomy"][:2]
    first.asked[2].resps = [(math.nan, False)]
    scored = score_family(BY_NAME["mmlu"], one, {id(second.asked[0])}, True)
    assert scored.nonfinite == 2
    assert scored.scores["mmlu_anatomy/acc"].documents == 4
    assert scored.documents["mmlu_anatomy"]["doc_id"] == [2.0, 3.0, 4.0, 5.0]
    assert scored.scores["mmlu/acc"].value == 1.0


def test_bits_per_byte_are_those_of_the_right_answer(world):
    mirror, tokenizer = world
    kept = Kept()
    found = evaluate(build_model(), tokenizer, SMALL, mirror, sandbox=Trusting(), kept=kept)
    for name in found:
        asked = requests_of(kept, name)
        for task, documents in asked.documents.items():
            golds = [one.asked[one.gold] if isinstance(one.gold, int) else one.gold for one in documents]
            expected = [-gold.resps[0][0] / math.log(2) / len(gold.args[1].encode()) for gold in golds]
            assert found[name].documents[task.replace("_native_cot", "")]["bits_per_byte"] == pytest.approx(expected)
    assert found["mgsm"].scores["mgsm/bits_per_byte"].documents == 18


# Failures ----------------------------------------------------------------------------------------------


def test_a_family_that_fails_does_not_disturb_the_others(world, tmp_path):
    mirror, tokenizer = world
    (tmp_path / "cais").symlink_to(mirror / "cais")
    found = evaluate(build_model(), tokenizer, ["hellaswag", SMALL[0], HUMANEVAL], tmp_path, limit=1, kept=Kept())
    assert [found[name].status for name in found] == ["unavailable", "ok", "unavailable"]
    assert "Rowan/hellaswag: run `lit-cpt eval-data fetch" in found["hellaswag"].error
    assert "Traceback" in found["hellaswag"].traceback
    assert not found.ok


def test_programs_are_not_run_without_a_sandbox_that_works(world):
    mirror, tokenizer = world
    model = build_model()
    bare = evaluate(model, tokenizer, [HUMANEVAL], mirror, limit=1, kept=Kept())["humaneval"]
    assert (bare.status, bare.counts["forwards"]) == ("unavailable", 0)
    assert "pass sandbox=lit_cpt.sandbox.Sandbox()" in bare.error

    class Leaky(Trusting):
        def preflight(self):
            return "a program got out"

    leaky = evaluate(model, tokenizer, [HUMANEVAL], mirror, limit=1, kept=Kept(), sandbox=Leaky())["humaneval"]
    assert (leaky.status, leaky.counts["forwards"]) == ("unavailable", 0)
    assert "not to be relied on: a program got out" in leaky.error


def test_a_program_that_the_sandbox_did_not_try_is_no_failure_of_the_model():
    class Gone:
        def submit(self, *_):
            future = Future()
            future.set_result(SimpleNamespace(passed=False, reason="unavailable: no namespaces"))
            return future

    with pytest.raises(NoSandbox, match="did not try a program: unavailable: no namespaces"):
        ProgramScorer(Gone()).compute(["assert True"], [["pass"]])


def test_pass_at_k_is_the_unbiased_estimate():
    scorer = ProgramScorer(Trusting())
    rates, verdicts = scorer.compute(["assert x == 1"], [["x = 1", "x = 2", "x = 1", "x = 3"]], k=[1, 2, 8])
    assert rates == {"pass@1": 0.5, "pass@2": pytest.approx(1 - 1 / 6)}
    assert verdicts == {0: [True, False, True, False]}


def test_programs_start_while_others_are_generated(world):
    mirror, tokenizer = world
    sandbox, kept = Trusting(), Kept()
    found = evaluate(build_model(), tokenizer, [HUMANEVAL], mirror, sandbox=sandbox, kept=kept)["humaneval"]
    assert found.status == "ok", found.traceback
    assert len(sandbox.seen) == 6  # each once: scoring did not run them again
    assert all(program.startswith("def add_") for program in sandbox.seen)


def test_a_deadline_ends_loading_running_and_what_has_not_begun(world):
    mirror, tokenizer = world
    found = evaluate(build_model(), tokenizer, SMALL, mirror, deadline=1e-9, sandbox=Trusting(), kept=Kept())
    assert [found[name].status for name in found] == ["timeout"] * 4
    assert "the evaluation's time is over; give it more, a smaller limit" in found["mmlu"].error

    class Slow(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.config = model, model.config

        def forward(self, input_ids, **settings):
            time.sleep(0.4)
            return self.model(input_ids, **settings)

    begin, kept = time.monotonic(), Kept()
    evaluate(build_model(), tokenizer, [MGSM], mirror, kept=kept)
    begin = time.monotonic()
    found = evaluate(Slow(build_model()), tokenizer, [MGSM], mirror, deadline=1.0, kept=kept)["mgsm"]
    assert found.status == "timeout"
    assert found.counts["forwards"] < 5
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(("name", "value"), [("most_rows", -1), ("window", 0)])
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be 1 or more"):
        Options(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("limit", 0), ("token_budget", -5)])
def test_counts_out_of_range_are_refused(world, name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be 1 or more; leave it out"):
        evaluate(build_model(), world[1], SMALL, world[0], **{name: value})


def test_two_families_of_one_name_are_refused(world):
    with pytest.raises(ValueError, match="families mgsm are asked for twice: ask once"):
        evaluate(build_model(), world[1], ["mgsm", "mgsm:fr"], world[0])


# What is kept, and what is left alone ------------------------------------------------------------------


def test_a_second_evaluation_tokenises_and_renders_nothing(world):
    mirror, tokenizer = world
    kept, model = Kept(), build_model()
    first = evaluate(model, tokenizer, SMALL, mirror, sandbox=Trusting(), kept=kept)
    counts = kept.encoder(tokenizer).encoded, kept.requests.rendered
    second = evaluate(model, tokenizer, SMALL, mirror, sandbox=Trusting(), kept=kept)
    assert (kept.encoder(tokenizer).encoded, kept.requests.rendered) == counts
    assert counts[0] > 0
    assert {name: one.documents for name, one in second.families.items()} == {
        name: one.documents for name, one in first.families.items()}


def test_another_tokenizer_gets_its_own_tokens(world, tmp_path):
    _, tokenizer = world
    kept = Kept()
    assert kept.encoder(tokenizer) is kept.encoder(build_tokenizer(tmp_path / "same"))
    assert kept.encoder(tokenizer) is not kept.encoder(build_tokenizer(tmp_path / "other", bos=False))


def test_results_say_how_they_were_made(world):
    mirror, tokenizer = world
    found = evaluate(build_model(), tokenizer, SMALL, mirror, limit=2, seed=3, sandbox=Trusting(), kept=Kept())
    assert (found.settings["limit"], found.settings["seed"], found.settings["ranks"]) == (2, 3, 1)
    assert found.settings["versions"]["lm-eval"].startswith("0.4.")
    assert set(found["mmlu"].shots.values()) == {5}
    assert found["humaneval"].max_gen_toks == {"humaneval": 24}
    assert found["mgsm"].data["juletxara/mgsm"].startswith("sha256:")
    assert found["mgsm"].versions["mgsm_native_cot_es"] == "4.0"
    assert set(found["mmlu"].seconds) == {"prepare", "run", "score", "total"}
    assert found["hellaswag"].scores["hellaswag/acc"].documents == 2


def test_training_is_left_as_it_was(world):
    mirror, tokenizer = world
    model = build_model().train()
    model.model.layers[0].eval()
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None]).loss.backward()
    flags = {name: module.training for name, module in model.named_modules()}
    before = {name: (weight.clone(), weight.grad.clone()) for name, weight in model.named_parameters()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    evaluate(model, tokenizer, SMALL, mirror, limit=1, sandbox=Trusting(), kept=Kept())
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert all(torch.equal(weight, before[name][0]) and torch.equal(weight.grad, before[name][1])
               for name, weight in model.named_parameters())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.is_grad_enabled()
    optimizer.step()


def test_the_guard_gives_everything_back_after_an_error():
    model = build_model().train()
    inside = []

    def fail():
        with eval_guard(model):
            inside.append((model.training, torch.is_grad_enabled()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [(False, False)]
    assert model.training
    assert torch.is_grad_enabled()


def test_inference_mode_is_refused(world):
    mirror, tokenizer = world
    model = build_model()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="outside of Lightning's validation hooks"):
        evaluate(model, tokenizer, SMALL, mirror)


def test_a_compiled_model_compiles_nothing_anew(world):
    from torch._dynamo.testing import CompileCounter

    mirror, tokenizer = world
    counter = CompileCounter()
    model = build_model()
    model.forward = torch.compile(model.forward, backend=counter)
    model(input_ids=torch.arange(9)[None])
    graphs = counter.frame_count
    assert evaluate(model, tokenizer, [SMALL[1]], mirror, limit=1, kept=Kept()).ok
    assert counter.frame_count == graphs > 0


def test_broken_weights_are_flagged_and_not_averaged(world):
    mirror, tokenizer = world
    model = build_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    found = evaluate(model, tokenizer, SMALL, mirror, limit=2, sandbox=Trusting(), kept=Kept())
    for name in found:
        assert found[name].status == "nonfinite"
        assert found[name].counts["nonfinite"] == found[name].counts["documents"]
        assert found[name].scores == {}
    assert found["mgsm"].counts["requests"] == len(MGSM.tasks) * 2
    assert GENERATES == "generate_until"


def test_a_long_evaluation_says_how_far_it_is(world, monkeypatch, caplog):
    monkeypatch.setattr(Progress.__init__, "__defaults__", (True, 0.0))  # seconds between lines
    mirror, tokenizer = world
    with caplog.at_level("INFO"):
        evaluate(build_model(), tokenizer, [SMALL[0], SMALL[3]], mirror, kept=Kept(), limit=1)
    said = [record.getMessage() for record in caplog.records if record.name == "lit_cpt.harness.progress"]
    assert any(line.startswith("mmlu: 1 of ") and "forwards" in line for line in said)
    assert any(line.startswith("mgsm: 3 of 3 answers") for line in said)


def test_a_rank_that_is_not_the_first_says_nothing(caplog):
    with caplog.at_level("INFO"):
        Progress("mmlu", aloud=False, seconds=0.0)(1, 2, "forwards")
        Progress("mmlu", seconds=60.0)(1, 2, "forwards")
    assert not caplog.records
