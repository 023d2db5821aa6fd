"""What goes to standard output and standard error, for people and for programs.

Text that comes from files, peers or the ledger passes through `clean`: no control character reaches a terminal.
"""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence


def clean(text: str | bytes) -> str:
    """Return `text` with everything escaped that could steer a terminal or reverse the reading direction."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return text
    return "".join(c if c == " " or _shows(c) else _escaped(c) for c in text)


def _shows(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8 (PEP 383)
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def emit(text: str = "") -> None:
    """Print one line (or several that are ours) to standard output."""
    print(text)


def emit_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(value, ensure_ascii=True))


def error_line(program: str, message: str) -> None:
    """Print one line to standard error, whatever the message holds."""
    text = " ".join(clean(line).strip() for line in message.splitlines()) or "failed"
    print(f"{program}: {text}", file=sys.stderr)


def note(message: str) -> None:
    """Say something to the person without mixing it into the output."""
    print(message, file=sys.stderr, flush=True)


def table(
    rows: Sequence[Sequence[str]], *, header: Sequence[str] = (), right: Sequence[int] = (), indent: str = ""
) -> list[str]:
    """Return aligned lines; columns in `right` are aligned to the right. Cells are cleaned."""
    cells = [[clean(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    if not cells:
        return []
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        parts = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append((indent + "  ".join(parts)).rstrip())
    return lines


def rfc3339(seconds: float) -> str:
    """Return a time in UTC as RFC 3339 writes it, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Progress:
    """One line that is rewritten on a terminal; elsewhere a line every ten seconds, so that what is quick says nothing."""

    def __init__(self, *, every: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = every
        self._clock = clock
        self._shown = ""
        self._at = clock()

    def show(self, text: str) -> None:
        """Show the present state."""
        text = clean(text)
        if text == self._shown:
            return
        if self._terminal:
            print(f"\r{text[:200].ljust(min(len(self._shown), 200))}", end="", file=sys.stderr, flush=True)
        elif self._clock() - self._at >= self._every:
            print(text, file=sys.stderr, flush=True)
            self._at = self._clock()
        else:
            return
        self._shown = text

    def end(self) -> None:
        """Leave the line."""
        if self._terminal and self._shown:
            print(file=sys.stderr, flush=True)
        self._shown = ""
