"""Evaluates a model outside of training, by one process or by all that torchrun started."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import yaml
from torch import nn

from lit_cpt.checkpoints import damage, newest_whole
from lit_cpt.evaluations import Evaluation
from lit_cpt.export import build_on_disk
from lit_cpt.harness.evaluation import Kept, Options, evaluate
from lit_cpt.harness.preflight import check_names
from lit_cpt.harness.programs import LaterSandbox
from lit_cpt.harness.record import evaluation_of
from lit_cpt.harness.subject import read_tokenizer
from lit_cpt.harness.suite import Effort, Suite
from lit_cpt.mirror import fetched
from lit_cpt.sandbox import Sandbox
from lit_cpt.weights import build_model, give_generation_config, is_distributed, load_weights

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Args:
        model: The model, on the CPU.
        tokenizer: Its tokenizer.
        name: Where it came from.
        step: Optimizer steps it was trained for, as its checkpoint tells; 0 for a Hugging Face model.
        tokens_seen: Tokens it was trained on, as its checkpoint tells.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    step: int = 0
    tokens_seen: int | None = None


def evaluate_saved(checkpoint: str, suite: Suite, effort: Effort, tokenizer: str | None = None,
                   precision: Precision = "auto") -> Evaluation:
    """Evaluate a saved model; every process of a torchrun calls this and gets the same result.

    Args:
        checkpoint: A ``.ckpt`` of ours, a run's folder or mirror (its newest whole checkpoint), a Hugging Face folder,
            or a hub name.
        suite: What is asked.
        effort: Time and memory.
        tokenizer: Folder or hub name; left out, that of the model.
        precision: Of weights and arithmetic; ``auto`` is bfloat16 on a GPU and float32 elsewhere.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It cannot be read, names no tokenizer, or a task is unknown.
    """
    check_names(suite)
    began = time.monotonic()
    with process_group() as device:
        bf16 = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
        subject = open_subject(checkpoint, tokenizer, torch.bfloat16 if bf16 else torch.float32)
        sandbox = LaterSandbox(lambda: Sandbox(allow_weak_sandbox=effort.allow_weak_sandbox))
        try:
            results = evaluate(subject.model.to(device), subject.tokenizer, suite.families, suite.root,
                               limit=suite.limit, seed=suite.seed, token_budget=effort.token_budget,
                               deadline=effort.seconds, sandbox=sandbox, kept=Kept(),
                               options=Options(bits_per_byte=effort.bits_per_byte))
        finally:
            sandbox.close()
    return evaluation_of(results, suite, step=subject.step, tokens_seen=subject.tokens_seen, model=subject.name,
                         reasons=("asked",), seconds=time.monotonic() - began)


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """The device of this process, joined with the others of its torchrun, if it has one."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return int(os.environ.get("RANK", 0)) == 0


def open_subject(checkpoint: str, tokenizer: str | None, dtype: torch.dtype, scratch: Path | None = None) -> Subject:
    """Load what `evaluate_saved` names; from a mirror it is downloaded, and deleted when the process ends.

    Args:
        checkpoint: As for `evaluate_saved`.
        tokenizer: As for `evaluate_saved`.
        dtype: Of the weights.
        scratch: On whose disk those of a checkpoint of ours are to lie, instead of in memory: see `build_on_disk`.
    """
    if "://" in checkpoint:
        folder = tempfile.mkdtemp(prefix="lit-cpt-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        here = str(fetched(checkpoint, Path(folder)))
        return replace(open_subject(here, tokenizer, dtype, scratch), name=checkpoint)
    path = Path(checkpoint)
    if path.is_dir() and not (path / "config.json").exists() and not is_distributed(path):
        path = newest_of(path)
    if path.is_file() or is_distributed(path):
        return from_checkpoint(path, tokenizer, dtype, scratch)
    if not path.exists() and (checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1
                              or path.suffix == ".ckpt"):
        raise FileNotFoundError(f"--checkpoint {checkpoint}: there is no such file or folder. Give a checkpoint of a "
                                "run (RUN/checkpoints/last.ckpt), the run's folder, or a Hugging Face folder or name.")
    model = build_model(checkpoint, None, dtype)
    return Subject(model, read_tokenizer(tokenizer or checkpoint), checkpoint)


def newest_of(folder: Path) -> Path:
    """The newest whole checkpoint of a run.

    Raises:
        FileNotFoundError: ``folder`` holds none.
    """
    for place in (folder / "checkpoints", folder):
        whole, _ = newest_whole(place)
        if whole is not None:
            return whole
    raise FileNotFoundError(f"--checkpoint {folder} is neither a Hugging Face folder (it has no config.json) nor a run "
                            "with a whole checkpoint (in its folder checkpoints).")


def from_checkpoint(path: Path, tokenizer: str | None, dtype: torch.dtype, scratch: Path | None = None) -> Subject:
    """The model in a checkpoint of ours; see `open_subject`."""
    if (wrong := damage(path)) is not None:
        raise ValueError(f"--checkpoint {path} is damaged: {wrong}.")
    saved = torch.load(path / "meta.pt" if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=True)
    ours = saved.get("lit_cpt")
    if ours is None:
        raise ValueError(f"--checkpoint {path} was not written by lit_cpt. Save its model with `save_pretrained` and "
                         "give that folder.")
    settings = run_settings(path)
    pretrained, architecture = settings.get("pretrained"), ours.get("architecture") or settings.get("architecture")
    if architecture is None and pretrained is None:
        raise ValueError(f"--checkpoint {path} does not tell its model's architecture, and there is no config.yaml of "
                         f"its run beside it ({path.parent.parent}). Export it where the run was made.")
    given: Any = architecture or pretrained
    model = build_model(None, given, dtype) if scratch is None else build_on_disk(given, dtype, scratch)
    give_generation_config(model, ours.get("generation"))
    load_weights(model, path)
    named = [tokenizer, ours.get("tokenizer"), pretrained, settings.get("architecture")]
    place = next((one for one in named if isinstance(one, str)), None)
    if place is None:
        raise ValueError(f"--checkpoint {path} names no tokenizer: give its folder or hub name with --tokenizer.")
    return Subject(model, read_tokenizer(place), str(path), saved["global_step"], ours["tokens_seen"])


def run_settings(path: Path) -> dict[str, Any]:
    """The model's part of the config of the run that a checkpoint lies in; empty where there is none."""
    config = path.parent.parent / "config.yaml"
    if not config.is_file():
        return {}
    found = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings: dict[str, Any] = (found or {}).get("model") or {}
    return settings
