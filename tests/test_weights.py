from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import VOCABULARY, make_trainer
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from transformers import GenerationConfig, Trainer, TrainingArguments

from lit_cpt.weights import (
    build_model,
    give_generation_config,
    huggingface_order,
    load_moments,
    parameter_groups,
    read_moments,
)

GPT2 = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32,
        "bos_token_id": 0, "eos_token_id": 0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def build(config, seed=0):
    torch.manual_seed(seed)
    return build_model(None, config).train()


def blocks(count, seed=5):
    return torch.randint(0, VOCABULARY, (count, 2, 9), generator=torch.Generator().manual_seed(seed))


def step(model, optimizer, block):
    """One plain step of AdamW."""
    loss = torch.nn.functional.cross_entropy(model(block[:, :-1]).logits.flatten(0, 1), block[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def adamw(model, **settings):
    return torch.optim.AdamW(parameter_groups(model, 0.1), **{"lr": 1e-3, "betas": (0.9, 0.95), **settings})


def largest_difference(one, other):
    return max(float((mine - theirs).abs().max()) for mine, theirs in zip(one.parameters(), other.parameters(),
                                                                          strict=True))


@pytest.fixture(scope="module")
def trained(tiny):
    """A model after five plain steps, with its optimizer."""
    model = build(tiny)
    optimizer = adamw(model)
    for block in blocks(5):
        step(model, optimizer, block)
    return model, optimizer


# Models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(None, None), ("folder", "other")])
def test_a_model_is_either_continued_or_new(given):
    with pytest.raises(ValueError, match=rf"pretrained={given[0]!r} and architecture={given[1]!r}: give exactly one"):
        build_model(*given)


@pytest.mark.parametrize(("attention", "says"), [
    ("flashy", "attention='flashy' cannot be had for architecture=.*not supported.*Leave it out"),
    ("flash_attention_2", "attention='flash_attention_2' cannot be had for architecture=.*installed"),
])
def test_attention_that_cannot_be_had_is_refused_by_its_name(tiny, attention, says):
    with pytest.raises(ValueError, match=says):
        build_model(None, tiny, attention=attention)


def test_attention_is_that_which_was_asked_for_also_of_a_saved_model(tiny, tmp_path):
    build(tiny).save_pretrained(tmp_path)
    for given in ((str(tmp_path), None), (None, tiny)):
        for attention, found in (("eager", "eager"), ("sdpa", "sdpa"), (None, "sdpa")):
            assert build_model(*given, attention=attention).config._attn_implementation == found


def test_a_folder_without_a_model_is_refused_by_its_path(tmp_path):
    with pytest.raises(ValueError, match=rf"pretrained='{tmp_path}' cannot be read: .*config\.json"):
        build_model(str(tmp_path), None)
    with pytest.raises(ValueError, match=rf"architecture='{tmp_path}' cannot be read"):
        build_model(None, str(tmp_path))


@pytest.mark.parametrize("config", [{"model_type": "no-such-model"}, {"hidden_size": 16}])
def test_a_config_of_no_known_model_is_refused_with_its_values(config):
    with pytest.raises(ValueError, match=rf"architecture=\{{'{next(iter(config))}'.* cannot be read: "):
        build_model(None, config)


def test_a_config_is_not_changed_by_building_from_it(tiny):
    before = dict(tiny)
    build(tiny)
    assert tiny == before


@pytest.mark.parametrize("saved_as", [torch.float32, torch.bfloat16])
def test_a_model_is_read_in_fp32_however_it_was_saved(tiny, tmp_path, saved_as):
    model = build(tiny).to(saved_as)
    model.save_pretrained(tmp_path)
    read = build_model(str(tmp_path), None)
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}
    assert largest_difference(read, model.float()) == 0.0


def test_a_folder_gives_the_architecture_of_a_new_model(tiny, tmp_path):
    model = build(tiny)
    model.save_pretrained(tmp_path)
    new = build_model(None, str(tmp_path))
    assert new.config.hidden_size == 16
    assert largest_difference(new, model) > 0


def test_a_model_generates_as_a_folder_or_saved_values_say(tiny, tmp_path):
    model = build(tiny)
    GenerationConfig(do_sample=True, temperature=0.7).save_pretrained(tmp_path / "given")
    give_generation_config(model, str(tmp_path / "given"))
    assert model.generation_config.temperature == 0.7
    give_generation_config(model, {"temperature": 0.3})  # without do_sample: transformers would not write it
    give_generation_config(model, str(tmp_path))  # there is none: it stays as it is
    assert model.generation_config.temperature == 0.3


def test_a_folder_whose_weights_end_too_early_is_refused_by_its_path(tiny, tmp_path):
    build(tiny).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"pretrained='{tmp_path}' cannot be read: .*not fully covered"):
        build_model(str(tmp_path), None)


# Groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_norms_and_biases_do_not_decay_and_matrices_do(tiny, kind):
    model = build(tiny if kind == "llama" else GPT2)
    decayed, spared = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert all("norm" not in name and "ln_" not in name and not name.endswith("bias") for name, _ in decayed["params"])
    assert all("norm" in name or "ln_" in name or name.endswith("bias") for name, _ in spared["params"])
    names = [name for group in (decayed, spared) for name, _ in group["params"]]
    assert sorted(names) == sorted(dict(model.named_parameters()))


def test_frozen_parameters_and_empty_groups_are_left_out(tiny):
    model = build(tiny)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "q_proj" in name
    [group] = parameter_groups(model, 0.1)
    assert all("q_proj" in name for name, _ in group["params"])


# Moments -----------------------------------------------------------------------------------------------


def test_the_next_step_after_a_warm_start_is_the_one_that_would_have_come(trained, tiny, tmp_path):
    model, optimizer = copy.deepcopy(trained)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    warm_model, cold_model = copy.deepcopy(model), copy.deepcopy(model)
    warm, cold = adamw(warm_model), adamw(cold_model)
    load_moments(warm_model, warm, read_moments(tmp_path / "state.pt", warm_model))
    for block in blocks(2, seed=6):
        step(model, optimizer, block)
        step(warm_model, warm, block)
        step(cold_model, cold, block)
    assert largest_difference(warm_model, model) == 0.0
    assert largest_difference(cold_model, model) > 1e-5


def test_a_warm_start_keeps_the_new_runs_rate_betas_and_decay(trained):
    model = copy.deepcopy(trained[0])
    optimizer = adamw(model, lr=7e-6, betas=(0.8, 0.9))
    before = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    load_moments(model, optimizer, moments_of(trained))
    after = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    assert before == after
    assert after[0]["betas"] == (0.8, 0.9)


def moments_of(trained):
    model, optimizer = trained
    return {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}


