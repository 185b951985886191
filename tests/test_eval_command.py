"""`lit-cpt eval` as a user meets it."""

from __future__ import annotations

import json

import pytest
from harness_world import build_mirror, build_model, build_tokenizer
from test_evaluations import evaluation, score

from lit_cpt.cli import main
from lit_cpt.publishing import publish_text


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    build_model().save_pretrained(folder / "model")
    build_tokenizer(folder / "model")
    return str(build_mirror(folder / "mirror", documents=3)), str(folder / "model")


def saved(path, found):
    publish_text(path, json.dumps(found.describe()))
    return str(path)


def test_scores_are_a_table(world, capsys):
    assert main(["eval", "--checkpoint", world[1], "--tasks", "hellaswag, mmlu_anatomy", "--data", world[0], "--limit",
                 "{hellaswag: 2}", "--shots", "{mmlu_anatomy: 1}", "--bits_per_byte", "false"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines[2:4]] == [["hellaswag", "acc_norm", "2"], ["mmlu_anatomy", "acc", "3"]]
    assert lines[4][0] == "average"


def test_two_results_are_compared(tmp_path, capsys):
    files = [saved(tmp_path / "before.json", evaluation(score(hits=[0, 1] * 20, bits=()))),
             saved(tmp_path / "after.json", evaluation(score(hits=[1] * 40, bits=())))]
    assert main(["eval", "--compare", *files, "--json", str(tmp_path / "difference.json")]) == 0
    shown = capsys.readouterr().out
    assert "before" in shown.splitlines()[0]
    assert "+50.0 [" in shown
    assert json.loads((tmp_path / "difference.json").read_text())["rows"][0]["difference"]["value"] == 0.5


def test_results_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files.append(saved(tmp_path / folder / "step00000010.json", evaluation()))
    assert main(["eval", "--compare", *files]) == 0
    assert all(file in capsys.readouterr().out for file in files[:1])


def test_a_family_without_data_does_not_hide_the_others(world, tmp_path, capsys):
    (tmp_path / "mirror").mkdir()
    arguments = ["eval", "--checkpoint", world[1], "--limit", "1", "--json", str(tmp_path / "found.json")]
    assert main([*arguments, "--tasks", "hellaswag", "--data", str(tmp_path / "mirror")]) == 2
    said = capsys.readouterr()
    assert "! hellaswag: unavailable" in said.out
    assert "lit-cpt eval-data fetch --data" in said.err
    assert main([*arguments, "--tasks", "hellaswag,mmlu_anatomy", "--data", world[0], "--seconds", "0.000001"]) == 1
    assert "! hellaswag: timeout" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "found.json").read_text())["failures"]) == {"hellaswag", "mmlu_anatomy"}


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "--checkpoint is missing"),
    (["--checkpoint", "./nothing"], "--checkpoint ./nothing: there is no such file or folder"),
    (["--checkpoint", "MODEL", "--tasks", "mmul"], "no task, group or tag mmul: did you mean mmlu?"),
    (["--checkpoint", "MODEL", "--tasks", ","], "tasks=[] leaves nothing to evaluate"),
    (["--checkpoint", "MODEL", "--limit", "0"], "limit=0 must be 1 or more"),
    (["--checkpoint", "MODEL", "--limit", "{mmlv: 3}"], "limit for 'mmlv', which is not evaluated"),
    (["--checkpoint", "MODEL", "--limit", "many"], "limit"),
    (["--checkpoint", "MODEL", "--seconds", "-1"], "seconds=-1.0 must be positive"),
    (["--checkpoint", "MODEL", "--precision", "int8"], "--precision int8: choose auto, float32 or bfloat16"),
    (["--checkpoint", "MODEL", "--tokenizer", "/no/such"], "no tokenizer can be read from /no/such"),
    (["--checkpoint", "MODEL", "--json", "/no/such/found.json"], "there is no folder /no/such"),
    (["--checkpoint", "MODEL", "--folder", "/no/such", "--tasks", "x"], "/no/such: there is no such folder"),
    (["--compare", "nothing.json", "nothing.json"], "nothing.json: there is no such file"),
    (["--checkpoint", "MODEL", "--taks", "mmlu"], "taks"),
])
def test_mistakes_are_one_line(world, capsys, arguments, said):
    assert main(["eval", *(world[1] if word == "MODEL" else word for word in arguments)]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
