from __future__ import annotations

from lit_cpt.json_lines import append_line, read_lines


def test_lines_come_back_in_order_and_one_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "run" / "lines.jsonl"
    for step in (10, 20):
        append_line(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 3')
    append_line(path, {"step": 40})
    assert [line["step"] for line in read_lines(path)] == [10, 20, 40]


def test_without_a_file_there_are_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []
