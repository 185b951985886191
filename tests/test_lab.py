"""The laboratory's pure parts: grid files, shared trunks, branches of run folders, processes, the table."""

from __future__ import annotations

import json
import math
import os
import signal
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lit_cpt.blends import Blend
from lit_cpt.events import append_event, read_events
from lit_cpt.json_lines import append_line
from lit_cpt.lab import arms_table, side_by_side
from lit_cpt.lab.arms_table import Outcome, counted, outcome_of, render_arms
from lit_cpt.lab.branching import branch
from lit_cpt.lab.grid import Arm, grid_of, read_grid
from lit_cpt.lab.side_by_side import ArmFailed, Job, last_line, run_side_by_side
from lit_cpt.lab.trunk import (
    Course,
    branch_points,
    budget,
    changed_fields,
    plan_legs,
    render_legs,
    shared_steps,
)
from lit_cpt.ledger import read_ledger
from lit_cpt.recipe import AdamW, Phase, Recipe, Trigger
from lit_cpt.report import load_run
from lit_cpt.schedules import WSD, Constant, Cosine

TOKENS = 512  # of a step
GENERAL, QA = {"web": 0.7, "code": 0.3}, {"web": 0.3, "code": 0.2, "qa": 0.5}
BASE = {"recipe": {"token_horizon": "1M", "phases": [{"name": "general"}, {"name": "qa", "when": {"step": 5}}]},
        "model": {"pretrained": "m"}, "trainer": {"callbacks": ["A"]}}


# Grid files ----------------------------------------------------------------------------------------------------


def grid(**parts):
    return grid_of({"base": BASE, "axes": {"horizon": {"recipe.token_horizon": ["1M", "3M"]}},
                    "control": {"horizon": "1M"}, **parts})


def test_arms_are_the_product_of_the_axes_named_after_their_values():
    found = grid(axes={"floor": {"recipe.curve.init_args.eta_min": [0, 4.5e-7]},
                       "blend": {"old": {}, "new": {"recipe": {"phases": []}}}},
                 replicates={"seed": {"seed_everything": [1, 2], "data.seed": [10, 20]}},
                 control={"floor": 0, "blend": "old"})
    assert [arm.name for arm in found.arms][:3] == ["floor=0,blend=old,seed=1", "floor=0,blend=old,seed=2",
                                                    "floor=0,blend=new,seed=1"]
    last = found.arms[-1]
    assert (last.name, last.treatment, last.pair, last.block) == (
        "floor=4.5e-07,blend=new,seed=2", "floor=4.5e-07,blend=new", "seed=2", "")
    assert last.config["recipe"] == {"token_horizon": "1M", "phases": [], "curve": {"init_args": {"eta_min": 4.5e-7}}}
    assert (last.config["seed_everything"], last.config["data"]) == (2, {"seed": 20})
    assert found.control == {"floor": "0", "blend": "old"}


def test_a_dotted_key_reaches_into_a_list_and_leaves_the_other_arms_and_the_base_alone():
    found = grid(axes={"switch": {"late": {"recipe.phases.1.when.step": 9},
                                  "early": {"trainer": {"callbacks+": ["B"]}}}}, control={"switch": "late"})
    late, early = found.arms
    assert [arm.config["recipe"]["phases"][1]["when"]["step"] for arm in found.arms] == [9, 5]
    assert (late.config["trainer"]["callbacks"], early.config["trainer"]["callbacks"]) == (["A"], ["A", "B"])
    assert BASE["recipe"]["phases"][1]["when"] == {"step": 5}


def test_the_base_is_configs_one_over_the_other_by_name_path_or_as_they_are(tmp_path):
    (tmp_path / "mine.yaml").write_text("trainer: {devices: 4}")
    found = grid(base=["base", "hardware/cpu", str(tmp_path / "mine.yaml"), {"trainer": {"callbacks+": "X"}}])
    trainer = found.arms[0].config["trainer"]
    assert (trainer["devices"], trainer["accelerator"], trainer["callbacks"][-1]) == (4, "cpu", "X")


def test_the_block_of_an_arm_is_its_base_without_its_seed():
    found = grid(replicates={"start": {"model.pretrained": ["m1", "m2"]}, "seed": {"data.seed": [1, 2]}})
    assert {arm.block for arm in found.arms} == {"start=m1", "start=m2"}
    assert len({arm.pair for arm in found.arms}) == 4


