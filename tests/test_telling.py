from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lit_cpt.telling import log_due, logged, publish, rate, record, show


def trainer_of(step=10, accumulating=False, **more):
    loop = SimpleNamespace(_should_accumulate=lambda: accumulating)
    return SimpleNamespace(fit_loop=loop, global_step=step, log_every_n_steps=5, callback_metrics={}, **more)


def test_where_nothing_is_to_be_logged_no_log_is_due():
    trainer = trainer_of()
    trainer.log_every_n_steps = 0
    assert log_due(trainer) is False


@pytest.mark.parametrize(("step", "accumulating", "due"), [(10, False, True), (10, True, False), (11, False, False)])
def test_a_log_is_due_at_the_end_of_whole_steps_that_are_a_multiple(step, accumulating, due):
    assert log_due(trainer_of(step, accumulating)) is due


def test_the_rate_is_the_highest_of_the_first_optimizers_groups():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]
    first = torch.optim.SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:2], "lr": 0.3}])
    assert rate(SimpleNamespace(optimizers=[first, torch.optim.SGD(weights[2:], lr=9.0)])) == 0.3


def test_an_event_goes_into_a_diary_where_there_is_one():
    kept = []
    record(SimpleNamespace(record=lambda kind, **fields: kept.append((kind, fields))), "spike", step=3)
    record(SimpleNamespace(), "spike", step=4)
    assert kept == [("spike", {"step": 3})]


def test_values_go_to_every_logger_at_the_steps_made_and_can_be_found_by_others():
    told = []
    logger = SimpleNamespace(log_metrics=lambda values, step: told.append((values, step)))
    trainer = trainer_of(loggers=[logger, logger])
    publish(trainer, {"speed/mfu": 0.5})
    show(trainer, {"train/loss": 2.0})
    assert told == [({"speed/mfu": 0.5}, 10)] * 2
    assert trainer.callback_metrics == {"speed/mfu": torch.tensor(0.5), "train/loss": torch.tensor(2.0)}


def test_logged_values_are_found_by_the_whole_of_their_names():
    trainer = trainer_of()
    show(trainer, {"train/web/loss": 2.0, "val/web/loss": 3.0, "train/loss": 1.0})
    assert logged(trainer, "train/(.+)/loss") == {"web": 2.0}
    assert logged(trainer, "(.+)").keys() == trainer.callback_metrics.keys()
