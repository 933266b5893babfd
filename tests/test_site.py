"""The site that `make docs` has built: all documents are in it, links lead somewhere, the notebook shows what it says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from conftest import ROOT

pytestmark = pytest.mark.docs
SITE = ROOT / "build/docs"


class Links(HTMLParser):
    """What a page leads to, and the places in it that something may lead to."""

    def __init__(self, page: Path):
        super().__init__()
        self.targets: set[str] = set()
        self.places: set[str] = {""}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.targets |= {found[key] for key in ("href", "src") if found.get(key)}
        self.places |= {found["id"]} if found.get("id") else set()


def test_every_document_is_a_page():
    documents = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.*")}
    pages = {name for name in documents if any((ROOT / "docs" / f"{name}{end}").exists() for end in (".md", ".ipynb"))}
    assert len(pages) > 40
    home = Links(SITE / "index.html").targets
    for page in pages - {Path("index")}:
        assert (SITE / f"{page}.html").stat().st_size and f"{page}.html" in home, page


def test_links_lead_somewhere():
    pages = {page: Links(page) for page in SITE.rglob("*.html") if "_static" not in page.parts}
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if not (parts.scheme or parts.netloc) and parts.path + parts.fragment:
                there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
                assert there.exists(), f"{page}: {target}"
                assert there not in pages or unquote(parts.fragment) in pages[there].places, f"{page}: {target}"


def test_the_notebook_shows_what_it_says():
    notebook = json.loads((SITE.parent / "jupyter_execute/own-model.ipynb").read_text(encoding="utf-8"))
    shown = {
        cell["id"]: "".join(text)
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if (text := output.get("text") or output["data"].get("text/plain"))
    }
    lines = re.findall(r"^(\S.*?)  +([\d.]+) +([\d.]+) +([\d.]+)$", shown["compare"], re.MULTILINE)
    table = {name: tuple(map(float, numbers)) for name, *numbers in lines}
    assert [*table] == ["none", "LP", "FT", "FST, α 0.2", "FST, α 0.05"]
    asr, c_acc, lcr = (dict(zip(table, numbers, strict=True)) for numbers in zip(*table.values(), strict=True))
    assert asr["none"] > 95 and lcr["none"] < 5 and c_acc["none"] > 80
    assert asr["LP"] > 50 and max(asr["FST, α 0.2"], asr["FST, α 0.05"]) < 5
    assert lcr["FST, α 0.05"] > 50 and c_acc["FST, α 0.05"] > c_acc["FST, α 0.2"]
    assert shown["same"] == "('Network', True)"
