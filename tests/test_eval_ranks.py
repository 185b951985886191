"""EvalCallback on two ranks, replicated and sharded: training goes on alike, whatever becomes of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from harness_world import build_mirror, build_tokenizer
from nursery import FIT, torchrun

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "projects" / "evaluated.py"
MODULES = (*FIT, "lit_cpt.callbacks.eval", "lit_cpt.harness.language_model")
STEPS, ASKED = 200, [0, 50, 100, 150, 200]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    build_mirror(folder / "mirror", documents=4)
    build_tokenizer(folder / "tokenizer")
    return folder


def start(world, case, mode, ranks=2):
    """A run, finished."""
    return torchrun(SCRIPT, ranks, str(world), case, mode, modules=MODULES)


def losses(world, case, mode, ranks=2):
    """Losses of every rank of a run."""
    ran = start(world, case, mode, ranks)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return [torch.tensor(json.loads((world / f"{case}-{mode}-{rank}.json").read_text())) for rank in range(ranks)]


def results(world, case, mode):
    """step -> (family -> score or status) of a run."""
    found = {}
    for path in sorted((world / f"{case}-{mode}" / "evals").glob("*.json")):
        plain = json.loads(path.read_text())
        found[plain["step"]] = {**{name: one["score"] for name, one in plain["families"].items()},
                                **{name: one["status"] for name, one in plain["failures"].items()}}
    return found


@pytest.fixture(scope="module")
def plain(world):
    """Losses without the callback, by mode."""
    known = {}

    def losses_of(mode):
        mode = "fsdp" if mode == "gathered" else mode
        if mode not in known:
            known[mode] = losses(world, "plain", mode)
        return known[mode]

    return losses_of


@pytest.mark.parametrize("mode", ["ddp", "fsdp", "gathered"])
def test_training_is_the_same_with_and_without_evaluations(world, plain, mode):
    asked = losses(world, "healthy", mode)
    for without, with_callback in zip(plain(mode), asked, strict=True):
        assert len(without) == STEPS
        assert torch.equal(without, with_callback)
    found = results(world, "healthy", mode)
    assert list(found) == ASKED
    assert all(isinstance(score, float) for one in found.values() for score in one.values())


def test_sharding_changes_no_score(world):
    alone, sharded = (results(world, "healthy", mode) for mode in ("ddp", "fsdp"))
    assert alone[0] == sharded[0]  # before the first step the weights are the same to the bit


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize(("case", "status"), [("missing", "unavailable"), ("late", "timeout")])
def test_what_goes_wrong_on_one_rank_goes_wrong_on_both_and_training_goes_on(world, plain, mode, case, status):
    asked = losses(world, case, mode)
    for without, with_callback in zip(plain(mode), asked, strict=True):
        assert torch.equal(without, with_callback)
    found = results(world, case, mode)
    assert list(found) == ASKED
    assert set(found[0].values()) == {status}
    if case == "missing":
        assert set(found[200].values()) == {"disabled"}
        plain_text = json.loads((world / f"{case}-{mode}" / "evals" / "step00000000.json").read_text())
        assert plain_text["failures"]["hellaswag"]["reason"].startswith("rank 1: FileNotFoundError")


def test_broken_weights_are_flagged_on_both_ranks_and_training_goes_on(world):
    for without, asked in zip(losses(world, "plain-broken", "fsdp"), losses(world, "broken", "fsdp"), strict=True):
        assert without.isnan().sum() > STEPS // 3
        assert torch.allclose(without, asked, rtol=0.0, atol=0.0, equal_nan=True)
    found = results(world, "broken", "fsdp")
    assert all(isinstance(score, float) for score in found[100].values())
    assert set(found[150].values()) == set(found[200].values()) == {"nonfinite"}


def test_a_model_that_somebody_else_split_over_tensor_ranks_is_refused_before_training(world):
    ran = start(world, "healthy", "tensor")
    assert ran.returncode != 0
    assert "EvalCallback does not know how ModelParallelStrategy splits a model over tensor ranks" in ran.stderr
