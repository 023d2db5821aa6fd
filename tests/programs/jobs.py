"""What the tests of programs do inside a mount, each in a process of its own that may hang or be killed.

    python -m tests.programs.jobs OPERATION ARGS...        prints one JSON value

Content follows from a seed and a number, so that a checker needs no copy. Imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from typing import Any

OPERATIONS: dict[str, Callable[..., Any]] = {}


def operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let the command line call a function by its name; it gets words."""
    OPERATIONS[function.__name__] = function
    return function


def noise(seed: str, number: int, size: int) -> bytes:
    """Return incompressible bytes that depend on nothing but the arguments."""
    return random.Random(f"{seed}/{number}").randbytes(size)


def note(path: str, line: str) -> None:
    """Append a line to a file on a plain disk, and wait until it is there to stay."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.fsync(fd)
    os.close(fd)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def in_children(count: int, function: Callable[[int], Any]) -> list[Any]:
    """Call `function(i)` in forked children that all start at once; return what they returned."""
    start, go = os.pipe()
    readers, pids = [], []
    for number in range(count):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.close(go)
                os.read(start, 1)
                os.write(writer, json.dumps(function(number)).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        readers.append(reader)
        pids.append(pid)
    os.close(start)
    os.close(go)
    answers = []
    for reader, pid in zip(readers, pids, strict=True):
        with open(reader, "rb") as pipe:
            said = pipe.read()
        assert os.waitpid(pid, 0)[1] == 0, "a child failed"
        answers.append(json.loads(said))
    return answers


# ---- SQLite ------------------------------------------------------------------------------------------------------------
@operation
def database_make(path: str, mode: str) -> str:
    """Make the database of `database_write`."""
    db = sqlite3.connect(path, isolation_level=None)
    found = db.execute(f"pragma journal_mode={mode}").fetchone()[0]
    db.execute("create table total(writer integer primary key, n integer)")
    db.execute("create table part(writer integer, number integer, part integer, data blob)")
    db.execute("create unique index by_number on part(writer, number, part)")
    db.close()
    return found


@operation
def database_write(path: str, writer: str, noted: str) -> dict[str, Any]:
    """Commit transactions of three rows and a changed one, note each, until the file system fails or we are killed.

    One in ten is rolled back; one in five also replaces rows of an older one, so that pages are freed and used again.
    """
    db = sqlite3.connect(path, isolation_level=None, timeout=60)
    db.execute("pragma synchronous=full")
    removal_commits = db.execute("pragma journal_mode").fetchone()[0] == "delete"
    row = db.execute("select n from total where writer=?", (writer,)).fetchone()
    number = row[0] if row else 0
    while True:
        try:
            db.execute("begin immediate")
            if number % 10 == 9:
                db.execute("delete from part where writer=?", (writer,))
                db.execute("rollback")
                db.execute("begin immediate")
            for part in range(3):
                data = noise(f"db{writer}/{part}", number, random.Random(number).choice([10, 500, 9000]))
                db.execute("insert into part values(?, ?, ?, ?)", (writer, number, part, data))
            if number % 5 == 4:
                older = number // 2
                db.execute("delete from part where writer=? and number=?", (writer, older))
                for part in range(3):
                    data = noise(f"db{writer}/{part}", older, 700)
                    db.execute("insert into part values(?, ?, ?, ?)", (writer, older, part, data))
            db.execute("insert or replace into total values(?, ?)", (writer, number + 1))
            db.execute("commit")
            if removal_commits:
                # It is the journal's removal that commits, and FULL does not sync the directory. EXTRA does, but takes it
                # for done when the directory cannot be opened, as when the mount has died since: SQLite's unixDelete.
                sync_directory(os.path.dirname(path))
        except (sqlite3.Error, OSError) as exc:
            return {"number": number, "error": str(exc)}
        number += 1
        note(noted, str(number))


@operation
def database_check(path: str, writers: str, *noted: str) -> dict[str, Any]:
    """Return what is wrong: integrity, transactions that were acknowledged and are gone, or are there by half."""
    wrong: list[str] = []
    db = sqlite3.connect(path, isolation_level=None, timeout=60)
    integrity = [row[0] for row in db.execute("pragma integrity_check")]
    counts = []
    for writer, file in zip(range(int(writers)), noted, strict=True):
        acknowledged = 0
        if os.path.exists(file):
            with open(file) as lines:
                acknowledged = int((["0", *lines.read().split()])[-1])
        row = db.execute("select n from total where writer=?", (writer,)).fetchone()
        there = row[0] if row else 0
        counts.append(there)
        if not acknowledged <= there <= acknowledged + 1:
            wrong.append(f"writer {writer}: {there} transactions, {acknowledged} acknowledged")
        replaced = {number // 2 for number in range(there) if number % 5 == 4}
        rows = db.execute(
            "select number, part, data from part where writer=? order by number, part", (writer,)
        ).fetchall()
        if [(number, part) for number, part, _ in rows] != [(n, part) for n in range(there) for part in range(3)]:
            wrong.append(f"writer {writer}: {len(rows)} rows for {there} transactions")
        for number, part, data in rows:
            size = 700 if number in replaced else random.Random(number).choice([10, 500, 9000])
            if data != noise(f"db{writer}/{part}", number, size):
                wrong.append(f"writer {writer}: content of {number}/{part}")
    db.close()
    return {"integrity": integrity, "wrong": wrong[:5], "counts": counts}


# ---- git ---------------------------------------------------------------------------------------------------------------
GIT = ("git", "-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "gc.auto=0", "-c", "safe.directory=*",
       "-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync")  # fmt: skip


def git(where: str, *args: str) -> str:
    """Run git; raises CalledProcessError."""
    return subprocess.run([*GIT, "-C", where, *args], check=True, capture_output=True, text=True).stdout


def git_content(number: int) -> dict[str, bytes]:
    """Return the files that commit `number` writes."""
    return {
        f"dir-{number % 7}/file-{number}": noise("git", number, 300 + number * 97 % 5000),
        "changing": noise("git-changing", number, 20_000),
        "text": b"".join(b"line %d\n" % (line + number * (line % 3)) for line in range(400)),
    }


@operation
def git_commit_forever(repository: str, noted: str, first: str) -> dict[str, Any]:
    """Commit, and pack everything after each fourth, until the mount is gone. Notes each commit that is there to stay."""
    number = int(first)
    try:
        while True:
            for name, data in git_content(number).items():
                path = os.path.join(repository, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(data)
            git(repository, "add", "-A")
            git(repository, "commit", "-q", "-m", f"number {number}")
            for directory in (".git", ".git/refs/heads"):  # git renames its files into place and syncs no directory
                sync_directory(os.path.join(repository, directory))
            note(noted, f"{number} {git(repository, 'rev-parse', 'HEAD').strip()}")
            number += 1
            if number % 4 == 0:
                note(noted, "gc")
                git(repository, "gc", "-q", "--prune=now")
    except (OSError, subprocess.CalledProcessError) as exc:
        return {"number": number, "error": str(exc)}


@operation
def git_check(repository: str, noted: str) -> dict[str, Any]:
    """Return what is wrong with a repository whose mount died; restores its working tree and returns the next number."""
    wrong: list[str] = []
    with open(noted) as file:
        lines = [line.split() for line in file.read().splitlines()]
    commits = {int(words[0]): words[1] for words in lines if words[0] != "gc"}
    for directory, _, names in os.walk(os.path.join(repository, ".git")):
        for name in names:
            if name.endswith(".lock") or name in ("gc.pid", "packed-refs.new"):
                os.unlink(os.path.join(directory, name))  # what a person does after any crash
    fsck = subprocess.run(
        [*GIT, "-C", repository, "fsck", "--full", "--strict"], capture_output=True, text=True, check=False
    )
    complaints = [
        line for line in (fsck.stdout + fsck.stderr).splitlines() if not line.startswith(("dangling", "notice"))
    ]
    if fsck.returncode or complaints:
        wrong.append(f"fsck {fsck.returncode}: {complaints[:3]}")
    known = git(repository, "rev-list", "HEAD").split()
    wrong += [f"commit {number} is gone" for number, name in commits.items() if name not in known]
    git(repository, "reset", "-q", "--hard")
    if status := git(repository, "status", "--porcelain"):
        # Files of a commit that did not get through are there as untracked ones.
        git(repository, "clean", "-fdq")
        if status := "".join(line for line in status.splitlines() if not line.startswith("??")):
            wrong.append(f"status: {status[:200]}")
    last = int(git(repository, "log", "-1", "--format=%s").split()[1])
    if last not in (max(commits), max(commits) + 1):
        wrong.append(f"HEAD is number {last}, {max(commits)} was the last one acknowledged")
    for name, data in git_content(last).items():
        with open(os.path.join(repository, name), "rb") as file:
            if file.read() != data:
                wrong.append(f"content of {name}")
    return {"wrong": wrong[:5], "next": last + 1, "commits": len(known)}


# ---- trees -------------------------------------------------------------------------------------------------------------
@operation
def make_odd_tree(root: str) -> int:
    """Make a tree of everything that copies get wrong. All its times are set, to the nanosecond, directories' too."""
    os.mkdir(root)
    base = os.fsencode(root)
    names = os.path.join(base, b"names")
    os.mkdir(names)
    # Fault 145: every byte but "/" and NUL, the longest name, and two spellings of one letter that must stay two names.
    odd = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    odd += [
        b"x" * 255,
        b"\xff" * 255,
        "\u00e9".encode(),
        "e\u0301".encode(),
        b".hidden",
        b"-rf",
        b" ",
        b"a\nb",
        b"*",
        b"...",
    ]
    for number, name in enumerate(odd):
        with open(os.path.join(names, b"n" + name if len(name) == 1 and name != b" " else name), "wb") as file:
            file.write(noise("name", number, number * 13 % 3000))
    deep = os.path.join(base, b"/".join(b"level%d" % level for level in range(40)))
    os.makedirs(deep)
    kinds = os.path.join(base, b"kinds")
    os.mkdir(kinds)
    os.chdir(kinds)
    for number, size in enumerate((0, 1, 2048, 2049, 4096, 65536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000)):
        with open(f"size-{size}", "wb") as file:
            file.write(noise("size", number, size))
    os.link("size-1", "linked once")
    os.link("size-4096", "../linked from above")
    os.symlink("nowhere", "dangling")
    os.symlink("size-1", "relative")
    os.symlink("/" + "long/" * 800 + "end", "long link")
    os.link("dangling", "hard link to a symbolic one", follow_symlinks=False)
    os.symlink(b"\xff\xfe", b"link of bytes")
    os.mkfifo("pipe", 0o620)
    os.mknod("null", 0o20666, os.makedev(1, 3))
    os.mknod("block", 0o60640, os.makedev(259, 300_000))
    for mode in (0o000, 0o4755, 0o2755, 0o1644, 0o6711, 0o7777, 0o444):
        with open(f"mode-{mode:o}", "wb") as file:
            file.write(b"mode")
        os.chown(f"mode-{mode:o}", mode, 65534)
        os.chmod(f"mode-{mode:o}", mode)
        os.mkdir(f"dir-{mode:o}")
        os.chmod(f"dir-{mode:o}", mode)
    for name, size, islands in (("hole", 5 << 20, ()), ("islands", 9 << 20, (0, 4096, 3 << 20, (9 << 20) - 5))):
        with open(name, "wb") as file:
            file.truncate(size)
            for island in islands:
                file.seek(island)
                file.write(b"here")
                file.truncate(size)
    for number in range(20):
        os.setxattr("size-2048", f"user.attribute {number}", noise("xattr", number, number * 7))
    os.setxattr("size-0", "user.large", noise("xattr", 99, 2000))
    os.setxattr("size-0", "user.empty", b"")
    os.setxattr("size-0", "trusted.secret", b"only root")
    os.setxattr("size-0", b"user.\xff\xfe", b"bytes")
    os.setxattr(".", "user.directory", b"value")
    os.setxattr("dangling", "trusted.of-a-link", b"value", follow_symlinks=False)
    chooser, count = random.Random("times"), 0
    for directory, _, files in os.walk(base, topdown=False):
        for name in [*files, b"."]:
            path = os.path.join(directory, name)
            mtime = chooser.choice(
                [0, 1, 999_999_999, chooser.randrange(1 << 60), -chooser.randrange(1 << 60), (1 << 33) * 10**9]
            )
            os.utime(path, ns=(chooser.randrange(1 << 60), mtime), follow_symlinks=False)
            count += 1
    for name in ("dangling", "relative", "long link"):
        os.utime(name, ns=(5, 123_456_789), follow_symlinks=False)
    return count


