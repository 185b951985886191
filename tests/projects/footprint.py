"""Measures a rank's peak memory over steps of a sharded model: ``footprint.py SETTINGS.json`` under torchrun.

Rank 0 prints one JSON object, in bytes: the peak of resident memory beyond what the process held before there was a
model, less what its libraries hold for themselves by the end.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from lit_cpt.losses import NextTokenLoss
from lit_cpt.parallel import mesh_of, shard
from lit_cpt.weights import parameter_groups

GIVEN = json.loads(Path(sys.argv[1]).read_text())


def kernel_says(file: str, key: str) -> int:
    """A line of /proc, in bytes."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def build(ranks: int) -> torch.nn.Module:
    """A sharded model with weights of its own."""
    config = AutoConfig.for_model(**GIVEN["config"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    shard(model, mesh_of("cpu", ranks, 1), getattr(torch, GIVEN["dtype"]), GIVEN["recompute"])
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.to_local().normal_(0, 0.02)
    for value in model.state_dict(keep_vars=True).values():
        value._is_hf_initialized = True
    model.initialize_weights()
    return model.train()


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    before = kernel_says("smaps_rollup", "Rss")
    model = build(dist.get_world_size())
    loss_of, optimizer = NextTokenLoss(model), torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4, fused=True)
    shape = (GIVEN["micro_batch"], GIVEN["length"] + 1)
    for step in range(3):
        if step == 2:  # moments are there, buffers are warm
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        for _ in range(GIVEN["accumulation"]):
            loss_of(torch.randint(0, GIVEN["config"]["vocab_size"], shape)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    peak = kernel_says("status", "VmHWM") - before
    states = sum(value.to_local().nbytes for state in optimizer.state.values() for name, value in state.items()
                 if name != "step") + sum(parameter.to_local().nbytes for parameter in model.parameters())
    rest = kernel_says("smaps_rollup", "Rss") - before - states
    if dist.get_rank() == 0:
        print(json.dumps({"peak": peak - rest, "states": states, "libraries": rest}), flush=True)
    dist.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
