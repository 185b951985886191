"""Products in 8 bits: which layers, near bfloat16, and a run whose checkpoints are those of any other."""

from __future__ import annotations

import logging
import math
import sys

import lightning.pytorch as pl
import pytest
import torch
from conftest import VOCABULARY, fit
from safetensors.torch import load_file
from test_module import data_of, module_of
from test_parallel import save_tokenizer
from torch import nn

from lit_cpt.callbacks import RunCheckpointCallback
from lit_cpt.cli import main
from lit_cpt.float8 import check_device, multiply_in_float8
from lit_cpt.parallel import ShardedStrategy, blocks_of
from lit_cpt.weights import build_model

pytest.importorskip("torchao", reason='needs pip install "lit-cpt[fp8]"')
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
LLAMA = {"model_type": "llama", **SIZES}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
CPU = torch.device("cpu")
STEPS, STOP = 10, 6


def converted(model):
    """The layers that multiply in 8 bits."""
    return {name for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and type(module) is not nn.Linear}


def blocks_linear(model):
    """The linear layers of the blocks."""
    mine = {id(module) for block in blocks_of(model) for module in block.modules()}
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in mine}


@pytest.mark.parametrize("architecture", [
    LLAMA, {**LLAMA, "tie_word_embeddings": True, "attention_bias": True}, {**SIZES, "model_type": "nemotron"},
    {"model_type": "t5", "vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2,
     "num_heads": 2, "feed_forward_proj": "gated-gelu"},
], ids=lambda one: one["model_type"])
def test_all_linear_layers_of_the_blocks_are_converted_and_no_other_and_names_stay(architecture, caplog):
    with torch.device("meta"):
        model = build_model(None, architecture)
    before, layers = dict(model.named_parameters()), blocks_linear(model)
    with caplog.at_level(logging.INFO, "lit_cpt"):
        multiply_in_float8(model, blocks_of(model), CPU)
    assert converted(model) == layers
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert f"{len(layers)} linear layers multiply in float8, which this CPU emulates" in caplog.text


def test_a_layer_with_a_size_that_is_no_multiple_of_16_is_left_as_it_is():
    model = build_model(None, {**LLAMA, "intermediate_size": 40})
    multiply_in_float8(model, blocks_of(model), CPU)
    assert converted(model) == {name for name in blocks_linear(model) if "self_attn" in name}


def kept_and_loss(model):
    """Bytes that a forward pass keeps for the backward pass, and its loss; gradients are left in the model."""
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return sum(kept.values()), float(loss.detach())


def test_a_forward_keeps_what_bfloat16_keeps_and_loss_and_gradients_come_close():
    found = []
    for eight in (False, True):
        torch.manual_seed(0)
        model = build_model(None, LLAMA).train().bfloat16()
        if eight:
            multiply_in_float8(model, blocks_of(model), CPU)
        found.append((*kept_and_loss(model), torch.cat([one.grad.float().flatten() for one in model.parameters()])))
    (bytes_half, loss_half, slopes_half), (bytes_eight, loss_eight, slopes_eight) = found
    assert bytes_eight == bytes_half
    assert loss_eight != loss_half
    assert loss_eight == pytest.approx(loss_half, abs=0.01)
    assert float((slopes_eight - slopes_half).norm()) < 0.1 * float(slopes_half.norm())


# What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [
    {**SIZES, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    {**SIZES, "model_type": "qwen3_moe", "num_experts": 4, **EXPERTS},
    {**SIZES, "model_type": "deepseek_v3", "n_routed_experts": 4, "first_k_dense_replace": 1,
     **EXPERTS},
], ids=lambda one: one["model_type"])
def test_a_mixture_of_experts_is_refused(architecture):
    with torch.device("meta"):
        model = build_model(None, architecture)
    with pytest.raises(ValueError, match=rf"compute_dtype='float8': {type(model).__name__} is a mixture of experts"):
        multiply_in_float8(model, blocks_of(model), CPU)
    assert not converted(model)


def test_a_model_without_a_layer_that_fits_is_refused():
    model = build_model(None, {**LLAMA, "hidden_size": 24})
    with pytest.raises(ValueError, match="no block of LlamaForCausalLM has an nn.Linear whose sizes are multiples of"):
        multiply_in_float8(model, blocks_of(model), CPU)


