"""A whole network of its own for a test or a benchmark: `decloud up` in a temporary home, and everything around it.

`Network` drives the programs only through their command line and kills them only by process id. It guarantees three things:
nothing waits longer than a stated deadline; the calling process never touches the mount (a hung handler would put it into
unkillable sleep), all accesses are made by children; and when it is closed, or its process dies in any way, no mount, no
process and no file is left (`cleanup` runs a guardian for that). Blocking; for one thread.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from tests.cluster import cleanup

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[2]
DECLOUD: Final = Path(sys.executable).with_name("decloud")
COMMAND_DEADLINE: Final = 60.0
"""For a command or an access that has no reason to take long; the machine may be busy."""
PEERS: Final = 6
K, N = 2, 6
"""Redundancy of an embedded network with six peers (design.md, Data)."""
_UNEXPECTED: Final = re.compile(r"^.*unexpected error in .*(?:\n(?!\d{4}-).*)*", re.MULTILINE)
"""How every driver logs an exception that nobody expected (`driver.supervisor`), with where it came from."""


class Hung(AssertionError):
    """Something did not answer within its deadline; the mount was aborted."""


class CommandFailed(AssertionError):
    """A program ended with another exit code than expected."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended."""

    args: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float

    def json(self) -> Any:
        """Return standard output as one JSON value."""
        try:
            return json.loads(self.out)
        except ValueError as exc:
            raise AssertionError(f"{' '.join(self.args)}: not JSON: {self.out[:500]!r}") from exc

    def json_lines(self) -> list[Any]:
        """Return standard output as one JSON value per line."""
        return [json.loads(line) for line in self.out.splitlines() if line.strip()]

    def describe(self) -> str:
        """Return everything a failed assertion should show."""
        shown = f"{' '.join(self.args)}: exit {self.code} after {self.seconds:.1f} s"
        return f"{shown}\n--- stdout\n{self.out[-3000:]}\n--- stderr\n{self.err[-3000:]}"


@dataclass(frozen=True, slots=True)
class Status:
    """`decloud status --json`, read by name so that a missing key is a clear failure."""

    raw: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        if key not in self.raw:
            raise AssertionError(f"`decloud status --json` has no {key!r}; it has {sorted(self.raw)}")
        return self.raw[key]

    def bytes(self, level: str) -> int:
        """Return the bytes that are `dirty`, `staged`, `stored` or `anchored`."""
        return int(self[level]["bytes"])

    def entries(self, level: str) -> int:
        """Return the entries that are `dirty`, `staged`, `stored` or `anchored`."""
        return int(self[level]["entries"])

    @property
    def peers(self) -> list[Mapping[str, Any]]:
        """All peers of the volume."""
        return list(self["peers"])

    def local_peers(self) -> list[Mapping[str, Any]]:
        """The peers that run on this machine, in a stable order."""
        return sorted((peer for peer in self.peers if peer.get("pid")), key=lambda peer: str(peer["id"]))

    def pids(self) -> list[int]:
        """Process ids of every daemon of the network."""
        pids = [self["driver_pid"], self["agent_pid"], self["ledger_pid"], *(peer.get("pid") for peer in self.peers)]
        return [int(pid) for pid in pids if pid and int(pid) > 0]