@operation
def describe_tree(root: str) -> list[Any]:
    """Return all that can be told about every file below `root`, but inode numbers, ctime, atime and directories' sizes."""
    rows, groups = [], {}
    base = os.fsencode(root)
    for directory, names, files in os.walk(base):
        for name in sorted([*names, *files, *([b"."] if directory == base else [])]):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind = status.st_mode >> 12
            shown = os.path.relpath(path, base).hex()
            row: list[Any] = [
                shown,
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_nlink,
                status.st_mtime_ns,
            ]
            row.append(
                {
                    key: os.getxattr(path, key, follow_symlinks=False).hex()
                    for key in sorted(os.listxattr(path, follow_symlinks=False))
                }
            )
            if kind == 0o12:
                row.append(os.readlink(path).hex())
            elif kind in (0o2, 0o6):
                row.append(status.st_rdev)
            elif kind == 0o10:
                with open(path, "rb") as file:
                    row += [status.st_size, hashlib.file_digest(file, "sha256").hexdigest()]
            if kind != 0o4 and status.st_nlink > 1:
                groups.setdefault(status.st_ino, []).append(shown)
            rows.append(row)
    return [*sorted(rows), *sorted(sorted(group) for group in groups.values())]


@operation
def store_times_and_names(directory: str) -> list[Any]:
    """Make names that only bytes tell apart, and return them as a listing gives them, with what they hold."""
    place = os.path.join(os.fsencode(directory), b"spellings")
    os.mkdir(place)
    spellings = [
        "\u00e9",
        "e\u0301",
        "\u212b",
        "\u00c5",
        "A\u030a",
        "\ufb01",
        "fi",
        "I",
        "i",
        "\u0131",
        "\u0130",
        "\ud55c",
        "\u1112\u1161\u11ab",
    ]
    for number, name in enumerate(spellings):
        fd = os.open(os.path.join(place, name.encode()), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, b"%d" % number)
        os.close(fd)
    found = []
    for name in sorted(os.listdir(place)):
        with open(os.path.join(place, name), "rb") as file:
            found.append([name.hex(), file.read().decode()])
    try:
        os.close(os.open(os.path.join(place, b"y" * 256), os.O_CREAT | os.O_WRONLY))
    except OSError as exc:
        found.append(exc.errno)
    return found


