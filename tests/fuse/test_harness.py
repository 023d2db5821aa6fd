"""The end-to-end harness itself: it notices a hung mount, frees whoever is stuck in it, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import cleanup
from tests.cluster.harness import ROOT, CommandFailed, Hung, Network

pytestmark = pytest.mark.fuse

HANGING = """
import sys, pyfuse3, trio
from tests.bench import memfs

class Hanging(memfs.MemoryFs):
    async def read(self, fh, off, size):
        await trio.sleep_forever()

pyfuse3.init(Hanging("/dev/null", writeback=False), sys.argv[1], {*pyfuse3.default_options, "fsname=hanging"})
try:
    trio.run(memfs.serve, None)
finally:
    pyfuse3.close(unmount=True)
"""


def mount_hanging(network: Network) -> None:
    """Mount a file system whose reads never end, with one file in it."""
    network.start(sys.executable, "-c", HANGING, network.mountpoint)
    network.wait_until(lambda: cleanup.mounts_below(network.base), 20, "it is mounted")
    network.run("sh", "-c", 'echo x > "$1/file"; ls "$1"', "sh", network.mountpoint)
    network.run("sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches")


def test_hung_access_is_ended_and_nothing_is_left() -> None:
    network = Network()
    mount_hanging(network)
    start = time.monotonic()
    with pytest.raises(Hung, match="no end within 1 s"):
        network.run("cat", network.mountpoint / "file", deadline=1)
    assert time.monotonic() - start < 15
    base = network.base
    network.close()
    assert cleanup.tagged_processes(base) == []
    assert cleanup.mounts_below(base) == []
    assert not base.exists()


def test_killed_test_run_leaves_nothing(tmp_path: Path) -> None:
    """The guardian cleans up behind a process that was killed while a child of its was stuck."""
    said = tmp_path / "base"
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.cluster.harness import Network\n"
        "from tests.fuse.test_harness import mount_hanging\n"
        "network = Network()\n"
        "mount_hanging(network)\n"
        "network.start('cat', network.mountpoint / 'file')\n"
        f"Path({str(said)!r}).write_text(str(network.base))\n"
        "import time; time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 30
    while not said.exists() or not said.read_text():
        assert process.poll() is None, "the script ended early"
        assert time.monotonic() < end
        time.sleep(0.05)
    base = Path(said.read_text())
    assert cleanup.mounts_below(base)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while base.exists() and time.monotonic() < end + 30:
        time.sleep(0.05)
    assert cleanup.tagged_processes(base) == []
    assert cleanup.mounts_below(base) == []
    assert not base.exists()


def test_programs_report_how_they_ended() -> None:
    with Network() as network:
        result = network.run("sh", "-c", "cat; echo to stderr >&2; exit 3", text="input", check=False)
        assert (result.code, result.out, result.err) == (3, "input", "to stderr\n")
        with pytest.raises(CommandFailed, match="to stderr"):
            network.run("sh", "-c", "echo to stderr >&2; exit 3")
        assert network.run("pwd", cwd=network.mountpoint).out.strip() == str(network.mountpoint)
        assert network.run("sh", "-c", "sleep 300 & echo done").out == "done\n", (
            "a background child keeps nobody waiting"
        )
        # A process that is just being executed has no environment yet, which is what it is known by.
        (pid,) = network.wait_until(network.processes, 20, "the background child is seen")
        network.kill(pid)
        with pytest.raises(AssertionError, match="no process of this network"):
            network.kill(os.getppid())


def test_memory_file_system_passes_the_benchmark_steps() -> None:
    """The ceiling is honest: every step compares what it reads with what it wrote."""
    with Network() as network:
        reader, writer = os.pipe()
        command = [
            sys.executable,
            "-m",
            "tests.bench.memfs",
            str(network.mountpoint),
            str(network.base / "log"),
            "--writeback",
            "--ready-fd",
            str(writer),
        ]
        server = subprocess.Popen(command, pass_fds=[writer], cwd=ROOT, env=network.environment)
        os.close(writer)
        with open(reader, "rb") as ready:
            assert ready.readline() == b"{}\n"
        options = ["--size", "3", "--files", "20", "--seconds", "0.05"]
        steps = ["sequential_write", "sequential_read", "random_read", "random_write", "appends", "create", "stat"]
        for step in [*steps, "read_small", "rename", "unlink", "directories", "sqlite"]:
            command = [sys.executable, "-m", "tests.bench.steps", step, str(network.mountpoint), *options]
            assert all(value > 0 for value in network.run(*command).json().values())
        network.run("umount", network.mountpoint)
        assert server.wait(20) == 0
