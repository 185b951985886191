"""Memory, work and time of a model on given hardware, by arithmetic. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

SPARE = 0.08  # of a GPU's memory for its context, communication buffers and fragmentation: a rule of thumb
FP32 = 4  # bytes: master weights, gradients and each of AdamW's two moments
GIB = 2**30
SMALL = 64 * 2**20  # bytes of fp32 logits that may be there at once: below it, chunks cost time and save nothing
LEAST_ROWS = 64


@dataclass(frozen=True)
class Gpu:
    """A device, as its data sheet has it.

    Args:
        memory: Bytes.
        flops: Of dense bfloat16 matrix products, a second.
    """

    memory: float
    flops: float

    @property
    def usable(self) -> float:
        """Bytes that a run may plan with."""
        return self.memory * (1 - SPARE)


GPUS = {  # what stands in a device's name; the longer names first, as they hold the shorter
    "A100": Gpu(80e9, 312e12), "H100 NVL": Gpu(94e9, 835e12), "H100 PCIe": Gpu(80e9, 756e12), "H100": Gpu(80e9, 989e12),
    "H200": Gpu(141e9, 989e12), "B200": Gpu(180e9, 2250e12), "L40S": Gpu(48e9, 362e12), "MI300X": Gpu(192e9, 1307e12)}


def peak_flops(name: str) -> float | None:
    """The peak of the device that calls itself ``name``; None of one that `GPUS` does not hold."""
    return next((gpu.flops for known, gpu in GPUS.items() if known in name), None)


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides memory and work.

    Args:
        parameters: All of them.
        block: Parameters of the largest block.
        blocks: Parameters of all blocks.
        embedding: Parameters of an input embedding that is gathered by itself, as it is not tied to the head; else 0.
        count: Blocks.
        width: Of the hidden states.
        vocabulary: Width of the logits.
        matrix_parameters: Those that a token meets in a matrix product: no lookup, and of experts the active ones.
        attention_flops: FLOPs of a token's attention in the forward pass, on average over a sequence.
        saved: Bytes a token leaves behind for the backward pass, in the whole model but for the loss.
        saved_block: The same of the largest block.
    """

    parameters: int
    block: int
    blocks: int
    embedding: int
    count: int
    width: int
    vocabulary: int
    matrix_parameters: int
    attention_flops: float
    saved: float
    saved_block: float

    @property
    def root(self) -> int:
        """Parameters outside of blocks and embedding: the head, the last norm, and a tied embedding with it."""
        return self.parameters - self.blocks - self.embedding

    @property
    def flops(self) -> float:
        """FLOPs that training takes for a token: forward, and twice that backward; without what is recomputed.

        2 for each weight that it meets and its attention, three times (PaLM, arXiv 2204.02311, appendix B).
        """
        return 3 * (2 * self.matrix_parameters + self.attention_flops)


@dataclass(frozen=True)
class Layout:
    """How a run is spread over ranks, as `lit_cpt.parallel.ShardedStrategy` does it.

    Args:
        ranks: Devices in all.
        replicas: Groups of ranks that each hold the whole model.
        compute_bytes: Of a number in forward and backward: 2 for bfloat16, 4 for float32.
        recompute: Whether blocks are recomputed in the backward pass (activation checkpointing).
        micro_batch: Sequences a rank handles at once.
        sequence_length: Tokens of a sequence.
        accumulation: Micro-batches a step.
        reduce_at_once: Whether each micro-batch's gradients are reduced at once; otherwise whole ones wait.
        float8: Whether linear layers multiply in 8 bits; what stays in memory is bfloat16 all the same.

    Raises:
        ValueError: The replicas do not divide the ranks.
    """

    ranks: int = 1
    replicas: int = 1
    compute_bytes: int = 2
    recompute: bool = False
    micro_batch: int = 1
    sequence_length: int = 2048
    accumulation: int = 1
    reduce_at_once: bool = True
    float8: bool = False

    def __post_init__(self) -> None:
        if self.ranks % self.replicas:
            raise ValueError(f"replicas={self.replicas} does not divide the {self.ranks} ranks; each replica needs as "
                             "many.")

    @property
    def shard(self) -> int:
        """Ranks that share one copy of the model."""
        return self.ranks // self.replicas

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.micro_batch * self.sequence_length


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the moment of a step that needs the most.

    Args:
        when: Which moment that is.
        weights: The shard of fp32 master weights.
        optimizer: The shard of AdamW's moments.
        gradients: Shards of gradients that are there by then.
        activations: Kept for the backward pass.
        logits: The chunk of logits at work, and the head's gradient.
        transients: Weights gathered for use, and gradients before they are reduced.
    """

    when: str
    weights: float
    optimizer: float
    gradients: float
    activations: float
    logits: float
    transients: float

    @property
    def total(self) -> float:
        """All of it; the device's own context, communication buffers and fragmentation come on top."""
        return self.weights + self.optimizer + self.gradients + self.activations + self.logits + self.transients

    def describe(self) -> dict[str, Any]:
        """Plain values, in bytes."""
        return {**asdict(self), "total": self.total}


