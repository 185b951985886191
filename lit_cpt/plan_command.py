"""`lit-cpt plan`: what a run will do, from its config, in a second; torch only for --gpu and remote sources."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from lit_cpt.arguments import advised, command_parser, parse
from lit_cpt.cli import print_json
from lit_cpt.footprint import device_count
from lit_cpt.forecast import Forecast, Setup, dates, dates_line, forecast, render_forecast
from lit_cpt.plan import source_blocks, validated
from lit_cpt.recipe import Batch, Recipe
from lit_cpt.remote import is_remote
from lit_cpt.settings import expand_configs, merged, options, read_config

if TYPE_CHECKING:
    from lit_cpt.outlook import Outlook

# The data module's arguments and their defaults, which a test compares with its own: it cannot be had without torch.
DATA: dict[str, tuple[Any, Any]] = {
    "sources": (dict[str, str], {}), "sequence_length": (int, 2048), "global_batch": (int, 64), "micro_batch": (int, 1),
    "workers": (int, 2), "seed": (int, 42), "window": (int, 8), "shards": (int, 1), "validation_blocks": (int, 256),
    "remote": (dict[str, Any], {}), "pass_over": (list[tuple[int, int]], ()),
    "timeout": (float, 600.0)}
PLAN_ONLY = ("json", "plot", "gpu", "mfu", "price", "tokens_per_second")
PICTURES = (".png", ".svg")
FIT_ONLY = ("model", "trainer", "run", "mirror", "ckpt_path", "seed_everything", "weights_only", "verbose",
            "allow_change")
ABOUT = "What a run will do, before it does it: takes the arguments of fit, and needs no GPU."
CALL = "plan --config base --config recipes/paper --config run.yaml --tokens_per_second 280000 --plot plan.png"


def plan_command(arguments: list[str]) -> None:
    """`lit-cpt plan`.

    Raises:
        ValueError: A speed that is none, or what fit would refuse.
    """
    words = expand_configs(arguments[1:])
    given = parse(plan_parser(), planned_arguments(words), build=True)
    data, config = vars(given["data"]), merged(words)
    batch = Batch(data["sequence_length"], data["global_batch"], data["micro_batch"])
    batch.check_shards(data["shards"])
    if given["plot"] and not given["plot"].endswith(PICTURES):
        raise ValueError(f"--plot {given['plot']}: name a file that ends in {' or '.join(PICTURES)}.")
    scale = scale_of(words, given, batch) if given["gpu"] else None
    found = forecast(setup_of(given["recipe"], batch, data, config, scale[0].size.parameters if scale else None))
    speed = speed_of(given["tokens_per_second"], scale[0] if scale else None)
    if given["plot"]:
        from lit_cpt.report import plot_plan

        plot_plan(found.plan.describe(), given["plot"])
    if given["json"]:
        print_json(described(found, speed, scale[0] if scale else None))
    else:
        more = [scale[1]] if scale else []
        more += [dates_line(found.plan, speed, datetime.now())] if speed else []
        print("\n\n".join([render_forecast(found), *more]))


def plan_parser() -> ArgumentParser:
    """What a plan takes of fit's arguments, and its own."""
    parser = command_parser("plan", ABOUT, CALL)
    parser.add_argument("--config", action="config", metavar="FILE|NAME", help="A config of the run, as for fit; "
                        "repeat it for each.")
    parser.add_argument("--json", action="store_true", help="Print the plan as JSON.")
    parser.add_argument("--plot", type=str, metavar="FILE.png", help="Draw learning rate and blend against tokens.")
    parser.add_argument("--tokens_per_second", type=float, help="Speed of training, all devices together: tells the "
                        "date of each switch and of the end.")
    parser.add_argument("--gpu", type=str, metavar="NAME|GB,TFLOPS", help="Also tell memory, hours and dates on as "
                        "many of these as --trainer.devices and --trainer.num_nodes name, such as H100.")
    parser.add_argument("--mfu", type=float, default=0.4, help="Share of the GPU's peak that training reaches.")
    parser.add_argument("--price", type=float, help="Of one GPU for an hour.")
    parser.add_class_arguments(Recipe, "recipe")
    for name, (kind, default) in DATA.items():
        parser.add_argument(f"--data.{name}", type=kind, default=default, help=f"As for fit: {name.replace('_', ' ')}.")
    return parser


