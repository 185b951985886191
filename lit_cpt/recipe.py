"""A run of continued pretraining as data: a token horizon, a learning-rate curve, phases and their triggers.

Everything a run decides is a function of one clock, the tokens seen. What cannot be run cannot be built:
each class refuses, with the value, what is accepted and how to mend it.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import takewhile
from typing import Any

from lit_cpt.blends import Blend
from lit_cpt.schedules import Curve
from lit_cpt.units import format_count, parse_count

SLACK = 1e-9  # relative; a curve's own rounding must not delay a switch by a step
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
METRIC = re.compile(r"\s*(?P<name>[^\s<>=]+)\s*(?P<sign><=|>=|<|>)\s*(?P<bound>[^\s<>=]+)\s*")


@dataclass(frozen=True)
class Trigger:
    """When a phase begins. Exactly one of these is given.

    Args:
        eta_over_eta_max: When the learning rate has fallen to this share of ``eta_max``, in (0, 1).
            The paper switches at 0.2.
        eta: When the learning rate has fallen to this.
        tokens: When this many tokens have been seen ("250B").
        fraction: When this share of the token horizon has been seen, in (0, 1).
        step: When this many optimizer steps have been made.
        metric: When a logged value crosses a bound: ``NAME < BOUND``, also with ``<=``, ``>`` and ``>=``, such as
            ``val/qa/loss < 1.2``. No plan can foretell it.
    """

    eta_over_eta_max: float | None = None
    eta: float | None = None
    tokens: int | str | None = None
    fraction: float | None = None
    step: int | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        given = [item.name for item in fields(self) if getattr(self, item.name) is not None]
        if len(given) != 1:
            names = ", ".join(item.name for item in fields(self))
            raise ValueError(f"a trigger takes exactly one of {names}; given: {', '.join(given) or 'none'}.")
        if self.tokens is not None:
            object.__setattr__(self, "tokens", parse_count(self.tokens, "tokens"))
        if self.metric is not None:
            object.__setattr__(self, "metric", " ".join(comparison(self.metric)))
            return
        if self.kind in ("eta_over_eta_max", "fraction") and not 0.0 < self.value < 1.0:
            raise ValueError(f"{self.kind}={self.value} must lie in (0, 1), such as 0.2.")
        if not self.value > 0:
            raise ValueError(f"{self.kind}={self.value:g} must be positive: the first phase has position 0 already.")

    @property
    def kind(self) -> str:
        """Name of the field that is given."""
        return next(item.name for item in fields(self) if getattr(self, item.name) is not None)

    @property
    def value(self) -> float:
        """Its value; a metric's bound."""
        return float(self.metric.split()[-1] if self.metric is not None else getattr(self, self.kind))

    @property
    def watches_eta(self) -> bool:
        """True if the learning rate decides, false if a count does."""
        return self.kind in ("eta", "eta_over_eta_max")

    @property
    def metric_name(self) -> str | None:
        """What the watched value is logged as; None if it watches none."""
        return None if self.metric is None else self.metric.split()[0]

    def crossed_by(self, logged: float) -> bool:
        """Whether a metric of this value is past the bound; never for NaN.

        >>> Trigger(metric="val/qa/loss < 1.2").crossed_by(1.1)
        True
        """
        return self.metric is not None and COMPARISONS[self.metric.split()[1]](logged, self.value)

    def threshold(self, eta_max: float) -> float:
        """The learning rate at or below which a trigger on the learning rate fires."""
        return self.value * (eta_max if self.kind == "eta_over_eta_max" else 1.0)

    def fell_to(self, eta: float, eta_max: float) -> bool:
        """Whether ``eta`` is at or below the threshold."""
        return eta <= self.threshold(eta_max) * (1 + SLACK)

    def token_count(self, horizon: int) -> int | None:
        """Tokens seen when the trigger fires; None if it counts no tokens."""
        if self.kind == "fraction":
            return math.ceil(self.value * horizon - 1e-6)
        return int(self.value) if self.kind == "tokens" else None

    def __str__(self) -> str:
        """As in a recipe, `eta_over_eta_max=0.2`; a metric as it is written, `val/qa/loss < 1.2`."""
        if self.metric is not None:
            return self.metric
        return f"{self.kind}={format_count(self.value) if self.kind == 'tokens' else f'{self.value:g}'}"


