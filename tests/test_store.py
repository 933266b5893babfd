"""Pointers: what DVC writes is read, and nothing else reaches it. Remotes: what they have, have not, and do not say."""

from __future__ import annotations

import hashlib
import os
import shutil
import tracemalloc
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import dumps_yaml, parse_yaml
from hypothesis import given
from hypothesis import strategies as st

from depoison.errors import DepoisonError
from depoison.running.store import Fault, Pointer, Store, open_store, pointer, published
from sharing import USER, WebFolder, Wire, s3_service, serving

FILE = Path("results/purify/digits-fst-0123456789/model.safetensors")
MD5 = "8df5cbf614f73ddb91163cd4c9f644d3"
GOOD = f"outs:\n- md5: {MD5}\n  size: 1000\n  hash: md5\n  path: model.safetensors\n"
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("project"))
    FILE.parent.mkdir(parents=True)


def read(content: str | bytes) -> Pointer:
    pointer(FILE).write_bytes(content.encode() if isinstance(content, str) else content)
    return published(FILE)


def test_a_pointer_as_dvc_writes_it_is_read():
    assert read(GOOD) == Pointer(MD5, 1000)
    assert read(GOOD).place == Path("8d/f5cbf614f73ddb91163cd4c9f644d3")
    assert read(GOOD.replace("  hash", "  isexec: true\n  hash")) == Pointer(MD5, 1000)  # on a drive of another system


OTHERS = {
    "a path elsewhere": (
        GOOD.replace("model", "../../../workflow/sitecustomize"),
        "its path is '../../../workflow/sitecustomize.safetensors', not 'model.safetensors'",
    ),
    "another file": (GOOD.replace("model", "trigger"), "its path is 'trigger.safetensors'"),
    "no file": ("outs: []\n", "line 1 is 'outs: []'"),
    "nothing": ("", "line 1 is ''"),
    "two files": (GOOD + GOOD.removeprefix("outs:\n").replace("model", "trigger"), "line 6 is '- md5"),
    "a folder": (GOOD.replace(MD5, f"{MD5}.dir"), f"line 2 is '- md5: {MD5}.dir'"),
    "a short md5": (GOOD.replace(MD5, MD5[1:]), "line 2"),
    "an md5 that is a path": (GOOD.replace(MD5, "../" * 10 + "ab"), "line 2"),
    "no md5": (GOOD.replace(f"md5: {MD5}\n  ", ""), "no md5"),
    "no size and no hash": (GOOD.replace("  size: 1000\n  hash: md5\n", ""), "no hash and no size"),
    "a size that is none": (GOOD.replace("1000", "a lot"), "line 3 is '  size: a lot'"),
    "a negative size": (GOOD.replace("1000", "-1"), "line 3"),
    "an older DVC's hash": (GOOD.replace("hash: md5", "hash: md5-dos2unix"), "line 4"),
    "a folder to work in": (GOOD + "wdir: ../../../workflow\n", "line 6 is 'wdir: ../../../workflow'"),
    "a command": (GOOD + "cmd: touch pwned\n", "line 6 is 'cmd: touch pwned'"),
    "what it is made from": (GOOD + "deps:\n- path: /etc/passwd\n", "line 6 is 'deps:'"),
    "a remote of its own": (GOOD + "  remote: elsewhere\n", "line 6 is '  remote: elsewhere'"),
    "not cached": (GOOD + "  cache: false\n", "line 6"),
    "never pushed": (GOOD + "  push: false\n", "line 6"),
    "a key twice": (GOOD + f"  md5: {MD5[::-1]}\n", "line 6"),
    "an md5 that YAML reads as a number": (GOOD.replace(MD5, "1" * 32), "line 2"),
    "no YAML": ("\x01{[", "line 1"),
    "an archive": (b"\x1f\x8b\x08\xff", "no plain text"),
    "another text for another reader": (GOOD.replace("  path", "  # \x85  path: x\n  path"), "no plain text"),
    "aliases that explode": (BOMB[:900] + "outs: *i\n", "line 1 is 'a: &a [x, x]'"),
    "aliases that explode, at length": (BOMB * 9, "more than 1000 characters"),
}