def peak_memory(size: ModelSize, layout: Layout) -> Memory:
    """What a rank needs at the worst moment of a step; checked against measured peaks in ``tests/test_footprint.py``.

    The candidates: the loss, when all activations are there; the backward pass where it begins, and where it ends
    and all gradients are there, in a block or when embedding and head are reduced; and the update.
    """
    return max(moments(size, layout), key=lambda one: one.total)


def moments(size: ModelSize, layout: Layout) -> list[Memory]:
    """The candidates of `peak_memory`."""
    number = layout.compute_bytes
    held = {"weights": FP32 * size.parameters / layout.shard, "optimizer": 2 * FP32 * size.parameters / layout.shard}
    gradients = FP32 * size.parameters / layout.shard
    earlier = gradients if layout.accumulation > 1 else 0.0  # of the micro-batches before
    if not layout.reduce_at_once and layout.accumulation > 1:
        gradients = earlier = FP32 * size.parameters
    block, root, embedding = number * size.block, number * size.root, number * size.embedding
    boundaries = layout.tokens * number * size.width * size.count
    kept = boundaries if layout.recompute else layout.tokens * size.saved
    working = block + (number + FP32) * size.block  # gathered; its gradient, and the copy of it that is reduced
    one = layout.tokens * size.saved_block
    return [
        Memory("loss", **held, gradients=earlier, activations=kept, logits=loss_memory(size, layout), transients=root),
        Memory("first block's backward", **held, gradients=earlier, activations=kept + one * layout.recompute,
               logits=0.0, transients=2 * root + working),
        Memory("last block's backward", **held, gradients=gradients, activations=one, logits=0.0,
               transients=2 * root + working),
        Memory("embedding's backward", **held, gradients=gradients, activations=0.0, logits=0.0,
               transients=2 * (root + embedding) + FP32 * max(size.root, size.embedding)),
        Memory("update", **held, gradients=gradients, activations=0.0, logits=0.0, transients=0.0),
    ]


def mends(size: ModelSize, layout: Layout, capacity: float) -> dict[str, Memory]:
    """Changes of ``layout`` by which a rank's memory stays within ``capacity`` bytes, the mildest first."""
    milder = {"micro_batch 1": replace(layout, micro_batch=1),
              "activation_checkpointing": replace(layout, recompute=True),
              "activation_checkpointing and micro_batch 1": replace(layout, recompute=True, micro_batch=1)}
    more = {f"{factor * layout.ranks} ranks": replace(layout, ranks=factor * layout.ranks) for factor in (2, 4, 8, 16)}
    both = {f"{name}, activation_checkpointing and micro_batch 1": replace(one, recompute=True, micro_batch=1)
            for name, one in more.items()}
    for tried in (milder, more, both):
        found = {name: peak_memory(size, one) for name, one in tried.items()}
        if fitting := {name: memory for name, memory in found.items() if memory.total <= capacity}:
            return fitting
    return {}


def loss_memory(size: ModelSize, layout: Layout) -> float:
    """Bytes that the loss needs (`lit_cpt.losses`): logits, in fp32 too, their gradient, and in chunks the head's."""
    each = size.vocabulary * (2 * FP32 + layout.compute_bytes)
    if layout.tokens * size.vocabulary * FP32 <= SMALL:
        return layout.tokens * each
    head = layout.compute_bytes * size.width * size.vocabulary
    return min(layout.tokens, chunk_rows(size.width)) * each + 2 * head  # a chunk's, and the sum of those before


def chunk_rows(width: int) -> int:
    """Positions in a chunk of logits: they take a quarter of the head's gradient, which every chunk adds to.

    Fewer would save little more, and by arithmetic the adding would take a GPU longer than the products.
    """
    return max(LEAST_ROWS, width // 4)


def device_count(given: Any) -> int | None:
    """How many devices Lightning's ``devices`` names; None where only the machine knows.

    >>> device_count("0,3"), device_count(8), device_count("auto")
    (2, 8, None)
    """
    if isinstance(given, (list, tuple)):
        return len(given)
    text = str(given)
    if "," in text:
        return len([word for word in text.split(",") if word.strip()])
    return int(text) if text.isdigit() and int(text) else None
