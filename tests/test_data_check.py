from __future__ import annotations

import json
import shutil

import pytest
import yaml
from conftest import LENGTH, SIZES, ideal_stream

from lit_cpt.blends import Blend
from lit_cpt.cli import main
from lit_cpt.data import BlendDataModule
from lit_cpt.data_check import check_data, render_check
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine

FIRST, SECOND = {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.1, "b": 0.2, "c": 0.7}
STEPS, SWITCH = 40, 29
RECIPE = Recipe(STEPS * 4 * LENGTH, Cosine(1e-2), [Phase("first", Blend(FIRST)),
                                                   Phase("late", Blend(SECOND), Trigger(eta_over_eta_max=0.2))])


def data_of(sources, recipe=RECIPE, **settings):
    return BlendDataModule(recipe, sources, LENGTH, **{"global_batch": 4, "micro_batch": 2, "workers": 1, **settings})


@pytest.mark.parametrize("settings", [{}, {"workers": 0}, {"shards": 4, "window": 2}])
def test_a_stream_is_read_and_found_exact(sources, settings):
    check = check_data(data_of(sources, **settings), 10)
    assert (check.steps, check.exact, check.resumed, check.passed) == (10, True, True, True)
    [switch] = check.switches
    assert (switch.phase, switch.step, switch.sample, switch.exact) == ("late", SWITCH, SWITCH * 4, True)
    names = [list(SIZES)[source] for source, _ in ideal_stream([(0, FIRST), (SWITCH * 4, SECOND)], 160)]
    around = names[SWITCH * 4 - 8 : SWITCH * 4], names[SWITCH * 4 : SWITCH * 4 + 8]
    assert [switch.before, switch.after] == [{name: side.count(name) for name in sorted(set(side))} for side in around]
    assert {share.name: share.samples for share in check.shares} == {name: names[:40].count(name) for name in SIZES}
    assert sum(share.share for share in check.shares) == pytest.approx(1)
    assert check.tokens_per_second > 0
    assert check.first_batch_seconds > 0


def test_no_more_steps_are_read_than_the_run_has(sources):
    assert check_data(data_of(sources), 10**6).steps == STEPS


def test_a_phase_that_cannot_be_foretold_is_left_out(sources):
    late = Phase("late", Blend(SECOND), Trigger(metric="val/a/loss < 1"))
    check = check_data(data_of(sources, Recipe(STEPS * 4 * LENGTH, Cosine(1e-2), [RECIPE.phases[0], late])), 2)
    assert (check.passed, check.switches) == (True, [])


def test_a_source_that_changes_while_it_is_read_is_found(sources, tmp_path, monkeypatch):
    folder = tmp_path / "a"
    shutil.copytree(sources["a"], folder)
    data = data_of({**sources, "a": str(folder)}, workers=0)
    given, opened = data.loader, []

    def loader(*arguments):
        if opened:  # the first loader reads the source as it was
            for path in folder.glob("*.bin"):
                chunk = bytearray(path.read_bytes())
                chunk[len(chunk) // 4 :] = bytes(3 * len(chunk) // 4 + 1)[: len(chunk) - len(chunk) // 4]
                path.write_bytes(chunk)
        opened.append(given(*arguments))
        return opened[-1]

    monkeypatch.setattr(data, "loader", loader)
    check = check_data(data, 5)
    assert not check.passed
    assert "DIFFERENT" in render_check(check, data)


def test_no_step_at_all_is_refused(sources):
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        check_data(data_of(sources), 0)


@pytest.fixture
def configs(sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"sources": sources, "sequence_length": LENGTH, "global_batch": 4, "micro_batch": 2, "workers": 0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"recipe": RECIPE.describe(), "trainer": {"max_epochs": 1}}))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": data}))


def test_the_command_prints_shares_switch_and_verdicts(configs, capsys):
    assert main(["data", "check", "recipe.yaml", "data.yaml", "--steps", "5"]) == 0
    told = capsys.readouterr().out
    assert "20 sequences of 5 steps, each compared with the block that the seed and its number foretell: exact" in told
    assert f"phase late begins at step {SWITCH}, sequence {SWITCH * 4}" in told
    assert "tokens a second on one rank with 0 workers" in told


def test_the_command_prints_json(configs, capsys):
    assert main(["data", "check", "recipe.yaml", "data.yaml", "--steps", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["steps"], told["switches"][0]["step"]) == (True, 5, SWITCH)


@pytest.mark.parametrize(("words", "says"), [
    (["chek"], "data chek: there is only `lit-cpt data check CONFIG"),
    ([], "there is only `lit-cpt data check CONFIG"),
    (["check", "nope"], "--config nope: there is no such file"),
    (["check", "recipe.yaml"], "recipe.yaml: no data in these configs"),
    (["check", "data.yaml"], "data.yaml: no recipe in these configs"),
    (["check", "recipe.yaml", "data.yaml", "--steps", "0"], "steps=0 must be at least 1"),
])
def test_the_command_answers_a_mistake_in_one_line(configs, capsys, words, says):
    assert main(["data", *words]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
