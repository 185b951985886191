"""Runs that a launcher starts again: what they go on from, and how they end when another rank is gone."""

from __future__ import annotations

import logging
import os

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")  # torchrun --max-restarts, a job that was requeued
GLOO = "gloo/transport"  # gloo's errors are plain RuntimeErrors; each names the source file that raised it


class RankLost(RuntimeError):
    """Another rank is gone, and this one, which waited for it, cannot go on."""


def counted(name: str) -> int:
    """The number that a launcher left in the environment; 0 if it left none."""
    return int(os.environ.get(name) or 0)


def restarted() -> bool:
    """Whether a launcher started this job before, with the very same command.

    On several nodes torchrun counts a restart only where a rank failed, so that no count of its is certain there:
    with ``--max-restarts`` each start may be another one.
    """
    uncertain = counted("GROUP_WORLD_SIZE") > 1 and counted("TORCHELASTIC_MAX_RESTARTS") > 0
    return uncertain or any(counted(name) for name in COUNTS)


def warn_of_stale_addresses() -> None:
    """Warn where torchrun would start ranks again that then look for each other in the store of those before.

    By default its agent keeps one store for all starts, and a rank that is quick reads the address of one that is
    gone (pytorch/pytorch#135712).
    """
    if counted("TORCHELASTIC_MAX_RESTARTS") and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        log.warning("torchrun --max-restarts %d: ranks that are started again may not find each other. Before "
                    "torchrun, `export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`, and let --rdzv-backend be c10d.",
                    counted("TORCHELASTIC_MAX_RESTARTS"))


def asked_for(ckpt_path: str | None) -> str | None:
    """What ``--ckpt_path`` means to a job that may have been started before; a path stays what it is."""
    return "auto" if restarted() and ckpt_path in (None, "last") else ckpt_path


def check_agreement(trainer: Trainer) -> None:
    """Refuse to resume where ranks found different checkpoints; all ranks call this.

    Raises:
        ValueError: This rank found another one than rank 0, or one found none.
    """
    mine = str(trainer.ckpt_path or "none")
    first = trainer.strategy.broadcast(mine)
    if mine != first:
        raise ValueError(f"rank {trainer.global_rank} found the checkpoint {mine}, rank 0 found {first}. The folder "
                         f"given by --run ({trainer.default_root_dir}) must be one that every node sees; if it is, its "
                         "filesystem was late: start again.")


def lost_rank(error: BaseException) -> RankLost | None:
    """What ``error`` means, if it is that of a collective whose other end is gone."""
    if not (isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and GLOO in str(error))):
        return None
    said = str(error).strip().splitlines()[0].split(". ")[0]
    rank = getattr(rank_zero_only, "rank", "?")
    return RankLost(f"rank {rank} lost the connection to another rank, which ended first: its own last "
                    f"lines tell why, if it was not killed ({said}).")
