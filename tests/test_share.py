"""Sharing through a real DVC: two clones and a remote, with every modification time at random."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, TINY, lean, put_recorded
from sharing import REPORT, USER, Clone, WebFolder, make_up, s3_service, serving

pytestmark = pytest.mark.pipeline
DRILL = pytest.mark.drill
"""Most: each is many commands of DVC's, of a second each."""

TABLE = """
title: small
caption: a small table
dataset: digits
model: resnet18
axes:
  columns: [{defense: none, label: No defense}, {defense: fst, label: FST}, {defense: lp, label: LP}]
  rows: [{attack: badnet, label: BadNet, rates: [0.05]}, {attack: blended, label: Blended, rates: [0.05]}]
metrics: {show: [c-acc, asr]}
"""
BESIDE = (
    "reports/tiny/smaller.md",
    "reports/small.md",
    "results/cells/tiny/digits/resnet18/badnet/fst/s0.json",
    "results/evaluate/digits-other-s0-resnet18-fst-0123456789/metrics.json",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A clone that made the table and pushed it, and its bare repository."""
    base = tmp_path_factory.mktemp("share")
    clone = Clone(base / "a")
    clone.folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "profiles", "envs", "dvc.yaml", ".gitignore", ".dvcignore"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(
            source,
            clone.folder / name,
            **({"ignore": shutil.ignore_patterns("__pycache__")} if source.is_dir() else {}),
        )
    lean(clone.folder)  # what is stray follows from every table and figure that there is
    (clone.folder / "config/tracks/tiny.yaml").write_text(yaml.safe_dump(TINY))
    (clone.folder / "config/papers/fst/small.yaml").write_text(TABLE)
    stages = yaml.safe_load((clone.folder / "dvc.yaml").read_text())
    stages["stages"]["table"]["foreach"] = {"tiny-small": "tiny/small"}
    (clone.folder / "dvc.yaml").write_text(yaml.safe_dump(stages))
    clone.run("git", "init", "-q", "-b", "main")
    clone.run("dvc", "init", "-q")
    clone.run("dvc", "remote", "add", "--default", "team", str(base / "remote"))
    clone.commit("code")
    clone.scramble()
    clone.depoison("run", REPORT)
    for beside in BESIDE:  # what else lies about, and is not shared
        (clone.folder / beside).parent.mkdir(parents=True, exist_ok=True)
        (clone.folder / beside).write_text("{}")
    told = clone.depoison("share", "push", REPORT)
    (suggested,) = (line for line in told.splitlines() if "git add" in line)
    clone.run("bash", "-c", suggested.split("&&")[0])
    staged = set(clone.run("git", "diff", "--cached", "--name-only").split())
    clone.commit_staged("first table")
    clone.run("git", "clean", "-dfq", "results", "reports")
    clone.run("git", "clone", "-q", "--bare", ".", str(base / "bare.git"))
    (base / "told").write_text(told)
    (base / "staged").write_text("\n".join(sorted(staged)))
    return base, clone


def bytes_of(remote: Path) -> dict[str, bytes]:
    return {str(path.relative_to(remote)): path.read_bytes() for path in remote.rglob("*") if path.is_file()}


def errors(told: str) -> list[str]:
    assert "Traceback" not in told and "Having any troubles" not in told
    return [line for line in told.splitlines() if "error" in line]


def tree(folder: Path) -> set[str]:
    """All that lies in a working copy, besides what DVC and git keep for themselves, and what Python compiles."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in found if not {".git", "tmp", "cache", "__pycache__"} & {*path.parts}}


def clone_of(published, name: str, *settings: tuple[str, str], **variables: str) -> Clone:
    base, author = published
    clone = Clone(base / name, **variables)
    subprocess.run(["git", "clone", "-q", str(base / "bare.git"), str(clone.folder)], check=True)
    for key, value in settings:
        clone.run("dvc", "config", "--local", key, value)
    clone.scramble_as(author)
    return clone


def computes_only_what_is_missing(clone: Clone) -> None:
    """What lost an evaluation and gets another defense's column, of what was pulled."""
    next(iter(sorted(clone.folder.glob("results/evaluate/*fst*/metrics.json")))).unlink()
    # Another defense: its purifications and evaluations start from the pulled backdoored models.
    add_column(clone, "ft")
    clone.depoison("share", "pull", REPORT)
    clone.scramble()
    assert clone.jobs() == {"purify": 2, "evaluate": 3, "table": 1}
    clone.run("snakemake", "--cores", "2", "--", REPORT)
    assert clone.jobs() == {}


def add_column(clone: Clone, defense: str) -> None:
    table = clone.folder / "config/papers/fst/small.yaml"
    table.write_text(
        table.read_text().replace("columns: [", f"columns: [{{defense: {defense}, label: {defense.upper()}}}, ")
    )


def test_a_clone_pulls_what_is_missing(published):
    clone = clone_of(published, "a-few", ("cache.type", "symlink"))
    assert clone.jobs() == {}

    next(iter(sorted(clone.folder.glob("results/evaluate/*fst*/metrics.json")))).unlink()
    clone.depoison("share", "pull", REPORT)
    clone.scramble()
    assert clone.jobs() == {"evaluate": 1, "table": 1}


@DRILL
@pytest.mark.parametrize("link", ["symlink", "copy", "hardlink", "shared"])
def test_a_clone_computes_only_what_is_missing(published, link):
    base, _ = published
    shared = [("cache.dir", str(base / "cache")), ("cache.type", "symlink")]
    computes_only_what_is_missing(
        clone_of(published, f"b-{link}", *(shared if link == "shared" else [("cache.type", link)]))
    )


@pytest.fixture
def s3():
    with s3_service() as service:
        yield service


@DRILL
def test_a_team_shares_through_s3(published, s3):
    base, first = published
    address, bucket = s3
    author = clone_of(published, "s3-author", **USER)
    shutil.copytree(first.folder / ".dvc/cache", author.folder / ".dvc/cache")
    author.run("dvc", "checkout", "-q")
    author.run("dvc", "remote", "add", "--force", "--default", "team", "s3://team/depoison")
    author.run("dvc", "remote", "modify", "team", "endpointurl", address)
    assert re.search(r"pushed \d+ files .*, 0 of them new", author.depoison("share", "push", REPORT))
    author.commit("S3")

    clone = Clone(base / "s3-reader", **USER)
    author.run("git", "clone", "-q", ".", str(clone.folder))
    clone.scramble_as(first)
    assert clone.jobs() == {}
    computes_only_what_is_missing(clone)
    assert "missing in the remote" not in clone.depoison("share", "status", REPORT)

    # An object that was overwritten is named, and fetched once somebody put it right: no cache holds what was wrong.
    shutil.rmtree(clone.folder / ".dvc/cache")
    lost = next(iter(sorted(clone.folder.glob("results/purify/*badnet*fst*/model.safetensors"))))
    md5 = re.search(r"md5: (\w{32})", lost.with_suffix(".safetensors.dvc").read_text())[1]
    stored = bucket.Object(f"depoison/files/md5/{md5[:2]}/{md5[2:]}")
    content = lost.read_bytes()
    lost.unlink()
    stored.put(Body=content[:-1] + bytes([content[-1] ^ 1]))
    told = clone.depoison("share", "pull", "--models", REPORT, fails=True)
    assert f"{lost.parent.name}/model.safetensors: damaged in the remote; a run computes them anew" in told
    assert not lost.exists() and {key.key for key in bucket.objects.all()} >= {stored.key}
    stored.put(Body=content)
    clone.depoison("share", "pull", "--models", REPORT)
    assert lost.read_bytes() == content

    # Its objects gone, each is named.
    shutil.rmtree(clone.folder / ".dvc/cache")
    bucket.objects.all().delete()
    lost.unlink()
    (evaluation,) = (path for path in clone.folder.glob("results/evaluate/*badnet*fst*/metrics.json"))
    evaluation.unlink()
    told = clone.depoison("share", "pull", REPORT, fails=True)
    assert f"{lost.parent.name}/model.safetensors: not in the remote; a run computes them anew" in told
    assert clone.jobs() == {"purify": 1, "evaluate": 1, "table": 1}


@DRILL
def test_what_is_here_and_what_is_not(published):
    clone = clone_of(published, "c")
    fetch = f"`depoison share pull --models {REPORT}` fetches these"
    told = clone.depoison("share", "status", REPORT)
    assert "here: 0 of 1 datasets, 0 of 1 splits, 0 of 2 poisoned sets, 0 of 2 backdoored models, " in told
    assert "0 of 4 purified models, 6 of 6 evaluations" in told
    assert "to pull: 0 files" in told and "to compute: 0 artifacts" in told
    assert f"neither here nor needed: 10 artifacts, 10 of them shared; {fetch}" in told

    gone = next(clone.folder.glob("results/evaluate/*fst*"))
    shutil.rmtree(gone)
    told = clone.depoison("share", "status", REPORT)
    assert re.search(r"to compute: 1 artifacts, about \d+ s", told) and "5 of 6 evaluations" in told
    needed = told.count("in the remote")
    assert needed == 5  # dataset; trigger, triggered test images and backdoored model; purified model
    assert f"neither here nor needed: 7 artifacts, 7 of them shared; {fetch}" in told

    # A plan says that somebody shared what it would make, as far as it can know without asking.
    hint = f"depoison: somebody shared 3 of the artifacts that this makes: `depoison share pull {REPORT}` fetches"
    assert hint in clone.planned()
    told = clone.depoison("share", "pull", REPORT)
    assert f"pulled {needed} files" in told and "to compute: 1 artifacts" in told and fetch in told
    assert "somebody shared" not in clone.planned()
    assert "1 of 2 backdoored models, 1 of 4 purified models, 5 of 6 evaluations" in clone.depoison(
        "share", "status", REPORT
    )

    # What a push of these targets added comes with --models.
    assert not all(clone.heavy().values())
    listed = clone.depoison("share", "status", "--models", REPORT)
    told = clone.depoison("share", "pull", "--models", REPORT)
    assert all(clone.heavy().values())
    further = len(clone.heavy()) - needed
    assert listed.count("in the remote") == further and f"pulled {further} files" in told
    assert "neither here nor needed" not in listed + told
    assert "neither here nor needed" not in clone.depoison("share", "status", REPORT)


def test_what_a_push_suggests_stages_what_belongs_to_the_targets(published):
    base, author = published
    told, staged = (base / "told").read_text(), (base / "staged").read_text().split()
    assert f"commit the {len(staged)} files that belong to this" in told
    pointers = [path for path in staged if path.endswith(".dvc")]
    assert sorted(pointers) == sorted(author.heavy()) and len(pointers) > 10
    # Beside them what they are worth nothing without: specs and records with checksums, evaluations, and the table.
    assert {path.rpartition("/")[2] for path in staged if path not in pointers} == {
        *("spec.json", "run.json", "history.csv", "classes.json", "metrics.json"),
        *(f"small{suffix}" for suffix in (".md", ".tex", ".csv", ".json")),
    }
    assert not set(staged) & set(BESIDE)
    assert "git add" not in author.depoison("share", "push", REPORT)


@DRILL
def test_two_branches_merge_without_conflict(published):
    left, right = clone_of(published, "left"), clone_of(published, "right")
    cell = "results/cells/tiny/digits/resnet18/badnet+rate=0.05/fst+alpha={}/s0.json"
    for clone, alpha in ((left, "0.3"), (right, "0.4")):
        target = cell.format(alpha)
        make_up(clone.folder, [target], 100)
        clone.depoison("share", "push", target)
        clone.commit(f"alpha {alpha}")
    left.run("git", "pull", "-q", "--no-rebase", "--no-edit", str(right.folder), "main")
    assert left.run("git", "status", "--short") == ""
    shutil.rmtree(left.folder / ".dvc" / "cache", ignore_errors=True)
    assert "to compute: 0" in left.depoison("share", "pull", cell.format("0.3"), cell.format("0.4"))


@DRILL
def test_a_tables_conflict_is_solved_by_rendering_it_again(published):
    left, right = clone_of(published, "left-table"), clone_of(published, "right-table")
    table = "config/papers/fst/small.yaml"
    both = (left.folder / table).read_text()
    for clone, column in ((left, ", {defense: fst, label: FST}"), (right, ", {defense: lp, label: LP}")):
        (clone.folder / table).write_text(both.replace(column, ""))
        clone.run("snakemake", "--cores", "2", "--", REPORT)
        clone.commit("Another table")
    left.run("git", "pull", "-q", "--no-rebase", "--no-edit", str(right.folder), "main", fails=True)
    conflicts = left.run("git", "diff", "--name-only", "--diff-filter=U").split()
    assert set(conflicts) == {table, *(REPORT.replace(".md", suffix) for suffix in (".md", ".tex", ".csv", ".json"))}

    # A person says which columns there are to be; the report follows, conflict marks and all.
    (left.folder / table).write_text(both.replace("No defense", "None"))
    assert "<<<<<<<" in (left.folder / REPORT).read_text()
    assert left.jobs() == {"table": 1}
    left.run("snakemake", "--cores", "2", "--", REPORT)
    assert "<<<<<<<" not in (left.folder / REPORT).read_text()
    columns = json.loads((left.folder / REPORT.replace(".md", ".json")).read_text())["columns"]
    assert [column["label"] for column in columns] == ["None", "FST", "LP"]
    left.commit("Merge")
    assert left.jobs() == {}


@DRILL
def test_dvc_shows_a_tables_numbers_and_what_changed(published):
    clone = clone_of(published, "dvc")
    stage, numbers = "table@tiny-small", REPORT.replace(".md", ".json")
    clone.run("dvc", "repro", "-q", stage)
    assert clone.jobs() == {}
    assert "didn't change, skipping" in clone.run("dvc", "repro", stage)
    clone.commit("Reproduced")
    shown = json.loads(clone.run("dvc", "metrics", "show", "--json"))[""]["data"][numbers]["data"]
    ours = json.loads((clone.folder / numbers).read_text())["metrics"]
    assert shown["metrics"] == ours
    assert set(ours) == {"BadNet 5%", "Blended 5%"} and set(ours["BadNet 5%"]) == {"No defense", "FST", "LP"}

    # Another learning rate for FST: DVC runs the table's stage, and says which numbers it moved.
    config = clone.folder / "config/tracks/tiny.yaml"
    track = yaml.safe_load(config.read_text())
    track.setdefault("defenses", {})["fst"] = {"lr": 0.5}
    config.write_text(yaml.safe_dump(track))
    before = {
        path.parent.name.rpartition("-")[0]: path for path in clone.folder.glob("results/evaluate/*/metrics.json")
    }
    make_up(clone.folder, [REPORT], 100)
    for path in set(clone.folder.glob("results/evaluate/*/metrics.json")) - {*before.values()}:
        evaluation = json.loads(before[path.parent.name.rpartition("-")[0]].read_text())
        evaluation["metrics"] |= {"c_acc": 12.0, "asr": 34.0}
        put_recorded(path, evaluation)
    clone.run("dvc", "repro", "-q", stage)
    moved = json.loads(clone.run("dvc", "metrics", "diff", "--json"))
    assert {name.split(".")[2] for name in moved[numbers] if name.startswith("metrics.")} == {"FST"}
    clone.run("dvc", "plots", "show", "-q", "-o", "plots")
    assert "ours against published" in (clone.folder / "plots/index.html").read_text()


@DRILL
@pytest.mark.parametrize("damage", ["missing", "overwritten", "overwritten and write-protected", "cut off"])
def test_a_bad_object_is_named_and_computed_anew_and_nothing_leaves_the_remote(published, damage):
    base, author = published
    remote = base / "remote"
    clone = clone_of(published, f"d-{damage.replace(' ', '-')}")
    folder = next(clone.folder.glob("results/purify/*badnet*fst*"))
    shutil.rmtree(next(clone.folder.glob("results/evaluate/*badnet*fst*")))
    if damage == "missing":  # one file of two
        folder = next(clone.folder.glob("results/train/*badnet*"))
        shutil.rmtree(clone.folder / "results/evaluate")
    bad = folder / ("trigger.safetensors" if damage == "missing" else "model.safetensors")
    md5 = re.search(r"md5: (\w{32})", bad.with_suffix(".safetensors.dvc").read_text())[1]
    stored = remote / "files" / "md5" / md5[:2] / md5[2:]
    content = stored.read_bytes()
    stored.chmod(0o644)
    if damage == "missing":
        stored.unlink()
    else:
        stored.write_bytes(content[:-1] + (b"" if damage == "cut off" else bytes([content[-1] ^ 1])))
    if damage.endswith("write-protected"):
        stored.chmod(0o444)
    try:
        before = bytes_of(remote)
        told = clone.depoison("share", "status", REPORT)
        if damage in ("missing", "cut off"):  # the rest shows when it is read
            word = "missing" if damage == "missing" else "damaged"
            assert re.search(rf"{word} in the remote +results/\w+/{folder.name}/{bad.name}", told)
        told = clone.depoison("share", "pull", REPORT, fails=True)
        fault = "not in the remote" if damage == "missing" else "damaged in the remote"
        (error,) = errors(told)
        assert f"{folder.name}/{bad.name}: {fault}; a run computes them anew" in error
        assert not bad.exists()
        assert not list(folder.glob("*.safetensors"))  # with one of its files alone it would pass for complete
        clone.depoison("share", "status", "--models", REPORT)
        clone.depoison("gc")
        assert bytes_of(remote) == before
        jobs = clone.jobs()
        assert jobs["train" if damage == "missing" else "purify"] == 1
        assert jobs["evaluate"] == (6 if damage == "missing" else 1)

        # Who has it puts it right, even with an empty cache, from which DVC would push nothing.
        if damage == "missing":
            shutil.rmtree(author.folder / ".dvc/cache")
        author.depoison("share", "push", REPORT)
        assert stored.read_bytes() == content
    finally:
        stored.write_bytes(content)
    assert "pulled" in clone.depoison("share", "pull", REPORT)
    assert bad.exists()


@DRILL
def test_what_is_damaged_in_the_cache_is_fetched_again(published):
    clone = clone_of(published, "damaged", ("cache.type", "copy"))
    clone.depoison("share", "pull", "--models", REPORT)
    model = next(clone.folder.glob("results/purify/*badnet*fst*/model.safetensors"))
    content = model.read_bytes()
    md5 = re.search(r"md5: (\w{32})", model.with_suffix(".safetensors.dvc").read_text())[1]
    cached = clone.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.chmod(0o644)
    cached.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cached.chmod(0o444)  # so DVC trusts it
    model.unlink()
    clone.depoison("share", "pull", "--models", REPORT)
    assert model.read_bytes() == content


@DRILL
def test_pointers_that_are_none_write_nothing_and_the_others_go_on(published, tmp_path):
    base, author = published
    clone = clone_of(published, "pointers")
    code = b"raise SystemExit('the code of whoever wrote the pointer')"
    md5 = hashlib.md5(code).hexdigest()
    stored = base / "remote/files/md5" / md5[:2] / md5[2:]
    stored.parent.mkdir(exist_ok=True)
    stored.write_bytes(code)

    def purified(words: str) -> Path:
        return next(clone.folder.glob(f"results/purify/*{words}*/model.safetensors.dvc"))

    elsewhere, empty, linked = purified("badnet*fst"), purified("badnet*lp"), purified("blended*fst")
    text = elsewhere.read_text()
    elsewhere.write_text(
        f"outs:\n- md5: {md5}\n  size: {len(code)}\n  hash: md5\n  path: ../../../workflow/sitecustomize.py\n"
    )
    empty.write_text("outs: []\n")
    linked.rename(tmp_path / "pointer")
    linked.symlink_to(tmp_path / "pointer")
    dangling = next(clone.folder.glob("results/purify/*blended*lp*/model.safetensors.dvc")).with_suffix("")
    dangling.symlink_to("../../../workflow/sitecustomize.py")
    try:
        shutil.rmtree(clone.folder / "results/evaluate")
        assert clone.planned().count("refused, it is not what `dvc add` writes") == 2
        before = tree(clone.folder)
        for action in ("status", "pull"):
            told = errors(clone.depoison("share", action, REPORT, fails=True))
            assert len(told) == 3
            for path, fault in (
                (elsewhere, "its path is '../../../workflow/sitecustomize.py', not 'model.safetensors'"),
                (empty, "line 1 is 'outs: []', not 'outs:'"),
                (linked, "is a symbolic link"),
            ):
                (line,) = (line for line in told if str(path.relative_to(clone.folder)) in line)
                assert fault in line
        # The others are here, and nothing besides; the link that led nowhere is the file now.
        added = {str(path.with_suffix("").relative_to(clone.folder)) for path in clone.folder.glob("results/**/*.dvc")}
        bad = {str(path.with_suffix("").relative_to(clone.folder)) for path in (elsewhere, empty, linked)}
        poisons = {name for name in added if name.startswith("results/poison")}  # nobody needs them
        assert tree(clone.folder) - before == added - bad - poisons - {str(dangling.relative_to(clone.folder))}
        assert dangling.is_file() and not dangling.is_symlink()

        # Nor does a push change one, or gc take its file for one that others have.
        file = elsewhere.with_suffix("")
        shutil.copy(author.folder / file.relative_to(clone.folder), file)
        told = clone.depoison("share", "push", REPORT, fails=True)
        assert re.search("pushed 9 files .*, 0 of them new", told) and len(errors(told)) == 1
        (clone.folder / "config/tracks/tiny.yaml").unlink()  # now everything is stray
        told = clone.depoison("gc", "--remove", fails=True)
        assert len(errors(told)) == 1 and "stray, nowhere else" in told and file.exists() and not dangling.exists()
    finally:
        stored.unlink()
    elsewhere.write_text(text)
    assert "stray, nowhere else" not in clone.depoison("gc", "--remove") and not file.exists()


@DRILL
def test_what_was_published_and_is_not_what_was_recorded_is_not_taken(published):
    clone = clone_of(published, "unrecorded")
    shutil.rmtree(clone.folder / "results/evaluate")
    fst, lp = (
        next(clone.folder.glob(f"results/purify/*badnet*{name}*/model.safetensors.dvc")) for name in ("fst", "lp")
    )
    text = fst.read_text()
    fst.write_text(lp.read_text())  # a model of the same table, whole
    for _ in range(2):
        told = clone.depoison("share", "pull", REPORT, fails=True)
        (error,) = errors(told)
        model = fst.with_suffix("")
        assert (
            f"{model.relative_to(clone.folder)}: published otherwise than recorded; a run computes them anew" in error
        )
        assert not model.exists() and f"  not as recorded       {model.relative_to(clone.folder)}" in told
    fst.write_text(text)
    assert "pulled 1 files" in clone.depoison("share", "pull", REPORT)

    # Nor is it pushed in the first place.
    fst.unlink()
    model.unlink()
    model.write_bytes(b"not a model")
    told = clone.depoison("share", "push", REPORT, fails=True)
    assert len(errors(told)) == 1 and f"{model.relative_to(clone.folder)}: " in errors(told)[0]
    assert "sha256 is not the one in run.json" in told and not fst.exists()


@DRILL
def test_a_remote_that_cannot_be_asked_has_lost_nothing(published):
    base, _ = published
    clone = clone_of(published, "unasked")
    fst, evaluation = (next(clone.folder.glob(f"results/{stage}/*badnet*fst*")) for stage in ("purify", "evaluate"))
    shutil.rmtree(evaluation)
    with serving(WebFolder(base / "remote")) as server:
        clone.run("dvc", "remote", "add", "--force", "--default", "team", server.address)
        server.status = 503
        told = clone.depoison("share", "status", REPORT)
        assert "the remote was not asked: 503" in told and "in the remote" not in told and "to pull: 5 files" in told
        told = clone.depoison("share", "pull", REPORT, fails=True)
        (error,) = errors(told)
        assert (
            "and 2 more: not fetched, and nothing says that the remote lacks them; ask again before you compute"
            in error
        )
        assert "(503, message='Service Unavailable'" in error and "anew" not in told and "pulled 0 files" in told
        assert not any(clone.heavy().values())

        # What was made here meanwhile is not pushed, and gc keeps it.
        server.status = None
        assert "pulled 5 files" in clone.depoison("share", "pull", REPORT)
        server.status = 503
        (error,) = errors(clone.depoison("share", "push", REPORT, fails=True))
        assert "and 2 more: not pushed; push again (503, message=" in error
        (clone.folder / "config/tracks/tiny.yaml").unlink()  # now everything is stray
        told = clone.depoison("gc", "--remove", fails=True)
        assert (
            "not known to be in the remote" in errors(told)[0] and "0 removed" in told and len(list(fst.iterdir())) == 5
        )

    # A folder whose place is there and nothing in it: a disk that is not mounted.
    (clone.folder / "nothing").mkdir()
    clone.run("dvc", "remote", "add", "--force", "--default", "team", "nothing")
    (error,) = errors(clone.depoison("gc", "--remove", fails=True))
    assert "nothing: DVC's remote 'team' is not there, or nothing was pushed to it yet; mount it" in error


def test_no_remote_is_a_clear_error(published):
    clone = clone_of(published, "e")
    clone.run("dvc", "remote", "remove", "team")
    for pull in (["pull"], ["pull", "--models"]):
        told = clone.depoison("share", *pull, REPORT, fails=True)  # though all that is needed is here
        assert "dvc remote add" in told
        assert len(told.strip().splitlines()) == 1
    shutil.rmtree(next(clone.folder.glob("results/evaluate/*fst*")))
    told = clone.depoison("share", "status", REPORT)
    assert "5 of 6 evaluations" in told and "to pull: 5 files" in told and "to compute: 1 artifacts" in told
    (line,) = (line for line in told.splitlines() if "DVC" in line)
    assert line.startswith("the remote was not asked: no DVC remote is configured; add one with `dvc remote add")
    assert "in the remote" not in told

    clone.run("dvc", "remote", "add", "--default", "team", str(clone.folder / "not-mounted"))
    told = clone.depoison("share", "pull", REPORT, fails=True)
    assert "not-mounted: DVC's remote 'team' is not there" in told and len(told.strip().splitlines()) == 1


@pytest.mark.drill
def test_gc_keeps_what_is_reached_and_what_is_nowhere_else(published):
    clone = clone_of(published, "f")
    target = "results/cells/tiny/digits/resnet18/badnet+rate=0.05/fst+alpha=0.55/s0.json"
    clone.depoison("share", "pull", target)
    clone.run("snakemake", "--cores", "2", "--", target)
    assert "0 stray" in clone.depoison("gc")
    shutil.rmtree(clone.folder / "results/cells")
    told = clone.depoison("gc", "--remove")
    assert "nowhere else" in told
    assert list(clone.folder.glob("results/purify/*fst*/model.safetensors"))
    clone.depoison("gc", "--remove", "--unshared-too")
    assert "0 stray" in clone.depoison("gc")
    assert clone.jobs() == {}


@DRILL
def test_gc_knows_what_killed_jobs_left(published):
    clone = clone_of(published, "i")
    wanted = next(clone.folder.glob("results/purify/*badnet*fst*")).name
    left = [
        clone.folder / "results/purify" / name
        for name in (
            f".{wanted}.scratch",
            ".digits-old-0.05-s0-lp-0123456789.scratch",
            ".digits-old-0123456789.ab_c.building",
        )
    ]
    for folder in left:
        folder.mkdir()
        (folder / "state-3.safetensors").write_bytes(b"0" * 2048)
    told = clone.depoison("gc", "--remove")
    assert told.count("unfinished") == 2 and "2 stray artifacts, 0 removed" in told
    clone.depoison("gc", "--remove", "--unshared-too")
    assert [folder.exists() for folder in left] == [True, False, False]


@DRILL
def test_gc_removes_nothing_where_a_link_leads(published, tmp_path):
    clone = clone_of(published, "gc-links")
    left = [
        clone.folder / "results/purify" / name for name in ("digits-old-0123456789", ".digits-old-9876543210.scratch")
    ]
    for link in left:
        link.symlink_to(tmp_path)
    (tmp_path / "state-3.safetensors").write_bytes(b"0" * 2048)
    told = clone.depoison("gc", "--remove", "--unshared-too", fails=True)
    assert [line.split(":")[2].strip() for line in errors(told)] == [
        str(link.relative_to(clone.folder)) for link in left
    ]
    assert "0 stray artifacts, 0 removed" in told and (tmp_path / "state-3.safetensors").exists()


@DRILL
def test_push_refuses_other_bytes_than_the_published_ones(published):
    clone = clone_of(published, "g")
    shutil.rmtree(next(clone.folder.glob("results/evaluate/*badnet*fst*")))
    clone.depoison("share", "pull", REPORT)
    model = next(clone.folder.glob("results/purify/*badnet*fst*/model.safetensors"))
    content = model.read_bytes()
    model.unlink()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    told = clone.depoison("share", "push", REPORT, fails=True)
    assert f"{model.parent.name}/model.safetensors: differs from the published copy" in told


@DRILL
def test_gc_removes_nothing_when_the_remote_cannot_be_asked(published):
    clone = clone_of(published, "h")
    shutil.rmtree(next(clone.folder.glob("results/evaluate/*badnet*fst*")))
    clone.depoison("share", "pull", REPORT)
    (clone.folder / "config/tracks/tiny.yaml").unlink()  # now everything is stray
    clone.run("dvc", "remote", "remove", "team")
    told = clone.depoison("gc", "--remove", fails=True)
    assert "no DVC remote is configured" in told
    assert list(clone.folder.glob("results/purify/*badnet*fst*/model.safetensors"))
