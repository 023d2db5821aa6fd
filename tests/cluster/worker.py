"""What the tests do inside a mount, in a process of its own that may be killed when it hangs.

    python -m tests.cluster.worker OPERATION ARGS...        prints one JSON value

Content is derived from a seed and a number, so that a checker needs no copy. Imports nothing of the project.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import json
import os
import random
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20


def content(seed: str, number: int, size: int) -> bytes:
    """Return incompressible bytes that depend on nothing but the arguments."""
    return random.Random(f"{seed}/{number}").randbytes(size)


def sizes(seed: str, number: int) -> int:
    """Return the size of file `number`: mostly small, some above a chunk, every kind of border."""
    chooser = random.Random(f"size/{seed}/{number}")
    return chooser.choice([0, 1, 100, 2048, 2049, 4096, 16384, 16385, 100_000, 262_144, MIB, MIB + 1, 3 * MIB - 7])


def _write_file(path: Path, data: bytes, *, sync: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view[: 128 << 10]) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def load(directory: Path, manifest: Path, seed: str) -> dict[str, Any]:
    """Write until the mount dies: fsynced files, replaced files, files never synced.

    A line goes to `manifest` (on a plain file system, synced) only after the fsyncs of file and directory returned.
    """
    directory.mkdir(exist_ok=True)
    acked = 0
    with open(manifest, "ab", buffering=0) as log:
        number = 0
        while True:
            try:
                size = sizes(seed, number)
                _write_file(directory / f"synced-{number:06}", content(seed, number, size), sync=True)
                if number % 3 == 0:
                    _write_file(directory / "current.new", content(seed + "/current", number, 70_000), sync=True)
                    os.rename(directory / "current.new", directory / "current")
                _sync_directory(directory)
                _write_file(directory / f"loose-{number:06}", content(seed + "/loose", number, 300_000), sync=False)
            except OSError as exc:
                return {"acked": acked, "errno": errno.errorcode.get(exc.errno or 0, str(exc.errno))}
            log.write(json.dumps({"number": number, "size": size}).encode() + b"\n")
            os.fdatasync(log.fileno())
            acked += 1
            number += 1


def check(directory: Path, manifest: Path, seed: str) -> dict[str, Any]:
    """Compare what is there with the manifest. Returns the lists of what is missing, wrong or mixed."""
    lines = [json.loads(line) for line in manifest.read_bytes().splitlines()]
    problems: dict[str, list[str]] = {"missing": [], "wrong": [], "mixed": [], "errors": []}
    for line in lines:
        path = directory / f"synced-{line['number']:06}"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            problems["missing"].append(path.name)
        except OSError as exc:
            problems["errors"].append(f"{path.name}: {exc.strerror}")
        else:
            if data != content(seed, line["number"], line["size"]):
                problems["wrong"].append(f"{path.name}: {len(data)} of {line['size']} bytes")
    last = max((line["number"] for line in lines if line["number"] % 3 == 0), default=None)
    if last is not None:
        current = (directory / "current").read_bytes()
        versions = range(last, last + 7, 3)
        if all(current != content(seed + "/current", number, 70_000) for number in versions):
            problems["wrong"].append("current is none of the versions it may be")
    for path in sorted(directory.glob("loose-*")):
        number = int(path.name.partition("-")[2])
        try:
            data = path.read_bytes()
        except OSError as exc:
            problems["errors"].append(f"{path.name}: {exc.strerror}")
            continue
        wanted = content(seed + "/loose", number, 300_000)
        for offset in range(0, len(data), 4096):
            block = data[offset : offset + 4096]
            if block != wanted[offset : offset + 4096] and any(block):
                problems["mixed"].append(f"{path.name} at {offset}")
                break
    return {"acked": len(lines), **problems}


def read_at(path: Path, *offsets: str) -> list[dict[str, Any]]:
    """Read 64 KiB at each offset, all at once; report SHA-256 or errno, and the seconds it took."""

    def one(offset: int) -> dict[str, Any]:
        start = time.monotonic()
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(fd, 64 << 10, offset)
            finally:
                os.close(fd)
            answer: dict[str, Any] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        except OSError as exc:
            answer = {"errno": errno.errorcode.get(exc.errno or 0, str(exc.errno))}
        return {"offset": offset, "seconds": time.monotonic() - start, **answer}

    with concurrent.futures.ThreadPoolExecutor(len(offsets)) as pool:
        return list(pool.map(one, map(int, offsets)))


def write_and_sync(path: Path, size: str, seed: str) -> dict[str, Any]:
    """Write one file with fsync and read it back; report the seconds."""
    start = time.monotonic()
    data = content(seed, 0, int(size))
    _write_file(path, data, sync=True)
    _sync_directory(path.parent)
    return {"seconds": time.monotonic() - start, "same": path.read_bytes() == data}


def fill(path: Path, limit: str) -> dict[str, Any]:
    """Write until an error or `limit` bytes; report the errno of write or fsync and the bytes written."""
    written = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    name = ""
    try:
        while written < int(limit):
            written += os.write(fd, os.urandom(MIB))
            if written % (8 * MIB) == 0:
                os.fsync(fd)
        os.fsync(fd)
    except OSError as exc:
        name = errno.errorcode.get(exc.errno or 0, str(exc.errno))
    try:
        os.close(fd)
    except OSError as exc:
        name = name or errno.errorcode.get(exc.errno or 0, str(exc.errno))
    return {"errno": name, "written": written}


def database(path: Path, mode: str) -> dict[str, Any]:
    """Exercise SQLite: transactions, a rollback, an index, a vacuum, a second connection; return a dump's digest."""
    db = sqlite3.connect(path, isolation_level=None)
    journal = db.execute(f"pragma journal_mode={mode}").fetchone()[0]
    db.execute("pragma synchronous=full")
    db.execute("create table t(id integer primary key, name text, data blob)")
    chooser = random.Random("database")
    for batch in range(20):
        db.execute("begin immediate")
        rows = ((f"name {batch}/{i}", chooser.randbytes(chooser.randrange(3000))) for i in range(50))
        db.executemany("insert into t(name, data) values(?, ?)", rows)
        db.execute("rollback" if batch % 5 == 4 else "commit")
    db.execute("create index by_name on t(name)")
    db.execute("delete from t where id % 3 = 0")
    other = sqlite3.connect(path, isolation_level=None, timeout=5)
    other.execute("update t set name = name || '!' where id % 7 = 0")
    other.close()
    db.execute("vacuum")
    integrity = db.execute("pragma integrity_check").fetchone()[0]
    digest = hashlib.sha256("\n".join(db.iterdump()).encode()).hexdigest()
    count = db.execute("select count(*) from t").fetchone()[0]
    db.close()
    return {"journal": journal, "integrity": integrity, "digest": digest, "count": count}


