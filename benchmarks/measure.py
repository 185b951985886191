"""What the benchmarks share: arms in turn, medians and spread, one JSON form. Run the other files, not this one."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path


def parser(description: str | None) -> argparse.ArgumentParser:
    """``--quick`` and ``--json FILE``, which every benchmark takes."""
    accepted = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    accepted.add_argument("--quick", action="store_true", help="smaller inputs, fewer rounds")
    accepted.add_argument("--json", metavar="FILE", help="write the figures there")
    return accepted


def alternate(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each arm's figure in each round; the arms take turns, and every other round in reverse order."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms) if number % 2 == 0 else list(arms)[::-1]:
            found[name].append(arms[name]())
    return found


def ratios(found: Mapping[str, Sequence[float]], over: str, under: str) -> list[float]:
    """``over`` / ``under``, round by round: pairs share the machine's mood."""
    return [a / b for a, b in zip(found[over], found[under], strict=True)]


def show(title: str, found: Mapping[str, Sequence[float]], form: str = "{:.3f}") -> None:
    """Medians and spread."""
    print(f"\n{title}\n{'':28}{'median':>12}{'lowest':>12}{'highest':>12}")
    for name, values in found.items():
        figures = (statistics.median(values), min(values), max(values))
        print(f"{name:28}" + "".join(f"{form.format(figure):>12}" for figure in figures))


def device() -> str:
    """The machine in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"


def write(file: str | None, figures: Mapping[str, float], packages: Sequence[str]) -> None:
    """The JSON form, if a file was asked for."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    rounded = {name: round(value, 4) for name, value in figures.items()}
    result = {"device": device(), "versions": versions, "figures": rounded}
    if file:
        Path(file).write_text(json.dumps(result, indent=1) + "\n")
