"""LaTeX: any text so that pdflatex prints it, how wide it is, references from BibTeX, and a document as PDF."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from depoison.errors import DepoisonError
from depoison.files import write_bytes
from depoison.plan.metrics import MINUS

INSTALL = "apt-get install texlive-latex-base texlive-latex-recommended (or TeX Live's collection-latexrecommended)"
SHOWN = 120
"""A longer name is cut: it would push everything else off the page."""
PROSE = 2000
WORD, PIECE = 16, 6
"""A word longer than WORD may be broken after every PIECE characters."""

BIBLIOGRAPHY = "CITATIONS.bib"

_TEXT = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "—": "---", "‘": "`", "’": "'", "“": "``", "”": "''",
    "…": r"\dots{}", "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}",
    "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "¿": "?`", "¡": "!`",
    "\N{HYPHEN}": "-", "\N{NON-BREAKING HYPHEN}": "-",
}  # fmt: skip
_TEXT |= {character: "\\" + character for character in "&%$#_{}"}
_MATH = {
    MINUS: "-", "±": r"\pm", "×": r"\times", "·": r"\cdot", "÷": r"\div", "°": r"^\circ", "≤": r"\leq", "≥": r"\geq",
    "≠": r"\neq", "≈": r"\approx", "∞": r"\infty", "→": r"\to", "←": r"\leftarrow", "∈": r"\in", "∼": r"\sim", "√": r"\surd",
    "•": r"\bullet", "†": r"\dagger", "‡": r"\ddagger", "§": r"\mathsection", "¶": r"\mathparagraph", "‖": r"\|",
    "∂": r"\partial", "∇": r"\nabla", "µ": r"\mu", "¬": r"\neg", "¹": "^1", "²": "^2", "³": "^3",
} | {
    chr(point): "\\" + {"LAMDA": "lambda"}.get(name := unicodedata.name(chr(point)).split()[-1], name.lower())
    for point in range(0x3B1, 0x3CA) if chr(point) not in "ος"
} | {letter: f"\\{name}" for letter, name in zip(
    "ΓΔΘΛΞΠΣΥΦΨΩ",
    ["Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega"], strict=True,
)}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u0308": '"',
    "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c", "\u0331": "b",
}  # fmt: skip
_MARKS = {accent: mark for mark, accent in _ACCENTS.items()}


def escape_latex(text: str) -> str:
    """Any text, so that LaTeX prints it in its standard fonts: what these lack is shown by its code, as [U+4E2D]."""
    return "".join(_escaped(unicodedata.normalize("NFC", " ".join(str(text).split()))))


def _escaped(text: str) -> Iterator[str]:
    for character, before in zip(text, "\0" + text, strict=False):
        if character == "-" == before:
            yield "{}-"  # else two of them are a dash
        elif character in _TEXT:
            yield _TEXT[character]
        elif character in _MATH:
            yield f"${_MATH[character]}$"
        elif " " <= character <= "~":
            yield character
        elif unicodedata.category(character) not in ("Cc", "Cf"):
            yield _composed(character)


def _composed(character: str) -> str:
    """A letter with accents as commands, or a character that stands for others, such as a ligature."""
    base, *marks = unicodedata.normalize("NFD", character)
    if base.isascii() and base.isalpha() and len(marks) == 1 and marks[0] in _ACCENTS:
        return rf"\{_ACCENTS[marks[0]]}{{{base}}}"
    plain = unicodedata.normalize("NFKC", character)
    if plain != character and not set(plain) & set(character):
        return escape_latex(plain)
    return rf"[U+{ord(character):04X}]\allowbreak{{}}"


def name_latex(text: str, cut: int = SHOWN) -> str:
    """A name, such as a label or title: `escape_latex`, cut if it is very long, its long words breakable."""
    text = " ".join(str(text).split())
    text = text if len(text) <= cut else text[: cut - 1] + "…"
    return " ".join(r"\-".join(map(escape_latex, _pieces(word))) for word in text.split(" "))


def _pieces(word: str) -> list[str]:
    return [word[i : i + PIECE] for i in range(0, len(word), PIECE)] if len(word) > WORD else [word]


def prose_latex(text: str) -> str:
    """Text that fills lines, such as a caption: as `name_latex`, but of any sensible length."""
    return name_latex(text, PROSE)


def typewriter(text: str) -> str:
    """Text such as a command: in typewriter, and broken where it is long."""
    parts = re.split(r"(?<=[/+=,_.-])(?=[^ /+=,_.-])", str(text))
    return r"\texttt{" + r"\allowbreak{}".join(map(escape_latex, parts)) + "}"


def points(text: str) -> float:
    """About how wide text is in Computer Modern at 10 pt, in pt."""
    shown = escape_latex(text).replace(r"\allowbreak{}", "")
    shown = re.sub(r"\$[^$]+\$|\\[A-Za-z]+\{\}", "M", re.sub(r"\\([&%$#_{}])", "M", shown))
    width = {".": 2.8, ",": 2.8, " ": 3.3, "i": 2.8, "l": 2.8, "m": 8.3, "w": 7.2, "M": 8.3}
    return sum(width.get(one, 7.2 if one.isupper() else 5.2) for one in re.sub(r"\\.|[{}]", "", shown))


# --- references --------------------------------------------------------------------------------------------------


def read_bibliography(text: str) -> dict[str, dict[str, str]]:
    """The entries of a BibTeX file by their keys; fields as plain text, with TeX's accents as letters."""
    entries = {}
    for head in re.finditer(r"@(\w+)\s*\{\s*([^,\s]+)\s*,", text):
        fields, at = {"type": head[1].lower()}, head.end()
        while field := re.compile(r"\s*(\w+)\s*=\s*\{").match(text, at):
            depth, end = 1, field.end()
            while depth and end < len(text):
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            fields[field[1].lower()] = _plain(text[field.end() : end - 1])
            at = re.compile(r"\s*,?").match(text, end).end()
        entries[head[2]] = fields
    return entries


