import gzip
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from litdata import StreamingDataset, TokensLoader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_cpt.documents import Piece
from lit_cpt.manifest import InputFile, Manifest
from lit_cpt.prepare import PrepareSettings, prepare, prepare_source, tokenizer_fingerprint
from lit_cpt.prepare.job import Job
from lit_cpt.prepare.parts import Part, cut, find_inputs
from lit_cpt.prepare.publish import remove
from lit_cpt.prepare.run import error_of, locked
from lit_cpt.prepare.stream import TokenStream, UnreadableInput, in_validation
from lit_cpt.prepare.tokens import Encoder, dtype_of, files_digest, load_tokenizer, tokenizer_facts

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
WORDS = [*"the of and a tokenizer learns merges from some words such as these 12 34 über".split(), "世界\n"]  # noqa: SIM905


def sentences(count, seed=0):
    chance = random.Random(seed)
    return [f"{seed}-{i} " + " ".join(chance.choices(WORDS, k=chance.randint(5, 40))) for i in range(count)]


def save_tokenizer(folder, eos="<|end|>"):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>", "<|begin|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(200), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def encoder(tokenizer):
    loaded = load_tokenizer(tokenizer)
    return Encoder(loaded, tokenizer_facts(loaded, tokenizer))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of every kind of input, and its documents in the order a preparation reads them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("corpus")
    texts = {name: sentences(120, seed) for seed, name in enumerate("abcde")}
    lines = {name: "".join(json.dumps({"text": text}) + "\n" for text in texts[name]) for name in "abe"}
    (folder / "a.jsonl").write_text(lines["a"])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines["b"].encode()))
    pq.write_table(pa.table({"text": texts["c"]}), folder / "c.parquet", row_group_size=30)
    (folder / "d.txt").write_text("\n".join(texts["d"]))
    (folder / "deep").mkdir()
    (folder / "deep" / "e.jsonl.zst").write_bytes(zstandard.compress(lines["e"].encode()))
    return folder, [text for name in "abc" for text in texts[name]] + ["\n".join(texts["d"])] + texts["e"]


SETTINGS = PrepareSettings(validation=0.1, part_bytes=6000, chunk_bytes=4000)


@pytest.fixture(scope="session")
def source(corpus, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources") / "one"
    return folder, prepare_source([str(corpus[0])], tokenizer, folder, SETTINGS, workers=1)


def tokens_in(folder):
    """Every token of a litdata dataset, in the order of its index."""
    chunks = json.loads((folder / "index.json").read_text())["chunks"]
    found = [
        np.fromfile(folder / chunk["filename"], np.uint16, offset=4 * (chunk["chunk_size"] + 2)) for chunk in chunks
    ]
    return np.concatenate(found).tolist()


def content(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flat(encoder, texts):
    return [token for ids in encoder(texts) for token in ids]


# what a source holds


def test_train_and_validation_hold_every_document_in_order_each_ended_by_eos(source, corpus, encoder):
    folder, manifest = source
    held_out = [in_validation(text, 0.1) for text in corpus[1]]
    train = [text for text, out in zip(corpus[1], held_out, strict=True) if not out]
    validation = [text for text, out in zip(corpus[1], held_out, strict=True) if out]
    assert tokens_in(folder) == flat(encoder, train)
    assert tokens_in(folder / "validation") == flat(encoder, validation)
    assert 20 < len(validation) < 80
    assert tokens_in(folder).count(encoder.eos[0]) == len(train) == manifest.train.documents
    assert manifest.validation.documents == len(validation)
    assert manifest.train.tokens == len(tokens_in(folder))


def test_litdata_reads_a_source_and_torch_stacks_it(source):
    folder, manifest = source
    dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=17))
    batch = torch.utils.data.default_collate([dataset[0], dataset[1]])
    assert batch.dtype == torch.uint16
    assert batch.long().flatten().tolist() == tokens_in(folder)[:34]
    assert manifest.dtype == "uint16"


