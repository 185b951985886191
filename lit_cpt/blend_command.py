"""`lit-cpt blend`: proposes the weights of the two blends, as a recipe with the reason of each weight beside it."""

from __future__ import annotations

import math
from argparse import SUPPRESS
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from lit_cpt.arguments import command_parser, divided, parse
from lit_cpt.blend_design import Emphasis, Rule, Suggested, suggest
from lit_cpt.blends import Blend
from lit_cpt.cli import print_json
from lit_cpt.evaluations import Evaluation
from lit_cpt.plan import source_blocks
from lit_cpt.recipe import Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine
from lit_cpt.settings import read_config
from lit_cpt.source_facts import TIERS, SourceFacts
from lit_cpt.units import format_count, parse_count

DESCRIPTION = """Proposes the weights of the general and the QA blend, from sizes, quality tiers and what the model is
weak at, and prints a recipe with the reason of each weight. The rule is in docs/recipe.md; its numbers are a start, and
not measured."""
CALL = "blend suggest sources.yaml --token_horizon 300B --eta_max 4.5e-5 > recipe.yaml"
EXAMPLE = "sources: {web: {tokens: 2T, tier: low}, questions: {tokens: 3B, kind: qa}}"


def blend_command(arguments: list[str]) -> None:
    """`lit-cpt blend suggest`.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: No such subcommand, or facts from which no blend follows.
    """
    _, words = divided(arguments, {"suggest": "FILE --token_horizon COUNT --eta_max RATE"})
    file = words[0] if words and not words[0].startswith("-") else None
    given = parse(suggest_parser(), (["--config", readable(file)] if file else []) + words, build=True)
    sources = sized(scored(given["sources"], given["evaluation"]), Batch(given["sequence_length"], 1))
    rule = Rule(given["general"], given["qa"], given["max_epochs"])
    curve, when = Cosine(given["eta_max"]), Trigger(eta_over_eta_max=given["eta_over_eta_max"])
    horizon = parse_count(given["token_horizon"], "token_horizon")
    switch = curve.progress(when.threshold(curve.eta_max)) * horizon
    blends = suggest(sources, (switch, horizon - switch), rule)
    phases = [Phase(name, Blend({source: one.weight for source, one in blend.items()}), trigger)
              for name, blend, trigger in zip(("general", "qa"), blends, (None, when), strict=True)]
    recipe = Recipe(horizon, curve, tuple(phases))
    if given["json"]:
        reasons = {phase.name: {name: asdict(one) for name, one in blend.items()}
                   for phase, blend in zip(phases, blends, strict=True)}
        print_json({"recipe": recipe.describe(), "switch_tokens": round(switch), "rule": asdict(rule),
                    "blends": reasons})
    else:
        print(render(recipe, blends, rule, sources, given["sequence_length"]))


def suggest_parser() -> ArgumentParser:
    """What `blend suggest` takes, in the file or behind it."""
    default = Rule()
    parser = command_parser("blend suggest", DESCRIPTION, CALL)
    parser.add_argument("file", type=str, metavar="FILE", help=f"The sources, such as `{EXAMPLE}`; the options may "
                        "stand in it too.")
    parser.add_argument("--config", action="config", help=SUPPRESS)
    parser.add_argument("--token_horizon", type=int | str, required=True, help="Tokens of the run, such as 300B.")
    parser.add_argument("--eta_max", type=float, required=True, help="The rate at which the model's pretraining ended, "
                        "such as 4.5e-5.")
    parser.add_argument("--eta_over_eta_max", type=float, default=0.2, help="Share of eta_max at which "
                        "the QA blend begins.")
    parser.add_argument("--sources", type=dict[str, SourceFacts], required=True, help="Name to facts.")
    parser.add_argument("--evaluation", type=str, metavar="FILE", help="What `lit-cpt eval --json` wrote of the base "
                        "model, for sources that name a `family`.")
    parser.add_argument("--sequence_length", type=int, default=2048, help="Of the run; it decides how many "
                        "blocks a `folder` holds.")
    parser.add_argument("--max_epochs", type=float, default=default.max_epochs, help="Most passes over a source, both "
                        "phases together.")
    for name in ("general", "qa"):
        parser.add_class_arguments(Emphasis, name)
        parser.set_defaults({f"{name}.{key}": value for key, value in asdict(getattr(default, name)).items()})
    parser.add_argument("--json", action="store_true", help="Print JSON, with the reasons as numbers.")
    return parser


