from __future__ import annotations

import json

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, VOCABULARY, SaveAt, fit, make_trainer, name_of, named_block, same_weights
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from lit_cpt.blends import Blend
from lit_cpt.callbacks import PhaseSwitchCallback, RunCheckpointCallback, StabilityCallback
from lit_cpt.data import BlendDataModule
from lit_cpt.events import read_events
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import AdamW, Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine, Warmup
from lit_cpt.weights import build_model

FIRST = {"a": 0.60, "b": 0.35, "c": 0.05}
GLOBAL, STEPS = 4, 10
TOKENS = GLOBAL * LENGTH


def recipe_of(curve=None, **settings):
    phases = [Phase("first", Blend(FIRST)), Phase("late", Blend({"c": 1.0}), Trigger(eta_over_eta_max=0.2))]
    return Recipe(STEPS * TOKENS, curve or Cosine(1e-2), phases, **settings)


def module_of(tiny, recipe=None, **given):
    torch.manual_seed(0)
    return ContinuedPretraining(recipe or recipe_of(), **(given or {"architecture": tiny}))


def data_of(sources, recipe=None, **settings):
    return BlendDataModule(recipe or recipe_of(), sources, **{
        "sequence_length": LENGTH, "global_batch": GLOBAL, "micro_batch": GLOBAL, "workers": 0, "validation_blocks": 0,
        **settings})


def scalars(folder):
    """Everything that a TensorBoard folder says: name -> {step: value}."""
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: {event.step: event.value for event in read.Scalars(tag)} for tag in read.Tags()["scalars"]}


@pytest.fixture(scope="module")
def logged(sources, tiny, tmp_path_factory):
    """A run that logs every other step, validates every four, saves at 6: module, diary, folder, scalars."""
    folder = tmp_path_factory.mktemp("logged")
    module = module_of(tiny)
    logger = TensorBoardLogger(folder, name="", version="log")
    diary = fit(module, data_of(sources, micro_batch=2, validation_blocks=5), folder, PhaseSwitchCallback(),
                SaveAt(folder, 4, 6), logger=logger, log_every_n_steps=2, val_check_interval=8)
    logger.finalize("success")
    return module, diary, folder, scalars(folder / "log")


# The clock ---------------------------------------------------------------------------------------------


def test_every_step_is_made_at_the_rate_that_the_recipe_says(logged):
    _, diary, _, _ = logged
    assert diary.etas == [recipe_of().eta_at(step * TOKENS) for step in range(STEPS)]


def test_a_warm_up_starts_from_its_first_rate(sources, tiny, tmp_path):
    recipe = recipe_of(Warmup(Cosine(1e-2), 0.3))
    diary = fit(module_of(tiny, recipe), data_of(sources, recipe), tmp_path)
    assert diary.etas == [recipe.eta_at(step * TOKENS) for step in range(STEPS)]
    assert diary.etas[0] == 0.0


def test_the_clock_counts_the_tokens_that_were_trained(logged):
    module, _, folder, _ = logged
    assert module.tokens_seen == STEPS * TOKENS
    for step in (4, 6):
        saved = torch.load(folder / f"step-{step}.ckpt", weights_only=False)
        assert saved["lit_cpt"]["tokens_seen"] == step * TOKENS
        assert saved["lr_schedulers"][0]["tokens_seen"] == step * TOKENS


def test_a_clock_outside_a_run_with_the_recipes_scheduler_stands_at_zero(sources, tiny, tmp_path):
    class Own(ContinuedPretraining):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Own(recipe_of(), architecture=tiny)
    fit(module, data_of(sources), tmp_path, max_steps=2)
    assert module.tokens_seen == 0


# The loss and the optimizer ------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_every_next_token(sources, tiny):
    module = module_of(tiny)
    module.configure_model()
    block = torch.stack([named_block(0, 3), named_block(1, 7)]).long()
    logits = module.model(block[:, :-1]).logits
    by_hand = [F.cross_entropy(logits[b, t], block[b, t + 1]) for b in range(2) for t in range(LENGTH)]
    assert float(module.loss(block)) == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)
    assert module(block[:, :-1]).shape == (2, LENGTH, VOCABULARY)


