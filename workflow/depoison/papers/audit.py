"""An audit: the cells of a model that was brought with every defense that can purify it, and how they are judged."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from depoison.errors import DepoisonError
from depoison.papers.grid import Place
from depoison.papers.kinds.examples import examples_of
from depoison.papers.published import Key
from depoison.plan.cells import CellName, Choice
from depoison.plan.config import Checkpoint, Strict, load_as
from depoison.plan.documents import read_document
from depoison.plan.metrics import Metric
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact, unique

FILE = "config/audit.yaml"
SEES = {"model", "clean", "tune"}
"""What a defense may see that purifies a model by clean data alone."""
BY_DEFENDER = ("select", "defender")
"""Where a paper chose a threshold by test data, an audit takes what a defender can."""


class JudgedFile(Strict):
    show: list[str] = Field(min_length=1, description="metrics of the table")
    judge: str = Field(description="the metric that says whether a model is clean; lower is better")
    clean: float = Field(description="up to which it is")
    keep: str = Field(description="the metric of what a defense is to keep; higher is better")
    lose: float = Field(ge=0, description="how much of that a defense may lose which is to be taken")


class AuditFile(Strict):
    """config/audit.yaml"""

    trigger: JudgedFile = Field(description="of a model whose trigger is known")
    unknown: JudgedFile = Field(description="of one whose trigger is not")


@dataclass(frozen=True)
class Audit:
    """A model that was brought.

    Attributes:
        places: of each defense, without one first.
        shown: metrics of the table.
        judge, clean, keep, lose: see `JudgedFile`.
        right: the metric of triggered images that are as they should be, where the judge alone does not tell.
        examples: images with its trigger, where that is known.
    """

    name: str
    content: Checkpoint
    places: tuple[Place, ...]
    shown: tuple[Metric, ...]
    judge: Metric
    clean: float
    keep: Metric
    lose: float
    right: Metric | None
    examples: Artifact | None

    def artifacts(self) -> list[Artifact]:
        """Whatever it is read from."""
        found = [artifact for place in self.places for artifact in place.needs()]
        return unique([*found, self.examples] if self.examples else found)


def read_audit(plan: Plan, name: str) -> Audit:
    """Resolve every cell of an audit.

    Raises:
        DepoisonError: no such checkpoint, a fault in a file, or a cell that cannot be.
    """
    configuration = plan.configuration
    configuration.require_file("checkpoint", name, f"audit of {name}")
    content, brought = configuration.checkpoint(name)
    assert isinstance(content, Checkpoint)
    file, document = load_as(AuditFile, read_document(plan.root / FILE, plan.root))
    key = "trigger" if content.trigger else "unknown"
    rule: JudgedFile = getattr(file, key)
    shown = plan.metrics.find_all(rule.show, document.where(key, "show"))
    judge, keep = (plan.metrics.find(getattr(rule, of), document.place(key, of)) for of in ("judge", "keep"))
    for of, metric, sign in (("judge", judge, -1), ("keep", keep, 1)):
        if metric.sign != sign:
            valid = ", ".join(one.name for one in plan.metrics.values() if one.sign == sign)
            raise DepoisonError(f"{document.place(key, of)}: {of}: {metric.name} is no such metric; valid: {valid}")
    task = configuration.task_of(content.dataset)
    for metric in (*shown, judge):
        if metric.task not in (None, task):
            raise DepoisonError(
                f"{brought.place('dataset')}: {metric.name} looks for a trigger in {metric.task}s, and {content.dataset} is "
                f"of {task}; tell the `trigger`"
            )
    rule_of = judge.no_rescue
    right = plan.metrics[rule_of.right] if rule_of else None
    beside = [plan.metrics[rule_of.clean], right] if rule_of and right else []
    metrics = tuple(dict.fromkeys([*shown, judge, keep, *beside]))
    places = tuple(_place(plan, name, content, choice, metrics) for choice in _defenses(plan, name, content))
    examples = examples_of(places[0].cells[0]) if content.trigger else None
    found = Audit(name, content, places, shown, judge, rule.clean, keep, rule.lose, right, examples)
    plan.remember(found.artifacts())
    return found


def _defenses(plan: Plan, checkpoint: str, content: Checkpoint) -> list[Choice]:
    """None, then each that purifies a model such as this one by clean data."""
    configuration, found = plan.configuration, [Choice("none")]
    task, classes = configuration.task_of(content.dataset), plan.classes_of(_name(checkpoint, content, found[0]))
    for name in configuration.names("defense"):
        method, sees = configuration.method("defense", name).content, set(configuration.sight(name))
        fits = method.task in (None, task) and not configuration.lacking("defense", name, content.model)
        enough = classes is None or method.fewest_classes <= classes
        if "model" in sees <= SEES and fits and enough:
            found.append(Choice(name, (BY_DEFENDER,) if BY_DEFENDER[0] in method.parameters else ()))
    return found


def _name(checkpoint: str, content: Checkpoint, defense: Choice) -> CellName:
    return CellName(content.track, Choice(content.dataset), Choice(content.model), Choice(checkpoint), defense, 0)


def _place(plan: Plan, name: str, content: Checkpoint, defense: Choice, metrics: tuple[Metric, ...]) -> Place:
    cell = plan.cell(_name(name, content, defense))
    key = Key(content.dataset, content.model, name, defense.canonical)
    return Place({}, key, content.dataset, content.model, Choice(name), defense, (cell,), metrics=metrics)