# ---- many processes on the same files ------------------------------------------------------------------------------------
@operation
def mapped(directory: str) -> dict[str, Any]:
    """Fault 149: shared maps, seen from other processes, through read and write, and when the file is cut."""
    path = os.path.join(directory, "mapped")
    page = mmap.PAGESIZE
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.truncate(fd, 64 * page)
    found: dict[str, Any] = {}
    with mmap.mmap(fd, 64 * page) as view:

        def other(number: int) -> list[Any]:
            with mmap.mmap(fd, 64 * page) as own:
                for index in range(number, 64, 4):
                    own[index * page : index * page + 4] = b"%04d" % index
                own.flush()
            return []

        in_children(4, other)
        found["map sees other maps"] = [bytes(view[index * page : index * page + 4]).decode() for index in range(64)]
        found["read sees maps"] = [os.pread(fd, 4, index * page).decode() for index in range(64)]
        os.pwrite(fd, b"written", 3 * page + 100)
        found["map sees write"] = bytes(view[3 * page + 100 : 3 * page + 107]).decode()
        view[5 * page + 7 : 5 * page + 13] = b"mapped"
        found["read sees map without msync"] = os.pread(fd, 6, 5 * page + 7).decode()
        with mmap.mmap(fd, 64 * page, access=mmap.ACCESS_COPY) as private:
            private[0:7] = b"private"
        found["private map changes nothing"] = os.pread(fd, 4, 0).decode()

        def beyond(number: int) -> list[Any]:
            """Touch what lies behind the end; the last page's rest is zeros, behind it is SIGBUS."""
            os.truncate(fd, 9 * page + 10)
            said = [bytes(view[9 * page + 10 : 9 * page + 20]).hex()]
            pid = os.fork()
            if not pid:
                signal.signal(signal.SIGBUS, signal.SIG_DFL)
                os._exit(view[10 * page])
            status = os.waitpid(pid, 0)[1]
            return [*said, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS]

        found["cut"] = in_children(1, beyond)
        os.truncate(fd, 64 * page)
        found["what was cut is zeros"] = [
            bytes(view[20 * page : 20 * page + 4]).hex(),
            os.pread(fd, 4, 9 * page + 8).hex(),
        ]
        view[40 * page : 40 * page + 5] = b"again"
        view.flush(40 * page, page)
        view[41 * page : 41 * page + 8] = b"no msync"
    os.close(fd)  # the map is gone without msync: close writes nothing back, the page stays dirty
    with open(path, "rb") as file:
        found["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@operation
def digest(path: str) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@operation
def appended(directory: str, processes: str, count: str) -> dict[str, Any]:
    """Fault 150: lines that several processes append with O_APPEND are all there, none torn, each process' in order."""
    path = os.path.join(directory, "log")

    def append(number: int) -> int:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for line in range(int(count)):
            os.write(fd, b"%d %d %s\n" % (number, line, b"x" * (line * 37 % 300)))
            if line % 50 == 0:
                os.fsync(fd)
        os.close(fd)
        return int(count)

    total = sum(in_children(int(processes), append))
    following = [0] * int(processes)
    wrong = 0
    with open(path, "rb") as file:
        lines = file.read().splitlines()
    for text in lines:
        words = text.split(b" ")
        number, line = int(words[0]), int(words[1])
        wrong += following[number] != line or words[2] != b"x" * (line * 37 % 300)
        following[number] = line + 1
    return {"lines": len(lines), "written": total, "wrong": wrong}


@operation
def exclusive(directory: str, processes: str, count: str) -> dict[str, Any]:
    """Fault 150: of several processes that make the same names with O_EXCL, mkdir, link or rename, one wins each time."""

    def make(number: int) -> dict[str, list[int]]:
        won: dict[str, list[int]] = {"open": [], "mkdir": [], "link": [], "truncate": []}
        own = os.path.join(directory, f"own-{number}")
        os.close(os.open(own, os.O_CREAT | os.O_WRONLY))
        for index in range(int(count)):
            for kind, names in won.items():
                path = os.path.join(directory, f"{kind}-{index}")
                try:
                    if kind == "open":
                        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_WRONLY)
                        os.write(fd, b"%d" % number)
                        os.close(fd)
                    elif kind == "mkdir":
                        os.mkdir(path)
                    elif kind == "link":
                        os.link(own, path)
                    else:  # not exclusive: each may make or cut it, and all write the same
                        fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
                        os.write(fd, b"same for all")
                        os.close(fd)
                    names.append(index)
                except FileExistsError:
                    continue
        return won

    answers = in_children(int(processes), make)
    wrong = 0
    for kind in ("open", "mkdir", "link"):
        winners: list[int] = sorted(index for answer in answers for index in answer[kind])
        wrong += winners != list(range(int(count)))
    for number, answer in enumerate(answers):
        for index in answer["open"]:
            with open(os.path.join(directory, f"open-{index}")) as file:
                wrong += file.read() != str(number)
        wrong += os.stat(os.path.join(directory, f"own-{number}")).st_nlink != 1 + len(answer["link"])
    for index in range(int(count)):
        with open(os.path.join(directory, f"truncate-{index}")) as file:
            wrong += file.read() != "same for all"
    return {"wrong": wrong, "names": len(os.listdir(directory))}


