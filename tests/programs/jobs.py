"""What the tests of programs do inside a mount, each in a process of its own that may hang or be killed.

    python -m tests.programs.jobs OPERATION ARGS...        prints one JSON value

Content follows from a seed and a number, so that a checker needs no copy. Imports nothing of the project.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
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
        except sqlite3.Error as exc:
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
                fd = os.open(os.path.join(repository, directory), os.O_RDONLY | os.O_DIRECTORY)
                os.fsync(fd)
                os.close(fd)
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
            if name.endswith(".lock") or name == "gc.pid":
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
    os.mknod("socket", 0o140755)
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


def main() -> None:
    """Run one operation."""
    name, *arguments = sys.argv[1:]
    print(json.dumps(OPERATIONS[name](*arguments)))


if __name__ == "__main__":
    main()
