"""How the cases of this suite are written, run and counted.

A *group* is a function that checks one aspect of one system call with many small cases; it is registered by `@group` and gets
a `Place`: an empty directory, its working directory, on one of the targets. Every check counts as a case and failures are
collected by name, so that one pytest test holds hundreds of cases. Groups run in a process of their own for each target
(`runner`); pytest never touches the mount. The targets are a plain ext4 and the mount: what a case expects, it expects of both,
except for what stands in `differences.TABLE`.
"""

from __future__ import annotations

import itertools
import json
import os
import stat as stat_module
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import pytest

from tests.posix import differences
from tests.posix.calls import Caller, Child, Errno, kind_of
from tests.posix.differences import OK

T = TypeVar("T")

KINDS: Final = ("file", "dir", "fifo", "symlink", "socket", "char", "block")
PLAIN: Final = tuple(kind for kind in KINDS if kind != "dir")
"""What unlink removes."""
SOLID: Final = tuple(kind for kind in KINDS if kind != "symlink")
"""What has a mode of its own."""
TICK: Final = 0.012
"""Longer than the kernel's coarse clock, from which a file system may take its times."""
TARGETS: Final = ("ext4", "decloud")
ALICE, BOB, STAFF, GUESTS = 10001, 10002, 10003, 10004
"""Users (their own groups have the same numbers) and two more groups."""


GROUPS: Final[dict[str, dict[str, Callable[[Place], None]]]] = {}
LONG: Final[set[tuple[str, str]]] = set()
MATRICES: Final[set[tuple[str, str]]] = set()


def group(function: Callable[[Place], None]) -> Callable[[Place], None]:
    """Register a group of cases under its function's name."""
    GROUPS.setdefault(function.__module__, {})[function.__name__] = function
    return function


def long_group(function: Callable[[Place], None]) -> Callable[[Place], None]:
    """Register a group that only `make test-long` runs."""
    LONG.add((function.__module__, function.__name__))
    return group(function)


def matrix(function: Callable[[Place], None]) -> Callable[[Place], None]:
    """Register a group that `make test-long` runs a second time with all that `Place.some` leaves out."""
    MATRICES.add((function.__module__, function.__name__))
    return group(function)


def also_as_user(function: Callable[[Place], None]) -> Callable[[Place], None]:
    """Register a group a second time, as NAME_as_user: its own process, "root" to its cases, is then Alice's."""

    def as_user(place: Place) -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            place.checks, place.failures = 0, []
            try:
                os.setgroups([STAFF])
                os.setresgid(ALICE, ALICE, ALICE)
                os.setresuid(ALICE, ALICE, ALICE)
                place.root.name = "alice's process"
                function(place)
            except BaseException as exc:  # one group's failure must not hide the others
                place.checks += 1
                place.failures.append(f"the group ended early: {exc!r} at {_line(exc)}")
            finally:
                with open(writer, "w") as file:
                    json.dump([place.checks, place.failures], file)
                os._exit(0)
        os.close(writer)
        with open(reader) as file:
            checks, failures = json.load(file)
        os.waitpid(pid, 0)
        place.checks += checks
        place.failures += failures

    GROUPS.setdefault(function.__module__, {})[f"{function.__name__}_as_user"] = as_user
    return function


def conformance(module: str) -> Callable[..., None]:
    """Return the pytest function for a module's groups, on every target."""
    cases = []
    for name in GROUPS[module]:
        for target in TARGETS:
            long = (module, name) in LONG
            cases.append(pytest.param(target, name, long, id=f"{name}-{target}", marks=[pytest.mark.long] * long))
            if (module, name) in MATRICES:
                cases.append(pytest.param(target, name, True, id=f"{name}-thorough-{target}", marks=pytest.mark.long))

    @pytest.mark.fuse
    @pytest.mark.parametrize(("target", "name", "thorough"), cases)
    def test(posix: Any, target: str, name: str, thorough: bool) -> None:
        posix.run(target, module, name, thorough=thorough)

    return test


