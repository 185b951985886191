"""How charts look and leave: as PNG in the light palette, or as inline SVG that follows the page's."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lit_cpt.report.palette import LIGHT, visible
from lit_cpt.units import format_count

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "lit_cpt", "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 8.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": LIGHT["rule"],
    "axes.facecolor": "none", "axes.grid": True, "axes.axisbelow": True, "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.6, "text.color": LIGHT["ink"], "axes.titlecolor": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"], "xtick.color": LIGHT["rule"], "ytick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["muted"], "ytick.labelcolor": LIGHT["muted"], "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5, "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0,
    "ytick.minor.size": 0, "legend.frameon": False, "legend.fontsize": 8.5,
}
COUNTS = FuncFormatter(lambda value, _: format_count(value) if value >= 0 else "")
PERCENT = FuncFormatter(lambda value, _: f"{round(value, 9) + 0.0:.4g} %".replace("-", "\u2212"))
ROOMY = 5.0  # inches; a narrower chart has no room for whole sentences
RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def save(draw: Callable[[], Figure], file: str | Path) -> Path:
    """Draw into ``file``, opaque; equal inputs give equal bytes."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    stamp = {"Date": None} if file.suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context(STYLE):
        draw().savefig(file, dpi=160, metadata=stamp, facecolor="white")
    return file


def inline_svg(draw: Callable[[], Figure], name: str, label: str) -> str:
    """A chart as an ``<svg>`` element whose colours are the page's variables and whose ids begin with ``name``.

    Args:
        draw: Makes the figure.
        name: Unique on the page, letters and digits.
        label: What a screen reader says, already escaped.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    view = re.search(r'viewBox="([^"]+)"', drawn)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "",
                  drawn[drawn.index(">", drawn.index("<svg")) + 1:], flags=re.DOTALL)
    body = body.replace("xlink:href", "href").replace(' id="', f' id="{name}-')
    body = re.sub(r'(url\(|href=")#', rf"\1#{name}-", body)
    for variable, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg role="img" aria-label="{label}" viewBox="{view[1] if view else ""}">{body}'


def scientific(value: float) -> str:
    """A small number as print writes it.

    >>> scientific(0.00012), scientific(0.0)
    ('1.2×10⁻⁴', '0')
    """
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}" + (f"×10{str(int(power)).translate(RAISED)}" if int(power) else "")


def ticks(count: int) -> MaxNLocator:
    """At most ``count`` steps between ticks, at numbers that are easily read."""
    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])


def printable(name: object, limit: int = 26) -> str:
    """A name fit for a chart: one line, no control characters, cut at ``limit``."""
    text = visible(" ".join(str(name).split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"