def _plain(tex: str) -> str:
    accented = r"""\\([`'^"~=.]|[uvHcdbr](?![a-z]))\s*\{?\\?([A-Za-z])\}?"""
    text = re.sub(accented, lambda found: unicodedata.normalize("NFC", found[2] + _MARKS[found[1]]), tex)
    return " ".join(re.sub(r"[{}]|\\(?=[&%$#_])", "", text).split())


def reference(entry: dict[str, str]) -> str:
    """One entry as LaTeX: authors, title, where, year."""
    names = [" ".join(reversed(name.split(", ", 1))) for name in entry.get("author", "").split(" and ")]
    names = [re.sub(r"(?<=\w)\. ", ".~", escape_latex(name)) for name in names if name]
    names = [*names[:-2], " and ".join(names[-2:])] if names else []
    where = next((entry[key] for key in ("journal", "booktitle", "howpublished", "institution") if key in entry), "")
    emphasized = where and rf"\emph{{{escape_latex(where)}}}"
    printed = filter(None, [emphasized, escape_latex(entry.get("volume", "")), entry.get("year", "")])
    parts = [", ".join(names), escape_latex(entry.get("title", "")), ", ".join(printed)]
    return ". ".join(filter(None, parts)) + "."


# --- PDF ---------------------------------------------------------------------------------------------------------


def compile_latex(source: Path, log: Path) -> None:
    """Make the PDF of a document, beside it; equal bytes with an equal TeX, whatever the time and the folder are called.

    Args:
        log: where TeX's log goes if it stops.

    Raises:
        DepoisonError: there is no pdflatex, or it stopped at an error.
    """
    if shutil.which("pdflatex") is None:
        raise DepoisonError(f"{source.with_suffix('.pdf')} needs pdflatex, which is not installed: {INSTALL}")
    arguments = ["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1", "max_print_line": "10000"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ["pdflatex", *arguments, "-output-directory", name, source.name]
        before = None
        for _ in range(6):  # until page numbers and the widths of tables' columns are those of the run before
            done = subprocess.run(
                command, cwd=source.parent, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            told = folder / f"{source.stem}.log"
            if done.returncode:
                text = told.read_bytes() if told.exists() else done.stdout
                log.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(log, text)
                raise DepoisonError(f"{source}: {_first_error(text.decode(errors='replace'))}; {log} has more")
            after = [
                path.read_bytes() for path in sorted(folder.glob("*.*")) if path.suffix in (".aux", ".toc", ".out")
            ]
            if after == before:
                break
            before = after
        log.unlink(missing_ok=True)
        write_bytes(source.with_suffix(".pdf"), (folder / f"{source.stem}.pdf").read_bytes())


def _first_error(log: str) -> str:
    """The first error of a TeX log, with the line of the source."""
    found = re.search(r"^! (.*)", log, re.MULTILINE)
    if not found:
        return "pdflatex stopped without an error"
    line = re.search(r"^l\.(\d+)", log[found.end() :], re.MULTILINE)
    install = f" ({INSTALL})" if re.search(r"File .* not found", found[1]) else ""
    return f"{found[1].strip()}{f' (line {line[1]})' if line else ''}{install}"
