"""DVC's side of sharing: the pointers of shared files, DVC's cache on this machine, and its remote.

What changes something is a command of DVC's, for all files of a call at once: each costs a second, and DVC locks its
repository. What only asks the remote goes through the file system that DVC opens for it: DVC itself takes most errors of a
remote for the absence of what it asked about.

Nothing is ever deleted from a remote. DVC does that: where the remote is a folder, it removes each object that it is asked
about and finds damaged. So in a folder we look ourselves, and keep damaged objects from DVC.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from depoison.artifacts import is_recorded
from depoison.errors import DepoisonError
from depoison.files import refuse_links, sha256_of

LONGEST = 1000
"""Bytes of a pointer, at most."""

_NO_NUMBER = r"(?!\d+(?:e\d+)?$|0b[01]+$)"
"""Of what YAML takes for a number, DVC writes the text in quotes."""

FIELDS = {
    "md5": rf"{_NO_NUMBER}[0-9a-f]{{32}}|'[0-9a-f]{{32}}'",
    "size": r"0|[1-9]\d{0,17}",
    "hash": "md5",
    "isexec": "true",
    "path": r"\S+",
}
"""What a pointer says of its one file, and how `dvc add` writes it."""


class Pointer(NamedTuple):
    """What git knows of a shared file.

    Attributes:
        md5: of the published copy, 32 hexadecimal digits.
        size: of the same, in bytes.
    """

    md5: str
    size: int

    @property
    def place(self) -> Path:
        """Where the copy lies below the objects of a cache or a remote."""
        return Path(self.md5[:2], self.md5[2:])


def pointer(file: Path) -> Path:
    return file.with_name(file.name + ".dvc")


def published(file: Path) -> Pointer:
    """Read the pointer of a file.

    It must be, line by line, what `dvc add` writes for this file; not just any YAML that says the same: two readers of YAML
    may take one text for different things, and what DVC takes it for is what it does.

    Raises:
        DepoisonError: missing, behind a symbolic link, or anything else than that.
    """
    path = pointer(file)
    refuse_links(path)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise _refused(path, "no file")
        with path.open("rb") as content:
            text = content.read(LONGEST + 1).decode("ascii")
    except FileNotFoundError:
        raise DepoisonError(f"{path}: missing") from None
    except UnicodeDecodeError:
        raise _refused(path, "no plain text") from None
    except OSError as error:
        raise _refused(path, error.strerror) from None
    if len(text) > LONGEST:
        raise _refused(path, f"more than {LONGEST} characters")
    head, *lines = text.removesuffix("\n").split("\n")
    if head != "outs:":
        raise _refused(path, f"line 1 is {head[:80]!r}, not 'outs:'")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 2):
        name, _, value = line[2:].partition(": ")
        valid = line.startswith("  " if found else "- ") and name in FIELDS and name not in found
        if not (valid and re.fullmatch(FIELDS[name], value)):
            raise _refused(path, f"line {number} is {line[:80]!r}")
        found[name] = value
    if lacking := FIELDS.keys() - found.keys() - {"isexec"}:
        raise _refused(path, f"no {' and no '.join(sorted(lacking))}")
    if found["path"] != file.name:
        raise _refused(path, f"its path is {found['path'][:80]!r}, not {file.name!r}")
    return Pointer(found["md5"].strip("'"), int(found["size"]))


def _refused(path: Path, why: str) -> DepoisonError:
    return DepoisonError(
        f"{path}: refused, it is not what `dvc add` writes for {path.stem}: {why}; have whoever shared it put it right, or "
        "delete it to compute the file here"
    )


def is_published(file: Path, copy: Path | None = None) -> bool:
    """Whether a file, or a `copy` of it elsewhere, has the bytes that the file's pointer names."""
    with (copy or file).open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest() == published(file).md5


class Fault(NamedTuple):
    """What is wrong with a published file.

    Attributes:
        kind: the remote does not have it, has other bytes than its pointer names, has what the pointer names and the record
            does not, or could not be asked, so that nothing is known.
        cause: what DVC or the system say, where there is more to be said.
    """

    kind: Literal["missing", "damaged", "unrecorded", "unknown"]
    cause: str = ""


