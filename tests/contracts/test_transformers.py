"""What transformers, tokenizers and jsonargparse do where lit_cpt counts on it or works around it."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import jsonargparse
import pytest
import torch
from contract import relied_on, worked_around
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Trainer

WEIGHTS, TOKENS, ARGUMENTS = "lit_cpt/weights.py", "lit_cpt/prepare/tokens.py", "lit_cpt/arguments.py"
LOADING = "lit_cpt/sharded_loading.py"


@pytest.fixture(scope="module")
def model(tiny):
    values = dict(tiny)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values),
                                            dtype=torch.float32)


# Models -----------------------------------------------------------------------------------------------


def test_a_model_without_a_type_or_with_an_unknown_one_is_a_value_error():
    with relied_on(WEIGHTS, "build_model explains a ValueError of AutoConfig.for_model"):
        for kind in (None, "no such model"):
            with pytest.raises(ValueError, match="(?i)unrecognized"):
                AutoConfig.for_model(kind)


def test_weights_marked_as_initialised_are_kept_and_what_no_file_holds_is_computed(model):
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    bare.to_empty(device="cpu")
    bare.tie_weights()
    bare.load_state_dict(model.state_dict())
    for value in bare.state_dict(keep_vars=True).values():
        value._is_hf_initialized = True
    bare.initialize_weights()
    with relied_on(LOADING, "build_sharded marks the weights that it handed out, and lets transformers do the rest"):
        assert all(torch.equal(bare.state_dict()[name], value) for name, value in model.state_dict().items())
        buffers = dict(model.named_buffers())
        assert buffers
        assert all(torch.equal(value, buffers[name]) for name, value in bare.named_buffers())


def test_dtype_decides_the_type_of_the_weights_and_pretrained_models_come_in_eval_mode(model, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    model.float()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with relied_on(WEIGHTS, "build_model asks for fp32 by dtype=, whatever the file holds"):
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    with worked_around("lit_cpt/module.py", "configure_model calls train()"):
        assert not loaded.training


def test_a_model_without_a_cache_gives_logits_of_every_position(model):
    with relied_on("lit_cpt/module.py", "forward reads model(input_ids=..., use_cache=False).logits"):
        answer = model(input_ids=torch.zeros(2, 5, dtype=torch.long), use_cache=False)
        assert answer.logits.shape == (2, 5, model.config.vocab_size)
        assert answer.past_key_values is None


class Parts(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.matrix, self.norm = nn.Embedding(4, 2), nn.Linear(2, 2), nn.LayerNorm(2)


def test_the_hugging_face_trainer_decays_matrices_and_embeddings_and_asks_no_self_for_it():
    with relied_on(WEIGHTS, "huggingface_order gives names to the moments in a Trainer's optimizer.pt"):
        decayed = Trainer.get_decay_parameter_names(None, Parts())
        assert sorted(decayed) == ["embedding.weight", "matrix.weight"]


# Tokenizers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "one": 1, "two": 2, "<unk>": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


def test_the_backend_encodes_a_batch_without_offsets_to_the_same_ids(tokenizer):
    with relied_on(TOKENS, "Encoder calls backend_tokenizer.encode_batch_fast"):
        backend, texts = tokenizer.backend_tokenizer, ["one two", "two three <eos>", ""]
        backend.no_truncation()
        backend.no_padding()
        ids = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        assert ids == tokenizer(texts, add_special_tokens=False)["input_ids"] == [[1, 2], [2, 3, 0], []]


def test_a_tokenizer_tells_what_decides_its_tokens(tokenizer):
    with relied_on(TOKENS, "tokenizer_fingerprint hashes these parts: fingerprints in manifests must stay"):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        assert {"normalizer", "pre_tokenizer", "model", "added_tokens"} <= content.keys()
        assert content["pre_tokenizer"] == {"type": "Whitespace"}
        assert content["model"]["type"] == "WordLevel"


# jsonargparse -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A setting that two parts share."""

    rate: float = 1.0


class Part:
    """Takes a curve."""

    def __init__(self, curve: Curve | None = None) -> None:
        self.curve = curve


def parser(**settings):
    made = jsonargparse.ArgumentParser(exit_on_error=False, **settings)
    made.add_argument("--loud", type=bool, default=False)
    made.add_argument("--rate", type=float, default=1.0)
    return made


def test_a_parser_knows_its_keys_and_which_of_them_are_flags():
    with relied_on(ARGUMENTS, "it reads parser._actions, and `_typehint` of those that are no plain numbers"):
        actions = {action.dest: action for action in parser()._actions}
        assert {"loud", "rate"} <= actions.keys()
        assert actions["loud"]._typehint is bool
        assert getattr(actions["rate"], "_typehint", None) is not bool


def test_a_parser_raises_its_errors_where_it_is_told_to():
    with relied_on(ARGUMENTS, "parse() catches ArgumentError of both kinds"):
        for wrong in (["--rate", "fast"], ["--speed", "1"]):
            with pytest.raises((jsonargparse.ArgumentError, argparse.ArgumentError)):
                parser().parse_args(wrong)


def test_one_object_can_be_built_once_and_linked_into_two_parts():
    made = parser()
    made.add_class_arguments(Curve, "curve", sub_configs=True)
    for name in ("model", "data"):
        made.add_class_arguments(Part, name)
        made.link_arguments("curve", f"{name}.curve", apply_on="instantiate")
    with relied_on("lit_cpt/training.py", "module and data module get the very same recipe"):
        built = made.instantiate_classes(made.parse_args(["--curve.rate", "3"]))
        assert built.model.curve is built.data.curve
        assert built.model.curve == Curve(3.0)
