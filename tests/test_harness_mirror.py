"""The mirror of evaluation data: fetched from a hub on the loopback or from a folder, and checked."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from harness_world import build_mirror, whole_mirror
from hub_server import serving

from lit_cpt.cli import main
from lit_cpt.harness.checking import check
from lit_cpt.harness.families import FAMILIES
from lit_cpt.harness.fetching import REVISIONS, fetch, patterns_by_place, write_header
from lit_cpt.harness.hub import refusals
from lit_cpt.harness.mirror import (
    MANIFEST,
    data_hash,
    mmlu_subjects,
    needs,
    read_configs,
    read_header,
    read_patterns,
    write_manifest,
)
from lit_cpt.remote import Unreachable

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
        assert [line.rpartition("/")[2] for line in brought] == ["README.md", "train-00000-of-00001.parquet"]
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


def test_a_header_names_what_is_here_and_keeps_the_rest(tmp_path):
    for name in ("es/test-00000-of-00001.parquet", "es/train.parquet", "ja/test/0000.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "README.md").write_text("---\nlicense: mit\ndataset_info: {}\n---\n# MGSM\n---\nend\n")
    places = patterns_by_place(["es/test-00000-of-00001.parquet", "es/train.parquet", "ja/test/0000.parquet",
                                "fr/test/0000.parquet", "README.md"])
    write_header(tmp_path, places)
    assert read_patterns(tmp_path) == {"es": {"test": ("es/test*",), "train": ("es/train*",)},
                                       "ja": {"test": ("ja/test/*.parquet",)}}
    text = (tmp_path / "README.md").read_text()
    assert "license: mit" in text
    assert "dataset_info" not in text
    assert text.endswith("---\n# MGSM\n---\nend\n")


def damage(path):
    """Turn one bit in a page and leave the file's time as it was: what a failing disk does."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


HUMANEVAL = "openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet"


def test_a_fetch_mends_a_damaged_file(whole, tmp_path):
    data = tmp_path / "data"
    with serving(hub_of(whole)) as (hub, address):
        assert command(address, "fetch", "--data", str(data), "--families", "humaneval").returncode == 0
        damage(data / HUMANEVAL)
        assert command(address, "check", "--data", str(data), "--families", "humaneval").returncode == 2
        assert command(address, "fetch", "--data", str(data), "--families", "humaneval").returncode == 0
    assert (data / HUMANEVAL).read_bytes() == (whole / HUMANEVAL).read_bytes()
    revisions = json.loads((data / REVISIONS).read_text())
    assert revisions == {"openai/openai_humaneval": hub.commit("openai/openai_humaneval", "main")}


@pytest.mark.parametrize("status", [None, 404, 503])
def test_a_damaged_file_is_never_called_whole_because_the_hub_is_away(whole, mirror, status):
    damage(mirror / HUMANEVAL)
    before = (mirror / MANIFEST).read_bytes()
    with serving(hub_of(whole)) as (hub, address):
        hub.fails = {"/revision/": [status] * 9}
        asked = address if status else "http://127.0.0.1:9"
        ran = command(asked, "fetch", "--data", str(mirror), "--families", "humaneval")
    assert (ran.returncode, "openai/openai_humaneval cannot be fetched" in ran.stderr) == (1, True), ran.stderr
    assert (mirror / MANIFEST).read_bytes() == before
    assert "has sha256" in " ".join(check(mirror, ["openai/openai_humaneval"]))


def test_the_manifest_still_accuses_a_damaged_file_that_was_not_fetched_anew(whole, mirror):
    damage(mirror / "juletxara/mgsm/ja/test-00000-of-00001.parquet")
    fetch(mirror, ["juletxara/mgsm"], ["es"], source=whole)
    assert "mgsm/ja/test-00000-of-00001.parquet has sha256" in " ".join(check(mirror, ["juletxara/mgsm"]))


def test_a_connection_cut_once_is_resumed_and_one_always_cut_is_one_line(whole, tmp_path):
    with serving(hub_of(whole)) as (hub, address):
        hub.cuts = {"test-00000": 1}
        ran = command(address, "fetch", "--data", str(tmp_path / "once"), "--families", "humaneval")
        assert ran.returncode == 0, ran.stderr
        hub.cuts = {"test-00000": 99}
        ran = command(address, "fetch", "--data", str(tmp_path / "always"), "--families", "humaneval")
    assert (ran.returncode, "does not answer (peer closed" in ran.stderr, "Traceback" in ran.stderr) == (1, True, False)
    assert check(tmp_path / "once", ["openai/openai_humaneval"]) == []
    assert check(tmp_path / "always", ["openai/openai_humaneval"]) != []


def test_what_is_not_as_the_hub_tells_is_not_called_whole(whole, tmp_path):
    with serving(hub_of(whole)) as (hub, address):
        hub.lies = {HUMANEVAL.removeprefix("openai/openai_humaneval/")}
        ran = command(address, "fetch", "--data", str(tmp_path / "data"), "--families", "humaneval")
    assert (ran.returncode, "openai/openai_humaneval did not arrive whole" in ran.stderr) == (1, True), ran.stderr
    assert not (tmp_path / "data" / MANIFEST).exists()


