"""What a run will do, before it does it: exact switches, tokens and epochs per source and phase. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lit_cpt.blends import MANY_EPOCHS, BlendHistory
from lit_cpt.manifest import VALIDATION, Manifest, read_index
from lit_cpt.recipe import PAPER_TRIGGERS, Batch, Phase, Recipe, Trigger
from lit_cpt.units import format_count

CURVE_POINTS = 201


@dataclass(frozen=True)
class Moment:
    """A point of the run in every unit.

    Args:
        step: Optimizer steps made.
        tokens: Tokens seen.
        fraction: Share of the horizon.
        eta: Learning rate of the next step.
    """

    step: int
    tokens: int
    fraction: float
    eta: float


@dataclass(frozen=True)
class Portion:
    """What one source gives to one phase.

    Args:
        name: The source.
        weight: Its share of the blend.
        samples: Sequences drawn from it: exact, not an expectation.
        tokens: Tokens trained on it.
        epochs: Passes over its blocks; None where its size is not known.
    """

    name: str
    weight: float
    samples: int
    tokens: int
    epochs: float | None


@dataclass(frozen=True)
class PhasePlan:
    """One phase: from where to where, and on what.

    Args:
        name: What it is called.
        when: Its trigger; None for the first.
        start: Where it begins; None where no plan can foretell it, and then no token or epoch is planned for it.
        stop: Where it ends: at the next phase that is foretold, or with the horizon.
        tokens: Tokens it trains.
        sources: What each source gives.
    """

    name: str
    when: str | None
    start: Moment | None
    stop: Moment | None
    tokens: int
    sources: list[Portion]


@dataclass(frozen=True)
class Plan:
    """The whole run.

    Args:
        token_horizon: Tokens of the recipe.
        steps: Optimizer steps.
        tokens_per_step: Tokens that one step trains.
        curve: (tokens, eta) points for drawing.
        phases: In order.
        sources: Totals over all phases.
        other_triggers: Where the paper's two statements of the switch would fall on this curve.
    """

    token_horizon: int
    steps: int
    tokens_per_step: int
    curve: list[tuple[int, float]]
    phases: list[PhasePlan]
    sources: list[Portion]
    other_triggers: list[tuple[str, Moment]]

    def describe(self) -> dict[str, Any]:
        """Plain values, for ``plan.json``."""
        return asdict(self)


def blocks_of(folder: str | Path, sequence_length: int) -> int:
    """Blocks of ``sequence_length + 1`` tokens in a prepared source; each chunk's remainder is not used.

    Raises:
        FileNotFoundError: ``folder`` is no prepared source.
    """
    Manifest.load(folder)
    return blocks_in(folder, sequence_length)


def blocks_in(folder: str | Path, sequence_length: int) -> int:
    """Blocks in a litdata folder, such as a source's ``validation``."""
    return sum(int(chunk["dim"]) // (sequence_length + 1) for chunk in read_index(folder))


def validated(folders: Mapping[str, str | Path], sequence_length: int) -> list[str]:
    """Sources with at least one block to validate on, sorted."""
    splits = {name: Path(folder) / VALIDATION for name, folder in sorted(folders.items())}
    return [name for name, split in splits.items() if split.is_dir() and blocks_in(split, sequence_length)]


def source_blocks(folders: Mapping[str, str | Path], sequence_length: int) -> dict[str, int]:
    """`blocks_of` each source, by name.

    Raises:
        FileNotFoundError: A folder is no prepared source; the message names its source.
        ValueError: Its manifest or index is damaged.
    """
    blocks = {}
    for name, folder in folders.items():
        try:
            blocks[name] = blocks_of(folder, sequence_length)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"source {name!r}: {error}") from None
    return blocks


def plan(recipe: Recipe, batch: Batch, blocks: Mapping[str, int] | None = None, seed: int = 42) -> Plan:
    """Work out a run.

    Args:
        recipe: What to train.
        batch: Geometry of a step.
        blocks: Blocks in each source (`blocks_of`), where they are known.
        seed: Seed of the stream; it decides which samples come from which source, within a few.

    Raises:
        ValueError: A phase would have no step of its own.
    """
    starts = [start for start in recipe.start_steps(batch.tokens_per_step) if start is not None]
    steps = recipe.steps(batch.tokens_per_step)
    history = BlendHistory(recipe.sources, recipe.phases[0].blend.weights, seed)
    history.plan(0, [(start * batch.global_batch, phase.blend.weights)
                     for start, phase in zip(starts, recipe.phases, strict=False)])
    counts = [history.counts(step * batch.global_batch) for step in [*starts, steps]]

    def portions(weights: Mapping[str, float], drawn: Any) -> list[Portion]:
        return [portion(name, weights.get(name, 0.0), int(samples), batch, (blocks or {}).get(name))
                for name, samples in zip(recipe.sources, drawn, strict=True) if samples or weights.get(name)]

    phases = [
        PhasePlan(phase.name, str(phase.when) if phase.when else None, moment(recipe, start, batch),
                  moment(recipe, stop, batch), (stop - start) * batch.tokens_per_step,
                  portions(phase.blend.weights, after - before))
        for phase, start, stop, before, after
        in zip(recipe.phases, starts, [*starts[1:], steps], counts, counts[1:], strict=False)
    ]
    phases += [PhasePlan(phase.name, str(phase.when), None, None, 0,
                         [Portion(name, weight, 0, 0, None) for name, weight in sorted(phase.blend.weights.items())])
               for phase in recipe.phases[len(starts):]]
    total = dict(zip(recipe.sources, (counts[-1] / counts[-1].sum()).tolist(), strict=True))
    points = [round(recipe.horizon * index / (CURVE_POINTS - 1)) for index in range(CURVE_POINTS)]
    return Plan(recipe.horizon, steps, batch.tokens_per_step, [(tokens, recipe.eta_at(tokens)) for tokens in points],
                phases, portions(total, counts[-1]), paper_switches(recipe, batch))


