"""How a test network disappears without a trace, whatever became of it.

Everything of a network lives below one directory, and every process that it starts carries that directory's path in the
environment variable TAG; so its mounts, processes and files can be found without having been remembered. A guardian process
waits for its standard input to end, which it does when the test process ends, however that happens, and then cleans up:

    python -m tests.cluster.cleanup BASE

Imports nothing of the project, so that it works whatever is broken there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TAG: Final = "DECLOUD_TEST_BASE"
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    directory: str
    kind: str
    minor: int


def _mounts() -> list[Mount]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        directory = fields[4].encode().decode("unicode_escape")
        found.append(Mount(directory, right.split(" ")[0], int(fields[2].split(":")[1])))
    return found


def mounts_below(base: Path) -> list[Mount]:
    """Return the mounts below `base`, innermost last. Does not touch any of them."""
    return [mount for mount in _mounts() if mount.directory.startswith(f"{base}/")]


def abort_mounts(base: Path) -> None:
    """Make every request to the FUSE mounts below `base` fail at once: nothing else frees a process stuck in one."""
    mounts = [mount for mount in mounts_below(base) if mount.kind.startswith("fuse") and mount.kind != "fusectl"]
    if not mounts:
        return
    control = CONNECTIONS
    own = not any(mount.kind == "fusectl" for mount in _mounts())
    if own:
        control = base / "fusectl"
        control.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "fusectl", "none", str(control)], check=False, timeout=10)
    for mount in mounts:
        abort = control / str(mount.minor) / "abort"
        if abort.exists():
            abort.write_text("1")
    if own:
        subprocess.run(["umount", str(control)], check=False, timeout=10)


def is_alive(pid: int) -> bool:
    """Return whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_line(pid: int) -> str:
    """Return a process' command line, for messages."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "gone"


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def tagged_processes(base: Path) -> list[int]:
    """Return the live processes started for the network below `base`, the guardian excepted.

    A daemon that starts its children with little environment still has to tell them the home, so that counts as well.
    """
    tag, home = f"{TAG}={base}".encode(), f"FSDECLOUD_HOME={base}/".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
        ours = any(item == tag or item.startswith(home) for item in environment.split(b"\0"))
        if ours and is_alive(int(entry)):
            found.append(int(entry))
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """Return all children of a process, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found: list[int] = []
    queue = [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def remove_network(base: Path) -> None:
    """Abort and detach the mounts below `base`, kill its processes, delete it."""
    abort_mounts(base)
    for _ in range(10):
        for pid in tagged_processes(base):
            send_signal(pid, signal.SIGKILL)
        for mount in reversed(mounts_below(base)):
            subprocess.run(
                ["umount", "-l", mount.directory],
                check=False,
                timeout=10,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        if not tagged_processes(base) and not mounts_below(base):
            break
        time.sleep(0.2)
    if not mounts_below(base):
        shutil.rmtree(base, ignore_errors=True)


def start_guardian(base: Path) -> subprocess.Popen[bytes]:
    """Start the process that cleans up behind this one."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.cleanup", str(base)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        cwd=_ROOT,
    )


def stop_guardian(guardian: subprocess.Popen[bytes]) -> None:
    """Let the guardian clean up now, and wait for it."""
    assert guardian.stdin is not None
    guardian.stdin.close()
    try:
        guardian.wait(60)
    except subprocess.TimeoutExpired:
        guardian.kill()
        guardian.wait()
        raise


def main() -> None:
    """Be the guardian of one network."""
    base = Path(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    remove_network(base)


if __name__ == "__main__":
    main()
