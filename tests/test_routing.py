"""The routers of a mixture of experts: their load, the loss that evens it out, and where a run tells of them."""

from __future__ import annotations

import pytest
import torch
from conftest import LENGTH, fit
from torch.utils.checkpoint import checkpoint
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from lit_cpt.blends import Blend
from lit_cpt.data import BlendDataModule
from lit_cpt.losses import NextTokenLoss
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe
from lit_cpt.routing import Routing, balance_loss, dealt, is_routed, router_metrics
from lit_cpt.schedules import Cosine
from lit_cpt.weights import build_model

MIXTRAL = {"model_type": "mixtral", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
           "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4,
           "num_experts_per_tok": 2, "max_position_embeddings": 32}
QWEN = {"model_type": "qwen3_moe", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "head_dim": 8,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1, "max_position_embeddings": 32}
BLOCKS = torch.arange(36).view(4, 9) * 7 % 64


def built(config):
    torch.manual_seed(0)
    return build_model(None, config).train()


def test_tokens_are_counted_by_the_experts_they_go_to():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    assert dealt(logits, 1).tolist() == [2, 0, 1]
    assert dealt(logits, 2).tolist() == [2, 2, 2]


def test_the_loss_is_that_of_transformers():
    logits = tuple(torch.randn(50, 8, generator=torch.Generator().manual_seed(layer)) for layer in range(3))
    torch.testing.assert_close(balance_loss(logits, 2), load_balancing_loss_func(logits, 8, 2))


def test_an_even_load_has_the_least_loss():
    even = torch.eye(4).repeat(5, 1) * 1e-4
    assert float(balance_loss([even], 1)) == pytest.approx(1.0, abs=1e-3)
    assert float(balance_loss([torch.tensor([[9.0, 0, 0, 0]]).repeat(20, 1)], 1)) > 3.9


@pytest.mark.parametrize("config", [MIXTRAL, QWEN], ids=["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("plain", [False, True], ids=["all logits", "head apart"])
def test_the_training_loss_has_its_part_with_gradients(config, plain, monkeypatch):
    if plain:
        monkeypatch.setattr("lit_cpt.losses.SMALL", 0)
    model = built(config)
    mine = NextTokenLoss(model, router_loss=10.0)(BLOCKS)
    alone = NextTokenLoss(model)(BLOCKS)
    tokens = BLOCKS[:, :-1]
    routers = model(tokens, use_cache=False, output_router_logits=True).router_logits
    torch.testing.assert_close(mine - alone, 10 * balance_loss(routers, 2))
    before = torch.autograd.grad(alone, list(model.parameters()), retain_graph=True, allow_unused=True)
    after = torch.autograd.grad(mine, list(model.parameters()), allow_unused=True)
    changed = [name for (name, _), one, other in zip(model.named_parameters(), before, after, strict=True)
               if one is not None and not torch.allclose(one, other, atol=1e-6)]
    assert any("gate" in name for name in changed)


def test_without_gradients_the_loss_is_the_models_alone():
    model = built(MIXTRAL)
    with torch.no_grad():
        assert float(NextTokenLoss(model, router_loss=10.0)(BLOCKS)) == pytest.approx(float(NextTokenLoss(model)(
            BLOCKS)), abs=1e-6)


def test_recomputed_blocks_give_the_same_loss_gradients_and_load():
    found = []
    for again in (False, True):
        model = built(MIXTRAL)
        for block in model.model.layers if again else []:
            block.forward = (lambda forward: lambda *given, **named: checkpoint(
                forward, *given, use_reentrant=False, **named))(block.forward)
        loss_of = NextTokenLoss(model, router_loss=1.0)
        loss = loss_of(BLOCKS)
        loss.backward()
        found.append((float(loss.detach()), [parameter.grad.clone() for parameter in model.parameters()],
                      loss_of.routing.noted["router/loads"]))
    (one, ones, load), (other, others, again) = found
    assert one == other
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ones, others, strict=True))
    assert torch.equal(load, again)
    assert float(load.sum()) == 2 * 2 * BLOCKS[:, :-1].numel()  # layers, experts per token


def test_a_model_without_routers_is_refused_a_loss_of_them(tiny):
    assert not is_routed(build_model(None, tiny))
    with pytest.raises(ValueError, match=r"router_loss=0\.1, but LlamaForCausalLM is no mixture of experts"):
        NextTokenLoss(build_model(None, tiny), router_loss=0.1)


def test_metrics_are_the_mean_loss_and_the_most_uneven_loads():
    routing = Routing(built(MIXTRAL), 0.5)
    skewed = torch.tensor([[3.0, 2.0, 0.0, 0.0]]).repeat(10, 1)
    assert float(routing.loss([skewed, skewed])) == pytest.approx(0.5 * float(balance_loss([skewed], 2)))
    logged = router_metrics({name: 3 * value for name, value in routing.noted.items()}, torch.tensor(3.0))
    assert (float(logged["router/busiest"]), float(logged["router/idlest"])) == (2.0, 0.0)
    assert float(logged["router/loss"]) == pytest.approx(float(balance_loss([skewed], 2)))
    assert router_metrics({"loss": torch.ones(())}, torch.tensor(3.0)) == {}


def test_a_run_logs_its_routers_and_evens_them_out_if_asked(sources, tmp_path):
    found = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        recipe = Recipe(60 * 4 * LENGTH, Cosine(1e-2), [Phase("only", Blend({"a": 0.7, "b": 0.3}))])
        module = ContinuedPretraining(recipe, architecture=MIXTRAL, router_loss=weight)
        data = BlendDataModule(recipe, sources, sequence_length=LENGTH, global_batch=4, micro_batch=2, workers=0,
                               validation_blocks=0)
        fit(module, data, tmp_path / str(weight), log_every_n_steps=20)
        found[weight] = module.published
    for published in found.values():
        assert published["router/idlest"] <= 1 <= published["router/busiest"]
    assert found[1.0]["router/loss"] < found[0.0]["router/loss"]