def comparison(text: str) -> tuple[str, str, str]:
    """Name, sign and bound of a metric's trigger.

    Raises:
        ValueError: It is not ``NAME < BOUND`` with a finite bound.
    """
    found = METRIC.fullmatch(str(text))
    try:
        if found and math.isfinite(float(found["bound"])):
            return found["name"], found["sign"], found["bound"]
    except ValueError:
        pass
    raise ValueError(f"metric={text!r} is no comparison: write NAME < BOUND with one of {', '.join(COMPARISONS)} and a "
                     "finite number, such as \"val/qa/loss < 1.2\". NAME is what self.log calls the value.")


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one blend.

    Args:
        name: What it is called in plans, logs and reports.
        blend: Shares of the sources.
        when: What starts it; the first phase has none, every later one has one.
    """

    name: str
    blend: Blend
    when: Trigger | None = None


@dataclass(frozen=True)
class AdamW:
    """The optimizer's settings (defaults: the paper's); weight decay spares norms and biases.

    Args:
        betas: Decay of the first and second moment, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay of matrices, at least 0.
        clip: Largest norm of the gradient; 0 turns clipping off.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must both lie in [0, 1), such as (0.9, 0.95).")
        for name in ("eps", "weight_decay", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number of at least 0.")


@dataclass(frozen=True)
class Batch:
    """The geometry of a batch: what turns tokens into optimizer steps.

    Args:
        sequence_length: Tokens trained in a sequence (T); a block holds one more, the last target.
        global_batch: Sequences in an optimizer step, all ranks together.
        micro_batch: Sequences that one rank runs at once.
    """

    sequence_length: int
    global_batch: int
    micro_batch: int = 1

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) < 1:
                raise ValueError(f"{item.name}={getattr(self, item.name)} must be at least 1.")

    @property
    def tokens_per_step(self) -> int:
        """Tokens trained by one optimizer step."""
        return self.global_batch * self.sequence_length

    def accumulation(self, world_size: int) -> int:
        """Micro-batches that each of ``world_size`` ranks runs for one optimizer step.

        Raises:
            ValueError: The global batch does not divide evenly.
        """
        at_once = self.micro_batch * world_size
        if self.global_batch % at_once:
            raise ValueError(
                f"global_batch={self.global_batch} is no multiple of micro_batch x ranks = {self.micro_batch} x "
                f"{world_size} = {at_once}. Choose a micro_batch that divides {self.global_batch} / {world_size}."
            )
        return self.global_batch // at_once

    def check_shards(self, shards: int) -> None:
        """Refuse ``shards`` that would not all give the same number of sequences to a step.

        Raises:
            ValueError: They do not divide the global batch.
        """
        if self.global_batch % shards:
            raise ValueError(f"shards={shards} does not divide global_batch={self.global_batch}: each shard gives the "
                             "same number of sequences to every step. Choose a divisor, such as the largest number of "
                             "ranks the run may ever have.")


