from __future__ import annotations

import logging
import re
import threading
import time

import pytest
from conftest import LENGTH

from lit_cpt.stream import BlendedDataLoader, BlendedStreamingDataset, open_source, patience
from lit_cpt.stream.patience import Stalled, patient


def slow(*seconds):
    for number, each in enumerate(seconds):
        time.sleep(each)
        yield number


def test_batches_come_as_they_are_one_at_a_time_and_end_where_they_end():
    asked = []
    batches = patient((asked.append(number) or number for number in range(3)), 5, str)
    assert next(batches) == 0
    time.sleep(0.05)
    assert asked == [0]  # none is fetched ahead, or a saved position would be off
    assert list(batches) == [1, 2]


def test_an_error_in_fetching_is_raised_where_the_batch_is_waited_for():
    with pytest.raises(ZeroDivisionError):
        list(patient((1 / number for number in (1, 0)), 5, str))


def test_a_wait_is_told_again_and_again_and_given_up_with_what_was_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(patience, "TOLD", 0.1)
    caplog.set_level(logging.WARNING, "lit_cpt.stream.patience")
    batches = patient(slow(0, 30), 0.5, lambda: "rank 1 waits for web")
    assert next(batches) == 0
    with pytest.raises(Stalled, match=r"no batch came within 0.5 s: rank 1 waits for web. Look at the disk or mount .*"
                                      r"data.timeout says"):
        next(batches)
    assert [record.getMessage() for record in caplog.records] == 3 * ["waited 0 s for a batch: rank 1 waits for web"]


def test_a_slow_batch_within_the_time_is_no_stall():
    assert list(patient(slow(0.2, 0.2), 5, str)) == list(patient(slow(0, 0.05), 0, str)) == [0, 1]


def test_no_thread_is_left_where_batches_are_no_longer_wanted():
    before = threading.active_count()
    batches = patient(slow(0, 0, 0), 5, str)
    next(batches)
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_whose_source_hangs_names_it(sources, monkeypatch, workers):
    source = open_source(sources["a"], LENGTH)
    stream = BlendedStreamingDataset({"a": source, "b": open_source(sources["b"], LENGTH)}, {"a": 1.0})
    monkeypatch.setattr("lit_cpt.stream.dataset.SourceReader.read", lambda *_: time.sleep(3))
    loader = BlendedDataLoader(stream, 4, 10, timeout=0.5, num_workers=workers)
    with pytest.raises(Stalled, match=re.escape(f"within 0.5 s: rank 0 waits for samples of a, at sample 0 of the "
                                                f"stream ({workers} workers).")):
        next(iter(loader))
