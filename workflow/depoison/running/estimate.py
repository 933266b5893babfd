"""How long the rest of a run takes, from recorded times: nothing here reads a file or knows a clock.

The estimate is a bound from below that long runs come close to. With `s` the seconds that each remaining job still takes:

    ETA = max( sum of s · threads / cores,  sum of s · GPUs / all GPUs,  longest chain of jobs that wait for each other )

No schedule is shorter than that, and while many jobs are ready at any time one is hardly longer. What one job takes:

- a running one: what its own epochs say is left, else its estimate less the time that it has run;
- any other: the median of what is recorded of like artifacts (same stage, dataset, model and precision), the most alike
  that there are: with equal parameters, else of the same method, else of any method of the stage, else, for a tuning, a
  training of that model. All but the first are scaled by epochs times the share of the dataset that is trained on;
- times of this run come before older ones; older ones of stages that compute are multiplied by how much longer than recorded
  before this run's jobs took so far, in sum: another machine, or more jobs that share it;
- all of stages that compute are multiplied by how much longer than that this run's last ten took, in sum: others share it;
- plus what a job takes beside its stage, the median over this run's jobs.

A job that nothing alike is recorded of makes the estimate an "at least"; where that is so of most, there is none.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from depoison.plan.specs import canonical, computes


@dataclass(frozen=True)
class Work:
    """What an artifact's making is, as far as its length goes.

    Attributes:
        keys: what it has in common with like work, the most alike first; equal `keys[0]`: nothing but the seed differs.
        units: how much of it there is, in epochs times the share of the dataset that is trained on; 1 for other stages.
        computes: whether its length depends on the machine more than on a network or a disk.
    """

    keys: tuple[str, ...]
    units: float
    computes: bool


def work_of(spec: Mapping[str, Any], spec_of: Callable[[str], Mapping[str, Any]]) -> Work:
    """The work behind a spec.

    Args:
        spec_of: the spec of an upstream artifact, by its directory.
    """
    stage, upstream, parameters = spec["stage"], spec["upstream"], spec["parameters"]

    def found(key: str, spec: Mapping[str, Any]) -> Any:
        """A parameter of this artifact or of the nearest one that it is made from."""
        if key in spec["parameters"]:
            return spec["parameters"][key]
        # Of models, the one that is measured or purified; it is there in every spec that has any.
        role = next((role for role in ("model", "backdoored", "poison") if role in spec["upstream"]), None)
        return found(key, spec_of(spec["upstream"][role])) if role else None

    recipe = parameters.get("recipe") or {}
    kind = "defense" if stage == "purify" else "attack" if stage in ("asset", "poison", "train") else None
    method = found(kind, spec)["name"] if kind else None
    if stage == "dataset":
        method = parameters["name"]
    alike = (upstream.get("dataset"), found("model", spec), recipe.get("precision", parameters.get("precision")))
    keys = [(stage, *alike, method, parameters), (stage, *alike, method), (stage, *alike)]
    units = 1.0
    if recipe and "split" in upstream:
        keys.append(("training", *alike))
        reserve = spec_of(upstream["split"])["parameters"]["reserve"]
        most = reserve if "tuning_images" in parameters else 1 - reserve
        units = recipe["epochs"] * parameters.get("tuning_ratio", most)
    return Work(tuple(canonical(key) for key in keys), units, computes(stage, upstream))


class Records:
    """Recorded times, and what they say about work to come."""

    def __init__(self) -> None:
        self._before: dict[str, list[float]] = defaultdict(list)  # seconds per unit, by key
        self._here: dict[str, list[float]] = defaultdict(list)
        self._beside: list[float] = []
        self._took = self._predicted = 0.0
        self._last: deque[tuple[Work, float]] = deque(maxlen=10)
        self._trend = 1.0
        self._medians: dict[str, float] = {}

    def add(self, work: Work, seconds: float) -> None:
        """An artifact that was made before this run, in so many seconds."""
        self._put(self._before, work, seconds)

    def observe(self, work: Work, seconds: float, beside: float | None = None) -> None:
        """An artifact that this run made.

        Args:
            seconds: of the stage, as it recorded them.
            beside: what its job took besides; None: it was waiting for something else meanwhile.
        """
        if work.computes:
            key = next((key for key in work.keys if key in self._before), None)
            if key is not None:
                self._took += seconds
                self._predicted += statistics.median(self._before[key]) * work.units
        if beside is not None:
            self._beside.append(max(0.0, beside))
        self._put(self._here, work, seconds)
        if work.computes:
            self._last.append((work, seconds))
            usual = sum(self._usual(one) or 0.0 for one, _ in self._last)
            self._trend = sum(took for _, took in self._last) / usual if usual else 1.0

    def _put(self, records: dict[str, list[float]], work: Work, seconds: float) -> None:
        for key in work.keys:
            records[key].append(seconds / work.units)
        self._medians.clear()

    @property
    def slowdown(self) -> float:
        """How much longer this run's jobs took than what was recorded before said."""
        return self._took / self._predicted if self._predicted else 1.0

    @property
    def beside(self) -> float:
        """Seconds that a job takes beside its stage."""
        return statistics.median(self._beside) if self._beside else 0.0

    def predict(self, work: Work) -> float | None:
        """Seconds of a stage; None: nothing alike was recorded."""
        usual = self._usual(work)
        return usual and usual * (self._trend if work.computes else 1)

    def _usual(self, work: Work) -> float | None:
        """What it takes on the average of this run."""
        for key in work.keys:
            if key not in self._medians:
                if key in self._here:
                    self._medians[key] = statistics.median(self._here[key])
                elif key in self._before:
                    self._medians[key] = statistics.median(self._before[key]) * (self.slowdown if work.computes else 1)
                else:
                    continue
            return self._medians[key] * work.units
        return None


