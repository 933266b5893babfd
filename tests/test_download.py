"""Downloads against a real HTTP server on 127.0.0.1 that misbehaves in one way at a time."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from depoison.data.download import download, verify
from depoison.errors import DepoisonError

CONTENT = random.Random(0).randbytes(1_000_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Server:
    """Serves CONTENT.

    Attributes:
        ranges: whether Range is honored.
        plan: what the next requests get, one item each, then "ok": "ok", "cut" (the connection closes half-way),
            "wrong" (other bytes of the same length), "unsized" (no Content-Length) or a status code.
        requests: the Range header of each request so far, "" for none.
        headers: more headers to send.
    """

    def __init__(self) -> None:
        self.ranges, self.plan, self.requests, self.headers = True, [], [], {}
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/set.tar.gz"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range", "")
        with self.lock:
            self.requests.append(asked)
            now = self.plan.pop(0) if self.plan else "ok"
        if isinstance(now, int):
            return handler.send_error(now)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0
        if start >= len(CONTENT):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            return handler.end_headers()
        body = (bytes(len(CONTENT)) if now == "wrong" else CONTENT)[start:]
        handler.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if now != "unsized":
            handler.send_header("Content-Length", str(len(body)))
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if now == "cut" else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("checksum", [MD5, SHA256, f"{MD5} {SHA256}"])
def test_a_plain_download_arrives_whole_and_leaves_no_partial(server, tmp_path, checksum):
    path = tmp_path / "not" / "yet" / "set.tar.gz"
    assert download(server.url, path, checksum=checksum) == path
    assert path.read_bytes() == CONTENT
    assert not path.with_name("set.tar.gz.partial").exists()
    assert server.requests == [""]


def test_a_file_that_is_there_is_not_asked_for_again(server, tmp_path):
    path = tmp_path / "set.tar.gz"
    path.write_bytes(CONTENT)
    download(server.url, path, checksum=MD5)
    assert server.requests == []


def test_a_wrong_file_in_the_cache_is_replaced(server, tmp_path):
    path = tmp_path / "set.tar.gz"
    path.write_bytes(b"an error page")
    download(server.url, path, checksum=MD5)
    assert path.read_bytes() == CONTENT


def test_a_cut_connection_is_resumed_where_it_broke(server, tmp_path):
    server.plan = ["cut", "cut"]
    path = download(server.url, tmp_path / "set.tar.gz", checksum=MD5, backoff=0.001)
    assert path.read_bytes() == CONTENT
    starts = [int(asked[6:-1] or 0) for asked in server.requests]
    assert 0 == starts[0] < 400_000 < starts[1] < starts[2] < len(CONTENT)


def test_a_cut_connection_starts_over_where_range_is_ignored(server, tmp_path):
    server.plan, server.ranges = ["cut"], False
    path = download(server.url, tmp_path / "set.tar.gz", checksum=MD5, backoff=0.001)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 2 and server.requests[1]


def test_the_partial_file_of_an_earlier_process_is_resumed(server, tmp_path):
    (tmp_path / "set.tar.gz.partial").write_bytes(CONTENT[:123_456])
    path = download(server.url, tmp_path / "set.tar.gz", checksum=MD5)
    assert path.read_bytes() == CONTENT
    assert server.requests == ["bytes=123456-"]


@pytest.mark.parametrize("extra", [b"", b"more"], ids=["complete", "too long"])
def test_a_partial_file_with_nothing_left_to_ask_for(server, tmp_path, extra):
    (tmp_path / "set.tar.gz.partial").write_bytes(CONTENT + extra)
    path = download(server.url, tmp_path / "set.tar.gz", checksum=MD5, backoff=0.001)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == (2 if extra else 1)


def test_a_partial_file_of_something_else_costs_one_download_from_scratch(server, tmp_path):
    (tmp_path / "set.tar.gz.partial").write_bytes(b"x" * 1000)
    path = download(server.url, tmp_path / "set.tar.gz", checksum=MD5)
    assert path.read_bytes() == CONTENT
    assert server.requests == ["bytes=1000-", ""]


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_server_is_asked_again(server, tmp_path, status):
    server.plan = [status, status]
    path = download(server.url, tmp_path / "set.tar.gz", checksum=MD5, backoff=0.001)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_retries_end(server, tmp_path):
    server.plan = [503] * 10
    with pytest.raises(DepoisonError) as error:
        download(server.url, tmp_path / "set.tar.gz", checksum=MD5, retries=2, backoff=0.001)
    assert server.url in one_line(error) and "503" in one_line(error)
    assert len(server.requests) == 3


def test_retries_end_where_the_server_never_gets_past_the_middle(server, tmp_path):
    server.plan, server.ranges = ["cut"] * 20, False
    with pytest.raises(DepoisonError, match="2 retries used up"):
        download(server.url, tmp_path / "set.tar.gz", checksum=MD5, retries=2, backoff=0.001)
    assert len(server.requests) <= 4


def test_progress_does_not_use_up_retries(server, tmp_path):
    server.plan = ["cut"] * 4
    path = download(server.url, tmp_path / "set.tar.gz", checksum=MD5, retries=1, backoff=0.001)
    assert path.read_bytes() == CONTENT


def test_waits_double(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.plan = [503] * 4
    download(server.url, tmp_path / "set.tar.gz", checksum=MD5, backoff=0.5)
    assert waits == [0.5, 1.0, 2.0, 4.0]


def test_no_server_at_all(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DepoisonError) as error:
        download(server.url, tmp_path / "set.tar.gz", checksum=MD5, offline="wait", retries=1, backoff=0.001)
    assert server.url in one_line(error) and one_line(error).endswith("; offline, wait")


@pytest.mark.parametrize("status", [403, 404])
def test_not_found_fails_at_once(server, tmp_path, status):
    server.plan = [status] * 10
    with pytest.raises(DepoisonError) as error:
        download(server.url, tmp_path / "set.tar.gz", checksum=MD5)
    assert server.url in one_line(error) and str(status) in one_line(error)
    assert one_line(error).endswith("; offline, set root to a local copy")
    assert len(server.requests) == 1
    assert not (tmp_path / "set.tar.gz").exists()


def test_wrong_bytes_once_are_fetched_again_from_scratch(server, tmp_path):
    server.plan = ["wrong"]
    path = download(server.url, tmp_path / "set.tar.gz", checksum=MD5)
    assert path.read_bytes() == CONTENT
    assert server.requests == ["", ""]


def test_wrong_bytes_twice_name_both_checksums_and_leave_nothing(server, tmp_path):
    server.plan = ["wrong", "wrong"]
    with pytest.raises(DepoisonError) as error:
        download(server.url, tmp_path / "set.tar.gz", checksum=MD5)
    zeros = hashlib.md5(bytes(len(CONTENT))).hexdigest()
    assert all(part in one_line(error) for part in (server.url, MD5, zeros))
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz.lock"]


def test_no_content_length(server, tmp_path):
    server.plan = ["unsized"]
    assert download(server.url, tmp_path / "set.tar.gz", checksum=MD5).read_bytes() == CONTENT


def test_bytes_are_stored_as_sent_where_the_server_calls_gz_an_encoding(server, tmp_path):
    server.headers = {"Content-Encoding": "x-gzip"}
    assert download(server.url, tmp_path / "set.tar.gz", checksum=MD5).read_bytes() == CONTENT


def test_two_downloads_of_one_file_fetch_it_once(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(download, server.url, tmp_path / "set.tar.gz", checksum=MD5) for _ in range(4)]
    assert all(job.result().read_bytes() == CONTENT for job in jobs)
    assert server.requests == [""]


def test_progress_is_logged_each_tenth(server, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="depoison"):
        download(server.url, tmp_path / "set.tar.gz", checksum=MD5)
    percents = [int(re.search(r"(\d+)%", line)[1]) for line in caplog.messages]
    assert percents == sorted(set(percents)) and percents[-1] == 100 and 8 <= len(percents) <= 11


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written(server, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DepoisonError) as error:
        download(server.url, tmp_path / "set.tar.gz", checksum=MD5)
    assert str(tmp_path) in one_line(error)


def test_a_cache_that_is_a_file(server, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DepoisonError) as error:
        download(server.url, tmp_path / "cache" / "set.tar.gz", checksum=MD5)
    assert str(tmp_path / "cache") in one_line(error)


def test_verify(tmp_path):
    path = tmp_path / "set.tar.gz"
    path.write_bytes(CONTENT)
    verify(path, MD5)
    verify(path, SHA256)
    verify(path, f"{MD5} {SHA256}")
    for wrong in (f"md5:{'0' * 32} {SHA256}", f"{MD5} sha256:{'0' * 64}"):  # one of the two is not enough
        with pytest.raises(DepoisonError, match=f"its checksum is {MD5} {SHA256}, expected {wrong}"):
            verify(path, wrong)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DepoisonError) as error:
        verify(path, MD5)
    assert all(part in one_line(error) for part in (str(path), MD5, hashlib.md5(CONTENT[:-1]).hexdigest()))
    assert path.read_bytes() == CONTENT[:-1]
    with pytest.raises(DepoisonError, match="missing.zip"):
        verify(tmp_path / "missing.zip", MD5)


@pytest.mark.parametrize("checksum", ["", "crc32:00", "md5", "md5:", "MD5:00", "sha256:XY", MD5[:-1], f"{SHA256}0"])
def test_a_checksum_that_is_none(tmp_path, checksum):
    (tmp_path / "file").write_bytes(CONTENT)
    with pytest.raises(DepoisonError, match="valid: md5:<32 hex>, sha256:<64 hex>"):
        verify(tmp_path / "file", checksum)
