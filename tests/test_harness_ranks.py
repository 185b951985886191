"""Two ranks answer as one process does, sharded or not; they fail and stop together, and train on undisturbed."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from harness_world import SMALL, Trusting, build_mirror, build_model, build_tokenizer, join, save
from hypothesis import given
from hypothesis import strategies as st

from lit_cpt.harness.evaluation import Kept, Options, evaluate
from lit_cpt.harness.planning import Row, batched, plan, share_jobs, share_out
from lit_cpt.harness.programs import NoSandbox
from lit_cpt.harness.ranks import DeadlinePassed, RankFailed, Ranks, classify
from lit_cpt.parallel import mesh_of, shard

MESHES = {}
BLOCKS = torch.arange(24).reshape(2, 12) % 512


# One process --------------------------------------------------------------------------------------------


def test_one_process_agrees_with_itself():
    ranks = Ranks(torch.device("cpu"))
    ranks.agree(None)
    with pytest.raises(RankFailed, match="^ValueError: no$") as caught, ranks.together():
        raise ValueError("no")
    assert caught.value.status == "error"
    assert "Traceback" in caught.value.trace
    assert ranks.gather(3) == [3]
    assert ranks.anyone(False) is False


def test_errors_are_called_by_what_can_be_done_about_them():
    kinds = {DeadlinePassed(): "timeout", FileNotFoundError(): "unavailable", ConnectionError(): "unavailable",
             NoSandbox(): "unavailable", torch.OutOfMemoryError(): "oom", KeyError(): "error"}
    assert [classify(error) for error in kinds] == list(kinds.values())


def test_a_deadline_in_the_past_is_late():
    with pytest.raises(DeadlinePassed, match="time is over; give it more"):
        Ranks(torch.device("cpu"), deadline=time.monotonic() - 1).anyone(True)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 8))
def test_work_is_shared_out_whole_and_evenly(costs, ranks):
    shares = share_out([(cost, (index, cost)) for index, cost in enumerate(costs)], ranks)
    assert sorted(index for share in shares for index, _ in share) == list(range(len(costs)))
    loads = [sum(cost for _, cost in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 200),
       st.integers(1, 9), st.booleans())
def test_every_request_is_planned_once_within_the_budget(lengths, ranks, budget, most_rows, prefixed):
    head = tuple(range(100)) if prefixed else ()
    rows = [Row((*head, *range(1000 + index, 1000 + index + length)), [(index, (0,))])
            for index, length in enumerate(lengths)]
    shares = share_jobs(plan(rows, budget, most_rows, 64), ranks)
    planned = [(job, batch) for share in shares for job in share for batch in job.batches]
    assert sorted(row.answers[0][0] for _, batch in planned for row in batch) == list(range(len(lengths)))
    for job, batch in planned:
        assert len(batch) <= most_rows
        assert all(row.tokens[: len(job.prefix)] == job.prefix for row in batch)
        assert all(len(row.tokens) - row.scored >= len(job.prefix) for row in batch)
        longest = max(len(row.tokens) for row in batch)
        assert len(batch) == 1 or len(batch) * (longest - len(job.prefix)) <= budget


def test_batches_begin_with_the_longest():
    rows = [Row((1,) * length, [(length, (0,))]) for length in (2, 9, 4, 7)]
    assert [[len(row.tokens) for row in batch] for batch in batched(rows, 0, 16, 8)] == [[9], [7, 4], [2]]


# Two processes ------------------------------------------------------------------------------------------


def wrap(model, mode):
    """The model as a strategy would hold it."""
    from torch.distributed.fsdp import fully_shard

    if mode == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if mode == "tensor":
        return shard(model, MESHES.setdefault("tensor", mesh_of("cpu", 2, tensor=2)))
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def train_step(model):
    """Loss and gradient norm of one step, and the step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(input_ids=BLOCKS, labels=BLOCKS).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return [float(loss.detach()), float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)]


def work(rank, size, folder, mode):
    """One rank: steps before, between and after evaluations that go well, miss data, or run out of time."""
    join(rank, size, folder)
    tokenizer, mirror = build_tokenizer(Path(folder) / f"tokenizer{rank}"), Path(folder) / "mirror"
    plain, evaluated = wrap(build_model().train(), mode), wrap(build_model().train(), mode)
    settings = {"options": Options(gather_weights=mode == "gathered"), "token_budget": 512, "sandbox": Trusting(),
                "kept": Kept(), "group": MESHES["tensor"]["shard"].get_group() if mode == "tensor" else None}
    found = evaluate(evaluated, tokenizer, SMALL, mirror, **settings)  # the first forwards of all
    steps = [[train_step(plain), train_step(evaluated)]]
    missing = evaluate(evaluated, tokenizer, SMALL[:2], mirror if rank == 0 else Path(folder), **settings)
    few = evaluate(evaluated, tokenizer, [replace(SMALL[0], tasks=SMALL[0].tasks[:1])], mirror, limit=1, **settings)
    late = evaluate(evaluated, tokenizer, SMALL, mirror, deadline=1e-9 if rank == 1 else 600.0, **settings)
    slow = evaluate(evaluated, tokenizer, [replace(SMALL[3], max_gen_toks=1500)], mirror, deadline=2.0, **settings)
    steps.append([train_step(plain), train_step(evaluated)])
    save(folder, f"{mode}{rank}.json", {
        "found": found.to_dict(), "steps": steps, "errors": [one.error for one in missing.families.values()],
        "missing": [one.status for one in missing.families.values()], "few": few.to_dict(),
        "late": [one.status for one in late.families.values()],
        "slow": [one.status for one in slow.families.values()]})
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds, and the folder with the mirror."""
    folder = tmp_path_factory.mktemp("ranks")
    mirror, tokenizer = build_mirror(folder / "mirror"), build_tokenizer(folder / "tokenizer")
    found = evaluate(build_model(), tokenizer, SMALL, mirror, sandbox=Trusting(), kept=Kept())
    assert found.ok
    return folder, found.to_dict()["families"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lockstep", "gathered", "ddp", "tensor"])
def test_two_ranks_find_what_one_process_does_and_train_on(alone, mode):
    folder, expected = alone
    (folder / "meet").unlink(missing_ok=True)
    mp.spawn(work, (2, str(folder), mode), nprocs=2)
    ranks = [json.loads((folder / f"{mode}{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        for name, one in rank["found"]["families"].items():
            assert one["status"] == "ok", one["traceback"]
            for task, table in expected[name]["documents"].items():
                for metric, values in table.items():
                    tolerance = 1e-5 if metric == "bits_per_byte" else 0
                    assert one["documents"][task][metric] == pytest.approx(values, abs=tolerance), (name, metric)
            if mode in ("lockstep", "tensor"):
                assert one["counts"]["forwards"] == ranks[0]["found"]["families"][name]["counts"]["forwards"]
        for plain, evaluated in rank["steps"]:
            assert plain == evaluated
        assert rank["missing"] == ["unavailable", "unavailable"]
        assert all(error.startswith("rank 1: FileNotFoundError") for error in rank["errors"])
        assert rank["few"]["families"]["mmlu"]["counts"]["documents"] == 1  # fewer than there are ranks
        assert rank["late"] == ["timeout"] * 4
        assert rank["slow"] == ["timeout"]
    assert ranks[0]["steps"] == ranks[1]["steps"] if mode != "ddp" else True
