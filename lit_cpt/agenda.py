"""When a run validates, evaluates and saves, and how many checkpoints then lie on the disk. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lit_cpt.occasions import Occasions, Position

EVERY_N_STEPS, KEEP = 1000, 2  # what `RunCheckpointCallback` does unless it is told otherwise
TOLD = 3  # steps of a kind that are told by number
BOTH = "validations, and the checkpoints before them,"


@dataclass(frozen=True)
class Course:
    """What of a run decides when things fall.

    Args:
        steps: Optimizer steps.
        tokens_per_step: Tokens that one step trains.
        horizon: Tokens of the recipe.
        switches: Steps at which a phase after the first begins, where they are foretold.
        accumulation: Micro-batches of a step on each rank; None where the number of ranks is not known.
        validates: Whether there is anything to validate on.
    """

    steps: int
    tokens_per_step: int
    horizon: int
    switches: tuple[int, ...] = ()
    accumulation: int | None = None
    validates: bool = True


@dataclass(frozen=True)
class Series:
    """Steps after which something is done.

    Args:
        count: How often.
        first: The first few steps.
        last: The last one.
    """

    count: int
    first: tuple[int, ...]
    last: int

    @classmethod
    def of(cls, steps: Iterable[int], count: int | None = None) -> Series | None:
        """The series of these steps, ``count`` times in all where a step may see several; None if there are none."""
        ordered = sorted(set(steps))
        return cls(len(ordered) if count is None else count, tuple(ordered[:TOLD]), ordered[-1]) if ordered else None


@dataclass(frozen=True)
class Agenda:
    """What is done beside training; None for what is not done or cannot be foretold.

    Args:
        validations: Passes over the validation data of all sources.
        evaluations: Of the benchmarks.
        whole_evaluations: Those of them that ask all documents.
        checkpoints: Those that are written, without what a signal or an exception adds.
        most_checkpoints: As many lie on the disk at the worst moment: while the last is written.
        not_foretold: What is missing here, each as half a sentence.
    """

    validations: Series | None
    evaluations: Series | None
    whole_evaluations: int
    checkpoints: Series | None
    most_checkpoints: int
    not_foretold: tuple[str, ...] = ()


def agenda(trainer: Mapping[str, Any], course: Course) -> Agenda:
    """Work out what a run does beside training.

    Args:
        trainer: The ``trainer`` part of its config.
        course: The run.

    Raises:
        ValueError: An `EvalCallback` with occasions that do not exist.
    """
    checking, saving = (settings_of(trainer, name) for name in ("EvalCallback", "RunCheckpointCallback"))
    unknown = unforeseeable(trainer, course)
    validations, count = ([], 0) if unknown else validation_steps(trainer, course)
    when = None if checking is None else occasions(checking.get("when") or {})
    evaluations = {} if when is None else evaluation_steps(when, course)
    saved = [] if saving is None else checkpoint_steps(saving, course, [*validations, *evaluations])
    if validates(trainer, course) and settings_of(trainer, "ForgettingCallback") is not None:  # its baseline
        validations, count = [0, *validations], count + 1
    return Agenda(Series.of(validations, count), Series.of(evaluations),
                  0 if when is None else sum(map(when.takes_all, evaluations.values())), Series.of(saved),
                  0 if saving is None else most_at_once(saving, course, saved),
                  (unknown,) if unknown else ())


def settings_of(trainer: Mapping[str, Any], callback: str) -> dict[str, Any] | None:
    """Arguments that a config gives to our ``callback``; None if it is not in the list."""
    for one in trainer.get("callbacks") or []:
        one = {"class_path": one} if isinstance(one, str) else one
        if str(one.get("class_path", "")).rpartition(".")[2] == callback:
            short = {key: value for key, value in one.items() if key not in ("class_path", "init_args")}
            return {**short, **(one.get("init_args") or {})}
    return None


def validates(trainer: Mapping[str, Any], course: Course) -> bool:
    """Whether there is something to validate on, and the Trainer is to do so."""
    return course.validates and trainer.get("limit_val_batches") != 0


def unforeseeable(trainer: Mapping[str, Any], course: Course) -> str | None:
    """Why no plan can tell when this run validates; None if one can."""
    interval = trainer.get("val_check_interval")
    if not validates(trainer, course) or isinstance(interval, float):
        return None
    if isinstance(interval, int) and course.accumulation is None:
        return (f"{BOTH} every {interval:,} micro-batches: how many make a step depends on the number of ranks, "
                "--trainer.devices and --trainer.num_nodes")
    return None if interval is None or isinstance(interval, int) else f"{BOTH} every {interval}, by the clock"


def validation_steps(trainer: Mapping[str, Any], course: Course) -> tuple[Sequence[int], int]:
    """Steps after (or within the next of) which Lightning validates, and how often it does."""
    if not validates(trainer, course):
        return [], 0
    interval = trainer.get("val_check_interval")
    a_step = course.accumulation or 1
    batches = course.steps * a_step
    every = interval if isinstance(interval, int) else max(1, int(batches * (1.0 if interval is None else interval)))
    if every <= a_step:
        return range(0 if every < a_step else 1, course.steps + 1), batches // every
    return [count * every // a_step for count in range(1, batches // every + 1)], batches // every


def occasions(given: Mapping[str, Any]) -> Occasions:
    """`Occasions` of a config.

    Raises:
        ValueError: A name or a value that it does not take.
    """
    known = [item.name for item in fields(Occasions)]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"EvalCallback.when takes no {unknown[0]}; it takes {', '.join(known)}.")
    return Occasions(**given)


def evaluation_steps(when: Occasions, course: Course) -> dict[int, tuple[str, ...]]:
    """Steps after which an `EvalCallback` evaluates, each with its reasons: those that the run itself will find."""
    candidates = {0, course.steps, *course.switches}
    if when.every_steps is not None:
        candidates |= set(range(when.every_steps, course.steps + 1, when.every_steps))
    if when.every_tokens is not None:
        every = max(int(when.every_tokens), course.tokens_per_step)  # not more than once a step
        candidates |= {-(-tokens // course.tokens_per_step) for tokens in range(
            every, course.steps * course.tokens_per_step + 1, every)}
    for share in when.fractions:
        nearest = round(share * course.horizon / course.tokens_per_step)
        candidates |= {nearest - 1, nearest, nearest + 1}
    found = {step: reasons_at(when, course, step) for step in sorted(candidates) if 0 <= step <= course.steps}
    return {step: reasons for step, reasons in found.items() if reasons}


def reasons_at(when: Occasions, course: Course, step: int) -> tuple[str, ...]:
    """Why to evaluate after ``step``."""
    tokens = step * course.tokens_per_step
    now = Position(step, tokens, min(1.0, tokens / course.horizon))
    turns = (("start", step == 0), ("phase", step in course.switches), ("end", step == course.steps))
    counted = when.reasons(now.one_step_back, now) if step else ()
    return (*counted, *(name for name, here in turns if here and name in when.turns))


def checkpoint_steps(saving: Mapping[str, Any], course: Course, asked: Iterable[int]) -> list[int]:
    """Steps that a `RunCheckpointCallback` saves: its own, the switches, the end, and those ``asked`` for."""
    own = [step for every in (saving.get("every_n_steps", EVERY_N_STEPS), saving.get("keep_every")) if every
           for step in range(every, course.steps + 1, every)]
    return sorted({*own, *course.switches, course.steps, *asked} - {0})


def most_at_once(saving: Mapping[str, Any], course: Course, saved: Sequence[int]) -> int:
    """Checkpoints on the disk while the last is written: the newest before it, those that stay, and the best."""
    keep, every = saving.get("keep", KEEP), saving.get("keep_every")
    before = saved[:-1]
    older = before[:-keep]
    stay = {step for step in older if step in course.switches or (every and step % every == 0)}
    best = bool(saving.get("monitor")) and len(older) > len(stay)
    return len(before[-keep:]) + len(stay) + best + 1
