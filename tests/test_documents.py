"""Files below config/, whatever they hold: read in bounded time, or refused in one line that names the file."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import Project, cell, with_tiny
from depoison.errors import DepoisonError
from depoison.papers.claims import read_claims
from depoison.papers.published import read_published
from depoison.papers.tables import read_table
from depoison.plan.documents import DEEPEST, MOST, read_document

SECONDS = 5
"""Of the processor; the slowest example takes a tenth of that."""

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "a list in itself": ("seeds: &a [*a]\n", f":1: nests deeper than {DEEPEST} levels"),
    "a mapping in itself": ("runtime: &a\n  threads: 1\n  device: *a\n", f":2: nests deeper than {DEEPEST} levels"),
    "aliases of aliases": (LAUGHS, f"the file holds more than {MOST} values"),
    "aliases of aliases as a key": (LAUGHS + "? *i\n: 1\n", f"the file holds more than {MOST} values"),
    "a deep list": ("seeds: " + "[" * 200_000, f":1: nests deeper than {DEEPEST} levels"),
    "a deep mapping": ("".join(f"{'  ' * i}a:\n" for i in range(200)), f":{DEEPEST + 1}: nests deeper"),
    "a list as a key": ("? [a, b]\n: 1\n", ":1: a key must be text"),
    "an empty integer": ("seeds: !!int ''\n", ":1: '' is no int"),
    "a date of another kind": ("seeds: !!timestamp x\n", ":1: 'x' is no timestamp"),
    "a truth of another kind": ("seeds: !!bool perhaps\n", ":1: 'perhaps' is no bool"),
    "an object": ("seeds: !!python/name:os.system x\n", "not valid YAML"),
    "an integer of 5000 digits": (f"seeds: {'1' * 5000}\n", "is no int"),
}


@contextmanager
def quick() -> Iterator[None]:
    begun = time.process_time()
    yield
    assert time.process_time() - begun < SECONDS


@pytest.mark.parametrize(("text", "words"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_file_that_would_not_end_is_refused(text, words, tmp_path):
    (path := tmp_path / "mine.yaml").write_text(text)
    with quick(), pytest.raises(DepoisonError) as told:
        read_document(path, tmp_path)
    assert str(told.value).startswith("mine.yaml") and words in str(told.value)


def test_aliases_repeat_what_they_name(tmp_path):
    (path := tmp_path / "mine.yaml").write_text("a: &a {x: [1, 2]}\nb: *a\nc: [*a, *a]\n")
    assert read_document(path, tmp_path).data == yaml.safe_load(path.read_text())


@pytest.mark.pipeline
@pytest.mark.parametrize("text", [LAUGHS, HOSTILE["a list in itself"][0], HOSTILE["a deep list"][0]])
def test_snakemake_is_not_given_it_either(text, project):
    """It reads a configuration before we plan."""
    (project / "mine.yaml").write_text(text)
    for command in (project.snakemake, project.depoison):
        verb = ["-n"] if command == project.snakemake else ["run"]
        told = command(*verb, "--configfile", "mine.yaml", "--", "reports/table1.md")
        assert told.returncode == 1 and "Traceback" not in told.stderr, told.stderr[-2000:]
        assert told.stderr.splitlines()[-1].startswith("depoison: error: mine.yaml:"), told.stderr


# --- anything at all ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with no report but the table `small`."""
    made = with_tiny(Project(tmp_path_factory.mktemp("documents") / "project"))
    for path in (made / "config/papers").glob("**/*.yaml"):
        if path.name != "small.yaml":
            path.unlink()
    return made


def held(read: Callable[[], Any], path: Path) -> bool:
    """Whether a reader takes a file; if not, it names the file."""
    try:
        with quick():
            read()
    except DepoisonError as error:
        told = str(error)
    else:
        return True
    assert path.name in told
    return False


SCRIBBLE = st.text(st.sampled_from("ab:-[]{}&*!?|>'\"#%@`,\n\t 01.~<=_\0é"), max_size=40)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.dates()
    | st.sampled_from(
        ["fst", "digits", "resnet18", "none", "all", "auto", "badnet", "> 1", "mean", "asr", "small", 0.1, 1]
    )
)


