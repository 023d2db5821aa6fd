"""A volume full of everything for the tests of fsck: made by random operations, and looked at as a crash would leave it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.driver.fsck import Check, FsckOptions, Report
from fsdecloud.driver.fsckstate import Places
from fsdecloud.driver.namespace import RENAME_EXCHANGE, Namespace
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.errors import FsError
from fsdecloud.fs.findings import Finding
from fsdecloud.fs.keys import ROOT

KEYS = VolumeKeys.from_root(bytes(32))
CALLER = Caller(0, 0, os.getpid(), 0o022)
SIZES = (0, 1, 100, 2048, 5000, 300_000, 1 << 20, (1 << 20) + 1, 3_000_000)


class Life:
    """Random operations on a driver, as the FUSE handlers do them."""

    def __init__(self, driver, seed: object) -> None:
        self.driver = driver
        self.random = random.Random(seed)
        self.xattrs = Xattrs(driver.core)
        self.names = Namespace(driver.core, self.xattrs)
        self.names.on_named = driver.files.keep_whole
        self.directories = [int(ROOT)]
        self.files: list[int] = []
        if driver.core.overlay.get(b"I" + ROOT.to_bytes(8, "big")) is None and not driver.core.overlay.root:
            driver.core.create_root(0, 0)

    async def run(self, count: int) -> None:
        """Do some operations; those that make no sense just fail."""
        for _ in range(count):
            await self.step()

    async def step(self) -> None:
        choose, core = self.random.choice, self.driver.core
        what = choose(
            ("create",) * 5 + ("write",) * 6 + ("truncate", "link", "rename", "rename", "exchange", "mkdir", "mkdir", "symlink")
            + ("unlink",) * 3 + ("rmdir", "xattr", "xattr", "chmod", "fsync", "flush", "commit")
        )  # fmt: skip
        directory, name = choose(self.directories), b"n%d" % self.random.randrange(12)
        other, new = choose(self.directories), b"n%d" % self.random.randrange(12)
        try:
            if what == "create":
                live = await core.run(self.names.create, directory, name, 0o100644, CALLER)
                self.files.append(live.ino)
            elif what == "mkdir":
                live = await core.run(self.names.mkdir, directory, name, 0o755, CALLER)
                self.directories.append(live.ino)
            elif what == "symlink":
                await core.run(self.names.symlink, directory, name, b"t" * self.random.randrange(1, 300), CALLER)
            elif what in ("write", "truncate", "link", "xattr", "chmod", "fsync") and self.files:
                await self.change(what, choose(self.files), directory, name)
            elif what in ("rename", "exchange") and await self.is_refused(directory, name, other, new):
                pass
            elif what == "rename":
                await self.gone(await core.run(self.names.rename, directory, name, other, new, 0, CALLER))
            elif what == "exchange":
                await core.run(self.names.rename, directory, name, other, new, RENAME_EXCHANGE, CALLER)
            elif what == "unlink":
                await self.gone(await core.run(self.names.unlink, directory, name, CALLER))
            elif what == "rmdir":
                await self.gone(await core.run(self.names.rmdir, directory, name, CALLER))
            elif what == "flush":
                await self.driver.journal.flush()
            elif what == "commit":
                await self.driver.committer.commit()
        except FsError:
            pass

    async def is_refused(self, *pairs: int | bytes) -> bool:
        """Whether the kernel would not let it through: a directory into itself."""
        core = self.driver.core
        places = [(int(pairs[0]), pairs[1], int(pairs[2])), (int(pairs[2]), pairs[3], int(pairs[0]))]
        for directory, name, above in places:
            try:
                moved = await core.run(self.names.lookup, directory, name)
            except FsError:
                continue
            live = await core.run(core.inodes.get, above)
            while live.ino != ROOT and live.ino != moved.ino:
                found = await core.run(self.names.lookup_parent, live.ino)
                if found is None or not live.nlink:
                    break
                live = found
            if live.ino == moved.ino:
                return True
        return False

    async def change(self, what: str, ino: int, directory: int, name: bytes) -> None:
        core, files = self.driver.core, self.driver.files
        live = await core.run(core.inodes.get, ino)
        if what == "write":
            offset, size = self.random.choice(SIZES), self.random.choice(SIZES)
            if live.nlink:
                await files.write_in_turn(live, offset, self.random.randbytes(size))
        elif what == "truncate":
            await files.truncate(live, self.random.choice(SIZES))
        elif what == "link":
            await core.run(self.names.link, ino, directory, name, CALLER)
        elif what == "xattr":
            if self.random.random() < 0.3:
                await core.run(self.xattrs.remove, ino, b"user.%d" % self.random.randrange(3), CALLER)
            else:
                value = b"v" * self.random.choice((0, 10, 1000, 5000, 60_000))
                await core.run(self.xattrs.set, ino, b"user.%d" % self.random.randrange(3), value, 0, CALLER)
        elif what == "fsync":
            await self.driver.fsync(live)

    async def gone(self, live) -> None:
        """What lost its last name is reaped, or stays an orphan as if it were open."""
        if live is None or live.nlink:
            return
        if live.ino in self.files:
            self.files.remove(live.ino)
        if live.ino in self.directories:
            self.directories.remove(live.ino)
        if self.random.random() < 0.7:
            await self.driver.files.reap(live)


def copy_of(directory: Path) -> Path:
    """Return a copy of a volume as a kill would leave it."""
    copy = directory.with_name(f"{directory.name}-{os.urandom(4).hex()}")
    return Path(shutil.copytree(directory, copy))


async def look(directory: Path, *, agent=None, keys: VolumeKeys = KEYS, tell=lambda _text: None, **options) -> Report:
    """Check a volume that nobody has open."""
    wanted = FsckOptions(offline=agent is None, **options)
    return await Check(wanted, tell).run_at(
        Places(directory, directory / "cache"), keys, lambda _cache, _meta: agent, 5.0
    )


def texts(findings: Iterable[Finding]) -> list[str]:
    return [f"{one.kind}: {one.path.decode()} {one.inode}: {one.text}" for one in findings]