def test_the_source_does_not_go_on_counting_with_the_new_optimizer(trained):
    moments = copy.deepcopy(moments_of(trained))
    untouched = copy.deepcopy(moments)
    model = copy.deepcopy(trained[0])
    optimizer = adamw(model)
    load_moments(model, optimizer, moments)
    step(model, optimizer, blocks(1)[0])
    assert all(float(optimizer.state[parameter]["step"]) == 6 for parameter in model.parameters())
    for name, moment in moments.items():
        assert all(torch.equal(moment[key], untouched[name][key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_a_fused_optimizer_takes_the_moments_too(trained):
    model = copy.deepcopy(trained[0])
    optimizer = adamw(model, fused=True)
    load_moments(model, optimizer, moments_of(trained))
    step(model, optimizer, blocks(1)[0])
    assert {float(state["step"]) for state in optimizer.state.values()} == {6.0}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_moments_are_read_from_a_real_hugging_face_run(tiny, tmp_path, kind):
    model = build(tiny if kind == "llama" else GPT2)
    torch.set_num_threads(1)
    rows = [{"input_ids": block[0], "labels": block[0]} for block in blocks(6)]
    arguments = TrainingArguments(str(tmp_path), max_steps=3, per_device_train_batch_size=2, save_strategy="steps",
                                  save_steps=3, report_to=[], use_cpu=True, weight_decay=0.1, learning_rate=1e-3,
                                  disable_tqdm=True, logging_steps=100, dataloader_pin_memory=False)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    folder = tmp_path / "checkpoint-3"
    moments = read_moments(folder, build_model(str(folder), None))
    ours = dict(trainer.model.named_parameters())
    assert moments.keys() == ours.keys()
    live = trainer.optimizer.optimizer if hasattr(trainer.optimizer, "optimizer") else trainer.optimizer
    for name, parameter in ours.items():
        assert float(moments[name]["step"]) == 3
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(moments[name][key], live.state[parameter][key]), name


def test_the_order_of_hugging_faces_optimizer_is_decayed_before_spared(tiny):
    model = build(tiny)
    names = huggingface_order(model)
    kinds = ["norm" in name for name in names]
    assert sorted(names) == sorted(dict(model.named_parameters()))
    assert kinds == sorted(kinds)


def test_moments_are_read_by_name_from_a_checkpoint_of_ours(trained, tmp_path):
    from lightning.pytorch import LightningModule

    class Holder(LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def configure_optimizers(self):
            return torch.optim.AdamW(parameter_groups(self.model, 0.1), lr=1e-3)

        def training_step(self, block, index):
            return torch.nn.functional.cross_entropy(self.model(block[0, :, :-1]).logits.flatten(0, 1),
                                                     block[0, :, 1:].flatten())

    holder = Holder(copy.deepcopy(trained[0]))
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.fit(holder, torch.utils.data.DataLoader(blocks(3)))
    trainer.save_checkpoint(tmp_path / "ours.ckpt")
    moments = read_moments(tmp_path / "ours.ckpt", holder.model)
    [optimizer] = trainer.optimizers
    for name, parameter in holder.model.named_parameters():
        assert torch.equal(moments[name]["exp_avg"], optimizer.state[parameter]["exp_avg"])
        assert float(moments[name]["step"]) == 3


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", ["optim", "optimizer_0", None])
def test_moments_are_read_from_a_folder_that_torch_alone_wrote(trained, tmp_path, name):
    model, optimizer = trained
    state = get_optimizer_state_dict(model, optimizer)
    dcp.save({"model": model.state_dict(), name: state} if name else state, checkpoint_id=tmp_path)
    moments = read_moments(tmp_path, model)
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(moments[name][key], optimizer.state[parameter][key])


def test_an_optimizer_state_that_is_not_there_is_refused_by_its_path(trained, tmp_path):
    for path in (tmp_path / "no.ckpt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"optimizer_state='{path}': no such file"):
            read_moments(path, trained[0])


def test_a_file_without_adamw_state_is_refused_by_its_path(trained, tmp_path):
    path = tmp_path / "sgd.pt"
    model = copy.deepcopy(trained[0])
    torch.save(torch.optim.SGD(model.parameters(), lr=0.1).state_dict(), path)
    with pytest.raises(ValueError, match=f"optimizer_state='{path}' holds no AdamW state"):
        read_moments(path, model)
    torch.save(model.state_dict(), path)
    with pytest.raises(ValueError, match=f"optimizer_state='{path}' holds no AdamW state"):
        read_moments(path, model)


def test_the_state_of_a_model_with_other_parameters_is_refused_with_both_counts(trained, tmp_path):
    torch.save(trained[1].state_dict(), tmp_path / "state.pt")
    optimizer = torch.optim.AdamW(build(GPT2).parameters())
    saved = {**trained[1].state_dict()}
    saved["param_groups"] = [{key: value for key, value in group.items() if key != "param_names"}
                             for group in saved["param_groups"]]
    torch.save(saved, tmp_path / "nameless.pt")
    model = build(GPT2)
    counts = (len(trained[1].state), len(list(model.parameters())))
    with pytest.raises(ValueError, match=f"holds {counts[0]} parameters, the model {counts[1]}: it is of another"):
        read_moments(tmp_path / "nameless.pt", model)
    with pytest.raises(ValueError, match=r"the optimizer state has no moments for transformer\..*in all"):
        load_moments(model, optimizer, read_moments(tmp_path / "state.pt", model))


def test_moments_of_other_names_or_shapes_are_refused_and_nothing_is_loaded(trained, tiny):
    model = copy.deepcopy(trained[0])
    optimizer, moments = adamw(model), moments_of(trained)
    name, *rest = moments
    with pytest.raises(ValueError, match=rf"has no moments for {name} \(1 in all\)"):
        load_moments(model, optimizer, {key: moments[key] for key in rest})
    with pytest.raises(ValueError, match=r"holds moments for unknown extra\.weight \(1 in all\)"):
        load_moments(model, optimizer, {**moments, "extra.weight": moments[name]})
    wide = build({**tiny, "vocab_size": 80})
    with pytest.raises(ValueError, match=r"has shape \(64, 16\) for model\.embed_tokens\.weight, the model \(80, 16\)"):
        load_moments(wide, adamw(wide), moments)
    assert not optimizer.state
