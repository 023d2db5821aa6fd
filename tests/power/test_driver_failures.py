"""A driver on a failing disk: fsync says so for the files it concerns, everything else goes on, and so does it afterwards."""

from __future__ import annotations

import logging
import os
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import trio

from fsdecloud import limits
from fsdecloud.driver import journal, sealer
from fsdecloud.errors import FsdecloudError, FsError, StoreError
from fsdecloud.fs.keys import ROOT
from tests.power.driver_workload import CALLER, open_volume, read_tree
from tests.power.failing import FailingDisk, Fault, each_fault_in_time, failures, open_below


class Files:
    """Some files of a volume, by name."""

    def __init__(self, volume) -> None:
        self.volume = volume
        self.inodes: dict[bytes, int] = {}
        self.data: dict[bytes, bytes] = {}

    async def write(self, name: bytes, data: bytes) -> None:
        live = await self.volume.core.run(self.volume.namespace.create, ROOT, name, stat.S_IFREG | 0o600, CALLER)
        self.volume.files.open(live, os.O_RDWR, CALLER)
        self.inodes[name] = live.ino
        self.volume.files.write_nowait(live, 0, data)
        self.data[name] = data

    async def fsync(self, name: bytes) -> None:
        live = await self.volume.core.run(self.volume.core.inodes.get, self.inodes[name])
        with trio.fail_after(20):
            await self.volume.files.fsync(live, self.volume.journal.flush)

    async def read(self, name: bytes) -> bytes:
        live = await self.volume.core.run(self.volume.core.inodes.get, self.inodes[name])
        handle = self.volume.files.open(live, os.O_RDONLY, CALLER)
        return bytes(await self.volume.reader.read(self.volume.files.handle(handle), 0, len(self.data[name])))


@contextmanager
def short_pauses():
    """Tasks try again at once."""
    with (
        mock.patch.object(journal, "_RETRY", 0.01),
        mock.patch.object(sealer, "_RETRY", 0.01),
        mock.patch.object(limits, "FULL_WAIT", 0.2),
    ):
        yield


def check_kind(exc: FsdecloudError, fault: Fault) -> None:
    code = exc.ERRNO if isinstance(exc, FsError) else getattr(exc, "errno", None)
    if os.strerror(fault.code) in str(exc):
        assert code in (fault.code, None), exc
        assert isinstance(exc, FsError) == (code is not None), exc
    else:
        assert isinstance(exc, StoreError), exc


async def use(base: Path, disk: FailingDisk, fault: Fault) -> dict[bytes, bytes]:
    async with open_volume(base / "state", base / "elsewhere") as volume:
        files = Files(volume)
        await files.write(b"before", b"0" * 3000)
        await files.fsync(b"before")
        failed = []
        with disk.installed():
            for name, size in ((b"small", 3000), (b"large", 1_100_000), (b"tiny", 10), (b"middle", 200_000)):
                await files.write(name, name[:1] * size)
                try:
                    await files.fsync(name)
                except (StoreError, FsError) as exc:
                    check_kind(exc, fault)
                    failed.append(name)
                assert await files.read(b"before") == b"0" * 3000
                assert await files.read(name) == files.data[name]
        # The disk works again: each file becomes durable without being opened again.
        with trio.fail_after(30):
            for name in files.data:
                while True:
                    try:
                        await files.fsync(name)
                        break
                    except (StoreError, FsError) as exc:
                        check_kind(exc, fault)
                        await trio.sleep(0.01)
        assert disk.was_hit or not failed
        assert volume.journal.error is None
        assert not volume.core.failure
        return files.data


async def verify(base: Path, expected: dict[bytes, bytes]) -> None:
    async with open_volume(base / "state", base / "other") as volume:
        names, data = await read_tree(volume)
        assert {path[1:]: data[ino] for path, (_kind, ino, _target) in names.items()} == expected


@each_fault_in_time
def test_fault_013_014_015_fsync_under_failures(scratch, fault, caplog):
    caplog.set_level(logging.CRITICAL + 1)
    with short_pauses():
        for disk in failures(scratch, fault):
            base = scratch / str(disk._n)
            for directory in (base, base / "state", base / "elsewhere", base / "other"):
                directory.mkdir(mode=0o700)
            disk._root = str(base / "state")
            expected = trio.run(use, base, disk, fault)
            trio.run(verify, base, expected)
            # A thread that reads ahead is given up when its volume closes, and ends when the disk has answered.
            deadline = time.monotonic() + 20
            while (left := open_below(base)) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not left, disk.failed


def test_fault_015_an_entry_that_the_disk_lost_is_not_acknowledged(scratch, caplog):
    """After a failed fdatasync the kernel may forget what it could not write: reading back finds that out."""
    caplog.set_level(logging.CRITICAL + 1)
    base = scratch / "x"
    for directory in (base, base / "state", base / "elsewhere", base / "other"):
        directory.mkdir(mode=0o700)

    async def main() -> None:
        async with open_volume(base / "state", base / "elsewhere") as volume:
            files = Files(volume)
            await files.write(b"before", b"0" * 3000)
            await files.fsync(b"before")
            segments = volume.entries.segments

            def lose(fd: int) -> None:
                os.pwrite(fd, bytes(100), 200)
                raise OSError(5, "Input/output error")

            await files.write(b"lost", os.urandom(300_000))
            with mock.patch.object(segments, "_disk", mock.Mock(wraps=os, fdatasync=lose)):
                for _ in range(2):
                    with pytest.raises(StoreError):
                        await files.fsync(b"lost")
            with pytest.raises(StoreError, match="lost staged entry"):
                await files.fsync(b"lost")

    with short_pauses():
        trio.run(main)
        trio.run(verify, base, {b"before": b"0" * 3000})