@dataclass(frozen=True)
class Recipe:
    """A token horizon, a learning-rate curve over it, and the phases of the data.

    Args:
        token_horizon: Tokens to train on ("300B"); the curve ends there.
        curve: Learning rate over progress.
        phases: At least one; each later one has a trigger, and they begin in the order written. (A tuple, for a
            config's list of phases then replaces an earlier config's; jsonargparse would merge two lists.)
        optimizer: AdamW's settings.

    Raises:
        ValueError: A trigger that is never reached, phases out of order, or a phase without a trigger.
    """

    token_horizon: int | str
    curve: Curve
    phases: tuple[Phase, ...]
    optimizer: AdamW = field(default_factory=AdamW)

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_horizon", parse_count(self.token_horizon, "token_horizon"))
        object.__setattr__(self, "phases", tuple(self.phases))
        if self.horizon == 0:
            raise ValueError("token_horizon=0 trains on nothing: give a count such as 300B.")
        check_phases(self.phases)
        previous = 0.0
        for phase in self.phases[1:]:
            progress = self.progress_of(phase)
            if progress is not None and not previous < progress < 1.0:
                raise ValueError(
                    f"phase {phase.name!r} ({phase.when}) begins at {progress:.4f} of the horizon; it must lie after "
                    f"the phase before it ({previous:.4f}) and before the end (1). Reorder the phases or change `when`."
                )
            previous = previous if progress is None else progress

    @property
    def horizon(self) -> int:
        """`token_horizon` as a number."""
        return int(self.token_horizon)

    @property
    def sources(self) -> list[str]:
        """Every source that some phase names, sorted."""
        return sorted({name for phase in self.phases for name in phase.blend.weights})

    def progress_of(self, phase: Phase) -> float | None:
        """Progress at which ``phase`` begins; None where the batch (`step`) or the run itself (`metric`) decides it."""
        if phase.when is None:
            return 0.0
        if phase.when.watches_eta:
            return self.curve.progress(phase.when.threshold(self.curve.eta_max))
        tokens = phase.when.token_count(self.horizon)
        return None if tokens is None else tokens / self.horizon

    def eta_at(self, tokens: int) -> float:
        """Learning rate of the step that is made when ``tokens`` have been seen."""
        return self.curve.eta(min(1.0, tokens / self.horizon))

    def steps(self, tokens_per_step: int) -> int:
        """Optimizer steps in the horizon; the last one may reach past its end."""
        return -(-self.horizon // tokens_per_step)

    def start_steps(self, tokens_per_step: int) -> list[int | None]:
        """The optimizer step that is each phase's first, counted from 0.

        Args:
            tokens_per_step: Sequences in a global batch x tokens trained in each.

        Returns:
            One for each phase; None for a phase that waits for a metric and for every later one: a phase begins only
            after the one before it, so nothing behind a metric can be foretold.

        Raises:
            ValueError: At this batch a phase would have no step of its own.
        """
        known = self.foretold(tokens_per_step)
        ends = [*known[1:], self.steps(tokens_per_step)]
        for phase, start, end in zip(self.phases, known, ends, strict=False):
            if start >= end:
                raise ValueError(
                    f"phase {phase.name!r} would run from step {start} to {end}: no step at all. Lower global_batch, "
                    "raise token_horizon, or change `when`."
                )
        return [*known, *[None] * (len(self.phases) - len(known))]

    def foretold(self, tokens_per_step: int) -> list[int]:
        """First steps of the phases before the first that waits for a metric."""
        known = takewhile(lambda phase: phase.when is None or phase.when.metric is None, self.phases)
        return [self.first_step(phase, tokens_per_step) for phase in known]

    def first_step(self, phase: Phase, tokens_per_step: int) -> int:
        """The first step at whose start the phase's trigger holds, which must not be one on a metric."""
        when = phase.when
        if when is None:
            return 0
        if not when.watches_eta:
            tokens = when.token_count(self.horizon)
            return int(when.value) if tokens is None else -(-tokens // tokens_per_step)
        fall = self.curve.progress(when.threshold(self.curve.eta_max))
        step = math.ceil(fall * self.horizon / tokens_per_step * (1 - SLACK))
        # The closed form may be a rounding away from what the scheduler will see.
        while not when.fell_to(self.eta_at(step * tokens_per_step), self.curve.eta_max):
            step += 1
        return step

    def describe(self) -> dict[str, Any]:
        """The recipe as plain values, for checkpoints, `recipe.yaml` and comparison."""
        described: dict[str, Any] = plain(self)
        return described


def check_phases(phases: Sequence[Phase]) -> None:
    """Refuse a list of phases that says no order of events."""
    if not phases:
        raise ValueError("a recipe needs at least one phase: {name: general, blend: {weights: {...}}}.")
    if phases[0].when is not None:
        raise ValueError(f"the first phase, {phases[0].name!r}, has when: {phases[0].when}; "
                         "it begins the run, so leave `when` out.")
    for phase in phases[1:]:
        if phase.when is None:
            raise ValueError(f"phase {phase.name!r} has no trigger: give it one, "
                             "such as when: {eta_over_eta_max: 0.2}.")
    twice = [name for name, count in Counter(phase.name for phase in phases).items() if count > 1]
    if twice:
        raise ValueError(f"two phases are called {twice[0]!r}: give each a name of its own.")


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries, with the class of a curve beside its values."""
    if is_dataclass(value):
        members = {item.name: plain(getattr(value, item.name)) for item in fields(value)}
        members = {name: member for name, member in members.items() if member is not None}
        return {"class_path": type(value).__name__, "init_args": members} if isinstance(value, Curve) else members
    if isinstance(value, Curve):
        return {"class_path": type(value).__name__, "init_args": dict(vars(value))}
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    return [plain(member) for member in value] if isinstance(value, (list, tuple)) else value


# The paper gives its switch twice; on its own curve the two differ (docs/recipe.md).
PAPER_TRIGGERS = (Trigger(eta_over_eta_max=0.2), Trigger(tokens="250B"))