def test_the_manifest_on_disk_says_what_was_made_from_what(source, corpus, tokenizer):
    folder, manifest = source
    assert Manifest.load(folder) == manifest
    assert [Path(file.path).name for file in manifest.inputs] == [
        "a.jsonl", "b.jsonl.gz", "c.parquet", "d.txt", "e.jsonl.zst",
    ]  # fmt: skip
    gz = manifest.inputs[1]
    assert gz.sha256 == (hashlib.sha256((corpus[0] / "b.jsonl.gz").read_bytes()).hexdigest(),)
    data = (corpus[0] / "a.jsonl").read_bytes()
    pieces = len(manifest.inputs[0].sha256)
    assert pieces > 1
    assert manifest.inputs[0].sha256[0] == hashlib.sha256(data[: len(data) // pieces]).hexdigest()
    assert manifest.tokenizer.fingerprint == tokenizer_fingerprint(AutoTokenizer.from_pretrained(tokenizer))
    assert manifest.tokenizer.eos_token == "<|end|>"


def test_nothing_but_chunks_indexes_and_the_manifest_remains(source):
    names = {path.name for path in source[0].iterdir()}
    assert {"index.json", "manifest.json", "validation"} <= names
    assert all(name.startswith("chunk-") for name in names - {"index.json", "manifest.json", "validation"})


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(workers, source, corpus, tokenizer, tmp_path):
    prepare_source([str(corpus[0])], tokenizer, tmp_path / "again", SETTINGS, workers=workers)
    assert content(tmp_path / "again") == content(source[0])


# a second run


def test_a_second_run_of_a_finished_source_does_nothing(source, corpus, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    before = content(source[0])
    with caplog.at_level("INFO"):
        assert prepare_source([str(corpus[0])], tokenizer, source[0], SETTINGS) == source[1]
    assert "is finished already" in caplog.text
    assert content(source[0]) == before


@pytest.mark.slow
def test_a_killed_run_is_continued_to_the_same_bytes_and_finished_parts_are_kept(source, corpus, tokenizer, tmp_path):
    output = tmp_path / "killed"
    code = (
        "import sys; from lit_cpt.prepare import *; prepare_source([sys.argv[1]], sys.argv[2], sys.argv[3], "
        "PrepareSettings(validation=0.1, part_bytes=6000, chunk_bytes=4000), workers=1)"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(corpus[0]), tokenizer, str(output)])
    first = output / ".prepare" / "part-000000" / "chunk-0-0.bin"
    while not first.exists():
        assert run.poll() is None
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (output / "manifest.json").exists()
    assert not (output / "index.json").exists()
    written = first.stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"unfinished preparation that differs: validation was 0\.1 and is 0\.2"):
        prepare([str(corpus[0])], tokenizer, str(output), validation=0.2)
    prepare_source([str(corpus[0])], tokenizer, output, SETTINGS, workers=2)
    assert content(output) == content(source[0])
    assert (output / "chunk-0-0.bin").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (PrepareSettings(validation=0.2, part_bytes=6000, chunk_bytes=4000), "validation was 0.1 and is 0.2"),
        (PrepareSettings(validation=0.1, part_bytes=7000, chunk_bytes=4000), "part_bytes was 6000 and is 7000"),
    ],
)
def test_other_settings_are_refused_by_name(settings, what, source, corpus, tokenizer):
    with pytest.raises(ValueError, match=f"a finished preparation that differs: {what}.*or pass --overwrite"):
        prepare_source([str(corpus[0])], tokenizer, source[0], settings)


def test_other_inputs_and_another_tokenizer_are_refused_by_name(source, corpus, tokenizer, tmp_path):
    other = tmp_path / "more.txt"
    other.write_text("more")
    with pytest.raises(ValueError, match=r"input .*more\.txt is new"):
        prepare_source([str(corpus[0]), str(other)], tokenizer, source[0], SETTINGS)
    with pytest.raises(ValueError, match=r"input .*b\.jsonl\.gz is no longer named"):
        prepare_source([str(corpus[0] / "a.jsonl")], tokenizer, source[0], SETTINGS)
    another = save_tokenizer(tmp_path / "another", eos="<|begin|>")
    with pytest.raises(ValueError, match=r"tokenizer was .* and is .*another"):
        prepare_source([str(corpus[0])], str(another), source[0], SETTINGS)


