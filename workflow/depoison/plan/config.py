"""The configuration's files, validated: config.yaml with overlays, methods, datasets and tracks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from depoison.errors import DepoisonError, unknown
from depoison.plan.cells import parts_of
from depoison.plan.documents import Document, folders_in, names_in, read_document
from depoison.plan.methods import DEFAULT, KINDS, Methods, stem_of
from depoison.plan.parameters import Parameter, Shared
from depoison.plan.signatures import (
    declared,
    declared_asset,
    declared_keywords,
    declared_loop,
    declared_sight,
)

SECTIONS = {"poisoning": ("poisoning",), "training": ("recipe",), "tuning": ("recipe", "tuning")}
"""Sections of shared values, in config.yaml and (but for poisoning) in datasets and tracks, and the groups they set."""

SECTIONS_OF = {"dataset": (), "model": (), "attack": ("poisoning", "training"), "defense": ("tuning",)}
SHARED_BY = {"dataset": ("dataset",), "model": (), "attack": ("poisoning", "recipe"), "defense": ("recipe", "tuning")}

ASSET_NEEDS = ("model", "recipe", "target")
"""What an attack's asset may depend on, besides hyper-parameters of the attack: as the backdoored model is trained, or as the
model would be that a hyper-parameter of type `model` names; and the target label."""

PAPERS = "config/papers"
PAPER_FILE = "paper.yaml"
DEFAULT_PAPER = "fst"

OWN, CELLS_NAME = "your configuration", "the cell's name"
"""The layers above the track's, as `depoison explain` calls them."""

Values = dict[str, Any]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Runtime(Strict):
    """How work is done; none of it is in a spec, so none of it moves a path.

    CPU results are bitwise equal for an equal number of `threads` only, which is why a stage always uses this number,
    however many cores Snakemake grants it.
    """

    threads: int = Field(1, ge=1, le=256, description="CPU threads of a stage")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    jobs_per_gpu: int = Field(1, ge=1, le=64, description="jobs that may share a device")
    save_seconds: float = Field(30, ge=0, description="least time between two saves of a training that may be resumed")
    methods: str = Field(DEFAULT, description="folder of methods of your own: in it attacks/, defenses/, models/, …")
    downloads: str = Field("data", description="folder that keeps downloaded archives and pre-trained weights")
    largest_image: float = Field(
        50, gt=0, le=10_000, description="megapixels that an image file may have; more is refused"
    )


class SharedFile(Strict):
    """config/shared.yaml: the hyper-parameters that methods share, in groups."""

    dataset: dict[str, Shared] = Field(description="of datasets")
    poisoning: dict[str, Shared] = Field(description="of attacks")
    recipe: dict[str, Shared] = Field(description="of training and of tuning")
    tuning: dict[str, Shared] = Field(description="of tuning alone")


class TaskFile(Strict):
    """config/tasks/<name>.yaml: a kind of data, and the shared hyper-parameters that are of it alone."""

    summary: str = Field(description="one line")
    version: int = Field(1, ge=1, description="raised when the task's code changes what is made of its data")
    dataset: dict[str, Shared] = Field(default={}, description="of datasets")
    recipe: dict[str, Shared] = Field(default={}, description="of training and of tuning")


def _differ(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed stands twice")
    return seeds


Seeds = Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_differ)]


class Config(Strict):
    """config/config.yaml and what overlays (--configfile) change of it."""

    seeds: Seeds = Field(default=[0], description="seeds of every table; a table file may set its own")
    runtime: Runtime = Runtime()
    poisoning: Values = Field(default={}, description="shared defaults of attacks")
    training: Values = Field(default={}, description="shared defaults of training")
    tuning: Values = Field(default={}, description="shared defaults of tuning")
    datasets: dict[str, Values] = Field(default={}, description="your values for a dataset, such as its local copy")
    models: dict[str, Values] = Field(default={}, description="your values for a model")
    attacks: dict[str, Values] = Field(default={}, description="your values for an attack")
    defenses: dict[str, Values] = Field(default={}, description="your values for a defense")


class Smoke(Strict):
    """How `make test-methods` tries an attack or a defense on small real images, and what came out on every processor."""

    images: Literal["digits", "photographs"] = Field("digits", description="what it is tried on")
    values: Values = Field(default={}, description="with which values")
    takes: bool | None = Field(
        True, description="(attacks only) whether it implants its trigger there; null: one or the other"
    )
    leaves: Literal["fell", "kept"] | None = Field(
        None,
        description="what FST leaves of this attack's success, or this defense of BadNet's; fell: at most a third, "
        "kept: more; default: one or the other",
    )