@pytest.mark.parametrize(("content", "told"), OTHERS.values(), ids=OTHERS)
def test_any_other_text_is_refused_in_one_line_that_names_it(content, told):
    with pytest.raises(DepoisonError) as caught:
        read(content)
    assert str(caught.value).startswith(f"{FILE}.dvc: refused, it is not what `dvc add` writes for model.safetensors: ")
    assert told in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_no_link_is_followed(tmp_path):
    read(GOOD)
    pointer(FILE).rename(tmp_path / "pointer")
    for target in (tmp_path / "pointer", Path("/dev/zero"), Path("nowhere")):
        pointer(FILE).unlink(missing_ok=True)
        pointer(FILE).symlink_to(target)
        with pytest.raises(DepoisonError, match=f"{FILE.name}.dvc: is a symbolic link"):
            published(FILE)

    pointer(FILE).unlink()
    (tmp_path / "pointer").rename(pointer(FILE))
    FILE.parent.rename(tmp_path / "elsewhere")
    FILE.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DepoisonError, match=f"{FILE.parent}: is a symbolic link"):
        published(FILE)


def test_what_is_no_file_is_refused_and_not_waited_for():
    with pytest.raises(DepoisonError, match="missing"):
        published(FILE)
    for make in (os.mkfifo, Path.mkdir):
        make(pointer(FILE))
        with pytest.raises(DepoisonError, match="no file"):
            published(FILE)
        pointer(FILE).rmdir() if pointer(FILE).is_dir() else pointer(FILE).unlink()


def test_a_huge_pointer_costs_no_memory():
    read(GOOD)
    os.truncate(pointer(FILE), 1 << 32)
    tracemalloc.start()
    with pytest.raises(DepoisonError, match="more than 1000 characters"):
        published(FILE)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


DIGITS = st.text("0123456789", min_size=32, max_size=32)
HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
NUMBERS = st.from_regex(r"[0-9]{1,30}e[0-9]{1,30}", fullmatch=True).filter(lambda text: len(text) == 32)
BINARY = st.text("01", min_size=30, max_size=30).map("0b".__add__)


@given(st.one_of(HEX, DIGITS, NUMBERS, BINARY), st.integers(0, 1 << 50), st.booleans())
def test_whatever_dvc_may_write_is_read(md5, size, executable):
    more = {"isexec": True} if executable else {}
    text = dumps_yaml({"outs": [{"md5": md5, "size": size} | more | {"hash": "md5", "path": FILE.name}]})
    assert read(text) == Pointer(md5, size)


LINES = st.sampled_from(
    [
        *GOOD.splitlines(),
        "  path: ../x",
        "wdir: ..",
        "  cache: false",
        "- path: a",
        "  isexec: true",
        "  size: 0x10",
        "---",
    ]
)
TEXTS = st.one_of(
    st.binary(max_size=2000),
    st.text(max_size=200).map(str.encode),
    st.recursive(st.none() | st.integers() | st.text(), lambda some: st.lists(some) | st.dictionaries(st.text(), some)).map(
        lambda value: yaml.safe_dump({"outs": value}).encode()
    ),
    st.lists(LINES, max_size=8).map(lambda lines: "\n".join(lines).encode()),
    # The good one with a part in place of another.
    st.tuples(st.integers(0, len(GOOD)), st.integers(0, len(GOOD)), st.text(max_size=8) | LINES).map(
        lambda cut: (GOOD[: min(cut[:2])] + cut[2] + GOOD[max(cut[:2]) :]).encode()
    ),
)  # fmt: skip


@given(TEXTS)
def test_of_any_bytes_dvc_gets_to_see_those_alone_that_mean_to_it_what_they_mean_to_us(content):
    try:
        found = read(content)
    except DepoisonError:
        return
    (out,) = parse_yaml(content.decode(), FILE).pop("outs")
    assert out | {"isexec": True} == {
        "md5": found.md5,
        "size": found.size,
        "hash": "md5",
        "path": FILE.name,
        "isexec": True,
    }
    assert set(parse_yaml(content.decode(), FILE)) == {"outs"}


