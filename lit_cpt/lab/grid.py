"""A grid file → arms: each the config of an ordinary run, with a name that tells its place in the grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from lit_cpt.settings import find_config, lay_over, read_config
from lit_cpt.units import parse_count

KEYS = ("variables", "base", "axes", "replicates", "noise", "control")
SEED = "seed"  # the replicate axis over which the noise floor is told
AGAIN = "again"  # the axis of the control's repetitions, which only tell the noise floor
LABEL = re.compile(r"[A-Za-z0-9_.+-]+")
NAMED = re.compile(r"\{([A-Za-z_]\w*)\}")

Config = dict[str, Any]
Labels = dict[str, str]


@dataclass(frozen=True)
class Arm:
    """One run of the grid.

    Args:
        labels: Axis to its value's name: what is compared.
        replicate: The same of the axes that only repeat it: seeds, base models.
        config: Of the run, as plain values.
        again: Which repetition it is of an arm whose noise is to be told, and no part of a comparison; else empty.
    """

    labels: Labels
    replicate: Labels
    config: Config = field(repr=False)
    again: str = ""

    @property
    def name(self) -> str:
        """``switch=0.2,seed=1``: also the name of its folder."""
        return spelled({**self.labels, **self.replicate, **({AGAIN: self.again} if self.again else {})})

    @property
    def treatment(self) -> str:
        """What is compared: ``switch=0.2``."""
        return spelled(self.labels)

    @property
    def pair(self) -> str:
        """What it has in common with the arm that it is compared with: ``seed=1``; empty without replicates."""
        return spelled(self.replicate)

    @property
    def block(self) -> str:
        """The replicate but for its seed: arms of one block and treatment differ by noise alone."""
        return spelled({axis: label for axis, label in self.replicate.items() if axis != SEED})


@dataclass(frozen=True)
class Grid:
    """Arms in the order of the file, and what they are compared with.

    Args:
        arms: Those of the axes, then repetitions that tell the noise floor.
        control: A value of some axes: an arm is compared with the one that has these and is else like it.
    """

    arms: tuple[Arm, ...]
    control: Labels

    def is_control(self, arm: Arm) -> bool:
        """Whether others are compared with this arm."""
        return all(arm.labels[axis] == label for axis, label in self.control.items())

    @property
    def controls(self) -> dict[str, str]:
        """Each treatment to the one that it is compared with."""
        return {arm.treatment: spelled({**arm.labels, **self.control}) for arm in self.arms}


def runs_of(grids: Mapping[str, Grid]) -> tuple[dict[str, Arm], dict[str, dict[str, str]]]:
    """The runs that grids need together, and which of them each arm is.

    Arms whose configs are equal are one run, called after the first; the runs of several grids are called
    ``GRID/ARM``.

    Args:
        grids: By name.

    Returns:
        Run to its arm, and grid to arm to run.
    """
    runs: dict[str, Arm] = {}
    places: dict[str, dict[str, str]] = {}
    for name, grid in grids.items():
        places[name] = {}
        for each in grid.arms:
            known = next((run for run, arm in runs.items() if arm.config == each.config), None)
            run = known or (f"{name}/{each.name}" if len(grids) > 1 else each.name)
            runs.setdefault(run, each)
            places[name][each.name] = run
    return runs, places


def spelled(labels: Labels) -> str:
    """Labels as a name."""
    return ",".join(f"{axis}={label}" for axis, label in labels.items())


def read_grid(name: str | Path, variables: Mapping[str, str] | None = None) -> Grid:
    """The grid that a file describes.

    Args:
        name: A path, or the name of a grid that lit_cpt ships. YAML with ``base`` (configs, as for `fit`, or mappings),
            ``axes``, ``control``, the value of axes that the others are compared with, and optionally ``replicates``,
            ``noise`` and ``variables``.
        variables: What stands for ``{NAME}``, instead of the file's own.

    Raises:
        ValueError: It is no such file; the message tells where.
        FileNotFoundError: It, or a config that it names, is not there.
    """
    path = find_config(str(name))
    content = read_config(path)
    if unknown := [key for key in content if key not in KEYS]:
        raise ValueError(f"{path}: {unknown[0]!r} is no part of a grid; its parts are {', '.join(KEYS)}.")
    if lacking := [key for key in ("base", "axes", "control") if not content.get(key)]:
        raise ValueError(f"{path} lacks {lacking[0]}: a grid needs base, axes and control (docs/ablations.md).")
    try:
        return grid_of(content, variables)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def grid_of(content: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> Grid:
    """The grid of a file's content.

    Raises:
        ValueError: A part that is none.
    """
    base: Config = {}
    given = content["base"]
    for part in given if isinstance(given, list) else [given]:
        lay_over(base, deepcopy(config_of(part, "base")))
    known = variables_of(content.get("variables") or {}, variables or {})
    axes, replicates = (axes_of(content.get(key) or {}, key) for key in ("axes", "replicates"))
    if twice := axes.keys() & replicates.keys():
        raise ValueError(f"{min(twice)} stands in axes and in replicates: leave it in one of them.")
    control = control_of(content["control"], axes, "control")
    again, repeated = noise_of(content.get("noise"), axes, control)
    places = [dict(zip([*axes, *replicates], labels, strict=True)) for labels in product(*axes.values(),
                                                                                       *replicates.values())]
    places += [{**place, AGAIN: label} for label in again for place in places if repeated.items() <= place.items()]
    arms = [arm(base, {**axes, **replicates, AGAIN: again}, place, known, axes) for place in places]
    for one, other in combinations(arms, 2):
        if one.config == other.config:
            raise ValueError(f"{one.name} and {other.name} are the same run: take one out, or let them differ.")
    return Grid(tuple(arms), control)


def noise_of(given: Any, axes: Mapping[str, Mapping[str, Config]],
             control: Labels) -> tuple[dict[str, Config], Labels]:
    """What is changed to repeat an arm, and the labels of the arms that are repeated (the control's, if not told).

    Raises:
        ValueError: It is something else.
    """
    if not given:
        return {}, {}
    if not isinstance(given, dict) or not given.keys() <= {"of", AGAIN} or AGAIN not in given:
        raise ValueError(f"noise is {given!r}: write {AGAIN}: {{data.seed: [1, 2]}}, and of: {{AXIS: VALUE}} for "
                         "another arm than the control.")
    repeated = control_of(given["of"], axes, "noise.of") if "of" in given else control
    return values_of(given[AGAIN], f"noise.{AGAIN}"), repeated


def variables_of(own: Any, given: Mapping[str, str]) -> dict[str, str]:
    """The file's variables, those that are given in place of them.

    Raises:
        ValueError: They are no names with values, or one is given that the file lacks.
    """
    if not isinstance(own, dict):
        raise ValueError(f"variables is {own!r}: write NAME: VALUE for each.")
    if unknown := sorted(given.keys() - own.keys()):
        raise ValueError(f"it has no variable {unknown[0]!r}; its variables are {', '.join(own) or 'none'}.")
    return {str(name): str(value) for name, value in {**own, **given}.items()}


def axes_of(given: Any, part: str) -> dict[str, dict[str, Config]]:
    """Axis → label → what it changes."""
    if not isinstance(given, dict):
        raise ValueError(f"{part} is {given!r}: write NAME: {{KEY: [VALUE, ...]}} for each axis.")
    return {name_of(axis, part): values_of(values, f"{part}.{axis}") for axis, values in given.items()}


def values_of(given: Any, axis: str) -> dict[str, Config]:
    """Label → what it changes, from lists of values side by side or from named configs.

    Raises:
        ValueError: Neither, or a mixture.
    """
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{axis} is {given!r}: write {{KEY: [VALUE, ...]}} or {{LABEL: {{KEY: VALUE}}, ...}}.")
    listed = [isinstance(values, list) for values in given.values()]
    if not any(listed):
        return {name_of(label, axis): config_of(overlay, f"{axis}.{label}") for label, overlay in given.items()}
    if not all(listed):
        raise ValueError(f"{axis} has {', '.join(given)}: either every key has a list of values, or every label a "
                         "config of its own.")
    sizes = {key: len(values) for key, values in given.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        told = ", ".join(f"{key} {size}" for key, size in sizes.items())
        raise ValueError(f"{axis} has lists of different length ({told}): the keys of an axis move together.")
    labels = [name_of(value, axis) for value in next(iter(given.values()))]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"{axis} has {twice[0]} twice.")
    return {label: {key: values[place] for key, values in given.items()} for place, label in enumerate(labels)}


def name_of(value: Any, where: str) -> str:
    """A value as a part of a folder's name.

    Raises:
        ValueError: It has other signs than a name may have.
    """
    label = str(value)
    if not LABEL.fullmatch(label):
        raise ValueError(f"{where}: {label!r} is no name (letters, digits, _ . + -): give it one, "
                         "as in LABEL: {KEY: VALUE}.")
    return label


def config_of(given: Any, where: str) -> Config:
    """A mapping as it is, a name as the config that it means.

    Raises:
        ValueError: Neither.
    """
    if isinstance(given, str):
        return read_config(find_config(given))
    if not isinstance(given, dict):
        raise ValueError(f"{where} is {given!r}: give a config's name or path, or a mapping such as "
                         "recipe.curve.init_args.eta_min: 0.")
    return given


def arm(base: Config, axes: Mapping[str, Mapping[str, Config]], place: Labels, variables: Mapping[str, str],
        compared: Iterable[str]) -> Arm:
    """The arm at one place of the grid: later axes over earlier ones, all over the base.

    ``{NAME}`` in its texts stands for a variable, or for the arm's value of an axis.
    """
    config = deepcopy(base)
    for axis, label in place.items():
        for key, value in deepcopy(dict(axes[axis][label])).items():
            reach(config, key.split("."), value) if "." in key else lay_over(config, {key: value})
    labels = {axis: place[axis] for axis in compared}
    replicate = {axis: label for axis, label in place.items() if axis not in (*labels, AGAIN)}
    return Arm(labels, replicate, filled(config, {**variables, **place}), place.get(AGAIN, ""))


def rehearsed(arm: Arm, share: float, tokens_per_step: int) -> Arm:
    """``arm`` with so small a share of its token horizon, in whole steps, at least 10."""
    config = deepcopy(arm.config)
    steps = round(share * parse_count(config["recipe"]["token_horizon"], "token_horizon") / tokens_per_step)
    config["recipe"]["token_horizon"] = max(10, steps) * tokens_per_step
    return replace(arm, config=config)


def filled(value: Any, names: Mapping[str, str]) -> Any:
    """``value`` with each ``{NAME}`` of ``names`` in its texts replaced.

    >>> filled({"model": ["worlds/{world}/model", "{other}"]}, {"world": "3"})
    {'model': ['worlds/3/model', '{other}']}
    """
    if isinstance(value, dict):
        return {key: filled(member, names) for key, member in value.items()}
    if isinstance(value, list):
        return [filled(member, names) for member in value]
    return NAMED.sub(lambda found: names.get(found[1], found[0]), value) if isinstance(value, str) else value


def reach(config: Config, path: list[str], value: Any) -> None:
    """Set what a dotted key leads to; a number means an item of a list that is there.

    Raises:
        ValueError: The way ends at something that has no such part.
    """
    inside: Any = config
    for place, name in enumerate(path):
        last, here = place == len(path) - 1, ".".join(path[:place])
        key: Any = name
        if isinstance(inside, list):
            if not name.isdigit() or int(name) >= len(inside):
                raise ValueError(f"{'.'.join(path)}: the base's {here} has items 0 to {len(inside) - 1}, not {name}.")
            key = int(name)
        elif not isinstance(inside, dict) or (name.isdigit() and name not in inside):
            raise ValueError(f"{'.'.join(path)}: the base's {here} is {inside or None!r}, which has no {name}.")
        if last:
            inside[key] = value
        else:
            inside = inside[key] if isinstance(inside, list) else inside.setdefault(name, {})


def control_of(given: Any, axes: Mapping[str, Mapping[str, Config]], part: str) -> Labels:
    """The label on each axis that the control, or another ``part``, names.

    Raises:
        ValueError: It names none of the grid's.
    """
    if not isinstance(given, dict) or not {str(axis) for axis in given} <= set(axes):
        raise ValueError(f"{part} is {given!r}: name a value of one or more of {', '.join(axes)}, such as "
                         f"{next(iter(axes))}: {next(iter(next(iter(axes.values()))))}.")
    chosen = {str(axis): str(label) for axis, label in given.items()}
    for axis, label in chosen.items():
        if label not in axes[axis]:
            raise ValueError(f"{part}.{axis} is {label}: the axis has {', '.join(axes[axis])}.")
    return chosen