def test_a_pretrained_model_is_trained_in_training_mode_and_built_once(tiny, tmp_path):
    build_model(None, {**tiny, "attention_dropout": 0.1}).save_pretrained(tmp_path)
    module = module_of(tiny, pretrained=str(tmp_path))
    module.configure_model()
    model = module.model
    module.configure_model()
    assert module.model is model
    assert model.training


def test_the_optimizer_has_the_recipes_settings_and_spares_norms(sources, tiny, tmp_path):
    recipe = recipe_of(optimizer=AdamW(betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3))
    module = module_of(tiny, recipe)
    fit(module, data_of(sources, recipe), tmp_path, max_steps=1)
    [optimizer] = module.trainer.optimizers
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.8, 0.9), 1e-6)}
    assert all("norm" in name for name in optimizer.param_groups[1]["param_names"])


def test_the_gradient_is_measured_once_a_step_for_guard_clipping_and_log(sources, tiny, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr("lit_cpt.gradients.get_total_norm", lambda *given: measured.append(1) or get_total_norm(*given))
    module = ContinuedPretraining(recipe_of(), architecture=tiny)
    diary = fit(module, data_of(sources), tmp_path, StabilityCallback(), log_every_n_steps=1)
    assert len(measured) == len(diary.etas)


def test_a_trainer_that_is_to_clip_is_refused(sources, tiny, tmp_path):
    with pytest.raises(ValueError, match=r"trainer.gradient_clip_val=0.5: gradients are clipped at the recipe's norm, "
                                         r"1.0. Leave it out, or set recipe.optimizer.clip"):
        fit(ContinuedPretraining(recipe_of(), architecture=tiny), data_of(sources), tmp_path, gradient_clip_val=0.5)


@pytest.mark.parametrize(("clip", "changes"), [(1e-3, True), (0.0, False), (1e6, False)])
def test_gradients_are_clipped_by_the_recipes_norm_and_zero_turns_it_off(sources, tiny, tmp_path, clip, changes):
    class Norms(ContinuedPretraining):
        after = None

        def configure_gradient_clipping(self, optimizer, *rest, **more):
            super().configure_gradient_clipping(optimizer, *rest, **more)
            self.after = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in self.parameters()]))

    recipe = recipe_of(optimizer=AdamW(clip=clip))
    module = Norms(recipe, architecture=tiny)
    fit(module, data_of(sources, recipe), tmp_path, max_steps=1)
    assert module.gradient_norm > 1e-2
    assert float(module.after) == pytest.approx(clip if changes else float(module.gradient_norm), rel=1e-3)


def test_accumulation_makes_the_steps_of_the_whole_batch(sources, tiny, tmp_path):
    weights = []
    for micro in (4, 1):
        module = module_of(tiny)
        fit(module, data_of(sources, micro_batch=micro), tmp_path, PhaseSwitchCallback())
        weights.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    assert torch.allclose(*weights, atol=1e-4)


# What is logged --------------------------------------------------------------------------------------------


def test_train_metrics_are_logged_every_n_steps_under_the_step(logged):
    _, diary, _, values = logged
    assert sorted(values["train/loss"]) == [2, 4, 6, 8, 10]
    # Logged after the scheduler's step: the rate of the next one.
    assert values["train/eta"][4] == pytest.approx(diary.etas[4])
    assert values["train/tokens_seen"] == {step: step * TOKENS for step in (2, 4, 6, 8, 10)}
    assert all(norm > 0 for norm in values["train/gradient_norm"].values())


def test_the_loss_that_is_logged_is_the_mean_since_the_last_log(sources, tiny, tmp_path):
    class Losses(ContinuedPretraining):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.losses = [*getattr(self, "losses", []), float(loss.detach())]
            return loss

    torch.manual_seed(0)
    module = Losses(recipe_of(), architecture=tiny)
    logger = TensorBoardLogger(tmp_path, name="", version="log")
    fit(module, data_of(sources, micro_batch=2), tmp_path, logger=logger, log_every_n_steps=3)
    logger.finalize("success")
    loss = scalars(tmp_path / "log")["train/loss"]
    assert list(loss) == [3, 6, 9]
    for step, value in loss.items():
        assert value == pytest.approx(sum(module.losses[2 * step - 6 : 2 * step]) / 6, rel=1e-5)


