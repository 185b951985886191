"""A folder of an object store: written, read and deleted, through faults that pass and up to those that do not."""

from __future__ import annotations

import os
import re

import pytest
from object_store import EXPIRED, Fault, object_store_fixture  # noqa: F401

from lit_cpt.objects import ObjectFolder
from lit_cpt.remote import Storage, Unreachable

ANY = {"match": "", "method": "PUT"}


def folder_of(object_store, name, retry_seconds=20.0, bucket="sources"):
    return ObjectFolder(f"s3://{bucket}/{name}/", Storage(object_store.options(), retry_seconds, attempt_seconds=5.0))


def test_what_is_put_is_got_and_what_is_deleted_is_not(object_store, tmp_path):
    folder = folder_of(object_store, "objects/plain")
    for name, text in (("one.txt", "one"), ("two/a.txt", "a"), ("two/b.txt", "")):
        folder.put_text(text, name)
    assert [folder.get_text(name) for name in ("one.txt", "two/a.txt", "two/b.txt", "three")] == ["one", "a", "", None]
    folder.delete("two")
    assert [folder.get_text(name) for name in ("one.txt", "two/a.txt", "two/b.txt")] == ["one", None, None]


@pytest.mark.slow
def test_a_large_file_goes_in_parts(object_store, tmp_path):
    (tmp_path / "large").write_bytes(os.urandom(20 << 20))
    folder = folder_of(object_store, "objects/large")
    folder.put(tmp_path / "large", "large")
    parts = {part[1] for one in object_store.requests("large") if (part := re.search(r"partNumber=(\d+)", one.path))}
    assert parts == {"1", "2", "3"}  # one that comes late is sent again
    folder.get("large", tmp_path / "again", 20 << 20)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "large").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault("error", count=2, **ANY), Fault("drop", count=2, **ANY),
                                   Fault("error", status=400, code="ExpiredToken", count=1, **ANY)],
                         ids=lambda one: one.code if one.kind == "error" else one.kind)
def test_faults_that_pass_are_outlived(object_store, fault):
    folder = folder_of(object_store, "objects/faults")
    folder.put_text("former", "one.txt")
    client = folder._provider
    object_store.fail(fault)
    folder.put_text("whole", "one.txt")
    assert (folder._provider is client) == (fault.code != "ExpiredToken")  # a new one reads credentials anew
    assert [one.fault for one in object_store.requests("one.txt") if one.method == "PUT"][-1] is None
    assert folder.get_text("one.txt") == "whole"


@pytest.mark.parametrize(("fault", "says"), [
    (EXPIRED, "objects/refused/one.txt was refused: .*ExpiredToken.* Renew the credentials"),
    (Fault("error", status=403, code="AccessDenied", **ANY), "refused: .*AccessDenied.* check what they may do with")])
def test_a_refusal_is_told_at_once(object_store, fault, says):
    object_store.fail(fault)
    with pytest.raises(Unreachable, match=says) as caught:
        folder_of(object_store, "objects/refused").put_text("x", "one.txt")
    assert (caught.value.refused, caught.value.missing) == (True, False)


def test_an_outage_is_told_in_the_end_and_is_no_refusal(object_store):
    object_store.fail(Fault("drop", **ANY))
    with pytest.raises(Unreachable, match="one.txt could not be had for") as caught:
        folder_of(object_store, "objects/out", retry_seconds=0.2).put_text("x", "one.txt")
    assert not caught.value.refused


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_refused_by_name(object_store):
    with pytest.raises(Unreachable, match="s3://nowhere/objects/one.txt was refused.*NoSuchBucket.* Check bucket"):
        folder_of(object_store, "objects", bucket="nowhere").put_text("x", "one.txt")


@pytest.mark.parametrize("url", ["s3://bucket", "s3:///folder", "/data/run", "hf://datasets/me/run", "bucket/run"])
def test_a_url_that_is_no_folder_in_a_store_is_refused(url):
    with pytest.raises(ValueError, match=f"'{url}' is no folder in a store .* s3://BUCKET/FOLDER"):
        ObjectFolder(url, Storage())