def near(words: str) -> st.SearchStrategy[Any]:
    """What looks like a file with these keys, and seldom is one."""
    keys = words.split()
    inner = st.recursive(
        SCALARS,
        lambda one: (
            st.lists(one, max_size=3) | st.dictionaries(st.sampled_from(keys) | st.text(max_size=3), one, max_size=4)
        ),
        max_leaves=12,
    )
    return st.dictionaries(st.sampled_from(keys), inner, max_size=4)


@given(text=SCRIBBLE | st.binary(max_size=40))
@example(text="a: !!set {b}\n")
@example(text="? !!binary x\n: 1")
def test_any_text_is_a_mapping_or_refused(text, lean):
    path = lean / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    held(lambda: read_document(path, lean.path), path)


CONFIG = (
    "seeds runtime poisoning training tuning datasets models attacks defenses threads device digits fst badnet lr epochs "
    "alpha rate target source root resnet18 width"
)


@settings(max_examples=60)
@given(content=near(CONFIG))
def test_any_configuration_is_planned_with_or_refused(content, lean):
    path = lean / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    name = cell("tiny", attack="badnet", defense="fst")
    try:
        with quick():
            lean.plan("mine.yaml").cell(name)
    except DepoisonError as error:
        told = str(error)
    else:
        return
    assert "mine.yaml" in told or "root" in told or name in told  # such as a dataset whose folder is not there


CLAIMS = "claims it says where over table columns rows of each statistic per minus is x x_from figure attacks rates why"
PLAIN = {"says": "It falls", "where": "here", "over": {"table": "small"}, "of": "asr", "statistic": "max", "is": "> 1"}


@settings(max_examples=60)
@given(content=near(CLAIMS) | st.builds(lambda more: {"claims": {"it": PLAIN | more}}, near(CLAIMS)))
def test_any_claims_are_resolved_or_refused(content, lean):
    path = lean / "config/papers/fst/claims.yaml"
    path.write_text(yaml.safe_dump(content))
    held(lambda: read_claims(lean.plan(), "reports/tiny/claims"), path)


HEAD = ["dataset", "model", "attack", "defense", "metric", "value"]
VALUES = st.text(max_size=5) | st.sampled_from(
    ["", "cifar10", "0.1", "nan", "inf", "1e999", "-5", "143.15", "x", "fst", "badnet", "badnet+rate=0.1", "asr"]
)


@given(
    head=st.just(HEAD) | st.lists(st.sampled_from(HEAD), max_size=7),
    rows=st.lists(st.lists(VALUES, min_size=6, max_size=6) | st.lists(VALUES, max_size=7), max_size=4),
    raw=st.none() | st.binary(max_size=60),
)
@example(head=HEAD, rows=[["x" * 200_000] * 6], raw=None)
def test_any_published_numbers_are_finite_or_refused(head, rows, raw, lean):
    path, text, metrics = lean / "published.csv", io.StringIO(), lean.plan().metrics
    csv.writer(text).writerows([head, *rows])
    path.write_bytes(text.getvalue().encode() if raw is None else raw)
    if held(lambda: read_published(path, lean.path, metrics), path):
        numbers = [n for line in read_published(path, lean.path, metrics).numbers().values() for n in line.values()]
        assert all(abs(float(number)) < float("inf") for number in numbers)


def test_what_the_files_hold_now_is_read(lean):
    """The properties above are of files that would be read if they were whole."""
    (lean / "mine.yaml").write_text("defenses: {fst: {alpha: 0.3}}\n")
    (lean / "config/papers/fst/claims.yaml").write_text(yaml.safe_dump({"claims": {"it": PLAIN}}))
    plan = lean.plan("mine.yaml")
    assert len(read_table(plan, "reports/tiny/small").cells()) == 4
    assert len(read_claims(plan, "reports/tiny/claims").claims) == 1


def test_who_reads_a_text_again_has_places_of_its_own(tmp_path):
    """A text is parsed once in a process; that an overlay set a key is noted among one reader's places."""
    path = tmp_path / "a.yaml"
    path.write_text("key: 1\n")
    read_document(path, tmp_path).places["key",] = "elsewhere.yaml:9"
    assert read_document(path, tmp_path).places["key",] == "a.yaml:1"
