"""Watches what a run forgets, and whether it still learns: losses and scores against those before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from lit_cpt.counters import validate_now
from lit_cpt.signals import stalled, worse
from lit_cpt.telling import logged, record, steps_between_logs

log = logging.getLogger(__name__)

ACTIONS = ("warn", "stop", "switch")
LOSS, CHANGE = "val/(.+)/loss", "eval/([^/]+)/change"


class ForgettingCallback(Callback):
    """Warns, stops or goes over to the next phase where a source is forgotten, a score falls, or training stalls.

    Validation losses (``val/<source>/loss``) are compared with those of a validation before the first step, which this
    callback makes; scores with the first evaluation, as an `EvalCallback` does (``eval/<family>/change``). Each
    source or family that goes over its limit is told once, until it has come back. The three signs of failure that
    arXiv 2407.07263 names are forgetting, instability (`StabilityCallback`) and stalls.

    Args:
        loss_limit: Nats by which a source's validation loss may rise above the baseline.
        score_limit: By how much a family's score may fall, of 1.
        limits: Other limits, by source or family.
        plateau: Validations without a gain after which training counts as stalled; None does not look.
        gain: Nats by which the mean validation loss has to fall within them.
        then: What follows: ``warn``, ``stop`` the run, or ``switch`` to the next phase of a `PhaseSwitchCallback`.

    Raises:
        ValueError: A number out of range, another action, or, when training begins, nothing to switch.
    """

    def __init__(self, loss_limit: float = 0.1, score_limit: float = 0.05, limits: Mapping[str, float] | None = None,
                 plateau: int | None = None, gain: float = 0.001,
                 then: Literal["warn", "stop", "switch"] = "warn") -> None:
        numbers = {"loss_limit": loss_limit, "score_limit": score_limit, "gain": gain, **(limits or {})}
        for name, value in numbers.items():
            if not value >= 0:
                raise ValueError(f"{name}={value} must be at least 0.")
        if plateau is not None and plateau < 1:
            raise ValueError(f"plateau={plateau} must be at least 1 validation; leave it out not to look for stalls.")
        if then not in ACTIONS:
            raise ValueError(f"then={then!r}: choose {', '.join(ACTIONS)}.")
        self.loss_limit, self.score_limit, self.limits = loss_limit, score_limit, dict(limits or {})
        self.plateau, self.gain, self.then = plateau, gain, then
        self.losses: dict[str, float] = {}  # of the baseline
        self.means: list[float] = []  # of the losses, at each validation since the phase began
        self.over: list[str] = []  # what is over its limit, and was told
        self.seen: dict[str, float] = {}  # changes of scores that were looked at

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that there is something to switch."""
        if self.then == "switch" and switcher(trainer) is None:
            raise ValueError("then='switch' needs a PhaseSwitchCallback among the Trainer's callbacks: add one, or "
                             "choose warn or stop.")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first step, when every callback has seen the beginning: the baseline."""
        if trainer.global_step == 0 and not self.losses and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            validate_now(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the losses."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        now = logged(trainer, LOSS)
        self.losses = {**now, **self.losses}
        if now and trainer.global_step:
            self.compare(trainer, pl_module, "loss", self.losses, now)
            self.means.append(sum(now.values()) / len(now))
            if self.plateau is not None and stalled(self.means, self.plateau, self.gain):
                self.act(trainer, pl_module, "plateau",
                         f"the mean validation loss fell by less than {self.gain:g} in {self.plateau} validations "
                         f"({self.means[-1]:.4f})")
                self.means = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Compare scores that are new, where the Trainer logs: an evaluation publishes them between two steps."""
        if (every := steps_between_logs(trainer)) and trainer.global_step % every == 0:
            self.look_at_scores(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare those of the last evaluation."""
        self.look_at_scores(trainer, pl_module)

    def look_at_scores(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the scores, if they are new."""
        now = logged(trainer, CHANGE)
        if now != self.seen:
            self.seen = now
            self.compare(trainer, pl_module, "score", dict.fromkeys(now, 0.0), now)

    def compare(self, trainer: Trainer, pl_module: LightningModule, kind: str, before: Mapping[str, float],
                now: Mapping[str, float]) -> None:
        """Tell what has gone over its limit since the last time."""
        default, sign = (self.loss_limit, 1) if kind == "loss" else (self.score_limit, -1)
        found = worse(before, now, self.limits, default, sign)
        fresh = [one for one in found if f"{kind} {one.name}" not in self.over]
        gone = {f"{kind} {name}" for name in now} - {f"{kind} {one.name}" for one in found}
        self.over = [name for name in self.over if name not in gone] + [f"{kind} {one.name}" for one in fresh]
        if fresh:
            self.act(trainer, pl_module, "forgetting", f"{kind} " + ", ".join(map(str, fresh)))

    def act(self, trainer: Trainer, pl_module: LightningModule, kind: str, why: str) -> None:
        """Tell, record, and do what is to follow."""
        log.warning("%s at step %d: %s%s", kind, trainer.global_step, why, "" if self.then == "warn" else (
            "; the run ends" if self.then == "stop" else "; the next phase begins"))
        record(pl_module, kind, why=why, then=self.then)
        if self.then == "stop":
            trainer.should_stop = True
        elif self.then == "switch":
            switcher(trainer).begin_next(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The baseline, and what was told."""
        return {name: getattr(self, name) for name in ("losses", "means", "over", "seen")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with the same baseline."""
        for name, value in state_dict.items():
            setattr(self, name, type(value)(value))


def switcher(trainer: Trainer) -> Any:
    """The callback that begins phases; None without one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if hasattr(callback, "begin_next")), None)
