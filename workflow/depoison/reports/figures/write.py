"""What is in a figure's three files, and in the page that lists a paper's figures."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

from depoison.files import csv_bytes, sha256_of
from depoison.papers.figures import Figure, Page
from depoison.plan.plan import Plan
from depoison.plan.specs import fingerprint
from depoison.reports.figures.style import RC, VERSION
from depoison.reports.tables import escape_markdown, name_of, no_formula


def render_figure(figure: Figure) -> dict[str, bytes]:
    """The bytes of each of the three files, by suffix; equal numbers make equal bytes."""
    rows = kind_of(figure).numbers(figure)
    text = render_csv(figure, rows)
    made_from = made_from_of(figure, text)
    in_pdf = {"CreationDate": None, "Keywords": made_from, "Title": figure.file.title}
    return {
        ".csv": text,
        ".png": draw(figure, rows, "png", {"Software": None, "Comment": made_from}),
        ".pdf": draw(figure, rows, "pdf", in_pdf),
    }


def draw(figure: Figure, rows: list[dict[str, Any]], format: str, metadata: dict[str, str | None]) -> bytes:
    """A picture of a figure, in the project's style whatever the user's own settings of Matplotlib are."""
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **RC}):
        kind_of(figure).draw(figure, rows).savefig(content, format=format, metadata=metadata)
    return content.getvalue()


def render_csv(figure: Figure, rows: list[dict[str, Any]]) -> bytes:
    """Every number that is drawn, in full precision."""
    head = {"paper": figure.paper, "figure": figure.name, "track": figure.track}
    shown = ({key: no_formula(value) for key, value in (head | row).items()} for row in rows)
    return csv_bytes([*head, *rows[0]], shown)


def made_from_of(figure: Figure, text: bytes) -> str:
    """A hash of all that a picture follows from: its file, its numbers, its labels, and how figures look."""
    parts = [[part.label for part in parts] for parts in (figure.rows, figure.columns, figure.lines, figure.groups)]
    artifacts = {artifact.product: sha256_of(Path(artifact.product)) for artifact in figure.artifacts()}
    shown = [figure.definition, figure.target, figure.dataset, figure.model, parts, text.decode(), artifacts]
    return f"depoison-{VERSION}-{fingerprint(shown)}"


def kind_of(figure: Figure) -> Any:
    return importlib.import_module(f"depoison.reports.figures.{figure.file.kind}")


def render_page(plan: Plan, page: Page) -> str:
    """All figures of a paper, one below the other."""
    track = plan.configuration.track(page.track).content
    lines = [
        f"# {plan.paper_label(page.paper)}: figures",
        "",
        f"Track {page.track}: {escape_markdown(track.summary)}.",
    ]
    for figure in page.figures:
        name, file, number = figure.name, figure.file, name_of(figure)
        lines += ["", f"## {number}: {escape_markdown(file.title)}", "", f"![{number}]({name}.png)", ""]
        lines.append(
            f"{escape_markdown(f'{file.caption}. {setting(plan, figure)}')} [PDF]({name}.pdf), [numbers]({name}.csv)."
        )
        if gaps := figure.gaps():
            lines += ["", f"Not implemented: {escape_markdown(', '.join(gaps))}."]
    return "\n".join(lines) + "\n"


def setting(plan: Plan, figure: Figure) -> str:
    """Dataset and model of the points, and what the track put in their place."""
    used = list(dict.fromkeys((place.dataset, place.model) for place in figure.places))
    words = [f"{plan.label('dataset', dataset)} with {plan.label('model', model)}" for dataset, model in used]
    seeds = ", ".join(map(str, figure.seeds))
    text = f"{'; '.join(words)}; {'seeds' if len(figure.seeds) > 1 else 'seed'} {seeds}"
    text += ", means with 95% confidence intervals" if len(figure.seeds) > 1 else ""
    if figure.printed != (figure.dataset, figure.model):
        paper = " with ".join(plan.label(*each) for each in zip(("dataset", "model"), figure.printed, strict=True))
        text += f" (the paper: {paper})"
    return f"{text}."
