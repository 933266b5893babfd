"""docs/reference/: every method, value and key, from the files that say it, as `depoison list` shows them."""

from __future__ import annotations

import json
import re
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from depoison.papers.schema import SCHEMAS
from depoison.plan.config import KINDS, SECTIONS
from depoison.plan.parameters import text_of
from depoison.plan.plan import Plan
from depoison.reports.latex import BIBLIOGRAPHY, read_bibliography
from depoison.reports.listing import Row, all_of, known_of, row_of, shown
from depoison.reports.tables import code, escape_markdown

FOLDER = "docs/reference"

PAGES = {
    "attacks": "What puts a backdoor into a network. Values stand after a name, `badnet+rate=0.05`; how to add one: "
    "[adding an attack](../adding-an-attack.md).",
    "defenses": "What removes a backdoor, or keeps it out. What it *sees*: `model`, the backdoored one; `clean`, the "
    "defender's clean data; `suspect`, the poisoned training set, unmarked; `new_model`, a fresh one; `tune` and `fit`, the "
    "loops of tuning and training. How to add one: [adding a defense](../adding-a-defense.md).",
    "models": "Networks. *Has* is what a method may need of one.",
    "datasets": "What networks are trained on, and what they are measured by; how to add one: "
    "[adding a dataset](../adding-a-dataset.md).",
    "metrics": "What is measured; how to add one: [adding a metric](../adding-a-metric.md).",
    "tracks": "Budgets: datasets, models and values that take the place of a paper's.",
    "papers": "Papers, and the values that are their own choice; how to add one: [adding a paper](../adding-a-paper.md).",
}
"""The kinds of `depoison list`, in the order of the index, and what each page begins with."""

SHARED = (
    "What methods share: `config/shared.yaml`, and `config/tasks/` what is of one kind of data alone. It has the value that "
    "`config/config.yaml` sets, else *neutral*, the value at which it changes nothing, and which no path says."
)
FILES = (
    "The keys of every YAML file below `config/`. Editors know them from `.schemas/`, which `depoison schema` writes."
)
COMMANDS = (
    "In the project's folder. Most work is asked of Snakemake, by the name of what is wanted: "
    "`snakemake -- reports/table2.md`. `python -m depoison` is the same where the package is not installed."
)
INDEX = (
    "Every method, value and key, written by `depoison reference` from the files that say it. In a terminal: "
    "`depoison list defenses fst`."
)
OTHERS = {
    "shared": "hyper-parameters that methods share: of data, poisoning, training and tuning",
    "files": "the keys of configuration, methods, tracks, papers, tables, figures and claims",
    "command-line": "commands, and what each takes",
    "python": "what `import depoison` offers",
}
PARAMETERS = ("hyper-parameter", "type", "value", "valid", "what it does", "source")


def reference(plan: Plan, parser: ArgumentParser) -> dict[str, str]:
    """The pages that files say: path → text. That of Python is of docstrings, which the site reads (docs/conf.py).

    Args:
        parser: of the command line.
    """
    path = plan.root / BIBLIOGRAPHY
    cited = read_bibliography(path.read_text(encoding="utf-8")) if path.exists() else {}
    pages = {listed: _page(listed.capitalize(), about, _all(plan, listed, cited)) for listed, about in PAGES.items()}
    pages |= {
        "shared": _page("Shared hyper-parameters", SHARED, _shared(plan)),
        "files": _page("Files", FILES, _files()),
    }
    pages["command-line"] = _page("Command line", COMMANDS, _commands(parser))
    pages["README"] = _page("Reference", INDEX, _index(plan))
    return {f"{FOLDER}/{name}.md": text for name, text in pages.items()}


def write_reference(plan: Plan, parser: ArgumentParser) -> None:
    """Write what `reference` says."""
    (plan.root / FOLDER).mkdir(parents=True, exist_ok=True)
    for path, text in reference(plan, parser).items():
        (plan.root / path).write_text(text, encoding="utf-8")


def _page(title: str, about: str, lines: Iterable[str]) -> str:
    text = "\n".join([f"# {title}", "", "<!-- written by `depoison reference` -->", "", about, "", *lines])
    return text.rstrip() + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table, and one that ends it, of cells that are Markdown; nothing of no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if lines:
        yield from (f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines, "")


def _prose(text: str) -> str:
    """As `escape_markdown`, but that names may stand between backticks."""
    return re.sub(r"\\`(.*?)\\`", lambda found: code(found[1].replace("\\", "")), escape_markdown(text))


def _verbatim(text: Any) -> str:
    """Of a table's cell: as it is typed, or nothing."""
    return code(str(text)).replace("|", "\\|") if str(text) else ""


def _index(plan: Plan) -> Iterator[str]:
    rows = [(page, ", ".join(f"[{name}]({page}.md#{name})" for name in all_of(plan, page))) for page in PAGES]
    yield from _table(
        ("page", "what there is"), ((f"[{page}]({page}.md)", what) for page, what in [*rows, *OTHERS.items()])
    )


