"""LaTeX: text, references and documents that pdflatex takes, whatever they are called.

What needs pdflatex has the mark `latex`; `make test-latex` installs TeX Live's basic packages and runs it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import ROOT, Project, job_counts, lean, put_recorded, seldom, with_tiny
from depoison.errors import DepoisonError
from depoison.papers.figures import read_figure
from depoison.papers.tables import read_report, read_table
from depoison.plan.plan import Plan
from depoison.reports.figures import sweep
from depoison.reports.figures.write import draw, render_csv, render_figure
from depoison.reports.kinds import kind_of, kinds, report_of
from depoison.reports.latex import (
    SHOWN,
    compile_latex,
    escape_latex,
    name_latex,
    prose_latex,
    read_bibliography,
    reference,
    typewriter,
)
from depoison.reports.tables import no_formula, render
from test_tables_fst import fake

SMALL = "config/papers/fst/small.yaml"
MINI = "config/papers/mini"
HOSTILE = [
    r"\input{/etc/passwd}",
    r"\end{document}",
    r"}\par\write18{id}{",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "$(rm -rf /) `id` $x_1^2$ $$",
    "quotes \" ' ` „“ and | pipes || and \\ back\\\\slashes",
    "new\nline\r\n\n\nparagraph\ttab\x0b\x0c",
    "% comment & # hash ~ ^ _ { } [x] *",
    "*[a](b)* **c** __d__ ![e](f) ~~g~~ <!-- h --> &lt; &#60;",
    "後門攻撃 бэкдор ‮rtl‬ عربي 🙂 \u200b\ufeffé ñ Ł ß α→β x² ﬁ Ａ",
    "a\u0301\u0302\u0303 \u0301 combining",
    "=1+1",
    "-- --- ?` !` '' ``",
    "[*] starts like an argument",
    "long" * 300,
    "many words " * 60,
    "\\",
    "$",
    "\x07\x1b[31m\x7f\u2028\u2029",
]
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\\|`*_[]<>&%$#{}~^\"'-\n\r\t")
) | st.sampled_from(HOSTILE)
COMMAND = re.compile(
    r"\\text[a-z]+\{\}|\\(?:ss|ae|AE|oe|OE|o|O|l|L|i|S|P|copyright|dots|dag|ddag)\{\}|\\[&%$#_{}]|\\[`'^~=.\"urHvcdb]\{[A-Za-z]\}"
    r"|\$(?:-|\^[123]|\\\||\\[A-Za-z]+|\^\\circ)\$|\\-|\\allowbreak\{\}|\{\}"
)


def printed(latex: str) -> str:
    """What is left when all that may stand in escaped text is taken away: nothing that TeX would act on."""
    return COMMAND.sub("", latex)


@given(TEXT)
@settings(max_examples=400)
@example("".join(map(chr, range(0x20, 0x2500))))
def test_escaped_text_is_ascii_and_holds_no_command(text):
    for escape in (escape_latex, name_latex, prose_latex, lambda one: typewriter(one)[len(r"\texttt{") : -1]):
        escaped = escape(text)
        assert escaped.isascii() and escaped.isprintable()
        assert not set(printed(escaped)) & set("\\&%$#_{}~^<>|"), escaped


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\&%$#_{}~^<>|-")))
def test_plain_text_stays_as_it_is(text):
    assert escape_latex(text) == " ".join(text.split())


PLAIN = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
         r"\textgreater{}": ">", r"\textbar{}": "|"}  # fmt: skip


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_latex_prints_all_of_ascii(text):
    command = r"\\text[a-z]+\{\}|\\[&%$#_{}]|\{\}"
    found = re.sub(
        command, lambda match: PLAIN.get(match[0], match[0].strip("\\") if match[0] != "{}" else ""), escape_latex(text)
    )
    assert found == " ".join(text.split())


def test_what_letters_become():
    assert escape_latex("Müller–Łukasz naïve Č") == r"M\"{u}ller--\L{}ukasz na\"{i}ve \v{C}"
    assert escape_latex("中 α ≤ x² ﬁ Ａ − ± \u202ex") == r"[U+4E2D]\allowbreak{} $\alpha$ $\leq$ x$^2$ fi A $-$ $\pm$ x"
    assert escape_latex("snakemake -- a") == "snakemake -{}- a"
    assert len(printed(name_latex("x" * 1000))) <= SHOWN + 5
    assert name_latex("x" * 40).count(r"\-") == 6
    assert typewriter("a/b+c=1_d") == r"\texttt{a/\allowbreak{}b+\allowbreak{}c=\allowbreak{}1\_\allowbreak{}d}"


def test_references_of_all_entries():
    text = (ROOT / "CITATIONS.bib").read_text(encoding="utf-8")
    entries = read_bibliography(text)
    assert list(entries) == re.findall(r"@\w+\{([^,]+),", text)
    for entry in entries.values():
        assert entry["title"] and entry["author"] and entry["year"].isdigit()
        shown = reference(entry)
        assert entry["year"] in shown and not set(re.sub(r"\\emph\{([^{}]*)\}", r"\1", printed(shown))) & set(
            "\\{}&$#_^"
        )


def test_a_reference_by_hand():
    entry = (
        "@Article{key, author = {Doe, J{\\'a}n and van der Maaten, L. and Öz, {\\\"U}}, title={A {B}ig \\& $x$ title},\n"
        "journal={J}, volume={7}, year={2020}}"
    )
    (found,) = read_bibliography(entry).values()
    assert (
        reference(found) == r"J\'{a}n Doe, L.~van der Maaten and \"{U} \"{O}z. A Big \& \$x\$ title. \emph{J}, 7, 2020."
    )


# --- a paper -----------------------------------------------------------------------------------------------------


def mini(project: Project, label: str | None = None) -> Project:
    """A paper `mini`, of one table and no figure, beside FST; each of its names is `label`."""
    project.edit("config/config.yaml", lambda data: data.update(seeds=[0, 1]))
    (project / MINI).mkdir()

    def change(data: dict[str, Any]) -> None:
        data |= {
            "title": "Few", "caption": "Two attacks", "dataset": "cifar10", "model": "resnet18", "summary": ["average"],
            "axes": {
                "rows": [{"attack": name, "label": name, "rates": [0.1]} for name in ("badnet", "blended")],
                "columns": [{"defense": name, "label": name.upper()} for name in ("none", "lp", "ft", "ft-init", "fst")],
            },
            "metrics": {"show": ["c-acc", "asr"]}, "compare": [["fst", "ft"]],
        }  # fmt: skip
        if label is not None:
            data |= {"title": label, "caption": label}
            for item in data["axes"]["rows"] + data["axes"]["columns"]:
                item["label"] = label

    project.edit(f"{MINI}/table1.yaml", change)
    shutil.copy(ROOT / "CITATIONS.bib", project / "CITATIONS.bib")
    return project


@pytest.fixture
def paper(tiny: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tiny.path)
    fake(read_report(mini(tiny).plan(), "reports/tiny/mini/all"))
    return tiny


def source_of(report: Any) -> str:
    return report.render()[".tex"].decode()


def test_targets():
    paper = kinds()["paper"]
    assert {
        kind_of(target)
        for target in ["reports/paper", "reports/paper.pdf", "reports/digits/fst/paper.tex", "reports/paper/paper"]
    } == {paper}
    assert paper not in map(
        kind_of, ["reports/paper/table1", "reports/papers.md", "results/paper.pdf", "reports/mypaper"]
    )
    found = report_of(Plan(ROOT), "reports/digits/fst/paper.pdf")
    assert (found.target, found.paper, found.track) == ("reports/digits/fst/paper", "fst", "digits")
    assert len(found.tables.tables) == 11 and len(found.figures) == 15
    assert {figure.target.rpartition("/")[0] for figure in found.figures} == {"reports/digits/fst"}
    with pytest.raises(DepoisonError, match="unknown track or paper 'fts'"):
        report_of(Plan(ROOT), "reports/digits/fts/paper.pdf")


def test_a_table_cannot_be_called_paper(project):
    (project / "config/papers/fst/paper.yaml").write_text((project / "config/papers/fst/table8.yaml").read_text())
    with pytest.raises(DepoisonError, match=r"^config/papers/fst/paper\.yaml: label: field required$"):
        report_of(project.plan(), "reports/fst/paper")


def test_the_source_has_all_that_the_paper_has(paper):
    plan = paper.plan()
    text = source_of(report_of(plan, "reports/tiny/mini/paper"))
    assert text == source_of(report_of(plan, "reports/tiny/mini/paper"))
    assert r"\begin{longtable}" in text and "MADE-FROM" not in text and "/tmp" not in text
    for part in (
        "MINI, Table 1: Few",
        "Digits in place of CIFAR-10",
        "training.",
        r"\bibitem{he2016deep}",
        "seeds 0, 1",
    ):
        assert part in text.replace(r"\allowbreak{}", ""), part
    for key in re.findall(r"\\cite\{(.*?)\}", text):
        assert rf"\bibitem{{{key}}}" in text
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", text)


@pytest.mark.parametrize(("columns", "page", "parts"), [(2, "portrait", 1), (8, "landscape", 1), (30, "landscape", 3)])
def test_wide_tables_are_turned_and_then_cut(columns, page, parts, paper):
    def change(data: dict[str, Any]) -> None:
        grid = [{"defense": f"lp+lr={0.1 + i / 100}", "label": f"LP {i}"} for i in range(columns)]
        data["axes"]["columns"] = grid
        data["compare"] = []

    paper.edit(f"{MINI}/table1.yaml", change)
    plan = paper.plan()
    fake(read_report(plan, "reports/tiny/mini/all"))
    text = source_of(report_of(plan, "reports/tiny/mini/paper"))
    assert (r"\begin{landscape}" in text) == (page == "landscape")
    heads = re.findall(r"\\begin\{longtable\}\{l(r+)\}", text)
    assert len(heads) == parts and sum((len(head) - 1) // 2 for head in heads) == columns
    assert [f"LP {i}" in text for i in range(columns)] == [True] * columns


def test_what_is_missing_is_an_error_or_left_out(paper):
    plan = paper.plan()
    found = report_of(plan, "reports/tiny/mini/paper")
    gone = found.tables.cells()[3]
    Path(gone.evaluation.product).unlink()
    with pytest.raises(DepoisonError) as caught:
        found.write()
    assert "reports/tiny/mini/paper.pdf: 1 of 20 evaluations are missing" in str(caught.value)
    assert "`snakemake -- reports/tiny/mini/paper.pdf`" in str(caught.value) and not Path("reports").exists()
    text = source_of(found).replace(r"\allowbreak{}", "")
    assert "1 of the 20 evaluations" in text and r"\texttt{snakemake -{}- reports/tiny/mini/table1.md}" in text
    assert escape_latex(gone.name.path) in text
    assert not found.is_current()


def test_a_figure_that_lacks_something_is_an_error_or_left_out(tiny, monkeypatch):
    monkeypatch.chdir(tiny.path)
    for path in (tiny / "config/papers/fst").glob("table*.yaml"):
        path.unlink()
    fake(read_report(tiny.plan(), "reports/tiny/fst/all"))
    found = report_of(tiny.plan(), "reports/tiny/fst/paper")
    with pytest.raises(DepoisonError, match=r"paper\.pdf: figure\d+ lacks \d+ of \d+ artifacts; `snakemake -- "):
        found.write()
    text = source_of(found).replace(r"\allowbreak{}", "")
    assert "includegraphics" not in text.split(r"\section{Figures}")[1]
    assert r"\texttt{snakemake -{}- reports/tiny/fst/figure6.pdf}" in text


def test_without_pdflatex_there_is_one_line_that_says_what_to_install(paper):
    done = paper.depoison("report", "reports/tiny/mini/paper.pdf", PATH=str(paper / "nothing"))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pdflatex, which is not installed: apt-get install texlive-latex-base" in done.stderr


def test_a_paper_is_a_target_of_what_takes_targets(paper):
    from depoison.reports.kinds import artifacts
    from depoison.running.share import need

    asked = artifacts(paper.plan(), ["reports/tiny/mini/paper.pdf"])
    assert len(asked) == 20 and not need(asked).compute


# --- names in the other files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", HOSTILE, ids=range(len(HOSTILE)))
def test_no_name_breaks_markdown_csv_or_json(label, tiny, monkeypatch):
    mini(tiny, label)
    monkeypatch.chdir(tiny.path)
    for kind, name in (("attacks", "badnet"), ("datasets", "digits"), ("models", "resnet18"), ("tracks", "tiny")):
        tiny.set(f"config/{kind}/{name}.yaml", "summary" if kind == "tracks" else "label", to=label)
    plan = tiny.plan()
    fake(read_report(plan, "reports/tiny/mini/all"))
    files = render(plan, read_table(plan, "reports/tiny/mini/table1"))
    parsed = (
        pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table").parse(files[".md"])
    )
    tags = [token.tag for token in parsed if token.type.endswith("_open")]
    assert tags.count("table") == 2 and tags.count("h1") == 1 and not {"ul", "ol", "blockquote", "h2", "hr"} & set(tags)
    rows = [sum(token.type in ("td_open", "th_open") for token in parsed[i : _end(parsed, i)])
            for i, token in enumerate(parsed) if token.type == "tr_open"]  # fmt: skip
    assert rows == [2 + 5] * (1 + 2 + 1) + [2 + 6] * 2
    inline = [child for token in parsed for child in token.children or []]
    html = {child.content for child in inline if child.type == "html_inline"}
    assert html <= {"<sub>", "</sub>", "<sup>", "</sup>", "<br>"}
    assert not {child.type for child in inline} & {"link_open", "image", "em_open"}
    seen = " ".join(" ".join(child.content for child in inline if child.type == "text").split())
    assert label.split()[0][:3] in seen or not label.split()[0].isascii() or len(label) < 3
    lines = list(csv.DictReader(io.StringIO(files[".csv"], newline="")))
    assert {line["column"] for line in lines if line["row"] != "paired difference"} == {no_formula(label)}
    assert all(None not in line and None not in line.values() for line in lines)
    content = json.loads(files[".json"])
    assert {column["label"] for column in content["columns"]} == {label} and content["lines"][0]["label"] == label


def test_half_a_character_is_refused_where_it_stands(tiny):
    path = tiny / SMALL
    path.write_text(path.read_text().replace("label: LP", 'label: "a\\ud800b"'))
    with pytest.raises(DepoisonError, match=r"small\.yaml:\d+: not valid YAML: "):
        read_table(tiny.plan(), "reports/tiny/small")


def _end(tokens: list[Any], start: int) -> int:
    return next(i for i in range(start, len(tokens)) if tokens[i].type == "tr_close")


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Of which tests write one figure each."""
    return lean(with_tiny(Project(tmp_path_factory.mktemp("pictured") / "project")))


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize("kind", ["sweep as pdf", *seldom("sweep", "bars")])
@pytest.mark.parametrize("label", HOSTILE, ids=range(len(HOSTILE)))
def test_no_name_breaks_a_picture(label, kind, pictured, monkeypatch):
    kind, _, alone = kind.partition(" as ")
    monkeypatch.chdir(pictured.path)
    part = {"attack": "badnet", "defense": "lp", "label": label}
    data = {"title": label, "caption": label, "kind": kind, "dataset": "cifar10", "model": "resnet18",
            "axes": {"rows": [part], "columns": [part], "lines": [part, {"defense": "ft", "label": f"_{label}"}]},
            "metrics": ["asr"] if alone else ["c-acc", "asr"]}  # fmt: skip
    if kind == "bars":
        data["axes"]["groups"] = [part]
    else:
        data["axes"]["x"] = {"attack": "rate", "label": label, "values": [0.1, 0.2], "scale": "log"}
    path = pictured / "config/papers/fst/figures/figure2.yaml"
    path.write_text(yaml.safe_dump(data))
    figure = read_figure(pictured.plan(), "reports/tiny/figure2")
    for artifact in figure.artifacts():
        put_recorded(artifact.product, {"metrics": {"c_acc": 90.0, "asr": 10.0}})
    if alone:
        rows = sweep.numbers(figure)
        files = {".csv": render_csv(figure, rows), ".pdf": draw(figure, rows, alone, {"Title": label})}
    else:
        files = render_figure(figure)
        assert files[".png"].startswith(b"\x89PNG")
    assert files[".pdf"].startswith(b"%PDF")
    (labels,) = {line["row"] for line in csv.DictReader(io.StringIO(files[".csv"].decode(), newline=""))}
    assert labels == no_formula(label)