@dataclass(frozen=True)
class Remaining:
    """A job that is not done.

    Attributes:
        work: None for a job that makes a view of artifacts and takes no time to speak of.
        uses: what it holds while it runs, such as {"cores": 1, "gpu": 1}.
        elapsed: seconds that it has run; None: it waits.
        left: seconds that it says are left.
        after: positions, in the sequence of all, of jobs that it waits for; they come before it.
    """

    work: Work | None
    uses: Mapping[str, float] = field(default_factory=dict)
    elapsed: float | None = None
    left: float | None = None
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """How long the rest takes.

    Attributes:
        seconds: until the last job is done; None: of most jobs nothing is known.
        unknown: jobs of which nothing is known, not counted in `seconds`.
    """

    seconds: float | None
    unknown: int = 0

    def __str__(self) -> str:
        if self.seconds is None:
            return "–"
        return f"> {duration(self.seconds)}" if self.unknown else duration(self.seconds)


def estimate(jobs: Sequence[Remaining], records: Records, limits: Mapping[str, float]) -> Estimate:
    """How long the rest takes.

    Args:
        limits: how much there is of what jobs use; what is not named, or 0, has no limit.
    """
    needed: dict[str, float] = defaultdict(float)
    chains: list[float] = []
    unknown = 0
    for job in jobs:
        seconds = _seconds(job, records)
        if seconds is None:
            unknown += 1
            seconds = 0.0
        chains.append(seconds + max((chains[before] for before in job.after), default=0.0))
        for resource, amount in job.uses.items():
            needed[resource] += seconds * amount
    if 2 * unknown > sum(job.work is not None for job in jobs):
        return Estimate(None, unknown)
    bounds = [needed[resource] / limit for resource, limit in limits.items() if limit]
    return Estimate(max([0.0, *bounds, *chains]), unknown)


def _seconds(job: Remaining, records: Records) -> float | None:
    """Seconds that a job still takes; None: nothing is known of it."""
    if job.left is not None:
        return job.left
    stage = 0.0 if job.work is None else records.predict(job.work)
    return None if stage is None else max(0.0, stage + records.beside - (job.elapsed or 0.0))


def duration(seconds: float) -> str:
    """Seconds as people say them, to about two digits: 45 s, 6 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 99.5:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 10:
        return f"{hours} h {minutes} min"
    if hours < 48:
        return f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"
