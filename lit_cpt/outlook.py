"""What a planned run asks of given GPUs: whether it fits, how long it takes, what it costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate

from lit_cpt.footprint import GIB, GPUS, SPARE, Gpu, Layout, Memory, ModelSize, device_count, mends, peak_memory
from lit_cpt.model_size import model_size
from lit_cpt.recipe import Batch
from lit_cpt.units import format_count

STRATEGY = "lit_cpt.parallel.ShardedStrategy"


@dataclass(frozen=True)
class Budget:
    """What the user assumes.

    Args:
        gpu: One of `footprint.GPUS`, or ``GIGABYTES,TFLOPS``, such as ``80,989``.
        mfu: Share of the GPU's peak that training reaches (model FLOPs utilisation).
        price: Of one GPU for an hour.

    Raises:
        ValueError: Another GPU, or a number out of range.
    """

    gpu: str
    mfu: float = 0.4
    price: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise ValueError(f"--mfu {self.mfu}: it is a share of the GPU's peak, above 0 and at most 1, such as 0.4.")
        if self.price is not None and self.price < 0:
            raise ValueError(f"--price {self.price}: the price of a GPU hour is not below 0.")
        _ = self.device

    @property
    def device(self) -> Gpu:
        """The GPU."""
        if self.gpu in GPUS:
            return GPUS[self.gpu]
        try:
            gigabytes, teraflops = (float(word) for word in self.gpu.split(","))
            return Gpu(gigabytes * 1e9, teraflops * 1e12)
        except ValueError:
            raise ValueError(f"--gpu {self.gpu}: choose one of {', '.join(GPUS)}, or give its memory in GB and its "
                             "dense bfloat16 peak in TFLOPS, such as --gpu 80,989.") from None


@dataclass(frozen=True)
class Outlook:
    """What a run asks for.

    Args:
        size: The model.
        layout: How it is spread.
        memory: On each rank.
        fits: Whether the GPU has that much to spare.
        mends: What would let it fit, where it does not.
        tokens_per_second: Over all ranks; None where the peak of the arithmetic is not known.
        hours: Of training, without evaluations and validations.
        cost: Of the GPUs, in the unit of the price.
    """

    size: ModelSize
    layout: Layout
    memory: Memory
    fits: bool
    mends: dict[str, Memory]
    tokens_per_second: float | None
    hours: float | None
    cost: float | None

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "memory": self.memory.describe(), "flops_per_token": self.size.flops,
                "mends": {name: memory.total for name, memory in self.mends.items()}}


def outlook(settings: dict[str, Any], batch: Batch, horizon: int, budget: Budget) -> Outlook:
    """Work out what a run asks of its GPUs.

    Args:
        settings: The run's config: ``model``, ``trainer``, ``data``.
        batch: Geometry of a step.
        horizon: Tokens of the run.
        budget: What the user assumes.

    Raises:
        ValueError: No model, a model that cannot be read, or another strategy or number of devices than can be
            planned with.
    """
    layout = layout_of(settings, batch)
    model = settings["model"]
    given = model.get("pretrained") or model.get("architecture")
    if given is None:
        raise ValueError("--gpu needs a model: give --model.pretrained or --model.architecture, as for fit.")
    size = model_size(given, batch.sequence_length, torch.bfloat16 if layout.compute_bytes == 2 else torch.float32)
    memory, device = peak_memory(size, layout), budget.device
    fits = memory.total <= device.usable
    timed = layout.compute_bytes == 2 and not layout.float8
    speed = layout.ranks * device.flops * budget.mfu / size.flops if timed else None
    hours = horizon / speed / 3600 if speed else None
    cost = hours * layout.ranks * budget.price if hours and budget.price is not None else None
    return Outlook(size, layout, memory, fits, {} if fits else mends(size, layout, device.usable), speed, hours, cost)


def outlook_here(settings: dict[str, Any], batch: Batch, horizon: int, device: str, ranks: int) -> Outlook | None:
    """`outlook` of a run on the devices that it was given.

    Args:
        settings: The run's config.
        batch: Geometry of a step.
        horizon: Tokens of the run.
        device: The devices' own name, such as ``NVIDIA H100 80GB HBM3``.
        ranks: How many there are.

    Returns:
        None where the device is none of `footprint.GPUS` or the strategy not ours.
    """
    gpu, trainer = next((name for name in GPUS if name in device), None), settings["trainer"]
    if gpu is None or not is_ours(trainer.get("strategy")):
        return None
    spread = {**settings, "trainer": {**trainer, "devices": ranks, "num_nodes": 1}}
    return outlook(spread, batch, horizon, Budget(gpu))


def is_ours(strategy: Any) -> bool:
    """Whether a config's strategy is the one whose memory is known."""
    return isinstance(strategy, dict) and strategy.get("class_path") == STRATEGY


