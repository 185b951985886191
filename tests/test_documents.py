import gzip
import hashlib
import itertools
import json

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_cpt import documents
from lit_cpt.documents import DocumentReader, Fault, Piece, TextRule, split_lines


def read(path, format="jsonl", start=0, stop=None, groups=None, **rule):
    stop = path.stat().st_size if stop is None and path.exists() else stop or 0
    return list(DocumentReader(Piece(str(path), format, start, stop, groups), TextRule(**rule)))


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def fault_of(items):
    (fault,) = [item for item in items if isinstance(item, Fault)]
    return str(fault)


def test_a_jsonl_record_is_a_document(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "one"}, {"text": "zwei ü", "id": 3})
    assert read(path) == ["one", "zwei ü"]


def test_blank_lines_and_a_byte_order_mark_in_jsonl_are_no_records(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}')
    assert read(path) == ["a", "b"]


def test_another_key_or_a_template_of_several_fields_makes_the_text(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "2", "n": 7})
    assert read(path, text_key="answer") == ["2"]
    assert read(path, text_template="Q{n}: {question}\nA: {answer}") == ["Q7: 1+1?\nA: 2"]


@pytest.mark.parametrize(
    ("template", "what"),
    [("no field", r"it names \[\]"), ("{a", "expected '}'"), ("{a.b}", r"\['a.b'\]"), ("{}", r"it names \[''\]")],
)
def test_a_template_without_plain_fields_is_refused(template, what):
    with pytest.raises(ValueError, match=what):
        TextRule(text_template=template)


def test_rules_out_of_range_are_refused():
    with pytest.raises(ValueError, match="txt_document='page' is not known; choose 'file' or 'line'"):
        TextRule(txt_document="page")
    with pytest.raises(ValueError, match="text_key is empty"):
        TextRule(text_key="")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"text": "a"', r":2: broken JSON: .*\(column 13\)"),
        (b"[1]", ":2: a JSON list, not an object"),
        (b'{"body": "a", "id": 1}', ":2: no key 'text'; the keys are 'body', 'id'"),
        (b'{"text": null}', ":2: key 'text' holds NoneType, not a string"),
        (b'{"text": 3}', ":2: key 'text' holds int, not a string"),
        (b'{"text": "\xff"}', r":2: byte 0xff is not UTF-8 \(column 11\)"),
        (b'{"text": "\\ud800"}', r":2: the text holds the lone surrogate '\\ud800'"),
        (b"[" * 100_000, ":2: broken JSON"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line_and_the_rest_is_read(line, what, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    items = read(path)
    assert [item for item in items if isinstance(item, str)] == ["a", "b"]
    with pytest.raises(ValueError, match=what):
        raise ValueError(fault_of(items))


def test_line_numbers_are_those_of_the_file_also_in_a_later_piece(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 50 + "broken\n" + '{"text": "a"}\n' * 50)
    assert ":51: broken JSON" in fault_of(read(path, start=300))


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_files_are_read_member_after_member(suffix, compress, tmp_path):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(b"one\ntw") + compress(b"o\nthree"))
    assert read(path, "txt", txt_document="line") == ["one", "two", "three"]
    assert read(path, "txt") == ["one\ntwo\nthree"]


@pytest.mark.parametrize(
    ("suffix", "compress", "kind"), [(".gz", gzip.compress, "gzip"), (".zst", zstandard.compress, "zstd")]
)
def test_a_truncated_stream_is_a_fault_at_its_line(suffix, compress, kind, tmp_path):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(b'{"text": "a"}\n' * 5)[:-4])
    assert f"the {kind} stream ends in the middle" in fault_of(read(path))


@pytest.mark.parametrize(("suffix", "kind"), [(".gz", "gzip"), (".zst", "zstd")])
def test_a_file_that_is_not_compressed_at_all_is_a_fault(suffix, kind, tmp_path):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b'{"text": "a"}\n')
    assert f":1: broken {kind} stream" in fault_of(read(path))


