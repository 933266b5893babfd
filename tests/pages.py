"""A whole run of a track without training anything, and what a page says, read by a parser of its own."""

from __future__ import annotations

import hashlib
import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from conftest import put_recorded
from depoison.papers.index import Index
from test_figures import fake as fake_figure

PACKAGES = {"depoison": "0.1.0", "numpy": "2.4.6", "python": "3.11.7", "torch": "2.15.0"}
COMMIT = "8c3e1f7a" * 5
VOID = {"meta", "img", "input", "br", "link"}


def fake_run(index: Index, figures: bool = True) -> None:
    """Evaluations, records, specs and courses of every cell, below the working directory; no model and no dataset."""
    for figure in index.figures if figures else ():
        fake_figure(figure)
    for table in index.tables:
        for cell in table.cells():
            for artifact in cell.evaluation.chain().values():
                if not (Path(artifact.directory) / "spec.json").exists():
                    fake_artifact(artifact)


def fake_artifact(artifact: Any) -> None:
    folder, numbers = Path(artifact.directory), random.Random(artifact.directory)
    folder.mkdir(parents=True, exist_ok=True)
    put(folder / "run.json", record(artifact.directory))
    put(folder / "spec.json", artifact.spec)
    if artifact.stage in ("train", "purify"):
        lines = ["epoch,loss,train_acc,c_acc,asr,lcr,images_per_second"]
        for epoch in range(1, 13):
            measured = f"{90 + epoch / 10},{100 / epoch},{50 + epoch}" if epoch % 5 == 0 or epoch == 12 else ",,"
            lines.append(f"{epoch},{3 * 0.8**epoch},{100 * (1 - 0.7**epoch)},{measured},1423.3")
        put_recorded(folder / "history.csv", "\n".join(lines) + "\n")
    if artifact.stage == "evaluate":
        model = artifact.upstream["model"].directory
        defended = "undefended" in artifact.upstream
        der = 40 + 40 * numbers.random() if defended else None
        asr = 100 * numbers.random() ** 3
        asr = asr if defended else 100 - asr  # most attacks take
        metrics = {"c_acc": 88 + 8 * numbers.random(), "asr": asr, "lcr": 90 * numbers.random(), "der": der}
        put_recorded(folder / "metrics.json", {
            "metrics": metrics, "denominators": {"c_acc": 359, "asr": 323},
            "model": {"directory": model, **record(model)}, "specs": {},
        })  # fmt: skip


def record(directory: str) -> dict[str, Any]:
    """A run.json that follows from the directory's name."""
    numbers = random.Random(directory)
    return {
        "commit": COMMIT, "device": "x86_64", "packages": PACKAGES, "seconds": 30 * numbers.random(), "threads": 1,
        "peak_memory_bytes": 600_000_000 + numbers.randrange(10**8), "started": "2026-11-21T15:15:54Z", "diverged": False,
        "sha256": {"model.safetensors": hashlib.sha256(directory.encode()).hexdigest()},
    }  # fmt: skip


def put(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


class Element:
    """An element of a page: its name, its attributes, what is in it."""

    def __init__(self, name: str, attributes: dict[str, str], parent: Element | None):
        self.name, self.attributes, self.parent = name, attributes, parent
        self.content: list[Element | str] = []

    def all(self, name: str = "", **attributes: str) -> list[Element]:
        """Elements within this one, in their order."""
        found = []
        for each in self.content:
            if isinstance(each, Element):
                if (not name or each.name == name) and attributes.items() <= each.attributes.items():
                    found.append(each)
                found += each.all(name, **attributes)
        return found

    def one(self, name: str = "", **attributes: str) -> Element:
        (found,) = self.all(name, **attributes)
        return found

    @property
    def text(self) -> str:
        parts = (each if isinstance(each, str) else each.text for each in self.content)
        return "".join(parts)

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self.at = Element("", {}, None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), attrs
        element = Element(tag, {key: value or "" for key, value in attrs}, self.at)
        self.at.content.append(element)
        if tag not in VOID:
            self.at = element

    def handle_endtag(self, tag: str) -> None:
        assert self.at.name == tag, f"</{tag}> in <{self.at.name}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.content.append(data)


def parsed(text: str) -> Element:
    """A page; each element that is opened must be closed, in order."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert parser.at is parser.root
    return parser.root


def data_of(page: Element) -> dict[str, Any]:
    return json.loads(page.one("script", type="application/json").text)


def row_of(section: Element, *labels: str) -> Element:
    """The row of a section's first table with these labels, whether the attack took or not."""
    rows = section.all("table")[0].all("tr")
    (found,) = [row for row in rows if [head.words.rstrip("¶") for head in row.all("th")] == list(labels)]
    return found
