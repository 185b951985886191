"""Metadata of remote sources: whole or not at all, tried again where that helps and refused where it does not."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from conftest import write_source
from litdata import StreamingDataset, TokensLoader
from object_store import EXPIRED, Fault, object_store_fixture  # noqa: F401

from lit_cpt import remote
from lit_cpt.manifest import Manifest
from lit_cpt.remote import Fetcher, Storage, Unreachable, is_remote, refusal, stage_metadata, status_of
from lit_cpt.shelf import Shelf

ROWS = 64
DENIED = Fault("error", status=403, code="AccessDenied", match="", method="")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("remote") / "web", 0, ROWS)


@pytest.fixture
def url(object_store, source):
    return object_store.upload(source, "metadata/web")


def storage_of(object_store, retry_seconds=20.0):
    return Storage(object_store.options(), retry_seconds=retry_seconds, attempt_seconds=5.0)


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(("folder", "claim"), [
    ("s3://bucket/web", True), ("gs://bucket/web", True), ("azure://box/web", True), ("r2://bucket/web", True),
    ("hf://datasets/me/web", True), ("local:/data/web", True), ("/data/web", False), ("data/web", False),
    ("data/a:b", False), (Path("/data/web"), False)])
def test_a_folder_is_remote_where_litdata_has_a_downloader_for_it(folder, claim):
    assert is_remote(folder) == claim


@pytest.mark.parametrize("name", ["retry_seconds", "attempt_seconds"])
def test_storage_wants_seconds(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be above 0"):
        Storage(**{name: 0})


def test_what_is_staged_is_the_source_without_its_chunks(object_store, url, source, tmp_path):
    folder = stage_metadata(url + "/", tmp_path, storage_of(object_store))
    wanted = {name: content for name, content in everything(source).items() if not name.endswith(".bin")}
    assert everything(folder) == wanted
    assert set(wanted) == {"manifest.json", "index.json", "validation/index.json"}
    assert Manifest.load(folder) == Manifest.load(source)
    blocks = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=9))
    assert len(blocks) == ROWS
    assert not [request for request in object_store.requests() if "chunk-" in request.path]


def test_a_source_without_validation_is_staged_too(object_store, tmp_path):
    bare = write_source(tmp_path / "bare", 0, 4, validation=0)
    folder = stage_metadata(object_store.upload(bare, "metadata/bare"), tmp_path / "cache", storage_of(object_store))
    assert set(everything(folder)) == {"manifest.json", "index.json"}


def test_a_folder_on_another_disk_is_staged_like_a_store(source, tmp_path):
    folder = stage_metadata(f"local:{source}", tmp_path, Storage())
    assert (folder / "index.json").read_bytes() == (source / "index.json").read_bytes()


def test_equal_last_names_are_told_apart(object_store, url, source, tmp_path):
    other = object_store.upload(source, "elsewhere/web")
    folders = {stage_metadata(place, tmp_path, storage_of(object_store)).parent for place in (url, other)}
    assert len(folders) == 2


def test_staging_again_keeps_the_chunks_of_the_same_content(object_store, url, tmp_path):
    folder = stage_metadata(url, tmp_path, storage_of(object_store))
    (folder / "chunk-0-0.bin").write_bytes(b"here")
    assert stage_metadata(url, tmp_path, storage_of(object_store)) == folder
    assert (folder / "chunk-0-0.bin").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_content_that_changed_gets_its_own_folder_and_the_former_one_goes(object_store, url, tmp_path):
    former = stage_metadata(url, tmp_path / "cache", storage_of(object_store))
    shelf = Shelf({"web": former}, 1000)
    object_store.upload(write_source(tmp_path / "new", 0, ROWS + 16), "metadata/web")
    current = stage_metadata(url, tmp_path / "cache", storage_of(object_store))
    assert former.exists(), "a process still reads it"
    assert len(json.loads((current / "index.json").read_bytes())["chunks"]) == 5
    shelf.close()
    assert stage_metadata(url, tmp_path / "cache", storage_of(object_store)) == current
    assert not former.exists()


def test_what_a_crashed_process_staged_is_removed_after_a_day(object_store, url, tmp_path):
    home = stage_metadata(url, tmp_path, storage_of(object_store)).parent
    old, young = home / ".staging-old", home / ".staging-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    stage_metadata(url, tmp_path, storage_of(object_store))
    assert (old.exists(), young.exists()) == (False, True)


def stage_in_process(url, cache, storage, answers):
    answers.put(str(stage_metadata(url, cache, storage)))


def test_ranks_may_stage_at_once(object_store, url, source, tmp_path):
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    object_store.shape(delay=0.05)
    ranks = [fork.Process(target=stage_in_process, args=(url, tmp_path, storage_of(object_store), answers))
             for _ in range(3)]
    for rank in ranks:
        rank.start()
    folders = {answers.get(timeout=30) for _ in ranks}
    for rank in ranks:
        rank.join(30)
    assert len(folders) == 1
    assert (Path(folders.pop()) / "index.json").read_bytes() == (source / "index.json").read_bytes()


@pytest.mark.parametrize("fault", [
    Fault("error", 503, "SlowDown", count=3), Fault("error", 500, "InternalError", count=3),
    Fault("error", 429, "TooManyRequests", count=3), Fault("drop", count=3), Fault("half", count=2),
], ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_metadata_comes_through_faults_that_pass(object_store, url, source, tmp_path, fault):
    object_store.fail(Fault(**{**vars(fault), "match": "sources", "method": "" if fault.kind != "half" else "GET"}))
    folder = stage_metadata(url, tmp_path, storage_of(object_store))
    assert (folder / "index.json").read_bytes() == (source / "index.json").read_bytes()


def test_a_source_is_staged_whole_or_not_at_all(object_store, url, tmp_path):
    object_store.fail(Fault("error", 403, "AccessDenied", match="validation/index.json", method=""))
    with pytest.raises(Unreachable, match="validation/index.json was refused.*403.*credentials"):
        stage_metadata(url, tmp_path, storage_of(object_store))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("fault", "message"), [
    (EXPIRED, r"metadata/web/manifest.json was refused: .*400.* Renew the credentials"),
    (DENIED, r"manifest.json was refused: .*403.* Renew the credentials if they have expired")])
def test_credentials_that_fail_are_refused_at_once(object_store, url, tmp_path, fault, message):
    object_store.fail(fault)
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=message):
        stage_metadata(url, tmp_path, storage_of(object_store, retry_seconds=600))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("place", ["s3://sources/no/such", "s3://no-such-bucket/web", "local:/no/such/folder"])
def test_what_is_not_there_is_refused_at_once(object_store, tmp_path, place):
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=f"{place}/manifest.json was refused.* Check bucket, prefix and endpoint"):
        stage_metadata(place, tmp_path, storage_of(object_store, retry_seconds=600))
    assert time.monotonic() - begun < 5


def test_credentials_that_were_renewed_are_read_anew(object_store, url, tmp_path):
    object_store.fail(Fault(**{**vars(EXPIRED), "count": 1}))
    assert stage_metadata(url, tmp_path, storage_of(object_store)).is_dir()


def test_options_that_the_client_does_not_know_are_refused_by_name(tmp_path):
    with pytest.raises(Unreachable, match="endpoint.*Check the URL and the storage options"):
        stage_metadata("s3://sources/web", tmp_path, Storage({"endpoint": "http://127.0.0.1:1"}))


@pytest.mark.parametrize("setting", ["compression", "encryption"])
def test_chunks_that_cannot_be_mapped_are_refused(object_store, source, tmp_path, setting):
    changed = Path(shutil.copytree(source, tmp_path / setting))
    index = json.loads((changed / "index.json").read_bytes())
    index["config"][setting] = "zstd"
    (changed / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{setting}='zstd'.* Prepare it again without {setting}"):
        stage_metadata(f"local:{changed}", tmp_path / "cache", Storage())


def test_a_store_that_is_away_is_given_up_after_the_time_given(tmp_path):
    options = {"endpoint_url": "http://127.0.0.1:9", "aws_access_key_id": "a", "aws_secret_access_key": "b"}
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=r"could not be had for \d s: EndpointConnectionError.* raise retry_seconds"):
        stage_metadata("s3://sources/web", tmp_path, Storage(options, retry_seconds=1.5))
    assert time.monotonic() - begun < 5


def test_the_log_tells_of_a_long_outage_once_and_of_its_end(object_store, url, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(remote, "QUIET_SECONDS", 0.3)
    object_store.fail(Fault("error", match="web/index.json", method="", count=5))
    with caplog.at_level(logging.INFO, logger="lit_cpt"):
        stage_metadata(url, tmp_path, storage_of(object_store))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, told
    assert "web/index.json: store unreachable for" in told[0]
    assert "retrying for up to 20 s" in told[0]
    assert "web/index.json: reachable again after" in told[1]


def test_a_chunk_of_another_size_than_the_index_says_is_never_taken(object_store, url, tmp_path):
    fetcher = Fetcher(url, storage_of(object_store, retry_seconds=0.5), chunks=True)
    with pytest.raises(Unreachable, match=r"could not be had.*it has 648 bytes, the index says 700"):
        fetcher.fetch("chunk-0-0.bin", tmp_path / "chunk", size=700)
    with pytest.raises(Unreachable, match=r"was refused.*648 bytes, the index says 600.* start again"):
        fetcher.fetch("chunk-0-0.bin", tmp_path / "chunk", size=600)


@pytest.mark.parametrize("kind", ["half", "drop", "error"])
def test_boto3_brings_chunks_where_obstore_cannot(object_store, url, source, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("litdata.streaming.downloader.obstore_usable", lambda: False)
    object_store.fail(Fault(kind, count=2))
    Fetcher(url, storage_of(object_store), chunks=True).fetch("chunk-0-0.bin", tmp_path / "chunk", size=648)
    assert (tmp_path / "chunk").read_bytes() == (source / "chunk-0-0.bin").read_bytes()
    assert {request.method for request in object_store.requests("chunk-")} == {"HEAD", "GET"}


class AzureError(Exception):
    status_code = 503


class GoogleError(Exception):
    code = 404


def of_boto3(status, code):
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.mark.parametrize("error", [
    of_boto3(503, "SlowDown"), of_boto3(500, "InternalError"), of_boto3(400, "RequestTimeout"), of_boto3(429, ""),
    EndpointConnectionError(endpoint_url="x"), AzureError(), ConnectionResetError(), TimeoutError(),
    OSError(errno.EIO, "read"), Exception("status code: 503")], ids=repr)
def test_errors_that_may_pass_are_tried_again(error):
    assert refusal(error) is None


@pytest.mark.parametrize(("error", "cure"), [
    (of_boto3(403, "InvalidAccessKeyId"), "credentials"), (of_boto3(400, "ExpiredToken"), "credentials"),
    (of_boto3(404, "NoSuchBucket"), "Check bucket"), (of_boto3(301, "PermanentRedirect"), "storage options"),
    (NoCredentialsError(), "credentials"), (GoogleError(), "Check bucket"), (FileNotFoundError(), "Check bucket"),
    (OSError(errno.ENOSPC, "full"), "Make room"), (ImportError("no google"), "storage options"),
    (TypeError("unexpected keyword"), "storage options"), (Exception("status code: 403 <Code>X</Code>"), "credentials"),
], ids=repr)
def test_errors_that_another_try_cannot_mend_say_what_does(error, cure):
    assert cure in refusal(error)


def test_every_clients_status_is_read():
    assert status_of(of_boto3(400, "ExpiredToken")) == (400, "ExpiredToken")
    assert status_of(Exception("... status code: 400 Bad: <Code>ExpiredToken</Code>")) == (400, "ExpiredToken")
    assert status_of(AzureError()) == (503, "")
    assert status_of(ValueError("a port of 404")) == (0, "")