class Method(Strict):
    """A dataset, model, attack or defense: config/<kind>s/<name>.yaml, or beside its code in a folder of one's own."""

    summary: str = Field(description="one line")
    label: str = Field(description="name in tables")
    cite: str = Field("", description="citation key in CITATIONS.bib")
    source: str = Field("", description="where the method stands in its paper")
    version: int = Field(
        1, ge=1, description="raised when the method's code changes what it makes; a method of one's own has none"
    )
    task: str | None = Field(None, description="the kind of data that it is of or for; default: any")
    shared: list[Literal["dataset", "poisoning", "recipe", "tuning"]] | None = Field(
        None, description="groups of shared hyper-parameters that it takes; default: all of its kind"
    )
    parameters: dict[str, Parameter] = Field(default={}, description="its own hyper-parameters")
    asset: list[str] | None = Field(
        None,
        description="(attacks only) it makes something before it poisons, such as a network of its own; lists what that "
        "depends on: hyper-parameters of its own, `model` and `recipe` (of the backdoored model, or of the one that a "
        "hyper-parameter of type `model` names), `target`",
    )
    values: Values = Field(default={}, description="its defaults for shared hyper-parameters")
    datasets: dict[str, Values] = Field(default={}, description="its values on a dataset")
    models: dict[str, Values] = Field(default={}, description="its values with a model")
    has: list[str] = Field(default=[], description="(models only) what methods may need of it, such as batchnorm")
    needs: list[str] = Field(default=[], description="(attacks and defenses only) what a model must have")
    fewest_classes: int = Field(default=2, ge=2, description="(defenses only) that a dataset must have")
    smoke: Smoke = Field(default=Smoke(), description="(attacks and defenses only) of `make test-methods`; in no spec")
    grids: dict[str, list[Any]] = Field(default={}, description="values that the paper sweeps, by hyper-parameter")
    normalization: Values = Field(
        default={}, description="(models only) mean and std that it was pre-trained with, in place of the dataset's"
    )
    train_samples: int | None = Field(None, ge=4, description="(datasets only) how many training images it has")
    classes: int | None = Field(
        None, ge=2, description="(datasets only) how many its own source has, so that a wrong target is refused at once"
    )
    training: Values = Field(default={}, description="(datasets only) how models are trained on it")
    tuning: Values = Field(default={}, description="(datasets only) how models are tuned on it")


ONLY = {
    "normalization": ("model",),
    "has": ("model",),
    "needs": ("attack", "defense"),
    "fewest_classes": ("defense",),
    "smoke": ("attack", "defense"),
}
"""The kinds of methods that have these keys."""


class Replace(Strict):
    """What a track puts in place of a paper's datasets and models; "*" stands for all others."""

    datasets: dict[str, str] = {}
    models: dict[str, str] = {}

    def instead(self, kind: Literal["dataset", "model"], name: str) -> str:
        """What stands in the place of a dataset or model; itself where nothing does."""
        names = {"dataset": self.datasets, "model": self.models}[kind]
        return names.get(name, names.get("*", name))


class Scaling(Strict):
    """What becomes of the poisoning rates of a paper's tables and figures where a track has other datasets."""

    scale: Literal["rate", "images"] = Field(
        "rate",
        description="rate: they stay; images: the number of poisoned images does, which is what implants a trigger",
    )
    cap: float = Field(0.2, gt=0, lt=1, description="with images: the highest rate")
    clean_label_cap: float = Field(
        0.2, gt=0, lt=1, description="the same of attacks that poison the target class alone"
    )


class Curvature(Strict):
    """How the Hessian of the loss is measured, on one batch of training images with their true labels."""

    images: int = Field(200, ge=1, description="of the batch")
    triggered: float = Field(0.5, ge=0, le=1, description="share of them that carries the trigger")
    vectors: int = Field(100, ge=1, description="random vectors for the trace, at most")
    tolerance: float = Field(
        0.001, gt=0, lt=1, description="relative: of the largest eigenvalue, and of the trace's standard error"
    )
    iterations: int = Field(100, ge=1, description="of Lanczos, for the density of eigenvalues")

    def then(self, other: Curvature) -> Curvature:
        """With what the other one sets."""
        return self.model_copy(update=other.model_dump(exclude_unset=True))


class Track(Strict):
    """config/tracks/<name>.yaml: at what budget a table is made. It sets dataset, model, budget and scale, nothing else."""

    summary: str = Field(description="one line")
    paper: str | None = Field(None, description="the paper whose reports a target without one means; default: fst")
    replace: Replace = Replace()
    poisoning: Scaling = Scaling()
    training: Values = Field(default={}, description="budget of training")
    tuning: Values = Field(default={}, description="budget of tuning")
    datasets: dict[str, Values] = Field(default={}, description="values of a dataset")
    models: dict[str, Values] = Field(default={}, description="values of a model")
    attacks: dict[str, Values] = Field(default={}, description="budget of training for one attack")
    defenses: dict[str, Values] = Field(default={}, description="budget of one defense")
    curvature: Curvature = Curvature()

    @property
    def is_papers(self) -> bool:
        """Whether it leaves the papers' datasets, models and budgets as they are; they name no precision."""
        content = self.model_dump(exclude={"summary": True, "training": {"precision"}, "tuning": {"precision"}})
        return content == Track(summary="").model_dump(exclude={"summary"})


