from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lit_cpt.events import append_event
from lit_cpt.intervals import average_difference, average_interval, cluster_interval, paired_difference
from lit_cpt.json_lines import append_line
from lit_cpt.report import compare, load_run, plot_losses, plot_plan, write_report
from lit_cpt.report.comparison import chosen_subject, verdict
from lit_cpt.report.course import course_table, ending, wall_seconds
from lit_cpt.report.events_section import ROWS, event_table
from lit_cpt.report.guards_section import guard_table, guards_section, incident_table
from lit_cpt.report.ledger_chart import intervals, passed_places
from lit_cpt.report.ledger_section import brief_table, passed_table, phase_table
from lit_cpt.report.palette import PALETTE, run_colours
from lit_cpt.report.plan_chart import plan_figure
from lit_cpt.report.run_charts import POINTS, draw_line
from lit_cpt.report.runs import Run, named
from lit_cpt.report.speed_section import speed_section, speed_table
from lit_cpt.report.tables import bits_table, failure_table, plan_table, score_table, switch_table
from lit_cpt.report.tradeoff import balances, gain, old_blend
from lit_cpt.report.tradeoff_section import tradeoff_section

STEPS, SWITCH, TOKENS, LENGTH = 1400, 996, 512, 64
ETA_MAX, ETA_MIN = 6e-4, 6e-6
GENERAL = {"web": 0.22, "books": 0.34, "code": 0.12, "multi": 0.32}
QA = {"web": 0.08, "books": 0.32, "code": 0.10, "multi": 0.22, "qa": 0.28}
BASELINE = {"web": 0.70, "books": 0.10, "code": 0.04, "multi": 0.16}
FAMILIES = {"knowledge": 200, "completion": 288, "code": 160, "math": 270}
SCORES = {"base": (0.33, 0.51, 0.33, 0.32), "baseline": (0.54, 0.68, 0.63, 0.89), "recipe": (0.55, 0.88, 0.89, 0.94)}
LOSSES = {"base": (0.935, 1.050, 0.71, 0.80, 3.15), "baseline": (0.850, 0.764, 0.66, 0.70, 3.09),
          "recipe": (0.944, 0.620, 0.55, 0.61, 0.81)}
SOURCES = ("web", "books", "code", "multi", "qa")


def eta_at(step: float) -> float:
    return ETA_MIN + (ETA_MAX - ETA_MIN) * (1 + math.cos(math.pi * step / STEPS)) / 2


def phase(name: str, when: str | None, start: int, stop: int, weights: dict[str, float]) -> dict[str, Any]:
    at = [{"step": step, "tokens": step * TOKENS, "fraction": step / STEPS, "eta": eta_at(step)}
          for step in (start, stop)]
    tokens = (stop - start) * TOKENS
    samples = {source: round(weight * tokens / LENGTH) for source, weight in weights.items()}
    drawn = [{"name": source, "weight": weight, "tokens": LENGTH * samples[source], "samples": samples[source],
              "epochs": round(weight * tokens / 38_000, 2)} for source, weight in weights.items()]
    return {"name": name, "when": when, "start": at[0], "stop": at[1], "tokens": tokens, "sources": drawn}


def plan_of(name: str = "recipe") -> dict[str, Any]:
    phases = ([phase("general", None, 0, SWITCH, GENERAL), phase("qa", "eta_over_eta_max=0.2", SWITCH, STEPS, QA)]
              if name == "recipe" else [phase("general", None, 0, STEPS, BASELINE)])
    return {"token_horizon": STEPS * TOKENS, "steps": STEPS, "tokens_per_step": TOKENS, "phases": phases,
            "curve": [[step * TOKENS, eta_at(step)] for step in range(0, STEPS + 1, 7)], "sources": []}


def evaluation(name: str, step: int) -> dict[str, Any]:
    answers, hits, clusters = {}, {}, {}
    for place, (family, items) in enumerate(FAMILIES.items()):
        hard = np.random.default_rng(place).random(items)  # the same items are hard for every run
        hits[family] = [int(score) for score in hard < SCORES.get(name, (0.5,) * 4)[place]]
        clusters[family] = [f"{family}{item % 40}" for item in range(items)]
        interval = cluster_interval(hits[family], clusters[family])
        answers[family] = {"score": interval.value, "low": interval.low, "high": interval.high, "items": items,
                           "hits": hits[family], "clusters": clusters[family]}
    average = average_interval(hits, clusters)
    return {"step": step, "tokens_seen": step * TOKENS, "seconds": 3.0, "families": answers,
            "average": {"score": average.value, "low": average.low, "high": average.high}}


