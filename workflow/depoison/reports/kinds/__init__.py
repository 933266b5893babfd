"""Reports: files with fixed names that show what artifacts hold.

A kind of report is a module here, found by itself: a class of `Report`. Its name is that of Snakemake's rule.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path
from typing import ClassVar

from depoison.errors import DepoisonError
from depoison.files import only_maker, refuse_links, write_bytes
from depoison.papers.tables import stem_of
from depoison.plan.plan import Plan
from depoison.plan.specs import Artifact, unique
from depoison.reports.tables import command


class Report:
    """Files that are written of what is there.

    Args:
        target: with any suffix or none.
        partial: whether it is written, and current, while something that it is made from is missing.

    Attributes:
        what: it is, for people.
        name: a regular expression of its targets' last part, without suffix; "": whatever no other kind is called.
        suffixes: of its files, which are all written at once.
        path: of its files without suffix, as Snakemake has it.
        computes: False: it shows what is there, and asks for nothing that is missing.
        section, shown: where Snakemake's report shows it, and which files, by suffix what they are.
        target: without suffix.

    Raises:
        DepoisonError: there is no such report, or nothing that it could show.
    """

    what: ClassVar[str]
    name: ClassVar[str] = ""
    suffixes: ClassVar[tuple[str, ...]]
    path: ClassVar[str] = "reports/{where}{name}"
    computes: ClassVar[bool] = True
    section: ClassVar[str] = ""
    shown: ClassVar[dict[str, str]] = {}

    def __init__(self, plan: Plan, target: str, partial: bool = False):
        self.plan, self.target, self.partial = plan, stem_of(target), partial

    @property
    def main(self) -> str:
        """The first of its files, by which people know it."""
        return self.target + self.suffixes[0]

    def parts(self) -> list[str]:
        """The targets of the reports that it shows."""
        return []

    def artifacts(self) -> list[Artifact]:
        """What it shows, or would if it were there."""
        return artifacts(self.plan, self.parts())

    def needs(self) -> list[str]:
        """The files that it is made from: products of artifacts, and files of other reports."""
        return [artifact.product for artifact in self.artifacts()]

    def missing(self) -> list[str]:
        """Those that are not here."""
        return [file for file in self.needs() if not Path(file).exists()]

    def refuse_missing(self) -> None:
        """Raises: DepoisonError: something is missing."""
        if missing := self.missing():
            raise DepoisonError(
                f"{self.main}: {len(missing)} of {len(self.needs())} files that it shows are missing, the first is "
                f"{missing[0]}; `{command(self.plan, self.main)}` makes them"
            )

    def render(self) -> dict[str, bytes]:
        """By suffix the content of its files; equal inputs make equal bytes."""
        raise NotImplementedError

    def is_current(self) -> bool:
        """Whether everything is there, and the files say what would be written now."""
        if not self.is_here() or (self.computes and not self.partial and self.missing()):
            return False
        return all(
            self.told(suffix, Path(self.target + suffix).read_bytes()) == content
            for suffix, content in self.compared().items()
        )

    def compared(self) -> dict[str, bytes]:
        """Of what `render` makes that by which it is told whether the files are current; default: all."""
        return self.render()

    def told(self, suffix: str, content: bytes) -> bytes:
        """That of a file which stands in `compared`."""
        return content

    def is_here(self) -> bool:
        """Whether there are all its files, whatever they say."""
        return all(Path(self.target + suffix).exists() for suffix in self.suffixes)

    def holds(self) -> bool | None:
        """Whether its files are what would be written of what is here; None where that cannot be told."""
        return self.is_current()

    def write(self) -> None:
        """Write all files, under a lock: they are of one run, and of one configuration, if two write at once.

        Raises:
            DepoisonError: something is missing, or cannot be read.
        """
        if self.computes and not self.partial:
            self.refuse_missing()
        path = Path(self.target).with_suffix("")
        refuse_links(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_maker(path):
            self.put()

    def put(self) -> None:
        for suffix, content in self.render().items():
            write_bytes(Path(self.target + suffix), content)


@cache
def kinds() -> dict[str, type[Report]]:
    """Every kind that there is, by name; the one for whatever no other is called stands last."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    found = {kind.__module__.rpartition(".")[2]: kind for kind in Report.__subclasses__()}
    return dict(sorted(found.items(), key=lambda item: not item[1].name))


def name_of(kind: type[Report]) -> str:
    """A regular expression of what a kind's targets are called, which no other kind's are."""
    others = "|".join(other.name for other in kinds().values() if other.name and other.path == Report.path)
    return kind.name or rf"(?!(?:{others})(?:\.|$))[^/.]+"


def _folder(kind: type[Report]) -> str:
    """What the targets of a kind begin with."""
    return kind.path.partition("{")[0]


def of_no_kind() -> str:
    """A regular expression of files below reports/ that are of no kind."""
    top = _folder(Report)
    files = []
    for kind in kinds().values():
        if kind.path.startswith(top):
            folder = "([^/]+/)*" if kind.path == Report.path else re.escape(_folder(kind).removeprefix(top))
            files.append(f"{folder}{name_of(kind)}({'|'.join(map(re.escape, kind.suffixes))})")
    return rf"(?!({'|'.join(files)})$).+"


def anywhere() -> str:
    """A regular expression of folders below reports/ that are no kind's own."""
    top = _folder(Report)
    own = sorted({_folder(kind).removeprefix(top) for kind in kinds().values() if kind.path.startswith(top)} - {""})
    return "".join(f"(?!{re.escape(folder)})" for folder in own) + "([^/]+/)*"


def kind_of(target: str) -> type[Report]:
    """The kind of report that a target names.

    Raises:
        DepoisonError: reports of this kind are not written in the form that it names; one without a suffix means all.
    """
    stem, dot, suffix = target.rpartition("/")[2].partition(".")
    there = [kind for kind in kinds().values() if target.startswith(_folder(kind))]
    there.sort(key=lambda kind: -len(_folder(kind)))
    kind = next((kind for kind in there if re.fullmatch(kind.name or ".*", stem)), [*kinds().values()][-1])
    if dot and target.startswith("reports/") and f".{suffix}" not in kind.suffixes:
        raise DepoisonError(f"{target}: {kind.what} is written as {', '.join(kind.suffixes)}")
    return kind


def report_of(plan: Plan, target: str, partial: bool = False) -> Report:
    """Resolve what a target names.

    Raises:
        DepoisonError: as `kind_of` and the report; a cell that cannot be.
    """
    return kind_of(target)(plan, target, partial)


def artifacts(plan: Plan, targets: list[str]) -> list[Artifact]:
    """What cells and reports show, each once."""
    return unique(artifact for target in dict.fromkeys(targets) for artifact in report_of(plan, target).artifacts())


def with_parts(plan: Plan, targets: list[str]) -> list[str]:
    """Targets, and those of the reports that they show, each once."""
    found: dict[str, None] = {}
    for target in targets:
        found |= dict.fromkeys([target, *with_parts(plan, report_of(plan, target).parts())])
    return list(found)
