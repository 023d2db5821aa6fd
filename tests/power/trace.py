"""What a program did to the files of one directory, as a list of events, taken down by strace(1).

`record` runs a program under strace and returns its events in the order in which the system calls ended. A system call
that overlaps with others (threads) has a Begin event of its own, so that a sync never counts for a write that ended after
it began. The program announces its progress by writing lines to the file named by its last argument: a Note each.

The trace is complete or refused: a shared writable mapping of a file in the directory (other than LMDB's lock table) or a
call that copies data within the kernel raises Incomplete, and the tests compare the rebuilt files with the real ones.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_CALLS = (
    "openat,open,creat,close,dup,dup2,dup3,pwrite64,pwritev,pwritev2,write,writev,ftruncate,truncate,fallocate,fdatasync,fsync,"
    "lseek,syncfs,sync,msync,rename,renameat,renameat2,unlink,unlinkat,link,linkat,mkdir,mkdirat,rmdir,mmap,sendfile,"
    "copy_file_range,splice,ioctl"
)
_RWF_DSYNC, _RWF_SYNC = 2, 4
_COPIES = ("sendfile", "copy_file_range", "splice", "truncate", "sync")


class Incomplete(Exception):
    """The program changes files in a way that the trace does not show."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A call that overlaps with others begins; its event follows with the same number."""

    call: int


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes or size of a file: kind "write" (data at offset), "size" (cut or extended to offset), "grow" (at least)."""

    call: int
    file: int
    kind: str
    offset: int
    data: bytes = b""
    is_durable: bool = False
    """Written through O_DSYNC: on the disk when the call ends."""


@dataclass(frozen=True, slots=True)
class Rename:
    """Names that change together: path -> file, None for a name that ends."""

    call: int
    names: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync or fdatasync of a file, or of the directory `path`."""

    call: int
    file: int
    path: str


@dataclass(frozen=True, slots=True)
class Note:
    """A line that the program wrote about its progress."""

    text: str


Event = Begin | Change | Rename | Sync | Note

DIRECTORY = 0
"""The file number of every directory."""


