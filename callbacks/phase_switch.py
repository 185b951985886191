"""Starts each phase when its trigger is reached; the learning rate's fall is the paper's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_cpt.blends import Blend
from lit_cpt.recipe import Phase, Recipe, Trigger

log = logging.getLogger(__name__)


class PhaseSwitchCallback(Callback):
    """Watches the learning rate after the scheduler's step and swaps the stream's weights at a trigger.

    Without arguments it runs the phases of ``module.recipe``, as many as there are. With arguments it needs
    nothing else of lit_cpt but a loader whose stream switches exactly (`BlendedDataLoader`, or any object
    with ``set_weights``).

    A trigger on the learning rate arms once the rate has been above the threshold (so a warm-up from below
    does not fire it) and fires when it is at or below. The first batch after the switch comes wholly from the
    new blend, prefetching or not. Where the recipe's curve foretells the switch, the stream is told before the
    first batch and nothing is rebuilt; the optimizer's own rate remains what decides.

    Args:
        weights: Blend to switch to, by source name; None to follow ``module.recipe``.
        eta_over_eta_max: Switch when the rate has fallen to this share of ``eta_max``, in (0, 1).
        eta: Or to this rate.
        step: Or after this many optimizer steps.
        eta_max: What ``eta_over_eta_max`` refers to; the highest rate seen so far where not given.
        checkpoint: Save ``checkpoints/phase-NAME.ckpt`` at each switch.

    Raises:
        ValueError: Weights without exactly one trigger, or a trigger without weights.
    """

    def __init__(self, weights: Mapping[str, float] | None = None, eta_over_eta_max: float | None = None,
                 eta: float | None = None, step: int | None = None, eta_max: float | None = None,
                 checkpoint: bool = False) -> None:
        self.phases: list[Phase] = []
        if weights is not None:
            when = Trigger(eta_over_eta_max=eta_over_eta_max, eta=eta, step=step)
            self.phases = [Phase("switched", Blend.normalized(weights), when)]
        elif any(value is not None for value in (eta_over_eta_max, eta, step)):
            raise ValueError("a trigger without weights: give the blend to switch to, weights={...}, or neither to "
                             "follow the module's recipe.")
        self.eta_max, self.checkpoint = eta_max, checkpoint
        self.eta_peak = 0.0
        self.switches: list[dict[str, Any]] = []
        self.planned: list[tuple[int, Mapping[str, float]]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the recipe and tell the stream what can be foretold."""
        recipe = getattr(pl_module, "recipe", None)
        if not self.phases and isinstance(recipe, Recipe):
            self.phases, self.eta_max = recipe.phases[1:], recipe.curve.eta_max
        if len(self.switches) > len(self.phases):
            raise ValueError(f"the checkpoint has begun phase {self.switches[-1]['phase']!r}, but this recipe has only "
                             f"{len(self.phases)} after the first: resume with the recipe that the run began with.")
        loader = stream(trainer)
        self.eta_peak = max(self.eta_peak, rate(trainer))
        if hasattr(loader, "plan"):
            # A phase that began just here, in the run that is resumed, is no plan to be dropped.
            begun = [(loader.position, self.phases[len(self.switches) - 1].blend.weights)
                     for switch in self.switches[-1:] if switch["step"] == trainer.global_step]
            self.planned = self.foretold(loader.position, pl_module)
            loader.plan([*begun, *self.planned])
        if len(self.switches) < len(self.phases) and self.due(trainer, pl_module):
            self.switch(trainer, pl_module)  # the checkpoint was saved before the switch was noticed

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Switch if a trigger is reached: the scheduler has stepped, so this is the rate of the next step."""
        if len(self.switches) == len(self.phases) or trainer.fit_loop._should_accumulate():
            return
        self.eta_peak = max(self.eta_peak, rate(trainer))
        if self.due(trainer, pl_module):
            self.switch(trainer, pl_module)
        elif self.planned and self.planned[0][0] == stream(trainer).position:
            log.warning("phase %s was foretold for step %d, but its trigger (%s) is not reached at eta %.4g: waiting",
                        self.next_phase.name, trainer.global_step, self.next_phase.when, rate(trainer))
            self.planned = []
            stream(trainer).plan([])

    @property
    def next_phase(self) -> Phase:
        """The phase that waits for its trigger."""
        return self.phases[len(self.switches)]

    def due(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether the next phase's trigger is reached."""
        when = self.next_phase.when
        assert when is not None  # only the first phase has none, and it is not waited for
        if when.watches_eta:
            eta_max = self.eta_max or self.eta_peak
            armed = not when.fell_to(self.eta_peak, eta_max)
            return armed and when.fell_to(rate(trainer), eta_max)
        if when.kind == "step":
            return trainer.global_step >= when.value
        module: Any = pl_module  # a trigger on tokens came from its recipe
        return bool(module.tokens_seen >= when.token_count(module.recipe.horizon))

    def foretold(self, position: int, pl_module: LightningModule) -> list[tuple[int, Mapping[str, float]]]:
        """Start (sample) and weights of the waiting phases past ``position``, where a recipe tells them."""
        recipe, batch = getattr(pl_module, "recipe", None), getattr(pl_module, "batch_geometry", None)
        if recipe is None or batch is None or self.phases != recipe.phases[1:]:
            return []
        starts = recipe.start_steps(batch.tokens_per_step)[1:]
        planned = [(start * batch.global_batch, phase.blend.weights)
                   for start, phase in zip(starts, self.phases, strict=True)]
        return [(start, weights) for start, weights in planned[len(self.switches):] if start > position]

    def switch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next phase with the next batch."""
        phase, loader = self.next_phase, stream(trainer)
        self.switches.append({"phase": phase.name, "step": trainer.global_step, "eta": rate(trainer)})
        if hasattr(loader, "plan"):
            self.planned = self.foretold(loader.position, pl_module)
            loader.plan([(loader.position, phase.blend.weights), *self.planned])
        else:
            loader.set_weights(phase.blend.weights)
        shares = ", ".join(f"{name} {weight:g}" for name, weight in phase.blend.weights.items())
        tokens = f" ({pl_module.tokens_seen:,} tokens)" if hasattr(pl_module, "tokens_seen") else ""
        log.info("phase %s begins at step %d%s, eta %.4g: %s", phase.name, trainer.global_step, tokens, rate(trainer),
                 shares)
        if (record := getattr(pl_module, "record", None)) is not None:
            record("phase", phase=phase.name, eta=rate(trainer), weights=dict(phase.blend.weights))
        if self.checkpoint:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / f"phase-{phase.name}.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """Which phases have begun and where, and the highest rate seen."""
        return {"eta_peak": self.eta_peak, "switches": [dict(switch) for switch in self.switches]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on watching for the next phase."""
        self.eta_peak, self.switches = state_dict["eta_peak"], state_dict["switches"]


def rate(trainer: Trainer) -> float:
    """Learning rate of the next step."""
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def stream(trainer: Trainer) -> Any:
    """The train loader, if its stream can be switched.

    Raises:
        ValueError: There is not exactly one loader, or it has no ``set_weights``.
    """
    loaders = trainer.fit_loop._combined_loader.flattened  # type: ignore[union-attr]
    if len(loaders) != 1 or not hasattr(loaders[0], "set_weights"):
        kinds = ", ".join(type(loader).__name__ for loader in loaders)
        raise ValueError(f"PhaseSwitchCallback found the train loaders {kinds}; it needs exactly one, with "
                         "set_weights(weights), such as lit_cpt.stream.BlendedDataLoader.")
    return loaders[0]
