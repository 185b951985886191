"""Training throughput of `fit` beside plain PyTorch + FSDP2, HF Trainer and litgpt: one model, one stream of batches.

Every arm begins with the same weights and makes the same steps with the same AdamW, which their validation losses
show. An arm in a round is a process group of its own; arms take turns. Loaders are the same in all (`loader.py`
compares loaders), so "data wait" tells what a loop adds to it. Weights and moments are fp32 and, on GPUs, products
bf16. One rank is not sharded, but for `--sharded`, and for `--compile` and `--recompute`, which lit_cpt offers under
FSDP2 only: then lit_cpt and plain PyTorch are. A validation of 8 batches is given as a share of it and the timed steps.

    python benchmarks/throughput.py [--quick] [--json FILE] [--model tiny|1b|8b] [--ranks N] [--device cpu|cuda]
                                    [--sharded] [--compile] [--recompute] [--arms NAME ...]

litgpt is none of our dependencies: `pip install --no-deps litgpt`. What cannot run is told below the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from litdata import TokensLoader
from litdata.streaming import Cache
from measure import alternate, device, parser, write
from tabulate import tabulate
from throughput_meter import Job
from transformers.utils.logging import disable_progress_bar

from lit_cpt.footprint import peak_flops as known_peak
from lit_cpt.manifest import Manifest, Split, TokenizerFacts
from lit_cpt.model_size import model_size
from lit_cpt.weights import build_model

LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 320, "intermediate_size": 1088, "num_hidden_layers": 6, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False},
}
BATCHES = {"tiny": (4, 128), "1b": (2, 4096), "8b": (1, 4096)}  # sequences in a rank's batch, tokens in a sequence
PLAIN, OURS, ARMS = "plain", "ours", ("plain", "ours", "huggingface", "litgpt")
NAMES = {"plain": "plain PyTorch", "ours": "lit_cpt fit", "huggingface": "HF Trainer", "litgpt": "litgpt"}
LARGEST_STEP = 8  # a token is at most this far from the one before it: something that a model can learn


def peak_flops(given: float | None) -> float | None:
    """FLOP/s of one rank's device, if known; a CPU's are not."""
    if given is not None or not torch.cuda.is_available():
        return given and given * 1e12
    return known_peak(torch.cuda.get_device_name())


def flops_per_token(job: Job) -> float:
    """Model FLOPs of training on a token."""
    return model_size(job.config, job.length, job.compute_dtype).flops


def utilised(rounds: Sequence[dict[str, float]], job: Job, peak: float) -> list[float]:
    """MFU of each round: model FLOPs a second over the devices' peak."""
    return [one["rate"] * flops_per_token(job) / job.ranks / peak for one in rounds]


def write_split(folder: Path, blocks: int, length: int, vocabulary: int) -> Split:
    """Blocks of tokens that go up by random small steps."""
    cache = Cache(str(folder), chunk_size=64 * length, item_loader=TokensLoader())
    for index in range(blocks):
        generator = torch.Generator().manual_seed(index)
        steps = torch.randint(1, LARGEST_STEP + 1, (length,), generator=generator)
        cache._add_item(index, (steps.cumsum(0) % vocabulary).to(torch.int32))
    cache.done()
    cache.merge()
    return Split(blocks * length, blocks, 1)


def write_source(folder: Path, job: Job) -> None:
    """As many blocks as an arm asks for, as a prepared source."""
    batch, vocabulary = job.ranks * job.sequences, job.config["vocab_size"]
    trained = write_split(folder, batch * (job.total + 8), job.length + 1, vocabulary)
    held_out = write_split(folder / "validation", batch * job.validation, job.length + 1, vocabulary)
    facts = TokenizerFacts("random", "0" * 64, vocabulary, "<eos>", 0)
    Manifest(facts, "int32", trained, held_out, 0, 0, (), (), {}, {}).save(folder)


def run(arm: str, job: Job, failed: dict[str, str]) -> dict[str, float] | None:
    """One round of one arm, in processes of its own; None where it cannot run, with the reason in ``failed``."""
    if arm in failed:
        return None
    folder = Path(job.folder)
    shutil.rmtree(folder / "written", ignore_errors=True)
    for old in folder.glob("rank-*.json"):
        old.unlink()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.ranks)]
    ran = subprocess.run([*launcher, str(Path(__file__).with_name("throughput_arms.py")), arm, job.folder],
                         capture_output=True, text=True, check=False)
    ranks = [json.loads(file.read_text()) for file in sorted(folder.glob("rank-*.json"))]
    if ran.returncode or len(ranks) != job.ranks:
        failed[arm] = next((one["why"] for one in ranks if "why" in one), "it ended without a word")
        if arm in (PLAIN, OURS):
            raise SystemExit(f"{NAMES[arm]}: {failed[arm]}\n{ran.stderr[-4000:]}")
        return None
    return measured(ranks, job)


def measured(ranks: Sequence[dict[str, float]], job: Job) -> dict[str, float]:
    """What the ranks found, in one."""
    tokens = job.ranks * job.sequences * job.length * job.steps
    slowest = {name: max(rank[name] for rank in ranks) for name in ranks[0]}
    return {"rate": tokens / slowest["wall"], "cpu_rate": tokens / sum(rank["cpu"] for rank in ranks),
            "memory": slowest["memory"] / 2**20, "wait": 100 * slowest["wait"] / slowest["wall"],
            "stall": slowest["stall"], "loss": ranks[0]["loss"],
            "share": 100 * slowest["validation"] / (slowest["validation"] + slowest["wall"])}


