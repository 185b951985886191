"""Encoder–decoder models: their loss, and the whole way from blocks to an exported, evaluated model."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import LENGTH, fit, named_block, same_weights
from harness_world import build_mirror, build_tokenizer
from test_module import data_of, module_of
from test_parallel import assert_equal, newest, train
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

from lit_cpt import encoder_decoder
from lit_cpt.cli import main
from lit_cpt.encoder_decoder import EncoderDecoderLoss, suited_objective
from lit_cpt.evaluations import Evaluation
from lit_cpt.harness.network import Network
from lit_cpt.losses import token_losses
from lit_cpt.objectives import Draw, PrefixLM, SpanCorruption
from lit_cpt.parallel import blocks_of, mesh_of, shard
from lit_cpt.standalone import open_subject
from lit_cpt.weights import build_model

V = 512
T5 = {"model_type": "t5", "vocab_size": V, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0, "dropout_rate": 0.0}
PART = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "max_position_embeddings": 2048,
        "sliding_window": 16, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
KINDS = {
    "t5": T5, "t5 1.1": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "umt5": {**T5, "model_type": "umt5"}, "t5gemma": {"model_type": "t5gemma", "encoder": PART, "decoder": PART,
                                                      "vocab_size": V},
    "bart": {"model_type": "bart", "vocab_size": V, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
             "dropout": 0.0, "max_position_embeddings": 64},
}
SPANS = SpanCorruption(V - 1, 20)


# The loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_model_has_the_loss_of_its_own_logits(kind, z_loss, monkeypatch):
    monkeypatch.setattr(encoder_decoder, "SMALL", 0)  # even a small problem is split
    torch.manual_seed(0)
    model, blocks, draw = build_model(None, KINDS[kind]).train(), torch.randint(3, V - 20, (2, 33)), Draw(1, 2, 4)
    assert len(blocks_of(model)) == 4
    loss = EncoderDecoderLoss(model, SPANS, eos=1, z_loss=z_loss)
    read, targets = SPANS.split(blocks, 1, draw)
    found, theirs = loss(blocks, draw), model(input_ids=read, labels=targets)
    wanted = token_losses(theirs.logits.flatten(0, 1), targets.flatten(), z_loss).mean()
    assert loss.plain is kind.startswith(("t5 ", "umt5")) or kind == "t5"  # T5Gemma caps its logits, BART adds to them
    assert model.training
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    if not z_loss:
        torch.testing.assert_close(found, theirs.loss, rtol=1e-5, atol=1e-5)
    weights = list(model.parameters())
    for mine, other in zip(torch.autograd.grad(found, weights, allow_unused=True),
                           torch.autograd.grad(wanted, weights, allow_unused=True), strict=True):
        assert (mine is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_a_small_problem_is_computed_at_once_and_a_validation_is_always_the_same():
    torch.manual_seed(0)
    loss, blocks = EncoderDecoderLoss(build_model(None, T5), PrefixLM(), eos=1), torch.randint(3, V, (2, 33))
    first = loss(blocks)
    torch.rand(3)
    assert torch.equal(loss(blocks), first)
    assert loss.plain is None
    logits = loss.model(**loss.read_and_predicted(F.pad(blocks[:, :16], (0, 1), value=1), blocks[:, 16:])).logits
    torch.testing.assert_close(first, F.cross_entropy(logits.flatten(0, 1), blocks[:, 16:].flatten()))


@pytest.mark.parametrize("kind", ["t5", "t5gemma"])
def test_a_sharded_model_has_the_same_loss_and_gradients_and_answers(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(encoder_decoder, "SMALL", 0)
    torch.manual_seed(0)
    plain, blocks = build_model(None, KINDS[kind]), torch.randint(3, V, (2, 33))
    sharded = copy.deepcopy(plain)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shard(sharded, mesh_of("cpu", 1, 1), activation_checkpointing=True)
        losses = []
        for model in (plain, sharded):
            losses.append(EncoderDecoderLoss(model, PrefixLM(), eos=1)(blocks, Draw(1, 2, 3)))
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0])
        for (name, mine), theirs in zip(sharded.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.full_tensor(), theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
        with torch.no_grad():
            first, second = (Network(model.eval()) for model in (plain, sharded))
            states = [network.answered([[5, 6], [7]], [[], []])[1] for network in (first, second)]
            torch.testing.assert_close(first.answered(states[0], [[8], [9]])[0],
                                       second.answered(states[1], [[8], [9]])[0])
    finally:
        torch.distributed.destroy_process_group()


# Refusals ------------------------------------------------------------------------------------------------


def test_an_objective_is_for_models_with_an_encoder(tiny):
    with pytest.raises(ValueError, match=r"objective=SpanCorruption\(first_sentinel=511.*LlamaForCausalLM has no"):
        suited_objective(build_model(None, tiny), SPANS)
    assert suited_objective(build_model(None, tiny), None, mask_documents=True) is None
    assert suited_objective(build_model(None, T5), None, mask_documents=False) == PrefixLM()


@pytest.mark.parametrize(("setting", "says"), [
    ({"mask_documents": True}, "model.mask_documents=True is for causal models, and T5ForConditionalGeneration is an"),
    ({"router_loss": 0.1}, "model.router_loss=0.1 is for causal models"),
])
def test_settings_of_causal_models_are_refused(tiny, setting, says):
    with pytest.raises(ValueError, match=says):
        module_of(tiny, architecture=T5, **setting).configure_model()


def test_a_sentinel_beyond_the_vocabulary_is_refused_at_the_first_batch():
    loss = EncoderDecoderLoss(build_model(None, T5), SpanCorruption(V), eos=1)
    with pytest.raises(ValueError, match=f"first_sentinel={V} is beyond the model's vocabulary of {V}"):
        loss(torch.zeros(1, 9, dtype=torch.long))


def test_a_model_that_does_not_say_what_its_decoder_starts_with_is_refused():
    with pytest.raises(ValueError, match="T5ForConditionalGeneration does not say what its decoder starts with"):
        EncoderDecoderLoss(build_model(None, {**T5, "decoder_start_token_id": None}), PrefixLM(), eos=1)


def test_a_module_without_a_data_module_does_not_know_what_ends_a_text(tiny):
    module = module_of(tiny, architecture=T5)
    module.configure_model()
    module.trainer = SimpleNamespace(datamodule=None)
    with pytest.raises(ValueError, match=r"objective=PrefixLM\(least=0.25\) needs a data module with an `eos"):
        module.loss(torch.zeros(1, 9, dtype=torch.long))


# Draws ---------------------------------------------------------------------------------------------------


def test_blocks_have_the_same_numbers_whatever_the_ranks_and_micro_batches(tiny):
    def numbered(ranks, micro_batch):
        """(step, number) of each block of two steps of eight, by rank within its batch."""
        module, found = module_of(tiny), []
        for index in range(16 // (ranks * micro_batch)):
            for rank in range(ranks):
                step = index * ranks * micro_batch // 8
                module.trainer = SimpleNamespace(world_size=ranks, global_rank=rank, global_step=step,
                                                 datamodule=SimpleNamespace(seed=42))
                draw = module.draw_of(torch.zeros(micro_batch, 9), index)
                found += [(draw.seed, draw.step, draw.first + row) for row in range(micro_batch)]
        return found

    assert numbered(1, 8) == numbered(1, 2) == numbered(4, 2) == [(42, block // 8, block) for block in range(16)]


# Runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [PrefixLM(), SPANS], ids=lambda one: type(one).__name__)
def test_micro_batches_do_not_change_what_a_run_trains_and_the_run_learns(objective, sources, tiny, tmp_path):
    ended = []
    for micro_batch in (4, 1):
        module = module_of(tiny, architecture=T5, objective=objective)
        fit(module, data_of(sources, micro_batch=micro_batch), tmp_path / str(micro_batch))
        ended.append(module)
    for name, value in ended[0].state_dict().items():
        torch.testing.assert_close(ended[1].state_dict()[name], value, rtol=0, atol=2e-4)
    block = torch.stack([named_block(2, row) for row in range(8)]).long()  # of the last phase's source
    untrained = EncoderDecoderLoss(build_model(None, T5), objective, eos=0)
    with torch.no_grad():
        assert ended[0].loss(block) < untrained(block) - 0.3


@pytest.fixture
def config(sources, tmp_path):
    """A run of T5 by span corruption, as a user writes it."""
    phases = [{"name": "one", "blend": {"weights": {"a": 0.6, "b": 0.4}}},
              {"name": "two", "blend": {"weights": {"c": 1.0}}, "when": {"step": 3}}]
    values = {"recipe": {"token_horizon": 6 * 4 * LENGTH, "phases": phases,
                         "curve": {"class_path": "Cosine", "init_args": {"eta_max": 1e-2}}},
              "model": {"architecture": {**KINDS["t5 1.1"], "dropout_rate": 0.1},
                        "objective": {"class_path": "SpanCorruption", "init_args": {"first_sentinel": V - 1}}},
              "data": {"sources": sources, "sequence_length": LENGTH, "global_batch": 4, "micro_batch": 2,
                       "workers": 0}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return ["--config", "base", "--config", "hardware/cpu", "--config", str(tmp_path / "run.yaml")]


def test_a_run_goes_the_whole_way(config, tmp_path, capsys):
    run, again, exported = tmp_path / "run", tmp_path / "again", tmp_path / "exported"
    assert main(["fit", *config, "--run", str(run)]) == 0, capsys.readouterr().err
    middle = str(run / "checkpoints" / "step-00000003.ckpt")
    assert main(["fit", *config, "--run", str(again), "--ckpt_path", middle]) == 0, capsys.readouterr().err
    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    whole, resumed = (open_subject(str(folder), str(tmp_path / "tokenizer"), torch.float32).model.eval()
                      for folder in (run, again))
    assert same_weights(whole, resumed)
    prefix = ["--model.objective", "PrefixLM", "--run", str(tmp_path / "other"), "--ckpt_path", middle]
    assert main(["fit", *config, *prefix]) == 2
    assert "model.objective: SpanCorruption(first_sentinel=511" in capsys.readouterr().err

    assert main(["export", "--checkpoint", str(run), "--output", str(exported), "--tokenizer",
                 tokenizer.name_or_path or str(tmp_path / "tokenizer")]) == 0, capsys.readouterr().err
    there = AutoModelForSeq2SeqLM.from_pretrained(exported, dtype=torch.float32).eval()
    tokens = torch.arange(40).view(2, 20) % 60
    with torch.no_grad():
        assert torch.equal(there(input_ids=tokens, labels=tokens).logits, whole(input_ids=tokens, labels=tokens).logits)
    mirror = build_mirror(tmp_path / "mirror", documents=4)
    assert main(["eval", "--checkpoint", str(exported), "--tasks", "hellaswag", "--data", str(mirror), "--limit", "2",
                 "--json", str(tmp_path / "found.json")]) == 0, capsys.readouterr().err
    assert len(Evaluation.read(tmp_path / "found.json").score("hellaswag").documents) == 2


@pytest.mark.slow
def test_a_sharded_run_is_resumed_to_the_bit_and_is_the_same_on_one_rank(sources, tmp_path):
    model, again = {"architecture": T5}, {"activation_checkpointing": True}
    whole = train(tmp_path / "whole", 2, sources, model, strategy=again)
    train(tmp_path / "cut", 2, sources, model, strategy=again, stop=6)
    resumed = train(tmp_path / "again", 2, sources, model, strategy=again, resume=newest(tmp_path / "cut"))
    assert resumed["losses"] == whole["losses"][-len(resumed["losses"]):]
    assert_equal(resumed, whole)
    assert_equal(train(tmp_path / "alone", 1, sources, model, resume=newest(tmp_path / "cut")), whole, within=1e-6)