def test_the_loss_of_each_source_is_logged_and_is_the_mean_over_its_blocks(logged, sources, tiny):
    _, _, folder, values = logged
    module = module_of(tiny)
    module.configure_model()
    saved = torch.load(folder / "step-4.ckpt", weights_only=False)["state_dict"]
    module.load_state_dict(saved)
    module.eval()
    for source, name in enumerate(sources):
        assert sorted(values[f"val/{name}/loss"]) == [4, 8]
        blocks = torch.stack([named_block(source, row) for row in range(5)]).long()  # batches of 2, 2 and 1
        with torch.no_grad():
            assert values[f"val/{name}/loss"][4] == pytest.approx(float(module.loss(blocks)), rel=1e-5)


def test_a_model_is_validated_without_training(sources, tiny, tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.validate(module_of(tiny), datamodule=data_of(sources, validation_blocks=3), verbose=False)
    metrics = trainer.callback_metrics
    assert {f"val/{name}/loss" for name in sources} <= set(metrics)
    assert float(metrics["val/a/loss"]) == pytest.approx(4.16, abs=0.3)  # ln 64: it has learnt nothing


def test_the_diary_tells_start_phase_and_finish(logged):
    events = [(event["event"], event["step"], event["tokens_seen"]) for event in read_events(logged[2])]
    switch = recipe_of().start_steps(TOKENS)[1]
    assert events == [("start", 0, 0), ("phase", switch, switch * TOKENS), ("finish", STEPS, STEPS * TOKENS)]


def test_a_run_cut_short_has_no_finish_and_its_resume_says_so(sources, tiny, tmp_path):
    module = module_of(tiny)
    fit(module, data_of(sources), tmp_path, SaveAt(tmp_path, 3), max_steps=3)
    fit(module_of(tiny), data_of(sources), tmp_path, PhaseSwitchCallback(), resume=tmp_path / "step-3.ckpt")
    events = [(event["event"], event["step"]) for event in read_events(tmp_path)]
    assert events == [("start", 0), ("resume", 3), ("phase", recipe_of().start_steps(TOKENS)[1]), ("finish", STEPS)]


# Checkpoints -----------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_recipe_as_plain_values(logged):
    saved = torch.load(logged[2] / "step-6.ckpt", weights_only=False)["lit_cpt"]
    assert saved["recipe"] == json.loads(json.dumps(recipe_of().describe()))
    assert (saved["sequence_length"], saved["global_batch"]) == (LENGTH, GLOBAL)


@pytest.mark.parametrize(("change", "says"), [
    ({"global_batch": 8}, r"trained with global_batch=4, this run has 8: .*--data\.global_batch 4"),
    ({"sequence_length": 4}, r"trained with sequence_length=8, this run has 4: .*--data\.sequence_length 8"),
])
def test_a_resume_with_another_batch_is_refused_with_both_values(logged, sources, tiny, tmp_path, change, says):
    data = data_of(sources, **change)
    with pytest.raises(ValueError, match=says):
        fit(module_of(tiny), data, tmp_path, resume=logged[2] / "step-4.ckpt")


def test_a_checkpoint_of_another_batch_may_be_validated(logged, sources, tiny, tmp_path):
    data = data_of(sources, global_batch=8, micro_batch=2, validation_blocks=5)
    trainer = make_trainer(tmp_path)
    trainer.validate(module_of(tiny), datamodule=data, verbose=False, weights_only=False,
                     ckpt_path=str(logged[2] / "step-4.ckpt"))
    assert float(trainer.callback_metrics["val/b/loss"]) == pytest.approx(logged[3]["val/b/loss"][4], rel=1e-5)


def test_documents_are_kept_apart_where_it_is_asked(sources, tiny, tmp_path):
    masked, plain = (module_of(tiny, architecture=tiny, mask_documents=asked) for asked in (True, False))
    data = data_of(sources)
    for number, module in enumerate((masked, plain)):
        fit(module, data_of(sources), tmp_path / str(number))
    assert data.eos_token_id == masked.loss_of.eos == 0  # of the sources' manifests
    assert plain.loss_of.eos is None
    assert not same_weights(masked.model, plain.model)


def test_documents_cannot_be_kept_apart_without_knowing_what_ends_them(tiny):
    module = module_of(tiny, architecture=tiny, mask_documents=True)
    module.configure_model()
    module.trainer = make_trainer("unused")
    with pytest.raises(ValueError, match="mask_documents=True needs a data module with an `eos_token_id`"):
        module.loss(torch.zeros(1, 5, dtype=torch.long))


@pytest.mark.parametrize(("change", "says"), [
    ({"z_loss": 1e-4}, r"model\.z_loss: 0\.0 -> 0\.0001"),
    ({"router_loss": 0.1}, r"model\.router_loss: 0\.0 -> 0\.1"),
    ({"mask_documents": True}, r"model\.mask_documents: False -> True"),
])
def test_a_resume_with_another_loss_is_refused(logged, sources, tiny, tmp_path, change, says):
    module = module_of(tiny, architecture=tiny, **change)
    with pytest.raises(ValueError, match=says):
        fit(module, data_of(sources, micro_batch=2), tmp_path, resume=logged[2] / "step-4.ckpt")


def test_a_warm_start_takes_the_moments_and_not_the_clock(logged, sources, tiny, tmp_path):
    path = logged[2] / "step-6.ckpt"
    saved = torch.load(path, weights_only=False)["optimizer_states"][0]
    module = module_of(tiny, architecture=tiny, optimizer_state=str(path))

    class Before(SaveAt):
        def on_train_start(self, trainer, module):
            self.steps_made = {float(state["step"]) for state in trainer.optimizers[0].state.values()}
            self.first = next(iter(trainer.optimizers[0].state.values()))["exp_avg"].clone()

    before = Before(tmp_path)
    diary = fit(module, data_of(sources), tmp_path, before, max_steps=2)
    assert before.steps_made == {6.0}
    assert any(torch.equal(before.first, state["exp_avg"]) for state in saved["state"].values())
    assert diary.etas == [recipe_of().eta_at(step * TOKENS) for step in (0, 1)]


def test_a_model_with_dropout_ends_alike_whole_and_resumed(sources, tiny, tmp_path):
    dropping = {**tiny, "attention_dropout": 0.5}
    whole, cut, plain = (module_of({**tiny, **more}) for more in (dropping, dropping, {}))
    fit(whole, data_of(sources, micro_batch=2), tmp_path, SaveAt(tmp_path, 4))
    fit(cut, data_of(sources, micro_batch=2), tmp_path, resume=tmp_path / "step-4.ckpt")
    fit(plain, data_of(sources, micro_batch=2), tmp_path)
    assert same_weights(whole, cut)
    assert not same_weights(whole, plain)


def test_a_resumed_run_keeps_its_own_moments(sources, tiny, tmp_path):
    given = {"architecture": tiny, "optimizer_state": str(tmp_path / "gone.ckpt")}
    ended = module_of(tiny)
    fit(ended, data_of(sources), tmp_path, SaveAt(tmp_path, 5), PhaseSwitchCallback())
    resumed = module_of(tiny, **given)
    fit(resumed, data_of(sources), tmp_path, PhaseSwitchCallback(), resume=tmp_path / "step-5.ckpt")
    assert same_weights(resumed, ended)
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        fit(module_of(tiny, **given), data_of(sources), tmp_path)


# Refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"pretrained": None}, {"pretrained": "x", "architecture": "y"}])
def test_a_module_continues_a_model_or_starts_one(given):
    with pytest.raises(ValueError, match=rf"model\.pretrained={given['pretrained']!r} and model\.architecture="):
        ContinuedPretraining(recipe_of(), **given)


def test_a_module_without_a_data_module_is_refused(tiny, tmp_path):
    loader = torch.utils.data.DataLoader([named_block(0, 0).long()] * 4)
    with pytest.raises(ValueError, match=r"needs a data module with a `batch`.*trainer\.fit\(module, datamodule="):
        make_trainer(tmp_path, max_steps=2).fit(module_of(tiny), loader)


# What a resumed run goes on with -----------------------------------------------------------------------------


def test_metrics_are_seen_by_callbacks_at_the_end_of_the_step_and_still_after_a_resume(sources, tiny, tmp_path):
    class Sees(SaveAt):
        def __init__(self, folder, *steps):
            super().__init__(folder, *steps)
            self.seen = {}

        def on_train_start(self, trainer, module):
            self.seen[trainer.global_step] = float(trainer.callback_metrics.get("train/loss", 0))

        def on_train_batch_end(self, trainer, *rest):
            self.seen[trainer.global_step] = float(trainer.callback_metrics.get("train/loss", 0))
            super().on_train_batch_end(trainer, *rest)

    first, second = Sees(tmp_path, 5), Sees(tmp_path)
    fit(module_of(tiny), data_of(sources), tmp_path, first, PhaseSwitchCallback(), log_every_n_steps=3)
    fit(module_of(tiny), data_of(sources), tmp_path, second, PhaseSwitchCallback(), log_every_n_steps=3,
        resume=tmp_path / "step-5.ckpt")
    assert [first.seen[step] > 0 for step in (0, 2, 3, 4)] == [False, False, True, True]
    assert second.seen == {step: first.seen[step] for step in range(5, STEPS + 1)}


def test_the_sums_since_the_last_log_are_of_whole_steps(sources, tiny, tmp_path):
    class Halfway(SaveAt):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.save_checkpoint(self.folder / f"batch-{batch_idx + 1}.ckpt")

    fit(module_of(tiny), data_of(sources, micro_batch=2), tmp_path, Halfway(tmp_path), max_steps=3, log_every_n_steps=9)
    sums = [torch.load(tmp_path / f"batch-{batch}.ckpt", weights_only=True)["lit_cpt_state"]["sums"]
            for batch in range(1, 7)]
    assert [float(saved.get("micro_batches", 0)) for saved in sums] == [0, 2, 2, 4, 4, 6]
    assert [saved["loss"] for saved in sums[1::2]] == [saved["loss"] for saved in [*sums[2::2], sums[5]]]
    assert 3.5 < sums[1]["loss"] / 2 < 4.7  # one step's mean, about ln 64


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_the_training_loss_of_each_source_is_that_of_its_samples_and_the_same_after_a_resume(
        kind, sources, tiny, tmp_path):
    class ByHand(ContinuedPretraining):
        found = ()

        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                alone = [self.loss(block[None]) for block in batch]
            self.found = [*self.found, *((name_of(block)[0], float(one)) for block, one in zip(
                batch, alone, strict=True))]
            return super().training_step(batch, batch_idx)

    routed = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    architecture = {**tiny, **(routed if kind == "mixtral" else {})}
    runs = {}
    for run, resume in (("whole", None), ("resumed", tmp_path / "step-5.ckpt")):
        torch.manual_seed(0)
        module, logger = ByHand(recipe_of(), architecture=architecture), TensorBoardLogger(
            tmp_path, name="", version=run)
        saves = [] if resume else [SaveAt(tmp_path, 5)]
        fit(module, data_of(sources, micro_batch=2, workers=2), tmp_path, PhaseSwitchCallback(), *saves,
            resume=resume, logger=logger, log_every_n_steps=3)
        logger.finalize("success")
        runs[run] = (module.found, scalars(tmp_path / run))
    found, values = runs["whole"]
    for step in (3, 6, 9):
        interval = found[(step - 3) * GLOBAL : step * GLOBAL]
        for source, name in enumerate(sources):
            own = [loss for place, loss in interval if place == source]
            assert (step in values.get(f"train/{name}/loss", {})) is bool(own)
            if own:
                assert values[f"train/{name}/loss"][step] == pytest.approx(sum(own) / len(own), rel=2e-6)
        parts = [values[f"train/{name}/loss"][step] * sum(place == source for place, _ in interval)
                 for source, name in enumerate(sources) if step in values.get(f"train/{name}/loss", {})]
        assert sum(parts) / len(interval) == pytest.approx(values["train/loss"][step], abs=1e-6)
    resumed = runs["resumed"][1]
    assert resumed == {name: {step: value for step, value in points.items() if step in (6, 9)}
                       for name, points in values.items() if {6, 9} & points.keys()}
    assert ("router/busiest" in resumed) is (kind == "mixtral")
    assert "train/c/loss" in resumed  # of which the second phase wholly is


def test_a_subclass_with_other_samples_than_the_streams_has_no_loss_by_source(sources, tiny, tmp_path):
    class First(ContinuedPretraining):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:1], batch_idx)

    module = First(recipe_of(), architecture=tiny)
    fit(module, data_of(sources), tmp_path, max_steps=2, log_every_n_steps=1)
    assert "train/loss" in module.published
    assert not {f"train/{name}/loss" for name in sources} & module.published.keys()