def test_a_job_names_every_way_inputs_can_differ():
    file, other = InputFile("/a", 10, 1), InputFile("/b", 10, 1)
    job = Job(PrepareSettings(), "t", None, (file, other), ())
    for inputs, what in [
        ((InputFile("/a", 11, 1), other), "input /a had 11 bytes and has 10"),
        ((InputFile("/a", 10, 2), other), "input /a has changed since"),
        ((other, file), "the inputs come in another order"),
    ]:
        assert job.differences(job.identity(), inputs) == [what]
    assert job.differences(job.identity(), job.inputs) == []


def test_an_output_that_holds_something_else_is_refused_and_kept(corpus, tokenizer, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"holds something else \('thesis.tex'\); nothing was deleted"):
            prepare([str(corpus[0])], tokenizer, str(tmp_path), overwrite=overwrite)
    with pytest.raises(ValueError, match=r"thesis.tex' is a file; name a new folder"):
        prepare([str(corpus[0])], tokenizer, str(tmp_path / "thesis.tex"))
    assert (tmp_path / "thesis.tex").read_text() == "dear"


def test_overwriting_removes_only_what_a_preparation_wrote(tmp_path):
    for name in ("manifest.json", "index.json", "chunk-0-0.bin", "notes.md", "chunk.bin"):
        (tmp_path / name).write_text("")
    (tmp_path / "validation").mkdir()
    remove(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunk.bin", "notes.md"]


def test_two_runs_in_one_output_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_cpt.prepare.run.LOCK_WAIT_SECONDS", 0)
    with locked(tmp_path), pytest.raises(ValueError, match="another `lit-cpt prepare` is at work"), locked(tmp_path):
        pass


# bad input


def test_a_bad_line_stops_the_run_and_skip_continues_past_it(tokenizer, tmp_path):
    path, output = tmp_path / "a.jsonl", tmp_path / "out"
    good = "".join(json.dumps({"text": text}) + "\n" for text in sentences(30))
    path.write_text(good + '{"body": 1}\n' + '{"text": " "}\n' + good)
    settings = PrepareSettings(validation=0, part_bytes=3000)
    with pytest.raises(ValueError, match=rf"^{path}:31: no key 'text'; the keys are 'body'. Mend it, .+ skip"):
        prepare_source([str(path)], tokenizer, output, settings, workers=2)
    assert not (output / "index.json").exists()
    manifest = prepare_source(
        [str(path)], tokenizer, output, PrepareSettings(validation=0, part_bytes=3000, on_error="skip"), workers=2
    )
    assert manifest.skipped == (f"{path}:31: no key 'text'; the keys are 'body'",)
    assert (manifest.skipped_documents, manifest.empty_documents, manifest.train.documents) == (1, 1, 60)
    assert not (output / "validation").exists()


def test_inputs_without_text_and_a_tokenizer_without_eos_are_refused(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no document of the inputs has any text"):
        prepare([str(tmp_path / "a.txt")], tokenizer, str(tmp_path / "out"))
    without = str(save_tokenizer(tmp_path / "without", eos=None))
    with pytest.raises(ValueError, match=r"without' has no EOS token, which ends every document. Set one: `Auto"):
        tokenizer_facts(load_tokenizer(without), without)


def test_a_full_disk_is_told_as_one_and_nothing_is_published(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(sentences(3000)))
    code = (
        "import sys; from lit_cpt.prepare import prepare\n"
        "try: prepare([sys.argv[1]], sys.argv[2], sys.argv[3], validation=0)\n"
        "except OSError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.txt"), tokenizer, str(tmp_path / "out")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
    )
    assert "[Errno 27] File too large; nothing was published. Mend it and run the same command" in run.stdout
    assert not (tmp_path / "out" / "index.json").exists()


def test_errors_of_the_crew_arrive_as_their_kind():
    assert type(error_of({"error": "RuntimeError", "message": "killed", "errno": 0})) is RuntimeError
    full = error_of({"error": "OSError", "message": "No space left on device", "errno": 28})
    assert (type(full), full.errno) == (OSError, 28)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"validation": 1.0}, "validation=1.0 is no share; give a number from 0"),
        ({"validation": float("nan")}, "validation=nan is no share"),
        ({"format": "csv"}, "format='csv' is not known; choose one of auto, jsonl, parquet, txt"),
        ({"on_error": "ignore"}, "on_error='ignore' is not known; choose one of fail, skip"),
        ({"txt_document": "page"}, "txt_document='page' is not known"),
        ({"part_bytes": 0}, "part_bytes=0 is too small"),
    ],
)
def test_settings_out_of_range_are_refused(change, what):
    with pytest.raises(ValueError, match=what):
        PrepareSettings(**change)