def layout_of(settings: dict[str, Any], batch: Batch) -> Layout:
    """How a config spreads a run.

    Raises:
        ValueError: It is not told how many devices, or by a strategy that is not ours, or with tensor parallelism.
    """
    trainer = settings["trainer"]
    strategy = trainer.get("strategy")
    if not is_ours(strategy):
        raise ValueError(f"--gpu plans memory for {STRATEGY}, and trainer.strategy is {strategy!r}: add --config "
                         "hardware/sharded, which serves one GPU as well as many.")
    options = strategy.get("init_args") or {}
    if (tensor := options.get("tensor_parallel") or 1) > 1:
        raise ValueError(f"--gpu does not plan tensor parallelism, and tensor_parallel is {tensor}: leave it out to "
                         "plan the same ranks without.")
    ranks = devices(trainer.get("devices")) * int(trainer.get("num_nodes") or 1)
    micro = int(settings["data"].get("micro_batch") or 1)
    if batch.global_batch % (micro * ranks):
        raise ValueError(f"global_batch={batch.global_batch} is no multiple of micro_batch={micro} times {ranks} "
                         "ranks: change one of them.")
    dtype = options.get("compute_dtype")
    return Layout(ranks, options.get("replicas") or 1, 2 if dtype in ("bfloat16", "float8") else 4,
                  bool(options.get("activation_checkpointing")), micro, batch.sequence_length,
                  batch.global_batch // (micro * ranks), options.get("reduce_every_micro_batch", True),
                  dtype == "float8")


def devices(given: Any) -> int:
    """How many devices ``trainer.devices`` names on a node.

    Raises:
        ValueError: As many as are there, which only the node knows.
    """
    count = device_count(given)
    if count is None:
        raise ValueError(f"--gpu needs to know how many: trainer.devices is {given!r}. Give --trainer.devices N, and "
                         "--trainer.num_nodes for more than one node.")
    return count


def render_outlook(found: Outlook, budget: Budget) -> str:
    """The outlook as text for a terminal."""
    layout, memory, device = found.layout, found.memory, budget.device
    parts = {name: value for name, value in memory.describe().items() if name != "when"}
    how = [f"{layout.micro_batch} x {layout.sequence_length:,} tokens at once", f"{layout.accumulation} times a step",
           "bfloat16" if layout.compute_bytes == 2 else "float32", *["linear layers in float8"] * layout.float8,
           *["blocks recomputed"] * layout.recompute,
           *[f"{layout.replicas} replicas"] * (layout.replicas > 1)]
    share = f"{memory.total / device.memory:.0%} of {device.memory / GIB:.1f} GiB"
    mends = [f"{name} ({one.total / GIB:.1f} GiB)" for name, one in list(found.mends.items())[:2]]
    verdict = f"fits: {share}" if found.fits else (
        f"DOES NOT FIT: {share}, {SPARE:.0%} of which should be spared" + "; it would with " * bool(mends)
        + ", or ".join(mends))
    return "\n".join([
        f"{format_count(found.size.parameters)} parameters on {layout.ranks} x {budget.gpu}: {', '.join(how)}", "",
        tabulate([[f"{value / GIB:.2f}" for value in parts.values()]], list(parts),
                 disable_numparse=True, colalign=["right"] * len(parts)),
        f"GiB on each rank, at the worst moment ({memory.when}); {verdict}", "", *time_lines(found, budget)])


def time_lines(found: Outlook, budget: Budget) -> list[str]:
    """How long, and for how much."""
    if found.hours is None or found.tokens_per_second is None:
        return [f"{found.size.flops:.3g} FLOPs a token; time is told for bfloat16 only"]
    hours = f"{found.hours:,.1f} hours" + (f" ({found.hours / 24:.1f} days)" if found.hours > 48 else "")
    cost = f", {found.cost:,.0f} at {budget.price:g} an hour" if found.cost is not None else ""
    return [f"{found.size.flops:.3g} FLOPs a token; at {budget.mfu:.0%} of the peak (--mfu, assumed) "
            f"{format_count(round(found.tokens_per_second))} tokens/s: {hours}, "
            f"{found.hours * found.layout.ranks:,.0f} GPU hours{cost}"]