@dataclass
class Network:
    """One embedded network with one volume, and a mount point."""

    peers: int = PEERS
    base: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="decloud-test-")))
    extra_environment: Mapping[str, str] = field(default_factory=dict)
    has_bugs: bool = False
    """Its drivers are given bugs: unexpected errors in their logs do not make the test fail."""

    def __post_init__(self) -> None:
        self.base.chmod(0o755)
        self.home = self.base / "home"
        self.mountpoint = self.base / "mnt"
        self.mountpoint.mkdir()
        self.work = self.base / "work"
        self.work.mkdir()
        self._guardian = cleanup.start_guardian(self.base)
        self._volume = ""
        self._started: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("FSDECLOUD_", "XDG_", "GIT_"))
            },
            "PATH": f"{DECLOUD.parent}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}",
            "HOME": str(self.work),
            "TMPDIR": str(self.work),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            cleanup.TAG: str(self.base),
            **self.extra_environment,
        }

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        errors = self.unexpected_errors()
        left = self.close()
        if kind is None and left:
            raise AssertionError("`decloud down` left behind: " + "; ".join(left))
        if kind is None and errors and not self.has_bugs:
            raise AssertionError("unexpected errors in the logs:\n" + "\n".join(errors))

    # ---- programs -----------------------------------------------------------------------------------------------
    def run(
        self,
        *args: str | Path,
        deadline: float = COMMAND_DEADLINE,
        cwd: Path | None = None,
        text: str = "",
        check: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a program that may touch the mount. Raises CommandFailed (if `check`) or, past its deadline, Hung.

        Output goes to files: a pipe that a daemon inherited would never end. The directory is changed by env(1) in the
        child: subprocess' own `cwd` makes the parent wait for a chdir into a hung mount.
        """
        argv = tuple(str(arg) for arg in args)
        full = ("env", "-C", str(cwd), *argv) if cwd is not None else argv
        start = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as stdin:
            stdin.write(text.encode())
            stdin.seek(0)
            process = subprocess.Popen(
                full,
                stdin=stdin,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**self.environment, **(environment or {})},
                cwd=self.work,
            )
            hung = False
            try:
                process.wait(deadline)
            except subprocess.TimeoutExpired:
                hung = True
            except BaseException:  # interrupted or failed, no process may stay
                self._end(process)
                raise
            if hung:
                state = self._explain_hang(process)
                self._end(process)
            out.seek(0)
            err.seek(0)
            result = Result(
                argv,
                process.returncode if process.returncode is not None else -1,
                out.read().decode(errors="replace"),
                err.read().decode(errors="replace"),
                time.monotonic() - start,
            )
        if hung:
            raise Hung(f"no end within {deadline:g} s ({state}): {result.describe()}{self.logs()}")
        if check and result.code != 0:
            raise CommandFailed(result.describe() + self.logs())
        return result

    def start(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program beside the test; `wait_for_exit` or closing the network ends it."""
        argv = tuple(str(arg) for arg in args)
        full = ("env", "-C", str(cwd), *argv) if cwd is not None else argv
        with open(log or os.devnull, "ab") as output:
            process = subprocess.Popen(
                full,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**self.environment, **(environment or {})},
                cwd=self.work,
            )
        self._started.append(process)
        return process

    def wait_for_exit(self, process: subprocess.Popen[bytes], deadline: float, what: str) -> int:
        """Return the exit code of a started program. Raises Hung past the deadline."""
        try:
            return process.wait(deadline)
        except subprocess.TimeoutExpired:
            state = self._explain_hang(process)
            self._end(process)
            raise Hung(f"{what} did not end within {deadline:g} s ({state}){self.logs()}") from None

    def worker(self, operation: str, *args: str | Path, deadline: float = COMMAND_DEADLINE) -> Any:
        """Run an operation of `tests.cluster.worker` in a child and return its JSON answer."""
        return self.run(sys.executable, "-m", "tests.cluster.worker", operation, *args, deadline=deadline).json()

    def _explain_hang(self, process: subprocess.Popen[bytes]) -> str:
        """Say where each thread of a program, and of the mount that it may wait for, waits in the kernel."""
        mount = [p for p in self.processes() if re.search(r"fsdecloud\.(fuse|agent)", cleanup.command_line(p))]
        lines = []
        for pid in dict.fromkeys([process.pid, *cleanup.descendants(process.pid), *mount]):
            for thread in Path(f"/proc/{pid}/task").glob("*"):
                try:
                    name, wait = ((thread / file).read_text().strip() for file in ("comm", "wchan"))
                    lines.append(f"{name} {pid} waits in {wait or '?'}")
                except OSError:
                    continue
        return ", ".join(lines)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End a child that may sit in a request to the mount: abort the mount first, else nothing can kill it."""
        children = [process.pid, *cleanup.descendants(process.pid)]
        for pid in children:
            cleanup.send_signal(pid, signal.SIGKILL)
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            cleanup.abort_mounts(self.base)
            process.wait(10)

    # ---- the command line ---------------------------------------------------------------------------------------
    def decloud(
        self,
        *args: str | Path,
        deadline: float = COMMAND_DEADLINE,
        text: str = "",
        check: bool = True,
        home: Path | None = None,
    ) -> Result:
        """Run `decloud ARGS` in this network's home (or another)."""
        environment = {"FSDECLOUD_HOME": str(home or self.home)}
        return self.run(DECLOUD, *args, deadline=deadline, text=text, check=check, environment=environment)

    def start_decloud(self, *args: str | Path, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start `decloud ARGS` in this network's home beside the test."""
        return self.start(DECLOUD, *args, log=log, environment={"FSDECLOUD_HOME": str(self.home)})

    def up(self, deadline: float = 90.0) -> Status:
        """Start what is not running, mount, and return the status once the mount answers."""
        self.decloud("up", self.mountpoint, "--peers", str(self.peers), "--detach", deadline=deadline)
        return self.status()

    def down(self, deadline: float = 60.0) -> Result:
        """Unmount and stop everything."""
        return self.decloud("down", deadline=deadline)

    def status(self) -> Status:
        """Return what `decloud status --json` says about the mount; its exit code says pending (3) or degraded (4)."""
        result = self.decloud("status", self.mountpoint, "--json", deadline=30, check=False)
        if result.code not in (0, 3, 4):
            raise CommandFailed(result.describe() + self.logs())
        return Status(result.json())

    def sync(self, wait: str, deadline: float = 120.0) -> Result:
        """Wait until everything written so far is `stored` or `anchored`."""
        return self.decloud("sync", self.mountpoint, "--wait", wait, deadline=deadline)

    @property
    def volume(self) -> str:
        """The volume's name."""
        if not self._volume:
            self._volume = str(self.status()["volume"])
        return self._volume

    def umount(self, deadline: float = 60.0) -> None:
        """Unmount cleanly and wait until driver and agent have ended."""
        status = self.status()
        self._volume = str(status["volume"])
        self.decloud("umount", self.mountpoint, deadline=deadline)
        pids = [int(status["driver_pid"]), int(status["agent_pid"] or 0)]
        self.wait_until(
            lambda: not any(pid and cleanup.is_alive(pid) for pid in pids), 30, "driver and agent end after the unmount"
        )

    def mount(self, deadline: float = 60.0) -> Status:
        """Mount the volume again."""
        self.decloud("mount", self.volume, self.mountpoint, deadline=deadline)
        return self.status()

    @property
    def is_mounted(self) -> bool:
        """Whether anything is mounted at the mount point, alive or dead; the mount is not touched."""
        return any(mount.directory == str(self.mountpoint) for mount in cleanup.mounts_below(self.base))

    def remount(self, *options: str) -> None:
        """Mount the volume with these options, after unmounting it."""
        if self.is_mounted:
            self.umount()
        self.decloud("mount", self.volume, self.mountpoint, *(("-o", ",".join(options)) if options else ()))

    @contextmanager
    def mounted_with(self, *options: str) -> Iterator[None]:
        """Mount the volume with these options for a while; after a failure it is not mounted, or dead: `up` mends both."""
        self.remount(*options)
        try:
            yield
        except BaseException:  # whatever it is, no mount may stay
            self.decloud("umount", self.mountpoint, check=False)
            raise
        self.remount()

    def drop_cache(self) -> Status:
        """Unmount, delete the local cache, mount: what is read now comes from the peers."""
        self.umount()
        return self.drop_cache_of_unmounted()

    def drop_cache_of_unmounted(self) -> Status:
        """Delete the local cache and mount."""
        remove_tree(self.home / "cache")
        return self.mount()

    def ledger_url(self) -> str:
        """Return the address under which another machine finds this network's ledger daemon."""
        url = str(self.decloud("ledger", "status", "--json").json()["url"])
        assert url.startswith("wss://"), url
        return url

    # ---- processes ----------------------------------------------------------------------------------------------
    def processes(self) -> list[int]:
        """Return all daemons of this network, whoever started them: those that carry its tag in their environment."""
        return cleanup.tagged_processes(self.base)

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill one process of this network and wait until it is gone. Refuses any other process."""
        assert pid in self.processes(), f"{pid} is no process of this network"
        cleanup.send_signal(pid, number)
        self.wait_until(lambda: not cleanup.is_alive(pid), 20, f"process {pid} ends")

    def drivers(self) -> list[int]:
        """Return the processes that are a driver of this network."""
        return [pid for pid in self.processes() if "fsdecloud.fuse" in cleanup.command_line(pid)]

    def kill_driver(self) -> None:
        """End the driver and its agent at once, as a crash would; the mount is dead afterwards."""
        status = self.status()
        pids = [pid for pid in (status["driver_pid"], status["agent_pid"]) if pid and pid in self.processes()]
        for pid in pids:
            cleanup.send_signal(pid, signal.SIGKILL)
        self.wait_until(lambda: not any(map(cleanup.is_alive, pids)), 20, "driver and agent end")

    def peer_store(self, peer: Mapping[str, Any]) -> Path:
        """Return the state directory of a local peer, found by the pid in its lock file."""
        for lock in sorted((self.home / "run").glob("peer-*.lock")):
            if lock.read_text().strip() == str(peer["pid"]):
                return self.home / "state" / "peers" / lock.stem.removeprefix("peer-")
        raise AssertionError(f"no lock file of a peer holds pid {peer['pid']}")

    def shard_files(self, peer: Mapping[str, Any]) -> list[Path]:
        """Return the segment files of a local peer's store: its bulk files that are not LMDB's."""
        files = [path for path in sorted(self.peer_store(peer).rglob("*")) if path.is_file()]
        return [path for path in files if path.suffix != ".mdb" and path.stat().st_size > 64 << 10]

    # ---- files --------------------------------------------------------------------------------------------------
    def digest(self, name: str | Path) -> str:
        """Return the digest of a file in the mount."""
        return self.run("sh", "-c", 'sha256sum < "$1"', "sh", self.mountpoint / name).out

    def mount_ext4(self, name: str, size: int, *options: str) -> Path:
        """Mount a new ext4 of `size` bytes in a loop file, with options for mkfs, and return where; umount(8) ends it."""
        image, directory = self.base / f"{name}.img", self.base / name
        directory.mkdir()
        with open(image, "wb") as file:
            file.truncate(size)
        self.run("mkfs.ext4", "-q", *options, image)
        self.run("mount", "-o", "loop", image, directory)
        return directory

    # ---- waiting ------------------------------------------------------------------------------------------------
    def wait_until(
        self, ready: Callable[[], T], deadline: float, what: str | Callable[[], str], *, every: float = 0.1
    ) -> T:
        """Return the first true value of `ready`, asked every so many seconds, of a long wait more and more rarely: most ask by
        starting a program. Raises Hung past the deadline.

        `what` is a function where the failure is to show how things are then.
        """
        start = time.monotonic()
        while True:
            value = ready()
            if value:
                return value
            waited = time.monotonic() - start
            if waited > deadline:
                told = what if isinstance(what, str) else what()
                raise Hung(f"not within {deadline:g} s: {told} (last: {value!r}){self.logs()}")
            time.sleep(max(every, min(waited / 8, 1.0)))

    def wait_status(self, ready: Callable[[Status], bool], deadline: float, what: str) -> Status:
        """Return the first status for which `ready` is true."""

        def probe() -> Status | None:
            status = self.status()
            return status if ready(status) else None

        found = self.wait_until(probe, deadline, what)
        assert found is not None
        return found

    # ---- the end ------------------------------------------------------------------------------------------------
    def logs(self, lines: int = 15) -> str:
        """Return the last lines of every daemon's log, for a failure message."""
        parts = []
        for path in sorted((self.home / "state" / "log").glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append(f"\n--- {path.name}\n" + "\n".join(tail))
        return "".join(parts)

    def unexpected_errors(self) -> list[str]:
        """Return what every daemon so far, dead or alive, logged of exceptions that nobody expected."""
        logs = sorted((self.home / "state" / "log").glob("*.log"))
        return [line for path in logs for line in _UNEXPECTED.findall(path.read_text(errors="replace"))]

    def stop_programs(self) -> list[str]:
        """Stop everything that was started for the network; return what went wrong."""
        try:
            result = self.decloud("down", check=False)
        except Hung as exc:
            return [str(exc)]
        return [f"down: {result.describe()}"] if result.code != 0 else []

    def close(self) -> list[str]:
        """Stop everything, remove everything, and return what `decloud down` had left behind."""
        left: list[str] = []
        if self.home.exists():
            left += self.stop_programs()
            end = time.monotonic() + 5
            while time.monotonic() < end and (self.processes() or cleanup.mounts_below(self.base)):
                time.sleep(0.1)
            left += [f"process {pid} ({cleanup.command_line(pid)})" for pid in self.processes()]
            left += [f"mount {mount.directory}" for mount in cleanup.mounts_below(self.base)]
        cleanup.stop_guardian(self._guardian)
        for process in self._started:
            process.wait(10)
        return left


def remove_tree(path: Path) -> None:
    """Delete a directory of ours outside any mount."""
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=True, timeout=60)


def tree_digest(*roots: Path, skip: Iterable[str] = ()) -> dict[str, bytes]:
    """Return path -> content of all small regular files and path -> size of others: to see whether anything changed.

    Only for directories outside the mount. Names in `skip` (logs, sockets, lock files) are left out.
    """
    skipped = set(skip)
    found: dict[str, bytes] = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_symlink() or not path.is_file() or skipped & set(path.relative_to(root).parts):
                continue
            size = path.stat().st_size
            found[str(path)] = path.read_bytes() if size <= 1 << 20 else b"%d bytes" % size
    return found


def diff_trees(network: Network, one: Path, other: Path, deadline: float = 180.0) -> None:
    """Fail unless `diff -r --no-dereference` finds the two trees equal."""
    result = network.run("diff", "-r", "--no-dereference", one, other, deadline=deadline, check=False)
    assert result.code == 0, result.describe() + network.logs()


def run_all(network: Network, commands: Sequence[Sequence[str | Path]], cwd: Path | None = None) -> None:
    """Run several programs, one after the other."""
    for command in commands:
        network.run(*command, cwd=cwd)