def setup_of(recipe: Recipe, batch: Batch, data: dict[str, Any], config: dict[str, Any],
             parameters: int | None) -> Setup:
    """What a forecast reads of a run's config and of its sources' folders."""
    folders, trainer = staged(data), config.get("trainer") or {}
    devices = device_count(trainer.get("devices"))
    validates = data["validation_blocks"] > 0 and (not folders or bool(validated(folders, batch.sequence_length)))
    return Setup(recipe, batch, data["seed"], tuple(folders), source_blocks(folders, batch.sequence_length), validates,
                 trainer, config.get("model") or {}, devices and devices * int(trainer.get("num_nodes") or 1),
                 parameters, config.get("run"))


def staged(data: dict[str, Any]) -> dict[str, str]:
    """Folders with the sources' metadata: of remote ones it comes into the cache.

    Raises:
        ValueError: ``data.remote`` names what there is not.
    """
    sources: dict[str, str] = data["sources"]
    if not any(map(is_remote, sources.values())):
        return sources
    from lit_cpt.stream import Remote  # with torch; a plan of local sources does without

    if unknown := data["remote"].keys() - (known := {item.name for item in fields(Remote)}):
        raise ValueError(f"data.remote takes no {min(unknown)}; it takes {', '.join(sorted(known))}.")
    return Remote(**data["remote"]).staged(sources)


def scale_of(words: list[str], given: dict[str, Any], batch: Batch) -> tuple[Outlook, str]:
    """What the run asks of its GPUs, and in words; this reads the config as fit does, with torch and Lightning."""
    from lit_cpt.outlook import Budget, outlook, render_outlook
    from lit_cpt.training import ReadingCLI, quieten

    quieten()
    budget = Budget(given["gpu"], given["mfu"], given["price"])
    kept = [word for key, _, written in options(words) if key not in PLAN_ONLY for word in written]
    found = outlook(ReadingCLI(["fit", *kept]).settings, batch, given["recipe"].horizon, budget)
    return found, render_outlook(found, budget)


def speed_of(told: float | None, scale: Outlook | None) -> float | None:
    """Tokens a second, as the user tells or the GPUs promise.

    Raises:
        ValueError: Not above 0.
    """
    if told is not None and not 0 < told < float("inf"):
        raise ValueError(f"--tokens_per_second {told:g}: give a number above 0, such as 280000.")
    return told or (scale.tokens_per_second if scale else None)


def described(found: Forecast, speed: float | None, scale: Outlook | None) -> dict[str, Any]:
    """Plain values, as in ``plan.json``, and what only the command is told."""
    when = {name: at.isoformat(timespec="minutes") for name, at in
            (dates(found.plan, speed, datetime.now()) if speed else {}).items()}
    return {**found.describe(), **({"dates": when} if when else {}), **({"scale": scale.describe()} if scale else {})}


def planned_arguments(words: list[str]) -> list[str]:
    """Arguments of `fit` cut down to what the parser checks, in their order: it merges configs as fit's does.

    Raises:
        ValueError: No recipe.
    """
    kept: list[str] = []
    read = found = False
    for key, value, written in options(words):
        if key == "config" and value is not None:
            part = planned_part(read_config(value), value)
            read, found = True, found or "recipe" in part
            kept += ["--config", json.dumps(part)]
        elif key.removesuffix("+").partition(".")[0] not in FIT_ONLY:
            kept += written
    if read and not found and not any(word.startswith("--recipe") for word in kept):
        raise ValueError("these configs hold no recipe: add one, such as --config recipes/paper.")
    return kept


def planned_part(config: dict[str, Any], file: str) -> dict[str, Any]:
    """Recipe and data of a config.

    Raises:
        ValueError: A group that no config has.
    """
    if unknown := [group for group in config if group not in ("recipe", "data", *FIT_ONLY)]:
        known = ["recipe", "data", *FIT_ONLY]
        raise ValueError(advised(f"{file}: a config takes no {unknown[0]}; it takes {', '.join(known)}", known,
                                 "lit-cpt fit"))
    return {group: config[group] for group in ("recipe", "data") if group in config}