# --- remotes -----------------------------------------------------------------------------------------------------

FILES = [FILE.with_name(f"{name}.safetensors") for name in ("whole", "absent", "short")]
MISSING, DAMAGED = Fault("missing"), Fault("damaged")


def store_at(**remote: str) -> Store:
    """A store with this remote, in which the first of `FILES` is whole, and the third cut off."""
    Path(".dvc").mkdir(exist_ok=True)
    lines = ["[core]", "analytics = false", "no_scm = true", "remote = team", "['remote \"team\"']"]
    lines += [f"{key} = {value}" for key, value in remote.items()]
    Path(".dvc/config").write_text("\n".join(lines))
    for file in FILES:
        md5 = hashlib.md5(file.name.encode()).hexdigest()
        pointer(file).write_text(
            GOOD.replace(MD5, md5).replace("1000", str(len(file.name))).replace(FILE.name, file.name)
        )
    return open_store(new=True)


def names() -> dict[Path, bytes]:
    """What a remote has, by its place below the objects."""
    return {published(FILES[0]).place: FILES[0].name.encode(), published(FILES[2]).place: FILES[2].name.encode()[:-1]}


def fill(objects: Path) -> None:
    for place, content in names().items():
        (objects / place).parent.mkdir(parents=True)
        (objects / place).write_bytes(content)


def causes(faults: Mapping[Path, Fault]) -> set[str]:
    """Why nothing is known of any file."""
    assert list(faults) == FILES and {fault.kind for fault in faults.values()} == {"unknown"}
    return {fault.cause for fault in faults.values()}


def test_a_folder_says_what_it_has_and_what_it_cannot_say(tmp_path):
    store = store_at(url=str(tmp_path / "remote"))
    assert store.faults(FILES) == dict.fromkeys(FILES, MISSING)  # as it is new
    fill(objects := tmp_path / "remote/files/md5")
    store = open_store()
    assert store.faults(FILES) == {FILES[1]: MISSING, FILES[2]: DAMAGED}

    # Something is in the way of an object, as on a disk that fails.
    shutil.rmtree((objects / published(FILES[0]).place).parent)
    (objects / published(FILES[0]).place).parent.write_text("")
    (file, fault), *others = store.faults(FILES).items()
    assert file == FILES[0] and fault.kind == "unknown" and fault.cause.endswith(": Not a directory")
    assert dict(others) == {FILES[1]: MISSING, FILES[2]: DAMAGED}

    shutil.rmtree(tmp_path / "remote")
    assert causes(store.faults(FILES)) == {f"{objects}: not there any more"}
    with pytest.raises(
        DepoisonError, match="remote: DVC's remote 'team' is not there, or nothing was pushed to it yet"
    ):
        open_store()


def test_a_web_server_says_what_it_has_and_what_it_cannot_say(tmp_path):
    with serving(WebFolder(tmp_path)) as server:
        store = store_at(url=server.address)
        fill(tmp_path / "files/md5")
        assert store.faults(FILES) == {FILES[1]: MISSING, FILES[2]: DAMAGED}
        for server.status in (401, 403, 500, 503):
            assert all(f"{server.status}, message=" in cause for cause in causes(store.faults(FILES)))
    assert all("Cannot connect to host 127.0.0.1" in cause for cause in causes(store.faults(FILES)))


def test_s3_says_what_it_has_and_what_it_cannot_say(monkeypatch):
    for name, value in USER.items():
        monkeypatch.setenv(name, value)
    with s3_service() as (address, bucket), serving(Wire(address)) as wire:
        store = store_at(url="s3://team/depoison", endpointurl=wire.address)
        for place, content in names().items():
            bucket.put_object(Key=f"depoison/files/md5/{place}", Body=content)
        assert store.faults(FILES) == {FILES[1]: MISSING, FILES[2]: DAMAGED}
        wire.left = 0
        assert all("endpoint URL" in cause for cause in causes(store.faults(FILES)))
    assert all("Could not connect to the endpoint URL" in cause for cause in causes(store.faults(FILES)))