def test_attention_is_computed_as_is_asked_and_flex_is_not_trained_on_a_cpu(sources, tiny, tmp_path):
    module = module_of(tiny, architecture=tiny, attention="eager")
    fit(module, data_of(sources), tmp_path, max_steps=1)
    assert module.model.config._attn_implementation == "eager"
    module = module_of(tiny, architecture=tiny, attention="flex_attention")
    with pytest.raises(ValueError, match=r"model\.attention=flex_attention: on a CPU torch has no backward pass"):
        fit(module, data_of(sources), tmp_path)
    assert module.model is None


def test_a_resume_as_another_run_is_refused_unless_the_data_module_allows_it(logged, sources, tiny, tmp_path):
    path = logged[2] / "step-4.ckpt"
    with pytest.raises(ValueError, match=r"data\.seed: 42 -> 7\. Restore what was, .*--allow-change data\.seed"):
        fit(module_of(tiny), data_of(sources, seed=7), tmp_path, resume=path)
    assert not (tmp_path / "events.jsonl").exists()
    module = module_of(tiny)
    fit(module, data_of(sources, seed=7, allow_change=["data.seed"]), tmp_path, PhaseSwitchCallback(), resume=path)
    assert module.tokens_seen == STEPS * TOKENS
    [change] = [event for event in read_events(tmp_path) if event["event"] == "change"]
    assert (change["field"], change["was"], change["now"], change["step"]) == ("data.seed", "42", "7", 4)