@operation
def far_away(directory: str) -> list[Any]:
    """Fault 150: a write at 2^40, holes around it, and a size that no file can have."""
    path = os.path.join(directory, "far")
    far = 1 << 40
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    found: list[Any] = [os.pwrite(fd, b"here", far)]
    os.fsync(fd)
    found += [os.fstat(fd).st_size - far, os.fstat(fd).st_blocks < 100, os.pread(fd, 10, far - 3).hex()]
    found += [os.pread(fd, 8, far >> 1).hex(), os.pread(fd, 4, 0).hex(), os.pread(fd, 4, far + 4).hex()]
    for offset in ((1 << 63) - 1, (1 << 63) - 4096):
        try:
            os.pwrite(fd, b"xxxx", offset)
            os.fsync(fd)  # a FUSE file system cannot tell the kernel its limit: refused when the page is written out
        except OSError as exc:
            found.append(errno.errorcode[exc.errno])
    ctypes.CDLL(None).syncfs(fd)  # the kernel tells such an error to the next syncfs of the mount too: this one
    os.truncate(fd, far // 2)
    found.append(os.pread(fd, 4, far // 2 - 2).hex())
    os.truncate(fd, far + 4)
    found.append(os.pread(fd, 4, far).hex())
    os.close(fd)
    return found


@operation
def counted(directory: str, kind: str, processes: str, count: str) -> dict[str, Any]:
    """Fault 151: increments of a number in a file under a lock are all counted."""
    path = os.path.join(directory, f"count-{kind}")
    with open(path, "w") as file:
        file.write("0".rjust(20))

    def add(number: int) -> int:
        fd = os.open(path, os.O_RDWR)
        for _ in range(int(count)):
            if kind == "flock":
                fcntl.flock(fd, fcntl.LOCK_EX)
            else:
                fcntl.lockf(fd, fcntl.LOCK_EX, 20, 0)
            value = int(os.pread(fd, 20, 0))
            os.pwrite(fd, str(value + 1).rjust(20).encode(), 0)
            if kind == "flock":
                fcntl.flock(fd, fcntl.LOCK_UN)
            else:
                fcntl.lockf(fd, fcntl.LOCK_UN, 20, 0)
        os.close(fd)
        return 0

    in_children(int(processes), add)
    with open(path) as file:
        return {"counted": int(file.read())}


@operation
def locked(directory: str) -> dict[str, Any]:
    """Fault 151: who is kept out by which lock, and that a lock ends with its process or descriptor."""
    path = os.path.join(directory, "lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, bytes(1000))

    def tries(number: int) -> dict[str, Any]:
        own = os.open(path, os.O_RDWR)
        said: dict[str, Any] = {}
        for name, lock in {
            "flock shared": lambda: fcntl.flock(own, fcntl.LOCK_SH | fcntl.LOCK_NB),
            "flock exclusive": lambda: fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB),
            "range read": lambda: fcntl.lockf(own, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 100),
            "range write": lambda: fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 100),
            "other range": lambda: fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 500),
        }.items():
            try:
                lock()
                said[name] = "got"
            except OSError as exc:
                said[name] = errno.errorcode[exc.errno]
        os.close(own)
        return said

    found: dict[str, Any] = {"free": in_children(1, tries)}
    fcntl.flock(fd, fcntl.LOCK_SH)
    fcntl.lockf(fd, fcntl.LOCK_SH, 50, 80)
    found["shared"] = in_children(1, tries)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_EX, 50, 80)
    found["exclusive"] = in_children(1, tries)
    os.close(os.open(path, os.O_RDONLY))  # the old rule of POSIX: any close ends this process' range locks
    found["another descriptor closed"] = in_children(1, tries)
    os.close(fd)
    found["closed"] = in_children(1, tries)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        mine = os.open(path, os.O_RDWR)
        fcntl.flock(mine, fcntl.LOCK_EX)
        fcntl.lockf(mine, fcntl.LOCK_EX)
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    found["held by a child"] = in_children(1, tries)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    found["child killed"] = in_children(1, tries)
    return found


