"""Files: safetensors, CSV and JSON, written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

from depoison.errors import DepoisonError

SPEC, RUN = "spec.json", "run.json"
LARGE = 4 << 30
"""From how many bytes on tensors are mapped into memory from a file, and never in it as a whole; ImageNet's are."""
LINK = "is a symbolic link, and nothing is written where it leads; remove it"


def refuse_links(path: Path) -> None:
    """See that a path below results/ leads through no symbolic link: nothing is written, or locked, where it leads.

    results/ itself may be one, to a larger disk.

    Raises:
        DepoisonError: it does.
    """
    for part in reversed([path, *path.parents][:-2]):
        if path.parts[0] == "results" and part.is_symlink():
            raise DepoisonError(f"{part}: {LINK}; results/ itself may be one")


def _itself(path: str, flags: int) -> int:
    """An opener that follows no symbolic link.

    Raises:
        DepoisonError: a link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and Path(path).is_symlink():
            raise DepoisonError(f"{path}: {LINK}") from None
        raise


def sha256_of(path: Path, seen: Callable[[int], object] = lambda size: None) -> str:
    """Of a file of any size.

    Args:
        seen: takes how many bytes were read more.
    """
    digest, part = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(part):
            digest.update(part[:size])
            seen(size)
    return digest.hexdigest()


def json_text(value: Any, where: Path | str = "") -> str:
    """Indented, key-sorted JSON.

    Args:
        where: the file that it is for.

    Raises:
        DepoisonError: NaN or an infinite number, which JSON does not have.
    """
    try:
        return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        keys = next(_not_finite(value), ())
        what = f"{'.'.join(keys)} is NaN or infinite, which JSON does not have"
        raise DepoisonError(f"{where}: {what}" if where else what) from None


def _not_finite(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where in a JSON value numbers are that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        yield keys
    for key, item in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    ):
        yield from _not_finite(item, (*keys, str(key)))


def write_json(path: Path, value: Any) -> None:
    """Write indented, key-sorted JSON; atomic, as `write_bytes`, and with the errors of `json_text`."""
    write_bytes(path, json_text(value, path).encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DepoisonError: missing, or no JSON.
    """
    return parse_json(read_bytes(path), path)


def parse_json(content: bytes | str, where: Path | str) -> Any:
    """The value of a JSON text.

    Args:
        where: what it is the content of.

    Raises:
        DepoisonError: it is none, or nests deeper than Python goes.
    """
    try:
        return json.loads(content, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise corrupted(where, error) from None


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text}, which is no number of JSON's")
    return number


def corrupted(path: Path | str, why: object, delete: Path | str = "it") -> DepoisonError:
    """An error for a file that is not what was made.

    Args:
        delete: what has to go so that the file is made anew.
    """
    return DepoisonError(f"{path}: corrupted ({why}); {remedy(delete)}")


def remedy(delete: Path | str) -> str:
    """What helps against a file of an artifact that is not as it should be."""
    return f"take it back with git or DVC, or delete {delete} and run again: `snakemake -- TARGET`"


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DepoisonError: missing, not readable, or larger than memory.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DepoisonError(f"{path}: missing") from None
    except OSError as error:
        raise DepoisonError(f"{path}: cannot be read: {error.strerror}") from None
    except MemoryError:
        raise DepoisonError(f"{path}: larger than the memory that this process may use") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary sibling, so that it never exists half-written under its name."""
    with _partial(path) as file:
        file.write(content)


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[BinaryIO]:
    """A temporary sibling, which takes its place once all is written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb", opener=_itself) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # what a user knows
        raise


def csv_bytes(columns: Iterable[str], rows: Iterable[Mapping[str, Any]], *, whole: bool = True) -> bytes:
    """Rows by the names of their columns; what one has not is empty.

    Args:
        whole: whether a row may have nothing else; otherwise that is left out.
    """
    text = io.StringIO()
    extra: Literal["raise", "ignore"] = "raise" if whole else "ignore"
    writer = csv.DictWriter(text, tuple(columns), extrasaction=extra, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def tensor_bytes(tensors: Mapping[str, Any]) -> bytes:
    """Tensors as safetensors; the bytes follow from names, shapes, types and values alone.

    So there is no metadata among them: safetensors writes it in an order of its own, another one in each process.
    """
    from safetensors.torch import save

    return save(_plain(tensors))


def _plain(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """As safetensors takes them: it keeps no memory format, and moves nothing off a device by itself."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors as safetensors, the bytes of `tensor_bytes`."""
    if sum(tensor.nbytes for tensor in tensors.values()) < LARGE:
        write_bytes(path, tensor_bytes(tensors))
        return
    from safetensors.torch import save_file

    with _partial(path) as file:
        save_file(_plain(tensors), file.name)


def publish(built: Path, directory: Path, product: str) -> None:
    """Move the files of a finished artifact to its directory, the product last; then the artifact is complete.

    The directory may exist, with a pointer to a product that was not fetched beside a spec.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in built.iterdir())
    for name in [*(name for name in names if name != product), product]:
        os.replace(built / name, directory / name)
    _sync(directory)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a file by an exclusive lock, its descriptor; whoever else wants it waits. Freed by death.

    Raises:
        DepoisonError: the file is a symbolic link.
    """
    with open(path, "a", opener=_itself) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


@contextlib.contextmanager
def only_maker(path: Path) -> Iterator[None]:
    """Hold the lock of an artifact or a report, beside it, as `locked` does."""
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with locked(lock) as held:
            # The one before removed the file on leaving: a lock on a removed file keeps nobody out.
            try:
                current = os.path.samestat(lock.lstat(), os.fstat(held))
            except FileNotFoundError:
                current = False
            if not current:
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def artifact_beside(path: Path) -> str | None:
    """The directory of the artifact whose lock, resumable state or unfinished files these are; None for anything else."""
    name = re.fullmatch(r"\.(.+-[0-9a-f]{10})\.(lock|scratch|[^.]+\.building)", path.name)
    return str(path.with_name(name[1])) if name else None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
