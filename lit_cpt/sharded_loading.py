"""Weights into shards: each rank reads its own slices of a folder, or rank 0 reads all and hands them out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from lit_cpt.weights import (
    attention_setting,
    build_model,
    config_of,
    give_generation_config,
    kind_of,
    readable,
)

log = logging.getLogger(__name__)

T = TypeVar("T")


def build_sharded(strategy: Any, pretrained: str | None, architecture: str | dict[str, Any] | None,
                  fill: bool = True, attention: str | None = None) -> nn.Module:
    """`lit_cpt.weights.build_model`, of which each rank only ever holds its shard.

    Args:
        strategy: A `lit_cpt.parallel.ShardedStrategy`, set up.
        pretrained: As for `build_model`.
        architecture: As for `build_model`; rank 0 initialises, so that the values do not depend on the ranks.
        fill: Whether weights are given at all; not, where a checkpoint brings them.
        attention: As for `build_model`.

    Raises:
        ValueError: It cannot be read; raised on every rank.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    config = strategy.broadcast(on_rank_zero(strategy, lambda: read_config(pretrained, architecture)))
    with readable(pretrained, architecture, attention), torch.device("meta"):
        model: Any = kind_of(config).from_config(config, dtype=torch.float32, **attention_setting(attention))
    if strategy.is_global_zero:
        give_generation_config(model, pretrained)
    model.generation_config = strategy.broadcast(model.generation_config)
    as_saved = not get_model_conversion_mapping(model, add_legacy=False)  # asked before sharding renames the classes
    strategy.shard(model)
    model.to_empty(device=strategy.root_device)
    model.tie_weights()
    if fill and not (pretrained and as_saved and read_slices(strategy, model, pretrained)):
        hand_out(strategy, model, pretrained, architecture)
    for value in model.state_dict(keep_vars=True).values():
        value._is_hf_initialized = True
    model.initialize_weights()  # only what no file holds, such as rotary frequencies
    return model


def read_config(pretrained: str | None, architecture: str | dict[str, Any] | None) -> Any:
    """The config of a model, and no weights.

    Raises:
        ValueError: It cannot be read.
    """
    with readable(pretrained, architecture):
        return config_of(pretrained or architecture)


def on_rank_zero(strategy: Any, ask: Callable[[], T]) -> T | None:
    """What ``ask`` finds on rank 0, and None on the others.

    Raises:
        ValueError: As ``ask`` raised it on rank 0; on every rank.
        RuntimeError: On the others, where rank 0 raised anything else: they would wait for it in vain.
    """
    found = failure = None
    if strategy.is_global_zero:
        try:
            found = ask()
        except Exception as error:
            failure = error
    told = failure and (isinstance(failure, ValueError), f"{failure}")
    if (told := strategy.broadcast(told)) is None:
        return found
    users, message = told
    if failure is not None and not users:
        raise failure
    raise ValueError(message) if users else RuntimeError(f"rank 0 failed: {message}")


def hand_out(strategy: Any, model: nn.Module, pretrained: str | None,
             architecture: str | dict[str, Any] | None) -> None:
    """Fill ``model`` with what rank 0 reads, or draws.

    Raises:
        ValueError: Rank 0 cannot read it; raised on every rank.
    """
    if strategy.is_global_zero and pretrained:
        log.info("rank 0 reads %s and hands it out", pretrained)
    dtype = "auto" if pretrained else torch.float32  # a file's own, so that what it maps into memory is not copied
    whole = on_rank_zero(strategy, lambda: build_model(pretrained, architecture, dtype).state_dict()) or {}
    set_model_state_dict(model, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def read_slices(strategy: Any, model: nn.Module, pretrained: str) -> bool:
    """Fill ``model``, each rank reading what it holds, where every rank finds the files; else none of them does.

    Args:
        strategy: As for `build_sharded`.
        model: Sharded.
        pretrained: Folder, or name of a hub model, which is read if it is in the cache of every rank.

    Returns:
        Whether it was filled.
    """
    folder = folder_of(pretrained)
    revision = strategy.broadcast(folder and folder.name)  # a name may mean another one on another machine
    found = tensors_as_saved(model, folder) if folder and folder.name == revision else None
    everywhere = strategy.reduce_boolean_decision(found is not None)
    if found is None or not everywhere:
        return False
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(folder)))  # into the model's own tensors
    return True


def folder_of(pretrained: str) -> Path | None:
    """The folder that holds a model, local or in the hub's cache; None if there is none on this machine."""
    from transformers.utils import cached_file

    try:
        config = cached_file(pretrained, "config.json", local_files_only=True)
    except OSError:
        return None
    return Path(config).parent if config else None


def tensors_as_saved(model: nn.Module, folder: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of ``model`` by the names that they have in the safetensors files of ``folder``.

    Returns:
        One of the names of each tied tensor, all others; None unless the files hold just these, in the same shapes.
    """
    from safetensors import SafetensorError

    try:
        saved: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, KeyError, SafetensorError):  # what is wrong with it, rank 0 will tell
        return None
    mine = model.state_dict(keep_vars=True)
    found = {name: mine[name] for name in saved if name in mine}
    alike = all(saved[name].size == value.shape and len(saved[name].chunks) == 1 for name, value in found.items())
    distinct = {id(value) for value in mine.values()}
    once = len(saved) == len(found) == len(distinct) and distinct == {id(value) for value in found.values()}
    return found if alike and once else None
