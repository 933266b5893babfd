"""Leasing GPUs: each job holds its devices by flock for as long as it lives; the kernel frees them when it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from depoison.errors import DepoisonError, told

log = logging.getLogger("depoison")

VISIBLE = "CUDA_VISIBLE_DEVICES"

SCHEDULED = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
"""Set where a scheduler gave this process its devices."""

_inside = False
"""Whether this process is inside a lease."""


def devices() -> list[str]:
    """The devices that this process may use: those of CUDA_VISIBLE_DEVICES, else all that the driver lists.

    DEPOISON_DEVICES, a comma-separated list, stands for the driver's where there is none to ask (tests).
    """
    for variable in (VISIBLE, "DEPOISON_DEVICES"):
        if variable in os.environ:
            return [name for name in os.environ[variable].split(",") if name.strip() not in ("", "-1")]
    nodes = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    # CUDA counts from 0 what it can open, whatever the nodes' own numbers: a container may see the host's device 3 alone.
    return [str(number) for number in range(sum(os.access(node, os.R_OK | os.W_OK) for node in nodes))]


@contextlib.contextmanager
def lease(count: int, jobs_per_device: int = 1) -> Iterator[list[str]]:
    """Hold `count` devices and make them the visible ones; 0 hides all. Waits until they are free.

    Must be entered before torch first asks for CUDA. All or nothing: a job that cannot have all holds none, so that two
    jobs can never wait for each other. A lease inside another is a part of it: torch keeps the devices that it saw first.

    Args:
        jobs_per_device: how many leases a device takes at a time.

    Raises:
        DepoisonError: more devices than there are.
    """
    before, pool = os.environ.get(VISIBLE), devices()
    if count > len(pool):
        raise DepoisonError(
            f"a job asks for {count} GPUs, this machine has {len(pool) or 'none'}; set runtime.device to auto or cpu"
        )
    global _inside
    outermost, locks = not _inside, {}
    try:
        while outermost and len(locks) < count:
            for device in pool:
                lock = None if device in locks else _take(device, jobs_per_device)
                if lock is not None:
                    locks[device] = lock
                if len(locks) == count:
                    break
            else:
                _release(locks)
                time.sleep(0.05 + random.random() * 0.1)
        held = list(locks) if outermost else pool[:count]
        os.environ[VISIBLE], _inside = ",".join(held), True
        yield held
    finally:
        _inside = not outermost
        _release(locks)
        if before is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = before


def remarks(jobs_per_device: int) -> list[str]:
    """Lines on what keeps leases of this machine's devices from counting for all of its users; none where nothing does."""
    found = []
    for name in (slot for device in devices() for slot in _slots(device, jobs_per_device)):
        descriptor, remark = _open(name)
        os.close(descriptor)
        found += [remark] if remark else []
    return list(dict.fromkeys(found))


def _take(device: str, jobs_per_device: int) -> int | None:
    """An open, locked descriptor for one of the device's slots, or None."""
    for name in _slots(device, jobs_per_device):
        descriptor, remark = _open(name)
        if remark:
            _warn(remark)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            os.close(descriptor)
    return None


def _slots(device: str, jobs_per_device: int) -> list[str]:
    return [f"{_plain(device)}.{slot}.lock" for slot in range(jobs_per_device)]


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", text)


@cache
def _warn(remark: str) -> None:
    """Once a process."""
    log.warning("%s", remark)


def _open(name: str) -> tuple[int, str | None]:
    """A lock file: where all users of the machine have theirs or, if this user cannot, in a folder of his own.

    Returns:
        Its descriptor; in the second case also a line that says so.

    Raises:
        DepoisonError: neither can be used.
    """
    # A scheduler's allocation is the job's alone, and may be numbered from 0 in each job (cgroups).
    job = next((f"-{_plain(os.environ[name])}" for name in SCHEDULED if name in os.environ), "")
    shared, own = (
        Path(tempfile.gettempdir(), f"depoison-{who}{job}") for who in ("devices", f"{os.geteuid()}-devices")
    )
    try:
        return _opened(shared, name, everyone=True), None
    except OSError as error:
        remark = f"{told(error)}; GPUs are leased among your own jobs alone, in {own}"
    try:
        return _opened(own, name, everyone=False), remark
    except OSError as error:
        raise DepoisonError(f"{told(error)}; remove it, or set TMPDIR to a folder of your own") from None


def _opened(folder: Path, name: str, *, everyone: bool) -> int:
    """Open a lock file, made with its folder if need be; follows no link, and changes nothing that is there.

    Args:
        everyone: whether all users of the machine shall be able to; else only this one may.

    Raises:
        OSError: what is in the way, such as a folder of another user's that lets nobody in.
    """
    # The umask is out of the way, and not its work undone afterwards: nobody shall find what is not open to him yet.
    path, umask = folder, os.umask(0)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o1777 if everyone else 0o700)
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if not everyone and os.fstat(place).st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "belongs to another user")
            path = folder / name
            with contextlib.suppress(FileExistsError):
                os.close(os.open(name, os.O_CREAT | os.O_EXCL, 0o444, dir_fd=place))
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
        finally:
            os.close(place)
    except OSError as error:
        raise OSError(error.errno, "is a symbolic link" if path.is_symlink() else error.strerror, str(path)) from None
    finally:
        os.umask(umask)


def _release(held: dict[str, int]) -> None:
    for descriptor in held.values():
        os.close(descriptor)
    held.clear()
