"""`decloud unreadable [PATH]`: the files of a mounted volume that cannot be read until a peer returns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Final

import click

from fsdecloud.cli import client, drivers
from fsdecloud.cli.output import Progress, clean, emit, emit_json, note
from fsdecloud.cli.run import DEGRADED, OK
from fsdecloud.config import Paths, find_paths
from fsdecloud.units import format_size
from fsdecloud.wire.controlapi import Unreadable, UnreadablePage, UnreadableQuery

ANSWER_TIMEOUT: Final = 600.0
"""A page takes about a second; more while parts of the tree must come from peers that hardly answer."""

QUIET: Final = 2.0
"""Seconds before progress is shown."""


def read_unreadable(paths: Paths, volume: str, progress: Callable[[int], None]) -> Iterator[Unreadable]:
    """Yield what a mounted volume cannot show now; `progress` is told how many names were looked at."""
    session = 0
    with client.Client(paths.socket(drivers.PREFIX + volume), error=drivers.UnansweredDriver) as link:
        while True:
            page = link.call("unreadable", UnreadableQuery(session), UnreadablePage, timeout=ANSWER_TIMEOUT)
            progress(page.names)
            yield from page.found
            session = page.session
            if not session:
                return


def as_json(found: Unreadable) -> dict[str, object]:
    """Return the object of `--json`; the keys are stable. Bytes that are not UTF-8 appear as surrogates (PEP 383)."""
    return {
        "path": os.fsdecode(found.path) or ".",
        "inode": found.inode,
        "lacks": found.lacks,
        "bytes": found.lost if found.lost >= 0 else None,
        "ranges": [list(part) for part in found.ranges],
        "more_ranges": found.has_more,
    }


def as_line(found: Unreadable) -> str:
    """Return the line for people: the path, with a slash behind it where names in a directory are not known."""
    path = clean(os.fsdecode(found.path)) or "."
    return f"{path}/" if found.lacks == "names" else path


@click.command("unreadable")
@click.argument("path", metavar="[PATH]", required=False)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object per line.")
def command(path: str | None, json_output: bool) -> int:
    """Name the files that cannot be read as a whole now, because too few peers answer.

    All of the volume that PATH lies in (or PATH names) is looked at, or of the only mounted one. Paths are relative to the
    mount. A path that ends with / is a directory of which some names are not known.

    Exit code 0: everything can be read; 4: these cannot.
    """
    paths = find_paths()
    volume = drivers.volume_of_path(paths, path)
    progress, started = Progress(every=QUIET), time.monotonic()
    files = directories = size = 0

    def show(names: int) -> None:
        if time.monotonic() - started >= QUIET:
            progress.show(f"{volume}: {names} names looked at, {files} cannot be read")

    try:
        for found in read_unreadable(paths, volume, show):
            progress.end()
            directories += found.lacks == "names"
            files += found.lacks != "names"
            size += max(found.lost, 0)
            if json_output:
                emit_json(as_json(found))
            else:
                emit(as_line(found))
    finally:
        progress.end()
    if directories:
        note(f"{volume}: {directories} directories cannot be listed as a whole: there may be more in them")
    if files:
        note(f"{volume}: {files} names lead to what cannot be read until a peer returns ({format_size(size)})")
    return DEGRADED if files or directories else OK
