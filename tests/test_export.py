"""A model as a Hugging Face folder: what transformers alone reads again, and how little memory it took."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from test_architectures import MODELS
from transformers import AutoConfig, AutoModelForCausalLM

from lit_cpt.export import as_on_the_hub, block_of, build_on_disk, export_huggingface, on_disk
from lit_cpt.publishing import COMPLETE
from lit_cpt.weights import build_model

TIED = {**MODELS["llama"], "tie_word_embeddings": True}
SCRIPT = Path(__file__).parent / "projects" / "exporting.py"
BIG = {"vocab_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4}
LLAMA = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, **BIG}
EXPERTS = {"model_type": "mixtral", "hidden_size": 256, "intermediate_size": 512, "num_local_experts": 8, **BIG}


def build(config, seed=0):
    torch.manual_seed(seed)
    return build_model(None, config).eval()


# Folders -----------------------------------------------------------------------------------------------


def test_a_model_comes_back_with_equal_logits(tiny, tmp_path):
    model, tokens = build(tiny), torch.arange(16)[None]
    export_huggingface(model, tmp_path / "new" / "out")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "out").eval()
    assert torch.equal(read(tokens).logits, model(tokens).logits)
    assert AutoConfig.from_pretrained(tmp_path / "new" / "out").model_type == "llama"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_a_generation_config_that_transformers_finds_wrong_is_left_out(tiny, tmp_path, caplog):
    good, wrong = build(tiny), build(tiny)
    good.generation_config.update(do_sample=True, temperature=0.7)
    wrong.generation_config.update(temperature=0.3)  # without do_sample
    for model, name in ((good, "good"), (wrong, "wrong")):
        export_huggingface(model, tmp_path / name)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "good").generation_config.temperature == 0.7
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "wrong").generation_config.temperature != 0.3
    assert caplog.text.count("the generation config is left out, transformers finds it wrong") == 1


def test_the_tokenizer_goes_with_the_model(tiny, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = {"<eos>": 0, "one": 1, "two": 2}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<eos>")), eos_token="<eos>")
    made.save_pretrained(tmp_path / "tokenizer")
    export_huggingface(build(tiny), tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == words


# Names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*MODELS.values(), TIED], ids=[*MODELS, "tied"])
def test_block_by_block_a_model_gets_the_names_and_values_that_it_gets_as_a_whole(architecture, tmp_path):
    from transformers.core_model_loading import revert_weight_conversion

    model = build(architecture)
    found, whole = as_on_the_hub(model, tmp_path), revert_weight_conversion(model, model.state_dict())
    assert sorted(found) == sorted(whole)
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    assert not list(tmp_path.iterdir())


def test_the_block_of_a_weight_is_told_by_the_first_number_in_its_name():
    assert block_of("model.layers.11.mlp.experts.3.weight") == "model.layers.11"
    assert block_of("lm_head.weight") == block_of("model.norm2.weight") == ""


# The disk ----------------------------------------------------------------------------------------------


def test_a_model_on_the_disk_is_filled_like_one_in_memory_and_stays_tied(tmp_path):
    model, other = build(TIED), build_on_disk(TIED, torch.bfloat16, tmp_path)
    assert not list(tmp_path.iterdir())
    other.load_state_dict(model.state_dict())
    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert all(torch.equal(value, model.state_dict()[name].bfloat16()) for name, value in other.state_dict().items())


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        on_disk(torch.empty(2, 3), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_an_export_takes_a_fraction_of_the_models_memory(tmp_path):
    tokens, models = torch.arange(64)[None], {}
    cases = {"warm": (EXPERTS | {"hidden_size": 16}, True), "llama": (LLAMA, True), "mixtral": (EXPERTS, True),
             "tied": (LLAMA | {"tie_word_embeddings": True}, False)}
    for name, (architecture, several) in cases.items():
        models[name] = build(architecture)
        save(models[name], architecture, tmp_path / f"{name}.ckpt", several)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536",
                   "MALLOC_TRIM_THRESHOLD_": "65536"}  # what is freed goes back at once
    ran = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), *cases], capture_output=True, text=True,
                         env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    peaks = json.loads(ran.stdout.splitlines()[-1])
    for name in ("llama", "mixtral", "tied"):
        model = models[name]
        assert peaks[name] < 0.2 * sum(parameter.nbytes for parameter in model.parameters()), (name, peaks)
        with torch.no_grad():
            there = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
            assert torch.equal(there(tokens).logits, model(tokens).logits), name


def save(model, architecture, path, several):
    """A checkpoint of ``model`` as a run writes it."""
    from harness_world import build_tokenizer

    build_tokenizer(path.parent / "tokenizer")
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    rest = {"global_step": 2, "lit_cpt": {"tokens_seen": 16, "architecture": architecture,
                                          "tokenizer": str(path.parent / "tokenizer")}}
    if several:
        dcp.save({"state_dict": state}, checkpoint_id=path)
        torch.save(rest, path / "meta.pt")
        (path / COMPLETE).touch()
    else:
        torch.save({"state_dict": state, **rest}, path)