def test_without_torchao_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ValueError, match="compute_dtype='float8' needs torchao 0.17 or newer, one that goes with torch "
                                         rf'{torch.__version__[:4]}.+: pip install "lit-cpt\[fp8\]", or train with'):
        ShardedStrategy(compute_dtype="float8")
    ShardedStrategy(compute_dtype="bfloat16")


def test_tensor_parallelism_is_refused():
    with pytest.raises(ValueError, match="compute_dtype='float8' does not go with tensor_parallel=2; leave one"):
        ShardedStrategy(compute_dtype="float8", tensor_parallel=2)


def test_a_gpu_that_cannot_is_refused(monkeypatch):
    has = [(8, 6), (8, 9), (9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: has.pop(0))
    with pytest.raises(ValueError, match=r"needs a GPU of capability 8.9 or more \(.+, and cuda:1 has 8.6. Train on"):
        check_device(torch.device("cuda", 1))
    check_device(torch.device("cuda", 0))
    check_device(torch.device("cuda", 0))
    assert not has


# Runs --------------------------------------------------------------------------------------------------


class Losses(pl.Callback):
    """The loss of every step; stops a run after one."""

    def __init__(self, stop):
        self.losses, self.stop = [], stop

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(float(outputs["loss"]))
        trainer.should_stop = trainer.global_step == self.stop


def run(folder, sources, dtype, stop=None, resume=None):
    """The losses and the final weights of a run on one rank."""
    losses, module = Losses(stop), module_of(LLAMA)
    fit(module, data_of(sources), folder, losses, RunCheckpointCallback(), resume=resume,
        strategy=ShardedStrategy(compute_dtype=dtype))
    return losses.losses, {name: value.full_tensor().detach() for name, value in module.model.state_dict().items()}


@pytest.fixture(scope="module")
def rank(tmp_path_factory):
    """A process group of one rank."""
    store = tmp_path_factory.mktemp("rank") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(rank, sources, tmp_path_factory):
    """Whole runs in bfloat16 and float8, and their folder, in which both are cut as well."""
    folder = tmp_path_factory.mktemp("runs")
    for dtype in ("bfloat16", "float8"):
        run(folder / f"{dtype}-cut", sources, dtype, stop=STOP)
    return folder, *(run(folder / dtype, sources, dtype) for dtype in ("bfloat16", "float8"))


def newest(run):
    return (run / "checkpoints" / "last.ckpt").resolve()


def test_a_run_comes_close_to_bfloat16_over_fp32_weights(runs):
    _, (half, _), (eight, weights) = runs
    assert all(map(math.isfinite, eight))
    assert eight != half
    assert eight == pytest.approx(half, abs=0.05)
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_a_resumed_run_is_the_whole_one_to_the_bit(runs, sources, tmp_path):
    folder, _, (losses, weights) = runs
    again, mine = run(tmp_path, sources, "float8", resume=newest(folder / "float8-cut"))
    assert again == losses[STOP:]
    assert all(torch.equal(mine[name], value) for name, value in weights.items())


@pytest.mark.parametrize(("first", "then"), [("float8", "bfloat16"), ("bfloat16", "float8")])
def test_a_run_goes_on_in_another_dtype(first, then, runs, sources, tmp_path):
    folder, (half, _), (eight, _) = runs
    losses, _ = run(tmp_path, sources, then, resume=newest(folder / f"{first}-cut"))
    assert len(losses) == STEPS - STOP
    assert losses == pytest.approx(half[STOP:], abs=0.05)
    assert losses not in (half[STOP:], eight[STOP:])


def test_an_export_has_the_names_and_the_fp32_weights_of_any_other(runs, tmp_path):
    folder, _, (_, weights) = runs
    tokenizer, names = save_tokenizer(tmp_path / "tokenizer"), []
    for dtype in ("bfloat16", "float8"):
        assert main(["export", "--checkpoint", str(newest(folder / dtype)), "--output", str(tmp_path / dtype),
                     "--tokenizer", tokenizer]) == 0
        exported = load_file(tmp_path / dtype / "model.safetensors")
        names.append({name: (value.shape, value.dtype) for name, value in exported.items()})
    assert names[0] == names[1]
    assert all(torch.equal(exported[name], weights[name]) for name in weights)
