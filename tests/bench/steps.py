"""What is measured in a directory, whatever file system it is on. Each step runs in a process of its own:

    python -m tests.bench.steps STEP DIRECTORY [--size MiB] [--files N] [--seconds S]      prints one JSON object

Data is incompressible and different in every block, so neither compression nor deduplication helps; it is derived from a
seed, so a later step can compare what it reads. It is made before the clock runs. Before a read the kernel's page cache is
dropped (its name cache too, where names are measured); the file system's own caches stay warm.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the report."""

    unit: str
    text: str
    higher_is_better: bool = True


FIGURES: Final[dict[str, Figure]] = {
    "write": Figure("MB/s", "sequential 1 MiB writes"),
    "write_fsync": Figure("MB/s", "the same with fsync"),
    "read_1m": Figure("MB/s", "warm read, 1 MiB at a time"),
    "read_128k": Figure("MB/s", "warm read, 128 KiB at a time"),
    "random_read_4k": Figure("op/s", "random 4 KiB reads"),
    "random_write_4k": Figure("op/s", "random 4 KiB writes with one fsync"),
    "fsync_4k": Figure("op/s", "4 KiB appends, fsync each"),
    "create": Figure("op/s", "create, write 4 KiB, close"),
    "stat": Figure("op/s", "stat by name, names not cached"),
    "list": Figure("op/s", "readdir and stat, names not cached"),
    "read_small": Figure("op/s", "open, read, close 4 KiB files"),
    "rename": Figure("op/s", "rename"),
    "unlink": Figure("op/s", "unlink"),
    "mkdir": Figure("op/s", "mkdir"),
    "rmdir": Figure("op/s", "rmdir"),
    "ls": Figure("s", "ls -l of 10,000 files, just made", higher_is_better=False),
    "ls_warm": Figure("s", "the same again", higher_is_better=False),
    "untar": Figure("s", "unpack Python's library", higher_is_better=False),
    "grep": Figure("s", "grep -r over it", higher_is_better=False),
    "find": Figure("s", "find over it", higher_is_better=False),
    "git_commit": Figure("s", "git init, add, commit of it", higher_is_better=False),
    "git_fsck": Figure("s", "git fsck", higher_is_better=False),
    "remove": Figure("s", "rm -rf of it", higher_is_better=False),
    "sqlite_txn": Figure("op/s", "SQLite transactions, synchronous=full"),
    "sqlite_bulk": Figure("row/s", "20,000 rows in one transaction"),
}
"""What the steps report, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step works, and how much it does."""

    directory: Path
    size: int
    """MiB of the large file."""
    files: int
    seconds: float
    """How long the steps run that repeat one thing."""

    @property
    def large(self) -> Path:
        """The large file."""
        return self.directory / "large"

    @property
    def tree(self) -> Path:
        """The unpacked library."""
        return self.directory / "tree"

    def small(self, number: int, suffix: str = "") -> str:
        """Return the path of one of the many small files."""
        return f"{self.directory}/small/{number:06}{suffix}"


def block(number: int, size: int = MIB, seed: str = "large") -> bytes:
    """Return the bytes of a block: different for each number and seed."""
    return blake3(f"{seed}/{number}".encode()).digest(length=size)


def drop_kernel_caches(*files: Path) -> None:
    """Write back, then make the kernel forget pages and names (root) or at least the pages of these files."""
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except PermissionError:
        for file in files:
            forget_pages(file)