class Trigger(Strict):
    """The trigger of a model that was brought: that of one of the attacks."""

    attack: str
    values: Values = Field(default={}, description="of the attack, and target, labels and victim")


class Checkpoint(Strict):
    """config/checkpoints/<name>.yaml: a model that was trained elsewhere, in an attack's place."""

    summary: str = Field("a model that was trained elsewhere", description="one line")
    label: str = Field("", description="name in tables; default: that of the file")
    weights: str = Field(
        description="file of weights, from the project's folder: .safetensors, or .pt, .pth, … of tensors"
    )
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="of that file, which then may be gone once it was adopted"
    )
    key: str = Field("", description="where the state dict lies in the file, such as `model`; default: where it fits")
    rename: dict[str, str | None] = Field(
        default={}, description="by pattern, what stands in its place in the tensors' names; null leaves a tensor out"
    )
    model: str = Field(description="its architecture: one of config/models")
    parameters: Values = Field(default={}, description="the model's hyper-parameters, such as its width")
    dataset: str = Field(description="what it classifies")
    normalization: Values = Field(default={}, description="mean and std that it takes, in place of the dataset's")
    labels: list[str] | None = Field(
        None, min_length=2, description="the classes of its outputs, in their order; default: the dataset's"
    )
    trigger: Trigger | None = Field(None, description="default: none is known")
    track: str = Field("paper", description="at whose budget `depoison audit` purifies it")


class OfDataset(BaseModel):
    """A paper's values on a dataset: of the dataset itself, and of how models are trained and tuned on it."""

    model_config = ConfigDict(extra="allow")

    training: Values = {}
    tuning: Values = {}


class OfMethod(BaseModel):
    """A paper's values of a method: its own and shared ones, and those on a dataset or with a model."""

    model_config = ConfigDict(extra="allow")

    datasets: dict[str, Values] = {}
    models: dict[str, Values] = {}


class Paper(Strict):
    """config/papers/<paper>/paper.yaml: what a paper is called, and the values that are its own choice."""

    title: str
    label: str = Field(description="name in reports")
    cite: str = Field("", description="citation key in CITATIONS.bib")
    poisoning: Values = Field(default={}, description="of every attack")
    training: Values = Field(default={}, description="of every attack's training")
    tuning: Values = Field(default={}, description="of every defense")
    datasets: dict[str, OfDataset] = Field(
        default={}, description="values of a dataset, and of `training` and `tuning` on it"
    )
    models: dict[str, OfMethod] = Field(default={}, description="values of a model")
    attacks: dict[str, OfMethod] = Field(default={}, description="values of an attack")
    defenses: dict[str, OfMethod] = Field(default={}, description="values of a defense")


class Setting(NamedTuple):
    """A value and who set it."""

    value: Any
    layer: str
    place: str


class Loaded(NamedTuple):
    """A validated file and its document, which knows the lines."""

    content: Any
    document: Document


def load_as(model: type[BaseModel], document: Document) -> Loaded:
    """Validate a document.

    Raises:
        DepoisonError: the first fault, with file and line.
    """
    try:
        return Loaded(model.model_validate(document.data), document)
    except ValidationError as error:
        fault = error.errors()[0]
        keys = tuple(str(key) for key in fault["loc"])
        if fault["type"] == "extra_forbidden":
            fields = [field.alias or name for name, field in _model_at(model, keys[:-1]).model_fields.items()]
            raise unknown("key", keys[-1], fields, document.place(*keys)) from None
        message = fault["msg"].removeprefix("Value error, ")
        raise DepoisonError(f"{document.where(*keys)}: {message[0].lower()}{message[1:]}") from None


def _model_at(model: type[BaseModel], keys: tuple[str, ...]) -> type[BaseModel]:
    """The model that describes the mapping at `keys` of a file that `model` describes."""
    if not keys:
        return model
    if keys[0] not in model.model_fields:  # an index or a name: the values below are all of one model
        return _model_at(model, keys[1:])
    waiting = [model.model_fields[keys[0]].annotation]
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return _model_at(annotation, keys[1:])
        waiting += get_args(annotation)
    return model