def test_a_full_disk_is_not_laid_to_the_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match="No space left") as raised, refusals("cais/mmlu"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not isinstance(raised.value, Unreachable)


def test_a_mirror_of_a_part_of_a_repository_is_loaded_by_datasets(whole, tmp_path):
    """The hub's README names more: configs that stand first and are not fetched, splits, expected counts."""
    origin, data = Path(shutil.copytree(whole, tmp_path / "origin")), tmp_path / "data"
    for name, config, more in (("cais/mmlu", "anatomy", "all"), ("juletxara/mgsm", "es", "bn")):
        shutil.copytree(origin / name / config, origin / name / more)
        header = read_header((origin / name / "README.md").read_text())
        for one in header["configs"]:
            one["data_files"] = [*one["data_files"],
                                 {"split": "validation", "path": f"{one['config_name']}/validation-*"}]
        header["configs"] = [{"config_name": more, "data_files": f"{more}/test-*"}, *header["configs"]]
        header["dataset_info"] = [{"config_name": config, "splits": [
            {"name": split, "num_bytes": 9, "num_examples": 9} for split in ("dev", "train", "test", "validation")]}]
        (origin / name / "README.md").write_text(f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n")
    with serving(hub_of(origin)) as (_, address):
        ran = command(address, "fetch", "--data", str(data), "--families", "mmlu,mgsm", "--languages", "es,ja")
        assert ran.returncode == 0, ran.stderr
        ran = command(address, "fetch", "--data", str(data), "--families", "mgsm", "--languages", "th")
        assert ran.returncode == 0, ran.stderr
    for name, config, splits in (("cais/mmlu", "anatomy", {"dev", "test"}), ("juletxara/mgsm", "es", {"train", "test"}),
                                 ("juletxara/mgsm", "th", {"train", "test"})):
        assert set(datasets.load_dataset(str(data / name), config, cache_dir=str(tmp_path / "cache"))) == splits
    assert list(read_configs(data / "juletxara/mgsm")) == ["es", "ja", "th"]


def test_files_are_found_where_the_header_says(whole, tmp_path):
    origin = tmp_path / "origin"
    for language in ("es", "ja", "th"):
        shutil.copytree(whole / "juletxara/mgsm" / language, origin / "data" / language)
    configs = [{"config_name": language, "data_files": [
        {"split": split, "path": f"data/{language}/{split}-*"} for split in ("train", "test")]}
        for language in ("es", "ja", "th")]
    (origin / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    with serving({("juletxara/mgsm", "main"): origin}) as (_, address):
        ran = command(address, "fetch", "--data", str(tmp_path / "data"), "--families", "mgsm")
    assert ran.returncode == 0, ran.stderr
    assert check(tmp_path / "data", ["juletxara/mgsm"]) == []


def test_a_repository_that_has_no_parquet_files_anywhere_says_so(tmp_path):
    (tmp_path / "script").mkdir()
    (tmp_path / "script/README.md").write_text("# MGSM\n")
    with serving({("juletxara/mgsm", "main"): tmp_path / "script"}) as (_, address):
        ran = command(address, "fetch", "--data", str(tmp_path / "data"), "--families", "mgsm")
    assert (ran.returncode, "and the hub's conversion has nothing" in ran.stderr) == (2, True), ran.stderr


def test_a_damaged_copy_is_refused_and_leaves_nothing(whole, tmp_path):
    stick = Path(shutil.copytree(whole, tmp_path / "stick"))
    damage(stick / HUMANEVAL)
    with pytest.raises(ValueError, match="test-00000-of-00001.parquet has sha256 .*, the manifest beside it says"):
        fetch(tmp_path / "data", ["openai/openai_humaneval"], source=stick)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    (stick / MANIFEST).unlink()
    (stick / HUMANEVAL).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="test-00000-of-00001.parquet is not a parquet file"):
        fetch(tmp_path / "data", ["openai/openai_humaneval"], source=stick)


def test_a_mirror_is_not_fetched_from_itself_or_into_a_file(mirror, tmp_path):
    with pytest.raises(ValueError, match="mirror is the mirror itself"):
        fetch(mirror, source=mirror)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; the mirror is a folder"):
        fetch(tmp_path / "file", source=mirror)


# What check reads --------------------------------------------------------------------------------------


def test_check_wants_rows_and_the_columns_that_tasks_read(mirror):
    for table, said in ((pa.table({"foo": [1]}), "lacks column question, answer, answer_number; it has foo"),
                        (pa.table({"question": pa.array([], pa.string())}), "has no rows")):
        pq.write_table(table, mirror / "juletxara/mgsm/es/test-00000-of-00001.parquet")
        write_manifest(mirror, ["juletxara/mgsm"])
        assert said in " ".join(check(mirror, ["juletxara/mgsm"]))
    (mirror / "juletxara/mgsm/es/test-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert "cannot be read as parquet" in " ".join(check(mirror, ["juletxara/mgsm"]))


@pytest.mark.parametrize("text", ["[]", '{"a": 3}', "{"])
def test_a_manifest_that_is_none_is_one_problem(mirror, text):
    (mirror / MANIFEST).write_text(text)
    assert "MANIFEST.json cannot be read" in check(mirror)[0]
    write_manifest(mirror, REPOSITORIES)
    assert check(mirror) == []


@pytest.mark.parametrize(("header", "said"), [
    ("configs:\n- data_files: x", "has a configs: header that cannot be read (KeyError('config_name'))"),
    ("configs:\n- config_name: x", "has a configs: header that cannot be read (KeyError('data_files'))"),
    ("configs: [", "has no configs: header"),
])
def test_a_header_that_is_none_is_one_problem(mirror, header, said):
    (mirror / "openai/openai_humaneval/README.md").write_text(f"---\n{header}\n---\n")
    assert said in check(mirror, ["openai/openai_humaneval"])[0]


def test_the_forms_that_data_files_may_have_are_read(tmp_path):
    configs = [{"config_name": "a", "data_files": "a/*"}, {"config_name": "b", "data_files": ["x/*", "y/*"]},
               {"config_name": "c", "data_files": [{"split": "test", "path": ["x/*", "y/*"]}]}]
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    assert read_patterns(tmp_path) == {"a": {"train": ("a/*",)}, "b": {"train": ("x/*", "y/*")},
                                       "c": {"test": ("x/*", "y/*")}}