def write_scalars(folder: Path, name: str, first: int = 0, last: int = STEPS, shift: float = 0.0) -> None:
    noise = np.random.default_rng(len(name))
    with SummaryWriter(str(folder)) as writer:
        for step in range(first, last + 1, 10):
            share = step / STEPS
            writer.add_scalar("train/loss", 1.3 - 0.5 * share**0.5 + 0.04 * noise.standard_normal() + shift, step)
            writer.add_scalar("train/eta", eta_at(step), step)
            writer.add_scalar("train/tokens_seen", step * TOKENS, step)
            writer.add_scalar("speed/tokens_per_second", 900 + 30 * noise.standard_normal(), step)
            writer.add_scalar("speed/data_wait", 0.02, step)
            writer.add_scalar("speed/paused", 0.1, step)
            writer.add_scalar("speed/mfu", 0.41, step)
            for source, start, end in zip(SOURCES, LOSSES["base"], LOSSES.get(name, LOSSES["base"]), strict=True):
                if step % 100 == 0:
                    sought = max(0.0, share - SWITCH / STEPS) * STEPS / (STEPS - SWITCH) if source == "qa" else share
                    writer.add_scalar(f"val/{source}/loss", start + (end - start) * sought**0.4 + shift, step)


def write_ledger(folder: Path, name: str, last: int = STEPS) -> None:
    """A ledger that follows the plan to the sample, up to a step."""
    for step in (*range(50, last, 50), last):
        phases = {}
        for planned in plan_of(name)["phases"]:
            start, stop = planned["start"]["step"], planned["stop"]["step"]
            if step > start:
                part = min(1.0, (step - start) / (stop - start))
                phases[planned["name"]] = {source["name"]: LENGTH * round(part * source["samples"])
                                           for source in planned["sources"]}
        tokens = {source: sum(each.get(source, 0) for each in phases.values()) for source in SOURCES}
        append_line(folder / "ledger.jsonl", {
            "step": step, "phase": list(phases)[-1], "eta": eta_at(step), "loss": 1.0, "phases": phases,
            "tokens": tokens, "epochs": {source: count / 38_000 for source, count in tokens.items()},
            "share": tokens})


def write_run(folder: Path, name: str = "recipe") -> Path:
    """A run folder as `lit-cpt fit` leaves it."""
    write_scalars(folder, name)
    write_ledger(folder, name)
    append_event(folder, "start", step=0, tokens_seen=0, world_size=1)
    if name == "recipe":
        append_event(folder, "phase", step=SWITCH, tokens_seen=SWITCH * TOKENS, phase="qa", eta=eta_at(SWITCH),
                     weights=QA)
    append_event(folder, "finish", step=STEPS, tokens_seen=STEPS * TOKENS)
    (folder / "evals").mkdir()
    for step in (700, STEPS):
        (folder / "evals" / f"step{step:08d}.json").write_text(json.dumps(evaluation(name, step)))
    (folder / "plan.json").write_text(json.dumps(plan_of(name)))
    (folder / "recipe.yaml").write_text(f"# {name}\ntoken_horizon: {STEPS * TOKENS}\nwhen: <late> & once\n")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {name: write_run(root / name, name) for name in ("base", "baseline", "recipe")}