def readable(file: str) -> str:
    """``file``, if it is YAML; the parser's own error would not say what to write.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML, or not a mapping.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: there is no such file; write one such as `{EXAMPLE}`.")
    read_config(file)
    return file


def scored(sources: Mapping[str, SourceFacts], file: str | None) -> dict[str, SourceFacts]:
    """``sources`` with the score of the family that each names.

    Raises:
        FileNotFoundError: There is no such evaluation.
        ValueError: It lacks a family, or a source names one where there is no evaluation.
    """
    named = {name: one.family for name, one in sources.items() if one.family is not None}
    if named and file is None:
        name, family = next(iter(named.items()))
        raise ValueError(f"source {name!r}: family={family!r} needs --evaluation FILE, which `lit-cpt eval --json` "
                         "wrote.")
    found = Evaluation.read(file).scores if file is not None and named else ()
    scores = {one.family: one.interval.value for one in found if math.isfinite(one.interval.value)}
    for name, family in named.items():
        if family not in scores:
            raise ValueError(f"source {name!r}: {file} has no score of family {family!r}; it has "
                             f"{', '.join(scores) or 'none'}.")
    return {name: replace(one, score=scores[one.family]) if one.family is not None else one
            for name, one in sources.items()}


def sized(sources: Mapping[str, SourceFacts], batch: Batch) -> dict[str, SourceFacts]:
    """``sources`` with the tokens that a pass over their folders trains, as `plan` counts them.

    Raises:
        FileNotFoundError: A folder is no prepared source.
    """
    folders = {name: one.folder for name, one in sources.items() if one.folder is not None and one.tokens is None}
    blocks = source_blocks(folders, batch.sequence_length)
    return {name: replace(one, tokens=blocks[name] * batch.sequence_length) if name in blocks else one
            for name, one in sources.items()}


def render(recipe: Recipe, blends: Iterable[Mapping[str, Suggested]], rule: Rule, sources: Mapping[str, SourceFacts],
           sequence_length: int) -> str:
    """The recipe as YAML, and the folders where all are known."""
    lines = ["# By `lit-cpt blend suggest`; the rule is in docs/recipe.md, its numbers are a start and not measured.",
             "recipe:",
             f"  token_horizon: {recipe.horizon}   # {format_count(recipe.horizon)}",
             "  curve: {class_path: Cosine, init_args: " + inline({"eta_max": recipe.curve.eta_max}) + "}",
             "  phases:"]
    for phase, blend, emphasis in zip(recipe.phases, blends, (rule.general, rule.qa), strict=True):
        lines += [f"    - name: {phase.name}   # {described(emphasis)}"]
        if phase.when is not None:
            lines += [f"      when: {inline({phase.when.kind: phase.when.value})}   # "
                      f"{recipe.progress_of(phase):.2%} of the horizon"]
        lines += ["      blend:", "        weights:", *weighed(blend, rule.max_epochs)]
    folders = {name: one.folder for name, one in sources.items()}
    if all(folders.values()):
        lines += yaml.safe_dump({"data": {"sources": folders, "sequence_length": sequence_length}},
                                sort_keys=False, allow_unicode=True).splitlines()
    return "\n".join(lines)


def inline(values: dict[str, Any]) -> str:
    """YAML in one line."""
    return yaml.safe_dump(values, default_flow_style=True).strip()


def described(emphasis: Emphasis) -> str:
    """What the blend of a phase is made of."""
    parts = [f"{emphasis.replay:g} pretraining mix", f"{1 - emphasis.replay - emphasis.qa_share:.4g} by quality and "
             f"weakness (up to x {1 + emphasis.weakness:g})", f"{emphasis.qa_share:g} question-answer data"]
    return ", ".join(parts[: 3 if emphasis.qa_share else 2])


def weighed(blend: Mapping[str, Suggested], max_epochs: float) -> list[str]:
    """Lines of YAML, a source each, with the reason behind it."""
    lines = [yaml.safe_dump({name: one.weight}, allow_unicode=True).strip() for name, one in blend.items()]
    width = max(map(len, lines))
    return [f"          {line:<{width}}   # {reason(one, max_epochs)}"
            for line, one in zip(lines, blend.values(), strict=True)]


def reason(one: Suggested, max_epochs: float) -> str:
    """Why a source has its weight.

    >>> reason(Suggested(0.21, "text", 0.18, "high", 1.5, 0.2745, 1.2, True), 4.0)
    '0.18 of pretraining x 2 (high) x 1.5 (weak); 0.2745 before its cap at 4 epochs in all; 1.2 epochs here'
    """
    factors = [f"{one.share:.4g} of {'QA data' if one.kind == 'qa' else 'pretraining'}",
               f"{TIERS[one.tier]:g} ({one.tier})", *([f"{one.weak:.4g} (weak)"] if one.weak > 1 else [])]
    moved = one.capped or abs(one.weight - one.asked) > 5e-4  # more than rounding does
    asked = f"{one.asked:.4f} before " + (f"its cap at {max_epochs:g} epochs in all" if one.capped else "others' caps")
    epochs = None if one.epochs is None else f"{one.epochs:.3g} epochs here"
    return "; ".join(filter(None, [" x ".join(factors), asked if moved else None, epochs]))