# --- pdflatex ----------------------------------------------------------------------------------------------------

needs_latex = pytest.mark.latex


def text_of(pdf: Path) -> str:
    done = subprocess.run(["pdftotext", "-layout", str(pdf), "-"], capture_output=True, text=True, check=True)
    return done.stdout


def overfull(source: Path, folder: Path, tolerance: float = 1) -> list[str]:
    """TeX's complaints of boxes that stick out by more than so many pt."""
    for _ in range(2):
        command = ["pdflatex", "-interaction=nonstopmode", "-output-directory", str(folder), source.name]
        subprocess.run(command, cwd=source.parent, capture_output=True, check=True)
    log = (folder / f"{source.stem}.log").read_text(errors="replace")
    return [
        line
        for line in re.findall(r"^Overfull .*", log, re.MULTILINE)
        if float(re.search(r"\(([\d.]+)pt", line)[1]) > tolerance
    ]


def cut_off(pdf: Path, folder: Path) -> list[str]:
    """Pages with ink within 40 of the 57 pt of the right margin: of a long table TeX does not complain."""
    subprocess.run(["pdftoppm", "-r", "36", "-gray", "-png", str(pdf), str(folder / "page")], check=True)
    pages = sorted(folder.glob("page*.png"))
    assert pages
    return [page.name for page in pages if np.asarray(Image.open(page))[:, -20:].min() < 250]