@dataclass
class Place:
    """Where a group runs: `self.base` is an empty directory on the target and the working directory."""

    target: str
    base: str
    """Absolute path of the group's directory."""
    readonly: str
    """The same directory through a read-only mount."""
    elsewhere: str
    """A directory on another file system."""
    thorough: bool = False
    callers: dict[tuple[int, ...], Child] = field(default_factory=dict)
    checks: int = 0
    failures: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _context: list[str] = field(default_factory=list)
    root: Caller = field(default_factory=Caller)

    # ---- who -----------------------------------------------------------------------------------------------------
    def user(self, uid: int, gid: int = -1, *groups: int) -> Child:
        """Return a process of this user; his own group if none is given."""
        key = (uid, uid if gid == -1 else gid, *groups)
        if key not in self.callers:
            self.callers[key] = Child(key[0], key[1], key[2:])
        return self.callers[key]

    @property
    def alice(self) -> Child:
        return self.user(ALICE, ALICE, STAFF)

    @property
    def bob(self) -> Child:
        return self.user(BOB, BOB, GUESTS)

    def some(self, values: Sequence[T], count: int) -> Sequence[T]:
        """Return all values in the long form, else about `count` of them, evenly spread, the first and the last included."""
        if self.thorough or len(values) <= count:
            return values
        if count == 1:
            return values[-1:]
        return [values[index * (len(values) - 1) // (count - 1)] for index in range(count)]

    # ---- what ----------------------------------------------------------------------------------------------------
    def name(self, prefix: str = "n") -> str:
        """Return a name that was not used in this group."""
        return f"{prefix}{next(self._numbers)}"

    def make(
        self, kind: str = "file", mode: int | None = None, owner: tuple[int, int] | None = None, path: str = ""
    ) -> str:
        """Make a file of this kind as root (modes 0644 and 0755 if not given) and return its name.

        Besides the KINDS: "empty" and "full" directories, symlinks "dangling", "todir" and "tofile", a file with a "twin",
        and "missing", which makes nothing.
        """
        path = path or self.name(kind[0])
        real = {"empty": "dir", "full": "dir", "dangling": "symlink", "todir": "symlink", "twin": "file"}.get(
            kind, kind
        )
        if kind == "missing":
            return path
        if real == "file":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            if kind == "twin":
                os.link(path, path + ".twin")
        elif real == "dir":
            os.mkdir(path, 0o755)
            if kind == "full":
                os.mknod(path + "/inside", stat_module.S_IFREG | 0o644)
        elif kind == "todir":
            os.mkdir(path + ".target")
            os.symlink(os.path.basename(path) + ".target", path)
        elif kind == "tofile":
            os.mknod(path + ".target", stat_module.S_IFREG | 0o644)
            os.symlink(os.path.basename(path) + ".target", path)
        elif real == "symlink":
            os.symlink("no-such-target", path)
        else:
            types = {
                "fifo": stat_module.S_IFIFO,
                "socket": stat_module.S_IFSOCK,
                "char": stat_module.S_IFCHR,
                "block": stat_module.S_IFBLK,
            }
            os.mknod(path, types[kind] | 0o644, os.makedev(250, 77) if kind in ("char", "block") else 0)
        if owner is not None:
            os.lchown(path, *owner)
        if mode is not None and real != "symlink" and kind not in ("todir", "tofile"):
            os.chmod(path, mode)
        return path

    def directory(self, mode: int = 0o755, owner: tuple[int, int] | None = None) -> str:
        """Make a directory."""
        return self.make("dir", mode, owner)

    # ---- checks --------------------------------------------------------------------------------------------------
    @contextmanager
    def case(self, *context: Any) -> Iterator[None]:
        """Name the checks within; an unexpected error there is a failure of this case, and the group goes on."""
        self._context.append(" ".join(map(str, context)))
        try:
            yield
        except Exception as exc:  # as above: counted, and the next check goes on
            self.checks += 1
            self._fail(f"unexpected {exc!r} at line {_line(exc)}")
        finally:
            self._context.pop()

    def _fail(self, message: str) -> None:
        self.failures.append(": ".join([*self._context, message]))

    def equal(self, what: str, got: Any, want: Any) -> bool:
        """Check one value."""
        self.checks += 1
        if isinstance(want, differences.Difference):
            want = want.ext4 if self.target == "ext4" else want.decloud
        if want is OK:
            good = not isinstance(got, Errno)
        elif isinstance(want, set) and not isinstance(got, set):
            good = got in want
        else:
            good = got == want
        if not good:
            self._fail(f"{what}: {_short(got)}, not {_short(want)}")
        return good

    def want(self, expected: Any, who: Caller, call: str, *args: Any) -> Any:
        """Make a call and check that it returns what is expected: a value, an errno's name, OK, or one of a set."""
        got = who.make(call, args)
        shown = ", ".join(_short(arg) for arg in args)
        self.equal(f"{who.name} {call}({shown})", got, expected)
        return got

    def shape(self, path: str, **want: Any) -> None:
        """Check fields of lstat: mode (permission bits), kind, uid, gid, nlink, size, ..."""
        info = self.root.lstat(path)
        if isinstance(info, Errno):
            self.equal(f"lstat({path})", info, want)
            return
        found = info | {"kind": kind_of(info["mode"]), "mode": info["mode"] & 0o7777}
        got = {key: found[key] for key in want}
        self.equal(f"lstat({path})", _octal(got), _octal(want))

    def kinds(self, path: str) -> str:
        """Return the kind of file at a path, or "missing"."""
        info = self.root.lstat(path)
        return "missing" if isinstance(info, Errno) else kind_of(info["mode"])

    def times(self) -> Times:
        """Return a table of cases about which times a call changes."""
        return Times(self)


def _octal(values: dict[str, Any]) -> dict[str, Any]:
    return {key: oct(value) if key == "mode" else value for key, value in values.items()}


def _short(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0o100 <= value <= 0o7777:
        return f"{value:#o}"
    text = repr(value)
    return text if len(text) < 100 else f"{text[:60]}...({len(text)})"


def _line(exc: BaseException) -> str:
    lines = []
    trace = exc.__traceback__
    while trace is not None:
        lines.append(f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " < ".join(reversed(lines))


@dataclass
class Times:
    """Cases about times, run together so that the clock needs to tick only once."""

    place: Place
    cases: list[tuple[str, Callable[[], Any], dict[Any, Any], Any]] = field(default_factory=list)

    def case(self, label: str, action: Callable[[], Any], changed: dict[Any, Any], result: Any = OK) -> None:
        """Note: `action` changes exactly these of atime, mtime, ctime ("a", "m", "c") of each path ((old, new) if it moves)."""
        self.cases.append((label, action, changed, result))

    def run(self) -> None:
        """Look at all paths, wait, run all actions, look again."""
        before = {}
        for label, _action, changed, _result in self.cases:
            for path in changed:
                before[label, path] = os.lstat(path[0] if isinstance(path, tuple) else path)
        start = time.time_ns()
        while time.time_ns() - start < TICK * 1e9:
            time.sleep(TICK)
        for label, action, changed, result in self.cases:
            with self.place.case(label):
                got = action()
                self.place.equal("result", got, result)
                for path, want in changed.items():
                    old = before[label, path]
                    info = os.lstat(path[1] if isinstance(path, tuple) else path)
                    found = "".join(
                        key for key in "amc" if getattr(info, f"st_{key}time_ns") != getattr(old, f"st_{key}time_ns")
                    )
                    self.place.equal(f"times of {path} changed", found, want)
                    for key in found:
                        if getattr(info, f"st_{key}time_ns") < start - 10_000_000 and key == "c":
                            self.place._fail(f"{key}time of {path} is in the past")
        self.cases.clear()
