"""Where Lightning's loops stand: told from a Trainer, and set in a checkpoint so that they go on exactly."""

from __future__ import annotations

from typing import Any


def validation_due(trainer: Any) -> bool:
    """Whether Lightning, at the end of the batch that it just trained, will validate next."""
    loop = trainer.fit_loop.epoch_loop
    if not loop._should_check_val_epoch() or loop.val_loop.skip:
        return False
    return bool(loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def validation_pending(trainer: Any, validated: bool) -> bool:
    """Whether a checkpoint written now belongs to a step whose validation is still to come.

    Args:
        trainer: A Trainer that fits.
        validated: Whether the validation at this point has been made.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    if progress.ready != trainer.global_step * trainer.accumulate_grad_batches:
        return False  # the next step has begun: the validation before it is behind us
    if trainer.validating:
        return not validated
    return progress.completed < progress.processed and validation_due(trainer)


def validate_now(trainer: Any) -> None:
    """Validate before the first batch of an epoch is handed out, as Lightning does where it is due."""
    trainer.validating = True
    try:
        trainer.fit_loop.epoch_loop.val_loop.run()
    finally:
        trainer.training = True


def set_progress(checkpoint: dict[str, Any], accumulation: int, pending: bool) -> None:
    """Let Lightning go on after the last optimizer step that ``checkpoint`` holds, at this run's accumulation.

    Its counters are of micro-batches, whose number depends on the world size; and where a batch was cut short they
    count it, though its gradient is lost. They are set as Lightning has them at the end of a step's last batch, in
    the middle of the one epoch that a run has: Lightning itself goes by steps and by the epoch, and would not go on
    with a run that had ended but has more to train now.

    Args:
        checkpoint: As loaded; changed here.
        accumulation: Micro-batches in a step.
        pending: Make the validation that follows the step. Lightning would take it as made, unless its counters
            stand as if it had been cut short at the first batch.
    """
    loop, step = checkpoint["loops"]["fit_loop"], checkpoint["global_step"]
    trained = step * accumulation
    batches = loop["epoch_loop.batch_progress"]
    for counters in (batches["total"], batches["current"]):
        counters.update(ready=trained, started=trained, processed=trained, completed=trained - 1)
    batches["is_last_batch"] = False
    for counters in (loop["epoch_progress"]["total"], loop["epoch_progress"]["current"]):
        counters.update(ready=1, started=1, processed=0, completed=0)
    validation = loop["epoch_loop.val_loop.batch_progress"]
    validation["total"].update(ready=int(pending), started=int(pending), processed=0, completed=0)
    validation["current"].update(ready=0, started=0, processed=0, completed=0)
    validation["is_last_batch"] = False
    # Lightning adds one when it restarts, and one more after a validation.
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1 - pending
