"""The picture of a recipe: learning rate and blend on one axis of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from lit_cpt.report.canvas import COUNTS, PERCENT, ROOMY, printable, scientific
from lit_cpt.report.palette import LIGHT, source_colours

FLAT = 0.08  # a switch below this share of the largest rate is not seen on a linear axis
LEAST_HEIGHT = 7.5  # per cent; a thinner stripe has no room for letters
LETTERS_PER_INCH = 10.5  # of a stripe's label, axis margins taken off


def plan_figure(plan: dict[str, Any], width: float) -> Figure:
    """Learning rate over blend, ``width`` inches wide."""
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    rate, blend = figure.subplots(2, 1, sharex=True, height_ratios=(5, 4))
    unknown = [phase for phase in plan["phases"] if phase["start"] is None]
    plan = {**plan, "phases": [phase for phase in plan["phases"] if phase["start"]]}
    draw_rate(rate, plan)
    draw_blend(figure, blend, plan, width)
    switches = plan["phases"][1:]
    for place, phase in enumerate(unknown, len(switches)):
        name, when = printable(phase["name"], 26 if width > ROOMY else 10), printable(phase["when"], int(5 * width))
        words = f"{name} when {when}: not foretold"
        rate.annotate(words, (1.0, 1.03 + 0.09 * place), xycoords="axes fraction", ha="right", fontsize=8.5)
    for place, phase in enumerate(switches):
        start = phase["start"]
        for axes in (rate, blend):
            axes.axvline(start["tokens"], color=LIGHT["ink"], linewidth=0.9, linestyle=(0, (4, 2)))
        late, wide = start["tokens"] > plan["token_horizon"] / 2, width > ROOMY
        words = f"from {100 * start['fraction']:.1f} %{' of the tokens' * wide}, η = {scientific(start['eta'])}"
        rate.annotate(f"{printable(phase['name'], 26 if wide else 10)} {words}", (
            start["tokens"] if wide else float(late) * plan["token_horizon"], 1.03 + 0.09 * place),
            xycoords=("data", "axes fraction"), ha="right" if late else "left", fontsize=8.5)
    return figure


def draw_rate(axes: Axes, plan: dict[str, Any]) -> None:
    """The learning rate against tokens; logarithmic where a switch would lie flat on the axis."""
    tokens, eta = zip(*plan["curve"], strict=True)
    axes.plot(tokens, eta, color=LIGHT["run0"], linewidth=1.8)
    switches = [phase["start"]["eta"] for phase in plan["phases"][1:]]
    axes.plot([phase["start"]["tokens"] for phase in plan["phases"][1:]], switches, "o", markersize=5,
              color=LIGHT["ink"])
    if switches and 0 < min(switches) < FLAT * max(eta):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.06 * max(eta))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scientific(value)))
    axes.set_ylabel("learning rate η")
    axes.grid(axis="x", visible=False)


def draw_blend(figure: Figure, axes: Axes, plan: dict[str, Any], width: float) -> None:
    """Shares of the sources, stacked, phase by phase; a name stands in its stripe where there is room."""
    names = list(dict.fromkeys(source["name"] for phase in plan["phases"] for source in phase["sources"]))
    colours, named = source_colours(names), set()
    for phase in plan["phases"]:
        start, span, floor = phase["start"]["tokens"], phase["stop"]["tokens"] - phase["start"]["tokens"], 0.0
        room = span / plan["token_horizon"] * width * LETTERS_PER_INCH  # letters that fit
        for source in sorted(phase["sources"], key=lambda source: names.index(source["name"])):
            height = 100 * source["weight"]
            axes.bar(start, height, span, floor, align="edge", color=LIGHT[colours[source["name"]]],
                     edgecolor=LIGHT["page"], linewidth=0.8)
            words = [f"{printable(source['name'])} {height:.3g} %", f"{height:.3g} %"]
            fitting = next((word for word in words if len(word) < room), None) if height >= LEAST_HEIGHT else None
            if fitting:
                axes.text(start + span / 2, floor + height / 2, fitting, ha="center", va="center", fontsize=8,
                          color=LIGHT["on-fill"])
                named |= {source["name"]} if fitting == words[0] else set()
            floor += height
    axes.set(ylim=(0, 100), xlim=(0, plan["token_horizon"]), xlabel="tokens seen", ylabel="blend")
    axes.xaxis.set_major_formatter(COUNTS)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_yticks([0, 50, 100])
    axes.grid(visible=False)
    draw_key({name: colour for name, colour in colours.items() if name not in named}, figure, width)


def draw_key(colours: Mapping[str, str], figure: Figure, width: float) -> None:
    """Names and colours of the sources that found no room, below the chart, which grows by their rows."""
    if not colours:
        return
    keys = [Patch(color=LIGHT[colour], label=" " + printable(name)) for name, colour in colours.items()]
    longest = max(len(printable(name)) for name in colours)
    columns = max(1, int(width * LETTERS_PER_INCH / (longest + 6)))
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(keys) // columns))
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, handlelength=1)