def test_workers_and_remote_outputs_are_checked_before_any_work():
    with pytest.raises(ValueError, match="workers=0 is too few"):
        prepare([], "t", "o", workers=0)
    with pytest.raises(ValueError, match="'s3://bucket' is no local folder"):
        prepare([], "t", "s3://bucket")


# which files, which parts


def test_files_folders_and_globs_name_each_file_once(corpus):
    folder = corpus[0]
    found = find_inputs([f"{folder}/d.txt", f"{folder}/**/*.zst", str(folder)])
    assert [Path(file.path).name for file, _ in found] == [
        "d.txt", "e.jsonl.zst", "a.jsonl", "b.jsonl.gz", "c.parquet",
    ]  # fmt: skip


def test_a_glob_with_a_format_reads_any_suffix(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "b.md").write_text("# b")
    assert [format for _, format in find_inputs([f"{tmp_path}/*.py"], "txt")] == ["txt"]
    with pytest.raises(ValueError, match=r"a.py: unknown suffix '.py'; known are .*pass --format"):
        find_inputs([f"{tmp_path}/*.py"])
    with pytest.raises(FileNotFoundError, match=r"holds no .* file \(it holds 1 .py, 1 .md\). Name other suffixes"):
        find_inputs([str(tmp_path)])


@pytest.mark.parametrize(
    ("given", "what"), [("nowhere.txt", "'nowhere.txt' does not exist"), ("*.nothing", "matches no file")]
)
def test_an_input_that_names_nothing_is_refused(given, what):
    with pytest.raises(FileNotFoundError, match=what):
        find_inputs([given])


def test_no_input_and_compressed_parquet_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no input given"):
        find_inputs([])
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="a compressed parquet file cannot be read"):
        find_inputs([str(tmp_path / "a.parquet.gz")])


def test_parts_tile_large_files_and_gather_small_ones():
    big, small, packed = InputFile("/big.jsonl", 1000, 0), InputFile("/s.txt", 30, 0), InputFile("/z.gz", 500, 0)
    parts = cut([(big, "jsonl"), (small, "txt"), (small, "txt"), (packed, "jsonl"), (small, "txt")], True, 300)
    assert [[(piece.path, piece.start, piece.stop) for piece in part.pieces] for part in parts] == [
        [("/big.jsonl", 0, 250)],
        [("/big.jsonl", 250, 500)],
        [("/big.jsonl", 500, 750)],
        [("/big.jsonl", 750, 1000), ("/s.txt", 0, 30)],
        [("/s.txt", 0, 30)],
        [("/z.gz", 0, 500)],
        [("/s.txt", 0, 30)],
    ]
    assert len(cut([(InputFile("/big.txt", 1000, 0), "txt")], by_line=False, part_bytes=300)) == 1
    assert len(cut([(InputFile("/big.txt", 1 << 25, 0), "txt")], by_line=True)) == 8


# tokens


