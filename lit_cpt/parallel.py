"""One model over many devices: FSDP2 on Lightning's mesh, activation checkpointing and compilation by block."""

from __future__ import annotations

import atexit
import errno
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.storage import StorageWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from lit_cpt.background import BackgroundWriter
from lit_cpt.float8 import import_float8, multiply_in_float8
from lit_cpt.objectives import is_encoder_decoder
from lit_cpt.publishing import disk_error
from lit_cpt.tensor_parallel import check_shared, split_over

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.bfloat16}
TENSOR = "tensor"  # the dimension of the mesh whose ranks compute each layer together


class ShardedStrategy(ModelParallelStrategy):
    """Shards weights, gradients and optimizer over the ranks (FSDP2); one device or many, CPU (gloo) or GPU.

    Weights and AdamW's moments stay fp32 whatever ``compute_dtype``: at learning rates of 1e-5 and below, updates
    would be lost in bf16's rounding. Use it with ``precision: 32-true``.

    Args:
        replicas: Groups of ranks that each hold the whole model, shards spread over the group (HSDP): usually one
            per node, so that weights are gathered within nodes only. 1 shards over all ranks.
        tensor_parallel: Ranks, next to each other, that compute each layer together, each a part of its heads and
            width, by the plan that transformers ships with the model. They train on the same samples.
        compute_dtype: Of forward and backward: ``float32``, ``bfloat16``, or ``float8``, which is ``bfloat16`` but for
            the products of the blocks' linear layers (`lit_cpt.float8`). Gradients are reduced in fp32.
        activation_checkpointing: Recompute each block in the backward pass instead of keeping its activations.
        compile: Compile each block.
        reduce_every_micro_batch: Reduce gradients at each micro-batch; otherwise only at the last of a step, which
            saves communication and keeps unsharded fp32 gradients in memory until then.
        distributed_checkpoints: Each rank writes its part of a checkpoint, a folder that any number of ranks
            resumes from; otherwise rank 0 gathers one file.
        wait_for_checkpoints: Whether training waits until a distributed checkpoint is on the disk, and not only for
            the copy of it in host memory. The next checkpoint and the end of training always do.

    Raises:
        ValueError: A number below 1 or another dtype, or float8 without torchao or with tensor parallelism; later,
            ranks that cannot be dealt out, or a model or device that cannot do so.
    """

    def __init__(self, replicas: int = 1, compute_dtype: Literal["float32", "bfloat16", "float8"] = "float32",
                 activation_checkpointing: bool = False, compile: bool = False, reduce_every_micro_batch: bool = True,
                 distributed_checkpoints: bool = True, wait_for_checkpoints: bool = False, tensor_parallel: int = 1,
                 **settings: Any) -> None:
        for name, value in (("replicas", replicas), ("tensor_parallel", tensor_parallel)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if compute_dtype not in DTYPES:
            raise ValueError(f"compute_dtype={compute_dtype!r}: choose one of {', '.join(DTYPES)}.")
        self.float8 = compute_dtype == "float8"
        if self.float8 and tensor_parallel > 1:
            raise ValueError(f"compute_dtype='float8' does not go with tensor_parallel={tensor_parallel}; leave one of "
                             "them out.")
        if self.float8:
            import_float8()
        super().__init__("auto", tensor_parallel, save_distributed_checkpoint=distributed_checkpoints, **settings)
        self.replicas, self.tensor_parallel, self.compute_dtype = replicas, tensor_parallel, DTYPES[compute_dtype]
        self.activation_checkpointing, self.compile = activation_checkpointing, compile
        self.reduce_every_micro_batch = reduce_every_micro_batch
        self.distributed_checkpoints, self.wait_for_checkpoints = distributed_checkpoints, wait_for_checkpoints
        self.writer: BackgroundWriter | None = None

    def setup_environment(self) -> None:
        """Start the ranks and lay out the mesh: all tensor groups hold data of their own."""
        ranks = self.num_nodes * self.num_processes
        check_ranks(ranks, self.replicas, self.tensor_parallel)
        self._data_parallel_size = ranks // self.tensor_parallel  # Lightning's own "auto" is one per node
        super().setup_environment()
        if self.root_device.type == "cpu":
            atexit.register(leave)  # Lightning does so for NCCL; a gloo rank that just ends may abort instead
        self.shard_mesh = mesh_of(self.root_device.type, self.world_size, self.replicas, self.tensor_parallel)
        if self.distributed_checkpoints:
            self.writer = BackgroundWriter(self.storage_writer, self.root_device.type == "cuda")

    def shard(self, model: nn.Module) -> nn.Module:
        """Prepare a language model, on the meta device or not, for this mesh.

        Args:
            model: A model of transformers whose blocks `blocks_of` finds.

        Raises:
            ValueError: The model cannot be split, or this model or device not multiply in 8 bits.
        """
        if self.float8:
            multiply_in_float8(model, blocks_of(model), self.root_device)
        return shard(model, self.shard_mesh, self.compute_dtype, self.activation_checkpointing, self.compile)

    @property
    def data_group(self) -> dist.ProcessGroup | None:
        """One rank of each tensor group, this one among them; None where there are no tensor groups."""
        return self.device_mesh["data_parallel"].get_group() if self.tensor_parallel > 1 else None

    def check_shared(self, batch: torch.Tensor) -> None:
        """Refuse batches that differ within a tensor group.

        Raises:
            ValueError: They differ.
        """
        if self.tensor_parallel > 1:
            check_shared(batch, self.shard_mesh[TENSOR])

    # Checkpoints -----------------------------------------------------------------------------------------------

    def storage_writer(self, folder: Path) -> StorageWriter:
        """What writes this rank's part of a checkpoint into ``folder``."""
        return FileSystemWriter(folder)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Save; a distributed checkpoint is there, whole, when `finish_saving` returns.

        Raises:
            OSError: It, or the one before, could not be written.
        """
        if self.writer is None or storage_options is not None:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        self.finish_saving()
        path = Path(self.broadcast(filepath))
        state = {"state_dict": checkpoint.pop("state_dict"), **{
            f"optimizer_{number}": one for number, one in enumerate(checkpoint.pop("optimizer_states", []))}}
        self.writer.start(state, checkpoint, path)
        if self.wait_for_checkpoints:
            self.finish_saving()

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written; all ranks call this.

        Raises:
            OSError: It could not be written.
        """
        path, failure = self.writer.wait() if self.writer is not None else (None, None)
        if path is None or self.reduce_boolean_decision(failure is None):
            return
        said = disk_error(failure) or OSError(errno.EIO, str(failure) if failure else "another rank could not write it")
        raise OSError(said.errno, said.strerror, str(path)) from failure

    def when_saved(self, action: Callable[[], object]) -> None:
        """Do ``action`` when the checkpoint that is being written is whole, at once if none is; never, if it fails."""
        self.writer.later(action) if self.writer is not None else action()

    def remove_checkpoint(self, filepath: Any) -> None:
        """Remove an old checkpoint, not before the one that is to replace it is whole."""
        self.when_saved(partial(super().remove_checkpoint, filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load, once nothing is being written."""
        self.finish_saving()
        return super().load_checkpoint(checkpoint_path, weights_only)

    def teardown(self) -> None:
        """End; where training was broken off, what is being written is finished."""
        path, failure = self.writer.wait() if self.writer is not None else (None, None)
        if failure is not None:
            log.error("%s could not be written: %s", path, failure)
        super().teardown()


def leave() -> None:
    """Take this process out of its group, before the interpreter ends under gloo's threads.

    A rank that just ends has been seen to abort ("terminate called without an active exception"), rarely also one
    that had left; why is not known.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def check_ranks(ranks: int, replicas: int, tensor: int) -> None:
    """Refuse ranks that cannot be dealt out.

    Raises:
        ValueError: ``ranks`` is no multiple of ``tensor``, or its groups no multiple of ``replicas``.
    """
    if ranks % tensor:
        raise ValueError(f"tensor_parallel={tensor} does not divide the {ranks} ranks; each tensor group needs as "
                         "many.")
    if (groups := ranks // tensor) % replicas:
        what = f"{groups} ranks" if tensor == 1 else f"{groups} tensor groups"
        raise ValueError(f"replicas={replicas} does not divide the {what}; each replica needs as many.")


def mesh_of(device: str, ranks: int, replicas: int = 1, tensor: int = 1) -> DeviceMesh:
    """The mesh of a model: ``replicate`` and ``tensor`` where there are several, ``shard`` always.

    Raises:
        ValueError: See `check_ranks`.
    """
    check_ranks(ranks, replicas, tensor)
    sizes = {"replicate": replicas, "shard": ranks // replicas // tensor, TENSOR: tensor}
    kept = {name: size for name, size in sizes.items() if size > 1 or name == "shard"}
    return init_device_mesh(device, tuple(kept.values()), mesh_dim_names=tuple(kept))


def data_rank(trainer: Any) -> tuple[int, int]:
    """This rank and the number of ranks, of those that have samples of their own: a tensor group counts as one."""
    alike = ranks_alike(trainer)
    return trainer.global_rank // alike, trainer.world_size // alike


def ranks_alike(trainer: Any) -> int:
    """Ranks, next to each other, that train on the same samples."""
    return int(getattr(getattr(trainer, "strategy", None), "tensor_parallel", 1))


def blocks_of(model: Any) -> list[nn.Module]:
    """The repeated blocks of a language model; of an encoder–decoder first those of its encoder.

    Raises:
        ValueError: It has no list of them.
    """
    stacks = [model.get_decoder() if hasattr(model, "get_decoder") else model]
    if is_encoder_decoder(model):
        stacks.insert(0, model.get_encoder())
    found = [next((blocks for name in ("layers", "h", "blocks", "block")
                   if isinstance(blocks := getattr(stack, name, None), nn.ModuleList)), None) for stack in stacks]
    if None not in found:
        return [block for blocks in found for block in blocks or ()]
    raise ValueError(f"{type(model).__name__} has no list of blocks (layers, h, blocks) to shard by; train it with "
                     "another strategy, such as --trainer.strategy ddp.")


def shard(model: Any, mesh: DeviceMesh, compute_dtype: torch.dtype = torch.float32,
          activation_checkpointing: bool = False, compile: bool = False) -> nn.Module:
    """Split, checkpoint, compile and shard ``model`` in place, block by block; the root holds final norm and head.

    The head is not a group of its own: `lit_cpt.losses` uses its weight without calling it. Untied input embeddings
    are one, which halves what has to be gathered at once.
    """
    blocks = blocks_of(model)
    assert mesh.mesh_dim_names is not None
    if TENSOR in mesh.mesh_dim_names:
        split_over(model, mesh[TENSOR])
        mesh = mesh[tuple(name for name in mesh.mesh_dim_names if name != TENSOR)]
    for block in blocks:
        if activation_checkpointing:  # not by torch's wrapper module, which would be in the names of the parameters
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if compile:
            block.compile()
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and embedding.weight is not head.weight:
        fully_shard(embedding, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def reduce_gradients(model: nn.Module | None, now: bool) -> None:
    """Whether the next backward reduces gradients over the ranks, where ``model`` is sharded."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