@needs_latex
def test_the_document_compiles_and_nothing_sticks_out(paper, tmp_path):
    report_of(paper.plan(), "reports/tiny/mini/paper").write()
    pdf = paper / "reports/tiny/mini/paper.pdf"
    text = text_of(pdf)
    assert "MINI, Table 1: Few" in text and "References" in text and "Reproducibility" in text
    table = json.loads(render(paper.plan(), read_table(paper.plan(), "reports/tiny/mini/table1"))[".json"])
    for line in table["lines"]:
        assert all(f"{number['ours']:.2f}" in text for number in line["numbers"])
    assert overfull(paper / "reports/tiny/mini/paper.tex", tmp_path) == []
    assert cut_off(pdf, tmp_path) == []
    assert report_of(paper.plan(), "reports/tiny/mini/paper").is_current()
    paper.set(f"{MINI}/table1.yaml", "caption", to="Other")
    assert not report_of(paper.plan(), "reports/tiny/mini/paper").is_current()


@needs_latex
@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_every_table_of_fst_compiles_and_nothing_sticks_out(seeds, tiny, monkeypatch, tmp_path):
    tiny.edit("config/config.yaml", lambda data: data.update(seeds=seeds))
    monkeypatch.chdir(tiny.path)
    tables = read_report(tiny.plan(), "reports/all")  # of the paper's track, which tells every table from the others
    fake(tables)
    for cell in tables.cells() if len(seeds) == 1 else ():
        put_recorded(cell.evaluation.product, {"metrics": {"c_acc": 0.0, "asr": 100.0}})  # the widest differences
    report_of(tiny.plan(), "reports/paper", partial=True).write()
    text = text_of(tiny / "reports/paper.pdf")
    assert all(f"FST, Table {i}: " in text for i in range(1, 12)) and "Figure 16: " in text
    assert overfull(tiny / "reports/paper.tex", tmp_path) == []
    assert cut_off(tiny / "reports/paper.pdf", tmp_path) == []


