"""Memory of loading a pretrained model into shards: each rank's peak beside what it holds in the end.

Two gloo ranks load a Llama from a bf16 folder into fp32 shards: each rank reading its slices, rank 0 reading all and
handing out (what lit_cpt does where the first cannot be done), and each rank reading the whole model before it is
sharded. The peak is of private memory, looked at every millisecond: the mapped file is the page cache's.

    python benchmarks/load.py [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from measure import alternate, parser, write
from tabulate import tabulate
from transformers.utils.logging import disable_progress_bar

from lit_cpt.parallel import mesh_of, shard
from lit_cpt.sharded_loading import build_sharded
from lit_cpt.weights import build_model

RANKS = 2
SIZES = {"model_type": "llama", "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8,
         "hidden_size": 1024, "vocab_size": 32_000}
MIB = 2**20
ARMS = ("each reads its slices", "rank 0 hands out", "each reads all")


class Peak(threading.Thread):
    """The most private memory of this process while it runs, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.going = 0, True

    def run(self) -> None:
        """Look again and again."""
        while self.going:
            lines = Path("/proc/self/status").read_text().splitlines()
            now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
            self.most = max(self.most, now)
            time.sleep(0.001)


def load(arm: str, folder: str) -> Any:
    """The model, sharded over the ranks."""
    mesh = mesh_of("cpu", RANKS, 1)
    if arm == ARMS[2]:
        return shard(build_model(folder, None), mesh)

    def broadcast(value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    strategy = SimpleNamespace(is_global_zero=dist.get_rank() == 0, broadcast=broadcast,
                               root_device=torch.device("cpu"), shard=lambda model: shard(model, mesh),
                               reduce_boolean_decision=lambda found: found and arm == ARMS[0])
    return build_sharded(strategy, folder, None)


def rank(arm: str, folder: str) -> None:
    """One rank of one arm; rank 0 prints the worst rank's figures."""
    disable_progress_bar()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    build_model(None, {**SIZES, "num_hidden_layers": 1, "vocab_size": 64})  # what is imported counts for neither
    dist.all_reduce(torch.zeros(1))
    before, peak = Peak(), Peak()
    before.start()
    time.sleep(0.05)
    before.going = False
    before.join()
    peak.start()
    began = time.perf_counter()
    model = load(arm, folder)
    dist.barrier()
    seconds = time.perf_counter() - began
    peak.going = False
    peak.join()
    found = torch.tensor([peak.most - before.most], dtype=torch.int64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    held = sum(parameter.to_local().nbytes for parameter in model.parameters())
    block = sum(parameter.numel() * 4 for parameter in model.model.layers[0].parameters())
    if dist.get_rank() == 0:
        print(json.dumps({"peak": int(found), "shard": held, "block": block, "seconds": seconds}), flush=True)
    dist.destroy_process_group()
    os._exit(0)


def measured(arm: str, folder: str) -> dict[str, float]:
    """One round of an arm."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536",
                   "MALLOC_TRIM_THRESHOLD_": "65536"}  # what is freed goes back at once
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    ran = subprocess.run([*launcher, __file__, arm, folder], env=environment, capture_output=True, text=True,
                         check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    result: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return result


def main() -> None:
    given = parser(__doc__).parse_args()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = build_model(None, {**SIZES, "num_hidden_layers": 4 if given.quick else 8})
        model.to(torch.bfloat16).save_pretrained(folder)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        arms = {arm: lambda arm=arm: measured(arm, folder) for arm in ARMS}
        found: Any = alternate(arms, 1 if given.quick else 3)
    rows = []
    for arm, rounds in found.items():
        peak = statistics.median(one["peak"] for one in rounds)
        allowed = 1.1 * (rounds[0]["shard"] + rounds[0]["block"])
        rows.append([arm, f"{peak / MIB:.0f}", f"{rounds[0]['shard'] / MIB:.0f}", f"{allowed / MIB:.0f}",
                     f"{peak / rounds[0]['shard']:.2f}", f"{statistics.median(one['seconds'] for one in rounds):.1f}"])
    print(f"{parameters / 1e6:.0f}M parameters, {RANKS} gloo ranks, worst rank, MiB\n")
    print(tabulate(rows, ["", "peak", "shard", "shard + block, and 10 %", "peak / shard", "seconds"],
                   tablefmt="github", disable_numparse=True))
    mine = found[ARMS[0]]
    write(given.json, {"load.peak_over_shard": statistics.median(one["peak"] for one in mine) / mine[0]["shard"]},
          ("torch", "transformers"))


if __name__ == "__main__":
    rank(*sys.argv[1:]) if "RANK" in os.environ else main()
