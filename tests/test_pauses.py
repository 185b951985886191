from __future__ import annotations

import contextlib
from types import SimpleNamespace

from lit_cpt import pauses
from lit_cpt.pauses import paused, paused_seconds


class Trainer:
    pass


def test_pauses_add_up_for_each_trainer_also_where_one_fails(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pauses, "time", SimpleNamespace(monotonic=lambda: clock.now))
    one, other = Trainer(), Trainer()
    with paused(one):
        clock.now += 3
    with contextlib.suppress(OSError), paused(one):
        clock.now += 4
        raise OSError("full")
    assert (paused_seconds(one), paused_seconds(other)) == (7, 0)


def test_who_shows_it_is_told_what_the_run_waits_for_and_when_it_goes_on():
    told, trainer = [], Trainer()
    trainer.callbacks = [object(), SimpleNamespace(show_pause=told.append)]
    with contextlib.suppress(OSError), paused(trainer, "saving"):
        assert told == ["saving"]
        raise OSError("full")
    assert told == ["saving", None]