@dataclass(frozen=True)
class Store:
    """Where DVC keeps objects.

    Attributes:
        cache: those of this machine.
        folder: those of the remote, where that is a folder.
        remote: the remote, as DVC opens it.
        new: whether the folder need not be there yet.
    """

    cache: Path
    folder: Path | None
    remote: Any
    new: bool

    def faults(self, files: Sequence[Path], thorough: bool = True) -> dict[Path, Fault]:
        """What is wrong with published copies in the remote; files without fault are left out.

        Args:
            thorough: where the remote is a folder, whether to read objects, or to look at their sizes alone, as in any
                other remote.
        """
        if not files:
            return {}
        if self.folder is None:
            return self._asked(files)
        found = {file: self._in_folder(file, self.folder, thorough) for file in files}
        return {file: fault for file, fault in found.items() if fault}

    def _in_folder(self, file: Path, folder: Path, thorough: bool) -> Fault | None:
        expected = published(file)
        copy = folder / expected.place
        try:
            whole = copy.stat().st_size == expected.size and (not thorough or is_published(file, copy))
            return None if whole else Fault("damaged")
        except FileNotFoundError:
            there = self.new or folder.is_dir()
            return Fault("missing") if there else Fault("unknown", f"{folder}: not there any more")
        except OSError as error:
            return Fault("unknown", f"{copy}: {error.strerror}")

    def _asked(self, files: Sequence[Path]) -> dict[Path, Fault]:
        expected = {file: published(file) for file in files}
        paths = {file: self.remote.oid_to_path(pointer.md5) for file, pointer in expected.items()}
        try:
            told = dict(zip(files, self.remote.fs.info([*paths.values()], return_exceptions=True), strict=True))
            # Over HTTP, fsspec says of every error that there is no such file; but not when it reads one.
            if absent := [file for file in files if isinstance(told[file], FileNotFoundError)]:
                read = self.remote.fs.fs.cat_ranges([paths[file] for file in absent], 0, 1, on_error="return")
                told |= zip(absent, read, strict=True)
        except Exception as error:  # whatever a cloud's client raises
            return dict.fromkeys(files, Fault("unknown", _first_line(error)))
        found = {}
        for file, info in told.items():
            match info:
                case FileNotFoundError():
                    found[file] = Fault("missing")
                case Exception():
                    found[file] = Fault("unknown", _first_line(info))
                case {"size": int(size)} if size != expected[file].size:
                    found[file] = Fault("damaged")
        return found

    def push(self, files: Sequence[Path]) -> tuple[dict[Path, str], list[Path]]:
        """Bring into the remote what it lacks or holds damaged of files that are here, as their pointers say.

        Returns:
            Why files are not there now, as far as that is known, and those that were damaged there.
        """
        found = self.faults(files)
        failed = {file: fault.cause for file, fault in found.items() if fault.kind == "unknown"}
        missing, damaged = ([file for file in found if found[file].kind == kind] for kind in ("missing", "damaged"))
        # DVC pushes from its cache alone, and takes no notice of what that lost, or holds damaged.
        if lost := self._cache_faults(missing):
            cause, lost = dvc("add", lost), self._cache_faults(lost)
            failed |= {file: cause or fault.cause or "damaged in DVC's cache" for file, fault in lost.items()}
        missing = [file for file in missing if file not in failed]
        if cause := dvc("push", map(pointer, missing)):
            failed |= dict.fromkeys(missing, cause)
        failed |= {file: cause for file in damaged if (cause := self._replace(file))}
        return failed, damaged

    def _replace(self, file: Path) -> str:
        """Put a file in the place of a damaged copy of it, which in a folder is there until the new one is whole.

        Returns:
            Why that failed; nothing where it did not.
        """
        place = self.remote.oid_to_path(published(file).md5)
        try:
            self.remote.fs.put_file(str(file), place)
            self.remote.protect(place)
        except Exception as error:  # whatever a cloud's client raises
            return _first_line(error)
        return ""

    def fetch(self, files: Sequence[Path]) -> dict[Path, Fault]:
        """Bring files here, those of a folder all or none; the one that is named last, which completes an artifact, last.

        Returns:
            What is wrong with those that cannot be had.
        """
        found = self._cache_faults(files)
        wanted = [file for file, fault in found.items() if fault.kind in ("missing", "damaged")]
        found = {file: fault for file, fault in found.items() if file not in wanted}
        if self.folder:
            found |= self.faults(wanted)
        found |= self._fetch([file for file in wanted if file not in found])
        incomplete = {file.parent for file in found}
        return found | self._check_out([file for file in files if file.parent not in incomplete])

    def _fetch(self, files: Sequence[Path]) -> dict[Path, Fault]:
        """Bring objects into the cache; returns what is wrong with those that are not there then."""
        cause = dvc("fetch", map(pointer, files))
        found = self._cache_faults(files)
        # A transfer that was cut off may have left half an object.
        lost = [file for file, fault in found.items() if fault.kind == "missing" or (fault.kind == "damaged" and cause)]
        asked = self.faults(lost)
        for file in lost:
            fault = asked.get(file, Fault("unknown", "DVC did not bring it"))
            found[file] = Fault("unknown", cause or fault.cause) if fault.kind == "unknown" else fault
        return found

    def _check_out(self, files: Sequence[Path]) -> dict[Path, Fault]:
        """Bring files here that are whole in the cache; returns what is wrong with those that are not here then."""
        last = {file.parent: file for file in files}
        found: dict[Path, Fault] = {}
        for some in ([file for file in files if file != last[file.parent]], last.values()):
            some = [file for file in some if file.parent not in {other.parent for other in found}]
            cause = dvc("checkout", map(pointer, some))
            found |= {file: Fault("unknown", cause or "DVC did not bring it") for file in some if not file.exists()}
        return found

    def _cache_faults(self, files: Iterable[Path]) -> dict[Path, Fault]:
        """What is wrong with copies in the cache. A damaged one leaves it, as DVC would take it; unless it is the remote."""
        return {file: fault for file in files if (fault := self._in_cache(file))}

    def _in_cache(self, file: Path) -> Fault | None:
        copy = self.cache / published(file).place
        try:
            if is_recorded(file, sha256_of(copy)):
                return None
            if is_published(file, copy):
                return Fault("unrecorded")
            if not (self.folder and self.cache.resolve() == self.folder.resolve()):
                copy.unlink()
            return Fault("damaged")
        except FileNotFoundError:
            return Fault("missing")
        except DepoisonError as error:  # no record
            return Fault("unrecorded", str(error))
        except OSError as error:  # somebody else's, in a cache that several share
            return Fault("unknown", f"{copy}: {error.strerror}")


