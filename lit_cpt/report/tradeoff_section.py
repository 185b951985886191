"""Forgetting against gain, on the page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lit_cpt.report.comparison import signed
from lit_cpt.report.figures import figure, legend
from lit_cpt.report.markup import Cell, difference_cell, paragraph, section, table
from lit_cpt.report.tradeoff import Balance, Weights
from lit_cpt.report.tradeoff_chart import tradeoff_figure


def tradeoff_section(found: Mapping[str, Balance], weights: Weights, colours: Mapping[str, str]) -> str:
    """Chart, table, and how to read them; empty where no run has losses and scores from its beginning on."""
    if not found:
        return ""
    chart = figure(partial(tradeoff_figure, found, colours), "tradeoff", "Forgetting against gain")
    return section("Forgetting against gain", legend(list(found), colours), chart, tradeoff_table(found),
                   paragraph(reading(weights), "small"))


def reading(weights: Weights) -> str:
    """What the two axes are."""
    parts = ", ".join(f"{source} {100 * weight:.3g} %" for source, weight in weights.items())
    return ("A good run goes up, and not to the right. Forgetting is the change of the validation loss on the old "
            f"blend ({parts}); gain is the change of the average score over the documents that both evaluations asked. "
            "A small dot is an evaluation, the large one the last, its bar the 95 % interval of the gain. The loss has "
            "no interval.")


def tradeoff_table(found: Mapping[str, Balance]) -> str:
    """Runs × (forgotten, gained)."""
    lines: list[list[str | Cell]] = [
        [name, one.began, f"{one.steps[-1]:,}", Cell(signed(one.forgotten[-1], 3), strong=one.forgotten[-1] > 0),
         difference_cell(one.gain)] for name, one in found.items()]
    return table("Change of the loss on the old blend and of the average score; bold where the loss rose, or zero lies "
                 "outside of the interval", ["run", "since", "up to step", "loss, nats", "score, points"], lines)
