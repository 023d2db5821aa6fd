"""stress-ng's file system stressors with --verify: each bogus operation checks its own result.

Left out of its class `filesystem`, because they do not touch the file system under test: bind-mount (mounts over / in a
namespace of its own), binderfs, procfs (another file system), eventfd (no file), chroot. And io-uring of the class `io`: its
IORING_OP_STATX fails on ext4 in the same way (stress-ng 0.15.06 asks for a path that is not there).
"""

from __future__ import annotations

import re

import pytest

from tests.cluster.harness import Network
from tests.programs.support import Places

STRESSORS: dict[str, str] = {
    "access": "", "chattr": "", "chdir": "--chdir-dirs 64", "chmod": "", "chown": "", "copy-file": "",
    "dentry": "--dentries 64", "dir": "--dir-dirs 64", "dirdeep": "--dirdeep-inodes 128", "dirmany": "", "dnotify": "",
    "dup": "", "fallocate": "--fallocate-bytes 1m", "fanotify": "", "fcntl": "", "fiemap": "", "file-ioctl": "",
    "filename": "", "flock": "", "fpunch": "", "fsize": "", "fstat": "", "getdent": "", "handle": "",
    "hdd": "--hdd-bytes 4m", "inode-flags": "", "inotify": "", "io": "", "iomix": "--iomix-bytes 1m", "ioprio": "",
    "lease": "", "link": "", "locka": "", "lockf": "", "lockofd": "", "mknod": "", "open": "", "rename": "", "symlink": "",
    "sync-file": "--sync-file-bytes 1m", "touch": "", "utime": "", "verity": "", "xattr": "",
    # Of other classes, those that go through files.
    "aio": "", "aiol": "", "fault": "", "fifo": "", "mmap": "--mmap-file --mmap-bytes 1m", "mmapfork": "", "msync": "",
    "msyncmany": "", "readahead": "--readahead-bytes 1m", "revio": "--revio-bytes 1m", "seek": "--seek-size 1m",
    "sendfile": "--sendfile-size 1m", "splice": "--splice-bytes 64k", "tee": "", "vm-splice": "--vm-splice-bytes 64k",
}  # fmt: skip
"""Stressor and the options that make it small enough for a short run."""

NO_FALLOCATE = (
    r"fsize: (fallocate unexpectedly succeeded .* expecting EFBIG|expected a SIGXFSZ signal .* nothing happened)"
)
"""What fsize says of any file system without fallocate(2), which pyfuse3 does not offer.

The kernel answers EOPNOTSUPP. stress-ng then writes zeros instead, is told EFBIG by write(2), drops that and reports success.
"""

BLOCKS_OF_OPEN_FILE = r"file-ioctl: ioctl FIOQSIZE failed, size \d+ \(filesize\) vs \d+ \(reported\)"
"""FIOQSIZE tells a file's blocks. Pages that are dirty in the kernel count only once they were written to the driver, which a
busy machine does late: st_blocks of an open file lags behind (mount.decloud(8))."""

UNSUPPORTED = {"fiemap": "FS_IOC_FIEMAP not supported", "verity": "verity is not supported"}
"""These two stressors end at once where the ioctl is missing, which no FUSE file system without ioctl handler has."""


ALONE = """
set -eu
while read -r _ place _; do
    case $place in "$1"/*) ;; "${1%-*}"-*) umount -l "$place" || true ;; esac
done < /proc/mounts
shift
exec "$@"
"""
"""Run a command where no other test's mounts are to be seen: `io`, `fanotify` and `getdent` open all there are, which keeps
those from being unmounted."""


def stress(network: Network, places: Places, names: list[str], seconds: int, instances: int = 1) -> str:
    """Run these stressors at once; fail when one does, for anything but what is explained above."""
    command = ["unshare", "--mount", "sh", "-c", ALONE, "sh", str(network.base)]
    command += ["stress-ng", "--verify", "--temp-path", str(places.inside), "-t", str(seconds), "--metrics-brief"]
    command += ["--oomable", "--no-rand-seed"]
    for name in names:
        command += [f"--{name}", str(instances), *STRESSORS[name].split()]
    result = network.run(*command, cwd=network.work, deadline=seconds * 5 + 120, check=False)
    said = result.out + result.err
    failures = [
        line
        for line in said.splitlines()
        if re.search(r" (fail|error): ", line) and not re.search(f"{NO_FALLOCATE}|{BLOCKS_OF_OPEN_FILE}", line)
    ]
    assert not failures, "\n".join(failures[:20])
    assert result.code == 0, result.describe()
    assert "run completed" in said
    if "fsize" in names:
        # It writes far behind the largest size; with the kernel's write cache that fails when pages are written out, and
        # the next syncfs is told of it. Here, lest another test is.
        network.run("sync", "-f", places.inside, check=False)
    left = network.run("sh", "-c", "find . | head", cwd=places.inside).out.split()
    assert left == ["."], "a stressor could not remove what it made"
    return said


def test_all_at_once(network: Network, places: Places) -> None:
    stress(network, places, ["fsize"], 1)
    stress(network, places, [name for name in STRESSORS if name != "fsize"], 6)
    assert network.status()["handler_errors"] == 0


@pytest.mark.long
@pytest.mark.parametrize("name", STRESSORS)
def test_long(network: Network, places: Places, name: str) -> None:
    said = stress(network, places, [name], 5, 2)
    for stressor, reason in UNSUPPORTED.items():
        assert (reason in said) == (stressor == name), said
    assert network.status()["handler_errors"] == 0