@needs_latex
def test_the_same_numbers_make_the_same_bytes_at_another_time_in_another_place(paper, tmp_path, monkeypatch):
    report_of(paper.plan(), "reports/tiny/mini/paper").write()
    first = (paper / "reports/tiny/mini/paper.pdf").read_bytes()
    other = paper.copy(tmp_path / "elsewhere with a long name", "results", "CITATIONS.bib")
    monkeypatch.chdir(other.path)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    report_of(other.plan(), "reports/tiny/mini/paper").write()
    assert (other / "reports/tiny/mini/paper.pdf").read_bytes() == first
    assert b"CreationDate" not in first and b"Producer(pdfTeX" not in first and str(tmp_path).encode() not in first


@needs_latex
def test_an_error_of_latex_is_one_line_with_the_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = Path("bad.tex")
    source.write_text("\\documentclass{article}\n\\begin{document}\n\\nosuchcommand\n\\end{document}\n")
    with pytest.raises(DepoisonError) as caught:
        compile_latex(source, Path("logs/bad.latex.log"))
    assert str(caught.value) == "bad.tex: Undefined control sequence. (line 3); logs/bad.latex.log has more"
    assert "nosuchcommand" in Path("logs/bad.latex.log").read_text() and not Path("bad.pdf").exists()
    source.write_text("\\documentclass{article}\n\\usepackage{no-such-package}\n\\begin{document}x\\end{document}\n")
    with pytest.raises(DepoisonError, match=r"no-such-package.sty' not found.*apt-get install"):
        compile_latex(source, Path("logs/bad.latex.log"))
    source.write_text("\\documentclass{article}\n\\begin{document}x\\immediate\\write18{touch owned}\\end{document}\n")
    compile_latex(source, Path("logs/bad.latex.log"))
    assert not Path("owned").exists() and not Path("logs/bad.latex.log").exists() and Path("bad.pdf").exists()


