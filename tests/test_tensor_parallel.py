"""Tensor parallelism: which plans are followed, and that a split model is the whole one."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from lit_cpt import losses
from lit_cpt.losses import NextTokenLoss
from lit_cpt.parallel import TENSOR, mesh_of, shard
from lit_cpt.tensor_parallel import check_shared, planned_style, split_over, tensor_plan
from lit_cpt.weights import build_model

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "bos_token_id": 0,
         "eos_token_id": 1, "pad_token_id": 0}
KINDS = {
    "llama": {}, "llama, tied": {"tie_word_embeddings": True}, "qwen3, heads normed": {"head_dim": 8},
    "nemotron": {}, "gemma3_text": {"head_dim": 8, "sliding_window": 4}, "phi, biases": {},
    "phi3, queries and keys in one": {}, "gpt_neox": {},
}
BOTH = ["llama", "llama, tied", "phi, biases"]  # tried with all logits at once too


def meta(kind, **settings):
    """An empty model."""
    with torch.device("meta"):
        return build_model(None, {"model_type": kind, **SIZES, **settings})


def plan_of(kind, ranks=2, **settings):
    return {name: type(style).__name__ for name, style in tensor_plan(meta(kind, **settings), ranks).items()}


# Plans ---------------------------------------------------------------------------------------------------


def test_the_plan_of_transformers_is_followed_layer_by_layer():
    found = plan_of("qwen3", head_dim=8, num_hidden_layers=1)
    assert found == {f"model.layers.0.{name}": style for name, style in {
        "self_attn.q_proj": "ColwiseParallel", "self_attn.k_proj": "ColwiseParallel",
        "self_attn.v_proj": "ColwiseParallel", "self_attn.o_proj": "RowwiseParallel",
        "self_attn.q_norm": "SequenceParallel", "self_attn.k_norm": "SequenceParallel",
        "mlp.gate_proj": "ColwiseParallel", "mlp.up_proj": "ColwiseParallel",
        "mlp.down_proj": "RowwiseParallel"}.items()}


def test_embeddings_are_left_whole_even_where_the_plan_splits_them():
    assert planned_style("embed_in", {"embed_in": "embedding_rowwise"}) is None
    assert "gpt_neox.embed_in" not in plan_of("gpt_neox")


@pytest.mark.parametrize(("kind", "ranks", "settings", "said"), [
    ("gpt2", 2, {}, "tensor_parallel=2: transformers ships no tensor parallel plan for GPT2LMHeadModel"),
    ("mixtral", 2, {}, "the plan of MixtralForCausalLM has the style 'moe_tp_experts' for layers.0.mlp.experts"),
    ("olmo2", 2, {}, "the plan of Olmo2ForCausalLM says nothing of model.layers.0.self_attn.q_norm"),
    ("llama", 4, {}, "tensor_parallel=4 does not divide num_key_value_heads=2 of LlamaForCausalLM"),
    ("llama", 3, {}, "tensor_parallel=3 does not divide num_attention_heads=4"),
    ("llama", 2, {"intermediate_size": 33}, "does not divide the width 33 of layers.0.mlp.gate_proj"),
])
def test_what_cannot_be_split_is_refused_by_name(kind, ranks, settings, said):
    with pytest.raises(ValueError, match=said):
        plan_of(kind, ranks, **settings)


# Models --------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_splitting_makes_every_parameter_one_of_the_mesh_and_leaves_names_ties_and_logits():
    model, mesh = whole("llama, tied"), dist.init_device_mesh("cpu", (1,), mesh_dim_names=(TENSOR,))
    names, tokens = list(model.state_dict()), torch.arange(16)[None]
    before = model(tokens).logits.detach()
    split_over(model, mesh)
    assert list(model.state_dict()) == names
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert {parameter.device_mesh for parameter in model.parameters()} == {mesh}
    assert torch.equal(model(tokens).logits.detach(), before)
    check_shared(tokens, mesh)


def whole(kind):
    torch.manual_seed(0)
    return build_model(None, {"model_type": kind.split(",")[0], **SIZES, **KINDS[kind]}).train()


def stepped(model, tokens):
    """Loss, gradient norm and the gradients of every parameter, whole."""
    loss = NextTokenLoss(model)(tokens)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    gradients = {name: value.grad.full_tensor() if isinstance(value.grad, DTensor) else value.grad
                 for name, value in model.named_parameters()}
    return float(loss.detach()), float(norm.full_tensor() if isinstance(norm, DTensor) else norm), gradients


def compare(rank, folder):
    """By how much loss, norm and gradients of each kind on two ranks differ from one's, with and without all logits."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    tokens, found = torch.randint(2, 60, (2, 17), generator=torch.Generator().manual_seed(1)), {}
    mesh = mesh_of("cpu", 2, tensor=2)
    for kind in KINDS:
        for losses.SMALL in (0, 2**40) if kind in BOTH else (0,):
            loss, norm, plain = stepped(whole(kind), tokens)
            other, others, split = stepped(shard(whole(kind), mesh, activation_checkpointing=True), tokens)
            apart = max(float((plain[name] - value).abs().max()) for name, value in split.items())
            found[f"{kind} {bool(losses.SMALL)}"] = [abs(loss - other), abs(norm - others), apart]
    half = stepped(shard(whole("llama"), mesh, torch.bfloat16), tokens)
    found["bfloat16"] = {"loss": half[0], "whole": stepped(whole("llama"), tokens)[0],
                         "dtypes": sorted({str(value.dtype) for value in half[2].values()})}
    try:
        check_shared(tokens + rank, mesh[TENSOR])
    except ValueError as error:
        found["different batches"] = str(error)
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("compared")
    mp.spawn(compare, (folder,), nprocs=2)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_loss_norm_and_gradients_of_two_ranks_are_those_of_one(compared):
    for found in compared:
        apart = {kind: value for kind, value in found.items() if isinstance(value, list)}
        assert len(apart) == len(KINDS) + len(BOTH)
        assert {kind: value for kind, value in apart.items() if max(value) > 2e-6} == {}


@pytest.mark.slow
def test_in_bfloat16_gradients_stay_fp32_and_the_loss_comes_close(compared):
    for found in compared:
        half = found["bfloat16"]
        assert half["dtypes"] == ["torch.float32"]
        assert half["loss"] != half["whole"]
        assert half["loss"] == pytest.approx(half["whole"], abs=0.01)


@pytest.mark.slow
def test_ranks_of_a_group_with_different_batches_are_refused(compared):
    for found in compared:
        assert "the 2 ranks of a tensor group were given different batches" in found["different batches"]
