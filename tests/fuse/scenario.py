"""Small file system scenarios, each run in a directory of its own: in the mount and on a plain disk, for comparison.

    python -m tests.fuse.scenario NAME DIRECTORY        prints what the scenario returned as JSON

A scenario works with relative paths only and returns something that must be the same everywhere: values, sizes, errnos;
never an inode number or a time of day. Imports nothing of the project, so that a child starts fast.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final

SCENARIOS: Final[dict[str, Callable[[], Any]]] = {}
"""All scenarios by name; filled by the modules that `load` imports."""

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_TICK: Final = 0.02
"""Longer than the coarse clock that ext4 takes its times from."""

_libc = ctypes.CDLL(None, use_errno=True)


def scenario(function: Callable[[], Any]) -> Callable[[], Any]:
    """Register a scenario under its function's name."""
    assert function.__name__ not in SCENARIOS
    SCENARIOS[function.__name__] = function
    return function


def load() -> dict[str, Callable[[], Any]]:
    """Return all scenarios."""
    from tests.fuse import access_time_scenarios, acl_scenarios, content_scenarios, metadata_scenarios, name_scenarios

    assert access_time_scenarios
    assert acl_scenarios
    assert content_scenarios
    assert metadata_scenarios
    assert name_scenarios
    return SCENARIOS


# ---- helpers for scenarios --------------------------------------------------------------------------------------------
def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the function's result, or the name of the errno it failed with."""
    try:
        return function(*args, **kwargs)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, repr(exc))


def write(path: str | bytes, data: bytes = b"") -> None:
    """Make a file with these contents."""
    with open(path, "wb") as file:
        file.write(data)


def read(path: str | bytes) -> str:
    """Return a small file's contents."""
    with open(path, "rb") as file:
        return file.read().decode("latin-1")


def shape(path: str | bytes) -> dict[str, Any]:
    """Return what must be equal everywhere of lstat(2): no directory's size, no times, no numbers."""
    info = os.lstat(path)
    found = {"mode": oct(info.st_mode), "nlink": info.st_nlink, "uid": info.st_uid, "gid": info.st_gid}
    if oct(info.st_mode)[:-4] != "0o4":
        found["size"] = info.st_size
    return found


def listing(directory: str = ".") -> list[str]:
    """Return the sorted names in a directory."""
    return sorted(os.fsencode(name).hex() if not name.isascii() else name for name in os.listdir(directory))


def renameat2(old: str, new: str, flags: int) -> None:
    """Call renameat2(2)."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def changed_times(paths: Iterable[str], action: Callable[[], Any]) -> dict[str, str]:
    """Tell which of mtime and ctime of each path the action changed (a path that is gone: "-")."""
    watched = list(paths)
    before = {path: os.lstat(path) for path in watched}
    time.sleep(_TICK)
    action()
    found = {}
    for path in watched:
        try:
            now = os.lstat(path)
        except FileNotFoundError:
            found[path] = "-"
            continue
        old = before[path]
        found[path] = "m" * (now.st_mtime_ns != old.st_mtime_ns) + "c" * (now.st_ctime_ns != old.st_ctime_ns)
        assert now.st_ctime_ns >= old.st_ctime_ns
    return found


def in_child(function: Callable[[], Any]) -> Any:
    """Return what the function returns in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.write(writer, json.dumps(function()).encode())
            code = 0
        except BaseException:  # nothing may leave the child but through `_exit`: the parent's code would run twice
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(answer)


def drop_capabilities() -> None:
    """Become a process that mode bits and owners bind, still with user and group 0. For a child only."""
    os.setgroups([])
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def main() -> int:
    """Run the scenario that the command line names."""
    name, directory = sys.argv[1:]
    function = load()[name]
    os.chdir(directory)
    os.umask(0o022)
    print(json.dumps(function(), sort_keys=True, default=bytes.hex))
    return 0


if __name__ == "__main__":
    from tests.fuse import scenario as canonical  # `__main__` would have an empty table of its own

    sys.exit(canonical.main())
