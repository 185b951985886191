"""The loss without all logits: the same value and gradients, in a fraction of the memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lit_cpt import losses
from lit_cpt.footprint import LEAST_ROWS
from lit_cpt.losses import NextTokenLoss, chunk_rows, document_positions, linear_cross_entropy, token_losses
from lit_cpt.weights import build_model

V = 512
SIZES = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}
PLAIN = [
    {"model_type": "llama", **SIZES}, {"model_type": "llama", "tie_word_embeddings": True, **SIZES},
    {"model_type": "gpt2", "vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
     "bos_token_id": 0, "eos_token_id": 0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    {"model_type": "qwen3", "head_dim": 8, **SIZES}, {"model_type": "nemotron", **SIZES},
    {"model_type": "mistral", "sliding_window": 8, **SIZES}, {"model_type": "phi", **SIZES},  # phi's head has a bias
    {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, **SIZES},
]
OTHERS = [
    {"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8, **SIZES},  # a soft cap
    {"model_type": "granite", "logits_scaling": 8.0, **SIZES}, {"model_type": "cohere", **SIZES, "eos_token_id": 1},
]
LEAST = """
import resource, sys, torch
from lit_cpt import losses
torch.set_num_threads(1)
hidden, weight = torch.randn(1024, 32, requires_grad=True), torch.randn(256_000, 32).requires_grad_()
targets, before = torch.randint(0, 256_000, (1024,)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "reference":
    torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets).backward()
else:
    losses.linear_cross_entropy(hidden, weight, targets)[0].backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def problem(rows=150, width=24, vocabulary=300, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=draw).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, vocabulary, (rows,), generator=draw)


def gradients(loss, *of):
    return torch.autograd.grad(loss, of)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(2, 300), st.sampled_from([0.0, 1e-3]), st.booleans())
