from __future__ import annotations

import json

import pytest
import torch
from test_consolidation import folder, trained  # noqa: F401  # the fixtures

from lit_cpt.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def run(folder, tmp_path):  # noqa: F811
    """A run with a whole checkpoint and a newer one that is cut short."""
    place = tmp_path / "run" / "checkpoints"
    place.mkdir(parents=True)
    folder.rename(place / folder.name)
    (place / "step-00000003.ckpt").write_bytes(b"half")
    return place.parent


def test_all_checkpoints_of_a_run_are_told_newest_first(run, capsys):
    assert main(["checkpoint", "inspect", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert "DAMAGED" in lines[0]
    assert "step-00000003.ckpt" in lines[0]
    assert all(word in lines[1] for word in ("step-00000002.ckpt", "llama", "1 rank ", "whole", "yes"))


def test_one_is_told_as_json(run, capsys):
    assert main(["checkpoint", "inspect", str(run / "checkpoints" / "step-00000002.ckpt"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["step"], found["tokens_seen"], found["damage"]) == (2, 16, None)


def test_the_newest_whole_one_of_a_run_becomes_a_file(run, tmp_path, capsys):
    output = tmp_path / "one.ckpt"
    assert main(["checkpoint", "consolidate", str(run), "--output", str(output)]) == 0
    assert "one process" in capsys.readouterr().out
    assert torch.load(output, weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(("words", "said"), [
    (["inspect", "nothing.ckpt"], "nothing.ckpt: there is no such checkpoint"),
    (["inspect", "."], r".: there is no checkpoint in it"),
    (["consolidate", "nothing.ckpt"], "--output is missing"),
    (["consolidate", "nothing.ckpt", "--output", "x"], "nothing.ckpt: there is no such checkpoint"),
    (["consolidate", ".", "--output", "x"], "--checkpoint . is neither a Hugging Face folder"),
    (["burn", "x"], "checkpoint burn: there are"),
])
def test_a_mistake_is_answered(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["checkpoint", *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
