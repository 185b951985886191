"""Run folders → tidy data, PNG plots and one self-contained HTML page; no torch."""

from lit_cpt.report.comparison import Row, compare
from lit_cpt.report.frames import Frames
from lit_cpt.report.page import write_report
from lit_cpt.report.plots import plot_losses, plot_plan
from lit_cpt.report.runs import Run, load_run

__all__ = ["Frames", "Row", "Run", "compare", "load_run", "plot_losses", "plot_plan", "write_report"]
