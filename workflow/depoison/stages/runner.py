"""Runs one stage: from a spec and the artifacts it names to a complete artifact, or to nothing."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import importlib
import logging
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from depoison.artifacts import read_spec
from depoison.errors import KEPT, DepoisonError
from depoison.files import RUN, SPEC, artifact_beside, only_maker, publish, refuse_links, sha256_of, write_json
from depoison.gpu import VISIBLE, devices, lease
from depoison.importing import module_of, use
from depoison.plan.config import Runtime
from depoison.plan.methods import Methods, own_in, stem_of
from depoison.plan.specs import STAGES, computes, directory_of

log = logging.getLogger("depoison")


@dataclass
class Job:
    """What a stage gets.

    Attributes:
        spec: {stage, version, upstream, parameters, seed}.
        folder: where it writes its files.
        scratch: where it may keep resumable state.
        runtime: how to work; must not change what is made.
        device: a torch.device, for the stages that compute.
        root: a dataset's local copy, or the file of a model that was brought.
    """

    spec: dict[str, Any]
    folder: Path
    scratch: Path
    runtime: Runtime
    device: Any = None
    root: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        return self.spec["parameters"]

    @property
    def seed(self) -> int:
        return self.spec["seed"]

    @property
    def downloads(self) -> Path:
        """The folder that keeps what was downloaded."""
        return Path(self.runtime.downloads).expanduser()

    def warn(self, remark: str) -> None:
        """Say what the user should know of what is made, and keep it in run.json, for the end of the run."""
        log.warning("%s", remark)
        self.facts.setdefault("warnings", []).append(remark)

    def upstream(self, role: str) -> Path:
        """The directory of an artifact that this one is made from."""
        return Path(self.spec["upstream"][role])


def run_stage(spec: dict[str, Any], directory: str, runtime: Runtime, root: str | None = None) -> None:
    """Make an artifact, unless it is already complete.

    Args:
        directory: must be the one that belongs to the spec.
        root: as `Job` has it.

    Raises:
        DepoisonError: bad input, a missing or corrupted upstream artifact, a symbolic link below results/, or a full disk.
    """
    stage = spec["stage"]
    if directory != directory_of(spec):
        raise DepoisonError(f"{directory}: belongs to another spec; this one's is {directory_of(spec)}")
    final, product = Path(directory), STAGES[stage].product
    if (final / product).exists():
        log.info("%s is there already", final / product)
        return
    for upstream in spec["upstream"].values():
        if not (Path(upstream) / STAGES[upstream.split("/")[1]].product).exists():
            raise DepoisonError(f"{upstream}: missing; make it first, or run the whole chain with snakemake")
    refuse_links(final)
    import_own(spec, directory, runtime)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with only_maker(final):  # two jobs that want one artifact would share its resumable state
            if (final / product).exists():
                log.info("%s was made by another job meanwhile", final / product)
            else:
                _make(spec, final, runtime, root)
    except OSError as error:
        where = error.filename or final
        raise DepoisonError(f"{where}: {error.strerror or error}; {KEPT}") from error


def import_own(spec: dict[str, Any], directory: str, runtime: Runtime) -> None:
    """Import the user's own methods behind an artifact, as they are now, and see that this is the code that its plan saw.

    Raises:
        DepoisonError: it is not.
    """
    use(Path(runtime.methods).expanduser())
    own = dict.fromkeys(method for one in _specs_behind(spec) for method in own_in(one))
    methods = Methods(Path.cwd(), runtime.methods) if own else None
    for folder, name, planned in own:
        code = methods.folder / folder / f"{stem_of(name)}.py"
        if not code.exists():
            raise DepoisonError(f"{methods.shown(code)}: missing; {directory} was planned with it")
        module_of(folder, name)  # before its hash is taken: what is edited after that stays as it was imported
        if methods.hash_of(code) != planned:
            told = f"edited since {directory} was planned; ask for it again: the edit is another path"
            raise DepoisonError(f"{methods.shown(code)}: {told}")


def _specs_behind(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """A spec, and those of what is here of all that it is made from."""
    found, waiting = [spec], list(spec["upstream"].values())
    for upstream in waiting:
        with contextlib.suppress(DepoisonError):  # whoever needs it says what is wrong with it
            found.append(read_spec(upstream))
            waiting += (one for one in found[-1]["upstream"].values() if one not in waiting)
    return found


def _make(spec: dict[str, Any], final: Path, runtime: Runtime, root: str | None) -> None:
    stage, started = spec["stage"], time.time()
    scratch = final.parent / f".{final.name}.scratch"
    refuse_links(scratch)
    for stale in final.parent.glob(f".{glob.escape(final.name)}.*.building"):
        refuse_links(stale)
        shutil.rmtree(stale)  # of a maker that was killed: this one holds the lock
    building = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".building", dir=final.parent))
    try:
        with _device(computes(stage, spec["upstream"]), runtime) as device:
            job = Job(spec, building, scratch, runtime, device, root)
            importlib.import_module(f"depoison.stages.{stage}").run(job)
        write_json(building / SPEC, spec)
        record = _record(job, started) | {"sha256": {f: sha256_of(building / f) for f in STAGES[stage].files}}
        write_json(building / RUN, record)
        publish(building, final, STAGES[stage].product)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)
    log.info("%s made in %.1f s", final / STAGES[stage].product, time.time() - started)


def tidy() -> None:
    """Remove what is left beside complete artifacts by makers who were killed after they had published theirs.

    No stage comes back to those; an artifact that is not complete keeps its resumable state. Nothing behind a link goes.
    """
    for path in sorted(Path("results").glob("*/.*")):
        final = Path(artifact_beside(path) or "")
        stage = STAGES.get(final.parent.name)
        if stage is None or not (final / stage.product).exists():
            continue
        with contextlib.suppress(OSError, DepoisonError):
            refuse_links(path)
            with only_maker(final):  # which removes the lock
                if path.suffix != ".lock":
                    shutil.rmtree(path)


def devices_wanted(runtime: Runtime) -> int:
    """How many GPUs a stage that computes leases."""
    return int(runtime.device == "cuda" or (runtime.device == "auto" and bool(devices())))


def _keep_freed_memory() -> None:
    """Let the process use a freed tensor's memory for the next one, where the C library is glibc.

    By default large blocks go back to the system, which zeroes each page that is asked for again: a sixth of the time of a
    training on a CPU.
    """
    trim_threshold, mmap_threshold, largest = -1, -3, 2**31 - 1  # malloc.h
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, largest)
        mallopt(trim_threshold, largest)


@contextlib.contextmanager
def _device(compute: bool, runtime: Runtime) -> Any:
    """Lease a GPU for a stage that computes, where there is one, and set torch up to be deterministic."""
    if not compute:
        with lease(0):
            yield None
        return
    wanted = devices_wanted(runtime)
    with lease(wanted, runtime.jobs_per_gpu) as held:
        if held:
            log.info("%s=%s", VISIBLE, ",".join(held))
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        import torch

        from depoison.training.loop import convolutions

        _keep_freed_memory()
        torch.set_num_threads(runtime.threads)
        torch.manual_seed(0)  # layers that draw, such as dropout, draw the same whatever this process did before
        # The same flag as use_deterministic_algorithms(True), which would import torch's compiler: a second and a half.
        torch.set_deterministic_debug_mode("error")
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over every new tensor
        usable = bool(wanted) and torch.cuda.is_available()
        if wanted and not usable:
            if runtime.device == "cuda":
                raise DepoisonError("runtime.device: a GPU was leased but torch sees none; valid here: auto or cpu")
            log.warning("this machine has a GPU that torch cannot use; computing on the CPU")
        with convolutions("fp32"):  # recipes ask for less
            yield torch.device("cuda" if usable else "cpu")


def _record(job: Job, started: float) -> dict[str, Any]:
    """How the artifact came about: nothing that its identity depends on."""
    packages = {}
    for name in ("depoison", "torch", "torchvision", "numpy", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    record = {
        "seconds": time.time() - started,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "packages": packages | {"python": platform.python_version()},
        "commit": git_commit(),
        "threads": job.runtime.threads,
        "device": platform.processor() or platform.machine(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if job.device is not None and job.device.type == "cuda":
        import torch

        record["device"] = torch.cuda.get_device_name()
        record["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
    return record | job.facts


def git_commit() -> str | None:
    """The git commit of the working directory, with "-dirty" where tracked files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