def test_the_split_depends_on_the_text_alone_and_grows_with_the_share():
    texts = sentences(2000)
    small = {text for text in texts if in_validation(text, 0.05)}
    large = {text for text in texts if in_validation(text, 0.1)}
    assert small < large
    assert 60 < len(small) < 140
    assert not any(in_validation(text, 0) for text in texts)


def stream_of(path, encoder, **settings):
    part = Part(0, (Piece(str(path), "jsonl", 0, path.stat().st_size),))
    return TokenStream(part, PrepareSettings(**settings), encoder, np.dtype(np.uint16))


def test_a_stream_counts_what_it_leaves_out(encoder, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": " \\n"}\nbroken\n')
    stream = stream_of(path, encoder, on_error="skip", validation=0.0)
    train = np.concatenate([train for train, _ in stream])
    assert train.tolist() == flat(encoder, ["a"])
    assert (stream.record.empty, stream.record.skipped, stream.record.train_tokens) == (1, 1, 2)
    assert stream.record.bytes == path.stat().st_size
    with pytest.raises(UnreadableInput, match=f"^{path}:3: broken JSON"):
        list(stream_of(path, encoder))


def test_the_listed_faults_are_capped_and_the_count_is_not(encoder, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("x\n" * 1500)
    stream = stream_of(path, encoder, on_error="skip")
    list(stream)
    assert (stream.record.skipped, len(stream.record.faults)) == (1500, 1000)


def test_bos_begins_every_document_when_asked(tokenizer):
    loaded = AutoTokenizer.from_pretrained(tokenizer, bos_token="<|begin|>")
    begin, end = loaded.bos_token_id, loaded.eos_token_id
    ids = Encoder(loaded, tokenizer_facts(loaded, tokenizer, bos=True))(["a b", "c"])
    assert all(document[0] == begin and document[-1] == end for document in ids)
    with pytest.raises(ValueError, match="has no BOS token, which begins every document"):
        tokenizer_facts(AutoTokenizer.from_pretrained(tokenizer), tokenizer, bos=True)


def test_a_tokenizer_without_rust_backend_works_too(tmp_path):
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    facts = tokenizer_facts(slow, "byt5")
    assert Encoder(slow, facts)(["ab", "c"]) == [[100, 101, 1], [102, 1]]
    assert facts.fingerprint == tokenizer_fingerprint(ByT5Tokenizer())
    assert facts.fingerprint != tokenizer_fingerprint(ByT5Tokenizer(extra_ids=10))


def test_the_fingerprint_survives_saving_and_ignores_padding_but_not_tokens(tokenizer, tmp_path):
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    before = tokenizer_fingerprint(loaded)
    loaded.save_pretrained(tmp_path)
    loaded.backend_tokenizer.enable_padding(length=7)
    loaded.backend_tokenizer.enable_truncation(5)
    assert tokenizer_fingerprint(loaded) == before
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == before
    assert tokenizer_fingerprint(Tokenizer.from_file(f"{tokenizer}/tokenizer.json")) == before
    loaded.add_tokens(["new"])
    assert tokenizer_fingerprint(loaded) != before


def test_tokens_take_two_bytes_where_the_vocabulary_allows():
    assert [dtype_of(size) for size in (300, 65_535, 65_536, 128_256)] == ["uint16", "uint16", "int32", "int32"]


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer '\./nowhere' is no folder"):
        files_digest("./nowhere")
    with pytest.raises(ValueError, match="cannot load tokenizer .* Give a folder that `save_pretrained` wrote"):
        load_tokenizer(str(tmp_path))


def test_real_question_and_answer_data_makes_documents_by_a_template(tokenizer):
    path = REAL / "text" / "gsm8k_train.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    part = Part(0, (Piece(str(path), "jsonl", 0, os.path.getsize(path)),))
    settings = PrepareSettings(text_template="Question: {question}\nAnswer: {answer}")
    first = next(TokenStream(part, settings, None, np.dtype(np.uint16)).documents())
    assert first.startswith("Question: Natalia sold clips")
    assert "\nAnswer: " in first