def _all(plan: Plan, listed: str, cited: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    found = {name: known_of(plan, listed, name) for name in all_of(plan, listed)}
    yield from _table(
        ("name", "what it is"), ((f"[{name}](#{name})", _prose(known.summary)) for name, known in found.items())
    )
    for name, known in found.items():
        yield from (f"## {name}", "", _prose(known.summary), "")
        if listed in KINDS.values():
            facts = {key: escape_markdown(value) for key, value in known.facts.items()}
            if entry := cited.get(known.facts.get("cited as", "")):
                facts["cited as"] += f": {escape_markdown(_citation(entry))}"
            yield from (*(f"- {key}: {value}" for key, value in facts.items()), "")
        else:
            yield from _table(("key", "value"), ((_verbatim(k), _verbatim(v)) for k, v in known.facts.items()))
        rows = [(_verbatim(key), *_cells(row), escape_markdown(row.source)) for key, row in known.own.items()]
        sourced = len(PARAMETERS) - (not any(row[-1] for row in rows))
        yield from _table(PARAMETERS[:sourced], (row[:sourced] for row in rows))
        sets = {key: row.value for key, row in known.shared.items() if row.value}
        said = ({"always": shown(sets)} if sets else {}) | known.said
        if groups := [group for group, keys in plan.configuration.shared.items() if keys.keys() & known.shared.keys()]:
            yield from (f"Shared: {', '.join(f'[{group}](shared.md#{group})' for group in groups)}", "")
        yield from _table(("where", "its values"), ((escape_markdown(k), _verbatim(v)) for k, v in said.items()))


def _cells(row: Row) -> tuple[str, str, str, str]:
    return row.type, _verbatim(row.value), _verbatim(row.valid), _prose(row.help)


def _citation(entry: Mapping[str, str]) -> str:
    where = next((entry[key] for key in ("booktitle", "journal", "howpublished") if key in entry), "")
    return ", ".join(filter(None, [entry["title"], where, entry.get("year", "")]))


def _shared(plan: Plan) -> Iterator[str]:
    """A table for each group, and for what of it is of one task's data alone."""
    configuration = plan.configuration
    for group, parameters in configuration.shared.items():
        sets = {section: getattr(configuration.config, section) for section, of in SECTIONS.items() if group in of}
        head = ("hyper-parameter", "type", *(f"in {section}" for section in sets), "neutral", "valid", "what it does")
        for task in (None, *configuration.tasks):
            rows = []
            for key, parameter in parameters.items():
                if parameter.task == task:
                    given = (text_of(values[key]) if key in values else "" for values in sets.values())
                    kind, neutral, *rest = _cells(row_of(parameter, text_of(parameter.neutral) * parameter.has_neutral))
                    rows.append((_verbatim(key), kind, *map(_verbatim, given), neutral, *rest))
            if rows:
                yield from (f"## {group}" + f", {task}" * bool(task), "")
                yield from _table(head, rows)


def _files() -> Iterator[str]:
    """A table for each kind of file."""
    for name, described in SCHEMAS.items():
        schema = described.model.model_json_schema()
        kinds = schema.get("discriminator", {}).get("mapping", {})
        found = {f"{name}, kind {kind}": {"$ref": of} for kind, of in kinds.items()} or {name: schema}
        for title, one in found.items():
            yield from (f"## {title}", "", ", ".join(map(code, described.paths)), "")
            yield from _table(("key", "type", "default", "what it says"), _keys(one, schema.get("$defs", {})))


def _keys(schema: Mapping[str, Any], known: Mapping[str, Any], above: str = "") -> Iterator[Sequence[str]]:
    """Rows of a JSON schema's keys, and below those that are mappings with keys of their own."""
    schema = _resolved(schema, known)
    for key, each in schema["properties"].items():
        default = each.get("default")
        below = _resolved(each, known)
        given = "" if default in (None, "", [], {}) or "properties" in below else _verbatim(json.dumps(default))
        given = "required" if key in schema.get("required", ()) else given
        says = each.get("description") or below.get("description") or ""
        yield _verbatim(above + key), escape_markdown(_type(each, known)), given, _prose(says)
        if "properties" in below:
            yield from _keys(below, known, f"{above}{key}.")


def _resolved(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    return known[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _type(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """A JSON schema's type in words."""
    schema = _resolved(schema, known)
    if "anyOf" in schema:
        return " or ".join(_type(each, known) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum") or [schema["const"]]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'], known)}" if "items" in schema else "list"
    low = f"[{schema['minimum']}" if "minimum" in schema else f"({schema.get('exclusiveMinimum', '-inf')}"
    high = f"{schema['maximum']}]" if "maximum" in schema else f"{schema.get('exclusiveMaximum', 'inf')})"
    words = {"object": "mapping", "string": "text", None: "any"}.get(schema.get("type"), str(schema.get("type")))
    return words if (low, high) == ("(-inf", "inf)") else f"{words} in {low}, {high}"


def _commands(parser: ArgumentParser) -> Iterator[str]:
    """A table for each command that has no commands of its own."""
    for action in parser._actions:
        if isinstance(action.choices, Mapping):
            for command in action.choices.values():
                yield from _commands(command)
            return
    yield from (f"## {parser.prog}", "", _prose(parser.description or ""), "")
    rows = ((_argument(action), _prose(_help(parser, action))) for action in parser._actions if action.dest != "help")
    yield from _table(("argument", "what it is"), (row for row in rows if row[1]))


def _argument(action: Action) -> str:
    """As a usage has it."""
    name = str(action.metavar or action.dest.upper())
    if action.option_strings:
        return _verbatim(" ".join([*action.option_strings, *([] if action.nargs == 0 else [name])]))
    return _verbatim({"?": f"[{name}]", "*": f"[{name} …]", "+": f"{name} …"}.get(str(action.nargs), name))


def _help(parser: ArgumentParser, action: Action) -> str:
    return "" if action.help in (None, SUPPRESS) else parser._get_formatter()._expand_help(action)