def test_value_and_gradients_are_those_of_all_logits(rows, vocabulary, z_loss, biased):
    hidden, weight, targets = problem(rows, 8, vocabulary)
    bias = torch.linspace(-1, 1, vocabulary, requires_grad=True) if biased else None
    of = [hidden, weight, *([bias] if biased else [])]
    found, each = linear_cross_entropy(hidden, weight, targets, bias, z_loss)
    logits = F.linear(hidden, weight, bias)
    wanted = F.cross_entropy(logits, targets) + z_loss * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(each, token_losses(logits, targets, z_loss).detach(), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients(found, *of), gradients(wanted, *of), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_in_bfloat16_the_loss_is_not_rounded():
    hidden, weight, targets = problem(dtype=torch.bfloat16)
    wanted = F.cross_entropy((hidden @ weight.T).float(), targets)
    found, each = linear_cross_entropy(hidden, weight, targets)
    assert found.dtype == each.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for mine, theirs in zip(gradients(found, hidden, weight), gradients(wanted, hidden, weight), strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 5e-3


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 1)])
def test_what_is_frozen_gets_no_gradient(frozen):
    given = problem()
    for place in frozen:
        given[place].requires_grad_(False)
    found, each = linear_cross_entropy(*given)
    assert not each.requires_grad
    assert found.requires_grad is (len(frozen) < 2)
    if found.requires_grad:
        found.backward()
        assert [one.grad is None for one in given[:2]] == [place in frozen for place in (0, 1)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_loss_is_the_same_and_no_slopes_are_made(mode, monkeypatch):
    given = problem()
    wanted = linear_cross_entropy(*given)[0].detach()
    monkeypatch.setattr(torch.Tensor, "addmm_", None)
    with mode():
        found, each = linear_cross_entropy(*given)
    assert not found.requires_grad
    assert torch.equal(found, wanted)
    assert float(each.mean()) == pytest.approx(float(found))


def test_under_autocast_the_head_computes_in_its_dtype():
    hidden, weight, targets = problem()
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = linear_cross_entropy(hidden, weight, targets)
    wanted = F.cross_entropy((hidden.bfloat16() @ weight.bfloat16().T).float(), targets)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


@given(st.integers(1, 20_000))
def test_a_chunks_logits_are_a_quarter_of_the_heads_gradient(width):
    assert chunk_rows(width) == max(LEAST_ROWS, width // 4)


@pytest.mark.slow
def test_at_a_vocabulary_of_256_000_memory_is_a_quarter_at_most():
    def peak(of):
        return int(subprocess.run([sys.executable, "-c", LEAST, of], capture_output=True, text=True, check=True).stdout)

    assert peak("chunks") <= peak("reference") / 4


# Models --------------------------------------------------------------------------------------------------


def loss_of_all_logits(model, blocks, z_loss=0.0):
    logits = model(input_ids=blocks[:, :-1], use_cache=False).logits.flatten(0, 1)
    return token_losses(logits, blocks[:, 1:].flatten(), z_loss).mean()


@pytest.fixture
def always(monkeypatch):
    """Even a small problem is split."""
    monkeypatch.setattr(losses, "SMALL", 0)


@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
@pytest.mark.parametrize("architecture", [*PLAIN, *OTHERS], ids=lambda one: one["model_type"])
def test_every_model_has_the_loss_of_its_own_logits(architecture, z_loss, always):
    torch.manual_seed(0)
    model = build_model(None, architecture).train()
    blocks = torch.randint(0, V, (2, 33))
    loss = NextTokenLoss(model, z_loss)
    found, wanted = loss(blocks), loss_of_all_logits(model, blocks, z_loss)
    assert loss.plain is (architecture in PLAIN)
    assert model.training
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    alone = [loss_of_all_logits(model, block[None], z_loss).detach() for block in blocks]
    torch.testing.assert_close(loss.of_samples, torch.stack(alone), rtol=1e-5, atol=1e-5)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for mine, theirs in zip(torch.autograd.grad(found, weights, allow_unused=True),
                            torch.autograd.grad(wanted, weights, allow_unused=True), strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


# Documents -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_positions_count_from_the_beginning_of_each_document(tokens):
    wanted, place = [], 0
    for token in tokens:
        wanted.append(place)
        place = 0 if token == 0 else place + 1
    assert document_positions(torch.tensor([tokens]), 0).tolist() == [wanted]


@pytest.mark.parametrize("small", [True, False], ids=["all-logits", "split"])
@pytest.mark.parametrize("architecture", [PLAIN[0], PLAIN[3], PLAIN[4], PLAIN[5], PLAIN[7]],
                         ids=lambda one: one["model_type"])
def test_masked_documents_are_trained_as_if_each_stood_alone(architecture, small, monkeypatch):
    monkeypatch.setattr(losses, "SMALL", losses.SMALL if small else 0)
    torch.manual_seed(0)
    model = build_model(None, architecture).train()
    eos, documents = 7, [torch.randint(8, V, (length,)) for length in (5, 1, 12)]
    block = torch.cat([torch.cat([document, torch.tensor([eos])]) for document in documents])[None]
    loss = NextTokenLoss(model, eos=eos)
    alone, count = 0.0, 0
    for part in block[0, :-1].split([len(document) + 1 for document in documents[:-1]] + [len(documents[-1])]):
        targets = block[0, 1:][count:count + len(part)]
        alone += F.cross_entropy(model(part[None], use_cache=False).logits[0], targets, reduction="sum")
        count += len(part)
    torch.testing.assert_close(loss(block), alone / count, rtol=1e-5, atol=1e-5)
    assert abs(float((NextTokenLoss(model)(block) - alone / count).detach())) > 1e-6


def packed(seed, *shape):
    """Tokens in which 7 ends documents."""
    tokens = torch.randint(8, V, shape, generator=torch.Generator().manual_seed(seed))
    tokens[0, 5] = tokens[0, 20] = tokens[-1, 11] = 7
    return tokens


class OnlyAlone(torch.nn.Module):
    """Keeps documents apart in a single sequence only, as transformers' flash attention does."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids, position_ids=None, **given):
        alone = {"position_ids": position_ids} if len(input_ids) == 1 else {}
        return self.model(input_ids=input_ids, **alone, **given)


def test_samples_joined_into_one_sequence_are_trained_as_if_apart():
    torch.manual_seed(0)
    model, blocks = build_model(None, PLAIN[0]).train(), packed(0, 3, 33)
    apart, joined = NextTokenLoss(model, eos=7), NextTokenLoss(OnlyAlone(model), eos=7, joined=True)
    torch.testing.assert_close(joined(blocks), apart(blocks), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(joined.of_samples, apart.of_samples, rtol=1e-6, atol=1e-6)


def test_a_model_that_keeps_documents_apart_only_in_a_single_sequence_is_refused_a_batch():
    loss = NextTokenLoss(OnlyAlone(build_model(None, PLAIN[0])), eos=7)
    with pytest.raises(ValueError, match="OnlyAlone cannot keep the documents of a sequence apart"):
        loss(packed(0, 2, 33))


def test_flex_attention_keeps_documents_apart_with_the_same_loss():
    found, blocks = [], packed(0, 2, 33)
    for attention in ("sdpa", "flex_attention"):
        torch.manual_seed(0)
        loss = NextTokenLoss(build_model(None, {**PLAIN[0], "hidden_size": 64}, attention=attention), eos=7)
        # On a CPU it has no backward pass; compiled, it says the same after half a minute.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            found.append((float(loss(blocks)), loss.apart))
    assert found[0] == (pytest.approx(found[1][0], abs=1e-6), True)
    assert found[1][1]


def test_a_model_that_cannot_keep_documents_apart_is_refused():
    mamba = {"model_type": "falcon_mamba", "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    loss = NextTokenLoss(build_model(None, mamba), eos=7)
    with pytest.raises(ValueError, match="FalconMambaForCausalLM cannot keep the documents of a sequence apart"):
        loss(torch.randint(0, V, (2, 9)))


# Small and foreign ---------------------------------------------------------------------------------------


def test_a_small_problem_is_computed_at_once_and_asks_nothing():
    model = build_model(None, PLAIN[0])
    blocks = torch.randint(0, V, (2, 17))
    loss = NextTokenLoss(model)
    torch.testing.assert_close(loss(blocks), loss_of_all_logits(model, blocks))
    assert loss.plain is None


def test_a_model_that_is_none_of_transformers_is_left_alone(always):
    class Model(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            return type("Output", (), {"logits": F.one_hot(input_ids, V).float()})

    blocks = torch.randint(0, V, (2, 17))
    loss = NextTokenLoss(Model())
    assert loss.plain is False
    torch.testing.assert_close(loss(blocks), loss_of_all_logits(Model(), blocks))
