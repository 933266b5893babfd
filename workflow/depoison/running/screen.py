"""The foot of a terminal: lines that are drawn anew while others scroll by above them."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TextIO


def can_redraw(stream: TextIO) -> bool:
    """Whether lines can be drawn anew there: a terminal that can move its cursor, and rich to do it."""
    try:
        import rich.live  # noqa: F401
    except ImportError:
        return False
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class Screen:
    """A board at the foot of a terminal, drawn twice a second; what is printed scrolls by above it.

    What other processes write to this terminal goes the same way, line by line: their files 1 and 2, where these are the
    terminal, are a pipe from here on. The cursor stays visible, so that nothing has to be put right after a kill.

    Args:
        lines: the lines to draw, given the terminal's width and height.
        no_color: also follows from NO_COLOR.
    """

    def __init__(self, lines: Callable[[int, int], Sequence[str]], no_color: bool = False):
        from rich.console import Console, ConsoleDimensions
        from rich.live import Live
        from rich.text import Text

        class Terminal(Console):
            @property
            def size(self) -> ConsoleDimensions:
                with contextlib.suppress(OSError):
                    width, height = os.get_terminal_size(self.file.fileno())
                    if width and height:
                        return ConsoleDimensions(width, height)
                return ConsoleDimensions(80, 24)

            def show_cursor(self, show: bool = True) -> bool:
                return False

        def drawn() -> Text:
            width, height = console.size
            try:
                found = lines(width - 1, max(2, min(12, height // 2)))
            except Exception as error:  # of a thread that would die with it
                found = [f"progress: {type(error).__name__}: {error}"]
            text = Text("\n".join(found), no_wrap=True, overflow="crop")
            text.highlight_regex(r"\d+ failed", "bold red")
            text.highlight_regex(r"ETA .*", "bold")
            text.highlight_regex(r"━+", "green")
            return text

        self._text, self._stopped = Text, False
        self._saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2) if os.isatty(descriptor)}
        file = os.fdopen(os.dup(self._saved[2]), "w", encoding=sys.stderr.encoding, errors="replace")
        self._console = console = Terminal(file=file, no_color=no_color or None, highlight=False, markup=False)
        self._live = Live(
            console=console, get_renderable=drawn, refresh_per_second=2, transient=True, redirect_stdout=False,
            redirect_stderr=False, vertical_overflow="crop",
        )  # fmt: skip
        self._read, write = os.pipe()
        self._stop, self._stopping = os.pipe()
        _flush()
        for descriptor in self._saved:
            os.dup2(write, descriptor)
        os.close(write)
        self._reader = threading.Thread(target=self._forward, daemon=True)
        self._live.start(refresh=True)
        self._reader.start()

    def print(self, text: str, style: str = "") -> None:
        """Print text above the board, in full."""
        found = self._text.from_ansi(text, style=style)
        with contextlib.suppress(OSError):
            self._console.print(found, soft_wrap=True)

    def _forward(self) -> None:
        rest = b""
        while self._read in select.select([self._read, self._stop], [], [])[0]:
            content = os.read(self._read, 65536)
            *lines, rest = (rest + content).split(b"\n")
            if lines:
                self.print(b"\n".join(line.rstrip(b"\r") for line in lines).decode(errors="replace"))
            if not content:
                break
        if rest:
            self.print(rest.decode(errors="replace"))

    def stop(self) -> None:
        """Print what is under way, wipe the board, and give the terminal back."""
        if self._stopped:
            return
        self._stopped = True
        _flush()
        for descriptor, terminal in self._saved.items():
            os.dup2(terminal, descriptor)
            os.close(terminal)
        # Other processes may still hold the pipe, so that it does not end; what is in it now is all that is waited for.
        os.close(self._stopping)
        self._reader.join(timeout=5)
        self._live.stop()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def in_columns(rows: Sequence[tuple[str, Sequence[str]]], width: int) -> list[str]:
    """Lines of running jobs; where they are too long, less is shown of the courses, and of names that fill half a line."""
    longest = max((len(name) for name, _ in rows), default=0)
    course = max((len("  ".join(shown)) for _, shown in rows), default=0)
    column = min(longest, max(width // 2, width - 4 - course))
    found = []
    for name, shown in rows:
        if len(name) > column:
            name = f"{name[: column - column // 2 - 1]}…{name[-(column // 2) :]}"
        line = f"  {name:<{column}}"
        for part in shown:
            if len(line) + 2 + len(part) > width:
                break
            line += f"  {part}"
        found.append(line[:width])
    return found