def test_zero_padding_after_a_gzip_stream_is_no_fault(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one") + bytes(512))
    assert read(path, "txt") == ["one"]


def test_an_empty_jsonl_file_is_a_fault_and_an_empty_txt_an_empty_document(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"")
    assert fault_of(read(path)) == f"{path}:1: the file is empty"
    assert read(path, "txt") == [""]


def test_a_missing_or_unreadable_file_is_a_fault(tmp_path):
    assert ":1: cannot be read: No such file" in fault_of(read(tmp_path / "nowhere"))
    assert ":1: cannot be read: Is a directory" in fault_of(read(tmp_path))


def test_a_txt_file_is_one_document_or_one_per_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    assert read(path, "txt") == ["one\r\n\r\ntwo\n"]
    assert read(path, "txt", txt_document="line") == ["one", "", "two"]


def test_bad_utf8_in_a_txt_file_is_named_by_its_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n\xe9\n")
    assert fault_of(read(path, "txt")) == f"{path}:3: byte 0xe9 is not UTF-8"
    assert ":3: byte 0xe9 is not UTF-8 (column 1)" in fault_of(read(path, "txt", txt_document="line"))


def test_a_document_too_large_for_a_tokenizer_is_a_fault_with_its_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LARGEST_DOCUMENT", 1000)
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 1001)
    assert "one document of more than 1,000 bytes; split the file, or read each line" in fault_of(read(path, "txt"))
    assert "a line of more than 1,000 bytes" in fault_of(read(path))


def test_a_fault_lists_a_dozen_keys_at_most(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {f"k{i}": 1 for i in range(30)})
    assert fault_of(read(path)).endswith("'k11', ...")


def parquet(path, columns, row_group_size=10):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def test_parquet_rows_are_documents_and_row_groups_are_pieces(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": [f"row {i}" for i in range(25)], "id": range(25)})
    assert read(path, "parquet") == [f"row {i}" for i in range(25)]
    assert read(path, "parquet", groups=(1, 3)) == [f"row {i}" for i in range(10, 25)]
    assert read(path, "parquet", text_template="{id}: {text}")[3] == "3: row 3"


def test_parquet_faults_name_the_row_or_the_columns(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": ["a"] * 12 + [None, "b"]})
    assert ":13: key 'text' holds NoneType" in fault_of(read(path, "parquet", groups=(1, 2)))
    assert ":1: no column 'body'; the columns are 'text'" in fault_of(read(path, "parquet", text_key="body"))
    numbers = parquet(tmp_path / "n.parquet", {"text": [1]})
    assert ":1: key 'text' holds int" in fault_of(read(numbers, "parquet"))


def test_what_is_not_parquet_or_holds_no_row_is_a_fault(tmp_path):
    broken = tmp_path / "a.parquet"
    broken.write_text("text")
    assert ":1: not a parquet file" in fault_of(read(broken, "parquet"))
    pa = pytest.importorskip("pyarrow")
    empty = parquet(tmp_path / "e.parquet", {"text": pa.array([], pa.string())})
    assert ":1: the file is empty" in fault_of(read(empty, "parquet"))


@example(lines=[b"\xef\xbb\xbf"], last_newline=False, cuts=[], block=1)
@example(lines=[b"\xef\xbb\xbf"], last_newline=True, cuts=[], block=1)
@settings(deadline=None, max_examples=150)
@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    last_newline=st.booleans(),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    block=st.integers(1, 40),
)
def test_pieces_that_tile_a_file_yield_each_line_once(lines, last_newline, cuts, block, tmp_path_factory):
    data = b"\n".join(lines) + (b"\n" if last_newline else b"")
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(data)
    bounds = [0, *sorted(int(cut * len(data)) for cut in cuts), len(data)]
    found, digests = [], []
    old, documents.BLOCK_BYTES = documents.BLOCK_BYTES, block
    try:
        for start, stop in itertools.pairwise(bounds):
            reader = DocumentReader(Piece(str(path), "txt", start, stop), TextRule(txt_document="line"))
            found += list(reader.own_lines())
            digests.append((reader.sha256, hashlib.sha256(data[start:stop]).hexdigest()))
    finally:
        documents.BLOCK_BYTES = old
    expected = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert found == (expected[:-1] if expected[-1] == b"" else expected)
    assert all(ours == whole for ours, whole in digests)


@given(st.binary(max_size=80), st.integers(1, 9))
def test_splitting_lines_does_not_depend_on_the_blocks(data, size):
    blocks = [data[first : first + size] for first in range(0, len(data), size)]
    joined = list(split_lines(blocks))
    assert joined == list(split_lines([data]))
    assert all(data[offset : offset + len(line)] == line for offset, line in joined)
