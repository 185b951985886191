"""Parameters, counted in the files that transformers writes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_cpt.weight_files import stored_parameters


@pytest.mark.parametrize("shard", ["1GB", "4KB"], ids=["one-file", "several"])
def test_the_parameters_of_a_saved_model_are_counted_tied_ones_once(tiny, tmp_path, shard):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**tiny), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "4KB")
    assert stored_parameters(tmp_path) == sum(weight.numel() for weight in model.parameters())


def test_where_files_are_lacking_nothing_is_counted(tiny, tmp_path):
    assert stored_parameters("nobody/such-model") is None
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**tiny)).save_pretrained(tmp_path, max_shard_size="4KB")
    next(tmp_path.glob("*.safetensors")).unlink()
    assert stored_parameters(tmp_path) is None
