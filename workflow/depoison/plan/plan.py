"""The plan: from a cell's name to the chain of artifacts behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

from depoison.errors import DepoisonError, unknown
from depoison.files import sha256_of
from depoison.plan.cells import AND, CellName, Choice, own_of, parts_of
from depoison.plan.config import OWN, Configuration, Curvature, Loaded, Setting
from depoison.plan.documents import Document, read_document
from depoison.plan.folders import OWN as OWN_SOURCES
from depoison.plan.folders import SOURCE as FOLDER_SOURCE
from depoison.plan.folders import classes_of, require_root, require_unchanged
from depoison.plan.methods import KINDS
from depoison.plan.metrics import Metrics, metrics_of
from depoison.plan.parameters import text_of
from depoison.plan.specs import Artifact, asset_of, chain_of, make_artifact

T = TypeVar("T")

CONFIG_FILE = "config/config.yaml"


@dataclass(frozen=True)
class Cell:
    """A cell, resolved.

    Attributes:
        settings: for each kind of method, every value that somebody sets for each hyper-parameter; the last wins.
        evaluation: the artifact whose metrics.json is the cell's result; its chain is all that the cell needs.
        curvature: what its track sets of how that is measured.
    """

    name: CellName
    settings: dict[str, dict[str, list[Setting]]]
    evaluation: Artifact
    curvature: Curvature


def values_of(settings: Mapping[str, Sequence[Setting]]) -> dict[str, Any]:
    """The value that holds of each hyper-parameter of a method."""
    return {key: history[-1].value for key, history in settings.items()}


class Plan:
    """Resolves cells; remembers every artifact that it met, so that a rule can look one up by its directory.

    Args:
        root: the project's folder.
        configfiles: config/config.yaml first (the default), then overlays.
        given: what the user gave Snakemake by --configfile and --config, where it runs this.
    """

    def __init__(
        self, root: Path | str = ".", configfiles: Sequence[str | Path] = (), given: Mapping[str, Any] | None = None
    ):
        self.root = Path(root).resolve()
        files = list(dict.fromkeys((self.root / name).resolve() for name in (CONFIG_FILE, *configfiles)))
        self.overlays = [
            str(file.relative_to(self.root) if file.is_relative_to(self.root) else file) for file in files[1:]
        ]
        self.configuration = Configuration(self.root, [read_document(file, self.root) for file in files], given)
        self.artifacts: dict[str, Artifact] = {}
        self.notes: dict[str, str] = {}
        """What whoever asked should know, a line each; by what it is about, so that each is said once."""
        self.local_copies: dict[str, str | None] = {}
        """By the directory of a dataset or an adopted model, the file or folder that it is read from: no part of the spec."""
        self._read: dict[tuple[str, ...], Any] = {}
        self._cells: dict[CellName, Cell] = {}
        self._undefended_of: dict[CellName, tuple[Artifact, dict[str, Artifact]]] = {}
        self._sha256 = cache(sha256_of)
        self._classes_in = cache(classes_of)
        self._settings_of: dict[tuple[Any, ...], dict[str, list[Setting]]] = {}

    def cell(self, name: CellName | str) -> Cell:
        """Resolve a cell.

        Raises:
            DepoisonError: an unknown track, method or key, an invalid value, or methods that do not go together.
        """
        name = CellName.parse(name) if isinstance(name, str) else name
        if name not in self._cells:
            cell = self._cells[name] = self._resolve(name)
            self.remember([cell.evaluation])
        return self._cells[name]

    def once(self, key: tuple[str, ...], read: Callable[[], T]) -> T:
        """What `read` returns, called once for a key: a table, a figure or printed numbers."""
        if key not in self._read:
            self._read[key] = read()
        return self._read[key]

    def note_overruled(self, cells: Iterable[Cell], by: str) -> None:
        """Note each value of the user's that a report's file overrules in one of its cells.

        Args:
            by: the report's file, relative to the project's folder.
        """
        for kind, settings in {id(s): (kind, s) for cell in cells for kind, s in cell.settings.items()}.values():
            for key, history in settings.items():
                *_, own, last = (None, *history)
                if own and own.layer == OWN and own.value != last.value:  # above it is only what the cell's name says
                    line = f"{own.place}: {key} = {text_of(own.value)} does not hold where {by} sets {key} itself"
                    self.notes.setdefault(f"{kind} {own.place} {key}", line)

    def remember(self, artifacts: Iterable[Artifact]) -> None:
        """Know artifacts, and all that they are made from, by their directories."""
        chain_of(artifacts, self.artifacts)

    def artifact(self, directory: str) -> Artifact:
        """The artifact with this directory, met in a cell that was resolved before.

        Raises:
            DepoisonError: none such.
        """
        if directory not in self.artifacts:
            raise DepoisonError(
                f"{directory}: no cell that was asked for needs this artifact; ask for a cell or a table"
            )
        return self.artifacts[directory]

    def require_sources(self, datasets: Iterable[Artifact]) -> None:
        """See, before anything is made, that what datasets that are not there will be read from is there.

        Raises:
            DepoisonError: it is not.
        """
        for dataset in datasets:
            if (root := self.local_copies.get(dataset.directory)) is None:
                continue
            if dataset.stage == "dataset":
                require_root(dataset, root)
            elif not Path(root).is_file():
                raise DepoisonError(f"{root}: no such file; {dataset.product} is to be made from these weights")

    def require_unchanged(self) -> None:
        """See that each folder of images, of the cells that were resolved, is what it was when it was read; note those gone.

        Raises:
            DepoisonError: one changed.
        """
        for directory, root in self.local_copies.items():
            artifact = self.artifacts.get(directory)
            if root and artifact and artifact.stage == "dataset" and (gone := require_unchanged(artifact, root)):
                self.notes[f"folder {root}"] = gone

    def paper_label(self, name: str) -> str:
        """What reports call a paper, or a folder of tables that is none."""
        known = name in self.configuration.papers
        return self.configuration.paper(name).content.label if known else name.upper()

    def paper_in_names(self, paper: str, track: str) -> str:
        """How a paper stands in the names of its cells on a track: not at all where it is the track's own.

        Raises:
            DepoisonError: a fault in the paper's file.
        """
        found = self.configuration.paper_of(track, paper)
        if found:
            self.configuration.paper(found)
        return "" if found == self.configuration.paper_of(track) else found

    @cached_property
    def metrics(self) -> Metrics:
        """Those of the project; as `metrics_of`."""
        return metrics_of(self.root, self.configuration.methods)

    def label(self, kind: str, name: str) -> str:
        """How tables call a method; its name where it has no implementation."""
        if kind == "attack" and AND in name:
            return " & ".join(self.label(kind, part) for part in parts_of(name))
        known = not self.configuration.missing(kind, name)
        return self.configuration.method(kind, name).content.label if known else name

    def adopt(self, directory: str, spec: dict[str, Any], local_copy: str | None) -> None:
        """Remember an artifact that another plan resolved, after those that it is made from."""
        upstream = {role: self.artifacts[name] for role, name in spec["upstream"].items() if name in self.artifacts}
        self.artifacts[directory] = Artifact(spec, directory, upstream)
        self.local_copies[directory] = local_copy

    def _resolve(self, name: CellName) -> Cell:
        self.configuration.require_file("track", name.track, name.path)
        if name.paper and name.paper not in self.configuration.papers:
            raise unknown("paper", name.paper, self.configuration.papers, name.path)
        brought = self._brought(name)
        settings = {kind: self._settings(kind, name) for kind in KINDS}
        self._require_one_task(name)
        for kind in ("attack", "defense"):
            self._require_what_it_needs(kind, name)
        value = {kind: values_of(of) for kind, of in settings.items()}
        curvature = self.configuration.track(name.track).content.curvature
        self._require_fit(name, value)
        before, data = self._undefended(replace(name, defense=Choice("none")), value, settings["attack"])
        if name.defense.name == "none":
            return Cell(name, settings, before, curvature)
        backdoored, specified = before.upstream["backdoored"], self.configuration.specified
        seen = self.configuration.sight(name.defense.name)
        upstream = {"model": backdoored} if "model" in seen else {}
        if brought and not self._needs_only_a_model(name.defense.name):
            purify = filter(self._needs_only_a_model, self.configuration.names("defense"))
            why = f"of {name.attack.name} there is a model alone, no training set; valid: {', '.join(purify)}"
            raise DepoisonError(
                f"{name.path}: {self.label('defense', name.defense.name)} sees what a model is trained on, and {why}"
            )
        if "suspect" in seen:
            upstream["poison"] = backdoored.upstream["poison"]
            if not self.configuration.poisons_data(name.attack.name):
                upstream["backdoored"] = backdoored  # the set is poisoned with the trigger that training left
        new = {"model": backdoored.spec["parameters"]["model"]} if "new_model" in seen else {}
        parameters = {"defense": self._method("defense", name.defense, value["defense"], settings["defense"])} | new
        parameters |= {"recipe": specified("recipe", value["defense"])} | self._tuning(name, value)
        purified = make_artifact("purify", data | upstream, parameters, name.seed)
        seen_of = before.upstream | {"model": purified, "undefended": before}
        return Cell(name, settings, make_artifact("evaluate", seen_of, before.spec["parameters"]), curvature)

    def _needs_only_a_model(self, defense: str) -> bool:
        """Whether a defense purifies a model, and sees nothing that it was trained on."""
        return "model" in (seen := self.configuration.sight(defense)) and "suspect" not in seen

    def _undefended(
        self, name: CellName, value: Mapping[str, Mapping[str, Any]], settings: Mapping[str, list[Setting]]
    ) -> tuple[Artifact, dict[str, Artifact]]:
        """The evaluation without a defense, which all cells of an attack share, and the data that defenses get, by role.

        Args:
            settings: of the attack.
        """
        if name in self._undefended_of:
            return self._undefended_of[name]
        specified = self.configuration.specified
        dataset = make_artifact("dataset", {}, self._dataset_parameters(name.dataset.name, value["dataset"]))
        self.local_copies[dataset.directory] = value["dataset"]["root"]
        reserve = specified("dataset", value["dataset"], ("reserve", "stratified"))
        data = {"dataset": dataset, "split": make_artifact("split", {"dataset": dataset}, reserve, name.seed)}

        if brought := self._brought(name):
            backdoored = self._adopted(brought, name, value["attack"], settings, dataset)
        else:
            attack = {"attack": self._attack(name.attack, value["attack"], settings)}
            poisoning = specified("poisoning", value["attack"])
            asset = self._assets(name, attack["attack"], poisoning.get("target"), data)
            poison = make_artifact("poison", data | asset, attack | {"poisoning": poisoning}, name.seed)
            backdoored = make_artifact("train", {**data, "poison": poison}, self._training(name), name.seed)
        measure = specified("recipe", value["attack"], ("precision",)) | {"metrics": self.metrics.evaluated}
        upstream = {"dataset": dataset, "backdoored": backdoored, "model": backdoored}
        found = self._undefended_of[name] = make_artifact("evaluate", upstream, measure), data
        return found

    def _brought(self, name: CellName) -> Loaded | None:
        """The file of the model that stands in the attack's place, if one does.

        Raises:
            DepoisonError: the cell's dataset or model is not its own, or the cell sets values of what it is.
        """
        if name.attack.name not in self.configuration.names("checkpoint"):
            return None
        loaded = self.configuration.checkpoint(name.attack.name)
        for kind in ("dataset", "model"):
            if (own := getattr(loaded.content, kind)) != (named := getattr(name, kind).name):
                raise DepoisonError(f"{name.path}: checkpoint {name.attack.name} has the {kind} {own}, not {named}")
        for kind, fixed in (("attack", None), ("model", None), ("dataset", loaded.content.normalization)):
            for key, _ in getattr(name, kind).overrides:
                if fixed is None or key in fixed:
                    raise DepoisonError(f"{name.path}: {key} is what {loaded.document.path} says it is; set it there")
        return loaded

    def _adopted(
        self, brought: Loaded, name: CellName, value: Mapping[str, Any], settings: Mapping[str, list[Setting]],
        dataset: Artifact,
    ) -> Artifact:  # fmt: skip
        """A model that was brought, as training would have left it.

        Args:
            value, settings: of the attack whose trigger it has.
        """
        content, document = brought
        path = self.root / Path(content.weights).expanduser()
        if not path.is_file() and content.sha256 is None:
            raise DepoisonError(f"{document.where('weights')}: {content.weights}: no such file")
        if path.is_file() and (found := self._sha256(path)) != (content.sha256 or found):
            raise DepoisonError(f"{document.where('sha256')}: {content.weights} is another file: {found}")
        weights = {
            "sha256": content.sha256 or self._sha256(path),
            "key": content.key,
            "rename": [*content.rename.items()],
            "labels": content.labels,
        }
        parameters = {
            "name": name.attack.name, "weights": weights, "model": self._training(name)["model"],
            "attack": self._method("attack", self._trigger_of(brought), value, settings),
            "poisoning": self.configuration.specified("poisoning", value),
        }  # fmt: skip
        adopted = make_artifact("adopt", {"dataset": dataset}, parameters)
        self.local_copies[adopted.directory] = str(Path(content.weights).expanduser())
        return adopted

    @staticmethod
    def _trigger_of(brought: Loaded) -> Choice:
        """The attack whose trigger a model has that was brought, with the values that its file sets."""
        content, document = brought
        if content.trigger is None:
            return Choice("none")
        return _fixed(content.trigger.attack, content.trigger.values, document, "trigger", "values")

    def settings(
        self, kind: str, choice: Choice, *, dataset: str, model: str, track: str, paper: str, where: str
    ) -> dict[str, list[Setting]]:
        """As `Configuration.settings`, of a method as it was chosen; resolved once."""
        key = (kind, choice, choice.origins, dataset, model, track, paper)
        if key not in self._settings_of:
            self._settings_of[key] = self.configuration.settings(
                kind,
                choice.name,
                dataset=dataset,
                model=model,
                track=track,
                overrides=dict(choice.overrides),
                where=where,
                paper=paper,
                origins=choice.origins,
            )
        return self._settings_of[key]

    def _settings(self, kind: str, name: CellName) -> dict[str, list[Setting]]:
        of = {"dataset": name.dataset.name, "model": name.model.name, "track": name.track, "paper": name.paper}
        choice, brought = getattr(name, kind), self._brought(name)
        if brought and kind in ("model", "dataset"):
            values = getattr(brought.content, key := {"model": "parameters", "dataset": "normalization"}[kind])
            choice = _fixed(choice.name, values, brought.document, key, also=choice.overrides)
        if brought and kind == "attack":
            choice = self._trigger_of(brought)
        found = self.settings(kind, choice, **of, where=name.path.rpartition("/")[0])
        if brought and kind == "attack":  # how it was trained is not known
            known = {
                *self.configuration.method(kind, choice.name).content.parameters,
                *self.configuration.shared["poisoning"],
            }
            found = {key: history for key, history in found.items() if key in known - {"rate"}}
        return found

    def _method(
        self, kind: str, choice: Choice, values: Mapping[str, Any], settings: Mapping[str, list[Setting]]
    ) -> dict[str, Any]:
        """Name, version or hash of the code, and own hyper-parameters of a method, as they stand in a spec."""
        method = self.configuration.method(kind, choice.name).content
        own = {key: values[key] for key, parameter in method.parameters.items() if parameter.tells(values[key])}
        for key in own:
            parameter = method.parameters[key]
            if own[key] in (parameter.choices or ()):
                continue
            if parameter.type == "picture":
                own[key] = self._picture(own[key], settings[key][-1].place)
            models = self.configuration.names("model")
            if parameter.type == "model" and own[key] not in models:
                raise unknown("model", own[key], [*models, *(parameter.choices or ())], settings[key][-1].place)
        revision = self.configuration.methods.revision(KINDS[kind], choice.name, method.version)
        return {"name": choice.name, **revision, "parameters": own}

    def _attack(
        self, choice: Choice, values: Mapping[str, Any], settings: Mapping[str, list[Setting]]
    ) -> dict[str, Any]:
        """As `_method`; of attacks that are combined, in the order of their names: they share alike, so it means nothing."""
        parts = parts_of(choice.name)
        if len(parts) == 1:
            return self._method("attack", choice, values, settings)
        combined = [self._method("attack", Choice(p), own_of(p, values), own_of(p, settings)) for p in parts]
        return {"name": AND.join(parts), "parts": combined}

    def _require_one_task(self, name: CellName) -> None:
        """Raises: DepoisonError: a method for another task than that of the dataset."""
        dataset, method = self.configuration.method("dataset", name.dataset.name).content, self.configuration.method
        tasks = (None, dataset.task)
        for kind in ("model", "attack", "defense"):
            own = method(kind, getattr(name, kind).name).content
            if own.task not in tasks:
                fitting = (one for one in self.configuration.names(kind) if method(kind, one).content.task in tasks)
                raise DepoisonError(
                    f"{name.path}: {own.label} is for the task {own.task}, and the task of {dataset.label} is "
                    f"{dataset.task}; valid: {', '.join(fitting)}"
                )

    def _require_what_it_needs(self, kind: str, name: CellName) -> None:
        lacking, method = self.configuration.lacking, getattr(name, kind).name
        if why := lacking(kind, method, name.model.name):
            task, of = self.configuration.task_of(name.dataset.name), self.configuration.method
            valid = [
                model
                for model in self.configuration.names("model")
                if of("model", model).content.task in (None, task) and not lacking(kind, method, model)
            ]
            raise DepoisonError(f"{name.path}: {why}; valid: {', '.join(valid) or f'no model of the task {task}'}")

    def _training(self, name: CellName) -> dict[str, Any]:
        """The model of a cell and how it is trained, as they stand in a spec."""
        settings = {kind: self._settings(kind, name) for kind in ("dataset", "model", "attack")}
        value = {kind: values_of(of) for kind, of in settings.items()}
        model = self._method("model", name.model, value["model"], settings["model"])
        # What the task says of a dataset, such as how pixels are normalized, is what the model takes its inputs by.
        of_task = {key for key, parameter in self.configuration.shared["dataset"].items() if parameter.task}
        model |= self.configuration.specified("dataset", value["dataset"], of_task)
        return {"model": model, "recipe": self.configuration.specified("recipe", value["attack"])}

    def _assets(
        self, name: CellName, attack: dict[str, Any], target: int | None, data: dict[str, Artifact]
    ) -> dict[str, Artifact]:
        """What the attack makes before it poisons, by its role; of combined attacks each its own."""
        parts = {asset_of(part["name"]): part for part in attack.get("parts", ())} or {asset_of(): attack}
        made = {role: self._asset(name, part, target, data) for role, part in parts.items()}
        return {role: asset for role, asset in made.items() if asset}

    def _asset(
        self, name: CellName, attack: dict[str, Any], target: int | None, data: dict[str, Artifact]
    ) -> Artifact | None:
        """What an attack makes before it poisons, of what its file says that this depends on; None where it makes nothing.

        A model that a hyper-parameter names is that of the same cell with this model, so that the cells of all architectures
        share it.
        """
        method = self.configuration.method("attack", attack["name"]).content
        if method.asset is None:
            return None
        own = {key: attack["parameters"][key] for key in method.asset if key in attack["parameters"]}
        for key, parameter in method.parameters.items():
            named = attack["parameters"].get(key, parameter.neutral)
            if parameter.type == "model" and named not in (parameter.choices or ()):
                name = replace(name, model=Choice(named))
        needs = self._training(name) | {"target": target}
        parameters = {"attack": attack | {"parameters": own}}
        parameters |= {key: needs[key] for key in method.asset if key in needs}
        return make_artifact("asset", data, parameters, name.seed)

    def _picture(self, stem: str, where: str) -> str:
        """A user's file by its content: its name may stay while its bytes change."""
        files = sorted((self.root / "config" / "triggers").glob(f"{stem}.*"))
        if len(files) != 1:
            found = "no file" if not files else "more than one file"
            raise DepoisonError(f"{where}: {found} config/triggers/{stem}.*; put exactly one file there")
        return f"{files[0].name}@sha256:{self._sha256(files[0])}"

    def _dataset_parameters(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """What a dataset's content follows from: its source, and for a folder of images which one or what is in it."""
        methods = self.configuration.methods
        if values["source"] not in methods.sources:
            raise unknown("source", values["source"], methods.sources, f"dataset {name}")
        shared = self.configuration.specified("dataset", values, ("source", "size", "checksum"))
        # A dataset's own hyper-parameters are options of its own source; another source does not know them.
        method = self.configuration.method("dataset", name).content
        of_source = method.parameters if values["source"] == method.values["source"] else {}
        own = {key: values[key] for key, parameter in of_source.items() if parameter.tells(values[key])}
        task = {"name": method.task, "version": self.configuration.tasks[method.task].version}
        revision = methods.revision("datasets", values["source"], method.version)
        parameters = {"name": name, **revision, "task": task, **shared, "options": own}
        if values["source"] in OWN_SOURCES and values["checksum"] is None:
            parameters["root"] = values["root"]
        return parameters

    def _require_fit(self, name: CellName, value: Mapping[str, Mapping[str, Any]]) -> None:
        """See that the attack fits the dataset, as far as that is known before any image is read.

        Raises:
            DepoisonError: a dataset of one class, or of too few for the defense, a target label that is none, or a patch
                that is larger than the image.
        """
        attack, dataset = value["attack"], value["dataset"]
        classes = self.classes(name.dataset.name, dataset)
        if classes == 1:
            raise DepoisonError(f"{dataset['root']}: dataset {name.dataset.name} has 1 class; valid: at least 2")
        defense = self.configuration.method("defense", name.defense.name).content
        if classes is not None and classes < (fewest := defense.fewest_classes):
            label = self.label("dataset", name.dataset.name)
            raise DepoisonError(f"{name.path}: {defense.label} needs {fewest} classes, and {label} has {classes}")
        if attack.get("labels") == "source-specific" and attack["victim"] in (None, attack["target"]):
            raise DepoisonError(f"{name.path}: labels=source-specific needs a victim, a label that is not the target")
        if classes is not None and attack.get("target", 0) >= classes:
            raise DepoisonError(
                f"{name.path}: target label {attack['target']} is none of the dataset's; valid: 0 to {classes - 1}"
            )
        trigger = self._trigger_of(brought) if (brought := self._brought(name)) else name.attack
        for part in parts_of(trigger.name) if attack.get("labels") == "source-specific" and not brought else ():
            method = self.configuration.method("attack", part).content
            if not self.configuration.poisons_data(part) and method.values.get("labels") != "source-specific":
                raise DepoisonError(
                    f"{name.path}: {method.label} changes batches of all classes, so it cannot be source-specific; valid: "
                    "labels=all-to-one, labels=all-to-all"
                )
        for key, parameter in self.configuration.method("attack", trigger.name).content.parameters.items():
            # As `enlargement` has it: what is drawn for 32 pixels grows with the image.
            grows = attack.get(f"{key[: key.rfind('.') + 1]}enlarge")
            maximum = dataset["size"] // (max(1, dataset["size"] // 32) if grows else 1)
            if parameter.patch and attack[key] > maximum:
                raise DepoisonError(
                    f"{name.path}: {key}: a patch of {attack[key]} pixels is larger than the image; the maximum is {maximum}"
                )

    def classes_of(self, name: CellName) -> int | None:
        """How many classes a cell's dataset has; None where nobody knows before it is read."""
        return self.classes(name.dataset.name, values_of(self._settings("dataset", name)))

    def classes(self, name: str, values: Mapping[str, Any]) -> int | None:
        """How many classes a dataset with these values has; None where nobody knows before it is read."""
        source, root = values["source"], values["root"]
        if source == FOLDER_SOURCE:
            return self._classes_in(Path(root).expanduser()) if root else None
        method = self.configuration.method("dataset", name).content
        return method.classes if source == method.values["source"] else None

    def reserved(self, name: str, values: Mapping[str, Any]) -> int | None:
        """How many images of a dataset with these values are the defender's; None where nobody knows before it is read."""
        content = self.configuration.method("dataset", name).content
        known = content.train_samples is not None and values["source"] == content.values["source"]
        return round(values["reserve"] * content.train_samples) if known else None

    def _tuning(self, name: CellName, value: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        if "tuning_ratio" not in value["defense"]:
            return {}
        if (images := value["defense"]["tuning_images"]) is not None:
            if images > (most := self.reserved(name.dataset.name, value["dataset"]) or images):
                raise DepoisonError(
                    f"{name.path}: tuning_images {images} is above the defender's reserve; the maximum is {most}"
                )
            return {"tuning_images": images}
        reserve, ratio = value["dataset"]["reserve"], value["defense"]["tuning_ratio"]
        if ratio is not None and ratio > reserve:
            raise DepoisonError(
                f"{name.path}: tuning_ratio {ratio:g} is above the defender's reserve; the maximum is {reserve:g}"
            )
        return {"tuning_ratio": reserve if ratio is None else ratio}


def _fixed(
    name: str, values: Mapping[str, Any], document: Document, *keys: str, also: Iterable[tuple[str, str]] = ()
) -> Choice:
    """A method with the values that a checkpoint's file sets at `keys`, and those of the cell's name."""
    pairs = [(key, text_of(value)) for key, value in values.items()]
    origins = tuple((key, "checkpoint", document.place(*keys, key)) for key in values)
    return Choice(name, (*pairs, *also), origins)
