"""Peak memory and CPU time of the loss at a large vocabulary: all logits, torch's chunks (2.13 and later), and ours.

Forward and backward of the head and the cross-entropy, each in a process of its own; memory is what the process's
peak resident size grows by. fp32 on a CPU, one thread, arms in turn.

    python benchmarks/loss.py [--quick] [--json FILE]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable

from measure import alternate, parser, ratios, show, write

VOCABULARY, WIDTH = 256_000, 128
PROGRAM = """
import resource, sys, time, torch
from lit_cpt.losses import linear_cross_entropy
way, rows, vocabulary, width = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)
hidden, weight = torch.randn(rows, width, requires_grad=True), torch.randn(vocabulary, width).requires_grad_()
targets = torch.randint(0, vocabulary, (rows,))
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
if way == "all logits":
    torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets).backward()
elif way == "torch's function":
    options = torch.nn.LinearCrossEntropyOptions()
    torch.nn.functional.linear_cross_entropy(hidden, weight, targets, options=options).backward()
else:
    linear_cross_entropy(hidden, weight, targets)[0].backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10, time.process_time() - began)
"""
WAYS = ("all logits", "torch's function", "chunks of our own")


def measured(way: str, rows: int) -> tuple[float, float]:
    """MiB and seconds of one loss."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM, way, str(rows), str(VOCABULARY), str(WIDTH)],
                         capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    memory, seconds = map(float, ran.stdout.split())
    return memory, seconds


def main() -> None:
    given = parser(__doc__).parse_args()
    rows, rounds = (512, 1) if given.quick else (1024, 3)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}

    def arm(way: str) -> Callable[[], float]:
        def once() -> float:
            memory, took = measured(way, rows)
            seconds[way].append(took)
            return memory
        return once

    memory = alternate({way: arm(way) for way in WAYS}, rounds)
    show(f"peak memory, MiB: {rows} positions, width {WIDTH}, vocabulary {VOCABULARY:,}", memory, "{:.0f}")
    show("CPU seconds", seconds, "{:.2f}")
    torchs, own = (statistics.median(ratios(memory, way, WAYS[0])) for way in WAYS[1:])
    print(f"\nmemory over all logits: torch's function {torchs:.3f}, chunks of our own {own:.3f}")
    write(given.json, {"loss.memory_ratio": torchs, "loss.own_memory_ratio": own,
                       "loss.time_ratio": statistics.median(ratios(seconds, WAYS[1], WAYS[0])),
                       "loss.own_time_ratio": statistics.median(ratios(seconds, WAYS[2], WAYS[0]))}, ["torch"])


if __name__ == "__main__":
    main()