@pytest.mark.parametrize(("parts", "message"), [
    ({"axes": 3}, "axes is 3: write NAME"),
    ({"axes": {"a": [1, 2]}}, r"axes.a is \[1, 2\]: write {KEY"),
    ({"axes": {"a": {"x": [1], "y": {}}}}, "axes.a has x, y: either every key has a list"),
    ({"axes": {"a": {"x": [1, 2], "y": [1]}}}, r"axes.a has lists of different length \(x 2, y 1\)"),
    ({"axes": {"a": {"x": [1, 1]}}}, "axes.a has 1 twice"),
    ({"axes": {"a": {"x": ["/models/m"]}}}, "axes.a: '/models/m' is no name .* give it one"),
    ({"axes": {"a": {"x": 7}}}, "axes.a.x is 7: give a config's name or path"),
    ({"axes": {"a": {"x": {"recipe.phases.2.name": "z"}}}, "control": {"a": "x"}},
     "recipe.phases.2.name: the base's recipe.phases has items 0 to 1, not 2"),
    ({"axes": {"a": {"x": {"model.pretrained.y": 1}}}, "control": {"a": "x"}},
     "model.pretrained.y: the base's model.pretrained is 'm', whi"),
    ({"axes": {"a": {"x": {"model.parts.0": 1}}}, "control": {"a": "x"}},
     "model.parts.0: the base's model.parts is None, which has no 0"),
    ({"replicates": {"horizon": {"data.seed": [1]}}}, "horizon stands in axes and in replicates"),
    ({"control": {"horizon": "2M"}}, "control.horizon is 2M: the axis has 1M, 3M"),
    ({"control": {"horizons": "1M"}}, "control is .*horizons.*: name a value of one or more of horizon, such as hor"),
    ({"replicates": {"seed": {"one": {}, "two": {}}}}, "horizon=1M,seed=one and horizon=1M,seed=two are the same run"),
])
def test_a_bad_grid_is_refused_with_its_place(parts, message):
    with pytest.raises(ValueError, match=message):
        grid(**parts)


@pytest.mark.parametrize(("text", "message"), [
    ("axis: {}", "'axis' is no part of a grid; its parts are variables, base, axes, replicates, noise, control"),
    ("base: base", "lacks axes: a grid needs"),
    ("base: {}\naxes: 3\ncontrol: {a: 1}", "lacks base"),
    ("base: {a: {b: 1}}\naxes: 3\ncontrol: {a: 1}", r"grid.yaml: axes is 3")])
def test_a_file_that_is_no_grid_is_named(tmp_path, text, message):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_grid(tmp_path / "grid.yaml")


def test_a_grid_that_is_not_there_is_told():
    with pytest.raises(FileNotFoundError, match=r"nowhere.yaml: there is no such file, and lit_cpt ships"):
        read_grid("nowhere.yaml")


# Trunks --------------------------------------------------------------------------------------------------------


def course(when=0.2, steps=1600, curve=None, first=GENERAL, rest=None, optimizer=AdamW()):  # noqa: B008
    trigger = when if isinstance(when, (Trigger, type(None))) else Trigger(eta_over_eta_max=when)
    phases = [Phase("general", Blend(first)), *([Phase("qa", Blend(QA), trigger)] if trigger else [])]
    return Course(Recipe(steps * TOKENS, curve or Cosine(6e-4), phases, optimizer), TOKENS, rest or {"seed": 1})


def from_qa():
    return Course(Recipe(1600 * TOKENS, Cosine(6e-4), [Phase("qa", Blend(QA))]), TOKENS, {"seed": 1})


def test_the_switch_point_grid_costs_at_most_six_tenths_of_separate_runs():
    arms = {"1": from_qa(), **{str(ratio): course(ratio) for ratio in (1 / 2, 1 / 5, 1 / 10, 1 / 50)}}
    legs = plan_legs(arms)
    cost = budget(legs, tokens_per_second=1000)
    assert cost.share <= 0.6
    switches = [arms[str(ratio)].recipe.start_steps(TOKENS)[1] for ratio in (1 / 2, 1 / 5, 1 / 10)]
    assert [leg.start for leg in legs.values()] == [0, 0, *(step - 1 for step in switches)]
    assert [leg.parent for leg in legs.values()] == [None, None, "0.5", "0.2", "0.1"]
    assert branch_points(legs, "0.5") == [switches[0] - 1]
    text = render_legs(legs, cost)
    assert f"{cost.share:.3f} of separate runs" in text
    assert "1h 08m at 1000 tokens a second" in text.replace("instead of 1h 08m", "1h 08m")


