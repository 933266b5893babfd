"""Downloads that survive a bad line: resumed, verified, and never half there under the final name."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from pathlib import Path

import requests
import urllib3

from depoison.errors import DepoisonError
from depoison.files import locked

log = logging.getLogger(__name__)

TIMEOUT = (15, 60)  # seconds to connect, seconds without a byte
CHUNK = 1 << 16
LONGEST_WAIT = 60.0  # seconds; the exponential backoff stops growing here
BUSY = {408, 429}  # the two 4xx that mean "later", not "never"


class _Retry(Exception):
    """This attempt failed in a way that another one may not."""


class _Unavailable(Exception):
    """The server cannot be reached, or does not give the file."""


def download(
    url: str,
    path: Path,
    *,
    checksum: str,
    offline: str = "set root to a local copy",
    retries: int = 5,
    backoff: float = 1.0,
) -> Path:
    """Download `url` to `path`, unless the right file is there already.

    The bytes go to `path`.partial, which a later call (or another process, one at a time) resumes.

    Args:
        checksum: "md5:<hex>", "sha256:<hex>" or both, with a space between, of the whole file.
        offline: what to do where the file cannot be downloaded, for the message.
        retries: attempts in a row that may fail without one new byte before giving up.
        backoff: seconds before the first of them; doubled for each next one, up to LONGEST_WAIT.

    Returns:
        `path`, verified. A file there that fails the check is replaced.

    Raises:
        DepoisonError: HTTP 4xx, retries used up, the wrong checksum twice, or a cache that cannot be written.
    """
    try:
        if path.exists() and _digest(path, checksum) == checksum:
            return path  # before the lock: a cache that is complete may be read-only
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(path.name + ".lock")):
            if path.exists():
                if _digest(path, checksum) == checksum:  # another process was faster
                    return path
                log.warning("%s has the wrong checksum; downloading it again", path)
            partial = path.with_name(path.name + ".partial")
            _fetch_verified(url, partial, checksum, retries, backoff)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    except _Unavailable as error:
        raise DepoisonError(f"{url}: {error}; offline, {offline}") from error
    except OSError as error:
        raise DepoisonError(f"{path}: cannot be written ({error})") from error
    return path


def verify(path: Path, checksum: str) -> None:
    """Check a file that is not ours to replace.

    Raises:
        DepoisonError: `path` cannot be read or is not the file that `checksum`, as in `download`, names.
    """
    try:
        actual = _digest(path, checksum)
    except OSError as error:
        raise DepoisonError(f"{path}: cannot be read ({error.strerror})") from error
    if actual != checksum:
        raise DepoisonError(f"{path}: wrong or damaged file: its checksum is {actual}, expected {checksum}")


def _digest(path: Path, checksum: str) -> str:
    """The checksum of a file by the algorithms of `checksum`, written the same way."""
    if not re.fullmatch("( ?(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}))+", checksum):
        raise DepoisonError(f"checksum {checksum!r}: valid: md5:<32 hex>, sha256:<64 hex>, in lower case, or both")
    found = []
    for algorithm in re.findall("md5|sha256", checksum):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda name=algorithm: hashlib.new(name, usedforsecurity=False))
        found.append(f"{algorithm}:{digest.hexdigest()}")
    return " ".join(found)


def _fetch_verified(url: str, partial: Path, checksum: str, retries: int, backoff: float) -> None:
    for _ in range(2):  # the first may have resumed a partial file of another version; the second starts from nothing
        _fetch(url, partial, retries, backoff)
        actual = _digest(partial, checksum)
        if actual == checksum:
            return
        partial.unlink()
        log.warning("%s: wrong checksum %s", url, actual)
    raise DepoisonError(f"{url}: wrong checksum twice: expected {checksum}, got {actual}")


def _fetch(url: str, partial: Path, retries: int, backoff: float) -> None:
    """Complete `partial`, resuming as often as it takes while each attempt gets further than any before."""
    failures, furthest = 0, _size(partial)
    while True:
        try:
            return _attempt(url, partial)
        except (_Retry, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = " ".join(str(error).split())
        failures = 1 if _size(partial) > furthest else failures + 1
        furthest = max(furthest, _size(partial))
        if failures > retries:
            raise _Unavailable(f"download failed, {retries} retries used up ({reason})")
        wait = min(backoff * 2 ** (failures - 1), LONGEST_WAIT)
        log.warning("%s: %s; trying again in %.3g s at byte %d", url, reason, wait, _size(partial))
        time.sleep(wait)


def _attempt(url: str, partial: Path) -> None:
    """One request: append to `partial` where the server resumes, start it over where it does not."""
    offset = _size(partial)
    # identity, and no decoding below: the checksum is of the stored bytes, and some servers call .gz an encoding
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        status, content_range = response.status_code, response.headers.get("Content-Range", "")
        if status == 416 and offset:
            if content_range.replace(" ", "") == f"bytes*/{offset}":
                return  # the partial file was complete already
            partial.unlink()
            raise _Retry(f"the server has no byte {offset}")
        if status >= 500 or status in BUSY:
            raise _Retry(f"HTTP {status} {response.reason}")
        if status not in (200, 206):
            raise _Unavailable(f"cannot be downloaded: HTTP {status} {response.reason}")
        if status == 206 and not content_range.replace(" ", "").startswith(f"bytes{offset}-"):
            partial.unlink(missing_ok=True)
            raise _Retry(f"asked from byte {offset}, the server sent {content_range!r}")

        done = offset if status == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        progress = _Progress(partial.name.removesuffix(".partial"), total)
        with partial.open("ab" if done else "wb") as file:
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                done += len(chunk)
                progress.at(done)
    if total is not None and done != total:
        raise _Retry(f"connection closed after {done} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Progress:
    """Logs a line at the start and for each further tenth of `total` bytes."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.tenth = name, total, -1

    def at(self, done: int) -> None:
        if self.total and done * 10 // self.total > self.tenth:
            self.tenth = done * 10 // self.total
            log.info("%s: %d%% of %.1f MB", self.name, self.tenth * 10, self.total / 1e6)