def record(module: str, root: Path, *arguments: str) -> list[Event]:
    """Run `python -m module root arguments... notes` and return what it did below `root`, which must be empty or missing."""
    notes, output = root.with_name(root.name + ".notes"), root.with_name(root.name + ".trace")
    notes.touch()
    program = [sys.executable, "-m", module, str(root), *arguments, str(notes)]
    command = ["strace", "-f", "--seccomp-bpf", "-v", "-xx", "-s", "100000000", "-e", "signal=none", "-e"]
    result = subprocess.run(
        [*command, f"trace={_CALLS}", "-o", str(output), *program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{program} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    try:
        return list(_Parser(root, notes).parse(output))
    finally:
        output.unlink()


_LINE = re.compile(rb"(\d+) +(.*)")
_STRING = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"')
_CALL = re.compile(rb"(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(.*)", re.DOTALL)


def _bytes(text: bytes) -> bytes:
    return bytes.fromhex(text.replace(b"\\x", b"").decode())


class _Parser:
    def __init__(self, root: Path, notes: Path) -> None:
        self._root = str(root)
        self._notes = str(notes)
        self._names: dict[str, int] = {}
        self._fds: dict[int, tuple[str, int, bool]] = {}
        """Descriptor -> path it was opened by, file number, whether each write is synced."""
        self._files = DIRECTORY
        self._sizes: dict[int, int] = {}
        self._offsets: dict[int, int] = {}
        self._calls = 0

    def parse(self, output: Path) -> Iterator[Event]:
        open_calls: dict[bytes, tuple[int, bytes]] = {}
        with output.open("rb") as lines:
            for line in lines:
                match = _LINE.match(line)
                assert match is not None, line[:200]
                thread, text = match[1], match[2]
                if text.startswith((b"+++", b"---")):
                    continue
                if text.endswith(b"<unfinished ...>"):
                    self._calls += 1
                    open_calls[thread] = self._calls, text[: -len(b"<unfinished ...>")]
                    yield Begin(self._calls)
                    continue
                if text.startswith(b"<... "):
                    number, start = open_calls.pop(thread)
                    text = start + text[text.index(b" resumed>") + len(b" resumed>") :]
                else:
                    self._calls += 1
                    number = self._calls
                found = _CALL.match(text)
                assert found is not None, text[:200]
                if found[3] == b"?" or found[3].startswith(b"-"):
                    continue  # it failed
                result = int(found[3], 0)
                yield from self._translate(number, found[1].decode(), found[2], result)

    def _translate(self, number: int, name: str, arguments: bytes, result: int) -> Iterator[Event]:
        strings = [_bytes(text) for text in _STRING.findall(arguments)]
        plain = [part.strip() for part in _STRING.sub(b"S", arguments).split(b",")]
        if name in ("openat", "open", "creat"):
            yield from self._open(number, os.fsdecode(strings[0]), plain, result)
        elif name in ("dup", "dup2", "dup3"):
            if int(plain[0]) in self._fds:
                self._fds[result] = self._fds[int(plain[0])]
        elif name == "close":
            self._fds.pop(int(plain[0]), None)
        elif name in (
            "rename",
            "renameat",
            "renameat2",
            "unlink",
            "unlinkat",
            "link",
            "linkat",
            "mkdir",
            "mkdirat",
            "rmdir",
        ):
            yield from self._rename(number, name, [os.fsdecode(text) for text in strings])
        elif name == "mmap":
            fd = int(plain[4])
            path = (
                self._fds[fd][0] if fd in self._fds and b"PROT_WRITE" in plain[2] and b"MAP_SHARED" in plain[3] else ""
            )
            if path and not path.endswith("/lock.mdb"):
                raise Incomplete(f"{path} is mapped for writing")
        elif int(plain[0]) in self._fds if plain[0].isdigit() else False:
            yield from self._on_file(number, name, int(plain[0]), plain, strings, result)
        elif name in _COPIES and any(int(text) in self._fds for text in plain if text.isdigit()):
            raise Incomplete(name)

    def _open(self, number: int, path: str, plain: Sequence[bytes], result: int) -> Iterator[Event]:
        path = os.path.normpath(path)
        self._fds.pop(result, None)
        if path == self._notes:
            self._fds[result] = path, -1, False
        if path != self._root and not path.startswith(self._root + "/"):
            return
        flags = plain[2]
        if b"O_DIRECTORY" in flags or path == self._root or self._names.get(path) == DIRECTORY:
            self._fds[result] = path, DIRECTORY, False
            return
        file = self._names.get(path)
        if file is None:
            self._files += 1
            file = self._names[path] = self._files
            self._sizes[file] = 0
            yield Rename(number, ((path, file),))
        self._fds[result] = path, file, b"O_DSYNC" in flags or b"O_SYNC" in flags
        self._offsets[result] = 0
        if b"O_APPEND" in flags:
            raise Incomplete(f"{path} is opened for appending")
        if b"O_TRUNC" in flags and self._sizes[file]:
            self._sizes[file] = 0
            yield Change(number, file, "size", 0)

    def _rename(self, number: int, name: str, paths: list[str]) -> Iterator[Event]:
        paths = [os.path.normpath(path) for path in paths]
        inside = [path.startswith(self._root + "/") for path in paths]
        if not any(inside):
            return
        if not all(inside):
            raise Incomplete(f"{name} {paths}")
        if name.startswith("mkdir"):
            changed: list[tuple[str, int | None]] = [(paths[0], DIRECTORY)]
        elif name.startswith(("unlink", "rmdir")):
            changed = [(paths[0], None)]
        elif name.startswith("link"):
            changed = [(paths[1], self._names[paths[0]])]
        else:
            changed = [(paths[0], None), (paths[1], self._names[paths[0]])]
        for path, file in changed:
            if file is None:
                del self._names[path]
            else:
                self._names[path] = file
        yield Rename(number, tuple(changed))

    def _on_file(
        self, number: int, name: str, fd: int, plain: Sequence[bytes], strings: list[bytes], result: int
    ) -> Iterator[Event]:
        path, file, is_durable = self._fds[fd]
        if file < 0:
            if name in ("write", "pwrite64"):
                for line in strings[0].splitlines():
                    yield Note(line.decode())
            return
        if name in ("fsync", "fdatasync"):
            yield Sync(number, file, path)
        elif name in ("pwrite64", "pwritev", "pwritev2", "write", "writev"):
            data = b"".join(strings)[:result]
            if name in ("write", "writev"):
                offset = self._offsets[fd]
                self._offsets[fd] += result
            elif name == "pwritev2":
                offset = int(plain[-2])
                flags = plain[-1]
                is_durable = (
                    is_durable or b"SYNC" in flags or (flags.isdigit() and bool(int(flags) & (_RWF_DSYNC | _RWF_SYNC)))
                )
            else:
                offset = int(plain[-1])
            self._sizes[file] = max(self._sizes[file], offset + result)
            yield Change(number, file, "write", offset, data, is_durable)
        elif name == "lseek":
            self._offsets[fd] = result
        elif name == "ftruncate":
            self._sizes[file] = int(plain[1])
            yield Change(number, file, "size", int(plain[1]))
        elif name == "fallocate":
            if plain[1] not in (b"0", b"FALLOC_FL_KEEP_SIZE"):
                raise Incomplete(f"fallocate with {plain[1].decode()}")
            if plain[1] == b"0":
                end = int(plain[2]) + int(plain[3])
                self._sizes[file] = max(self._sizes[file], end)
                yield Change(number, file, "grow", end)
        elif name in ("syncfs", "msync", *_COPIES):
            raise Incomplete(f"{name} of {path}")