@pytest.mark.parametrize(("other", "parted"), [
    (course(1 / 2), "theirs"), (course(1 / 10), "mine"), (course(None), "mine"), (course(first={"web": 1.0}), None),
    (course(steps=3200), None), (course(curve=Cosine(6e-4, 0.0)), None), (course(optimizer=AdamW(clip=0.5)), None),
    (course(rest={"seed": 2}), None), (course(Trigger(metric="val/qa/loss < 1")), None), (from_qa(), None)],
    ids=["sooner", "later", "never", "blend", "horizon", "floor", "optimizer", "seed", "metric", "name"])
def test_arms_share_what_they_train_alike_but_for_the_last_step(other, parted):
    mine = course()
    switch = {"mine": mine, "theirs": other}[parted].recipe.start_steps(TOKENS)[1] if parted else 1
    assert shared_steps(mine, other) == shared_steps(other, mine) == switch - 1


def test_a_curve_that_is_the_same_for_a_while_is_shared_over_horizons():
    stable = [course(None, steps, WSD(1e-3, decay=200 / steps, shape="linear")) for steps in (1000, 2000)]
    assert shared_steps(*stable) == 800  # the decay's first step has the stable rate still
    constant = [course(None, steps, Constant(1e-3)) for steps in (1000, 2000)]
    assert shared_steps(*constant) == 999


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([None, 0.7, 0.5, 0.2, 0.1, 0.03]), unique=True, min_size=2), st.randoms())
def test_no_order_of_the_arms_costs_more(ratios, random):
    arms = {str(ratio): course(ratio, 100) for ratio in ratios}
    mixed = list(arms.items())
    random.shuffle(mixed)
    legs, again = plan_legs(arms), plan_legs(dict(mixed))
    assert budget(legs).shared == budget(again).shared
    assert budget(legs).shared <= budget(legs).separate - TOKENS * max(
        shared_steps(one, other) for one, other in combinations(arms.values(), 2))


def test_what_of_the_recipe_changes_is_named_as_fit_takes_it():
    assert changed_fields(course(0.2).recipe, course(0.5).recipe) == ["recipe.phases"]
    assert changed_fields(course(None).recipe, course(None, 100, Constant(1.0)).recipe) == [
        "recipe.token_horizon", "recipe.curve"]


# Branches ------------------------------------------------------------------------------------------------------


def test_an_arm_begins_with_the_records_of_its_trunk_up_to_the_branch(tmp_path):
    parent, child = tmp_path / "trunk", tmp_path / "arm"
    for step in (0, 10, 20):
        append_event(parent, "evaluation", step=step)
        append_line(parent / "ledger.jsonl", {"step": step, "tokens": {"a": step}})
        append_line(parent / f"evals/step{step:08d}.json", {"step": step, "families": {}, "average": None})
    with SummaryWriter(str(parent)) as writer:
        for step in range(0, 21, 5):
            writer.add_scalar("val/a/loss", 1.0 - step / 100, step)
    append_event(child, "start", step=3)
    branch(parent, child, 10, 320)
    assert [(event["event"], event["step"]) for event in read_events(child)] == [
        ("evaluation", 0), ("evaluation", 10), ("branch", 10)]
    assert (read_events(child)[-1]["parent"], read_events(child)[-1]["tokens_seen"]) == ("trunk", 320)
    run = load_run(child)
    assert ([line["step"] for line in read_ledger(child)], [one["step"] for one in run.evals]) == ([0, 10], [0, 10])
    assert [step for step, _ in run.validation["a"]] == [0, 5, 10]
    assert len(EventAccumulator(str(parent)).Reload().Scalars("val/a/loss")) == 5


# Side by side --------------------------------------------------------------------------------------------------


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """Jobs are Python scripts here: (name, code) makes one."""
    (tmp_path / "a_script.py").write_text("import sys\nexec(sys.argv[1])")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(side_by_side, "PROGRAM", "a_script")
    monkeypatch.setattr(side_by_side, "IMPORTED", [])
    monkeypatch.setattr(side_by_side, "LOOK_SECONDS", 0.02)
    return lambda name, code, **more: Job(tmp_path / f"{name}.txt", lambda: [code], **more)


def test_a_job_waits_until_it_is_ready_and_a_place_is_free(scripts, tmp_path):
    note = "import os, time, pathlib; pathlib.Path({!r}).write_text(os.environ['PLACE'] + str(time.time()))"
    files = {name: str(tmp_path / name) for name in ("late", "first")}
    jobs = {"late": scripts("late", note.format(files["late"]),
                            ready=lambda: (tmp_path / "first").exists()),
            "first": scripts("first", note.format(files["first"]))}
    run_side_by_side(jobs, [{"PLACE": "A"}, {"PLACE": "B"}])
    first, late = ((tmp_path / name).read_text() for name in ("first", "late"))
    assert float(first[1:]) < float(late[1:])
    assert first[0] == "A"


