"""HTML from plain values; every text that enters is escaped here and nowhere else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from lit_cpt.intervals import Interval
from lit_cpt.report.comparison import signed
from lit_cpt.report.palette import visible

LONGEST = 64  # letters of a row's or a column's name


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
        text: What it says.
        small: What stands beside it in small print.
        strong: Whether it is set in bold.
    """

    text: str
    small: str = ""
    strong: bool = False


def escaped(text: object) -> str:
    """Text as HTML: markup is shown, control characters are replaced."""
    return html.escape(visible(str(text)))


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str | Cell]], kind: str = "") -> str:
    """A table in a box that scrolls when it is wider than the page; the first column names the row.

    Args:
        caption: What it shows.
        head: Titles of the columns.
        rows: Their cells.
        kind: "words" sets it to the left, "summed" sets its last row off.
    """
    titles = "".join(f'<th scope="col">{name(title)}</th>' for title in head)
    lines = "".join(f"<tr>{''.join(cell(each, place == 0) for place, each in enumerate(row))}</tr>\n" for row in rows)
    return (f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{escaped(caption)}"><table>'
            f"<caption><span>{escaped(caption)}</span></caption><thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}</tbody></table>"
            "</div>\n")


def cell(value: str | Cell, names_row: bool) -> str:
    """One cell."""
    value = Cell(value) if isinstance(value, str) else value
    text = name(value.text) if names_row else escaped(value.text)
    inner = f"<b>{text}</b>" if value.strong else text
    inner += f" <small>{escaped(value.small)}</small>" if value.small else ""
    return f'<th scope="row">{inner}</th>' if names_row else f"<td>{inner}</td>"


def name(text: str) -> str:
    """The name of a row or a column: it may break at its own joints, and of a very long one both ends are told.

    >>> name("qa_held_out")
    'qa_<wbr>held_<wbr>out'
    """
    short = text if len(text) <= LONGEST else f"{text[:LONGEST - 21]}…{text[-20:]}"
    return escaped(short).replace("_", "_<wbr>")


def section(title: str, *parts: str) -> str:
    """A titled section; empty if it has nothing to say."""
    body = "".join(parts)
    return f"<section>\n<h2>{escaped(title)}</h2>\n{body}</section>\n" if body else ""


def folding(title: str, body: str, *, is_open: bool = False) -> str:
    """A part that opens and shuts."""
    return f"<details{' open' * is_open}><summary>{escaped(title)}</summary>\n{body}</details>\n"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escaped(text)}</p>\n"


def score_cell(score: Interval) -> Cell:
    """A score in percent with its interval."""
    return Cell(f"{100 * score.value:.1f}", f"{100 * score.low:.1f} to {100 * score.high:.1f}")


def difference_cell(gap: Interval) -> Cell:
    """A difference in points with its interval, bold where that excludes zero."""
    return Cell(signed(100 * gap.value), f"{signed(100 * gap.low)} to {signed(100 * gap.high)}", gap.excludes_zero)
