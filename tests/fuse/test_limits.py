"""What the mount cannot do fails with the errno that mount.decloud(8) says, and what it does differently is as it says."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import Network

pytestmark = pytest.mark.fuse

PAGE = Path(__file__).parents[2] / "man" / "mount.decloud.8"

PROBE = r"""
import ctypes, errno, fcntl, json, mmap, os, struct, sys, time
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
said = {}

def attempt(name, function, *args):
    try:
        said[name] = function(*args)
    except OSError as exc:
        # The two names of 95 on Linux.
        said[name] = errno.errorcode.get(exc.errno, str(exc.errno)).replace("ENOTSUP", "EOPNOTSUPP")

def call(name, function, *args):
    ctypes.set_errno(0)
    result = function(*args)
    number = ctypes.get_errno()
    said[name] = result if result != -1 else errno.errorcode[number].replace("ENOTSUP", "EOPNOTSUPP")

fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o644)
os.write(fd, bytes(10000))
other = os.open("g", os.O_RDWR | os.O_CREAT, 0o644)
for mode in (0, 1, 3, 8, 0x10, 0x20, 0x40):
    call(f"fallocate {mode:#x}", libc.fallocate, fd, mode, ctypes.c_int64(0), ctypes.c_int64(4096))
attempt("O_TMPFILE", os.open, ".", os.O_TMPFILE | os.O_RDWR, 0o600)
attempt("FICLONE", fcntl.ioctl, other, 0x40049409, fd)
attempt("FIEMAP", fcntl.ioctl, fd, 0xC020660B, bytes(32))
attempt("FIFREEZE", fcntl.ioctl, fd, 0xC0045877, 0)
attempt("FS_IOC_GETFLAGS", fcntl.ioctl, fd, 0x80086601, bytes(8))
attempt("FS_IOC_SETFLAGS", fcntl.ioctl, fd, 0x40086602, struct.pack("l", 0x10))
call("RENAME_WHITEOUT", libc.renameat2, -100, b"f", -100, b"h", 4)
call("swapon", libc.swapon, b"f", 0)
call("quotactl", libc.quotactl, 0x80000400, b"f", 0, ctypes.create_string_buffer(8))
attempt("RWF_ATOMIC", os.pwritev, fd, [b"x"], 0, 0x40)
attempt("RWF_NOWAIT", os.preadv, fd, [bytearray(5)], 0, os.RWF_NOWAIT)
attempt("acl", os.setxattr, "f", "system.posix_acl_access", struct.pack("<IHHIHHIHHI", 2, 1, 6, -1 & 0xFFFFFFFF,
        4, 4, -1 & 0xFFFFFFFF, 0x20, 4, -1 & 0xFFFFFFFF))
