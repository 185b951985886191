"""`lit-cpt eval-data` as a user meets it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness_world import whole_mirror

from lit_cpt.cli import main
from lit_cpt.harness.families import LANGUAGES


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_mirror(tmp_path_factory.mktemp("whole") / "mirror")


@pytest.fixture
def mirror(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "mirror"))


def test_check_says_what_is_there(mirror, capsys):
    assert main(["eval-data", "check", "--data", str(mirror)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:]] == [["mmlu", "57", "114", "whole"], ["hellaswag", "1", "2", "whole"],
                                                    ["humaneval", "1", "1", "whole"], ["mgsm", "3", "6", "whole"]]


def test_check_names_what_is_wrong_and_how_to_mend_it(mirror, capsys):
    (mirror / "cais/mmlu/virology/test-00000-of-00001.parquet").unlink()
    assert main(["eval-data", "check", "--data", str(mirror)]) == 2
    said = capsys.readouterr()
    assert "cais/mmlu has no files for split 'test' of 'virology'" in said.out
    assert f"lit-cpt eval-data fetch --data {mirror} --families mmlu\n" in said.err


def test_other_languages_are_checked_where_they_are_asked_for(mirror, capsys):
    assert main(["eval-data", "check", "--data", str(mirror), "--families", "mgsm", "--languages", "es,de"]) == 2
    said = capsys.readouterr()
    assert "juletxara/mgsm lacks config 'de'" in said.out
    assert f"lit-cpt eval-data fetch --data {mirror} --families mgsm --languages es,de\n" in said.err


def test_a_mirror_may_be_called_check(whole, tmp_path, monkeypatch, capsys):
    shutil.copytree(whole, tmp_path / "check")
    monkeypatch.chdir(tmp_path)
    assert main(["eval-data", "check", "--data", "check", "--families", "mgsm,mgsm"]) == 0
    assert capsys.readouterr().out.count("whole") == 1


@pytest.mark.parametrize(("arguments", "said"), [
    (["eval-data"], "there are `lit-cpt eval-data fetch --data DIR`"),
    (["eval-data", "chek", "--data", "x"], "eval-data chek"),
    (["eval-data", "check"], "data"),
    (["eval-data", "check", "--data", "x", "--from", "y"], "check --from y: only fetch takes --from"),
    (["eval-data", "check", "--data", "x", "--families", "mmul"], "there is no family mmul; there are mmlu"),
    (["eval-data", "check", "--data", "x", "--languages", "xx"], f"no language xx; there are {', '.join(LANGUAGES)}"),
])
def test_mistakes_are_one_line(capsys, arguments, said):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
