"""Claims that were written down beforehand: how they are read, what outcomes say of them, and how that is told."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lit_cpt.intervals import Interval
from lit_cpt.lab.arms_table import Outcome
from lit_cpt.lab.claims import Claim, Contrast, Finding, Judgement, judge, read_claims, render_claims
from lit_cpt.lab.conclusion import Conclusion, judge_claims
from lit_cpt.lab.grid import read_grid

ROOT = Path(__file__).parents[1]
ABOVE, ACROSS, BELOW = Interval(2, 1, 3), Interval(1, -1, 3), Interval(-2, -3, -1)


def outcome(pair, right, losses=None, first=None):
    """An arm that answered the first ``right`` of 40 questions."""
    hits = [1] * right + [0] * (40 - right)
    family = {"score": right / 40, "hits": hits, "items": 40, "clusters": [str(place) for place in range(40)]}
    return Outcome("arm", pair, pair, {"step": 9, "families": {"mmlu": family}, "averaged": ["mmlu"],
                                       "average": {"score": right / 40}}, losses or {}, "", first or {})


def arms(*rights):
    return {f"world={world}": outcome(f"world={world}", right) for world, right in enumerate(rights)}


def claim(better="g/new", worse="g/old", **more):
    return Claim("New is better", "as the paper has it", (Contrast(better, worse),), **more)


# Verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("items", "replicates", "verdict"), [
    (ABOVE, ABOVE, "reproduced"), (BELOW, BELOW, "not reproduced"), (ABOVE, ACROSS, "cannot be told at this scale"),
    (ACROSS, ABOVE, "cannot be told at this scale"), (ABOVE, None, "cannot be told at this scale"),
    (None, ABOVE, "reproduced"), (ABOVE, BELOW, "cannot be told at this scale")])
def test_a_comparison_is_told_by_both_intervals(items, replicates, verdict):
    assert Finding(Contrast("a", "b"), 3, 1.0, items, replicates).verdict == verdict


def test_a_claim_needs_all_of_its_comparisons_and_falls_with_one():
    good, bad = (Finding(Contrast("a", "b"), 3, 1.0, found, found) for found in (ABOVE, BELOW))
    unknown, missing = Finding(Contrast("a", "b"), 3, 1.0, ACROSS, ABOVE), Finding(Contrast("a", "b"))
    for findings, verdict in (((good, good), "reproduced"), ((good, unknown), "cannot be told at this scale"),
                              ((good, unknown, bad), "not reproduced"), ((bad, missing), "not run")):
        assert Judgement(claim(), findings).verdict == verdict


def test_differences_are_paired_within_a_world_and_need_both_arms():
    [judged] = judge([claim()], {"g/new": arms(31, 32, 33), "g/old": arms(11, 12, 13, 14)})
    [found] = judged.findings
    assert (found.count, found.difference) == (3, pytest.approx(50))
    assert found.over_replicates.low == pytest.approx(50)  # each world has the same difference
    assert found.over_items.excludes_zero
    assert judged.verdict == "reproduced"
    [turned] = judge([claim("g/old", "g/new")], {"g/new": arms(31, 32, 33), "g/old": arms(11, 12, 13)})
    assert (turned.findings[0].difference, turned.verdict) == (pytest.approx(-50), "not reproduced")


def test_a_comparison_of_arms_that_are_not_there_was_not_run():
    [judged] = judge([claim()], {"g/new": arms(31, 32)})
    assert (judged.findings[0].count, judged.verdict) == (0, "not run")


def test_of_losses_the_smaller_is_the_better_against_another_arm_and_against_the_start():
    new = {f"world={world}": outcome(f"world={world}", 20, {"web": 1.0 + world, "code": 2.0},
                                     {"web": 1.5 + world, "code": 2.0 + world / 100}) for world in range(3)}
    old = {pair: outcome(pair, 20, {"web": arm.losses["web"] + 0.2, "code": 2.0}) for pair, arm in new.items()}
    weights = {"web": 0.5, "code": 0.5}
    [told, begun] = judge([claim(measure=weights), claim(worse="start", measure=weights)], {"g/new": new, "g/old": old})
    assert told.findings[0].difference == pytest.approx(0.1)
    assert begun.findings[0].difference == pytest.approx(0.25 + 0.005)
    assert {told.verdict, begun.verdict} == {"reproduced"}
    assert told.findings[0].over_items is None
    [lacking] = judge([claim(measure={"books": 1.0})], {"g/new": new, "g/old": old})
    assert lacking.verdict == "not run"


# Files -----------------------------------------------------------------------------------------------------------


CONTENT = {"claims": [{"claim": "It is so", "paper": "p", "comparisons": [{"better": "a", "worse": "b"}],
                       "measure": {"web": 1.0}}]}


def test_claims_stand_in_yaml_or_in_a_block_of_markdown(tmp_path):
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(CONTENT))
    block = f"```yaml\nother: 1\n```\n\n```yaml\n{yaml.safe_dump(CONTENT)}```\n"
    (tmp_path / "claims.md").write_text(f"# Before the runs\n\n{block}")
    for name in ("claims.yaml", "claims.md"):
        assert read_claims(tmp_path / name) == (Claim("It is so", "p", (Contrast("a", "b"),), {"web": 1.0}),)


@pytest.mark.parametrize(("text", "message"), [
    ("# Nothing\n", "x.md has no `claims:`; write them in YAML"),
    ("```yaml\nclaims: [{claim: a, paper: b}]\n```\n", "x.md: claim 1: 'comparisons'; it has claim, paper, comp"),
    ("```yaml\nclaims: [{claim: a, paper: b, comparisons: [{best: a}]}]\n```\n", "x.md: claim 1: .*'best'"),
    ("```yaml\nclaims: [{\n```\n", "x.md is not YAML")])
def test_a_file_without_claims_is_named(tmp_path, text, message):
    (tmp_path / "x.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_claims(tmp_path / "x.md")


def test_the_table_has_a_row_for_each_comparison_and_the_hash_of_the_file(tmp_path):
    (tmp_path / "before.md").write_text("as it was")
    judged = judge([claim(), claim(worse="g/none")], {"g/new": arms(31, 32, 33), "g/old": arms(11, 12, 13)})
    told = render_claims(judged, tmp_path / "before.md")
    rows = [line for line in told.splitlines() if line.startswith("| New")]
    assert ["reproduced" in rows[0], "not run" in rows[1]] == [True, True]
    assert "+50.0" in rows[0]
    assert told.endswith(f"before.md, sha256 {hashlib.sha256(b'as it was').hexdigest()}.")


def test_the_claims_stand_with_the_noise_floor_of_every_grid(tmp_path):
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump({"claims": [
        {"claim": "x", "paper": "y", "comparisons": [{"better": "g/arm", "worse": "h/arm"}]}]}))
    repeated = (outcome("world=0", 20), replace(outcome("world=0", 24), again="seed=1"))
    told = judge_claims(str(tmp_path / "claims.yaml"), {"g": Conclusion(repeated, {}, "", ""),
                                                       "h": Conclusion((outcome("world=0", 9),), {}, "", "")})
    assert told.endswith("of the average, in points: g 7.07, h -.")  # 50 and 60 %


# The pre-registration that is shipped ----------------------------------------------------------------------------


def test_every_arm_that_the_preregistration_names_is_in_a_shipped_grid():
    claims = read_claims(ROOT / "docs/preregistration.md")
    named = {name for one in claims for pair in one.comparisons for name in (pair.better, pair.worse)} - {"start"}
    grids = {name.split("/")[0] for name in named}
    there = {f"{grid}/{arm.treatment}" for grid in grids for arm in read_grid(f"ablations/{grid}").arms}
    assert len(named) > 20
    assert not named - there
