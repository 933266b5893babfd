"""Leasing GPUs: each job holds its devices by flock for as long as it lives; the kernel frees them when it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from depoison.errors import DepoisonError

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


def _take(device: str, jobs_per_device: int) -> int | None:
    """An open, locked descriptor for one of the device's slots, or None."""
    # A scheduler's allocation is the job's alone, and may be numbered from 0 in each job (cgroups).
    job = next((f"-{os.environ[name]}" for name in SCHEDULED if name in os.environ), "")
    folder = Path(tempfile.gettempdir()) / f"depoison-devices{job}"
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):
        folder.chmod(0o1777)  # whoever shares the machine shares its devices
    for slot in range(jobs_per_device):
        path = folder / f"{re.sub(r'[^A-Za-z0-9]', '_', device)}.{slot}.lock"
        with contextlib.suppress(PermissionError):
            path.touch(mode=0o666, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            os.close(descriptor)
    return None


def _release(held: dict[str, int]) -> None:
    for descriptor in held.values():
        os.close(descriptor)
    held.clear()
