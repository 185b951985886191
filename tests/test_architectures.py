"""Kinds of models: each is trained, resumed to the bit, exported, opened by transformers alone, and evaluated."""

from __future__ import annotations

import pytest
import torch
from conftest import LENGTH, SaveAt, fit, same_weights
from harness_world import build_mirror, build_tokenizer
from transformers import AutoModelForCausalLM

from lit_cpt.blends import Blend
from lit_cpt.callbacks import PhaseSwitchCallback
from lit_cpt.cli import main
from lit_cpt.data import BlendDataModule
from lit_cpt.evaluations import Evaluation
from lit_cpt.losses import NextTokenLoss
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine
from lit_cpt.weights import build_model

GLOBAL, STEPS, CUT = 4, 6, 3
SIZES = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": 0,
         "eos_token_id": 1}
MODELS = {
    "llama": {"model_type": "llama", **SIZES},
    "qwen3, queries and keys normed": {"model_type": "qwen3", "head_dim": 8, **SIZES},
    "nemotron, squared relu and partial rotary": {"model_type": "nemotron", **SIZES},
    "mixtral, experts": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, **SIZES},
    "qwen3_moe, experts": {"model_type": "qwen3_moe", "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
                           "moe_intermediate_size": 16, "decoder_sparse_step": 1, **SIZES},
    "mistral, sliding windows": {"model_type": "mistral", "sliding_window": 4, **SIZES},
    "gemma3, windows in turn with whole attention": {
        "model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"], **SIZES},
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A tokenizer, and data to ask about."""
    folder = tmp_path_factory.mktemp("asked")
    build_tokenizer(folder / "tokenizer")
    return folder / "tokenizer", build_mirror(folder / "mirror", documents=4)


def trained(folder, sources, architecture, resume=None):
    """A model after the run of two phases, saved half way."""
    torch.manual_seed(0)
    phases = [Phase("first", Blend({"a": 0.6, "b": 0.4})), Phase("late", Blend({"c": 1.0}), Trigger(fraction=0.7))]
    recipe = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-2), phases)
    module = ContinuedPretraining(recipe, architecture=architecture)
    data = BlendDataModule(recipe, sources, sequence_length=LENGTH, global_batch=GLOBAL, micro_batch=2, workers=0,
                           validation_blocks=0)
    fit(module, data, folder, PhaseSwitchCallback(), SaveAt(folder, CUT, STEPS), resume=resume)
    return module.model.eval()


@pytest.mark.parametrize("architecture", list(MODELS.values()), ids=list(MODELS))
def test_a_kind_of_model_goes_the_whole_way(architecture, sources, asked, tmp_path, capsys):
    tokenizer, mirror = asked
    model = trained(tmp_path / "run", sources, architecture)
    again = trained(tmp_path / "again", sources, architecture, resume=tmp_path / "run" / f"step-{CUT}.ckpt")
    assert same_weights(model, again)
    untrained = build_model(None, architecture)
    assert not same_weights(model, untrained)

    exported = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(tmp_path / "run" / f"step-{STEPS}.ckpt"), "--output", str(exported),
                 "--tokenizer", str(tokenizer)]) == 0, capsys.readouterr().err
    there = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    tokens = torch.arange(40).view(2, 20) % 60
    with torch.no_grad():
        assert torch.equal(there(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits)
        assert float(NextTokenLoss(there)(tokens)) == pytest.approx(
            float(there(tokens, labels=tokens, use_cache=False).loss), abs=1e-5)

    found = tmp_path / "found.json"
    assert main(["eval", "--checkpoint", str(exported), "--tasks", "hellaswag", "--data", str(mirror), "--limit", "2",
                 "--json", str(found)]) == 0, capsys.readouterr().err
    assert len(Evaluation.read(found).score("hellaswag").documents) == 2
