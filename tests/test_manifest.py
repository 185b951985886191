import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from lit_cpt.manifest import FORMAT_VERSION, InputFile, Manifest, Split, TokenizerFacts, write_json


@pytest.fixture
def manifest():
    return Manifest(
        tokenizer=TokenizerFacts("gpt2", "sha256:ab", 50257, "<|endoftext|>", 50256),
        dtype="uint16",
        train=Split(tokens=100, documents=9, chunks=1),
        validation=Split(tokens=0, documents=0, chunks=0),
        empty_documents=2,
        skipped_documents=1,
        skipped=("a.jsonl:3: broken JSON",),
        inputs=(InputFile("/data/a.jsonl", 1234, 5, ("cd", "ef")),),
        settings={"text_key": "text", "validation": 0.005},
        versions={"litdata": "0.2.76"},
    )


def test_a_saved_manifest_loads_as_it_was(manifest, tmp_path):
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert json.loads((tmp_path / "manifest.json").read_text())["format_version"] == FORMAT_VERSION


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder '.*nowhere'; name one that `lit-cpt prepare`"):
        Manifest.load(tmp_path / "nowhere")


def test_a_folder_without_manifest_is_no_prepared_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a prepared source \(it has no manifest.json\); run"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"format_version": 1}', '{"format_version": 1, "inputs": [3]}', "\x00"]
)
def test_a_damaged_manifest_is_refused_with_its_cure(content, tmp_path):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest.json is damaged \(.*prepare the source again with --overwrite"):
        Manifest.load(tmp_path)


def test_a_manifest_with_an_unknown_field_is_damaged(manifest, tmp_path):
    write_json(tmp_path / "manifest.json", {"format_version": 1, **asdict(manifest), "colour": "red"})
    with pytest.raises(ValueError, match="damaged .*colour"):
        Manifest.load(tmp_path)


def test_a_newer_format_asks_for_an_upgrade(manifest, tmp_path):
    write_json(tmp_path / "manifest.json", {**asdict(manifest), "format_version": 99})
    with pytest.raises(ValueError, match="format version 99; this lit_cpt reads up to 1. Upgrade lit_cpt"):
        Manifest.load(tmp_path)


def test_a_failed_save_leaves_the_old_manifest(manifest, tmp_path):
    manifest.save(tmp_path)
    with pytest.raises(TypeError):
        replace(manifest, settings={"text_key": object()}).save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_reading_a_manifest_imports_no_torch():
    code = "import sys, lit_cpt.manifest; assert not {'torch', 'litdata', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
