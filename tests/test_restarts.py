"""What a job that was started again goes on from, and what ranks say that lost another."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

from lit_cpt.restarts import RankLost, asked_for, check_agreement, lost_rank, restarted, warn_of_stale_addresses

CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_job_that_was_started_again_goes_on_by_itself(name, monkeypatch):
    monkeypatch.setenv(name, "0")
    assert not restarted()
    assert [asked_for(given) for given in (None, "last", "best", "x.ckpt")] == [None, "last", "best", "x.ckpt"]
    monkeypatch.setenv(name, "2")
    assert restarted()
    assert [asked_for(given) for given in (None, "last", "best", "x.ckpt")] == ["auto", "auto", "best", "x.ckpt"]


@pytest.mark.parametrize(("nodes", "restarts", "uncertain"), [(1, 3, False), (2, 0, False), (2, 3, True)])
def test_on_several_nodes_any_start_by_torchrun_may_be_another_one(nodes, restarts, uncertain, monkeypatch):
    """Its agent counts only the restarts for which a rank of its own was the reason."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(restarts))
    monkeypatch.setenv("GROUP_WORLD_SIZE", str(nodes))
    assert restarted() == uncertain


@pytest.mark.parametrize(("restarts", "shared", "warned"), [("3", "True", True), ("3", "False", False),
                                                            ("0", "True", False)])
def test_one_store_for_all_starts_of_torchrun_is_warned_of(restarts, shared, warned, monkeypatch, caplog):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    warn_of_stale_addresses()
    assert (f"--max-restarts {restarts}: ranks that are started again may not find each other" in caplog.text) == warned


@pytest.mark.parametrize("error", [dist.DistBackendError("NCCL error: remote process exited"), RuntimeError(CLOSED),
                                   dist.DistNetworkError("the store is gone")], ids=lambda one: type(one).__name__)
def test_the_error_of_a_broken_connection_reads_as_a_lost_rank(error, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    told = lost_rank(error)
    assert isinstance(told, RankLost)
    assert str(told).startswith("rank 3 lost the connection to another rank")
    assert f"({error})." in str(told)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError(CLOSED), KeyboardInterrupt()])
def test_any_other_error_is_none(error):
    assert lost_rank(error) is None


def trainer_of(rank, mine, first):
    """What `check_agreement` sees of a Trainer, of a rank that rank 0 told what it found."""
    return SimpleNamespace(ckpt_path=mine, global_rank=rank, default_root_dir="/shared/run",
                           strategy=SimpleNamespace(broadcast=lambda _: first))


def test_ranks_that_found_different_checkpoints_refuse():
    check_agreement(trainer_of(1, None, "none"))
    check_agreement(trainer_of(1, "a.ckpt", "a.ckpt"))
    with pytest.raises(ValueError, match=r"rank 1 found the checkpoint none, rank 0 found a.ckpt. The folder given by "
                                         r"--run \(/shared/run\) must be one that every node sees"):
        check_agreement(trainer_of(1, None, "a.ckpt"))