def open_store(new: bool = False) -> Store:
    """Ask DVC where it keeps objects.

    Args:
        new: whether a remote that is a folder need not be there yet.

    Raises:
        DepoisonError: no DVC, no repository of its, no remote, or a folder that is not there.
    """
    if not Path(".dvc").is_dir():
        raise DepoisonError(".dvc: missing; share from a clone of the repository, or run `dvc init`")
    try:
        from dvc.config import NoRemoteError
        from dvc.repo import Repo
    except ModuleNotFoundError:
        raise _no_dvc() from None
    try:
        with Repo() as repo:
            name, remote, cache = repo.config["core"].get("remote"), repo.cloud.get_remote_odb(), repo.cache.local.path
            folder = Path(remote.path) if remote.fs.protocol == "local" else None
    except NoRemoteError:
        example = "dvc remote add --default team s3://bucket/path"
        raise DepoisonError(
            f"no DVC remote is configured; add one with `{example}` (or ssh://host/path, or a folder)"
        ) from None
    except Exception as error:  # whatever DVC and a cloud's client raise
        raise DepoisonError(f"dvc: {_first_line(error)}") from None
    if folder and not (new or folder.is_dir()):
        place = folder.parents[1]  # of files/md5
        raise DepoisonError(
            f"{place}: DVC's remote {name!r} is not there, or nothing was pushed to it yet; mount it, or name another one"
        )
    return Store(Path(cache), folder, remote, new)


def dvc(action: str, files: Iterable[Path]) -> str:
    """Run a command of DVC's for these files; without any it would be for all.

    Returns:
        Why it failed, in one line of DVC's; nothing where it did not.

    Raises:
        DepoisonError: no DVC.
    """
    names = list(map(str, files))
    if not names:
        return ""
    try:
        command = shutil.which("dvc") or str(Path(sys.executable).with_name("dvc"))
        done = subprocess.run([command, action, *names], capture_output=True, text=True)
    except FileNotFoundError:
        raise _no_dvc() from None
    if not done.returncode:
        return ""
    # Its first error is the cause; what follows are its consequences.
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    first = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
    cause = f"dvc {action}: {first.removeprefix('ERROR: ').removeprefix('unexpected error - ')}"
    if "Permission denied" in cause:
        cause += "; where several users share it, see docs/sharing.md"
    return cause


def _no_dvc() -> DepoisonError:
    return DepoisonError("dvc: not installed; install the environment with `make environment`")


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return next(iter(str(error).splitlines()), "") or type(error).__name__
