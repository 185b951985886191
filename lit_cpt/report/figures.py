"""Charts as they stand on the page: drawn for wide and for narrow screens, side by side, and with a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure

from lit_cpt.report.canvas import inline_svg
from lit_cpt.report.markup import escaped

WIDE, NARROW, PANEL = 8.8, 3.7, 3.3  # inches; drawn twice so that letters keep their size on a phone


def figure(draw: Callable[[float], Figure], name: str, label: str, widths: tuple[float, ...] = (WIDE, NARROW)) -> str:
    """A chart at each of ``widths``, the first for wide screens, the second for narrow ones.

    Args:
        draw: Takes a width in inches.
        name: Unique on the page, letters and digits.
        label: What a screen reader says.
        widths: One or two.
    """
    kinds = ("",) if len(widths) == 1 else (' class="wide"', ' class="narrow"')
    return "".join(f"<figure{kind}>{inline_svg(partial(draw, width), f'{name}{place}', escaped(label))}</figure>\n"
                   for place, (kind, width) in enumerate(zip(kinds, widths, strict=True)))


def panels(charts: Sequence[tuple[Callable[[float], Figure], str]], name: str) -> str:
    """Small charts side by side; each is given as what draws it and its label."""
    drawn = "".join(figure(draw, f"{name}{place}x", label, (PANEL,)) for place, (draw, label) in enumerate(charts))
    return f'<div class="panels">\n{drawn}</div>\n' if drawn else ""


def legend(names: Sequence[str], colours: Mapping[str, str]) -> str:
    """Names beside their colours."""
    keys = "".join(f'<li><i style="background:var(--{colours[name]})"></i>{escaped(name)}</li>' for name in names)
    return f'<ul class="legend">{keys}</ul>\n'
