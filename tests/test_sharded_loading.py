"""Weights into shards, by each rank's own reading or by handing out: the same to the bit, the same on all ranks."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import VOCABULARY
from nursery import torchrun
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from lit_cpt.parallel import mesh_of, shard
from lit_cpt.sharded_loading import build_sharded, folder_of, on_rank_zero, read_slices, tensors_as_saved
from lit_cpt.weights import build_model

SCRIPT = Path(__file__).parent / "projects" / "loading.py"
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
MODELS = {
    "llama": {"model_type": "llama", **SIZES}, "tied": {"model_type": "llama", "tie_word_embeddings": True, **SIZES},
    "moe": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, **SIZES},
}


def saved(folder, name, **settings):
    """A folder with the weights of a model, in bf16."""
    torch.manual_seed(0)
    model = build_model(None, MODELS[name])
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7)
    model.to(torch.bfloat16).save_pretrained(folder, **settings)
    return folder


@pytest.fixture
def strategy(tmp_path):
    """The strategy of one rank."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    mesh = mesh_of("cpu", 1, 1)
    yield SimpleNamespace(is_global_zero=True, broadcast=lambda value: value, root_device=torch.device("cpu"),
                          shard=lambda model: shard(model, mesh), reduce_boolean_decision=bool)
    torch.distributed.destroy_process_group()


def same(model, folder):
    whole = build_model(str(folder), None).state_dict()
    return all(torch.equal(value.full_tensor(), whole[name]) for name, value in model.state_dict().items())


# One rank ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("everywhere", [True, False], ids=["here", "not everywhere"])
def test_slices_are_read_where_names_are_those_of_the_file_on_every_rank(name, everywhere, strategy, tmp_path, caplog):
    strategy.reduce_boolean_decision = lambda decision: decision and everywhere
    folder = saved(tmp_path / "model", name, max_shard_size="5KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    with caplog.at_level("INFO", "lit_cpt"):
        model = build_sharded(strategy, str(folder), None)
    assert same(model, folder)
    assert (model.dtype, model.generation_config.temperature) == (torch.float32, 0.7)
    assert caplog.text.count(f"rank 0 reads {folder} and hands it out") == (name == "moe" or not everywhere)


def test_files_that_hold_more_less_or_something_twice_are_not_read_slice_by_slice(tmp_path):
    model, folder = build_model(None, MODELS["tied"]), saved(tmp_path / "model", "tied")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert tensors_as_saved(model, folder).keys() == tensors.keys()
    name, *rest = tensors
    fewer, more = {one: tensors[one] for one in rest}, {**tensors, "more": tensors[name].clone()}
    narrow = {**tensors, name: tensors[name][:1].clone()}
    twice = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    instead = {one: value for one, value in twice.items() if one != "model.norm.weight"}
    for other in (fewer, more, narrow, twice, instead):
        save_file(other, file)
        assert tensors_as_saved(model, folder) is None
    save_file(tensors, file)
    shutil.copy(file, folder / "stale.safetensors")
    assert tensors_as_saved(model, folder) is None
    (folder / "stale.safetensors").write_bytes(file.read_bytes()[:-100])
    assert tensors_as_saved(model, folder) is None


def test_what_transformers_converts_is_handed_out_though_the_names_agree(strategy, tmp_path, monkeypatch, caplog):
    folder = saved(tmp_path / "model", "llama")
    monkeypatch.setattr(import_module("transformers.conversion_mapping"), "get_model_conversion_mapping",
                        lambda *_, **__: ["transposed, under the same name"])
    with caplog.at_level("INFO", "lit_cpt"):
        assert same(build_sharded(strategy, str(folder), None), folder)
    assert "hands it out" in caplog.text


def test_slices_of_another_revision_than_rank_zeros_are_not_read(strategy, tmp_path):
    model, folder = build_model(None, MODELS["llama"]), saved(tmp_path / "abc", "llama")
    assert read_slices(strategy, model, str(folder))
    strategy.broadcast = lambda _: "def"
    assert not read_slices(strategy, model, str(folder))


def test_a_hub_model_is_read_from_the_cache_where_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--org--name"
    saved(cached / "snapshots" / "abc", "llama")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert folder_of("org/name") == cached / "snapshots" / "abc"
    assert folder_of("org/other") is None
    assert folder_of(str(tmp_path / "nothing")) is None


@pytest.mark.parametrize(("raised", "kind", "told"), [
    (ValueError("pretrained='x' cannot be read"), ValueError, "^pretrained='x' cannot be read"),
    (MemoryError("no room"), RuntimeError, "^rank 0 failed: no room")])
def test_what_is_wrong_on_rank_zero_is_told_on_every_rank(raised, kind, told):
    def fail():
        raise raised

    sent = []
    first = SimpleNamespace(is_global_zero=True, broadcast=lambda value: sent.append(value) or value)
    with pytest.raises(type(raised), match=str(raised)):
        on_rank_zero(first, fail)
    other = SimpleNamespace(is_global_zero=False, broadcast=lambda _: sent[0])
    with pytest.raises(kind, match=told):
        on_rank_zero(other, lambda: pytest.fail("asked"))


# Two ranks ---------------------------------------------------------------------------------------------


def cases_in(folder):
    """What two ranks are to load: a folder for each of them."""
    paths = {name: str(saved(folder / name / "model", name, max_shard_size="5KB")) for name in MODELS}
    nowhere = str(folder / "nowhere" / "model")
    broken = {what: Path(shutil.copytree(paths["llama"], folder / what / "model")) for what in ("short", "fewer")}
    file = sorted(broken["short"].glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    (broken["fewer"] / file.name).unlink()
    pairs = {**{name: [path, path] for name, path in paths.items()}, "replicated": [paths["tied"]] * 2,
             "unseen": [paths["llama"], nowhere], "short on one": [paths["llama"], str(broken["short"])],
             **{what: [str(path)] * 2 for what, path in broken.items()}}
    return {name: {"pretrained": pair, "replicas": 1 + (name == "replicated")} for name, pair in pairs.items()}


@pytest.mark.slow
def test_two_ranks_load_the_same_to_the_bit_or_are_refused_with_the_same_words(tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps(cases := cases_in(tmp_path)))
    ran = torchrun(SCRIPT, 2, str(tmp_path / "cases.json"), str(tmp_path))
    assert ran.returncode == 0, ran.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    for name in ("short", "fewer"):
        assert first[name]["refused"] == second[name]["refused"]
        assert first[name]["refused"].startswith(f"pretrained='{cases[name]['pretrained'][0]}' cannot be read: ")
        del cases[name]
    for name, case in cases.items():
        handed = name in ("moe", "unseen", "short on one")
        words = [f"rank 0 reads {case['pretrained'][0]} and hands it out"] if handed else []
        assert first[name] == {"said": words, "dtype": "torch.float32", "equal": True}, name
        assert second[name] == {**first[name], "said": []}, name
