"""How a command writes a file that a person named: whole or not at all, and over nothing that is there unless told to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from fsdecloud.errors import UsageError


def check_free(path: str, *, force: bool) -> None:
    """For commands that have --force: raise UsageError if something is at `path` that may not be replaced."""
    if not force and os.path.lexists(path):
        raise UsageError(f"{path} exists: use --force to replace it, or name another")


@contextmanager
def new_file(path: str, *, force: bool | None = None) -> Iterator[BinaryIO]:
    """Yield a file that is at `path`, durably, when the body ends; if the body fails, `path` is as it was.

    `force` is for commands that have --force. Raises UsageError if something is there, unless `force`; OSError.
    """
    if force is not None:
        check_free(path, force=force)
    place = f"{path}.{os.getpid()}.new" if force else path
    try:
        file = open(place, "xb")  # noqa: SIM115 - closed below, before it is moved
    except FileExistsError as exc:
        raise UsageError(f"{place} exists: name another") from exc
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(place, path)
    except BaseException:  # interrupted or failed, no half file may stay
        with suppress(OSError):
            os.unlink(place)
        raise
