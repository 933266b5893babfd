"""reports/[{track}/]index.html: one file without a link to anything outside it, made from what is there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from depoison.papers.claims import Claims
from depoison.papers.figures import Figure
from depoison.papers.grid import Part, Place, percent
from depoison.papers.index import Index, Paper
from depoison.papers.tables import Table, told_apart
from depoison.plan.metrics import Metric
from depoison.plan.parameters import text_of
from depoison.plan.plan import Plan
from depoison.plan.specs import STAGES
from depoison.reports.claims import (
    FAILS,
    HOLDS,
    LACKING,
    Outcome,
    Verdict,
    counts_of,
    told,
    untestable_in_words,
    verdicts,
)
from depoison.reports.figures.write import kind_of, made_from_of, render_csv, setting
from depoison.reports.html.pictures import drawn, examples_of
from depoison.reports.html.records import Records
from depoison.reports.numbers import Number, Reader
from depoison.reports.tables import (
    FUNCTIONS,
    Line,
    command,
    content_of,
    directions,
    heading,
    name_of,
    summary_of,
    templates,
    untaken_if,
)
from depoison.reports.verification import read_verification

BINS = (1, 5, 20)
"""Percentage points at which the color of a difference gets stronger."""

PICTURE = re.compile(rb'(<img class="drawn" src=)"[^"]*" width="\d*" height="\d*"')
NO_PICTURE = rb'\1"" width="" height=""'


def render_index(plan: Plan, index: Index, draw: bool = True) -> str:
    """The page.

    Args:
        draw: whether the figures have their pixels.
    """
    builder = _Builder(plan, index, draw)
    papers = [builder.paper(paper) for paper in index.papers]
    script = _asset("report.js")
    configfiles = ["--configfile", *plan.overlays] if plan.overlays else []
    builder.title_courses()
    commands = {"make": command(plan), "explain": shlex.join(["depoison", "explain", *configfiles])}
    return _template().render(
        track=index.track,
        summary=plan.configuration.track(index.track).content.summary,
        papers=papers,
        metrics=builder.shown + builder.extra,
        extra=builder.extra,
        attack=plan.metrics.attack,
        shown=" ".join(metric.key for metric in builder.shown),
        directions=directions(builder.shown + builder.extra),
        percent=all(metric.unit == "%" for metric in builder.shown),
        bins=BINS,
        totals=builder.totals(papers),
        origins=builder.origins(),
        times=builder.times(),
        verified=builder.verified(),
        labels=plan.metrics.labels,
        courses=sum("history" in each for each in builder.records.data["artifacts"] if each["stage"] == "train"),
        missing=[each for paper in papers for each in (*paper["tables"], *paper["figures"]) if each["missing"]],
        command=command(plan, index.target),
        each=commands["make"],
        data=embedded(builder.records.data | {
            "entries": builder.entries, "tables": builder.headings, "examples": builder.examples(), "commands": commands,
            "metrics": {
                metric.key: {"label": metric.label, "decimals": metric.decimals}
                for metric in dict.fromkeys([*builder.shown, *builder.extra, *plan.metrics.values()])
            },
            "untaken": untaken_if(plan.metrics.attack) if plan.metrics.attack else "",
        }),
        style=Markup(_asset("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def embedded(data: Any) -> Markup:
    """JSON that ends no script element: whatever a text holds, there is no < in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", r"\u003c"))


def shade(metric: Metric, number: Number, attack: bool = False) -> str:
    """How a number compares with the published one: "", or better (b) or worse (w) by 1, 2 or 3 bins.

    It is neither where the attack did not take, and not better where a low value is no rescue.

    Args:
        attack: whether it is the attack's success without a defense, of which less than the published one is worse: an
            attack that does not take proves no defense.
    """
    if number.difference is None or not metric.sign or metric.unit != "%" or number.untaken:
        return ""
    gain = (1 if attack else metric.sign) * round(number.difference, 2)
    strength = sum(abs(gain) >= least for least in BINS)
    return f"{'b' if gain > 0 else 'w'}{strength}" if strength and not (number.no_rescue and gain > 0) else ""


