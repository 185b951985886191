"""Keeps a run from being ruined by a step: one that is not finite never happens, a spike is told, skipped or undone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_cpt.checkpoints import finish_saving, folder_of, newest_whole
from lit_cpt.gradients import gradient_norm
from lit_cpt.phases import phases_begun
from lit_cpt.rollback import RolledBack, Unstable
from lit_cpt.spikes import Watch
from lit_cpt.stream import BlendedDataLoader
from lit_cpt.stream.fetching import train_loaders
from lit_cpt.telling import log_due, record

log = logging.getLogger(__name__)

NAMES = ("loss", "gradient norm")
POLICIES = ("log", "skip", "rollback")


class StabilityCallback(Callback):
    """Skips a step that is not finite before it touches a weight, and tells, skips or undoes a spike.

    Each step's loss and gradient norm, over all ranks, are judged on the device (`lit_cpt.spikes.Watch`); a fused
    optimizer is told there to skip, so that no step waits for the host. Any other optimizer is, by a look at the
    verdict at each step. What was judged is read, told and recorded where the Trainer logs. A skipped step's tokens
    count as seen, for the learning rate goes on.

    ``rollback`` goes on from the newest whole checkpoint before the spike and passes over the batches from the first
    spike to the last that was read with it; where the first step from there spikes again, the weights of that
    checkpoint are the harm, and an older one is taken. It needs a `BlendedDataLoader`, and a caller that goes on
    (`lit_cpt.rollback.persevere`), as ``lit-cpt fit`` does.

    Args:
        spike: What becomes of a spike: ``log``, ``skip`` or ``rollback``.
        threshold: Deviations above the median of the window beyond which the loss is a spike; the logarithm of the
            gradient norm is one beyond twice as many.
        window: Steps in the window; after a phase switch it begins anew.
        patience: Steps skipped in a row, or rollbacks in all, after which the run is given up.

    Raises:
        ValueError: A number out of range, another policy, or a loader that cannot pass over batches.
        RolledBack: Out of ``trainer.fit``: go on from an earlier checkpoint.
        Unstable: Out of ``trainer.fit``: given up.
    """

    def __init__(self, spike: Literal["log", "skip", "rollback"] = "log", threshold: float = 6.0, window: int = 128,
                 patience: int = 10) -> None:
        if spike not in POLICIES:
            raise ValueError(f"spike={spike!r}: choose {', '.join(POLICIES)}.")
        for name, value, least in (("threshold", threshold, 1), ("window", window, 16), ("patience", patience, 1)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        self.spike, self.patience = spike, patience
        self.watch = Watch(NAMES, window, threshold, skewed=NAMES[1:])
        self.loss: torch.Tensor | float = 0.0  # of the micro-batches of the step that is being made
        self.scores: list[torch.Tensor] = []  # of the steps since the last look, on the device
        self.loaded: list[torch.Tensor] = []  # scores that a checkpoint held
        self.skipped_in_a_row = self.rollbacks = self.phases = self.began = 0

    # On the device ----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that what was asked for can be done."""
        self.loss, self.phases, self.began = 0.0, len(phases_begun(trainer)), trainer.global_step
        self.scores, self.loaded = [score.to(trainer.strategy.root_device) for score in self.loaded], []
        if self.spike == "rollback" and not all(isinstance(one, BlendedDataLoader) for one in train_loaders(trainer)):
            kinds = ", ".join(type(one).__name__ for one in train_loaders(trainer)) or "none"
            raise ValueError("spike='rollback' needs a BlendedDataLoader, which can pass over batches; the train "
                             f"loader is {kinds}. Choose log or skip.")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Sum up the step's loss; Lightning has divided it by the number of micro-batches."""
        self.loss = self.loss + loss.detach().float()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule,
                                 optimizer: torch.optim.Optimizer) -> None:
        """Judge the step, before the gradient is clipped."""
        norm = norm_of(pl_module, optimizer)
        found = torch.stack([torch.as_tensor(self.loss, device=norm.device), norm.float()])
        if trainer.world_size > 1:  # the ranks' own losses; their norms are one already, but for a foreign strategy
            dist.all_reduce(found)
            found = found / trainer.world_size
        score = self.watch.judge(found)
        worst = self.watch.limits if self.spike == "skip" else torch.finfo(torch.float32).max
        refuse(optimizer, (score > worst).any())
        self.scores.append(score)
        self.loss = 0.0

    # On the host ------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look at what was judged, where the Trainer logs; and begin anew where a phase does."""
        if log_due(trainer):
            self.look(trainer, pl_module)
        if not trainer.fit_loop._should_accumulate() and (begun := len(phases_begun(trainer))) != self.phases:
            self.phases = begun
            self.watch.forget()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look a last time."""
        self.look(trainer, pl_module)
        self.let_go(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Judge no more."""
        self.let_go(trainer)

    @staticmethod
    def let_go(trainer: Trainer) -> None:
        """Leave the optimizers without a verdict."""
        for optimizer in trainer.optimizers:
            if hasattr(optimizer, "found_inf"):
                del optimizer.found_inf

    def look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what happened since the last look, and do what has to be done."""
        scores = torch.stack(self.scores).tolist() if self.scores else []
        first, self.scores = trainer.global_step - len(scores) + 1, []
        harmed: list[int] = []
        limits = self.watch.limits.tolist()
        for step, score in enumerate(scores, first):
            what = kind(score, limits)
            skipped = what == "not finite" or (what == "spike" and self.spike == "skip")
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
            if what is not None:
                self.tell(pl_module, step, what, [*zip(NAMES, score, limits, strict=True)], skipped)
            if what == "spike" and self.spike == "rollback":
                harmed.append(step)
            if self.skipped_in_a_row >= self.patience:
                self.give_up(trainer, step, f"{self.patience} steps in a row were skipped")
        if harmed:
            self.roll_back(trainer, pl_module, harmed)

    def tell(self, pl_module: LightningModule, step: int, what: str, scores: list[tuple[str, float, float]],
             skipped: bool) -> None:
        """A line in the log, and in the run's diary where the module keeps one."""
        told = " and ".join(name if what == "not finite" else f"{name} {score:.1f} deviations above its median"
                            for name, score, limit in scores if score > limit)
        log.warning("step %d: %s%s%s", step, told, " not finite" if what == "not finite" else "",
                    "; skipped" if skipped else "")
        record(pl_module, "spike", at_step=step, what=what, skipped=skipped,
               scores=[round(score, 2) if score != float("inf") else None for _, score, _ in scores])

    def roll_back(self, trainer: Trainer, pl_module: LightningModule, harmed: list[int]) -> None:
        """End this fit: it goes on from before the harm."""
        if self.rollbacks >= self.patience:
            self.give_up(trainer, harmed[0], f"the run was rolled back {self.rollbacks} times already")
        finish_saving(trainer)
        spoilt = bool(self.rollbacks) and harmed[0] == self.began + 1  # by the update before the checkpoint was made
        path = trainer.strategy.broadcast(newest_whole(folder_of(trainer), harmed[0] - spoilt)[0])
        if path is None:
            self.give_up(trainer, harmed[0], "there is no checkpoint from before it to go back to")
        self.rollbacks += 1
        loader, steps = train_loaders(trainer)[0], (harmed[0] - 1 - spoilt, harmed[-1])
        batch = loader.stride * trainer.accumulate_grad_batches
        first, stop = (loader.place_of(step * batch) // batch for step in steps)
        record(pl_module, "rollback", checkpoint=str(path), pass_over=[first, stop])
        raise RolledBack(Path(path), (first, stop))

    def give_up(self, trainer: Trainer, step: int, why: str) -> NoReturn:
        """End the run."""
        path, _ = newest_whole(folder_of(trainer), step)
        raise Unstable(f"training is unstable at step {step}: {why}. The newest whole checkpoint from before is "
                       f"{path or 'none'}. Lower the learning rate, look at the data of these steps, or raise "
                       "patience.", path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look before a spike is saved that is to be undone: it would push out the checkpoint to go back to."""
        if self.spike == "rollback" and not trainer.interrupted and any(
                kind(score.tolist(), self.watch.limits.tolist()) == "spike" for score in self.scores):
            self.look(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What the next steps are judged by, and what was not looked at yet."""
        return {"watch": self.watch.state_dict(), "skipped_in_a_row": self.skipped_in_a_row,
                "scores": torch.stack(self.scores).tolist() if self.scores else []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on judging as an undisturbed run does."""
        self.watch.load_state_dict(state_dict["watch"])
        self.skipped_in_a_row = state_dict["skipped_in_a_row"]
        self.loaded = [torch.tensor(score) for score in state_dict["scores"]]


def norm_of(module: LightningModule, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Norm of the gradient that ``optimizer`` is to use; the module's own where it measures it anyway, to clip."""
    if (measured := getattr(module, "measured_norm", None)) is not None:
        norm: torch.Tensor = measured()
        return norm
    return gradient_norm(parameter for group in optimizer.param_groups for parameter in group["params"])


def refuse(optimizer: torch.optim.Optimizer, verdict: torch.Tensor) -> None:
    """Let ``optimizer`` skip its next step if ``verdict`` says so, on the device where it can."""
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = verdict.float()  # type: ignore[attr-defined]  # what torch's gradient scaler sets
    elif verdict:
        optimizer.zero_grad(set_to_none=True)  # without a gradient there is no step


def kind(scores: list[float], limits: list[float]) -> str | None:
    """What a step's scores tell; None of a healthy one."""
    if float("inf") in scores:
        return "not finite"
    return "spike" if any(score > limit for score, limit in zip(scores, limits, strict=True)) else None
