"""The arms of `throughput.py`: each trains the same model on the same batches in its own way. Run that file, not this.

A process of this file is one rank of one arm in one round: ``throughput_arms.py ARM FOLDER``, started by torchrun. It
reads FOLDER/job.json and writes what it measured to FOLDER/rank-N.json.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from throughput_meter import BETAS, CLIP, DECAY, EPSILON, RATE, Data, Found, Job, Meter, adamw, recipe

from lit_cpt.parallel import leave


def read_model(job: Job) -> Any:
    """The Llama with its initial weights, in fp32, to train."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(job.weights, dtype=torch.float32).train()


def plain(job: Job) -> Found:
    """PyTorch and FSDP2 by hand, with a log line's cost every ten steps; checkpoints by torch's own `save`."""
    from functools import partial

    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.nn.functional import cross_entropy

    meter = Meter(job)
    device = torch.device(job.device, int(os.environ["LOCAL_RANK"]) if job.device == "cuda" else 0)
    mesh, model = init_device_mesh(job.device, (job.ranks,)), read_model(job)
    shard = partial(fully_shard, mesh=mesh, mp_policy=MixedPrecisionPolicy(job.compute_dtype, torch.float32))
    shard = shard if job.sharded else lambda module: module
    if job.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for block in model.model.layers:
        if job.compile:
            block.compile()
        shard(block)
    shard(model).to(device)
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.total, RATE / 100)

    def loss_of(batch: Any) -> Any:
        batch = batch.to(device, non_blocking=True)
        with torch.autocast(job.device, job.compute_dtype, not job.sharded and job.device == "cuda"):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    data = Data(job, meter)
    for step, batch in enumerate(data.loader(job.ranks), 1):
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        if step % 10 == 0:
            loss.item()
        if step == job.total:
            break

    def save(name: str) -> None:
        weights, moments = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=str(job.place(name)))

    def validate() -> None:
        model.eval()
        with torch.no_grad():
            mean = torch.stack([loss_of(batch) for batch in data.val_dataloader()[0]]).mean()
        dist.all_reduce(mean)
        meter.found.loss = float(mean) / job.ranks

    meter.save(save)
    meter.found.validation = meter.seconds(validate)
    return meter.found