@needs_latex
@pytest.mark.parametrize("label", [*HOSTILE, " ".join(HOSTILE[:14])], ids=range(len(HOSTILE) + 1))
def test_no_name_breaks_the_table_or_the_document(label, tiny, monkeypatch, tmp_path):
    mini(tiny, label)
    monkeypatch.chdir(tiny.path)
    for kind, name in (("attacks", "badnet"), ("datasets", "digits"), ("models", "resnet18"), ("tracks", "tiny")):
        key = "summary" if kind == "tracks" else "label"
        tiny.set(f"config/{kind}/{name}.yaml", key, to=label)
    plan = tiny.plan()
    fake(read_report(plan, "reports/tiny/mini/all"))
    report_of(plan, "reports/tiny/mini/paper").write()
    text = text_of(tiny / "reports/tiny/mini/paper.pdf")
    assert "root:x:0" not in text and "References" in text
    assert overfull(tiny / "reports/tiny/mini/paper.tex", tmp_path, 10) == []
    report_of(plan, "reports/tiny/mini/table1").write()
    head = "\\documentclass{article}\\usepackage{booktabs,graphicx,xcolor}"
    document = head + "\\begin{document}before \\input{%s} after\\end{document}"
    (tiny / "alone.tex").write_text(document % "reports/tiny/mini/table1")
    compile_latex(Path("alone.tex"), Path("alone.log"))
    text = text_of(tiny / "alone.pdf")
    assert "before" in text and "after" in text and "root:x:0" not in text