class _Builder:
    """Turns tables and figures into what the template shows, and collects what its dialogs tell."""

    def __init__(self, plan: Plan, index: Index, draw: bool):
        self.plan, self.index, self.draw = plan, index, draw
        self.read = Reader()
        self.records = Records(self.read)
        self.shown = list(dict.fromkeys(metric for table in index.tables for metric in table.metrics))
        self.extra = [
            metric for metric in plan.metrics.values() if metric.source == "evaluate" and metric not in self.shown
        ]
        """Shown on request, beside those that a table shows."""
        self.entries: list[dict[str, Any]] = []
        self.headings: list[dict[str, Any]] = []

    def paper(self, paper: Paper) -> dict[str, Any]:
        return {
            "name": paper.name,
            "tables": [self.table(table, same) for table, same in told_apart(paper.tables)],
            "figures": [self.figure(figure) for figure in paper.figures],
            "claims": self.claims(paper.claims) if paper.claims else None,
        }

    def claims(self, claims: Claims) -> dict[str, Any]:
        found = verdicts(self.plan, claims)

        def shown(verdict: Verdict, outcome: Outcome) -> dict[str, Any]:
            number, details = told(verdict, outcome)
            left_out = verdict.left_out if outcome is verdict.ours else ()
            return {
                "state": outcome.state, "number": number, "details": "; ".join([*details, *left_out]),
                "color": {HOLDS: "b2", FAILS: "w2"}.get(outcome.state, ""),
                "commands": verdict.commands if outcome.state == LACKING else (),
            }  # fmt: skip

        return {
            "id": f"{claims.paper}-claims", "heading": f"{self.plan.paper_label(claims.paper)}: claims",
            "untestable": untestable_in_words(self.plan, "Not testable here"),
            "ours": counts_of(found, lambda verdict: verdict.ours.state),
            "published": counts_of(found, lambda verdict: verdict.published.state),
            "rows": [
                {"claim": verdict, "outcomes": [shown(verdict, one) for one in (verdict.ours, verdict.published)]}
                for verdict in found
            ],
        }  # fmt: skip

    def table(self, table: Table, same: tuple[Table, ...]) -> dict[str, Any]:
        content = content_of(self.plan, table, same=same, read=self.read)
        self.headings.append({
            "heading": content["heading"], "title": table.file.title, "seeds": list(table.seeds), "by": content["by"],
        })  # fmt: skip
        rows, marks = [], set()
        # Those of no part's own, where the columns have metrics.
        extra = {head: [m for m in self.extra if len(head.metrics) > 1] for head in content["heads"]}
        for i, line in enumerate(content["lines"]):
            part = None if line.summary else table.rows[i]
            row: dict[str, Any] = {"line": line, "numbers": [], "printed": line.printed}
            for head in content["heads"]:
                place = table.at(part or table.rows[0], table.columns[head.at[0]])
                numbers = {self.plan.metrics.by_key(line.numbers[j].metric): line.numbers[j] for j in head.at}
                numbers |= {
                    metric: self._extra(table, content, line, part, head.at[0], metric) for metric in extra[head]
                }
                entry = self._entry(line, head.title, place, numbers) if part else None
                for k, (metric, number) in enumerate(numbers.items()):
                    color = self._color(line, place, metric, number)
                    first = k == 0 and metric is not self.shown[0]
                    mark = _mark(place, number) if part else ""
                    marks.add(mark)
                    row["numbers"].append(self._shown(metric, number, entry, mark, color, content["wide"], first))
            rows.append(row)
        heads = [(head, [*head.metrics, *extra[head]]) for head in content["heads"]]
        groups = []
        for name, of in groupby(heads, lambda head: head[0].group):
            keys = [key for head, metrics in of for key in [metric.key for metric in metrics] or [""] * len(head.at)]
            groups.append((name, keys))
        return content | {
            "heads": heads, "groups": groups if content["groups"] else [],
            "id": f"{table.paper}-{table.name}", "title": table.file.title, "first": content["rows"],
            "rows": rows[: len(table.rows)], "summaries": rows[len(table.rows) :], "marks": marks,
            "made": content["evaluations"] - len(content["missing"]), "total": content["evaluations"],
            "missing": [shlex.quote(cell.name.path) for cell in content["missing"]],
            "command": content["makes_all"], "caption": table.file.caption, "what": "cells",
            "also": ", ".join(map(name_of, same)),
        }  # fmt: skip

    def _color(self, line: Line, place: Place, metric: Metric, number: Number) -> str:
        # An average that no row in which the attack did not take is in says something of the defenses.
        if line.summary and (line.summary != "average" or line.label.endswith("all rows")):
            return ""
        return shade(metric, number, place.defense.name == "none" and metric is self.plan.metrics.attack)

    def _entry(self, line: Line, column: str, place: Place, numbers: dict[Metric, Number]) -> int:
        """The number of what the dialog of a place of a table says."""
        self.entries.append({
            "table": len(self.headings) - 1, "row": line.label, "value": line.value, "column": column,
            "gap": "; ".join(place.gaps), "oracle": place.oracle, "untaken": any(one.untaken for one in numbers.values()),
            "cells": [self.records.cell(cell) for cell in place.cells],
            "numbers": {
                metric.key: [number.ours, number.interval, number.published, number.difference]
                for metric, number in numbers.items()
            },
        })  # fmt: skip
        return len(self.entries) - 1

    def _extra(
        self, table: Table, content: dict[str, Any], line: Line, part: Part | None, j: int, metric: Metric
    ) -> Number:
        """A number of ours beside those that the table shows, in a row or in a line below the rows."""
        if line.printed or line.summary.startswith("drop-from"):
            return Number(metric.key)
        column = replace(table.columns[j], metric=metric)
        if part:
            return replace(content["shown"].number(part, column), published=None, printed_as="")
        numbers = [self._extra(table, content, content["lines"][i], row, j, metric) for i, row in enumerate(table.rows)]
        return summary_of(metric, FUNCTIONS[line.summary], numbers, line.rows)

    def _shown(
        self, metric: Metric, number: Number, entry: int | None, mark: str, color: str, wide: bool, first: bool
    ) -> dict[str, Any]:
        """Args: wide: whether the interval has to stand below the number; first: of its part."""
        below = [number.text(number.interval, "±") * wide, f" {number.warning}" * number.no_rescue]
        return {
            "metric": metric.key, "entry": entry, "mark": mark,
            "ours": number.text(number.ours) + ("" if wide else number.text(number.interval, " ± ")) or "–",
            "below": list(filter(None, below)),
            "published": number.text(number.published), "difference": number.change,
            "classes": " ".join(filter(None, ["first" * first, color, "best" * number.best, "untaken" * number.untaken])),
        }  # fmt: skip

    def figure(self, figure: Figure) -> dict[str, Any]:
        needed = figure.artifacts()
        absent = [artifact for artifact in needed if not Path(artifact.product).exists()]
        content = {
            "id": f"{figure.paper}-{figure.name}", "heading": heading(self.plan, figure),
            "title": figure.file.title, "caption": figure.file.caption, "setting": setting(self.plan, figure),
            "kind": figure.file.kind, "width": figure.file.width, "gaps": figure.gaps(), "picture": None,
            "made": len(needed) - len(absent), "total": len(needed), "command": command(self.plan, f"{figure.target}.png"),
            "missing": [artifact.product for artifact in absent], "what": "inputs", "also": "",
        }  # fmt: skip
        if absent or not any(place.cells for place in figure.places):
            return content
        rows = kind_of(figure).numbers(figure)
        made_from = made_from_of(figure, render_csv(figure, rows))
        pixels, size = drawn(figure, rows) if self.draw else ("", ("", ""))
        return content | {"picture": pixels, "size": size, "made_from": made_from}

    def examples(self) -> dict[str, Any]:
        """By the number of a poison artifact, images with its trigger."""
        found = {}
        numbers = {each["directory"]: i for i, each in enumerate(self.records.data["artifacts"])}
        for figure in self.index.figures:
            if figure.file.kind != "examples":
                continue
            for artifact in figure.artifacts():
                poison = artifact.upstream["poison"].directory
                if poison in numbers and Path(artifact.product).exists():
                    found[str(numbers[poison])] = examples_of(artifact)
        return found

    def totals(self, papers: list[dict[str, Any]]) -> dict[str, int]:
        evaluations = {product for table in self.index.tables for product in table.evaluations()}
        figures = [figure for paper in papers for figure in paper["figures"]]
        return {
            "evaluations": sum(Path(product).exists() for product in evaluations), "wanted": len(evaluations),
            "tables": len(self.index.tables), "figures": len(figures),
            "drawn": sum(figure["picture"] is not None for figure in figures),
        }  # fmt: skip

    def verified(self) -> dict[str, Any] | None:
        """What the last `depoison verify --recompute` on the track found, and whether that is of what is here."""
        if (found := read_verification(self.index.track)) is None:
            return None
        shown = {str(Path(product).parent) for table in self.index.tables for product in table.evaluations()}
        options = {"recompute": len(found.cells), "seed": found.seed, "tolerance": f"{found.tolerance:g}"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        configfiles = ["--configfile", *self.plan.overlays] if self.plan.overlays else []
        return {
            "found": found, "changed": found.changed(), "covered": len(shown & found.evaluations.keys()),
            "when": f"{found.when[:10]}, {found.when[11:16]} UTC",
            "command": shlex.join(["depoison", "verify", *configfiles, *found.targets, *words]),
        }  # fmt: skip

    def _runs(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Each artifact that was made, and the record of how."""
        return [
            (each, each["run"]) for each in self.records.data["artifacts"] if each["run"] and "seconds" in each["run"]
        ]

    def origins(self) -> dict[str, list[str]]:
        """The devices, commits and versions that made what is shown."""
        found: dict[str, set[str]] = defaultdict(set)
        for _, run in self._runs():
            found["Devices"].add(str(run.get("device") or "not recorded"))
            found["Commits"].add(str(run.get("commit") or "not recorded"))
            if isinstance(number := run.get("packages"), int):
                packages = self.records.data["packages"][number]
                found["Versions"].add(", ".join(f"{name} {packages[name]}" for name in sorted(packages)))
        return {name: sorted(found[name]) for name in sorted(found)}

    def title_courses(self) -> None:
        """Names each training in words: what tells it from those of the same attack and model is added."""
        data = self.records.data["artifacts"]
        trainings = [each for each in data if each["stage"] == "train" and "history" in each]
        same: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
        for each in trainings:
            poison, dataset = data[each["upstream"]["poison"]]["parameters"], data[each["upstream"]["dataset"]]
            rate = poison["poisoning"].get("rate") if poison["attack"]["name"] != "none" else None
            attack = f"{self.plan.label('attack', poison['attack']['name'])} {percent(rate)}".strip()
            model = f"{self.plan.label('model', each['parameters']['model']['name'])}, {self._method(dataset)}"
            values = dict(_leaves({"": [poison, each["parameters"], dataset["parameters"]], "seed": each["seed"]}))
            same[f"{attack}, {model}"].append((each, values))
        for title, group in same.items():
            keys = dict.fromkeys(key for _, values in group for key in values)
            varying = [key for key in keys if len({values.get(key) for _, values in group}) > 1]
            for each, values in group:
                more = [f"{key.rpartition('.')[2]} {values[key]}" for key in varying if key in values]
                each["title"] = ", ".join([title, *more])

    def times(self) -> list[dict[str, Any]]:
        """Run time and memory by stage and method."""
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for each, run in self._runs():
            groups[each["stage"], self._method(each)].append(run)
        order = list(STAGES)
        result = []
        for (stage, method), runs in sorted(groups.items(), key=lambda group: (order.index(group[0][0]), group[0][1])):
            seconds = [run["seconds"] for run in runs]
            memory = [
                [run[key] for run in runs if key in run] for key in ("peak_memory_bytes", "peak_device_memory_bytes")
            ]
            result.append({
                "stage": stage, "method": method, "runs": len(runs), "total": sum(seconds),
                "mean": sum(seconds) / len(runs), "longest": max(seconds),
                "memory": [max(found, default=None) for found in memory],
                "devices": sorted({str(run.get("device")) for run in runs}),
            })  # fmt: skip
        return result

    def _method(self, artifact: dict[str, Any]) -> str:
        """What an artifact is of, as tables call it."""
        parameters, upstream = artifact["parameters"], artifact["upstream"]
        behind = self.records.data["artifacts"]

        def label(kind: str, spec: dict[str, Any]) -> str:
            return self.plan.label(kind, spec["name"])

        match artifact["stage"]:
            case "dataset":
                return label("dataset", parameters)
            case "asset" | "poison":
                return label("attack", parameters["attack"])
            case "train":
                poison = behind[upstream["poison"]]
                return f"{label('attack', poison['parameters']['attack'])}, {label('model', parameters['model'])}"
            case "adopt":
                return f"{self.plan.label('attack', parameters['name'])}, {label('model', parameters['model'])}"
            case "purify":
                return label("defense", parameters["defense"])
            case "evaluate":
                return "purified" if "undefended" in upstream else "backdoored"
            case _:
                return ""


def _mark(place: Place, number: Number) -> str:
    """The footnote of a number: a not made yet, b cannot be, c made of some seeds only."""
    if not place.cells:
        return "b"
    return "" if not number.missing else "c" if len(number.missing) < len(place.cells) else "a"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each value within dictionaries and lists, with its keys."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{key}.{name}")
    else:
        yield key, text_of(value)


def duration(seconds: float) -> str:
    """4.2 s, 3.5 min, 2.1 h."""
    for limit, unit, size in ((90, "s", 1), (90 * 60, "min", 60)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"


def size_of(number: int | None) -> str:
    """597 MiB, 4.1 GiB; a dash where it is not known."""
    if number is None:
        return "–"
    mebibytes = number / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def _asset(name: str) -> str:
    return (resources.files("depoison.reports") / "templates" / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = templates().overlay(autoescape=True)
    environment.filters = templates().filters | {"duration": duration, "bytes": size_of}
    return environment.get_template("report.html.jinja")