def portion(name: str, weight: float, samples: int, batch: Batch, blocks: int | None) -> Portion:
    """One source's part, with epochs where its size is known."""
    return Portion(name, weight, samples, samples * batch.sequence_length, samples / blocks if blocks else None)


def moment(recipe: Recipe, step: int, batch: Batch) -> Moment:
    """Step ``step`` in every unit; the horizon's end for the last."""
    tokens = min(step * batch.tokens_per_step, recipe.horizon)
    return Moment(step, tokens, tokens / recipe.horizon, recipe.eta_at(tokens))


def paper_switches(recipe: Recipe, batch: Batch) -> list[tuple[str, Moment]]:
    """Where a switch would fall by each of the paper's two statements, if it falls inside the horizon."""
    found = []
    for trigger in PAPER_TRIGGERS:
        try:
            step = recipe.first_step(Phase("paper", recipe.phases[0].blend, trigger), batch.tokens_per_step)
        except ValueError:  # the curve never falls that far
            continue
        if step < recipe.steps(batch.tokens_per_step):
            found.append((described(trigger), moment(recipe, step, batch)))
    return found


def described(trigger: Trigger) -> str:
    """A trigger in words, such as ``LR = eta_max/5``."""
    if trigger.kind == "eta_over_eta_max":
        return f"LR = eta_max/{1 / trigger.value:g}"
    return f"{trigger.kind} = {format_count(trigger.value)}"


def render(result: Plan) -> str:
    """The plan as text for a terminal."""
    phases = [[phase.name, phase.when or "start", *moment_text(phase.start),
               format_count(phase.tokens) if phase.start else "?"] for phase in result.phases]
    others = [f"  {name:<20} step {at.step:,}, {format_count(at.tokens)} tokens ({at.fraction:.2%}), LR {at.eta:.4g}"
              for name, at in result.other_triggers]
    several = len(result.phases) > 1
    return "\n".join([
        f"{format_count(result.token_horizon)} tokens in {result.steps:,} steps of "
        f"{format_count(result.tokens_per_step)} tokens; LR {result.curve[0][1]:.4g} to {result.curve[-1][1]:.4g}", "",
        tabulate(phases, ["phase", "begins when", "step", "tokens", "horizon", "LR", "trains"], disable_numparse=True,
                 colalign=("left", "left", *["right"] * 5)), "",
        source_table(result),
        *not_foretold(result),
        *(["", "the paper states its switch twice; on this curve:", *others] if len(others) > 1 and several else []),
    ])


def source_table(result: Plan) -> str:
    """Weight, tokens and epochs of each source, phase by phase and in all."""
    columns = [(phase.name, phase.sources, phase.start is not None) for phase in result.phases]
    if sum(known for *_, known in columns) > 1:
        columns.append(("all", result.sources, True))
    names = sorted({part.name for _, parts, _ in columns for part in parts})
    rows = [[name, *(text for _, parts, known in columns for text in portion_text(
        next((part for part in parts if part.name == name), None), known))] for name in names]
    heads = [head for name, *_ in columns for head in (f"{name}\nweight", "\ntokens", "\nepochs")]
    return tabulate(rows, ["\nsource", *heads], disable_numparse=True,
                    colalign=("left", *["right"] * len(heads)))


def portion_text(part: Portion | None, known: bool) -> list[str]:
    """Weight, tokens and epochs of a source in a phase that is ``known`` to begin; a mark where epochs are many."""
    if part is None:
        return ["-"] * 3
    epochs = "?" if part.epochs is None else f"{part.epochs:.2f}{' !' * (part.epochs > MANY_EPOCHS)}"
    return [f"{part.weight:.4g}", format_count(part.tokens) if known else "?", epochs]


def moment_text(at: Moment | None) -> list[str]:
    """Step, tokens, share of the horizon and rate, or question marks."""
    if at is None:
        return ["?"] * 4
    return [f"{at.step:,}", format_count(at.tokens), f"{at.fraction:.2%}", f"{at.eta:.4g}"]


def not_foretold(result: Plan) -> list[str]:
    """A line for each phase whose beginning only the run itself will tell."""
    unknown = [phase for phase in result.phases if phase.start is None]
    last = next((phase.name for phase in reversed(result.phases) if phase.start), "")
    lines = [f"phase {phase.name} begins when {phase.when}" + (": not foretold" if place == 0 else
             f", after {unknown[place - 1].name}: not foretold") for place, phase in enumerate(unknown)]
    return ["", *lines, f"the figures are of a run that stays in phase {last} to the end"] if lines else []
