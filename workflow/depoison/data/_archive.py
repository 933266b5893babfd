"""Published archives, read in place: from the cache, from a local copy, or from the folder somebody unpacked."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from depoison.data.download import download, verify
from depoison.errors import DepoisonError


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        url: where it is published; the last part is its file name.
        checksum: its publisher's md5 and a sha256 that others give independently, "md5:<hex> sha256:<hex>"; None where nobody
            publishes any: then it is only read from a root.
        unpacked: the folder (or the one file) that unpacking it makes, as a path inside the archive.
    """

    url: str
    checksum: str | None
    unpacked: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Files:
    """The files of an archive or a folder.

    Attributes:
        where: the archive or folder.
        names: paths inside it with "/", sorted.
        get: the bytes of a name; may be called from several threads.
    """

    where: Path
    names: list[str]
    get: Callable[[str], bytes]

    def read(self, name: str) -> bytes:
        """The bytes of `name`; DepoisonError if there is no such file."""
        try:
            return self.get(name)
        except (KeyError, FileNotFoundError) as error:
            raise DepoisonError(f"{self.where}: {name} is missing") from error

    def lines(self, name: str) -> list[str]:
        """The lines of a text file that are not blank; DepoisonError if it is missing or not text."""
        try:
            return [line for line in self.read(name).decode().splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise DepoisonError(f"{self.label(name)}: not a text file ({error.reason})") from error

    def label(self, name: str) -> str:
        return f"{self.where}: {name}"


def obtain(archive: Archive, *, root: Path | None, cache: Path) -> Files:
    """Open `archive`, verified, from `root` if given (only read) or else from `cache`, downloaded when missing.

    Args:
        root: the archive itself, or a folder that holds it or what unpacking it makes. No checksum is published for
            the latter; the sources check its counts and sizes.

    Raises:
        DepoisonError: not in root, a wrong checksum, or a failed download.
    """
    if root is None:
        assert archive.checksum is not None
        return _open(download(archive.url, cache / archive.name, checksum=archive.checksum))
    if not root.exists():
        raise DepoisonError(f"{root}: no such file or folder; expected {archive.name} or a folder with it")
    path = root if root.is_file() else root / archive.name
    if path.is_file():
        if archive.checksum is not None:
            verify(path, archive.checksum)
        return _open(path)
    if (root / archive.unpacked).exists():
        return _folder(root, archive.unpacked)
    other = "without a root, {} is downloaded" if archive.checksum else "they are at {}"
    raise DepoisonError(f"{root}: holds neither {archive.name} nor {archive.unpacked}; {other.format(archive.url)}")


def _open(path: Path) -> Files:
    if path.suffix == ".zip":
        archive = zipfile.ZipFile(path)  # reads are serialized inside; closed with the last reference to it
        return Files(path, sorted(name for name in archive.namelist() if not name.endswith("/")), archive.read)
    with tarfile.open(path) as tar:  # a tar.gz has no random access: read it once, front to back
        members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    return Files(path, sorted(members), members.__getitem__)


def _folder(root: Path, inside: str) -> Files:
    top = root / inside
    paths = [top] if top.is_file() else [Path(base, name) for base, _, names in os.walk(top) for name in names]
    return Files(root, sorted(path.relative_to(root).as_posix() for path in paths), lambda n: (root / n).read_bytes())