def ours(job: Job) -> Found:
    """`fit` as base.yaml and a file of hardware/ set it up: fsdp.yaml, or that of one device."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger

    from lit_cpt.callbacks import GracefulStopCallback, PhaseSwitchCallback, RunCheckpointCallback, RunProgressBar
    from lit_cpt.checkpoints import finish_saving, save
    from lit_cpt.module import ContinuedPretraining
    from lit_cpt.parallel import ShardedStrategy

    meter, run = Meter(job), str(job.place("run"))

    class Measurement(pl.Callback):
        """Of what happens between steps."""

        def on_validation_start(self, trainer: Any, module: Any) -> None:
            finish_saving(trainer)  # of the checkpoint before the validation: the first, which does not count
            meter.settle()
            self.began = time.perf_counter()

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            meter.settle()
            meter.found.validation = time.perf_counter() - self.began
            meter.found.loss = float(trainer.callback_metrics["val/source/loss"])
            meter.found.stall = meter.seconds(lambda: save(trainer, Path(run) / "second.ckpt"))

    dtype = str(job.compute_dtype).removeprefix("torch.")
    strategy: Any = ShardedStrategy(compute_dtype=dtype, activation_checkpointing=job.recompute,
                                    compile=job.compile) if job.sharded else "auto"
    mixed = "bf16-mixed" if job.device == "cuda" and not job.sharded else "32-true"
    trainer = pl.Trainer(max_epochs=1, accelerator="gpu" if job.device == "cuda" else "cpu", devices=job.ranks,
                         strategy=strategy, precision=mixed, log_every_n_steps=10,
                         val_check_interval=job.total, num_sanity_val_steps=0, default_root_dir=run,
                         logger=TensorBoardLogger(run, name="", version=""), enable_model_summary=False,
                         use_distributed_sampler=False,
                         callbacks=[PhaseSwitchCallback(), GracefulStopCallback(), RunCheckpointCallback(),
                                    RunProgressBar(), Measurement()])
    trainer.fit(ContinuedPretraining(recipe(job), pretrained=job.weights), datamodule=Data(job, meter))
    return meter.found


def huggingface(job: Job) -> Found:
    """HF Trainer; over several ranks with its FSDP2."""
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainingArguments

    meter = Meter(job)
    data = Data(job, meter)

    def inputs(block: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": block[:, :-1], "labels": block[:, 1:], "shift_labels": block[:, 1:]}

    class Fed(Trainer):
        """Over the same batches."""

        def get_train_dataloader(self) -> Any:
            return map(inputs, data.loader(job.ranks))

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            loader = data.val_dataloader()[0]
            return DataLoader(loader.dataset, loader.batch_size,
                              collate_fn=lambda blocks: inputs(loader.collate_fn(blocks)))

    sharded = {"fsdp": True, "fsdp_config": {
        "version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"], "state_dict_type": "SHARDED_STATE_DICT",
        "activation_checkpointing": job.recompute}} if job.ranks > 1 else {"gradient_checkpointing": job.recompute}
    settings = TrainingArguments(
        output_dir=str(job.place("run")), max_steps=job.total, learning_rate=RATE, weight_decay=DECAY,
        per_device_train_batch_size=job.sequences, logging_steps=10, save_strategy="no", report_to=[],
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.01}, max_grad_norm=CLIP,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=EPSILON, use_cpu=job.device == "cpu",
        bf16=job.device == "cuda", torch_compile=job.compile, prediction_loss_only=True,
        per_device_eval_batch_size=job.sequences, **sharded)
    model = read_model(job)
    model.config.use_cache = False
    trainer = Fed(model, settings)
    if job.ranks > 1 and not trainer.accelerator.is_fsdp2:
        raise RuntimeError(f"on {job.device} accelerate does not shard: it replicates the model "
                           f"({trainer.accelerator.distributed_type}); it shards on GPUs")
    trainer.train()

    def save(_: str) -> None:
        trainer.state.global_step += 1  # which names the folder
        trainer._save_checkpoint(trainer.model_wrapped, None)

    meter.save(save)
    meter.found.validation = meter.seconds(
        lambda: setattr(meter.found, "loss", trainer.evaluate()["eval_loss"]))
    return meter.found


def litgpt(job: Job) -> Found:
    """Litgpt's GPT and its `pretrain.fit`, from the same weights."""
    import lightning as L
    from lightning.fabric.strategies import FSDPStrategy
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.model import GPT, Block
    from litgpt.pretrain import fit, validate
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama

    meter, given = Meter(job), job.config
    config = Config(
        name="llama", block_size=job.length, vocab_size=given["vocab_size"], padded_vocab_size=given["vocab_size"],
        n_layer=given["num_hidden_layers"], n_head=given["num_attention_heads"], n_embd=given["hidden_size"],
        n_query_groups=given["num_key_value_heads"], intermediate_size=given["intermediate_size"],
        rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
        norm_eps=given["rms_norm_eps"], mlp_class_name="LLaMAMLP", rope_base=500_000)
    strategy: Any = "auto" if job.ranks == 1 else FSDPStrategy(
        auto_wrap_policy={Block}, state_dict_type="sharded", sharding_strategy="FULL_SHARD",
        activation_checkpointing_policy={Block} if job.recompute else None)
    fabric = L.Fabric(accelerator=job.device, devices=job.ranks, strategy=strategy,
                      precision="bf16-mixed" if job.device == "cuda" else "32-true")
    fabric.launch()
    fabric.print = lambda *_: None
    weights: dict[str, Any] = {}
    copy_weights_hf_llama(config, {}, weights, read_model(job).state_dict())
    model: Any = GPT(config)
    model.load_state_dict(weights)
    del weights
    if given["tie_word_embeddings"]:
        model.transformer.wte.weight = model.lm_head.weight
    model.max_seq_length = job.length
    model = fabric.setup(torch.compile(model) if job.compile else model)
    optimizer = fabric.setup_optimizers(adamw(model))
    data = Data(job, meter)
    loader, validation = fabric.setup_dataloaders(data.loader(job.ranks), data.val_dataloader()[0],
                                                  use_distributed_sampler=False)
    train = TrainArgs(save_interval=None, log_interval=10, global_batch_size=job.ranks * job.sequences,
                      micro_batch_size=job.sequences, lr_warmup_steps=0, max_norm=CLIP, min_lr=RATE / 100,
                      max_tokens=job.total * job.ranks * job.sequences * job.length)
    evaluation = EvalArgs(interval=10**9, max_iters=job.validation, final_validation=False)
    state = {"model": model, "optimizer": optimizer, "train_dataloader": loader, "iter_num": 0, "step_count": 0}
    fit(fabric, job.ranks, state, loader, validation, job.place("run"), None, train, evaluation)
    meter.save(lambda name: fabric.save(str(job.place(name)), state))
    meter.found.validation = meter.seconds(lambda: setattr(
        meter.found, "loss", float(fabric.all_reduce(validate(fabric, model, validation, job.validation)))))
    return meter.found


ARMS = {"plain": plain, "ours": ours, "huggingface": huggingface, "litgpt": litgpt}


def main() -> None:
    arm, folder = sys.argv[1:]
    job, rank = Job(**json.loads((Path(folder) / "job.json").read_text())), int(os.environ["RANK"])
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if job.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(1)
    try:
        result: dict[str, Any] = asdict(ARMS[arm](job))
    except Exception as error:
        result = {"why": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        logging.disable(logging.NOTSET)
        logging.exception("%s", arm)
    (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(result))
    if "why" in result:
        os._exit(1)  # the others may wait for this rank
    leave()
    os._exit(0)  # all is written; an interpreter that ends under gloo's threads may abort


if __name__ == "__main__":
    main()
