"""Asks the model benchmark questions while it trains: MMLU, HellaSwag, HumanEval, MGSM, or any task of lm-eval."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.distributed import ProcessGroup

from lit_cpt import telling
from lit_cpt.checkpoints import saving_callbacks
from lit_cpt.evaluations import Evaluation, evaluations_in, write_evaluation
from lit_cpt.harness.evaluation import Kept, Options, evaluate
from lit_cpt.harness.preflight import check_names, obstacles
from lit_cpt.harness.programs import LaterSandbox
from lit_cpt.harness.ranks import Ranks
from lit_cpt.harness.record import evaluation_of
from lit_cpt.harness.subject import model_of, tokenizer_of
from lit_cpt.harness.suite import Effort, Suite
from lit_cpt.occasions import Occasions, Position
from lit_cpt.parallel import ShardedStrategy
from lit_cpt.pauses import paused
from lit_cpt.phases import phases_begun
from lit_cpt.sandbox import Sandbox
from lit_cpt.score_changes import summary_line, tags

log = logging.getLogger(__name__)


class EvalCallback(Callback):
    """Evaluates the live model where ``when`` says, writes ``RUN/evals/step########.json``, and never ends the run.

    All ranks take part, sharded models stay sharded, and training goes on as if nothing had been asked: the same
    losses to the last bit. A family that fails (data missing, out of time, out of memory, an error in its task) is
    recorded with status, reason and traceback, the others go on, and after some failures in a row it is left out.
    Scores go to every logger as ``eval/...`` and into ``trainer.callback_metrics``. An evaluation falls between two
    steps, after the checkpoint of the first where the Trainer has a `RunCheckpointCallback`: a run that is killed in it
    loses nothing, and asks again when it resumes.

    Args:
        suite: What is asked, of which sample.
        when: At which tokens, steps, fractions and turns.
        effort: Time and memory that it may take.
        model: The Hugging Face model, or the attribute of the LightningModule that holds it; left out, its ``model``.
        tokenizer: A tokenizer, or the folder or hub name of one; left out, that of the module's model.

    Raises:
        ValueError: Before training: a task that nobody defines, a module without model or tokenizer, occasions that
            this run cannot tell, a strategy that does not let the model be called, or a second EvalCallback.
    """

    def __init__(self, suite: Suite | None = None, when: Occasions | None = None, effort: Effort | None = None,
                 model: Any = None, tokenizer: Any = None) -> None:
        self.suite, self.when, self.effort = suite or Suite(), when or Occasions(), effort or Effort()
        self.given_model, self.given_tokenizer = model, tokenizer
        self.kept = Kept()
        self.sandbox = LaterSandbox(lambda: Sandbox(allow_weak_sandbox=self.effort.allow_weak_sandbox))
        self.tokenizer: Any = None
        self.found_obstacles: dict[str, str] = {}
        self.failures: Counter[str] = Counter()  # in a row, by family
        self.last_reason: dict[str, str] = {}
        self.baseline: Evaluation | None = None
        self.checked = self.evaluated = -1  # steps at which it was asked whether to evaluate, and at which it was done

    # Before the first step -------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can only be a mistake."""
        if stage == "fit":
            if sum(isinstance(callback, EvalCallback) for callback in callbacks_of(trainer)) > 1:
                raise ValueError("two EvalCallbacks would write the same files: give one, with all tasks, and a limit "
                                 "for each family.")
            check_names(self.suite)
            self.tokenizer = tokenizer_of(pl_module, self.given_tokenizer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See what cannot be evaluated here."""
        refuse_strategy(trainer.strategy)
        if is_trial(trainer):
            self.suite = replace(self.suite, limit=1)
        model_of(pl_module, self.given_model)
        if (lack := self.when.lacks(position_of(trainer, pl_module))) is not None:
            raise ValueError(f"EvalCallback: {lack}.")
        self.found_obstacles = obstacles(self.suite, self.kept, self.sandbox)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what cannot be evaluated on any rank, and take the baseline."""
        self.failures, self.last_reason = Counter(), {}  # a resumed run may have what the last one lacked
        for rank, found in enumerate(Ranks(pl_module.device).gather(self.found_obstacles)):
            for name, reason in found.items():
                where = f" on rank {rank}" if trainer.world_size > 1 else ""
                if trainer.is_global_zero:
                    log.warning("%s cannot be evaluated%s: %s", name, where, reason)
        done = evaluations_in(trainer.default_root_dir)[0] if trainer.ckpt_path else []
        self.baseline = done[0] if done else None
        step = trainer.global_step
        self.checked = self.evaluated = -1
        for one in done:
            if one.step == step and not one.failures:  # the checkpoint that is resumed was evaluated already
                self.evaluated = step
                telling.show(trainer, tags(one, self.baseline))
        if step == 0 and "start" in self.when.turns and self.evaluated != 0:
            self.evaluate(trainer, pl_module, ("start",))

    # While training --------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Have the step saved that will be evaluated; other callbacks may not have seen its end yet."""
        ends = trainer.global_step == trainer.max_steps and "end" in self.when.turns
        if trainer.global_step != self.checked and (ends or self.reasons(trainer, pl_module)):
            for callback in saving_callbacks(trainer):
                callback.save_step(trainer, "evaluation")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Evaluate the step that was made, now that every callback has seen its end."""
        self.check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the last step."""
        self.check(trainer, pl_module, ("end",) if "end" in self.when.turns else ())
        self.sandbox.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End what runs."""
        self.sandbox.close()

    def check(self, trainer: Trainer, pl_module: LightningModule, more: tuple[str, ...] = ()) -> None:
        """Evaluate if there is a reason, once a step."""
        step = trainer.global_step
        if step == 0 or (step == self.checked and not more):
            return
        self.checked = step
        reasons = (*self.reasons(trainer, pl_module), *more)
        if reasons and step != self.evaluated:
            self.evaluate(trainer, pl_module, reasons)

    def reasons(self, trainer: Trainer, pl_module: LightningModule) -> tuple[str, ...]:
        """Why to evaluate after the step that was made."""
        now = position_of(trainer, pl_module)
        begun = "phase" in self.when.turns and any(
            first == now.step for _, first in phases_begun(trainer)[1:])
        return (*self.when.reasons(now.one_step_back, now), *(("phase",) if begun else ()))

    def coming(self, trainer: Trainer) -> tuple[str, int] | None:
        """The next evaluation that can be told, and the step after which it falls, for a progress bar."""
        last = trainer.max_steps if "end" in self.when.turns and trainer.max_steps > 0 else None
        steps = [step for step in (self.when.next_step(position_of(trainer, trainer.lightning_module)), last) if step]
        return ("evaluation", min(steps)) if steps else None

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, reasons: tuple[str, ...]) -> None:
        """Ask, and tell what was found; whatever goes wrong, training goes on."""
        self.evaluated = trainer.global_step
        try:
            with paused(trainer, "evaluating"):
                found = self.ask(trainer, pl_module, reasons)
            if sharing(trainer.strategy) is not None:  # each tensor rank judged programs, whose time may have run out
                found = trainer.strategy.broadcast(found)
            stop = self.interrupted(trainer)()
            if trainer.world_size > 1:
                stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
            if stop:
                log.info("evaluation at step %d left off: the run was asked to stop", trainer.global_step)
            else:
                self.count_failures(found, trainer.is_global_zero)
                self.tell(trainer, pl_module, found)
        except Exception:
            log.exception("the evaluation at step %d failed; training goes on", trainer.global_step)

    def ask(self, trainer: Trainer, pl_module: LightningModule, reasons: tuple[str, ...]) -> Evaluation:
        """The evaluation, on all ranks."""
        everything = self.when.takes_all(reasons) and not is_trial(trainer)
        began, suite = time.monotonic(), self.suite.whole if everything else self.suite
        asked = [one for one in suite.families if self.failures[one.name] < self.effort.most_failures]
        left_out = {name: f"it failed {self.failures[name]} times in a row, at last: {self.last_reason.get(name)}"
                    for name in suite.names if self.failures[name] >= self.effort.most_failures}
        if trainer.is_global_zero:
            log.info("evaluating %s at step %d (%s)", ", ".join(one.name for one in asked), trainer.global_step,
                     ", ".join(reasons))
        model = model_of(pl_module, self.given_model)
        options = Options(bits_per_byte=self.effort.bits_per_byte, gather_weights=self.effort.gather_weights)
        with trainer.strategy.precision_plugin.forward_context():
            results = evaluate(model, self.tokenizer, asked, suite.root, limit=suite.limit, seed=suite.seed,
                               token_budget=self.effort.token_budget, deadline=self.effort.seconds,
                               sandbox=self.sandbox, kept=self.kept, options=options,
                               interrupted=self.interrupted(trainer), group=sharing(trainer.strategy))
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # keys and values of odd sizes would fragment what training needs
        now = position_of(trainer, pl_module)
        return evaluation_of(results, suite, step=now.step, tokens_seen=now.tokens, model=described(pl_module, model),
                             reasons=reasons, seconds=time.monotonic() - began, left_out=left_out)

    @staticmethod
    def interrupted(trainer: Trainer) -> Callable[[], bool]:
        """Whether a signal asked the run to stop, so that the evaluation should not hold it up."""
        watching = [callback for callback in callbacks_of(trainer) if hasattr(callback, "asked_by")]
        return lambda: any(callback.asked_by is not None for callback in watching)

    def count_failures(self, found: Evaluation, aloud: bool = True) -> None:
        """Count failures in a row; where time was over, only against the family that it was over in."""
        late = next((one.family for one in found.failures if one.status == "timeout"), None)
        for score in found.scores:
            self.failures[score.family] = 0
        for one in found.failures:
            if one.status in ("disabled", "nonfinite") or (one.status == "timeout" and one.family != late):
                continue
            self.failures[one.family] += 1
            self.last_reason[one.family] = one.reason
            if aloud and self.failures[one.family] == self.effort.most_failures:
                log.error("%s failed %d times in a row and is left out from here on: %s", one.family,
                          self.effort.most_failures, one.reason)

    def tell(self, trainer: Trainer, pl_module: LightningModule, found: Evaluation) -> None:
        """Log, write, record."""
        values = tags(found, self.baseline)
        self.baseline, baseline = self.baseline or found, self.baseline
        if (publish := getattr(pl_module, "publish", None)) is not None:
            publish(values)  # a run of lit_cpt keeps what it published in its checkpoints
        else:
            telling.publish(trainer, values)
        if not trainer.is_global_zero:
            return
        log.info("%s", summary_line(found, baseline))
        for score in found.scores:
            if score.cut and baseline is None:
                log.warning("%s: %d prompts are longer than the model's window and lose their beginning", score.family,
                            score.cut)
        try:
            write_evaluation(trainer.default_root_dir, found)
        except OSError as error:
            log.warning("the evaluation at step %d could not be written: %s", found.step, error)
        telling.record(pl_module, "evaluation", reasons=list(found.reasons), seconds=round(found.seconds, 1),
                       scores={score.family: score.interval.value for score in found.scores},
                       failures={one.family: f"{one.status}: {one.reason}" for one in found.failures})


def sharing(strategy: Any) -> ProcessGroup | None:
    """The ranks that share the work, where not all do."""
    return strategy.data_group if isinstance(strategy, ShardedStrategy) else None


def refuse_strategy(strategy: Any) -> None:
    """Refuse strategies under which a model cannot be called outside of its training step.

    Raises:
        ValueError: FSDP of the first kind, DeepSpeed, or tensor parallelism of another strategy than ours.
    """
    if isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)):
        raise ValueError(f"EvalCallback cannot call a model under {type(strategy).__name__}. Use ModelParallelStrategy "
                         "with torch's fully_shard (FSDP2), or evaluate checkpoints with `lit-cpt eval`.")
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, ShardedStrategy) and (
            strategy.device_mesh["tensor_parallel"].size() > 1):
        raise ValueError(f"EvalCallback does not know how {type(strategy).__name__} splits a model over tensor ranks. "
                         "Use tensor_parallel_size=1 or lit_cpt.parallel.ShardedStrategy, or evaluate checkpoints with "
                         "`lit-cpt eval`.")


def position_of(trainer: Trainer, module: LightningModule) -> Position:
    """Where a run stands, as far as it tells."""
    step, tokens = trainer.global_step, getattr(module, "tokens_seen", None)
    horizon = getattr(getattr(module, "recipe", None), "horizon", None)
    if tokens is not None and horizon:
        return Position(step, tokens, min(1.0, tokens / horizon))
    return Position(step, tokens, step / trainer.max_steps if trainer.max_steps > 0 else None)


def is_trial(trainer: Any) -> bool:
    """Whether the Trainer only tries everything out; Lightning does not type that either."""
    return bool(trainer.fast_dev_run)


def callbacks_of(trainer: Any) -> list[Callback]:
    """The Trainer's callbacks; Lightning does not type them."""
    return list(trainer.callbacks)


def described(module: LightningModule, model: Any) -> str:
    """A model in a few words: where it came from, or what it is."""
    return str(getattr(module, "pretrained", None) or type(model).__name__)