attempt("get acl", os.getxattr, "f", "system.posix_acl_access")
attempt("selinux", os.getxattr, "f", "security.selinux")
attempt("no such", os.getxattr, "f", "user.selinux")
attempt("truncate", os.ftruncate, fd, (1 << 60) + 1)
with open("direct", "wb"):
    direct = os.open("direct", os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
attempt("direct write", os.pwritev, direct, [page], 1 << 60)
said["size after it"] = os.stat("direct").st_size

os.posix_fallocate(other, 0, 20000)
said["posix_fallocate"] = os.stat("g").st_size
os.ftruncate(fd, 1 << 24)
said["SEEK_HOLE"] = os.lseek(fd, 0, os.SEEK_HOLE)
said["SEEK_DATA"] = os.lseek(fd, 1 << 20, os.SEEK_DATA)
os.close(fd)
said["blocks of a hole"] = os.stat("f").st_blocks * 512 < 1 << 20
said["copy_file_range"] = os.copy_file_range(os.open("f", os.O_RDONLY), other, 10000)
status = ctypes.create_string_buffer(256)
libc.statx(-100, b"f", 0, 0xFFF, status)
said["has btime"] = bool(struct.unpack_from("I", status)[0] & 0x800)
said["syncfs"] = libc.syncfs(other)
os.sync()

large = os.open("large", os.O_RDWR | os.O_CREAT, 0o644)
said["last byte"] = os.pwrite(large, b"z", (1 << 60) - 1)
os.fsync(large)
said["around it"] = os.pread(large, 10, (1 << 60) - 3).hex()
os.close(large)
info = os.stat("large")
said["large"] = [info.st_size == 1 << 60, 0 < info.st_blocks <= 8]
os.truncate("large", (1 << 59) + 1)  # no walk over the range: that would not end before the deadline
os.truncate("large", 1 << 60)
os.unlink("large")
large = os.open("large", os.O_RDWR | os.O_CREAT, 0o644)
said["past the end"] = os.pwrite(large, b"z", 1 << 60)
attempt("fsync", os.fsync, large)
os.close(large)
os.unlink("large")
print(json.dumps(said))
"""

REFUSED = {
    **{f"fallocate {mode:#x}": "EOPNOTSUPP" for mode in (0, 1, 3, 8, 0x10, 0x20, 0x40)},
    "O_TMPFILE": "EOPNOTSUPP", "FICLONE": "EOPNOTSUPP", "FIEMAP": "EOPNOTSUPP", "FIFREEZE": "EOPNOTSUPP",
    "FS_IOC_GETFLAGS": "ENOTTY", "FS_IOC_SETFLAGS": "ENOTTY", "RENAME_WHITEOUT": "EINVAL", "swapon": "EINVAL",
    "RWF_ATOMIC": "EOPNOTSUPP", "RWF_NOWAIT": "EOPNOTSUPP", "acl": "EOPNOTSUPP", "get acl": "EOPNOTSUPP",
    "selinux": "EOPNOTSUPP", "no such": "ENODATA", "truncate": "EFBIG", "direct write": "EFBIG",
}  # fmt: skip

ROWS = {
    "Xr fallocate 2": [name for name in REFUSED if name.startswith("fallocate")],
    "O_TMPFILE": ["O_TMPFILE"],
    "FICLONE": ["FICLONE", "FIEMAP", "FIFREEZE"],
    "FS_IOC_GETFLAGS": ["FS_IOC_GETFLAGS", "FS_IOC_SETFLAGS"],
    "RENAME_WHITEOUT": ["RENAME_WHITEOUT"],
    "Xr swapon 2": ["swapon"],
    "Xr quotactl 2": ["quotactl"],
    "RWF_ATOMIC": ["RWF_ATOMIC"],
    "RWF_NOWAIT": ["RWF_NOWAIT"],
    "Xr setxattr 2": ["acl"],
    "security.selinux": ["selinux"],
    "Xr link 2": [],  # takes long: posix/test_link.py
    "Xr truncate 2": ["truncate", "direct write"],
}
"""What stands in a row of the manual page's table, and what was tried of it."""

DIFFERENT = {
    "size after it": 0, "posix_fallocate": 20000, "SEEK_HOLE": 1 << 24, "SEEK_DATA": 1 << 20, "blocks of a hole": True,
    "copy_file_range": 10000, "has btime": False, "syncfs": 0, "last byte": 1, "around it": "00007a", "large": [True, True],
    "past the end": 1, "fsync": "EFBIG",
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A small network with a mounted volume."""
    with Network(peers=1) as fresh:
        fresh.up()
        assert fresh.volume, "asked for while it is mounted"
        yield fresh


def test_the_list_of_the_manual_page(network: Network) -> None:
    said = network.run(sys.executable, "-c", PROBE, network.mountpoint).json()
    page = PAGE.read_text()
    listed = page[page.index(".Ss What it cannot do") : page.index(".Sh FILES")]
    rows = re.findall(r"^\.It (Xr .*) Ta Er (.*)$", listed, re.MULTILINE)
    assert len(rows) == len(ROWS)
    for word, tried in ROWS.items():
        ((call, errnos),) = [row for row in rows if word in row[0]]
        assert all(name.partition(" ")[0] in call for name in tried if name.isupper()), call
        if tried == ["quotactl"]:  # which of them depends on how the kernel was built
            assert said.pop("quotactl") in errnos.split(" , ")
        elif tried:
            assert {REFUSED[name] for name in tried} == set(errnos.split(" , ")), call
    assert said == REFUSED | DIFFERENT


def test_no_inode_number_is_given_out_twice(network: Network) -> None:
    """Not after a crash that forgot the last files, and not after a remount."""
    script = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "for i in range(50): open(f'{sys.argv[2]}{i}', 'w').close()\n"
        "print([os.stat(f'{sys.argv[2]}{i}').st_ino for i in range(50)])\n"
        "if sys.argv[3] == 'kill': os.kill(int(sys.argv[4]), 9)\n"
    )
    seen: set[int] = set()
    for number, end in enumerate(("kill", "kill", "remount", "stay")):
        pid = str(network.status()["driver_pid"])
        out = network.run(sys.executable, "-c", script, network.mountpoint, f"n{number}-", end, pid).out
        numbers = set(json.loads(out))
        assert len(numbers) == 50
        assert not numbers & seen
        seen |= numbers
        if end == "kill":
            network.run("umount", "-l", network.mountpoint, check=False)
            network.mount()
        elif end == "remount":
            network.umount()
            network.mount()


def test_a_file_removed_while_it_is_open_is_gone_after_a_crash(network: Network) -> None:
    """The counters say so: what nobody can reach any more is reaped at the next mount."""
    before = network.status()
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "os.write(fd, bytes(range(256)) * 20000); os.fsync(fd); os.unlink(sys.argv[1]); os.fsync(fd)\n"
        "os.write(fd, b'more'); os.fsync(fd)\n"
        "os.kill(int(sys.argv[2]), 9)\n"
    )
    path = network.mountpoint / "removed"
    network.run(sys.executable, "-c", script, path, str(before["driver_pid"]), check=False)
    network.run("umount", "-l", network.mountpoint, check=False)
    network.mount()
    network.wait_status(
        lambda status: status["files"] == before["files"] and status["logical_bytes"] == before["logical_bytes"],
        30.0,
        "the orphan to be reaped",
    )
