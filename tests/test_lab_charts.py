"""The page of a grid: who is joined over switch points, what is drawn, and what is told where nothing is."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lit_cpt.ablate_command import course_of
from lit_cpt.events import append_event
from lit_cpt.intervals import Interval
from lit_cpt.lab.arms_table import compare_arms, outcome_of
from lit_cpt.lab.grid import grid_of, spelled
from lit_cpt.lab.grid_charts import draw_losses, draw_rates, draw_switch_points, draw_tradeoff, draw_trends
from lit_cpt.lab.grid_page import tradeoff_chart, trend_chart, write_grid_page
from lit_cpt.lab.scaling import Trend
from lit_cpt.lab.switch_points import places, switch_lines
from lit_cpt.lab.treatments import mean_of, treatments_of
from lit_cpt.plan import plan
from lit_cpt.recipe import Batch
from lit_cpt.report.palette import LIGHT
from lit_cpt.report.runs import load_run

BATCH = {"sequence_length": 64, "global_batch": 8, "micro_batch": 2}
GENERAL, QA = {"web": 0.6, "code": 0.4}, {"web": 0.2, "code": 0.2, "qa": 0.6}
LAST = {"name": "qa", "blend": {"weights": QA}}
BASE = {"data": BATCH, "recipe": {
    "token_horizon": 800 * 512, "curve": {"class_path": "Cosine", "init_args": {"eta_max": 6e-4}},
    "phases": [{"name": "general", "blend": {"weights": GENERAL}}, {**LAST, "when": {"eta_over_eta_max": 0.2}}]}}
SWITCHES = {"start": {"recipe.phases": [LAST]}, "fifth": {}, "half": {"recipe.phases.1.when.eta_over_eta_max": 0.5},
            "never": {"recipe.phases": [{"name": "general", "blend": {"weights": GENERAL}}]}}
GAIN = {"start": 10, "half": 14, "fifth": 17, "never": 4}  # questions more right at the end
COLOURS = {f"switch={name}": f"run{place}" for place, name in enumerate(SWITCHES)}


def grid(**parts):
    return grid_of({"base": BASE, "axes": {"switch": SWITCHES}, "control": {"switch": "fifth"},
                    "replicates": {"world": {"0": {"data.seed": 0}, "1": {"data.seed": 1}, "2": {"data.seed": 2}}},
                    **parts})


def evaluation(step, right):
    hits = {"mmlu": [1] * right + [0] * (60 - right), "code": [1] * (right // 2) + [0] * (60 - right // 2)}
    families = {name: {"score": sum(each) / 60, "low": 0.0, "high": 1.0, "hits": each, "items": 60,
                       "clusters": [str(place) for place in range(60)]} for name, each in hits.items()}
    return {"step": step, "tokens_seen": step * 512, "families": families, "averaged": ["mmlu", "code"],
            "average": {"score": sum(one["score"] for one in families.values()) / 2, "low": 0.0, "high": 1.0}}


def write_arm(folder, arm, scored=True, validated=True):
    """A run folder with what `fit` would have written, as far as the page reads it."""
    recipe = course_of(arm).recipe
    steps, world = recipe.steps(512), int(arm.replicate.get("world", 0))
    append_event(folder, "finish", step=steps)
    (folder / "plan.json").write_text(json.dumps(plan(recipe, Batch(**BATCH)).describe()))
    with SummaryWriter(str(folder)) as writer:
        for source, start, fall in (("web", 2.0, -0.1), ("qa", 3.0, 0.3)):
            for step in range(0, steps + 1, 100) if validated else ():
                noise = 0.02 * np.random.default_rng([world, step]).standard_normal()
                learned = fall * (1 + GAIN.get(arm.labels.get("switch"), 9) / 40)
                loss = (start + 0.1 * world) * math.exp(-0.4 * learned * math.log1p(step / 30)) + noise
                writer.add_scalar(f"val/{source}/loss", loss, step)
    (folder / "evals").mkdir()
    for step, right in ((0, 20), (steps, 22 + 3 * world + GAIN.get(arm.labels.get("switch"), 9))) if scored else ():
        (folder / f"evals/step{step:08d}.json").write_text(json.dumps(evaluation(step, right)))


def write_runs(root, found, **what):
    runs = {arm.name: root / arm.name for arm in found.arms}
    for arm in found.arms:
        write_arm(runs[arm.name], arm, **what)
    return runs


def write_page(root, found, **what):
    runs = write_runs(root / "runs", found, **what)
    outcomes = [outcome_of(arm, runs[arm.name]) for arm in found.arms]
    return write_grid_page(root, found, loaded(runs), compare_arms(outcomes, found.controls, spelled(found.control)))


def loaded(folders):
    return {arm: load_run(folder) for arm, folder in folders.items()}


@pytest.fixture(scope="module")
def treatments(tmp_path_factory):
    root = tmp_path_factory.mktemp("arms")
    return treatments_of(grid(), loaded(write_runs(root, grid())))


def axes():
    return Figure().subplots()


def marks(drawn, colour):
    """Places of the dots in a colour of the palette."""
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in drawn.lines
            if line.get_marker() == "o" and line.get_color() == LIGHT[colour]]


# Switch points ---------------------------------------------------------------------------------------------------


def test_arms_that_differ_only_in_the_switch_are_joined_with_the_one_that_begins_on_the_last_blend(treatments):
    [line] = switch_lines(treatments)
    assert list(line) == ["switch=start", "switch=half", "switch=fifth"]
    assert line["switch=fifth"].eta_share == pytest.approx(0.2, rel=0.02)
    assert places([line]) == ({name: switch.eta_share for name, switch in line.items()}, True)


def test_where_the_rate_does_not_fall_switches_stand_by_progress(tmp_path):
    flat = {"class_path": "Constant", "init_args": {"eta_max": 1e-3}}
    switches = {f"at{share}": {"recipe.phases.1.when": {"fraction": share / 100}, "recipe.curve": flat}
                for share in (25, 50)}
    found = grid(axes={"switch": switches}, replicates={}, control={"switch": "at25"})
    lines = switch_lines(treatments_of(found, loaded(write_runs(tmp_path, found))))
    assert places(lines) == ({"switch=at25": 0.25, "switch=at50": 0.5}, False)


def test_a_switch_point_is_drawn_at_the_mean_with_its_interval_and_others_as_levels(treatments):
    drawn, [line] = axes(), switch_lines(treatments)
    draw_switch_points(drawn, treatments, [line], "mmlu", COLOURS)
    [(place, mean)] = marks(drawn, COLOURS["switch=fifth"])
    assert (place, mean) == (pytest.approx(0.2, rel=0.02), pytest.approx(100 * 42 / 60))
    reach = 4.30265 * 5 / math.sqrt(3)  # replicates stand 5 points apart
    bar = next(each for each in drawn.lines if each.get_color() == LIGHT[COLOURS["switch=fifth"]])
    assert list(bar.get_ydata()) == pytest.approx([mean - reach, mean + reach])
    assert drawn.xaxis_inverted()
    [level] = [each for each in drawn.lines if each.get_linestyle() == ":"]
    assert list(level.get_ydata()) == pytest.approx([100 * 29 / 60] * 2)
    assert sum(each.get_color() == LIGHT["rule"] for each in drawn.lines) == 3


# The other charts ------------------------------------------------------------------------------------------------


def test_forgetting_and_gain_are_means_over_replicates_since_each_runs_beginning(treatments):
    chart = tradeoff_chart(treatments, COLOURS, grid().controls)
    drawn = axes()
    chart.panels["Forgetting against gain"](drawn)
    [(forgotten, gained)] = marks(drawn, COLOURS["switch=start"])
    ends = [trial.run.validation["web"] for trial in treatments["switch=start"].values()]
    assert forgotten == pytest.approx(np.mean([points[-1][1] - points[0][1] for points in ends]))  # code has no loss
    assert gained == pytest.approx(100 * np.mean([((right - 20) / 60 + (right // 2 - 10) / 60) / 2
                                                  for right in (32, 35, 38)]))
    assert "switch=start" in chart.table


def test_one_replicate_has_a_mark_and_no_bar():
    drawn = axes()
    draw_tradeoff(drawn, {"a": (mean_of([("", 0.1)]), Interval(3.0, 1.0, 5.0))}, {"a": "run0"})
    assert marks(drawn, "run0") == [(0.1, 3.0)]
    assert np.isnan(drawn.lines[1].get_xdata()).all()


def test_losses_are_means_in_the_range_of_the_replicates_over_the_tokens_that_all_have(treatments):
    drawn = axes()
    draw_losses(drawn, treatments, "qa", COLOURS)
    points = [trial.run.validation["qa"] for trial in treatments["switch=start"].values()]
    assert list(drawn.lines[0].get_xdata()) == [step * 512 for step, _ in points[0]]
    assert drawn.lines[0].get_ydata()[-1] == pytest.approx(np.mean([each[-1][1] for each in points]))
    assert drawn.collections[0].get_datalim(drawn.transData).y1 == pytest.approx(max(each[0][1] for each in points))


def test_rates_are_as_planned_with_a_dot_where_the_last_phase_begins(treatments):
    drawn = axes()
    draw_rates(drawn, treatments, COLOURS)
    [(tokens, eta)] = marks(drawn, COLOURS["switch=fifth"])
    assert eta == pytest.approx(0.2 * 6e-4, rel=0.02)
    assert 0.6 < tokens / (800 * 512) < 0.8
    assert marks(drawn, COLOURS["switch=never"]) == []


def test_what_lies_beyond_the_last_horizon_is_dashed_and_named():
    drawn, trend = axes(), Trend((100, 1000, 10_000), (("", (4.0, 3.0, 2.3)),))
    draw_trends(drawn, {"ours": trend}, "web", {"ours": "run0"})
    inside, beyond = (line for line in drawn.lines if line.get_marker() == "None")
    assert (inside.get_linestyle(), beyond.get_linestyle()) == ("-", "--")
    assert (beyond.get_xdata()[0], beyond.get_xdata()[-1]) == (pytest.approx(10_000), pytest.approx(100_000))
    assert [text.get_text() for text in drawn.texts] == ["extrapolated"]


# The page --------------------------------------------------------------------------------------------------------


def test_the_page_has_its_table_and_charts_and_their_pictures_beside_it(tmp_path):
    text = write_page(tmp_path, grid()).read_text(encoding="utf-8")
    for title in ("What the arms came to", "Where to switch", "Forgetting against gain", "Validation losses",
                  "Learning rates"):
        assert f"<h2>{title}</h2>" in text
    assert "4 arms · 3 replicates" in text
    for measure in ("average", "mmlu", "code", "val/web", "val/qa"):
        assert f'aria-label="{measure} against the switch point"' in text
    assert "shown: zero lies outside every interval there is." in text
    assert "no trend over lengths: no arms differ only in their horizon" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"switch_points.png", "tradeoff.png", "losses.png",
                                                              "rates.png"}


def test_what_arms_lack_is_told_and_left_out(tmp_path):
    text = write_page(tmp_path, grid(replicates={}), scored=False, validated=False).read_text(encoding="utf-8")
    for told in ("no chart of switch points: no arm has a score or a loss", "no losses: no arm was validated",
                 "no chart of forgetting against gain: no arm has losses and scores", "1 replicate<"):
        assert told in text
    assert "no two arms differ only in where the last phase begins" in write_page(
        tmp_path / "b", grid(axes={"floor": {"recipe.curve.init_args.eta_min": [0, 1e-5]}}, replicates={},
                             control={"floor": 0}), validated=False).read_text(encoding="utf-8")


def test_treatments_of_several_horizons_have_a_trend_by_source(tmp_path):
    found = grid(axes={"horizon": {"recipe.token_horizon": [100 * 512, 200 * 512, 400 * 512]},
                       "switch": {"fifth": {}, "half": SWITCHES["half"]}})
    chart = trend_chart(treatments_of(found, loaded(write_runs(tmp_path, found))), {})
    assert list(chart.colours) == ["switch=fifth", "switch=half"]
    assert len(chart.panels) == 2
    assert "51.2k, 102.4k, 204.8k" in chart.table
    assert ">409.6k<" in chart.table