def test_a_failure_is_told_with_its_log_and_ends_no_other_job(scripts, tmp_path):
    jobs = {"bad": scripts("bad", "raise SystemExit('no good')"), "child": scripts("child", "", ready=lambda: False),
            "good": scripts("good", "print('well')")}
    with pytest.raises(ArmFailed, match=r"the run bad failed; see .*bad\.txt; child waits for what is not there\. The"):
        run_side_by_side(jobs, [{}])
    assert last_line(tmp_path / "bad.txt") == "no good"
    assert last_line(tmp_path / "good.txt") == "well"


def test_the_last_line_of_a_log_is_what_a_run_said_last(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"first\nlast \xff\n\n")
    assert last_line(tmp_path / "log.txt") == "last \ufffd"


SAVES = ("import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved'))); "
         "print('up', flush=True); time.sleep(60)")


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_every_job_once_it_has_saved(scripts, tmp_path, interruptible, how):
    def raised():
        if (log := tmp_path / "one.txt").exists() and log.read_text():
            os.kill(os.getpid(), getattr(signal, how))
        return False

    with pytest.raises(KeyboardInterrupt):
        run_side_by_side({"one": scripts("one", SAVES), "two": scripts("two", "", ready=raised)}, [{}, {}])
    assert last_line(tmp_path / "one.txt") == "saved"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# The table -----------------------------------------------------------------------------------------------------


