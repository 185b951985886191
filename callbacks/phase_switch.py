"""Starts each phase when its trigger is reached; the learning rate's fall is the paper's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from lit_cpt.blends import Blend
from lit_cpt.checkpoints import save_now
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.stream.fetching import saved_loader_state
from lit_cpt.stream.stock import switched_stream
from lit_cpt.stream.switching import BlendedStream, TrainStream, Weights, only_loader
from lit_cpt.telling import rate, record, steps_between_logs

log = logging.getLogger(__name__)


class PhaseSwitchCallback(Callback):
    """Watches the learning rate, the clock or a metric, and gives the train loader the weights of the next phase.

    Without arguments it runs the phases of ``module.recipe``, as many as there are. With arguments it needs nothing
    else of lit_cpt: any LightningModule, and a train loader that `switched_stream` can switch (docs/recipe.md says
    which, and what each guarantees).

    The rate is the highest of the first optimizer's parameter groups. A trigger on it arms once the rate has been
    above the threshold (so a warm-up from below does not fire it) and fires when it is at or below. A metric is
    judged on its mean over the ranks that logged it, after each validation and after the step (and the one behind it)
    at which the Trainer logs, each value once; NaN is past no bound. The first batch after a switch comes wholly from
    the new blend, prefetching or not. Where the recipe's curve foretells the switch, our own stream is told before
    the first batch and nothing is rebuilt; the optimizer's own rate remains what decides.

    Args:
        weights: Blend to switch to, by source name, or a list where the loader's datasets have no names; None to
            follow ``module.recipe``.
        eta_over_eta_max: Switch when the rate has fallen to this share of ``eta_max``, in (0, 1).
        eta: Or to this rate.
        step: Or after this many optimizer steps.
        metric: Or when a logged value crosses a bound, such as ``val/qa/loss < 1.2``.
        eta_max: What ``eta_over_eta_max`` refers to; the highest rate seen so far where not given.
        checkpoint: Save a checkpoint at each switch; where not given, if the Trainer saves any.

    Raises:
        ValueError: Weights without exactly one trigger, or a trigger without weights.
    """

    def __init__(self, weights: Mapping[str, float] | Sequence[float] | None = None,
                 eta_over_eta_max: float | None = None, eta: float | None = None, step: int | None = None,
                 metric: str | None = None, eta_max: float | None = None, checkpoint: bool | None = None) -> None:
        self.phases: Sequence[Phase] = ()
        self.named = weights is None or isinstance(weights, Mapping)
        given = {"eta_over_eta_max": eta_over_eta_max, "eta": eta, "step": step, "metric": metric}
        if weights is not None:
            by_name = weights if isinstance(weights, Mapping) else {
                f"dataset {place}": weight for place, weight in enumerate(weights)}
            self.phases = [Phase("switched", Blend.normalized(by_name), Trigger(**given))]  # type: ignore[arg-type]
        elif any(value is not None for value in given.values()):
            raise ValueError("a trigger without weights: give the blend to switch to, weights={...}, or neither to "
                             "follow the module's recipe.")
        self.eta_max, self.checkpoint = eta_max, checkpoint
        self.eta_peak = 0.0
        self.switches: list[dict[str, Any]] = []
        self.planned: list[tuple[int, Mapping[str, float]]] = []
        self.stream: TrainStream | None = None
        self.saved_loader: dict[str, Any] | None = None
        self.saved_stream: dict[str, Any] = {}
        self.judged: torch.Tensor | None = None  # the metric's last value that was looked at
        self.missed = self.epoch_ended = False

    # When --------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the recipe, take hold of the stream, and tell it what can be foretold."""
        recipe = getattr(pl_module, "recipe", None)
        if not self.phases and isinstance(recipe, Recipe):
            self.phases, self.eta_max = recipe.phases[1:], recipe.curve.eta_max
        if len(self.switches) > len(self.phases):
            raise ValueError(f"the checkpoint has begun phase {self.switches[-1]['phase']!r}, but this recipe has only "
                             f"{len(self.phases)} after the first: resume with the recipe that the run began with.")
        self.eta_peak = max(self.eta_peak, rate(trainer))
        stream = self.take_hold(trainer, self.saved_loader)
        stream.tell_limits()
        if isinstance(stream, BlendedStream):
            self.plan_ahead(trainer, pl_module, stream.loader)
        self.saved_loader, self.saved_stream, self.epoch_ended = None, {}, False
        self.forget_value(trainer)  # what a resumed run has found in its checkpoint was looked at before that
        if self.waiting and self.due(trainer, pl_module):
            self.switch(trainer, pl_module)  # the checkpoint was saved before the switch was noticed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge once more: a scheduler may have stepped, and a metric been logged, after the epoch's last batch."""
        assert self.stream is not None
        if only_loader(trainer) is not self.stream.loader:  # reload_dataloaders_every_n_epochs
            self.take_hold(trainer, None)
        elif self.epoch_ended:
            self.stream.epoch_begins()
        self.epoch_ended = False
        self.look(trainer, pl_module, log_step=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Let the stream note that this batch was fetched."""
        assert self.stream is not None
        self.stream.batch_fetched()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Switch if a trigger is reached: the scheduler has stepped, so this is the rate of the next step."""
        if not self.waiting or trainer.fit_loop._should_accumulate():
            return
        every = steps_between_logs(trainer)  # what the module logs at its own batch end is seen one step later
        self.look(trainer, pl_module, every > 0 and trainer.global_step % every in (0, 1 % every))
        here = isinstance(self.stream, BlendedStream) and self.stream.loader.position
        if self.waiting and self.planned and self.planned[0][0] == here:
            log.warning("phase %s was foretold for step %d, but its trigger (%s) is not reached at eta %.4g: waiting",
                        self.next_phase.name, trainer.global_step, self.next_phase.when, rate(trainer))
            self.planned = []
            self.stream.loader.plan([])  # type: ignore[union-attr]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the metric on what the validation logged."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and self.waiting and self.next_phase.when.metric:  # type: ignore[union-attr]
            self.look(trainer, pl_module, log_step=True)
            if trainer.global_step >= steps_between_logs(trainer):
                self.warn_of_missing(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the next epoch will make an iterator of its own."""
        self.epoch_ended = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the metric that was waited for never came."""
        self.warn_of_missing(trainer)

    @property
    def waiting(self) -> bool:
        """Whether a phase waits for its trigger."""
        return len(self.switches) < len(self.phases)

    @property
    def next_phase(self) -> Phase:
        """The phase that waits for its trigger."""
        return self.phases[len(self.switches)]

    def look(self, trainer: Trainer, pl_module: LightningModule, log_step: bool) -> None:
        """Switch if the next phase is due; a metric is judged only at a ``log_step``, where all ranks take part."""
        if not self.waiting:
            return
        self.eta_peak = max(self.eta_peak, rate(trainer))
        if (log_step or not self.next_phase.when.metric) and self.due(trainer, pl_module):  # type: ignore[union-attr]
            self.switch(trainer, pl_module)

    def due(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether the next phase's trigger is reached."""
        when = self.next_phase.when
        assert when is not None  # only the first phase has none, and it is not waited for
        if when.metric_name is not None:
            return when.crossed_by(self.new_value(trainer, when.metric_name))
        if when.watches_eta:
            eta_max = self.eta_max or self.eta_peak
            armed = not when.fell_to(self.eta_peak, eta_max)
            return armed and when.fell_to(rate(trainer), eta_max)
        if when.kind == "step":
            return trainer.global_step >= when.value
        module: Any = pl_module  # a trigger on tokens came from its recipe
        return bool(module.tokens_seen >= when.token_count(module.recipe.horizon))

    def new_value(self, trainer: Trainer, name: str) -> float:
        """Mean of the metric over the ranks that have logged it since it was last looked at; NaN if none has."""
        value = trainer.callback_metrics.get(name)
        # Lightning hands out another view of a value each time, but of the same memory until it is logged anew.
        new = value is not None and (self.judged is None or value.data_ptr() != self.judged.data_ptr())
        self.judged = value if new else self.judged
        pair = torch.tensor([float(value) if value is not None and new else 0.0, float(new)],
                            device=trainer.strategy.root_device)
        total, ranks = trainer.strategy.reduce(pair, reduce_op="sum").tolist()
        return float(total / ranks) if ranks else float("nan")

    def forget_value(self, trainer: Trainer) -> None:
        """Leave out of account what the metric that is waited for has now."""
        name = self.next_phase.when.metric_name if self.waiting else None  # type: ignore[union-attr]
        self.judged = None if name is None else trainer.callback_metrics.get(name)

    def warn_of_missing(self, trainer: Trainer) -> None:
        """Name, once, the metrics there are, where the one that is waited for is not among them."""
        name = self.next_phase.when.metric_name if self.waiting else None  # type: ignore[union-attr]
        if name is None or name in trainer.callback_metrics or self.missed:
            return
        self.missed = True
        log.warning("phase %s waits for %s, but nothing is logged as %r; there are: %s", self.next_phase.name,
                    self.next_phase.when, name, ", ".join(sorted(trainer.callback_metrics)) or "none")

    # How ---------------------------------------------------------------------------------------------

    def take_hold(self, trainer: Trainer, saved: dict[str, Any] | None) -> TrainStream:
        """Find out how the loader is switched, and bring it to the phase that has begun."""
        self.stream = stream = switched_stream(trainer)
        for phase in self.phases:
            stream.check(self.given(phase))
        stream.load_state(self.saved_stream)
        stream.start(saved, self.given(self.phases[len(self.switches) - 1]) if self.switches else None)
        return stream

    def given(self, phase: Phase) -> Weights:
        """The phase's weights in the shape they were given in."""
        return phase.blend.weights if self.named else list(phase.blend.weights.values())

    def plan_ahead(self, trainer: Trainer, pl_module: LightningModule, loader: Any) -> None:
        """Tell our own stream the switches that can be foretold."""
        # What began just here, in the run that is resumed, is no plan to be dropped: a phase, or another's change.
        begun = [(loader.position, self.phases[len(self.switches) - 1].blend.weights)
                 for switch in self.switches[-1:] if switch["step"] == trainer.global_step]
        begun = begun or changed_here(loader, self.next_phase if self.waiting else None)
        self.planned = self.foretold(loader, pl_module)
        loader.plan([*begun, *self.planned])

    def foretold(self, loader: Any, pl_module: LightningModule) -> list[tuple[int, Mapping[str, float]]]:
        """Start (sample) and weights of the waiting phases past the position, where a recipe tells them."""
        recipe, batch = getattr(pl_module, "recipe", None), getattr(pl_module, "batch_geometry", None)
        if recipe is None or batch is None or self.phases != recipe.phases[1:]:
            return []
        starts = recipe.foretold(batch.tokens_per_step)[1:]  # none behind one that waits for a metric
        planned = [(loader.place_of(start * batch.global_batch), phase.blend.weights)
                   for start, phase in zip(starts, self.phases, strict=False)]
        return [(start, weights) for start, weights in planned[len(self.switches):] if start > loader.position]

    def begin_next(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next phase with the next batch, whatever its trigger; nothing happens where none waits."""
        if self.waiting:
            self.switch(trainer, pl_module)

    def switch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next phase with the next batch."""
        phase, stream = self.next_phase, self.stream
        assert stream is not None
        self.switches.append({"phase": phase.name, "step": trainer.global_step, "eta": rate(trainer)})
        if isinstance(stream, BlendedStream):
            self.planned = self.foretold(stream.loader, pl_module)
            stream.loader.plan([(stream.loader.position, phase.blend.weights), *self.planned])
        else:
            stream.switch(self.given(phase))
        self.tell(trainer, pl_module, phase)
        self.forget_value(trainer)  # it was logged before its phase began to be waited for
        if trainer.checkpoint_callback is not None if self.checkpoint is None else self.checkpoint:
            save_now(trainer, "switch")

    def tell(self, trainer: Trainer, pl_module: LightningModule, phase: Phase) -> None:
        """A line in the log, and in the run's diary where the module keeps one."""
        shares = ", ".join(f"{name} {weight:g}" for name, weight in phase.blend.weights.items())
        tokens = f" ({pl_module.tokens_seen:,} tokens)" if hasattr(pl_module, "tokens_seen") else ""
        log.info("phase %s begins at step %d%s, eta %.4g: %s", phase.name, trainer.global_step, tokens, rate(trainer),
                 shares)
        record(pl_module, "phase", phase=phase.name, eta=rate(trainer), weights=dict(phase.blend.weights))

    # Checkpoints -------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the saved loader back to what was trained."""
        if self.stream is not None:
            self.stream.repair(checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the loader's state: Lightning may drop it, or fetch from it before the weights are set."""
        self.saved_loader = saved_loader_state(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Which phases have begun and where, the highest rate seen, and what the stream needs to go on."""
        return {"eta_peak": self.eta_peak, "switches": [dict(switch) for switch in self.switches],
                "stream": self.stream.state() if self.stream is not None else {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on watching for the next phase."""
        self.eta_peak, self.switches = state_dict["eta_peak"], state_dict["switches"]
        self.saved_stream = state_dict.get("stream", {})


def changed_here(loader: Any, waiting: Phase | None) -> list[tuple[int, Mapping[str, float]]]:
    """Start and weights of what draws from the next sample on, if it begins there and is not the ``waiting`` phase."""
    history = loader.dataset.history
    planned = waiting and history.ordered(waiting.blend.weights)
    return [(start, weights) for start, weights in history.ahead(loader.position - 1)[:1]
            if start == loader.position and history.ordered(weights) != planned]
