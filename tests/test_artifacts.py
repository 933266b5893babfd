"""Files of artifacts: what is not as it was recorded is refused in one line that names it, whoever reads it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from conftest import Project, cell, put_recorded
from depoison.artifacts import (
    EMBEDDING,
    evaluation_in,
    load_tensors,
    percent,
    read_evaluation,
    read_record,
    read_rows,
    read_spec,
)
from depoison.errors import DepoisonError
from depoison.files import publish
from depoison.papers.claims import read_claims
from depoison.papers.figures import read_figure
from depoison.papers.index import read_index
from depoison.papers.tables import read_table
from depoison.plan.specs import directory_of
from depoison.reports.claims import verdicts
from depoison.reports.figures import tradeoff
from depoison.reports.html.page import render_index
from depoison.reports.kinds.cell import render_cell
from depoison.reports.runs import read_side
from depoison.reports.tables import render
from depoison.stages.runner import run_stage
from test_errors import refused

TABLE = "reports/tiny/small"
NAMES = ("badnet", "blended")


def only(project: Project) -> None:
    """The table `small`, a figure of it and a claim over it, and nothing else: to plan all others takes seconds."""
    for paper in (project / "config/papers").iterdir():
        if paper.name != "fst":
            shutil.rmtree(paper)
    for path in (project / "config/papers/fst").glob("**/*.yaml"):
        if path.name != "small.yaml":
            path.unlink()
    figure = {"title": "Costs", "caption": "Costs", "kind": "tradeoff", "table": "small"}
    figure["metrics"] = {"falls": "c-acc", "remains": "asr"}
    project.edit("config/papers/fst/figures/figure1.yaml", lambda data: data.update(figure))
    claim = {
        "says": "It falls",
        "where": "here",
        "over": {"table": "small"},
        "of": "asr",
        "statistic": "max",
        "is": "> 1",
    }
    project.edit("config/papers/fst/claims.yaml", lambda data: data.update(claims={"it": claim}))


@pytest.fixture
def here(made: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    only(made)
    monkeypatch.chdir(made.path)
    return made


def product_of(project: Project, defense: str = "lp") -> Path:
    """The metrics.json of a cell of the table `small`, relative to the project."""
    return Path(project.plan().cell(cell("tiny", attack="badnet+rate=0.1", defense=defense)).evaluation.product)


def evaluate(project: Project) -> None:
    """The stage `evaluate` of a defense; it is made from the evaluation without one."""
    artifact = project.plan().cell(cell("tiny", attack="badnet+rate=0.1", defense="lp")).evaluation
    shutil.rmtree(artifact.directory, ignore_errors=True)
    run_stage(artifact.spec, artifact.directory, project.plan().configuration.config.runtime)


READERS: dict[str, Callable[[Project], Any]] = {
    "cell": lambda p: render_cell(p.plan().cell(cell("tiny", attack="badnet+rate=0.1", defense="none"))),
    "table": lambda p: render(p.plan(), read_table(p.plan(), TABLE)),
    "figure": lambda p: tradeoff.numbers(read_figure(p.plan(), "reports/tiny/figure1")),
    "claims": lambda p: verdicts(p.plan(), read_claims(p.plan(), "reports/tiny/claims")),
    "page": lambda p: render_index(p.plan(), read_index(p.plan(), "reports/tiny/index.html"), draw=False),
    "compare": lambda p: read_side(p.plan(), "tiny"),
    "the stage evaluate": evaluate,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=list(READERS))
def test_a_changed_evaluation_is_no_ones_number(reader, here):
    """Each reader takes what its stage wrote, and refuses another number, or one that is none however it is recorded."""
    product = product_of(here, defense="none")
    content = json.loads(product.read_text())
    reader(here)
    for wrong in (3.14, -50, 1e6, None, float("nan"), float("inf"), "<script>", True, [], {}):
        product.write_text(json.dumps(content | {"metrics": content["metrics"] | {"asr": wrong}}))
        with pytest.raises(
            DepoisonError, match=re.escape(f"{product}: corrupted (its sha256 is not the one in run.json)")
        ):
            reader(here)
    for wrong in (-50, 1e6, float("nan"), float("inf"), "<script>", True, [], {}):
        put_recorded(product, content | {"metrics": content["metrics"] | {"asr": wrong}})
        with pytest.raises(DepoisonError, match=re.escape(f"{product}: corrupted (")) as told:
            reader(here)
        assert "delete it and run again: `snakemake -- TARGET`" in str(told.value)


@pytest.mark.drill
@pytest.mark.pipeline
def test_a_changed_evaluation_is_one_line_and_what_it_says_makes_it_anew(made):
    product = product_of(made)
    before = (made / product).read_bytes()
    (made / product).write_bytes(re.sub(rb'"asr": [\d.]+', b'"asr": 3.14', before))
    only(made)
    for reports in ("there", "gone"):  # what is there is compared while planning
        told = made.snakemake("--cores", "1", "--", f"{TABLE}.md")
        assert told.returncode == 1 and "Traceback" not in told.stdout + told.stderr, reports
        last = told.stderr.splitlines()[-1]
        assert last.startswith("depoison: error: ") and f"{product}: corrupted (its sha256 is not the one in" in last
        shutil.rmtree(made / "reports", ignore_errors=True)
    for command in (["report", f"{TABLE}.md"], ["report", "reports/tiny/index.html"], ["run", f"{TABLE}.md"]):
        refused(made.depoison(*command), f"{product}: corrupted", "run.json", "delete it", progress=True)
    assert not list((made / "reports").glob("**/*.md"))
    (made / product).unlink()
    done = made.snakemake("--cores", "1", "--", f"{TABLE}.md")
    assert done.returncode == 0 and (made / product).read_bytes() == before, done.stderr


WRONG = {"seconds": "long", "packages": ["torch"], "device": {}, "warnings": "many", "diverged": "no", "commit": 3}
RECORDS = ["[]", "null", "3", "{", "", "[" * 100_000, "{}", '{"sha256": []}', '{"sha256": {"metrics.json": 3}}',
           '{"sha256": {"metrics.json": "abc"}}', '{"sha256": {}, "seconds": -1}', '{"sha256": {}, "seconds": NaN}',
           '{"sha256": {}, "seconds": 1e999}', *(json.dumps({"sha256": {}, key: wrong}) for key, wrong in WRONG.items()),
]  # fmt: skip


@pytest.mark.parametrize("text", RECORDS, ids=lambda text: text[:40])
def test_a_record_that_is_none_is_named(text, here):
    record = product_of(here).with_name("run.json")
    record.write_text(text)
    for reader in (READERS["table"], READERS["page"]):
        with pytest.raises(DepoisonError, match=re.escape(f"{record}: corrupted (")):
            reader(here)
    record.unlink()
    with pytest.raises(DepoisonError, match=re.escape(f"{record}: missing; take it back with git")):
        read_record(record.parent)


@pytest.mark.parametrize("text", ["[]", "null", "{}", "{", "[" * 100_000, '{"stage": "train"}', '{"stage": []}'])
def test_a_spec_that_is_none_is_named(text, here):
    (directory,) = Path("results/train").glob("*badnet*")
    assert read_spec(directory) == json.loads((directory / "spec.json").read_text())
    (directory / "spec.json").write_text(text)
    with pytest.raises(DepoisonError, match=re.escape(f"{directory}/spec.json: corrupted (")):
        read_spec(directory)


def test_a_cells_file_counts_only_where_its_evaluation_is_not_there(here):
    """Its numbers have no checksum."""
    name = cell("tiny", attack="badnet+rate=0.1+target=1", defense="lp")  # of no table
    view = json.loads(render_cell(here.plan().cell(cell("tiny", attack="badnet+rate=0.1", defense="lp"))))
    (here / name).parent.mkdir(parents=True)

    def asr() -> list[float]:
        return [run.metrics["asr"] for key, run in read_side(here.plan(), ".").runs.items() if key.path == name]

    (here / name).write_text(json.dumps(view | {"metrics": view["metrics"] | {"asr": 3.14}}))
    assert asr() == [view["metrics"]["asr"]]
    shutil.rmtree(here / "results/evaluate")
    assert asr() == [3.14]
    for wrong in (314, "<b>", None, []):
        (here / name).write_text(json.dumps(view | {"metrics": wrong if wrong == [] else {"c_acc": 1.0, "asr": wrong}}))
        if wrong is not None:
            with pytest.raises(DepoisonError, match=re.escape(name)):
                asr()


# --- tensors -----------------------------------------------------------------------------------------------------


def reshaped(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[None]


def widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double()


def shortened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[1:]


def raised(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 10_000


TENSORS = [  # file, tensor, changes, and what is made of it again
    ("dataset/*/data", "train_inputs", (reshaped, widened, shortened), "split"),
    ("dataset/*/data", "train_labels", (reshaped, widened, shortened, raised, torch.neg), "split"),
    ("dataset/*/data", "test_labels", (raised,), "evaluate"),
    ("split/*/split", "defender", (reshaped, widened, raised, torch.neg), "purify"),
    ("split/*/split", "attacker", (reshaped, widened, raised), "poison"),
    ("poison/*badnet*/poison", "indices", (reshaped, widened, shortened, raised), "train"),
    ("poison/*badnet*/poison", "inputs", (reshaped, widened, shortened), "train"),
    ("poison/*badnet*/poison", "labels", (raised,), "train"),
    ("poison/*badnet*/trigger", "pattern", (None,), "train"),
    ("train/*badnet*/triggered", "kept", (reshaped, widened, raised), "evaluate"),
    ("train/*badnet*/triggered", "images", (widened, shortened), "evaluate"),
    ("train/*badnet*/model", "classifier.weight", (reshaped, widened, shortened, None), "purify"),
]


@pytest.mark.parametrize(("file", "name", "changes", "stage"), TENSORS, ids=[f"{row[0]} {row[1]}" for row in TENSORS])
def test_tensors_that_do_not_fit_are_named(file, name, changes, stage, here):
    """Also where their record was written anew."""
    (path,) = Path("results").glob(f"{file}.safetensors")
    chain = here.plan().cell(cell("tiny", attack="badnet+rate=0.1", defense="lp")).evaluation.chain().values()
    artifact = next(one for one in chain if one.stage == stage)
    runtime = here.plan().configuration.config.runtime
    before = load(path.read_bytes())  # not by name, which would map what is overwritten below
    for change in changes:
        tensors = dict(before)
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(before[name]).contiguous()
        put_recorded(path, save(tensors))
        shutil.rmtree(artifact.directory, ignore_errors=True)
        with pytest.raises(DepoisonError, match=re.escape(f"{path}: corrupted (")):
            run_stage(artifact.spec, artifact.directory, runtime)
    put_recorded(path, save(before))
    run_stage(artifact.spec, artifact.directory, runtime)
    assert Path(artifact.product).exists()


def test_an_asset_that_does_not_fit_is_named(here):
    name = cell("tiny", attack="label-consistent+rate=0.05", defense="none")
    runtime = here.plan().configuration.config.runtime
    chain = here.plan().cell(name).evaluation.chain().values()
    asset, poison = (next(one for one in chain if one.stage == stage) for stage in ("asset", "poison"))
    run_stage(asset.spec, asset.directory, runtime)
    tensors = load(Path(asset.product).read_bytes())
    put_recorded(asset.product, save(tensors | {"classifier.weight": tensors["classifier.weight"][1:]}))
    with pytest.raises(DepoisonError, match=rf"{Path(asset.directory).name}.*classifier\.weight is torch\.float32"):
        run_stage(poison.spec, poison.directory, runtime)


@pytest.mark.parametrize(
    ("file", "reader"),
    [
        ("train/*badnet*/history.csv", READERS["page"]),
        ("dataset/*/classes.json", lambda project: evaluate(project)),
    ],
)
def test_every_file_is_read_with_its_checksum(file, reader, here):
    (path,) = Path("results").glob(file)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DepoisonError, match=re.escape(f"{path}: corrupted (its sha256")):
        reader(here)


# --- anything at all ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["metrics", "c_acc", "asr", "lcr", "denominators", "model", "sha256", "specs", "diverged", "seconds",
                        "packages", "device", "directory", "metrics.json", "warnings"])  # fmt: skip
NEAR = st.recursive(
    st.none() | st.booleans() | st.floats(-1, 101) | st.integers(-1, 101) | st.just("a" * 64),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=25,
)
"""What looks like an evaluation or a record, and seldom is one."""


def held(read: Callable[[], Any], path: Path) -> Any:
    """What a reader returns; None where it refuses the file by its name."""
    try:
        return read()
    except DepoisonError as error:
        told = str(error)
    assert str(path) in told
    return None


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(autouse=True)
def nothing_else_is_written(request: pytest.FixtureRequest) -> Iterator[None]:
    """Readers write nothing, whatever a file says."""
    if "scratch" not in request.fixturenames:
        yield
        return
    folder = request.getfixturevalue("scratch")
    before = set(folder.parent.iterdir())
    yield
    assert set(folder.parent.iterdir()) == before


@given(content=JSON | NEAR | st.binary(max_size=60), recorded=st.booleans())
def test_any_evaluation_is_percentages_or_refused(content, recorded, scratch):
    path = scratch / "evaluation/metrics.json"
    put_recorded(path, content if isinstance(content, bytes) else json.dumps(content))
    if not recorded:
        path.write_bytes(path.read_bytes() + b"\n")
    if evaluation := held(lambda: read_evaluation(path), path):
        assert recorded and evaluation.metrics
        numbers = [value for value in evaluation.metrics.values() if value is not None]
        assert all(type(value) in (int, float) and 0 <= value <= 100 for value in numbers)


@given(metrics=st.dictionaries(st.sampled_from(["c_acc", "asr", "lcr", "der"]), st.none() | st.floats(0, 100)))
def test_what_an_evaluation_may_say_is_accepted(metrics, scratch):
    content = {"metrics": {"c_acc": 90.0, "asr": None} | metrics}
    assert evaluation_in(content, scratch) is content


@given(content=JSON | NEAR)
def test_any_record_has_its_types_or_is_refused(content, scratch):
    (path := scratch / "run.json").write_text(json.dumps(content))
    if record := held(lambda: read_record(scratch), path):
        assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in record["sha256"].values())
        assert record.get("seconds", 0) >= 0 and isinstance(record.get("packages", {}), dict)


@given(
    spec=JSON | st.dictionaries(st.sampled_from(["stage", "version", "upstream", "parameters", "seed", "name"]), JSON)
)
def test_any_spec_is_of_a_folder_below_results_or_none(spec):
    try:
        directory = directory_of(spec)
    except DepoisonError:
        return
    assert len(Path(directory).parts) == 3 and ".." not in Path(directory).parts


@given(
    head=st.lists(st.sampled_from([*EMBEDDING, "c_acc", ""]), max_size=6),
    rows=st.lists(
        st.lists(st.text(max_size=6) | st.sampled_from(["1", "2.5", "nan", "-1", "1e999", ""]), max_size=6), max_size=4
    ),
    raw=st.none() | st.binary(max_size=40),
)
def test_any_csv_is_numbers_or_refused(head, rows, raw, scratch):
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    put_recorded(path := scratch / "csv/embedding.csv", text.getvalue() if raw is None else raw)
    for columns in (EMBEDDING, {"c_acc": percent}):
        found = held(lambda columns=columns: read_rows(path, columns), path)
        assert all(row.keys() == columns.keys() for row in found or [])


def header(text: bytes) -> bytes:
    """A safetensors file that begins so."""
    return len(text).to_bytes(8, "little") + text


@given(
    content=st.binary(max_size=60)
    | st.builds(lambda value, rest: header(json.dumps(value).encode()) + rest, JSON, st.binary(max_size=40))
    | st.builds(
        lambda kind, shape, ends, rest: header(
            json.dumps({"labels": {"dtype": kind, "shape": shape, "data_offsets": ends}}).encode()
        ) + rest,
        st.sampled_from(["I64", "F32", "U8", "F8_E5M2", "F4", "BOOL", "C64", "X"]),
        st.lists(st.integers(0, 2**62), max_size=3),
        st.lists(st.integers(0, 40), min_size=2, max_size=2),
        st.binary(max_size=40),
    )
)  # fmt: skip
def test_any_checkpoint_is_what_is_expected_or_refused(content, scratch):
    put_recorded(path := scratch / "tensors/data.safetensors", content)
    if found := held(lambda: load_tensors(path, {"labels": "int64 N"}, {"labels": 3}), path):
        assert found["labels"].dtype == torch.int64 and found["labels"].dim() == 1


@pytest.mark.parametrize("product", ["a.safetensors", "m.safetensors", "z.safetensors"])
def test_an_artifact_whose_product_is_there_is_whole_wherever_its_job_dies(
    product: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, moved = sorted({"b.csv", "run.json", "spec.json", product}), os.replace
    for dies in range(len(names) + 1):
        built, directory = tmp_path / f"built{dies}", tmp_path / f"artifact{dies}"
        built.mkdir()
        for name in names:
            (built / name).write_text(name)
        left = iter(range(dies))

        def die(source: Path, target: Path, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            moved(source, target)

        monkeypatch.setattr(os, "replace", die)
        with contextlib.nullcontext() if dies == len(names) else pytest.raises(KeyboardInterrupt):
            publish(built, directory, product)
        there = sorted(path.name for path in directory.iterdir())
        assert len(there) == dies and ((directory / product).exists() == (there == names))