def cell(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Median and range."""
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})" if low != high else middle


def columns(job: Job, peak: float | None) -> dict[str, Callable[[list[Any], list[Any]], str]]:
    """Of the table: title to what stands there, from the rounds of an arm and of plain PyTorch."""
    def of(name: str, form: str) -> Callable[[list[Any], list[Any]], str]:
        return lambda mine, _: cell([one[name] for one in mine], form)

    def over(name: str) -> Callable[[list[Any], list[Any]], str]:
        return lambda mine, plain: cell(ratios(mine, plain, name), "{:.3f}")

    return {"tokens/s": of("rate", "{:,.0f}"), "over plain": over("rate"),
            **({"tokens per CPU second": of("cpu_rate", "{:,.0f}"), "over plain ": over("cpu_rate")}
               if job.device == "cpu" else {}),
            **({"MFU": lambda mine, _: cell(utilised(mine, job, peak), "{:.1%}")} if peak else {}),
            "peak memory, MiB": of("memory", "{:,.0f}"), "data wait, %": of("wait", "{:.2f}"),
            "checkpoint stall, s": of("stall", "{:.2f}"), "validation, %": of("share", "{:.1f}"),
            "validation loss": of("loss", "{:.5f}")}


def ratios(mine: Sequence[dict[str, float]], plain: Sequence[dict[str, float]], name: str) -> list[float]:
    """``mine`` over ``plain``, round by round: pairs share the machine's mood."""
    return [one[name] / other[name] for one, other in zip(mine, plain, strict=True)]


def table(found: dict[str, list[Any]], failed: dict[str, str], job: Job, peak: float | None) -> str:
    """A line for each figure, a column for each arm that ran, and why others did not."""
    ran = [arm for arm in found if arm not in failed]
    lines = [[title, *(figure(found[arm], found[PLAIN]) for arm in ran)]
             for title, figure in columns(job, peak).items()]
    reasons = "".join(f"\n{NAMES[arm]} did not run: {why}" for arm, why in failed.items())
    return tabulate(lines, ["", *(NAMES[arm] for arm in ran)], tablefmt="github", disable_numparse=True) + reasons


def arguments() -> argparse.Namespace:
    accepted = parser(__doc__)
    cuda = torch.cuda.is_available()
    accepted.add_argument("--model", choices=MODELS, default="tiny", help="shape of the Llama; weights are random")
    accepted.add_argument("--ranks", type=int, default=max(1, torch.cuda.device_count()) if cuda else 2)
    accepted.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    accepted.add_argument("--rounds", type=int, help="of every arm (5; quick 2)")
    accepted.add_argument("--steps", type=int, help="timed in each round (30; quick 12)")
    accepted.add_argument("--batch", type=int, help="sequences in a batch of one rank (tiny 4, 1b 2, 8b 1)")
    accepted.add_argument("--workers", type=int, default=2 if cuda else 0, help="loader processes per rank")
    accepted.add_argument("--sharded", action="store_true", help="FSDP2 on one rank too, for lit_cpt and plain PyTorch")
    accepted.add_argument("--compile", action="store_true", help="compile, each arm in its way")
    accepted.add_argument("--recompute", action="store_true", help="recompute activations block by block")
    accepted.add_argument("--peak-tflops", type=float, help="of one device, where the table has none; for MFU")
    accepted.add_argument("--arms", nargs="+", choices=ARMS[1:], default=ARMS[1:], help="to run beside plain PyTorch")
    return accepted.parse_args()


def main() -> None:
    disable_progress_bar()  # of transformers
    given = arguments()
    sequences, length = BATCHES[given.model]
    rounds, steps = given.rounds or (2 if given.quick else 5), given.steps or (12 if given.quick else 30)
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        job = Job(folder, given.device, given.ranks,
                  given.ranks > 1 or given.sharded or given.compile or given.recompute,
                  {**LLAMA, **MODELS[given.model], "max_position_embeddings": length}, given.batch or sequences, length,
                  5, steps, 8, given.workers, given.compile, given.recompute)
        write_source(Path(folder) / "source", job)
        torch.manual_seed(0)
        build_model(None, job.config).to(torch.bfloat16).save_pretrained(job.weights)
        (Path(folder) / "job.json").write_text(json.dumps(asdict(job)))
        found: Any = alternate({arm: lambda a=arm: run(a, job, failed) for arm in (PLAIN, *given.arms)}, rounds)
    peak = peak_flops(given.peak_tflops)
    print(f"\n{given.model}, {job.ranks} x {job.sequences} x {length} tokens a step, {rounds} rounds of {steps} steps, "
          f"{'FSDP2' if job.sharded else 'not sharded'}; "
          f"{device()}; {flops_per_token(job):.3g} FLOPs per token\n")
    print(table(found, failed, job, peak))
    figures = {"throughput.mfu": statistics.median(utilised(found[OURS], job, peak))
               } if peak and OURS in given.arms and OURS not in failed else {}
    for arm in given.arms:
        if arm not in failed:
            figures[f"throughput.{arm}_ratio"] = statistics.median(ratios(found[arm], found[PLAIN], "rate"))
            figures[f"throughput.{arm}_cpu_ratio"] = statistics.median(ratios(found[arm], found[PLAIN], "cpu_rate"))
    write(given.json, figures, ("torch", "lightning", "transformers", "litdata"))


if __name__ == "__main__":
    main()
