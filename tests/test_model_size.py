"""Sizes of models, against the models themselves."""

from __future__ import annotations

import pytest
import torch
from test_architectures import MODELS
from torch.autograd.graph import saved_tensors_hooks

from lit_cpt.model_size import model_size
from lit_cpt.weights import build_model


@pytest.mark.parametrize("architecture", list(MODELS.values()), ids=list(MODELS))
def test_parameters_are_those_of_the_built_model(architecture):
    size, model = model_size(architecture, 64, torch.float32), build_model(None, architecture)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size.count == len(model.get_decoder().layers)
    assert size.root + size.blocks + size.embedding == size.parameters
    assert (size.width, size.vocabulary) == (32, 512)
    assert (size.embedding == 0) == model.config.tie_word_embeddings


def test_the_papers_model_has_its_published_size_and_work():
    size = model_size({"model_type": "nemotron", "num_key_value_heads": 8}, 4096, torch.bfloat16)
    assert size.parameters == 15_628_775_424
    assert size.flops == pytest.approx(8.92e10, rel=1e-3)  # docs: 6 a weight in a product, and causal attention


def test_only_active_experts_count_as_work():
    mixtral = {**MODELS["mixtral, experts"]}
    few, all_ = (model_size({**mixtral, "num_experts_per_tok": active}, 64, torch.float32) for active in (2, 4))
    experts = sum(value.numel() for name, value in build_model(None, mixtral).named_parameters() if ".experts." in name)
    assert all_.matrix_parameters - few.matrix_parameters == experts // 2
    assert few.parameters == all_.parameters


def test_a_window_shortens_attention():
    whole, window = (model_size({**MODELS["mistral, sliding windows"], "sliding_window": width}, 64, torch.float32)
                     for width in (None, 16))
    assert whole.attention_flops == 2 * 2 * 4 * (8 + 8) * 32  # layers, a multiply and an add, heads, widths, half of 64
    assert window.attention_flops == whole.attention_flops * 16 * (1 - 16 / 128) / 32


@pytest.mark.parametrize("name", ["llama", "nemotron, squared relu and partial rotary"])
def test_what_is_kept_for_the_backward_pass_is_what_a_real_forward_keeps(name):
    length, model = 64, build_model(None, {**MODELS[name], "attn_implementation": "sdpa"})
    kept, weights = {}, {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model.get_decoder()(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    real = sum(storage.nbytes() for storage in kept.values())
    assert model_size(MODELS[name], length, torch.float32).saved * length == pytest.approx(real, rel=0.1)


def test_an_encoder_decoder_is_not_sized():
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder–decoder model, whose memory is not"):
        model_size({"model_type": "t5", "vocab_size": 64, "d_model": 16, "num_layers": 1}, 64, torch.float32)


def test_a_model_without_blocks_or_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="architecture='nowhere/at/all' cannot be read"):
        model_size("nowhere/at/all", 64, torch.float32)
