"""A model as a Hugging Face folder, written without its weights being in memory."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_cpt.publishing import WRITING, publish_folder
from lit_cpt.weights import build_model

log = logging.getLogger(__name__)


def build_on_disk(architecture: str | dict[str, Any], dtype: torch.dtype, folder: Path) -> nn.Module:
    """A causal language model whose weights lie on the disk, mapped into memory, for a checkpoint to be loaded into.

    It can be written but not run: what no checkpoint holds, such as rotary frequencies, stays on the meta device.

    Args:
        architecture: As for `build_model`.
        dtype: Of its weights.
        folder: On whose disk; see `on_disk`.

    Raises:
        OSError: The disk is full.
        ValueError: ``architecture`` cannot be read.
    """
    with torch.device("meta"):
        model: Any = build_model(None, architecture, dtype)
    weights = model.state_dict(keep_vars=True)
    mapped = {id(value): on_disk(value, folder) for value in {id(one): one for one in weights.values()}.values()}
    model.load_state_dict({name: mapped[id(value)] for name, value in weights.items()}, assign=True)
    model.tie_weights()
    return model


def on_disk(like: torch.Tensor, folder: Path) -> torch.Tensor:
    """A tensor of the shape and dtype of ``like`` in a file of its own, mapped into memory.

    The file has no name, and is gone with the tensor or the process; its whole place on the disk is taken at once,
    since a mapped file that meets a full disk later kills the process.

    Raises:
        OSError: The disk is full.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".weights-") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, like.nbytes)
        return torch.from_file(file.name, shared=True, size=like.numel(), dtype=like.dtype).view(like.shape)


def export_huggingface(model: Any, folder: str | Path, tokenizer: Any = None) -> None:
    """Write ``model`` as a folder that ``from_pretrained`` loads, whole or not at all; one of that name is replaced.

    Args:
        model: Any model of transformers; its weights are written in the precision that they have.
        folder: Where.
        tokenizer: To be written with it: a tokenizer, or the folder or hub name of one.

    Raises:
        OSError: It could not be written; what was there is as it was.
    """
    from transformers import AutoTokenizer, GenerationConfig

    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:  # which transformers would refuse to write; some models on the hub have such
        log.warning("the generation config is left out, transformers finds it wrong: %s", str(error).splitlines()[0])
        model.generation_config = GenerationConfig.from_model_config(model.config)
    folder = Path(folder)
    aside = folder.with_name(WRITING.format(folder.name))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        model.save_pretrained(aside, state_dict=as_on_the_hub(model, aside), save_original_format=False)
        if tokenizer is not None:
            named = isinstance(tokenizer, (str, Path))
            (AutoTokenizer.from_pretrained(tokenizer) if named else tokenizer).save_pretrained(aside)
        publish_folder(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def as_on_the_hub(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The weights by the names and in the shapes of the hub, such as a matrix for each expert.

    `save_pretrained` converts all of them at once, which takes their memory once more; here it is a block's, and what
    is converted goes `on_disk`.

    Args:
        model: Any model of transformers.
        folder: On whose disk.
    """
    from transformers.core_model_loading import revert_weight_conversion

    weights = {}
    for _, items in groupby(model.state_dict().items(), key=lambda item: block_of(item[0])):
        part = dict(items)
        for name, value in revert_weight_conversion(model, part).items():
            kept = any(value is one for one in part.values())
            weights[name] = value if kept else on_disk(value, folder).copy_(value)
    return weights


def block_of(name: str) -> str:
    """The name of the block that the weight ``name`` is in, such as ``model.layers.7``; empty outside of blocks."""
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found[0] if found else ""