def test_a_run_that_had_ended_goes_on_when_its_horizon_is_longer(sources, tiny, tmp_path):
    longer = Recipe(2 * STEPS * TOKENS, Cosine(1e-2), recipe_of().phases)
    fit(module_of(tiny), data_of(sources), tmp_path, RunCheckpointCallback(), PhaseSwitchCallback())
    module = module_of(tiny, longer)
    diary = fit(module, data_of(sources, longer, allow_change=["recipe.token_horizon"]), tmp_path,
                PhaseSwitchCallback(), resume=tmp_path / "checkpoints" / "last.ckpt")
    assert (module.tokens_seen, len(diary.names)) == (2 * STEPS * TOKENS, STEPS * GLOBAL)


def test_a_checkpoint_of_the_very_beginning_resumes_as_a_new_run(sources, tiny, tmp_path):
    class AtStart(pl.Callback):
        def on_train_start(self, trainer, module):
            trainer.save_checkpoint(tmp_path / "step-0.ckpt")

    module = module_of(tiny)
    settings = {"log_every_n_steps": 2, "val_check_interval": 2}
    diary = fit(module, data_of(sources, validation_blocks=2), tmp_path, AtStart(), PhaseSwitchCallback(), **settings)
    resumed = module_of(tiny)
    again = fit(resumed, data_of(sources, validation_blocks=2), tmp_path, PhaseSwitchCallback(),
                resume=tmp_path / "step-0.ckpt", **settings)
    assert again.names == diary.names
    assert same_weights(resumed, module)
    assert resumed.published == module.published
