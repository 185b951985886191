"""The quickstart: its configs fast, the whole of it in its short form slow."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_cpt import quickstart as quick
from lit_cpt.ablate_command import course_of
from lit_cpt.cli import main
from lit_cpt.evaluations import evaluations_in
from lit_cpt.events import append_event, read_events
from lit_cpt.lab.trunk import plan_legs
from lit_cpt.microworld import FAMILIES, World
from lit_cpt.quickstart import RUNS, SHORT, Lengths
from lit_cpt.worlds import ENDED, LENGTH, PEAK, PRETRAINING, SEQUENCES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path):
    """A quickstart's folder with its sources' folders, empty."""
    for name in [*PRETRAINING, "qa", "qa_held_out"]:
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path


def planned(root, config, capsys):
    """The plan of a config, without its sources, which are not prepared here."""
    (root / "run.yaml").write_text(yaml.safe_dump({**config, "data": {**config["data"], "sources": {}}}))
    assert main(["plan", "--config", "base", "--config", "hardware/cpu", "--config", str(root / "run.yaml"),
                 "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def configs(root, steps, seed):
    """The config of each way on."""
    return {arm.labels["way"]: arm.config for arm in quick.continuations(root, PRETRAINING, steps, seed).arms}


# Pure parts ------------------------------------------------------------------------------------------------


def blends(name):
    return {phase["name"]: phase["blend"]["weights"] for phase in quick.ready_phases(name)}


@pytest.mark.parametrize("blend", [*blends("microworld").values(), quick.pretraining_blend(True),
                                   quick.pretraining_blend(False)], ids=["general", "qa", "real", "not-real"])
def test_a_blend_sums_to_one(blend):
    assert math.fsum(blend.values()) == pytest.approx(1, abs=1e-12)


def test_only_the_qa_blend_asks_questions():
    assert {name: set(blend) - set(PRETRAINING) for name, blend in blends("microworld").items()} == {
        "general": set(), "qa": {"qa"}}


def test_the_three_ways_are_the_arms_of_the_ready_grids():
    assert blends("arms/baseline") == {"pretraining": PRETRAINING}
    assert blends("arms/general") == {"general": blends("microworld")["general"]}


def test_pretraining_warms_up_and_ends_where_the_continuation_begins(root, capsys):
    pretraining = planned(root, quick.pretraining_config(root, PRETRAINING, 3600, 0), capsys)
    continuation = planned(root, configs(root, 1600, 0)["recipe"], capsys)
    assert (pretraining["steps"], pretraining["tokens_per_step"]) == (3600, LENGTH * SEQUENCES)
    rates = [rate for _, rate in pretraining["curve"]]
    assert (rates[0], max(rates)) == (0, pytest.approx(PEAK, rel=0.01))
    assert rates[-1] == pytest.approx(ENDED) == pytest.approx(continuation["curve"][0][1])
    assert continuation["curve"][-1][1] == pytest.approx(ENDED / 100)
    [general, qa] = continuation["phases"]
    assert (general["name"], qa["name"], qa["when"]) == ("general", "qa", "eta_over_eta_max=0.2")
    assert qa["start"]["fraction"] == pytest.approx(0.7113, abs=1e-3)


@pytest.mark.parametrize("steps", [Lengths().continuation, SHORT.continuation])
def test_the_recipe_goes_on_from_the_general_run_and_the_baseline_begins_anew(root, steps):
    arms = {arm.labels["way"]: course_of(arm) for arm in quick.continuations(root, PRETRAINING, steps, 0).arms}
    legs = plan_legs(arms)
    assert [(legs[way].parent, legs[way].start) for way in ("baseline", "general")] == [(None, 0)] * 2
    switch = arms["recipe"].recipe.start_steps(LENGTH * SEQUENCES)[1]
    assert (legs["recipe"].parent, legs["recipe"].start) == ("general", switch - 1)


def test_fit_accepts_the_configs(root, capsys):
    for name, config in (("base", quick.pretraining_config(root, PRETRAINING, 150, 3)),
                         ("recipe", configs(root, 50, 3)["recipe"])):
        arguments = quick.fit_arguments(root, name, config)
        assert main([*arguments, "--print_config"]) == 0
        merged = yaml.safe_load(capsys.readouterr().out)
        assert merged["run"] == str(root / "runs" / name)
        assert (merged["seed_everything"], merged["data"]["seed"]) == (3, 3)
        assert set(merged["data"]["sources"]) == {*PRETRAINING, "qa", "qa_held_out"}
    assert merged["model"]["pretrained"] == str(root / "model")
    assert merged["model"]["optimizer_state"] == str(root / "runs" / "base" / "checkpoints" / "last.ckpt")


def test_a_run_is_started_resumed_or_left_as_it_stands(root, capsys):
    config = quick.pretraining_config(root, PRETRAINING, 150, 0)
    assert "--ckpt_path" not in quick.fit_arguments(root, "base", config)
    saved = quick.checkpoint(root / "runs" / "base")
    saved.parent.mkdir(parents=True)
    saved.touch()
    assert quick.fit_arguments(root, "base", config)[-2:] == ["--ckpt_path", "last"]
    append_event(root / "runs" / "base", "finish", step=150)
    assert quick.fit_arguments(root, "base", config) == []
    assert "is finished already" in capsys.readouterr().out


def test_the_pretraining_loss_is_the_last_ones_by_the_blend():
    losses = dict(zip([*PRETRAINING, "qa_held_out"], (1.0, 2.0, 3.0, 4.0, 50.0), strict=True))
    assert quick.pretraining_loss(losses) == pytest.approx(0.70 * 1 + 0.10 * 2 + 0.03 * 3 + 0.17 * 4)


def test_a_folder_begun_with_other_settings_is_not_gone_on_with(tmp_path):
    for _ in range(2):
        quick.check_folder(tmp_path / "out", {"seed": 0, "short": True})
    with pytest.raises(ValueError, match=r"out was begun with .*'seed': 0.*, not .*'seed': 1.*name another --out"):
        quick.check_folder(tmp_path / "out", {"seed": 1, "short": True})


# The whole -----------------------------------------------------------------------------------------------------


def table(text):
    """From the first table on, up to the line about the report."""
    return text[text.index("% right") : text.index("report: ")]


def contents(root):
    """Checkpoints and diaries, by which a second training would show."""
    paths = [path for path in (root / "runs").rglob("*") if path.suffix in (".ckpt", ".jsonl", ".0", ".1")]
    return {path: path.stat().st_mtime_ns for path in paths}


def said_by_make(root: Path) -> str:
    """What README's command says, in its short form and in the environment of these tests."""
    ran = subprocess.run(["make", "--old-file", ".venv/ready", "quickstart", f"BIN={Path(sys.executable).parent}",
                          f"ARGS=--short --out {root}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_the_short_form_trains_four_models_compares_them_and_does_it_only_once(tmp_path):
    root = tmp_path / "quick"
    said = said_by_make(root)
    shown = table(said)
    for family in FAMILIES:
        assert family in shown
    for run in RUNS:
        assert run in shown.splitlines()[0]
        folder = root / "runs" / run
        steps = SHORT.pretraining if run == "base" else SHORT.continuation
        assert read_events(folder)[-1]["event"] == "finish"
        assert read_events(folder)[-1]["step"] == steps
        evaluations, wrong = evaluations_in(folder)
        switch = [36] if run == "recipe" else []
        assert ([each.step for each in evaluations], wrong) == ([0, *switch, steps], [])
        for each in evaluations:
            assert [score.family for score in each.scores] == [*FAMILIES, "transfer"]
            assert [score.family for score in each.averaged] == list(FAMILIES)
        assert {path.name for path in folder.iterdir()} >= {"config.yaml", "recipe.yaml", "plan.json", "checkpoints"}
    [phase] = [event for event in read_events(root / "runs" / "recipe") if event["event"] == "phase"]
    plan = json.loads((root / "runs" / "recipe" / "plan.json").read_text())
    assert (phase["phase"], phase["step"]) == ("qa", plan["phases"][1]["start"]["step"])
    assert (root / "report.html").stat().st_size > 10_000
    assert "report: " in said
    assert "too little" in said
    assert_nothing_asked_is_told(root)

    before = contents(root)
    assert before
    again = said_by_make(root)
    assert again.count("is finished already") == 1
    assert table(again) == shown
    assert contents(root) == before


def assert_nothing_asked_is_told(root: Path) -> None:
    """No text that was trained on holds a question that is asked, or what gives it away."""
    world = World(0)
    probes = [probe for family in world.probes.values() for probe in family]
    assert len(probes) > 500
    files = [path for path in (root / "text").glob("*.jsonl") if path.stem != "qa_held_out"]
    assert {path.stem for path in files} >= {*PRETRAINING, "qa"}
    for path in files:
        text = "\0".join({json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()})
        told = [probe.prompt for probe in probes if any(trace in text for trace in (probe.prompt, *probe.traces))]
        assert told == [], path.name