@pytest.fixture(scope="module")
def written(folders, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("page") / "report.html"
    return write_report(folders, output, "A cosine & one switch", notes=["A note."])


class Outline(HTMLParser):
    """Tags, attributes and table rows of a page; refuses a tag that is closed out of turn."""

    EMPTY = frozenset({"meta", "br", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


# Reading -------------------------------------------------------------------------------------------


def test_a_whole_run_folder_is_read_whole(folders):
    run = load_run(folders["recipe"])
    assert (run.name, run.missing, run.plan["steps"]) == ("recipe", (), STEPS)
    assert [each["step"] for each in run.evals] == [700, STEPS]
    assert [event["event"] for event in run.events] == ["start", "phase", "finish"]
    assert run.scalars["train/eta"][-1] == (STEPS, pytest.approx(ETA_MIN))
    assert list(run.validation) == list(SOURCES)


def test_a_resumed_run_is_one_line_in_which_the_later_file_wins(tmp_path):
    write_scalars(tmp_path, "recipe", last=500)
    write_scalars(tmp_path, "recipe", first=405, last=700, shift=10.0)  # off the old grid: no stale point may stay
    points = load_run(tmp_path).scalars["train/loss"]
    assert [step for step, _ in points] == [*range(0, 401, 10), *range(405, 701, 10)]
    assert all((value > 5) == (step >= 405) for step, value in points)


def test_missing_and_spoilt_parts_are_named_and_the_rest_is_shown(tmp_path):
    folder = write_run(tmp_path / "cut", "recipe")
    (folder / "events.jsonl").unlink()
    (folder / "plan.json").write_text('{"token_horizon": 1}')
    (folder / "evals" / "step00001400.json").write_text('{"step": 14')
    run = load_run(folder)
    assert run.missing == ("no events.jsonl", "no plan.json", "plan.json lacks tokens_per_step, curve, phases",
                           "step00001400.json cannot be read")
    assert [each["step"] for each in run.evals] == [700]
    assert run.tokens_per_step == TOKENS  # from the counts logged
    page = write_report({"cut": folder}, tmp_path / "report.html", "Cut").read_text()
    assert "cut: no events.jsonl, no plan.json, plan.json lacks tokens_per_step" in page
    assert "<h2>What was gained</h2>" in page
    assert "<h2>The plan</h2>" not in page


@pytest.mark.parametrize("part", ["events.jsonl", "plan.json", "evals", "tfevents"])
def test_any_single_part_makes_a_page(tmp_path, folders, part):
    folder = tmp_path / "run"
    folder.mkdir()
    for file in folders["recipe"].glob("*"):
        if part in file.name and file.is_dir():
            (folder / part).mkdir()
            (folder / part / "step00000700.json").write_bytes((file / "step00000700.json").read_bytes())
        elif part in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    assert len(load_run(folder).missing) == 4
    Outline(write_report({"run": folder}, tmp_path / "report.html", "One part").read_text())


def test_what_is_no_run_folder_is_refused_with_the_cure(tmp_path, folders):
    with pytest.raises(ValueError, match=r"nowhere is no run folder: it has none of events.out.tfevents.*Give the"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"These inside it are: .*base, .*baseline, .*recipe\."):
        load_run(folders["recipe"].parent)


# Comparing -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(folders) -> dict[str, Run]:
    return {name: load_run(path) for name, path in folders.items()}


def test_scores_are_those_of_the_last_evaluation(runs):
    for row in compare(runs, "baseline"):
        final = runs[row.run].evals[-1]
        told = final["average"] if row.family == "average" else final["families"][row.family]
        assert row.step == STEPS
        assert (row.score.value, row.score.low, row.score.high) == (told["score"], told["low"], told["high"])
        assert row.items == (sum(FAMILIES.values()) if row.family == "average" else FAMILIES[row.family])


def test_differences_are_those_of_the_paired_cluster_intervals(runs):
    ours, theirs = runs["recipe"].evals[-1]["families"], runs["baseline"].evals[-1]["families"]
    hits, reference, clusters = ({family: side[family][key] for family in FAMILIES}
                                 for side, key in ((ours, "hits"), (theirs, "hits"), (ours, "clusters")))
    rows = {row.family: row for row in compare(runs, "baseline") if row.run == "recipe"}
    for family in FAMILIES:
        assert rows[family].difference == paired_difference(hits[family], reference[family], clusters[family])
    assert rows["average"].difference == average_difference(hits, reference, clusters)
    assert all(row.difference is None and not row.unpaired for row in compare(runs, "baseline")
               if row.run == "baseline")


def test_a_family_outside_the_average_is_shown_and_left_out_of_the_average(runs):
    kept = ["knowledge", "code"]
    named = {name: replace(run, evals=[{**run.evals[-1], "averaged": kept}]) for name, run in runs.items()}
    rows = {row.family: row for row in compare(named, "baseline") if row.run == "recipe"}
    ours, theirs = (named[name].evals[-1]["families"] for name in ("recipe", "baseline"))
    expected = average_difference(*({family: side[family]["hits"] for family in kept} for side in (ours, theirs)),
                                  {family: ours[family]["clusters"] for family in kept})
    assert rows["average"].difference == expected
    assert rows["average"].items == FAMILIES["knowledge"] + FAMILIES["code"]
    assert [family for family, row in rows.items() if not row.averaged] == ["completion", "math"]
    assert "math 270 items, not averaged" in [row[0] for row in Outline(score_table(compare(named, "baseline"))).rows]


def spoilt(run: Run, **changes: Any) -> Run:
    final = json.loads(json.dumps(run.evals[-1]))
    final["families"]["code"].update(changes)
    return replace(run, evals=[final])


@pytest.mark.parametrize(("changes", "reason"), [
    ({"hits": []}, "no item scores"), ({"clusters": ["other"] * FAMILIES["code"]}, "other items")])
def test_scores_that_cannot_be_paired_say_why(runs, changes, reason):
    rows = {(row.run, row.family): row
            for row in compare({**runs, "recipe": spoilt(runs["recipe"], **changes)}, "baseline")}
    for family in ("code", "average"):
        assert rows["recipe", family].difference is None
        assert rows["recipe", family].unpaired == reason
    assert rows["recipe", "math"].difference is not None


def test_a_family_that_the_control_lacks_is_scored_but_not_compared(runs):
    final = {**runs["baseline"].evals[-1], "families": dict(list(runs["baseline"].evals[-1]["families"].items())[:2])}
    rows = {(row.run, row.family): row
            for row in compare({**runs, "baseline": replace(runs["baseline"], evals=[final])}, "baseline")}
    assert ("baseline", "math") not in rows
    assert rows["recipe", "math"].unpaired == rows["recipe", "average"].unpaired == "other families"


def failing(run: Run) -> Run:
    """A run whose last evaluation scored nothing, and whose one before scored all but code."""
    before = json.loads(json.dumps({**run.evals[-1], "step": STEPS // 2, "average": None, "averaged": []}))
    del before["families"]["code"]
    failure = {"status": "timeout", "reason": "the evaluation's time is over", "traceback": None, "seconds": 1.0}
    last = {**run.evals[-1], "families": {}, "averaged": [], "average": None}
    return replace(run, evals=[{**before, "failures": {"code": failure}},
                               {**last, "failures": dict.fromkeys(FAMILIES, failure)}])


def test_an_evaluation_without_scores_is_passed_over_and_failures_are_told(runs):
    some = {**runs, "recipe": failing(runs["recipe"])}
    rows = {(row.run, row.family): row for row in compare(some, "baseline")}
    assert rows["recipe", "math"].step == STEPS // 2
    assert ("recipe", "average") not in rows
    assert ("recipe", "code") not in rows
    [line, *_] = [row for row in Outline(failure_table(some)).rows if "code" in row]
    assert line == ["recipe", "code", "timeout: the evaluation's time is over", f"{STEPS // 2:,}, {STEPS:,}"]
    assert "cannot be compared" in verdict(some, "baseline", compare(some, "baseline")) or "no evaluation" in verdict(
        some, "baseline", compare(some, "baseline"))


def test_scores_over_a_run_leave_gaps_where_a_family_failed(runs):
    run = failing(runs["recipe"])
    assert [step for step, _ in run.score_points("math")] == [STEPS // 2]
    assert run.score_points("code") == run.score_points("average") == []


def test_bits_per_byte_are_shown_where_they_are_known(runs):
    assert bits_table(runs) == ""
    final = json.loads(json.dumps(runs["recipe"].evals[-1]))
    final["families"]["code"]["bits_per_byte"] = 0.1111
    rows = Outline(bits_table({"recipe": replace(runs["recipe"], evals=[final])})).rows
    assert ["code", "0.111"] in rows


def test_an_unknown_control_is_refused(runs):
    with pytest.raises(ValueError, match=r"control='gb' is none of the runs \(base, baseline, recipe\): name one"):
        compare(runs, "gb")


def test_the_verdict_follows_the_numbers(runs):
    gain = verdict(runs, "baseline", compare(runs, "baseline"))
    swapped = {**runs, "baseline": runs["recipe"], "recipe": runs["baseline"]}
    loss = verdict(swapped, "baseline", compare(swapped, "baseline"))
    level = verdict({**runs, "recipe": runs["baseline"]}, "baseline",
                    compare({**runs, "recipe": runs["baseline"]}, "baseline"))
    points = next(row.difference.value for row in compare(runs, "baseline")
                  if (row.run, row.family) == ("recipe", "average"))
    assert f"a gain of {100 * points:.1f} points (95\u00a0% interval +" in gain
    assert gain.endswith("its validation loss ends above the start on 1 of 5 sources: web (+0.009).")
    assert f"a loss of {100 * points:.1f} points (95\u00a0% interval −" in loss
    assert loss.endswith("its validation loss ends below the start on all 5 sources.")
    assert "no difference is shown (+0.0 points" in level


def test_the_verdict_says_so_when_there_is_nothing_to_say(runs):
    mute = {name: replace(run, evals=[]) for name, run in runs.items()}
    assert verdict(mute, "baseline", compare(mute, "baseline")).startswith(
        "There is no evaluation of recipe, so nothing is said about its scores")
    without = {**runs, "baseline": mute["baseline"]}
    assert "cannot be compared with baseline (no evaluation)" in verdict(
        without, "baseline", compare(without, "baseline"))


def test_the_verdict_is_never_about_the_best_of_several(runs):
    several = {"baseline": runs["baseline"], "good": runs["recipe"], "last": runs["base"]}
    assert chosen_subject(several, "baseline") == "last"
    assert chosen_subject(runs, "baseline") == "recipe"


# Drawing -------------------------------------------------------------------------------------------


def test_pictures_are_written_and_equal_inputs_give_equal_bytes(tmp_path, runs):
    drawn = [(plot_plan(plan_of(), tmp_path / f"{turn}" / "plan.png").read_bytes(),
              plot_losses(runs, tmp_path / f"{turn}" / "losses.png").read_bytes()) for turn in range(2)]
    assert drawn[0] == drawn[1]
    assert all(picture.startswith(b"\x89PNG") for picture in drawn[0])


def test_the_plan_picture_marks_the_switch_and_names_the_blend(tmp_path):
    text = plot_plan(plan_of(), tmp_path / "plan.svg").read_text()
    assert "qa from 71.1 % of the tokens, η = 1.2×10⁻⁴" in text
    assert all(f"{source} {100 * share:.3g} %" in text for source, share in GENERAL.items())


def test_sources_without_room_for_their_name_stand_in_a_key(tmp_path):
    plan = plan_of()
    plan["phases"] = [phase("general", None, 0, STEPS, {f"source {number}": 1 / 16 for number in range(16)})]
    text = plot_plan(plan, tmp_path / "plan.svg").read_text()
    assert all(f"> source {number}<" in text for number in range(16))


@pytest.mark.parametrize(("share", "scale"), [(0.2, "linear"), (0.02, "log")])
def test_the_rate_is_logarithmic_where_the_switch_would_lie_flat(share, scale):
    plan = plan_of()
    plan["phases"][1]["start"]["eta"] = share * ETA_MAX
    axes = plan_figure(plan, 8.0).axes[0]
    assert axes.get_yscale() == scale
    assert axes.yaxis.get_major_formatter()(1e-4) == "1×10⁻⁴"


def test_a_run_keeps_its_colour_and_the_control_is_grey():
    assert run_colours(["base", "baseline", "recipe", "late"], "baseline") == {
        "base": "base", "baseline": "control", "recipe": "run0", "late": "run1"}


def test_a_long_line_is_thinned_and_gaps_stay_gaps():
    axes = Figure().subplots()
    values = [(step, math.nan if step < 400 else float(step)) for step in range(4000)]
    draw_line(axes, values, 2.0, "#000000", "")
    x, y = axes.lines[0].get_data()
    assert len(x) <= POINTS
    assert np.isnan(y[0])
    assert y[-1] == pytest.approx(x[-1] / 2.0)


# The page ------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_its_ids_are_unique(written):
    outline = Outline(written.read_text())
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, attributes in outline.tags for name, value in attributes.items() if name == "href"}
    assert targets | set(re.findall(r"url\(#([^)]+)\)", written.read_text())) <= set(ids)


def test_the_page_refers_to_nothing_outside_and_is_small(written):
    text, outline = written.read_text(), Outline(written.read_text())
    assert "//" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
    assert {"script", "link", "img", "iframe"}.isdisjoint(tag for tag, _ in outline.tags)
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert written.stat().st_size < 400_000
    assert written.with_name("report-plan.png").exists()
    assert written.with_name("report-losses.png").exists()


def test_the_page_stays_under_its_bound_for_a_long_run(tmp_path):
    with SummaryWriter(str(tmp_path / "long")) as writer:
        for step in range(20_000):
            writer.add_scalar("train/loss", math.sin(step), step)
    for step in range(500):
        append_event(tmp_path / "long", "checkpoint", step=step, tokens_seen=step)
    (tmp_path / "long" / "recipe.yaml").write_text("x" * 5_000_000)
    page = write_report({"long": tmp_path / "long"}, tmp_path / "report.html", "Long")
    assert page.stat().st_size < 3_000_000
    assert "checkpoint <small>×500</small></td><td>0 to 499</td>" in page.read_text()


def test_charts_take_their_colours_from_the_page(written):
    charts = "".join(re.findall(r"<svg.*?</svg>", written.read_text(), flags=re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", charts)) <= {"none", *(
        f"var(--{name})" for name in PALETTE)}


def test_the_numbers_in_the_tables_are_the_evaluations(written, runs):
    rows = Outline(written.read_text()).rows
    for family in FAMILIES:
        told = [runs[name].evals[-1]["families"][family] for name in runs]
        expected = [f"{family} {FAMILIES[family]} items"] + [
            f"{100 * each['score']:.1f} {100 * each['low']:.1f} to {100 * each['high']:.1f}" for each in told]
        assert expected in rows
    assert ["web", "0.935", "0.850 −0.085", "0.944 +0.009"] in rows
    assert ["recipe", "qa", "eta_over_eta_max=0.2", "996", "996", "0", "1.2×10⁻⁴", "1.2×10⁻⁴"] in rows


def test_a_switch_that_never_came_is_said(runs):
    rows = Outline(switch_table({"recipe": replace(runs["recipe"], events=[])})).rows
    assert ["recipe", "qa", "eta_over_eta_max=0.2", "996", "not seen", "–", "1.2×10⁻⁴", "–"] in rows


HOSTILE = '</svg><script>alert("x")</script>&\x00$\\frac{'


def test_hostile_names_are_shown_and_never_run(tmp_path):
    folder = write_run(tmp_path / "run", "recipe")
    plan = json.loads((folder / "plan.json").read_text().replace('"qa"', json.dumps(HOSTILE)))
    (folder / "plan.json").write_text(json.dumps(plan))
    evals = (folder / "evals" / "step00001400.json")
    evals.write_text(evals.read_text().replace('"code"', json.dumps(HOSTILE)))
    append_event(folder, HOSTILE, **{HOSTILE: HOSTILE})
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar(f"val/{HOSTILE}/loss", 1.0, 10)
    page = write_report({HOSTILE: folder}, tmp_path / "report.html", HOSTILE, notes=[HOSTILE])
    text = page.read_text()
    assert "script" not in {tag for tag, _ in Outline(text).tags}
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "\x00" not in text
    assert "when: &lt;late&gt; &amp; once" in text


def test_equal_runs_give_equal_pages(folders, tmp_path, written):
    again = write_report(folders, tmp_path / "report.html", "A cosine & one switch", notes=["A note."])
    assert again.read_bytes() == written.read_bytes()


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"runs=\{\} leaves nothing to report"):
        write_report({}, tmp_path / "report.html", "None")


def test_a_report_needs_no_torch():
    code = "import sys, lit_cpt.report; sys.exit('torch' in sys.modules or 'tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# A plan that does not know when a phase begins --------------------------------------------------------------


def waiting_plan():
    """`plan_of`, and a phase that waits for a metric."""
    plan = plan_of()
    drawn = [{"name": "qa", "weight": 1.0, "tokens": 0, "samples": 0, "epochs": None}]
    waits = {"name": "last", "when": "val/qa/loss < 1.2", "start": None, "stop": None, "tokens": 0, "sources": drawn}
    return {**plan, "phases": [*plan["phases"], waits]}


def test_a_phase_that_is_not_foretold_is_named_above_the_chart_and_not_drawn():
    figure, known = plan_figure(waiting_plan(), 7), plan_figure(plan_of(), 7)
    rate, blend = figure.axes
    assert "last when val/qa/loss < 1.2: not foretold" in [text.get_text() for text in rate.texts]
    assert len(blend.patches) == len(known.axes[1].patches)


def test_a_phase_that_is_not_foretold_has_its_shares_and_its_actual_step_in_the_tables(folders):
    assert "not foretold" in plan_table(waiting_plan())
    assert "not foretold" not in plan_table(plan_of())
    run = replace(load_run(folders["recipe"]), plan=waiting_plan())
    assert "<td>not foretold</td><td>not seen</td>" in switch_table({"r": run})
    began = {"event": "phase", "phase": "last", "step": 1_200, "eta": 1e-5}
    assert "<td>not foretold</td><td>1,200</td>" in switch_table({"r": replace(run, events=[*run.events, began])})


# Planned and made ----------------------------------------------------------------------------------


AGENDA = {"validations": {"count": 14, "first": [100], "last": STEPS}, "evaluations": {"count": 3}, "checkpoints": None}


def test_what_a_run_planned_stands_beside_what_it_did(folders):
    run = load_run(folders["recipe"])
    run = replace(run, events=[{**event, "time": 1800.0 * place} for place, event in enumerate(run.events)])
    rows = Outline(course_table({"recipe": replace(run, plan={**run.plan, "agenda": AGENDA})})).rows
    assert rows[1:] == [["recipe", "1,400 of 1,400", "716.8k of 716.8k", "15 of 14", "2 of 3", "1h 00m", "finished"]]
    assert Outline(course_table({"recipe": run})).rows[1][3] == "15"  # a plan without an agenda
    assert Outline(course_table({"recipe": replace(run, plan={})})).rows[1][1:3] == ["1,400", "716.8k"]


def test_a_run_that_goes_on_is_told_as_far_as_it_is(folders):
    run = load_run(folders["recipe"])
    begun = replace(run, scalars={}, evals=[], events=[{"event": "stop", "step": 700, "reason": "signal"}])
    assert Outline(course_table({"recipe": begun})).rows[1] == [
        "recipe", "700 of 1,400", "358.4k of 716.8k", "–", "–", "–", "stopped by signal at step 700"]


def test_the_page_repeats_what_the_plan_warned_of(folders, tmp_path):
    folder = tmp_path / "warned"
    folder.mkdir()
    told = {"warnings": ["web is seen 9.0 times <!>"], "departures": ["ends at eta_max/10; the paper: eta_max/100"]}
    (folder / "plan.json").write_text(json.dumps({**plan_of(), **told}))
    page = write_report({"warned": folder}, tmp_path / "page.html", "Warned").read_text()
    assert "<li>web is seen 9.0 times &lt;!&gt;</li>" in page
    assert "<li>Not as in the paper: ends at eta_max/10; the paper: eta_max/100</li>" in page


# Forgetting against gain -----------------------------------------------------------------------------


def test_forgetting_is_weighed_by_the_blend_that_the_base_was_trained_on(runs):
    weights = old_blend(runs, "baseline")
    assert weights == pytest.approx(BASELINE)
    found = balances(runs, weights)
    assert list(found) == ["baseline", "recipe"]
    start, end = runs["base"].validation, runs["recipe"].validation
    expected = sum(weight * (end[source][-1][1] - start[source][-1][1]) for source, weight in weights.items())
    assert found["recipe"].forgotten[-1] == pytest.approx(expected)
    assert found["recipe"].steps == [700, STEPS]
    base, last = runs["base"].evals[-1], runs["recipe"].evals[-1]
    assert found["recipe"].gained[-1] == pytest.approx(last["average"]["score"] - base["average"]["score"])
    assert found["recipe"].gain.low < found["recipe"].gained[-1] < found["recipe"].gain.high


def test_a_run_alone_is_counted_from_its_first_evaluation(runs):
    alone = {"recipe": runs["recipe"]}
    weights = old_blend(alone, "recipe")
    assert weights == pytest.approx(GENERAL)  # what it began with
    one = balances(alone, weights)["recipe"]
    assert (one.began, one.steps) == ("step 700", [STEPS])
    validation = runs["recipe"].validation
    loss = {step: sum(share * dict(validation[source])[step] for source, share in GENERAL.items())
            for step in (700, STEPS)}
    assert one.forgotten == [pytest.approx(loss[STEPS] - loss[700])]


def test_a_gain_counts_only_documents_that_both_evaluations_asked():
    def asked(documents, hits):
        family = {"hits": hits, "documents": documents, "clusters": documents, "score": 0.5, "items": len(hits)}
        return {"step": 1, "families": {"code": family}, "averaged": ["code"], "average": {"score": 0.5}}

    before, now = asked(["a", "b", "c"], [0, 1, 1]), asked(["c", "a", "d"], [1, 1, 0])
    assert gain(now, before) == 0.5  # a was gained, c stayed
    assert gain(asked(["x"], [1]), before) is None
    assert gain({**now, "average": None}, before) is None


@pytest.mark.parametrize("lacking", ["scores", "losses"])
def test_without_scores_or_losses_nothing_is_said_of_the_balance(runs, lacking):
    change = {"evals": []} if lacking == "scores" else {"scalars": {}}
    bare = {name: replace(run, **change) for name, run in runs.items()}
    assert balances(bare, old_blend(bare, "baseline")) == {}
    assert tradeoff_section({}, {}, {}) == ""


# The ledger ------------------------------------------------------------------------------------------


def test_planned_and_trained_tokens_differ_by_samples(runs):
    run = runs["recipe"]
    last = json.loads(json.dumps(run.ledger[-1]))
    last["phases"]["qa"]["web"] += 2 * LENGTH
    last["phases"]["qa"]["qa"] -= 1 * LENGTH
    rows = {row[0]: row for row in Outline(phase_table(replace(run, ledger=[last]))).rows}
    assert rows["web"][1].endswith("22.0 %, as planned")
    assert rows["web"][2].endswith("+2 samples")
    assert rows["qa"][2].endswith("−1 sample")
    brief = Outline(brief_table({"recipe": replace(run, ledger=[last]), "baseline": runs["baseline"]})).rows
    assert [row[2] for row in brief[1:]] == ["2 samples", "0 samples"]


def test_a_phase_that_goes_on_is_told_as_a_part_of_its_plan(runs):
    run = runs["recipe"]
    early = replace(run, ledger=[line for line in run.ledger if line["step"] <= 500])
    rows = {row[0]: row for row in Outline(phase_table(early)).rows}
    assert re.fullmatch(r"[\d.]+k 22.0 %, of 112.2k", rows["web"][1])
    assert rows["qa"][2] == "– not begun"


def test_shares_are_those_of_the_tokens_between_the_edges(runs):
    edges, shares = intervals(runs["recipe"].ledger, list(SOURCES))
    assert edges[-1] == sum(runs["recipe"].ledger[-1]["tokens"].values())
    assert shares.shape == (len(SOURCES), len(edges) - 1)
    assert shares.sum(axis=0) == pytest.approx(100)
    assert shares[SOURCES.index("qa"), [0, -1]] == pytest.approx([0, 28], abs=1)
    many = [{"step": step, "tokens": {"a": step}} for step in range(5000)]
    assert len(intervals(many, ["a"])[0]) <= POINTS + 1


def test_what_was_passed_over_is_on_the_page_and_in_the_chart(runs):
    run = runs["recipe"]
    run = replace(run, ledger=[*run.ledger[:-1], {**run.ledger[-1], "passed_over": [[80, 88], [160, 161]]}])
    assert Outline(passed_table({"recipe": run})).rows[1:] == [
        ["recipe", "80 to 87", "8", "512"], ["recipe", "160 to 160", "1", "64"]]
    assert passed_places(run) == [80 * LENGTH, 152 * LENGTH]


# Guards, diary, speed --------------------------------------------------------------------------------


def incident(kind: str, step: int, **told: Any) -> dict[str, Any]:
    return {"event": kind, "step": step, "tokens_seen": step * TOKENS, "time": float(step), **told}


TROUBLE = [
    incident("start", 0), incident("spike", 10, at_step=7, what="not finite", skipped=True, scores=[None, None]),
    incident("spike", 10, at_step=8, what="not finite", skipped=True, scores=[None, 3.0]),
    incident("spike", 20, at_step=18, what="spike", skipped=False, scores=[9.5, 30.25]),
    incident("rollback", 20, checkpoint="/a/step-00000010.ckpt", pass_over=[17, 18]), incident("resume", 10),
    incident("forgetting", 30, why="loss web 1.2 > 1.1", then="stop"),
]


def test_what_the_guards_saw_is_counted_and_told(runs):
    run = replace(runs["recipe"], events=TROUBLE, scalars={"train/loss": [(5, 1.0), (10, math.nan), (20, math.inf)]})
    rows = Outline(guard_table({"recipe": run})).rows
    assert rows[1:] == [["steps skipped, not finite", "2 step 7 to 8"], ["spikes told", "1 step 18"],
                        ["rollbacks", "1 step 20"], ["forgetting alarms", "1 step 30"],
                        ["logged losses not finite", "2 step 10 to 20"], ["resumed", "1 step 10"]]
    told = [row[2:] for row in Outline(incident_table({"recipe": run})).rows[1:]]
    assert told == [
        ["not finite ×2", "loss not finite, gradient norm not finite; skipped … "
                          "loss not finite, gradient norm 3 deviations; skipped"],
        ["spike", "loss 9.5 deviations, gradient norm 30.25 deviations"],
        ["rollback", "went back to step-00000010.ckpt, passed over global batch 17 of the stream"],
        ["forgetting", "loss web 1.2 > 1.1; the run was ended"]]
    assert "No step was skipped" in guards_section({"recipe": replace(run, events=[], scalars={})})


@pytest.mark.parametrize(("events", "end"), [
    (TROUBLE, "ended by forgetting at step 30"), (TROUBLE[:6], "no end on record: it runs, was killed or crashed; last "
                                                  "seen at step 1,400"),
    ([*TROUBLE, incident("finish", 40)], "finished"), ([], "not on record")])
def test_the_end_of_a_run_is_told_as_far_as_it_is_on_record(runs, events, end):
    assert ending(replace(runs["recipe"], events=events)) == end


def test_time_between_a_crash_and_a_resumption_does_not_count(runs):
    events = [incident("start", 0), incident("checkpoint", 50), {**incident("resume", 50), "time": 9000.0},
              {**incident("finish", 60), "time": 9010.0}]
    assert wall_seconds(replace(runs["recipe"], events=events)) == 60


def test_events_of_a_kind_are_folded_between_milestones():
    events = [incident("start", 0), *(incident("checkpoint", step, path="a") for step in range(1, 400)),
              incident("phase", 400), incident("checkpoint", 401, path="b"), incident("checkpoint", 402, path="c")]
    rows = Outline(event_table(events)).rows[1:]
    assert [row[1:3] for row in rows] == [["start", "0"], ["checkpoint ×399", "1 to 399"], ["phase", "400"],
                                          ["checkpoint ×2", "401 to 402"]]
    assert [row[-1] for row in rows] == ["", "path a", "", "path b … c"]


def test_of_a_very_long_diary_both_ends_are_shown():
    rows = Outline(event_table([incident("resume", step) for step in range(300)])).rows[1:]
    assert len(rows) == ROWS + 1
    assert rows[ROWS // 2][1] == f"{300 - ROWS} more in events.jsonl"
    assert rows[-1][2] == "299"


def test_speed_is_read_from_finite_points_only(runs):
    scalars = {"speed/tokens_per_second": [(10, 900.0), (20, math.inf), (30, 1100.0)], "speed/mfu": [(10, 0.41)],
               "speed/memory_gib": [(10, 3.0)]}
    run = replace(runs["recipe"], scalars=scalars, events=[])
    assert Outline(speed_table({"recipe": run})).rows[1] == ["recipe", "1k", "–", "–", "41 %", "3.0 GiB", "–"]
    assert speed_section({"recipe": replace(run, scalars={})}, {}) == ""


# Odd inputs ------------------------------------------------------------------------------------------


def test_runs_of_one_name_are_told_apart_by_their_paths():
    assert list(named(["x/same", "y/same", "z/other", "x/same/"])) == ["x/same", "y/same", "other"]


def test_a_run_called_base_is_no_reference_when_it_is_alone(folders, tmp_path):
    text = write_report({"base": folders["base"]}, tmp_path / "report.html", "Alone").read_text()
    assert "the run scores" in text


def test_a_run_that_diverged_has_a_page(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step in range(0, 3000, 10):
            for tag in ("train/loss", "val/web/loss", "speed/tokens_per_second"):
                writer.add_scalar(tag, (math.nan, math.inf)[step // 10 % 2], step)
    text = write_report({"run": tmp_path / "run"}, tmp_path / "report.html", "Diverged").read_text()
    assert "300" in text
    assert "logged losses not finite" in text
    Outline(text)