@operation
def write_many(directory: str, processes: str, size: str) -> int:
    """Fault 152: many writers at once, each with a file of its own, every third with fsync."""

    def write(number: int) -> int:
        fd = os.open(os.path.join(directory, f"w{number}"), os.O_WRONLY | os.O_CREAT, 0o644)
        data = noise("many", number, int(size) + number)
        for offset in range(0, len(data), 30_011):
            os.write(fd, data[offset : offset + 30_011])
        if number % 3 == 0:
            os.fsync(fd)
        os.close(fd)
        return len(data)

    return sum(in_children(int(processes), write))


@operation
def check_many(directory: str, processes: str, size: str) -> list[int]:
    """Return which of the files of `write_many` are wrong."""
    wrong = []
    for number in range(int(processes)):
        with open(os.path.join(directory, f"w{number}"), "rb") as file:
            if file.read() != noise("many", number, int(size) + number):
                wrong.append(number)
    return wrong


@operation
def write_unsynced(directory: str, count: str) -> int:
    """Write files without any fsync, then call syncfs(2) and sync(2)."""
    for number in range(int(count)):
        with open(os.path.join(directory, f"w{number}"), "wb") as file:
            file.write(noise("many", number, 50_000 + number))
    fd = os.open(directory, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")
    os.close(fd)
    os.sync()
    return int(count)


def main() -> None:
    """Run one operation."""
    name, *arguments = sys.argv[1:]
    print(json.dumps(OPERATIONS[name](*arguments)))


if __name__ == "__main__":
    main()