def forget_pages(file: Path) -> None:
    """Make the kernel forget the pages of one file."""
    fd = os.open(file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def rate(count: int, work: Callable[[int], object], order: list[int] | None = None) -> float:
    """Call `work` with 0..count-1 (or in `order`) and return calls per second."""
    numbers = order or list(range(count))
    start = time.perf_counter()
    for number in numbers:
        work(number)
    return count / (time.perf_counter() - start)


def shuffled(count: int) -> list[int]:
    """Return 0..count-1 in an order that is always the same."""
    numbers = list(range(count))
    random.Random(count).shuffle(numbers)
    return numbers


def seconds_of(*argv: str | Path, cwd: Path) -> float:
    """Run a program to its end and return the seconds. Raises RuntimeError when it fails."""
    start = time.perf_counter()
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, env=_environment(), check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: exit {done.returncode}: {done.stderr.decode()[-300:]}")
    return seconds


def _environment() -> dict[str, str]:
    quiet = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    return {**os.environ, **quiet}


def library_archive() -> Path:
    """Return a tar file of Python's library without what is generated; made once, beside the other temporary files."""
    source = Path(sysconfig.get_path("stdlib"))
    path = Path(os.environ.get("TMPDIR", "/tmp")) / "decloud-bench-library.tar"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        excluded = [
            f"--exclude={name}" for name in ("site-packages", "dist-packages", "__pycache__", "config-*", "lib-dynload")
        ]
        command = ["tar", "-C", str(source.parent), *excluded, "-cf", str(partial), source.name]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        partial.rename(path)
    return path


# ---- one large file -------------------------------------------------------------------------------------------------


def sequential_write(place: Place) -> dict[str, float]:
    """Write the large file in 1 MiB pieces, fsync, close."""
    blocks = [block(number) for number in range(place.size)]
    fd = os.open(place.large, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    start = time.perf_counter()
    for data in blocks:
        if os.write(fd, data) != MIB:
            raise RuntimeError("short write")
    written = time.perf_counter() - start
    os.fsync(fd)
    synced = time.perf_counter() - start
    os.close(fd)
    return {"write": place.size * MIB / 1e6 / written, "write_fsync": place.size * MIB / 1e6 / synced}


def sequential_read(place: Place) -> dict[str, float]:
    """Read the large file: once to compare it (not timed), then with two sizes of buffer.

    Warm: the kernel forgets the pages of this file, so that every byte is asked of the file system; what the file system
    itself keeps, and the kernel for it, stays.
    """
    with open(place.large, "rb", buffering=0) as file:
        for number in range(place.size):
            if file.read(MIB) != block(number):
                raise RuntimeError(f"block {number} is not what was written")
        if file.read(1):
            raise RuntimeError("the file is too long")
    figures = {}
    for name, size in (("read_1m", MIB), ("read_128k", 128 << 10)):
        forget_pages(place.large)
        figures[name] = read_through(place.large, size)
    return figures


def read_through(path: Path, size: int) -> float:
    """Return the MB/s of reading a file from end to end with a buffer of `size`."""
    buffer = bytearray(size)
    total = 0
    fd = os.open(path, os.O_RDONLY)
    start = time.perf_counter()
    while count := os.readv(fd, [buffer]):
        total += count
    seconds = time.perf_counter() - start
    os.close(fd)
    return total / 1e6 / seconds


def random_read(place: Place) -> dict[str, float]:
    """Read 4 KiB at random places of the large file and compare."""
    chooser = random.Random(5)
    pages = place.size * MIB // 4096
    known = {number: block(number) for number in range(place.size)}
    drop_kernel_caches(place.large)
    fd = os.open(place.large, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    count = 0
    start = time.perf_counter()
    while (seconds := time.perf_counter() - start) < place.seconds and count < pages:
        offset = chooser.randrange(pages) * 4096
        number, within = divmod(offset, MIB)
        if os.pread(fd, 4096, offset) != known[number][within : within + 4096]:
            raise RuntimeError(f"wrong bytes at {offset}")
        count += 1
    os.close(fd)
    return {"random_read_4k": count / seconds}


def random_write(place: Place) -> dict[str, float]:
    """Write 4 KiB at random places of the large file, then fsync once; everything is in the time."""
    chooser = random.Random(6)
    pages = place.size * MIB // 4096
    data = [block(number, 4096, "page") for number in range(256)]
    fd = os.open(place.large, os.O_WRONLY)
    count = 0
    start = time.perf_counter()
    while time.perf_counter() - start < place.seconds and count < 20_000:
        os.pwrite(fd, data[count % 256], chooser.randrange(pages) * 4096)
        count += 1
    os.fsync(fd)
    seconds = time.perf_counter() - start
    os.close(fd)
    return {"random_write_4k": count / seconds}


def appends(place: Place) -> dict[str, float]:
    """Append 4 KiB and fsync, again and again."""
    data = [block(number, 4096, "append") for number in range(256)]
    fd = os.open(place.directory / "appended", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    count = 0
    start = time.perf_counter()
    while (seconds := time.perf_counter() - start) < place.seconds and count < 20_000:
        os.write(fd, data[count % 256])
        os.fsync(fd)
        count += 1
    os.close(fd)
    return {"fsync_4k": count / seconds}


# ---- many small files -----------------------------------------------------------------------------------------------


def create(place: Place) -> dict[str, float]:
    """Create the small files, 4 KiB each."""
    (place.directory / "small").mkdir(exist_ok=True)
    data = [block(number, 4096, "small") for number in range(place.files)]

    def one(number: int) -> None:
        fd = os.open(place.small(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data[number])
        os.close(fd)

    return {"create": rate(place.files, one)}


def stat(place: Place) -> dict[str, float]:
    """Look at each file by name, then at all of them by listing the directory."""
    drop_kernel_caches()

    def one(number: int) -> None:
        if os.stat(place.small(number)).st_size != 4096:
            raise RuntimeError(f"file {number} has another size")

    figures = {"stat": rate(place.files, one, shuffled(place.files))}
    drop_kernel_caches()
    start = time.perf_counter()
    with os.scandir(place.directory / "small") as entries:
        found = sum(entry.stat(follow_symlinks=False).st_size == 4096 for entry in entries)
    figures["list"] = found / (time.perf_counter() - start)
    if found != place.files:
        raise RuntimeError(f"{found} of {place.files} files are listed")
    return figures


def read_small(place: Place) -> dict[str, float]:
    """Open, read, compare and close each file."""
    data = [block(number, 4096, "small") for number in range(place.files)]
    drop_kernel_caches()

    def one(number: int) -> None:
        fd = os.open(place.small(number), os.O_RDONLY)
        found = os.read(fd, 8192)
        os.close(fd)
        if found != data[number]:
            raise RuntimeError(f"file {number} is not what was written")

    return {"read_small": rate(place.files, one)}


def rename(place: Place) -> dict[str, float]:
    """Rename each file within its directory."""
    return {"rename": rate(place.files, lambda number: os.rename(place.small(number), place.small(number, ".new")))}


def unlink(place: Place) -> dict[str, float]:
    """Remove each file."""
    return {"unlink": rate(place.files, lambda number: os.unlink(place.small(number, ".new")))}


def directories(place: Place) -> dict[str, float]:
    """Make and remove half as many directories."""
    parent = place.directory / "directories"
    parent.mkdir()
    names = [f"{parent}/{number:06}" for number in range(place.files // 2)]
    made = rate(len(names), lambda number: os.mkdir(names[number]))
    return {"mkdir": made, "rmdir": rate(len(names), lambda number: os.rmdir(names[number]))}


def ls(place: Place) -> dict[str, float]:
    """List 10,000 files with ls -l, twice; an own number of files, because that is what the goal names."""
    parent = place.directory / "many"
    parent.mkdir()
    for number in range(10_000):
        os.close(os.open(f"{parent}/{number:06}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    drop_kernel_caches()
    figures = {name: seconds_of("ls", "-l", parent, cwd=place.directory) for name in ("ls", "ls_warm")}
    shutil.rmtree(parent)
    return figures


# ---- programs -------------------------------------------------------------------------------------------------------


def untar(place: Place) -> dict[str, float]:
    """Unpack the library."""
    archive = library_archive()
    archive.read_bytes()
    place.tree.mkdir()
    return {"untar": seconds_of("tar", "-xf", archive, "--no-same-owner", cwd=place.tree)}


def search(place: Place) -> dict[str, float]:
    """Read the tree with grep and walk it with find."""
    drop_kernel_caches()
    grep = seconds_of("sh", "-c", "grep -r no-such-words-in-here . ; test $? = 1", cwd=place.tree)
    drop_kernel_caches()
    return {"grep": grep, "find": seconds_of("find", ".", "-newer", "/proc/version", "-printf", "", cwd=place.tree)}


def git(place: Place) -> dict[str, float]:
    """Commit the tree and check the repository."""
    base = ("git", "-c", "user.name=b", "-c", "user.email=b@example.org", "-c", "gc.auto=0", "-c", "safe.directory=*")
    commands = (("init", "-q"), ("add", "-A"), ("commit", "-qm", "all"))
    commit = sum(seconds_of(*base, *command, cwd=place.tree) for command in commands)
    return {"git_commit": commit, "git_fsck": seconds_of(*base, "fsck", "--no-progress", cwd=place.tree)}


def remove(place: Place) -> dict[str, float]:
    """Remove the tree; git's objects are removed before the clock runs."""
    shutil.rmtree(place.tree / ".git", ignore_errors=True)
    return {"remove": seconds_of("rm", "-rf", "tree", cwd=place.directory)}


def sqlite(place: Place) -> dict[str, float]:
    """Transactions of one row, then one of many."""
    path = place.directory / "database"
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma journal_mode=delete")
    db.execute("pragma synchronous=full")
    db.execute("create table t(id integer primary key, data blob)")
    count = 0
    start = time.perf_counter()
    while (seconds := time.perf_counter() - start) < place.seconds:
        db.execute("insert into t(data) values(?)", (os.urandom(100),))
        count += 1
    figures = {"sqlite_txn": count / seconds}
    start = time.perf_counter()
    db.execute("begin")
    db.executemany("insert into t(data) values(?)", ((os.urandom(100),) for _ in range(20_000)))
    db.execute("commit")
    figures["sqlite_bulk"] = 20_000 / (time.perf_counter() - start)
    if db.execute("pragma integrity_check").fetchone()[0] != "ok":
        raise RuntimeError("the database is damaged")
    db.close()
    return figures


# ---- parts of the report that are not a table's step ----------------------------------------------------------------


def read_large(place: Place) -> dict[str, float]:
    """Read the large file once, with nothing warm: what the peers deliver."""
    return {"cold_read": read_through(place.large, MIB)}


def read_tree(place: Place) -> dict[str, float]:
    """Read the whole tree once, with nothing warm."""
    return {"cold_tree": seconds_of("sh", "-c", "tar -cf - . | cat > /dev/null", cwd=place.tree)}


def create_2000(place: Place) -> dict[str, float]:
    """Create 2,000 small files: a number of its own, because that is what the goal names."""
    return create(Place(place.directory, place.size, 2000, place.seconds))


def copy_in(place: Place) -> dict[str, float]:
    """Write `size` MiB that are made while writing, as a copy from elsewhere would be, and fsync."""
    start = time.perf_counter()
    with open(place.directory / "copied", "wb", buffering=0) as file:
        file.writelines(block(number, seed="copy") for number in range(place.size))
        os.fsync(file.fileno())
    return {"copy": place.size * MIB / 1e6 / (time.perf_counter() - start)}


TABLE: Final = (
    sequential_write,
    sequential_read,
    random_read,
    random_write,
    appends,
    create,
    stat,
    read_small,
    rename,
    unlink,
    directories,
    ls,
    untar,
    search,
    git,
    remove,
    sqlite,
)
"""The steps of the table, in their order; a later one may need what an earlier one left."""

WRITING: Final = frozenset(("sequential_write", "random_write", "appends", "create", "untar", "git", "sqlite"))
"""After these much is on its way to the peers; the next step waits for it, else it measures the upload as well."""

_ALL: Final = {step.__name__: step for step in (*TABLE, read_large, read_tree, create_2000, copy_in)}


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=sorted(_ALL))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", type=int, default=256, metavar="MiB")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    place = Place(arguments.directory, arguments.size, arguments.files, arguments.seconds)
    print(json.dumps({name: round(value, 4) for name, value in _ALL[arguments.step](place).items()}))


if __name__ == "__main__":
    main()
