"""What litdata's downloaders do where lit_cpt counts on them or works around them; every store is a loopback server."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from botocore.config import Config
from contract import relied_on, worked_around
from filelock import FileLock
from litdata.streaming import downloader
from litdata.streaming.downloader import Downloader, get_downloader

REMOTE = "lit_cpt/remote.py"
OPTIONS = {"aws_access_key_id": "me", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["litdata.streaming.downloader"])  # imported once, by a process that uses no obstore


def in_a_process_of_its_own(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns: a process in which obstore was at work, by any test, cannot fork another user of it."""
    with ProcessPoolExecutor(1, mp_context=FRESH) as process:
        return process.submit(work, *arguments).result(timeout=60)


def asked(folder: Path, name: str, status: int, body: bytes = b"", allow_http: bool = True, **options: Any) -> Any:
    """The error with which a file ends, and the client of each request for it."""
    clients: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            clients.append("boto3" if "Boto3" in self.headers["User-Agent"] else "obstore")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    if allow_http:
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    endpoint = f"http://127.0.0.1:{server.server_port}"
    made = get_downloader("s3://bucket/web", str(folder), [], {"endpoint_url": endpoint, **OPTIONS, **options}, {})
    error = ""
    try:
        made.download_file(f"s3://bucket/web/{name}", str(folder / name))
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    return error, clients


def test_the_prefix_of_a_url_decides_the_downloader(tmp_path):
    with relied_on(REMOTE, "is_remote asks _DOWNLOADERS, and takes a folder without a colon for a local one"):
        assert {"s3://", "gs://", "azure://", "hf://", "local:", "r2://"} <= downloader._DOWNLOADERS.keys()
        assert all(":" in prefix for prefix in downloader._DOWNLOADERS)
        for prefix in ("local:", "s3://"):
            made = get_downloader(f"{prefix}/x", str(tmp_path), [], dict(OPTIONS), {})
            assert type(made) is downloader._DOWNLOADERS[prefix]


def test_a_file_is_downloaded_whole_to_the_place_that_is_asked_for(tmp_path):
    (tmp_path / "chunk.bin").write_bytes(b"x" * 5000)
    with relied_on(REMOTE, "Fetcher downloads single files by download_file(url, path)"):
        made = get_downloader(f"local:{tmp_path}", str(tmp_path / "cache"), [], {}, {})
        made.download_file(f"local:{tmp_path}/chunk.bin", str(tmp_path / "here.bin"))
        assert (tmp_path / "here.bin").read_bytes() == b"x" * 5000
        assert not list(tmp_path.glob("*.tmp*"))


def test_downloaders_that_cannot_fill_a_file_inherit_the_method_that_does_nothing():
    with relied_on(REMOTE, "Fetcher tells by it which downloaders take download_fileobj"):
        kinds = {prefix: kind.download_fileobj is not Downloader.download_fileobj
                 for prefix, kind in downloader._DOWNLOADERS.items()}
        assert (kinds["s3://"], kinds["local:"]) == (True, False)


def test_a_file_that_another_process_downloads_is_passed_over_in_silence(tmp_path):
    (tmp_path / "chunk.bin").write_bytes(b"x")
    made = get_downloader(f"local:{tmp_path}", str(tmp_path), [], {}, {})
    with worked_around(REMOTE, "every file is downloaded to a place of its own, and looked at afterwards"):
        with FileLock(str(tmp_path / "here.bin") + ".lock"):
            made.download_file(f"local:{tmp_path}/chunk.bin", str(tmp_path / "here.bin"))
        assert not (tmp_path / "here.bin").exists()


def test_chunks_go_by_obstore_and_the_index_by_boto3_which_survives_a_fork(tmp_path):
    with relied_on(REMOTE, "Fetcher brings metadata before workers fork"):
        for name, client in (("chunk-0-0.bin", "obstore"), ("index.json", "boto3")):
            error, clients = in_a_process_of_its_own(asked, tmp_path, name, 200, b"{}")
            assert (error, set(clients)) == ("", {client})
            assert (tmp_path / name).read_bytes() == b"{}"


def test_obstore_refuses_plain_http_unless_its_client_options_allow_it(tmp_path):
    error, clients = in_a_process_of_its_own(asked, tmp_path, "chunk-0-0.bin", 200, b"x", False)
    with worked_around(REMOTE, "connect sets _OBSTORE_CLIENT_OPTIONS['allow_http'] for http endpoints"):
        assert "http" in error.lower()
        assert not clients


@pytest.mark.parametrize(("status", "body", "says"), [
    (403, b"<Error><Code>AccessDenied</Code></Error>", ("403", "<Code>AccessDenied</Code>")),
    (400, b"<Error><Code>ExpiredToken</Code></Error>", ("status code: 400", "<Code>ExpiredToken</Code>"))])
def test_an_obstore_error_tells_the_servers_status_and_code(tmp_path, status, body, says):
    error, _ = in_a_process_of_its_own(asked, tmp_path, "chunk-0-0.bin", status, body)
    with relied_on(REMOTE, "status_of finds both in the text, to tell what another try cannot mend"):
        assert all(word in error for word in says)


def retries_of_obstore(folder: Path) -> Any:
    """How the client that litdata makes tries again."""
    return get_downloader("s3://bucket/web", str(folder), [], dict(OPTIONS), {})._get_store("bucket").retry_config


def test_obstore_gives_up_a_busy_server_after_its_default_of_ten_tries(tmp_path):
    with worked_around(REMOTE, "Fetcher.fetch tries again for retry_seconds, as ten tries are over in seconds"):
        assert in_a_process_of_its_own(retries_of_obstore, tmp_path) is None


def test_an_error_of_credentials_can_be_told_by_its_name(tmp_path, monkeypatch):
    for name in ("LIGHTNING_CLOUD_URL", "LIGHTNING_API_KEY", "LIGHTNING_USERNAME", "LIGHTNING_CLOUD_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    made = get_downloader("s3://bucket/web", str(tmp_path), [], {"data_connection_id": "x"}, {})
    with relied_on(REMOTE, "NO_CREDENTIALS names the errors for which another try is of no use"):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is litdata's own
            made.download_file("s3://bucket/web/index.json", str(tmp_path / "index.json"))
        assert type(caught.value).__name__ == "_CredentialsConfigurationError"


def test_a_missing_object_ends_without_an_error_and_without_a_file(tmp_path):
    error, _ = in_a_process_of_its_own(asked, tmp_path, "chunk-0-0.bin", 404)
    with worked_around(REMOTE, "Fetcher looks whether the file is there"):
        assert error == ""
        assert not (tmp_path / "chunk-0-0.bin").exists()


def test_a_config_among_the_storage_options_takes_the_place_of_litdatas_own(tmp_path):
    config = Config(retries={"total_max_attempts": 1})
    _, clients = in_a_process_of_its_own(asked_with, tmp_path, config.retries)
    with relied_on(REMOTE, "connect hands boto3 a config without retries; litdata's own makes a thousand"):
        assert len(clients) == 1


def asked_with(folder: Path, retries: dict[str, int]) -> Any:
    """Ask a busy server for the index, with retries of one's own."""
    return asked(folder, "index.json", 503, config=Config(retries=retries))
