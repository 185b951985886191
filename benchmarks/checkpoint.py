"""How long training waits for a checkpoint: until it is on the disk, and until it is copied and training goes on.

Two gloo ranks on one machine train a Llama of random weights under `ShardedStrategy`; checkpoints of the two kinds
take turns, with training steps between them. The first of each is left out: it allocates what later ones reuse.

    python benchmarks/checkpoint.py [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import parser, ratios, show, write

WAITING, GOING_ON = "training waits for the disk", "training goes on"
VOCABULARY, LENGTH, BETWEEN = 16_000, 16, 6


def work(folder: Path, layers: int, rounds: int) -> None:
    """One rank: train, save in turns, and let rank 0 write what it took."""
    import lightning.pytorch as pl
    import torch

    from lit_cpt.parallel import ShardedStrategy, leave
    from lit_cpt.sharded_loading import build_sharded

    config = {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 768, "intermediate_size": 2048,
              "num_hidden_layers": layers, "num_attention_heads": 12, "tie_word_embeddings": True}

    class Model(pl.LightningModule):
        """A language model on random tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.model: Any = None

        def configure_model(self) -> None:
            if self.model is None:
                self.model = build_sharded(self.trainer.strategy, None, config).train()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-5, fused=True)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.model(input_ids=batch, labels=batch, use_cache=False).loss

    class Saver(pl.Callback):
        """A checkpoint every few steps, of the two kinds in turn."""

        def __init__(self) -> None:
            self.found: dict[str, list[float]] = {WAITING: [], GOING_ON: []}

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            turn, rest = divmod(trainer.global_step, BETWEEN)
            if rest:
                return
            strategy, kind = trainer.strategy, (WAITING, GOING_ON)[turn % 2]
            strategy.finish_saving()
            strategy.wait_for_checkpoints = kind == WAITING
            strategy.barrier()
            began = time.perf_counter()
            trainer.save_checkpoint(folder / f"{turn % 2}.ckpt")
            self.found[kind].append(time.perf_counter() - began)

    torch.set_num_threads(1)
    saver, model = Saver(), Model()
    tokens = torch.randint(0, VOCABULARY, (BETWEEN * 2 * (rounds + 1), LENGTH))
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=ShardedStrategy(), max_epochs=1, logger=False,
                         enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                         use_distributed_sampler=False, callbacks=[saver], default_root_dir=str(folder))
    trainer.fit(model, torch.utils.data.DataLoader(tokens, batch_size=1))
    if trainer.is_global_zero:
        size = sum(parameter.numel() for parameter in model.parameters())
        (folder / "found.json").write_text(json.dumps([size, {kind: all_of[1:] for kind, all_of in saver.found.items()},
                                                       {kind: all_of[0] for kind, all_of in saver.found.items()}]))
    leave()
    os._exit(0)


def main() -> None:
    given = parser(__doc__).parse_args()
    layers, rounds = (4, 2) if given.quick else (12, 5)
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        ran = subprocess.run([*launcher, __file__, folder, str(layers), str(rounds)], capture_output=True, text=True,
                             check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if ran.returncode:
            raise SystemExit(ran.stderr[-4000:])
        size, found, firsts = json.loads((Path(folder) / "found.json").read_text())
    show(f"seconds that training waits: {size:,} parameters and AdamW's moments, 2 ranks", found)
    print("the first: " + ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in firsts.items()))
    stalls = ratios(found, GOING_ON, WAITING)
    print(f"\nwait over wait for the disk: {statistics.median(stalls):.3f} ({min(stalls):.3f} to {max(stalls):.3f})")
    write(given.json, {"checkpoint.stall_ratio": statistics.median(stalls)}, ["torch", "lightning"])


if __name__ == "__main__":
    if len(sys.argv) == 4 and "WORLD_SIZE" in os.environ:
        work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