class Configuration:
    """All files below config/, read as they are needed.

    Args:
        root: the project's folder, which holds config/ and workflow/.
        documents: config/config.yaml first, then overlays; later ones win key by key.
        given: what the user gave Snakemake by --configfile and --config, where it runs this; it wins over the documents.
    """

    def __init__(self, root: Path, documents: list[Document], given: Mapping[str, Any] | None = None):
        self.root = root
        given = dict(given or {})
        shared, self._shared_document = load_as(SharedFile, read_document(root / "config" / "shared.yaml", root))
        self.shared: dict[str, dict[str, Shared]] = {group: getattr(shared, group) for group in SharedFile.model_fields}
        """The hyper-parameters that methods share, by group; those of one task's data know it."""
        self.tasks: dict[str, TaskFile] = {}
        for task in self.names("task"):
            self.tasks[task], document = load_as(
                TaskFile, read_document(root / "config" / "tasks" / f"{task}.yaml", root)
            )
            for group in ("dataset", "recipe"):
                for key, parameter in getattr(self.tasks[task], group).items():
                    if any(key in others for others in self.shared.values()):
                        raise DepoisonError(
                            f"{document.place(group, key)}: {key!r} is another shared hyper-parameter, too"
                        )
                    self.shared[group][key] = parameter.model_copy(update={"task": task})
                    self._shared_document.places[group, key] = document.place(group, key)
        self._shared_defaults = documents[0]
        merged, own = documents[0].data, {}
        places = dict(documents[0].places)
        for document in documents[1:]:
            merged, own = _merge(merged, document.data), _merge(own, document.data)
            places.update(document.places)
        places.update(dict.fromkeys(_differences(own, given), "--config"))
        merged, own = _merge(merged, given), _merge(own, given)
        if own:
            load_as(Config, documents[0])
        self.config: Config
        self.config, self._document = load_as(Config, Document(documents[0].path, merged, places))
        self.methods = Methods(root, self.config.runtime.methods)
        self._own = {section: own.get(section) or {} for section in SECTIONS}
        """The user's values of the shared sections: those of overlays, not those of config.yaml."""
        self._check_sections(self.config, self._document)
        for kind, name, values, keys in self._said_of(KINDS, self.config, self._document):
            self._check_values(values, self.parameters(kind, name), self._document, *keys)

    def _of(self, group: str, task: str | None) -> dict[str, Shared]:
        """The shared hyper-parameters of a group that there are for a task's data; None: for any."""
        known = self.shared[group].items()
        return {key: parameter for key, parameter in known if not (task and parameter.task) or parameter.task == task}

    def _of_task(self, task: str | None) -> dict[str, Shared]:
        """Of those of datasets, what is of its data alone."""
        return {key: parameter for key, parameter in self._of("dataset", task).items() if parameter.task}

    def _group_of(self, section: str, task: str | None = None) -> dict[str, Shared]:
        return {key: parameter for group in SECTIONS[section] for key, parameter in self._of(group, task).items()}

    @staticmethod
    def _check_values(values: Values, known: Mapping[str, Parameter], document: Document, *keys: str) -> None:
        for key, value in values.items():
            if key not in known:
                raise unknown("hyper-parameter", key, known, f"{document.place(*keys, key)}: {'.'.join(keys)}")
            known[key].check(value, document.where(*keys, key))

    def _check_sections(self, content: Any, document: Document, *keys: str, task: str | None = None) -> None:
        """Check what a file says at `keys` of shared values; not all of them may have every section."""
        for section in SECTIONS:
            values, known = getattr(content, section, {}), self._group_of(section, task)
            self._check_values(values, known, document, *keys, section)

    def _said_of(
        self, kinds: Iterable[str], content: Any, document: Document, *keys: str
    ) -> Iterator[tuple[str, str, Any, tuple[str, ...]]]:
        """(kind, name, what is said of it, its keys) of each method in a file's sections, at `keys`, of these kinds.

        Raises:
            DepoisonError: there is none of its name.
        """
        for kind in kinds:
            for name, said in getattr(content, KINDS[kind]).items():
                at = (*keys, KINDS[kind], name)
                self.require_file(kind, name, document.place(*at))
                yield kind, name, said, at

    def require_file(self, kind: str, name: str, where: str) -> None:
        """Raises: DepoisonError: there is no file of this kind and name; `names` has the kinds."""
        if name not in self.names(kind):
            raise unknown(kind, name, self.names(kind), where)

    @cache  # noqa: B019 - lives as long as the process
    def names(self, kind: str) -> list[str]:
        """Every name of a kind ("dataset", "model", "attack", "defense", "track", "task" or "checkpoint") that has a file."""
        if kind in KINDS:
            return self.methods.names(KINDS[kind])
        return names_in(self.root / "config" / f"{kind}s", self.root)

    @cache  # noqa: B019
    def method(self, kind: str, name: str) -> Loaded:
        """The validated file of a dataset, model, attack or defense.

        Raises:
            DepoisonError: no such method (with the nearest name), a fault in its file, or a file that disagrees with
                the code: a hyper-parameter that the code does not take, or one that the file lacks.
        """
        self.require(kind, name)
        if len(parts := parts_of(name)) > 1:
            return self._combined(parts)
        if kind == "attack" and name not in self.names(kind):
            return self._brought(name)
        loaded = load_as(Method, read_document(self.methods.file(KINDS[kind], name), self.root))
        method, document = loaded
        if method.task not in (None, *self.tasks):
            raise unknown("task", method.task, self.tasks, document.place("task"))
        if kind == "dataset" and method.task is None:
            raise DepoisonError(f"{document.place('task')}: a dataset needs a task; valid: {', '.join(self.tasks)}")
        self.methods.refuse_version(
            KINDS[kind], method.values.get("source", "") if kind == "dataset" else name, document
        )
        own, shared = method.parameters, self._shared_by(kind, method)
        for key in own.keys() & shared.keys():
            raise DepoisonError(f"{document.place('parameters', key)}: {key!r} is the name of a shared hyper-parameter")
        if kind != "dataset":
            self._check_code(kind, name, loaded)
            for section in ("training", "tuning", "train_samples"):
                if getattr(method, section):
                    raise DepoisonError(f"{document.place(section)}: only a dataset has a section {section!r}")
        for key, kinds in ONLY.items():
            if key in method.model_fields_set and kind not in kinds:
                raise DepoisonError(f"{document.place(key)}: only {' and '.join(KINDS[k] for k in kinds)} have {key!r}")
        for i, feature in enumerate(method.needs):
            if feature not in self._having:
                where = document.place("needs", str(i))
                raise unknown("feature that any model has", feature, self._having, where)
        known = {**own, **shared}
        self._check_values(method.normalization, self._of_task(method.task), document, "normalization")
        self._check_values(method.values, shared, document, "values")
        self._check_values(method.smoke.values, known, document, "smoke", "values")
        self._check_sections(method, document, task=method.task)
        for key, grid in method.grids.items():
            for value in grid:
                self._check_values({key: value}, known, document, "grids")
        for _, _, values, keys in self._said_of(("dataset", "model"), method, document):
            self._check_values(values, known, document, *keys)
        return loaded

    def missing(self, kind: str, name: str) -> list[str]:
        """The name, or those of attacks that it combines, of which there is no file; an attack may be a checkpoint."""
        parts, known = (name,), [*self.names(kind)]
        if kind == "attack":
            parts, known = parts_of(name), known + self.names("checkpoint")
        return [part for part in parts if part not in known]

    def require(self, kind: str, name: str, where: str = "") -> None:
        """See that there is a method of this name, and that attacks that it combines can be.

        Args:
            where: the cell that names it.

        Raises:
            DepoisonError: there is not, with the nearest name, or they cannot.
        """
        for part in self.missing(kind, name):
            if (code := self.methods.folder / KINDS[kind] / f"{stem_of(part)}.py").exists():
                raise DepoisonError(f"{self.methods.shown(code)}: lacks its YAML, {part}.yaml beside it")
            brought = self.names("checkpoint") if kind == "attack" else []
            raise unknown(kind, part, [*self.names(kind), *brought], where)
        if len(parts := parts_of(name)) == 1:
            return
        at = f"{where}: " if where else ""
        for part in parts:
            if why := self._alone(part):
                valid = ", ".join(one for one in self.names(kind) if not self._alone(one))
                raise DepoisonError(f"{at}{part} {why}, so it cannot be combined with others; valid: {valid}")
        tasks = {part: task for part in parts if (task := self.method(kind, part).content.task)}
        if len(set(tasks.values())) > 1:
            told = ", ".join(f"{part} is for the task {task}" for part, task in tasks.items())
            raise DepoisonError(f"{at}{told}; valid: attacks for one task")

    @cache  # noqa: B019
    def _alone(self, attack: str) -> str:
        """Why an attack cannot be combined with others; "" where it can."""
        if attack in self.names("checkpoint"):
            return "is a model"
        if "poisoning" not in self._groups("attack", self.method("attack", attack).content):
            return "poisons nothing"
        if declared_loop(self._code("attack", attack), self.methods.bases("attacks")):
            return "trains the model in a loop of its own"
        return ""

    def _combined(self, parts: Sequence[str]) -> Loaded:
        """Attacks that are combined, as one method, which has each hyper-parameter of theirs as `attack.key`.

        What their own files say of shared hyper-parameters is of each attack alone.
        """
        loaded = {part: self.method("attack", part) for part in parts}
        contents = {part: each.content for part, each in loaded.items()}
        places = {
            ("parameters", f"{part}.{key}"): each.document.place("parameters", key)
            for part, each in loaded.items()
            for key in each.content.parameters
        }
        method = Method(
            summary=" and ".join(content.summary for content in contents.values()),
            label=" & ".join(content.label for content in contents.values()),
            task=next((content.task for content in contents.values() if content.task), None),
            parameters={f"{part}.{key}": p for part, c in contents.items() for key, p in c.parameters.items()},
            needs=[feature for content in contents.values() for feature in content.needs],
            grids={f"{part}.{key}": grid for part, c in contents.items() for key, grid in c.grids.items()},
        )
        return Loaded(method, Document("config/attacks", {}, places))

    @cache  # noqa: B019
    def checkpoint(self, name: str) -> Loaded:
        """The validated file of a model that was brought.

        Raises:
            DepoisonError: no such file, a fault in it, or the name of an attack.
        """
        loaded = load_as(Checkpoint, read_document(self.root / "config" / "checkpoints" / f"{name}.yaml", self.root))
        content, document = loaded
        if name in self.names("attack"):
            raise DepoisonError(f"{document.path}: {name} is an attack; give the file another name")
        for kind in ("model", "dataset", "track"):
            self.require_file(kind, getattr(content, kind), document.place(kind))
        task = self.task_of(content.dataset)
        own = self.method("model", content.model).content
        self._check_values(content.parameters, own.parameters, document, "parameters")
        self._check_values(content.normalization, self._of_task(task), document, "normalization")
        if content.trigger is not None:
            attack, where = content.trigger.attack, document.place("trigger", "attack")
            self.require_file("attack", attack, where)
            method = self.method("attack", attack).content
            if method.asset is not None or not set(self._groups("attack", method)) >= {"poisoning"}:
                raise DepoisonError(f"{where}: {method.label} has no trigger that is known before training")
            keys = {*method.parameters, *self.shared["poisoning"]} - {"rate"}
            known = {key: p for key, p in self.parameters("attack", attack).items() if key in keys}
            self._check_values(content.trigger.values, known, document, "trigger", "values")
        return loaded

    def _brought(self, name: str) -> Loaded:
        """A model that was brought, as the attack in whose place it stands."""
        content, document = self.checkpoint(name)
        task = self.task_of(content.dataset)
        return Loaded(Method(summary=content.summary, label=content.label or name, task=task, shared=[]), document)

    @cache  # noqa: B019
    def clean_label(self, attack: str) -> bool:
        """Whether an attack, or one of those that it combines, poisons samples of the target class alone."""
        parts = (part for part in parts_of(attack) if part in self.names("attack"))
        return any(declared(self._code("attack", part), "clean_label = True") for part in parts)

    @cache  # noqa: B019
    def poisons_data(self, attack: str) -> bool:
        """Whether an attack poisons a set of samples before training, or is none; of combined attacks one is enough."""
        parts = [part for part in parts_of(attack) if part in self.names("attack")]
        return not parts or any(not declared(self._code("attack", part), "poisons_data = False") for part in parts)

    def _check_code(self, kind: str, name: str, loaded: Loaded) -> None:
        code = self._code(kind, name)
        if kind == "defense":
            self.sight(name)
        takes, has = declared_keywords(code), loaded.content.parameters
        shown = self.methods.shown(code)
        for key in sorted(has.keys() - takes.keys()):
            raise DepoisonError(
                f"{loaded.document.place('parameters', key)}: {key!r} is dead: {shown} does not take it"
            )
        for key in sorted(takes.keys() - has.keys()):
            raise DepoisonError(f"{loaded.document.place('parameters')}: lacks {key!r}, which {shown} takes")
        asset, made = loaded.content.asset, declared_asset(code)
        for key in asset or ():
            if key not in {*has, *ASSET_NEEDS}:
                raise unknown("hyper-parameter", key, [*has, *ASSET_NEEDS], loaded.document.place("asset"))
        if (None if made is None else set(made)) != (None if asset is None else set(asset) - set(ASSET_NEEDS)):
            takes_ = "no make_asset" if made is None else f"make_asset with {', '.join(sorted(made)) or 'nothing'}"
            raise DepoisonError(f"{loaded.document.place('asset')}: does not fit {shown}, which has {takes_}")
        for key, default in (*takes.items(), *(made or {}).items()):
            if has[key].has_neutral and default != has[key].neutral:
                place = loaded.document.place("parameters", key, "neutral")
                raise DepoisonError(
                    f"{place}: neutral: {shown} has no such default for {key!r}; valid: the same in both"
                )
        naming = [key for key, parameter in has.items() if parameter.type == "model"]
        if len(naming) > ("model" in (asset or ())):
            raise DepoisonError(
                f"{loaded.document.place('parameters', naming[-1])}: {naming[-1]!r} names the model that the asset is; "
                "valid: once, where `asset` lists `model`"
            )

    @staticmethod
    def _groups(kind: str, method: Method) -> Sequence[str]:
        """The groups of shared hyper-parameters that a method takes."""
        return SHARED_BY[kind] if method.shared is None else method.shared

    def _shared_by(self, kind: str, method: Method) -> dict[str, Shared]:
        groups = (self._of(group, method.task) for group in self._groups(kind, method))
        return {key: parameter for group in groups for key, parameter in group.items()}

    @cache  # noqa: B019
    def sight(self, defense: str) -> list[str]:
        """What a defense sees, by the names of its parameters; as `declared_sight`."""
        return declared_sight(self._code("defense", defense))

    def _code(self, kind: str, name: str) -> Path:
        return self.methods.code(KINDS[kind], name)

    def task_of(self, dataset: str) -> str:
        """The task of a dataset."""
        return self.method("dataset", dataset).content.task

    @cached_property
    def _having(self) -> dict[str, list[str]]:
        """By what models may have, the models that have it."""
        models = {name: self.method("model", name).content.has for name in self.names("model")}
        features = sorted({feature for has in models.values() for feature in has})
        return {feature: [name for name, has in models.items() if feature in has] for feature in features}

    def lacking(self, kind: str, name: str, model: str) -> str:
        """What a method needs and a model lacks, a sentence; "" where it lacks nothing."""
        method, model_ = self.method(kind, name).content, self.method("model", model).content
        if (
            kind == "attack"
            and name in self.names("checkpoint")
            and model != (own := self.checkpoint(name).content.model)
        ):
            return f"{method.label} is a {self.method('model', own).content.label}, no {model_.label}"
        if method.task and model_.task and method.task != model_.task:
            return f"{method.label} is for the task {method.task}, and {model_.label} for {model_.task}"
        for feature in method.needs:
            if feature not in model_.has:
                return f"{method.label} needs {feature}, which {model_.label} lacks"
        return ""

    @cache  # noqa: B019
    def parameters(self, kind: str, name: str) -> Mapping[str, Parameter]:
        """Every hyper-parameter that can be set for a method: its own, then the shared ones."""
        method = self.method(kind, name).content
        return {**method.parameters, **self._shared_by(kind, method)}

    def specified(self, group: str, values: Values, keys: Collection[str] | None = None) -> Values:
        """A group's values, or those of some keys, as they stand in a spec: less those at which a key changes nothing."""
        wanted = values.keys() if keys is None else values.keys() & keys
        return {
            key: values[key]
            for key, parameter in self.shared[group].items()
            if key in wanted and parameter.tells(values[key])
        }

    @cache  # noqa: B019
    def track(self, name: str) -> Loaded:
        """The validated file of a track.

        Raises:
            DepoisonError: no such track, or a key that a track may not set.
        """
        self.require_file("track", name, "")
        loaded = load_as(Track, read_document(self.root / "config" / "tracks" / f"{name}.yaml", self.root))
        track, document = loaded
        budget = {key: parameter for key, parameter in self.shared["recipe"].items() if parameter.budget}
        for section in ("training", "tuning"):
            self._check_values(getattr(track, section), budget, document, section)
        for kind, method, values, keys in self._said_of(KINDS, track, document):
            known = self.parameters(kind, method)
            if kind in ("attack", "defense"):
                known = budget | {key: parameter for key, parameter in known.items() if parameter.budget}
            self._check_values(values, known, document, *keys)
        for kind, folder in (("dataset", "datasets"), ("model", "models")):
            for paper, ours in getattr(track.replace, folder).items():
                for name_ in {paper, ours} - {"*"}:
                    self.require_file(kind, name_, document.place("replace", folder, paper))
        return loaded

    @cached_property
    def papers(self) -> list[str]:
        """The papers that have values of their own."""
        folder = self.root / PAPERS
        return [name for name in folders_in(folder, self.root) if (folder / name / PAPER_FILE).exists()]

    @cache  # noqa: B019
    def paper(self, name: str) -> Loaded:
        """The validated file of a paper.

        Raises:
            DepoisonError: no such paper, a fault in its file, or a value of what there is not.
        """
        if name not in self.papers:
            raise unknown("paper", name, self.papers)
        loaded = load_as(Paper, read_document(self.root / PAPERS / name / PAPER_FILE, self.root))
        paper, document = loaded
        self._check_sections(paper, document)
        for kind, method, content, keys in self._said_of(KINDS, paper, document):
            known = self.parameters(kind, method)
            self._check_values(content.model_extra, known, document, *keys)
            if kind == "dataset":
                self._check_sections(content, document, *keys)
                continue
            for _, _, values, at in self._said_of(("dataset", "model"), content, document, *keys):
                self._check_values(values, known, document, *at)
        return loaded

    def paper_of(self, track: str, paper: str = "") -> str:
        """The paper whose values hold on a track for what is of a paper; by default for what names none.

        A folder of tables without a paper.yaml, such as a user's own, has the values of the track's paper; so has a track
        whose own is such a folder those of FST.
        """
        found = (paper, self.track(track).content.paper, DEFAULT_PAPER)
        return next((name for name in found if name in self.papers), "")

    def settings(
        self, kind: str, name: str, *, dataset: str, model: str, track: str, overrides: Mapping[str, str], where: str,
        paper: str = "",
        origins: Iterable[tuple[str, str, str]] = (),
    ) -> dict[str, list[Setting]]:  # fmt: skip
        """Every value that somebody sets for each hyper-parameter of a method, lowest precedence first; the last wins.

        Args:
            paper: as a cell's name has it; "" for the track's.
            where: the cell whose name has the overrides, less those of `origins`, which are a `Choice`'s.

        Raises:
            DepoisonError: an unknown method, or an override with an unknown key or an invalid value.
        """
        self.require(kind, name, where)
        task = self.task_of(dataset)
        known = {k: p for k, p in self.parameters(kind, name).items() if getattr(p, "task", None) in (None, task)}
        for key, text in overrides.items():
            if key not in known:
                raise unknown(f"hyper-parameter of {name}", key, known, where)
            known[key].check(text, f"{where}: {name}+{key}")
        of_files = self._of_files(kind, name, dataset, model, self.paper_of(track, paper), track)
        result = {key: [*of_files.get(key, ())] for key in known}
        given = {key: (layer, place) for key, layer, place in origins}
        for key, text in overrides.items():
            layer, place = given.get(key, (CELLS_NAME, where))
            result[key].append(Setting(known[key].check(text, where), layer, place))
        for key, settings in result.items():
            if not settings:
                file = self.methods.shown(self.methods.file(KINDS[kind], name))
                raise DepoisonError(f"{file}: no value for {key!r}; {known[key].help}")
        return result

    @cache  # noqa: B019
    def _of_files(
        self, kind: str, name: str, dataset: str, model: str, paper: str, track: str
    ) -> Mapping[str, Sequence[Setting]]:
        """What files set of each hyper-parameter of a method, lowest precedence first."""
        found: dict[str, list[Setting]] = {}
        known = self.parameters(kind, name)
        for layer, values, place in self._layers(kind, name, dataset, model, paper, track):
            for key, value in values.items():
                if key in known:
                    at = place(key)
                    found.setdefault(key, []).append(Setting(known[key].check(value, at), layer, at))
        return found

    def _layers(
        self, kind: str, name: str, dataset: str, model: str, paper: str, track: str
    ) -> Iterator[tuple[str, Values, Any]]:
        """(layer, values, place of a key), lowest precedence first: docs/architecture.md lists them."""

        def at(document: Document, *keys: str) -> Any:
            return lambda key: document.place(*keys, key)

        method, document = self.method(kind, name)
        combines = parts if len(parts := parts_of(name)) > 1 else ()
        for part in combines:
            own = self.method(kind, part).content.parameters
            for layer, values, place in self._layers(kind, part, dataset, model, paper, track):
                named = {f"{part}.{key}": value for key, value in values.items() if key in own}
                yield layer, named, lambda key, part=part, place=place: place(key.removeprefix(f"{part}."))
        track_, track_document = self.track(track)
        sections = ("training",) if kind == "defense" and "fit" in self.sight(name) else SECTIONS_OF[kind]
        for group in self._groups(kind, method):
            neutral = {key: parameter.neutral for key, parameter in self.shared[group].items() if parameter.has_neutral}
            yield "neutral", neutral, at(self._shared_document, group)
        for section in sections:
            yield "shared default", self._shared_defaults.data.get(section) or {}, at(self._shared_defaults, section)
            if section != "poisoning":
                loaded = self.method("dataset", dataset)
                yield "dataset", getattr(loaded.content, section), at(loaded.document, section)
        defaults = {
            key: parameter.default
            for key, parameter in method.parameters.items()
            if not combines and (parameter.default is not None or parameter.optional)
        }
        yield "method", defaults, at(document, "parameters")
        yield "method", method.values, at(document, "values")
        yield "method on this dataset", method.datasets.get(dataset, {}), at(document, "datasets", dataset)
        yield "method with this model", method.models.get(model, {}), at(document, "models", model)
        if kind == "dataset":
            loaded = self.method("model", model)
            yield f"model {model}", loaded.content.normalization, at(loaded.document, "normalization")
        folder = KINDS[kind]
        if paper:
            paper_, paper_document = self.paper(paper)
            for keys, values in _of_paper(paper_, kind, sections, name, dataset, model):
                yield f"paper {paper}", values, at(paper_document, *keys)
        for section in sections:
            if section != "poisoning":
                yield f"track {track}", getattr(track_, section), at(track_document, section)
        yield f"track {track}", getattr(track_, folder).get(name, {}), at(track_document, folder, name)
        for section in sections:
            yield OWN, self._own[section], at(self._document, section)
        yield OWN, getattr(self.config, folder).get(name, {}), at(self._document, folder, name)


def _of_paper(
    paper: Paper, kind: str, sections: Sequence[str], name: str, dataset: str, model: str
) -> Iterator[tuple[tuple[str, ...], Values]]:
    """(keys, the values there) of a paper's file for a method, lowest precedence first."""
    folder = KINDS[kind]
    for section in sections:
        yield (section,), getattr(paper, section)
        if section != "poisoning" and dataset in paper.datasets:
            yield ("datasets", dataset, section), getattr(paper.datasets[dataset], section)
    if name in (contents := getattr(paper, folder)):
        content = contents[name]
        yield (folder, name), content.model_extra
        if isinstance(content, OfMethod):
            yield (folder, name, "datasets", dataset), content.datasets.get(dataset, {})
            yield (folder, name, "models", model), content.models.get(model, {})


def _merge(below: Any, above: Any) -> Any:
    """`above` laid over `below`: mappings key by key, everything else replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _merge(below.get(key), value) for key, value in above.items()}
    return above


def _differences(below: Any, above: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(above, dict):
        for key, value in above.items():
            yield from _differences(below.get(key) if isinstance(below, dict) else None, value, (*keys, str(key)))
    elif below != above:
        yield keys
