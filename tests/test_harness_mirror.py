"""The mirror of evaluation data: fetched from a hub on the loopback or from a folder, and checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from harness_world import build_mirror, whole_mirror
from hub_server import serving

from lit_cpt.cli import main
from lit_cpt.harness.families import FAMILIES
from lit_cpt.harness.fetching import complete_header, configs_by_place, fetch
from lit_cpt.harness.mirror import MANIFEST, check, data_hash, mmlu_subjects, needs, read_configs, write_manifest

REPOSITORIES = ("cais/mmlu", "Rowan/hellaswag", "openai/openai_humaneval", "juletxara/mgsm")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_mirror(tmp_path_factory.mktemp("whole") / "mirror")


@pytest.fixture
def mirror(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "mirror"))


def test_a_whole_mirror_has_no_problems(mirror):
    assert check(mirror) == []
    assert len(mmlu_subjects()) == 57
    assert set(needs()) == {repository for one in FAMILIES.values() for repository in one.repositories}


def test_check_names_what_is_missing(mirror, tmp_path):
    assert "is not a folder" in check(tmp_path / "nowhere")[0]
    shutil.rmtree(mirror / "Rowan")
    (mirror / "cais/mmlu/anatomy/test-00000-of-00001.parquet").unlink()
    problems = " ".join(check(mirror))
    assert "Rowan/hellaswag is missing" in problems
    assert "cais/mmlu has no files for split 'test' of 'anatomy'" in problems
    assert "anatomy/test-00000-of-00001.parquet is in the manifest but not in the mirror" in problems
    assert check(mirror, ["juletxara/mgsm"]) == []


def test_check_finds_a_changed_file_and_one_that_was_added(mirror):
    first, second = sorted((mirror / "juletxara/mgsm/es").glob("*.parquet"))
    shutil.copy(first, second)
    shutil.copy(first, mirror / "juletxara/mgsm/es/extra.parquet")
    problems = check(mirror)
    assert any("train-00000-of-00001.parquet has sha256" in problem for problem in problems)
    assert any("extra.parquet is not in the manifest" in problem for problem in problems)
    (mirror / MANIFEST).unlink()
    assert any(f"{MANIFEST} is missing" in problem for problem in check(mirror))


def test_a_repository_without_a_header_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="README.md is missing"):
        read_configs(tmp_path)
    (tmp_path / "README.md").write_text("# nothing\n")
    with pytest.raises(ValueError, match="README.md has no configs: header"):
        read_configs(tmp_path)


def test_the_hash_of_a_repository_follows_its_content(mirror):
    before = data_hash(mirror, "juletxara/mgsm")
    assert before == data_hash(mirror, "juletxara/mgsm")
    first, second = sorted((mirror / "juletxara/mgsm/es").glob("*.parquet"))
    shutil.copy(first, second)
    assert data_hash(mirror, "juletxara/mgsm") != before


def test_the_manifest_forgets_files_that_are_gone(mirror):
    shutil.rmtree(mirror / "Rowan")
    write_manifest(mirror, ["juletxara/mgsm"])
    assert not [name for name in json.loads((mirror / MANIFEST).read_text()) if name.startswith("Rowan")]


# Fetching ----------------------------------------------------------------------------------------------


def command(address, *arguments, **environment):
    """`lit-cpt eval-data` in a process whose hub is at ``address``."""
    return subprocess.run([sys.executable, "-m", "lit_cpt", "eval-data", *arguments], capture_output=True, text=True,
                          check=False, timeout=120, env={**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0",
                                                         "HF_HUB_DISABLE_XET": "1", **environment})


def hub_of(mirror):
    return {(name, "main"): mirror / name for name in REPOSITORIES}


def test_a_mirror_comes_from_the_hub_and_a_second_fetch_brings_only_what_is_missing(whole, tmp_path):
    data = tmp_path / "data"
    with serving(hub_of(whole)) as (hub, address):
        ran = command(address, "fetch", "--data", str(data))
        assert (ran.returncode, ran.stderr.count("->")) == (0, 4), ran.stderr
        assert "whole" in ran.stdout
        assert json.loads((data / MANIFEST).read_text()) == json.loads((whole / MANIFEST).read_text())
        (data / "Rowan/hellaswag/default/train-00000-of-00001.parquet").unlink()
        hub.asked.clear()
        assert command(address, "fetch", "--data", str(data), "--families", "hellaswag").returncode == 0
        brought = [line for line in hub.asked if line.startswith("GET") and "resolve" in line]
        assert len(brought) == 1
        assert "train-00000" in brought[0]
    assert check(data) == []
    found = datasets.load_dataset(str(data / "cais/mmlu"), "anatomy", cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"dev", "test"}


def test_only_what_the_families_read_is_fetched(whole, tmp_path):
    origin = Path(shutil.copytree(whole, tmp_path / "origin"))
    (origin / "cais/mmlu/auxiliary_train").mkdir()
    (origin / "cais/mmlu/auxiliary_train/train-00000-of-00001.parquet").write_bytes(b"large")
    with serving(hub_of(origin)) as (hub, address):
        assert command(address, "fetch", "--data", str(tmp_path / "data"), "--families", "mmlu").returncode == 0
    assert not [line for line in hub.asked if "auxiliary_train" in line]


def test_a_repository_without_parquet_files_is_taken_from_the_hubs_conversion(whole, tmp_path):
    script, converted = tmp_path / "script", tmp_path / "converted"
    script.mkdir()
    (script / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# MGSM\n")
    (script / "mgsm.py").write_text("# a loading script\n")
    for language in ("es", "ja", "th"):
        for split in ("train", "test"):
            place = converted / language / split / "0000.parquet"
            place.parent.mkdir(parents=True)
            shutil.copy(whole / f"juletxara/mgsm/{language}/{split}-00000-of-00001.parquet", place)
    revisions = {("juletxara/mgsm", "main"): script, ("juletxara/mgsm", "refs/convert/parquet"): converted}
    with serving(revisions) as (_, address):
        ran = command(address, "fetch", "--data", str(tmp_path / "data"), "--families", "mgsm")
    assert ran.returncode == 0, ran.stderr
    readme = (tmp_path / "data/juletxara/mgsm/README.md").read_text()
    assert "license: cc-by-4.0" in readme
    assert "# MGSM" in readme
    assert set(read_configs(tmp_path / "data/juletxara/mgsm")) == {"es", "ja", "th"}


@pytest.mark.parametrize(("status", "said"), [(401, "refuses it"), (404, "refuses it")])
def test_a_hub_that_refuses_is_one_line(whole, tmp_path, status, said):
    with serving(hub_of(whole)) as (hub, address):
        hub.fails = {"/revision/": [status] * 9}
        ran = command(address, "fetch", "--data", str(tmp_path / "data"), "--families", "humaneval")
    assert ran.returncode == 1
    assert f"openai/openai_humaneval cannot be fetched: {address} {said}" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "data" / MANIFEST).exists()


def test_a_hub_that_does_not_answer_and_one_that_is_switched_off_are_one_line(tmp_path):
    ran = command("http://127.0.0.1:9", "fetch", "--data", str(tmp_path / "data"), "--families", "humaneval")
    assert (ran.returncode, "does not answer" in ran.stderr, "Traceback" in ran.stderr) == (1, True, False)
    ran = command("http://127.0.0.1:9", "fetch", "--data", str(tmp_path / "data"), HF_HUB_OFFLINE="1")
    assert (ran.returncode, "HF_HUB_OFFLINE is set" in ran.stderr) == (1, True)


def test_a_mirror_comes_from_another_folder(whole, tmp_path, capsys):
    assert main(["eval-data", "fetch", "--data", str(tmp_path / "data"), "--from", str(whole)]) == 0
    assert check(tmp_path / "data") == []
    with pytest.raises(FileNotFoundError, match="no/such/cais/mmlu: there is no such folder"):
        fetch(tmp_path / "other", source="no/such")


def test_what_arrives_and_cannot_be_used_is_refused(tmp_path):
    few = build_mirror(tmp_path / "few")
    with pytest.raises(ValueError, match="not what the families read: cais/mmlu lacks config 'abstract_algebra'"):
        fetch(tmp_path / "new", ["cais/mmlu"], source=few)


def test_a_header_tells_where_the_files_lie(tmp_path):
    for name in ("es/test-00000-of-00001.parquet", "es/train.parquet", "ja/test/0000.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert configs_by_place(tmp_path) == [
        {"config_name": "es", "data_files": [{"split": "test", "path": "es/test*"},
                                             {"split": "train", "path": "es/train*"}]},
        {"config_name": "ja", "data_files": [{"split": "test", "path": "ja/test/*.parquet"}]}]
    complete_header(tmp_path)
    assert {config: set(splits) for config, splits in read_configs(tmp_path).items()} == {
        "es": {"test", "train"}, "ja": {"test"}}
