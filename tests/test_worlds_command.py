"""`lit-cpt worlds`: what it refuses, before anything is built."""

from __future__ import annotations

import pytest

from lit_cpt.cli import main


@pytest.mark.parametrize(("options", "message"), [
    (["--models", "huge"], "--models huge: there are full, early, small, large, moe, encoder_decoder."),
    (["--rehearse", "0"], "--rehearse 0: give a share of the steps, above 0 and at most 1."),
    (["--rehearse", "2"], "--rehearse 2: give a share of the steps, above 0 and at most 1."),
    (["--workers", "0"], "--workers 0: at least 1 model is pretrained at once."),
    (["--seeds", "one"], "one")])
def test_a_mistake_is_one_message_and_builds_nothing(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["worlds", *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
