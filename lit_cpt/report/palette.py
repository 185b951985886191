"""The colours of charts and page: each has a name, a light value and a dark one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from lit_cpt.report.runs import BASE

# Name: (on white, on the dark page). The light values are told apart by their hex, so no two may be equal.
PALETTE = {
    "ink": ("#1b2430", "#e7eaee"), "muted": ("#5b6673", "#a2acb8"), "rule": ("#d5dbe1", "#3a444f"),
    "page": ("#fefefe", "#14181d"), "shade": ("#f4f6f8", "#1c2229"), "on-fill": ("#15191e", "#15191f"),
    "control": ("#717c89", "#98a3b0"), "base": ("#a9957c", "#b9a68d"),
    "run0": ("#1d5c9c", "#6fb1f2"), "run1": ("#c0501a", "#f29460"), "run2": ("#2c7d55", "#69c596"),
    "run3": ("#8b4a9c", "#cf97df"), "run4": ("#94780c", "#d6bb54"), "run5": ("#b03a5b", "#ee8ba6"),
    "run6": ("#0c7f8a", "#58c3cf"), "run7": ("#5a5bd0", "#a6a8f7"), "run8": ("#7a5230", "#cda57e"),
    "run9": ("#55701a", "#abc769"),
    "source0": ("#a9c6e6", "#84a8cf"), "source1": ("#f3cf8e", "#d3ad67"), "source2": ("#b2dcbb", "#8abb95"),
    "source3": ("#eeb4a0", "#cf9079"), "source4": ("#d2bfe3", "#ad98c2"), "source5": ("#d9dba0", "#b5b773"),
    "source6": ("#a8dcdc", "#7fb8b8"), "source7": ("#e3c3cf", "#bf9aa8"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
RUNS = [name for name in PALETTE if name.startswith("run")]
SOURCES = [name for name in PALETTE if name.startswith("source")]


def run_colours(names: Iterable[str], control: str | None) -> dict[str, str]:
    """Run to the name of its colour: grey for the control, sand for the base, the others in turn."""
    fixed = {BASE: "base", **({control: "control"} if control is not None else {})}
    others = [name for name in names if name not in fixed]
    turn = {name: RUNS[place % len(RUNS)] for place, name in enumerate(others)}
    return {name: fixed.get(name) or turn[name] for name in names}


def source_colours(names: Iterable[str]) -> dict[str, str]:
    """Source to the name of its colour, in turn."""
    return {name: SOURCES[place % len(SOURCES)] for place, name in enumerate(dict.fromkeys(names))}


def visible(text: str) -> str:
    """``text`` with every control, format and lone surrogate character but the newline made visible."""
    return "".join("\ufffd" if unicodedata.category(letter).startswith("C") and letter != "\n" else letter
                   for letter in text)