@needs_latex
@given(st.lists(TEXT, min_size=30, max_size=30))
@settings(max_examples=8)
def test_pdflatex_takes_any_text(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    lines = (f"{{}}{name_latex(text)}\\par\n{{}}{prose_latex(text)}\\par\n{typewriter(text)}\\par\n" for text in texts)
    source = folder / "any.tex"
    source.write_text(
        "\\documentclass{article}\\usepackage[utf8]{inputenc}\\begin{document}\n"
        + "".join(lines)
        + "end\\end{document}\n"
    )
    compile_latex(source, folder / "any.log")
    assert source.with_suffix(".pdf").exists()


@needs_latex
@pytest.mark.pipeline
def test_snakemake_makes_the_document_once_and_again_when_it_is_out_of_date(paper):
    def jobs(*options: str) -> dict[str, int]:
        done = paper.snakemake("--cores", "1", *options, "--", "reports/tiny/mini/paper.pdf")
        assert done.returncode == 0, done.stdout + done.stderr
        return job_counts(done.stdout + done.stderr)

    assert jobs() == {"paper": 1}
    assert jobs() == {}
    os.utime(paper / read_report(paper.plan(), "reports/tiny/mini/all").evaluations()[0])
    assert jobs() == {}
    paper.set(f"{MINI}/table1.yaml", "title", to="Another title")
    assert jobs() == {"paper": 1}
    (paper / "reports/tiny/mini/paper.pdf").unlink()
    assert jobs() == {"paper": 1}
    (paper / "more.yaml").write_text("runtime: {threads: 1}\n")
    assert jobs("--configfile", "more.yaml") == {"paper": 1}  # the command in the appendix is another
    assert jobs("--configfile", "more.yaml") == {}
    text = (paper / "reports/tiny/mini/paper.tex").read_text().replace(r"\allowbreak{}", "")
    assert r"\texttt{snakemake -{}-configfile more.yaml -{}- reports/tiny/mini/paper.pdf}" in text


@pytest.mark.drill
@pytest.mark.pipeline
def test_snakemakes_report_shows_tables_by_paper_and_track(paper):
    """Snakemake 9 brings the report's scripts with it: nothing is fetched."""
    target = "reports/tiny/mini/table1.md"
    done = paper.snakemake("--cores", "1", "--", target)
    assert done.returncode == 0, done.stdout + done.stderr
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = paper.snakemake("--report", "out.html", "--", target, **closed)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (paper / "out.html").read_text(encoding="utf-8")
    assert "MINI on the track tiny" in page and "ours beside the published numbers" in page
    assert {f"reports/tiny/mini/table1.{suffix}" in page for suffix in ("md", "csv")} == {True}
    assert not re.search(r"<(?:script|link)[^>]*(?:src|href)=[\"']?https?:", page)