def editor(directory: Path) -> dict[str, Any]:
    """Save a file as vim does: swap file, backup by rename, new file, fsync, remove; and as others do: rename over.

    A reader that had the old version open goes on reading the old version.
    """
    path = directory / "letter.txt"
    versions = [f"version {i}\n".encode() * (i * 1000 + 1) for i in range(6)]
    _write_file(path, versions[0], sync=False)
    os.chmod(path, 0o640)
    seen = []
    for i, data in enumerate(versions[1:]):
        reader = os.open(path, os.O_RDONLY)
        swap = os.open(directory / ".letter.txt.swp", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(swap, data[:4096])
        os.fsync(swap)
        mode = os.stat(path).st_mode & 0o7777
        if i % 2 == 0:
            backup = directory / "letter.txt~"
            os.rename(path, backup)
            _write_file(path, data, sync=True)
            os.chmod(path, mode)
            os.unlink(backup)
        else:
            _write_file(directory / "letter.new", data, sync=True)
            os.chmod(directory / "letter.new", mode)
            os.rename(directory / "letter.new", path)
        os.close(swap)
        os.unlink(directory / ".letter.txt.swp")
        old = b""
        while block := os.read(reader, 1 << 16):
            old += block
        os.close(reader)
        seen.append(old == versions[i] and path.read_bytes() == data)
    return {
        "all_right": all(seen),
        "names": sorted(os.listdir(directory)),
        "mode": oct(os.stat(path).st_mode),
        "links": os.stat(path).st_nlink,
    }


def listing(root: Path) -> list[list[Any]]:
    """Return path, type, mode, owner, size, links, mtime, target and digest of everything below `root`.

    A directory's size and time are the file system's own affair and left out; so is the time of what a program just made.
    """
    rows: list[list[Any]] = []
    for directory, names, files in os.walk(root):
        for name in sorted(names + files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind = oct(status.st_mode)
            row: list[Any] = [os.path.relpath(path, root), kind, status.st_uid, status.st_gid]
            if os.path.islink(path):
                row.append(os.readlink(path))
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    row += [status.st_size, status.st_nlink, hashlib.file_digest(file, "sha256").hexdigest()]
            rows.append(row)
    return sorted(rows)


def unreadable(root: Path) -> list[list[Any]]:
    """Read something of every MiB of every file below `root`; return path and bytes of those that fail with EIO.

    Files that fail in another way, and directories that cannot be listed, are errors.
    """

    def fail(error: OSError) -> None:
        raise error

    found: list[list[Any]] = []
    for directory, _names, files in os.walk(root, onerror=fail):
        for name in files:
            path = os.path.join(directory, name)
            if os.path.islink(path):
                continue
            lost, size = 0, os.stat(path).st_size
            fd = os.open(path, os.O_RDONLY)
            try:
                for offset in range(0, size, MIB):
                    try:
                        os.pread(fd, 1, offset)
                    except OSError as exc:
                        if exc.errno != errno.EIO:
                            raise
                        lost += min(MIB, size - offset)
            finally:
                os.close(fd)
            if lost:
                found.append([os.path.relpath(path, root), lost])
    return sorted(found)


def times(root: Path) -> list[list[Any]]:
    """Return path and modification time in nanoseconds of every file, link and directory below `root`."""
    found = []
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            found.append([os.path.relpath(path, root), os.lstat(path).st_mtime_ns])
    return sorted(found)


def xattrs(root: Path) -> list[list[str]]:
    """Return path, name and value (hexadecimal) of every user attribute of the files directly in `root`."""
    found = []
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name)
        for key in sorted(os.listxattr(path, follow_symlinks=False)):
            if key.startswith("user."):
                found.append([name, key, os.getxattr(path, key, follow_symlinks=False).hex()])
    return found


OPERATIONS = {
    function.__name__: function
    for function in (load, check, read_at, write_and_sync, fill, database, editor, listing, times, xattrs, unreadable)
}


def main() -> None:
    """Run one operation; the first argument is always a path."""
    name, first, *rest = sys.argv[1:]
    arguments: list[Any] = [Path(first), *rest]
    if name in ("load", "check"):
        arguments[1] = Path(arguments[1])
    print(json.dumps(OPERATIONS[name](*arguments)))


if __name__ == "__main__":
    main()
