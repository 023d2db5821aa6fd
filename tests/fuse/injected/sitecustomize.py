"""Bugs for a real driver: put on PYTHONPATH, Python imports this before the driver's own code.

The file that the environment variable DECLOUD_TEST_BUGS names has lines `TARGET COUNT`; the next COUNT calls of TARGET
raise ZeroDivisionError. A target is `handler NAME` (inside the guard), `agent` (the agent process ends as it starts), or
`module:Class.method`. Without that file, and in any other program, nothing happens.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from pathlib import Path

BUGS = Path(os.environ.get("DECLOUD_TEST_BUGS", "/nonexistent"))

METHODS = (
    "fsdecloud.driver.anchors:Anchors._is_due",
    "fsdecloud.driver.committer:Committer._update_tree",
    "fsdecloud.driver.entries:Entries._write_cache",
    "fsdecloud.driver.journal:Journal._write",
    "fsdecloud.driver.sealer:Sealer._apply",
    "fsdecloud.driver.sealer:Sealer._plan",
    "fsdecloud.driver.uploads:Uploads._wait_quiet",
    "fsdecloud.driver.uploads:Uploads.release",
    "fsdecloud.driver.volume:Volume._reap",
    "fsdecloud.fs.overlay:Overlay.commit",
)


def fail_if_asked(target: str) -> None:
    """Raise if the file has this target left."""
    try:
        wanted = dict(line.rsplit(" ", 1) for line in BUGS.read_text().splitlines())
    except OSError:
        return
    count = int(wanted.get(target, 0))
    if not count:
        return
    wanted[target] = str(count - 1)
    new = BUGS.with_name(f"{BUGS.name}.{os.getpid()}")
    new.write_text("".join(f"{name} {left}\n" for name, left in wanted.items()))
    new.rename(BUGS)
    raise ZeroDivisionError("injected")


def spoil(function, target):
    """Return the function, failing when it is asked to."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def spoiled(*args, **kwargs):
            fail_if_asked(target)
            return await function(*args, **kwargs)
    else:

        @functools.wraps(function)
        def spoiled(*args, **kwargs):
            fail_if_asked(target)
            return function(*args, **kwargs)

    return spoiled


def install() -> None:
    from fsdecloud.fuse.errnos import guarded
    from fsdecloud.fuse.operations import Operations

    for name, handler in list(vars(Operations).items()):
        if hasattr(handler, "__wrapped__"):
            setattr(Operations, name, guarded(spoil(handler.__wrapped__, f"handler {name}")))
    for target in METHODS:
        module, _, path = target.partition(":")
        owner, method = path.split(".")
        where = getattr(importlib.import_module(module), owner)
        setattr(where, method, spoil(getattr(where, method), target))


if BUGS.parent.is_dir():
    if "fsdecloud.fuse" in sys.orig_argv:
        install()
    elif "fsdecloud.agent" in sys.orig_argv:
        try:
            fail_if_asked("agent")
        except ZeroDivisionError:  # Python would go on without this module
            os._exit(1)
