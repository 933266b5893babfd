"""The one exception that users see: a single line that names what is at fault and what is valid."""

from __future__ import annotations

import difflib
import errno
import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from typing import Any

TOLD = "DEPOISON_ERRORS"
"""Environment variable; "in-log": what has a log tells its error only there, for whoever started it to tell it."""


INTERRUPTED = (
    "interrupted: what is finished is kept, and what ran goes on from its last save when you ask for the same again"
)


class DepoisonError(Exception):
    """Bad input or a broken artifact. The message is one line; the command line prints it and exits with 1."""


KEPT = "nothing finished is lost"
NO_ROOM = f"{os.strerror(errno.ENOSPC)}; {KEPT}"


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error is that, or was raised because of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        error = error.__cause__ or error.__context__
    return False


def told(error: BaseException) -> str:
    """An error in one line. One that we did not foresee comes with its type and where it was raised, libraries left out."""
    text = " ".join(str(error).split())[:1000]
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, DepoisonError):
        return text
    name = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    ours = [frame for frame in frames if not frame.filename.startswith((*libraries, "<"))]
    where = [f"{os.path.relpath(frame.filename)}, line {frame.lineno}" for frame in (ours or frames)[-1:]]
    return " ".join([": ".join(filter(None, (name, text))), *(f"({place})" for place in where)])


def returned(code: Callable[..., Any], of: str, found: Any, valid: str) -> DepoisonError:
    """An error for what a method's code returns and should not.

    Args:
        code: the function, whose file is named.
        of: such as "defense fst".
        found: what it returns; a text says it itself.
        valid: what it should, in words.
    """
    file = os.path.relpath(inspect.unwrap(code).__code__.co_filename)
    shown = found if isinstance(found, str) else described(found)
    return DepoisonError(f"{file}: {of} returns {shown}; valid: {valid}")


def described(value: Any) -> str:
    """What a value is, in words: its type, of a tensor with its shape."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def unknown(what: str, name: str, known: Iterable[str], where: str = "") -> DepoisonError:
    """An error for `name`, which is none of `known`, that suggests the nearest one.

    Args:
        what: the kind of thing, such as "defense" or "hyper-parameter of fst".
        where: the file, key or cell that holds the name; put before the message.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return DepoisonError(
        f"{where + ': ' if where else ''}unknown {what} {name!r}; {hint}valid: {', '.join(known) or 'none'}"
    )
