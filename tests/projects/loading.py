"""Loads the cases of ``CASES.json`` into shards on every rank, which write what they found to ``FOLDER/rank-N.json``.

Start it with torchrun: ``loading.py CASES.json FOLDER``. A case has ``pretrained``, a folder for each rank, and
``replicas``; found are what was said, and whether the model is, to the bit, the one that rank 0 reads alone.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from lit_cpt.parallel import mesh_of, shard
from lit_cpt.sharded_loading import build_sharded
from lit_cpt.weights import build_model

SAID: list[str] = []


class Listener(logging.Handler):
    """Keeps what is said."""

    def emit(self, record: logging.LogRecord) -> None:
        SAID.append(record.getMessage())


def strategy_of(replicas: int) -> Any:
    """What `build_sharded` asks of a strategy."""
    mesh = mesh_of("cpu", dist.get_world_size(), replicas)

    def broadcast(value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def everywhere(decision: bool) -> bool:
        decided = torch.tensor(int(decision))
        dist.all_reduce(decided, dist.ReduceOp.MIN)
        return bool(decided)

    return SimpleNamespace(is_global_zero=dist.get_rank() == 0, broadcast=broadcast, shard=lambda one: shard(one, mesh),
                           root_device=torch.device("cpu"), reduce_boolean_decision=everywhere)


def found(case: dict[str, Any]) -> dict[str, Any]:
    """What loading a case comes to."""
    SAID.clear()
    try:
        model: Any = build_sharded(strategy_of(case["replicas"]), case["pretrained"][dist.get_rank()], None)
    except ValueError as error:
        return {"refused": str(error)}
    whole = build_model(case["pretrained"][0], None)
    mine = {name: value.full_tensor() for name, value in model.state_dict().items()}
    buffers = dict(model.named_buffers())
    return {"said": SAID.copy(), "dtype": str(model.dtype), "equal":
            mine.keys() == whole.state_dict().keys()
            and all(torch.equal(mine[name], value) for name, value in whole.state_dict().items())
            and all(torch.equal(buffers[name], value) for name, value in whole.named_buffers())
            and whole.generation_config == model.generation_config
            and (model.lm_head.weight is model.model.embed_tokens.weight) == whole.config.tie_word_embeddings}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    log = logging.getLogger("lit_cpt")
    log.setLevel(logging.INFO)
    log.addHandler(Listener())
    cases = json.loads(Path(sys.argv[1]).read_text())
    results = {name: found(case) for name, case in cases.items()}
    (Path(sys.argv[2]) / f"rank-{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


main()
