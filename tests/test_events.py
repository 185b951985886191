from __future__ import annotations

import json
import time

import pytest

from lit_cpt.events import append_event, finished_at, read_events


def test_events_come_back_in_the_order_they_were_written_with_their_fields(tmp_path):
    append_event(tmp_path / "run", "start", step=0, tokens_seen=0)
    append_event(tmp_path / "run", "phase", step=3, tokens_seen=96, weights={"a": 0.5})
    first, second = read_events(tmp_path / "run")
    assert (first["event"], first["step"]) == ("start", 0)
    assert (second["event"], second["weights"], second["tokens_seen"]) == ("phase", {"a": 0.5}, 96)


def test_each_event_is_one_line_of_json_with_the_time(tmp_path):
    before = time.time()
    append_event(tmp_path, "stop", reason="line one\nline two", where="café")
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1
    event = json.loads(lines[0])
    assert (event["reason"], event["where"]) == ("line one\nline two", "café")
    assert before - 0.001 <= event["time"] <= time.time() + 0.001


def test_a_run_without_a_diary_has_no_events(tmp_path):
    assert read_events(tmp_path) == []


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    append_event(tmp_path, "start", step=0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "pha')
    assert [event["event"] for event in read_events(tmp_path)] == ["start"]


def test_the_event_after_a_line_cut_short_is_kept(tmp_path):
    append_event(tmp_path, "start", step=0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "pha')
    append_event(tmp_path, "resume", step=0)
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "resume"]


def test_a_value_that_is_not_plain_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        append_event(tmp_path, "phase", sources={"a"})
    assert read_events(tmp_path) == []


def test_a_run_has_finished_where_its_diary_says_so(tmp_path):
    assert not finished_at(tmp_path, 7)
    append_event(tmp_path, "finish", step=7)
    assert finished_at(tmp_path, 7)
    assert not finished_at(tmp_path, 8)
