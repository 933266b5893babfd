"""The HTML report in a browser, with a keyboard, on a phone, in the dark; `make test-browser` runs this."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Project, put_recorded
from depoison.papers.index import read_index
from depoison.reports.kinds import report_of
from pages import fake_run

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
TARGET = "reports/digits/index.html"
MISSING = "/ssba+rate=0.005/fe-tuning/s0.json"  # no figure draws it
DESK, LAPTOP, PHONE = (1400, 1000), (980, 800), (390, 844)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FST's whole paper on the track `digits`: 11 tables and 15 figures. One cell is missing, one is of no implementation."""
    project = Project(tmp_path_factory.mktemp("browser") / "project")
    for paper in (project / "config/papers").iterdir():
        if paper.name != "fst":
            shutil.rmtree(paper)
    project.edit(
        "config/papers/fst/table1.yaml",
        lambda data: data["axes"]["columns"].append({"defense": "later", "label": "Later"}),
    )
    project.set("config/papers/fst/table1.yaml", "unimplemented", to=["later"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.path)
        plan = project.plan()
        index = read_index(plan, TARGET)
        fake_run(index)
        (missing,) = [cell for cell in index.tables[0].cells() if cell.name.path.endswith(MISSING)]
        Path(missing.evaluation.product).unlink()
        for cell in index.tables[0].cells():  # as where `evaluate_every` is 0
            if cell.name.defense.name == "ft-init":
                _without_measurements(Path(cell.evaluation.upstream["model"].directory) / "history.csv")
        report_of(plan, TARGET).write()
    return project / TARGET


def _without_measurements(history: Path) -> None:
    with history.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(row | dict.fromkeys(("c_acc", "asr", "lcr"), "") for row in rows)
    put_recorded(history, text.getvalue())


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = shutil.which("chromium") or pytest.fail("no chromium; see `make test-browser`")
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Page:
    """The page, opened afresh; whatever a test did, in the end nothing was asked of the network, and nothing went wrong."""

    def __init__(self, driver: Any, file: Path):
        self.driver, self.file = driver, file

    def open(self, size: tuple[int, int] = DESK, scheme: str = "light") -> Page:
        self.size(*size)
        self.media(scheme)
        self.driver.get(self.file.as_uri())
        self.run("localStorage.clear()")
        self.driver.get(self.file.as_uri())
        return self

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def media(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def ask(self, expression: str) -> Any:
        return self.run(f"return {expression}")

    def press(self, *keys: str) -> None:
        """Press and release each key, or keys held together such as Control+Home."""
        from selenium.webdriver import ActionChains, Keys

        named = {"Control": Keys.CONTROL, "Shift": Keys.SHIFT, "Up": Keys.ARROW_UP, "Down": Keys.ARROW_DOWN,
                 "Left": Keys.ARROW_LEFT, "Right": Keys.ARROW_RIGHT, "Home": Keys.HOME, "End": Keys.END,
                 "Enter": Keys.ENTER, "Tab": Keys.TAB, "Escape": Keys.ESCAPE, "Space": Keys.SPACE}  # fmt: skip
        for key in keys:
            actions, parts = ActionChains(self.driver, duration=0), [named.get(part, part) for part in key.split("+")]
            for part in parts[:-1]:
                actions.key_down(part)
            actions.send_keys(parts[-1])
            for part in parts[:-1]:
                actions.key_up(part)
            actions.perform()

    def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)", selector)

    def column(self, section: str, index: int) -> list[str]:
        rows = "[...document.querySelector(arguments[0]).tBodies[0].rows]"
        return self.run(f"return {rows}.map((row) => row.cells[arguments[1]].textContent)", f"{section} table", index)

    @property
    def focused(self) -> str:
        return self.ask("document.activeElement.textContent")


@pytest.fixture
def page(chromium: Any, file: Path) -> Iterator[Page]:
    for log in ("browser", "performance"):
        chromium.get_log(log)
    made = Page(chromium, file)
    yield made.open()
    assert chromium.get_log("browser") == []
    asked = [json.loads(line["message"])["message"] for line in chromium.get_log("performance")]
    urls = {one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"}
    assert file.as_uri() in urls and {url for url in urls if not url.startswith("data:")} == {file.as_uri()}


def number(text: str) -> float:
    """Of a cell: an LCR may stand below it."""
    return float(text.split(" LCR")[0].replace("−", "-").replace("±", ""))


def test_it_is_small_and_opens_at_once(page, file):
    size = file.stat().st_size
    cells = page.ask("document.querySelectorAll('td[data-e]').length")
    times = []
    for _ in range(5):
        page.driver.get(page.file.as_uri())
        times.append(page.ask("performance.getEntriesByType('navigation')[0].loadEventEnd"))
    # Of a busy machine the best time says what the page costs.
    print(f"\n{size / 1e6:.2f} MB, {cells} numbers, loaded in {sorted(round(t) for t in times)} ms")
    # FST's less Tables 4, 6, 9, 10 and 11, which are on digits Table 2 once more.
    assert len(page.texts("section.table")) == 6 and len(page.texts("section.figure img.drawn")) == 15
    assert size < 5_000_000 and min(times) < 1000


def test_switching_between_ours_published_and_their_difference(page):
    ours = page.column("#fst-table2", 2)
    page.click("[name=view][value=published]")
    published = page.column("#fst-table2", 2)
    page.click("[name=view][value=difference]")
    difference = page.column("#fst-table2", 2)
    assert published[:3] == ["94.09", "94.52", "94.79"] and ours != published
    for a, b, c in zip(ours, published, difference, strict=True):
        assert number(c) == pytest.approx(number(a) - number(b), abs=0.0101)
    assert page.ask("getComputedStyle(document.querySelector('#fst-table2 .printed')).display") == "none"
    page.click("[name=view][value=ours]")
    assert page.column("#fst-table2", 2) == ours


def test_all_columns_of_table_2_fit_a_laptop(page):
    """FST's, the last of eight, among them."""
    page.open(LAPTOP)
    assert "FST" in page.texts("#fst-table2 thead th[scope=colgroup]")[-1]
    cells = "[...document.querySelectorAll('#fst-table2 .wide :is(td.n, thead th)')]"
    right = f"Math.max(...{cells}.map((c) => c.getBoundingClientRect().right))"
    box = "document.querySelector('#fst-table2 .scroll')"
    assert page.ask(right) <= LAPTOP[0] - 24 and page.ask(f"{box}.scrollWidth <= {box}.clientWidth")
    assert page.ask("document.documentElement.scrollWidth") <= LAPTOP[0]
    # No number is cut, and none reaches into its neighbor.
    assert page.ask(
        "[...document.querySelectorAll('#fst-table2 td.n')].every((c) => c.scrollWidth <= c.clientWidth + 1)"
    )


def test_rows_in_which_the_attack_did_not_take_are_gray(page):
    style = "getComputedStyle(document.querySelector(arguments[0]))"
    gray = page.run(f"return {style}.color", ".lead")
    cells = "[...document.querySelectorAll('#fst-table2 tr.untaken :is(th, td)')]"
    assert set(page.ask(f"{cells}.map((c) => getComputedStyle(c).color)")) == {gray}
    numbers = "[...document.querySelectorAll('#fst-table2 tr.untaken td')]"
    assert set(page.ask(f"{numbers}.map((c) => getComputedStyle(c).backgroundColor)")) == {"rgba(0, 0, 0, 0)"}
    assert set(page.ask(f"{numbers}.map((c) => getComputedStyle(c).fontWeight)")) == {"400"}
    assert 0 < page.ask("document.querySelectorAll('#fst-table2 tr.untaken').length") < 19


def test_an_lcr_stays_with_our_number(page):
    before = page.texts("#fst-table2 td small")
    assert before and all(re.fullmatch(r" LCR \d+", text) for text in before)
    page.click("[name=view][value=published]")
    assert not page.texts("#fst-table2 td small")
    page.click("[name=view][value=ours]")
    assert page.texts("#fst-table2 td small") == before


def test_how_a_purification_went(page):
    """Where C-Acc and ASR were not measured by epoch, those before and after are two points each, and no axis is empty."""
    page.run("document.querySelector('#fst-table1 tbody tr').cells[2 + 4 * 4].click()")
    assert "FT-init" in page.texts("dialog h2")[0]
    titles = page.texts("dialog .chart figcaption")
    assert "Training: training accuracy, C-Acc, ASR and LCR by epoch, in percent" in titles
    title = "Purification: training accuracy by epoch; C-Acc and ASR before and after, in percent"
    assert titles[-2:] == [title, "Purification: loss by epoch"]
    chart = "[...document.querySelectorAll('dialog .chart')].at(-2)"
    told = "[c.getAttribute('class'), +c.getAttribute('cx'), +c.getAttribute('cy')]"
    found = page.ask(f"[...{chart}.querySelectorAll('svg[role=img] circle')].map((c) => {told})")
    data = page.ask("JSON.parse(document.getElementById('data').textContent)")
    entry = data["entries"][int(page.run("return document.querySelector('#fst-table1 tbody tr').cells[18].dataset.e"))]
    cell = data["cells"][entry["cells"][0]]
    assert entry["column"] == "FT-init"
    expected = [
        (color, end[key])
        for key, color in (("c_acc", "c-1"), ("asr", "c-2"))
        for end in (cell["before"], cell["metrics"])
    ]
    assert [kind for kind, *_ in found] == [kind for kind, _ in expected]
    assert [94 - 0.88 * value for _, value in expected] == pytest.approx([y for *_, y in found])
    assert found[0][1] < found[1][1] and found[0][1] == found[2][1] and found[1][1] == found[3][1]
    for each in page.ask(
        "[...document.querySelectorAll('dialog .chart')].map((c) => c.querySelectorAll('path, circle').length)"
    ):
        assert each > 0
    page.press("Escape")
    page.run("document.querySelector('#fst-table1 tbody tr').cells[2 + 4].click()")  # measured by epoch
    assert page.texts("dialog .chart figcaption")[-2] == (
        "Purification: training accuracy, C-Acc, ASR and LCR by epoch, in percent"
    )


def test_der_and_lcr_on_request(page):
    shown = (
        "[...document.querySelectorAll('#fst-table2 thead tr.sub th')].filter((each) => each.checkVisibility()).length"
    )
    assert page.ask(shown) == 16
    page.click("[name=metric][value=der]")
    page.click("[name=metric][value=lcr]")
    assert page.ask(shown) == 32
    page.click("[name=metric][value=c_acc]")
    assert page.ask(shown) == 24
    # The heads stand above their columns.
    head = "document.querySelector('#fst-table2 thead [data-over]').getBoundingClientRect()"
    widths = page.ask("['asr', 'der', 'lcr'].map((m) => document.querySelector(`#fst-table2 td.m-${m}`).offsetWidth)")
    assert page.ask(f"{head}.width") == pytest.approx(sum(widths), abs=3)


def test_sorting_by_a_column(page):
    before = page.column("#fst-table2", 3)
    button, state = (
        "#fst-table2 thead tr.sub th.m-asr button",
        "document.querySelector('#fst-table2 thead .sub .m-asr').ariaSort",
    )
    page.click(button)
    assert page.ask(state) == "ascending" and page.column("#fst-table2", 3) == sorted(before, key=number)
    page.click(button)
    assert page.ask(state) == "descending" and page.column("#fst-table2", 3) == sorted(before, key=number, reverse=True)
    page.click("[name=view][value=difference]")  # by what is shown
    shown = [number(text) for text in page.column("#fst-table2", 3)]
    assert shown == sorted(shown, reverse=True)
    page.click("[name=view][value=ours]")
    page.click(button)
    assert page.ask(state) is None and page.column("#fst-table2", 3) == before
    assert page.ask("document.querySelectorAll('[aria-sort]').length") == 0
    page.click("#fst-table2 thead th.r button")
    rates = [float(text.rstrip("%")) for text in page.column("#fst-table2", 1)]
    assert rates == sorted(rates) and rates[0] == 0.3 and rates[-1] == 5
    for _ in range(2):  # what is missing comes last either way
        page.run("document.querySelectorAll('#fst-table1 thead tr.sub th.m-c_acc button')[2].click()")
        assert page.column("#fst-table1", 10)[-1] == "–" and "–" not in page.column("#fst-table1", 10)[:-1]


@pytest.mark.parametrize(("text", "expected"), [
    ("badnet", {("BadNet", "5%"), ("BadNet", "1%"), ("BadNet", "0.5%")}), ("BADNET 5%", {("BadNet", "5%")}),
    ("0.5% wa", {("WaNet", "0.5%")}), ("nothing", set()), ("(", set()),
])  # fmt: skip
def test_filtering_rows(page, text, expected):
    page.press("/", *text)
    rows = "[...document.querySelectorAll('#fst-table2 tbody tr')].filter((row) => row.checkVisibility())"
    assert {
        tuple(row)
        for row in page.ask(
            f"{rows}.map((row) => [...row.querySelectorAll('th')].map((h) => h.textContent.replace('¶', '')))"
        )
    } == expected
    assert re.match(r"\d+ of \d+ rows", page.texts("output")[0])


def test_provenance_by_keyboard_alone(page):
    page.run("document.querySelector('.bar [name=theme]').focus()")
    for section in ("fst-claims", "fst-table1"):
        page.press("Tab")
        assert page.ask("document.activeElement.closest('section').id") == section
    page.press("Tab")  # each table is one stop
    while page.ask("document.activeElement.closest('section').id") != "fst-table2":
        page.press("Tab")
    assert page.ask("document.activeElement.tagName") == "TD"
    page.press("Control+End", "Control+Home")
    assert page.focused == "Attack"
    page.press("Down", "Right", "Right", "Right", "Down")
    cell = page.ask("[document.activeElement.parentElement.rowIndex, document.activeElement.cellIndex]")
    assert cell[1] == 3 and page.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    asr = page.focused
    page.press("Enter")
    assert page.ask("document.querySelector('dialog').open")
    told = page.texts("dialog")[0]
    assert "FST, Table 2: BadNet 1%, No defense" in told and asr in told and "sha256 of model.safetensors" in told
    stages = page.texts("dialog .stage summary b")
    assert stages == ["dataset", "split", "poison", "train", "evaluate", "values"]
    inside = "document.querySelector('dialog').contains(document.activeElement)"
    assert page.ask(inside)
    page.press("Tab", "Tab")
    page.press("Enter")
    assert page.ask("document.querySelectorAll('dialog .stage[open]').length") == 1
    page.press("Escape")
    assert not page.ask("document.querySelector('dialog').open") and page.focused == asr
    page.press("End", "Enter")
    told = page.texts("dialog")[0]
    assert "BadNet 1%, FST" in told
    assert page.texts("dialog .stage summary b") == [
        "dataset", "split", "poison", "train", "purify", "evaluate, before", "evaluate", "values",
    ]  # fmt: skip
    for word in ("alpha", "weight_decay", "git commit", "version of torch", "peak memory", "CPU threads", "started",
                 "depoison explain results/cells/digits/digits/resnet18/badnet+rate=0.01/fst/s0.json"):  # fmt: skip
        assert word in told
    assert len(page.texts("dialog .chart path")) >= 4
    page.press("Escape")


def test_the_keyboard_sorts_and_reaches_the_summaries(page):
    page.run("document.querySelector('#fst-table2 td').focus()")
    page.press("Up", "Enter")
    assert page.ask("document.activeElement.closest('th').ariaSort") == "ascending"
    page.press("Control+End", "Home")
    assert page.focused.startswith("Standard deviation")
    page.press("Right", "Up", "Enter")
    assert not page.ask("document.querySelector('dialog').open")  # a summary is of no one cell


def test_a_missing_cell_tells_its_command(page):
    page.click("#fst-table1 td[data-f=a]")
    told = page.texts("dialog .command")
    assert told[0] == f"snakemake -- results/cells/digits/digits/resnet18{MISSING}"
    page.press("Escape")
    page.click("#fst-table1 td[data-f=b]")
    assert "Not implemented, or cannot be: the defense later." in page.texts("dialog")[0]
    page.press("Escape")


def test_training_curves_are_drawn_when_they_come_into_view(page):
    assert not page.texts("#course-list figure")
    page.run("document.getElementById('courses').scrollIntoView()")
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page.driver, 10).until(lambda _: page.texts("#course-list figure"))
    assert len(page.texts("#course-list figure")) == page.ask(
        "JSON.parse(document.getElementById('data').textContent).artifacts.filter((a) => a.stage === 'train').length"
    )
    titles = page.texts("#course-list figcaption")
    assert "BadNet 1%, ResNet-18, Digits" in titles and not any("results/" in title for title in titles)
    assert page.ask(
        "[...document.querySelectorAll('#course-list path')].every((p) => /^M[\\d. LM-]+$/.test(p.getAttribute('d')))"
    )


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_nothing_scrolls_sideways_but_tables(page, size):
    page.open(size)
    wide = "document.documentElement.scrollWidth"
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.run("document.querySelectorAll('[name=metric]:not(:checked)').forEach((each) => each.click())")
    assert page.ask(wide) <= size[0]
    page.run("document.querySelector('#fst-table2 tbody tr').cells[30].click()")
    page.run("document.querySelectorAll('dialog details').forEach((each) => { each.open = true; })")
    assert page.ask("document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth")
    assert page.ask(wide) <= size[0]
    page.press("Escape")
    box = "document.querySelector('#fst-table2 .scroll')"
    assert page.ask(f"{box}.scrollWidth > {box}.clientWidth")
    # The labels stay where they are, and nothing shows through them.
    left = "[...document.querySelectorAll('#fst-table2 tbody tr:first-child th')].map((h) => h.getBoundingClientRect().left)"
    before = page.ask(left)
    page.run(f"{box}.scrollLeft = 400")
    assert page.ask(left) == before and page.ask(f"{box}.scrollLeft") == 400


CONTRAST = """
const luminance = (color) => {
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => {
    v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (!/, 0\\)$|^transparent$/.test(color)) return color;
  }
};
return arguments[0].map((selector) => {
  const element = document.querySelector(selector);
  const both = [luminance(getComputedStyle(element).color), luminance(behind(element))].sort((a, b) => b - a);
  return [selector, (both[0] + 0.05) / (both[1] + 0.05)];
});
"""


@pytest.mark.parametrize("how", ["light", "dark", "light by the switch", "dark by the switch"])
def test_colors_can_be_read(page, how):
    scheme, *switch = how.split(" by the ")
    page.open(DESK, scheme if not switch else {"light": "dark", "dark": "light"}[scheme])
    if switch:
        page.click(f"[name=theme][value={scheme}]")
    shades = [f"td.{side}{strength}" for side in "bw" for strength in (1, 2, 3)]
    rest = [
        ".lead",
        "nav a",
        ".notes p",
        "td.n",
        ".command",
        "tfoot th",
        "summary",
        "figcaption",
        "fieldset input:checked + span",
    ]
    found = dict(page.run(CONTRAST, shades + rest))
    assert min(found.values()) >= 4.5, found
    backgrounds = {page.ask(f"getComputedStyle(document.querySelector('{s}')).backgroundColor") for s in shades}
    assert len(backgrounds) == 6
    dark = page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")
    if switch:  # and it is remembered
        page.driver.get(page.file.as_uri())
        assert page.ask("document.documentElement.dataset.theme") == scheme


def test_it_prints(page):
    done = page.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    content = base64.b64decode(done["data"])
    assert content.startswith(b"%PDF") and 10 < len(re.findall(rb"/Type\s*/Page\b", content)) < 80
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert page.ask("getComputedStyle(document.querySelector('.bar')).display") == "none"
    assert page.ask("document.querySelector('#fst-table2 table').offsetWidth") < 1100
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