def evaluation(**hits):
    families = {family: {"score": math.fsum(values) / len(values), "hits": values, "items": len(values),
                         "clusters": [str(place // 2) for place in range(len(values))]}
                for family, values in hits.items()}
    mean = math.fsum(one["score"] for one in families.values()) / len(families)
    return {"step": 9, "families": families, "averaged": list(families), "average": {"score": mean}}


def outcome(treatment, seed, hits, loss=1.0, block=""):
    return Outcome(treatment, f"seed={seed}", block, evaluation(mmlu=hits, code=[1, 0] * 20), {"web": loss})


def compare_arms(outcomes, control):
    return arms_table.compare_arms(outcomes, {one.treatment: control for one in outcomes}, control)


BETTER, WORSE = [1] * 30 + [0] * 10, [1] * 10 + [0] * 30


def compared():
    return compare_arms([outcome("old", seed, WORSE[seed:] + WORSE[:seed], 1.0 + seed / 10) for seed in (0, 1, 2)]
                        + [outcome("new", seed, BETTER[seed:] + BETTER[:seed], 1.05 + seed / 10 + seed % 2 / 1000)
                           for seed in (0, 1, 2)], "old")


def test_means_and_differences_are_over_the_replicates_and_paired_within_each():
    lines = {(line.measure, line.treatment): line for line in compared().lines}
    assert list(lines) == [(measure, arm) for measure in ("mmlu", "code", "average", "val/web")
                           for arm in ("old", "new")]
    new = lines["mmlu", "new"]
    assert (new.count, new.mean, new.error, new.difference) == (3, 75, 0, 50)
    assert new.over_items.value == pytest.approx(50)
    assert new.over_items.excludes_zero
    assert new.shown
    assert lines["mmlu", "old"].difference is None
    assert lines["average", "new"].difference == pytest.approx(25)
    assert not lines["code", "new"].shown
    loss = lines["val/web", "new"]  # far smaller than what seeds do, and yet shown, for it is paired
    assert loss.difference == pytest.approx(0.05 + 0.001 / 3)
    assert loss.over_replicates.low == pytest.approx(loss.difference - 4.303 * 0.001 / 3, rel=1e-3)
    assert (loss.over_items, loss.shown) == (None, True)


def test_the_interval_over_items_is_about_the_difference_wherever_some_replicates_share_their_questions():
    """Two worlds ask the same of one family and other things of the other, with other numbers of questions."""
    def world(number, right, wide):
        own = {"shared": [1] * right + [0] * (20 - right), "own": [1] * wide + [0] * (30 + number - wide)}
        made = evaluation(**own)
        made["families"]["own"]["clusters"] = [f"{number}/{place}" for place in range(30 + number)]
        return made

    arms = [Outcome(arm, f"world={number}", f"world={number}", world(number, right, wide), {})
            for arm, right, wide in (("old", 4, 12), ("new", 16, 14)) for number in range(3)]
    for line in compare_arms(arms, "old").lines:
        if line.difference is not None:
            assert line.over_items.value == pytest.approx(line.difference), line.measure
            assert line.over_items.low < line.difference < line.over_items.high


def test_the_noise_floor_is_that_of_one_arm_over_seeds_within_a_base():
    found = compare_arms([outcome("old", f"{block}{seed}", WORSE, base + seed / 10, block)
                          for block, base in (("x", 1.0), ("y", 5.0)) for seed in (0, 1)], "old")
    assert found.noise["val/web"] == pytest.approx(0.1 / math.sqrt(2))
    assert found.noise["mmlu"] == 0
    assert compare_arms([outcome("old", 0, WORSE)], "old").noise["mmlu"] is None


def test_one_seed_tells_of_questions_only():
    found = compare_arms([outcome("old", 0, WORSE), outcome("new", 0, BETTER, 2.0)], "old")
    lines = {(line.measure, line.treatment): line for line in found.lines}
    assert (lines["mmlu", "new"].over_replicates, lines["mmlu", "new"].shown) == (None, True)
    assert lines["val/web", "new"].shown is None
    assert found.notes == ("one replicate: nothing here covers another seed or base model",)


def test_what_seeds_do_not_agree_on_is_not_shown_whatever_the_questions_say():
    found = compare_arms([outcome("old", 0, WORSE), outcome("old", 1, WORSE), outcome("new", 0, BETTER),
                          outcome("new", 1, [1] * 12 + [0] * 28)], "old")
    new = next(line for line in found.lines if (line.measure, line.treatment) == ("mmlu", "new"))
    assert (new.over_items.excludes_zero, new.over_replicates.excludes_zero, new.shown) == (True, False, False)


def test_questions_asked_in_several_replicates_are_drawn_once():
    one = compare_arms([outcome("old", 0, WORSE), outcome("new", 0, BETTER)], "old").lines[1].over_items
    both = compare_arms([outcome(arm, seed, hits) for arm, hits in (("old", WORSE), ("new", BETTER))
                         for seed in (0, 1)], "old").lines[1].over_items
    assert both == one


def test_arms_that_were_asked_something_else_have_no_interval_over_items():
    other = Outcome("new", "seed=0", "", evaluation(mmlu=[1] * 10, code=[1] * 40), {})
    lines = {line.measure: line for line in compare_arms([outcome("old", 0, WORSE), other], "old").lines
             if line.treatment == "new"}
    assert (lines["mmlu"].over_items, lines["average"].over_items) == (None, None)
    assert lines["code"].over_items is not None


def test_an_arm_without_a_last_evaluation_is_named_and_left_out():
    found = compare_arms([outcome("old", 0, WORSE), Outcome("new", "seed=0", "", None, {"web": 1.0})], "old")
    assert [line.treatment for line in found.lines if line.measure == "mmlu"] == ["old"]
    assert found.notes[0] == "no evaluation at the end of new,seed=0"


def test_seeds_of_a_base_are_no_more_bases():
    bases = [("x", 1.0), ("y", 3.0)]
    assert counted([*bases, *bases, *bases]) == counted(bases) == [1.0, 3.0]
    assert counted([("x", 1.0), ("x", 3.0)]) == [1.0, 3.0]  # one base: its seeds are what there is


def test_the_table_says_what_is_shown_and_how_noisy_it_is():
    text = render_arms(compared())
    rows = {tuple(line.split()[:2]): line for line in text.splitlines() if line.strip()}
    assert rows["mmlu", "old"].endswith("0.0      control")
    assert rows["mmlu", "new"].split()[-1] == "shown"
    assert rows["code", "new"].endswith("not shown")
    assert "minus old" in text
    assert "corrected for the number of" in text
    assert json.loads(json.dumps(compared().describe()))["lines"][1]["shown"] is True


def test_an_outcome_is_read_from_the_runs_end_alone(tmp_path):
    arm = Arm({"blend": "old"}, {"seed": "1"}, {})
    append_event(tmp_path, "finish", step=9)
    early = {**evaluation(mmlu=[1, 0]), "step": 5}
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals/step00000005.json").write_text(json.dumps(early))
    assert outcome_of(arm, tmp_path).evaluation is None
    (tmp_path / "evals/step00000009.json").write_text(json.dumps(evaluation(mmlu=[1, 1])))
    assert outcome_of(arm, tmp_path).measure("mmlu") == 100
    assert (outcome_of(arm, tmp_path).treatment, outcome_of(arm, tmp_path).pair) == ("blend=old", "seed=1")
