"""A driver that works: a whole volume but for FUSE and its agent, whose peers are all away.

    python -m tests.power.driver_workload DIRECTORY NOTES

Operations on names and contents, one after another, with fsync, group commits and commits of the tree between them.
"begin N" is noted before operation N, "tree N DIGEST" which names there are after it, "durable N INODE" when all names up to
N and the contents of a file are acknowledged. A power cut may leave the names as after any operation between the last
durable one and the last begun one, for the journal is one sequence. Each block of a file is as after some operation since
the file's last fsync: its data may come in any order before that. All contents are written to NOTES.contents at the end.
"""

from __future__ import annotations

import os
import pickle
import random
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

import trio
from blake3 import blake3

from fsdecloud.config import Paths, make_private_dir
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.crypto.slots import new_document
from fsdecloud.driver.agentlink import AgentLink
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.volume import Volume, VolumeSetup
from fsdecloud.errors import RemoteTimeout
from fsdecloud.fs.inode import decode_entry
from fsdecloud.fs.keys import ROOT, entry_prefix, split_entry_key
from fsdecloud.mountoptions import MountOptions
from fsdecloud.store.cache import CacheStore
from fsdecloud.store.segments import SegmentStore
from fsdecloud.store.state import StateStore
from fsdecloud.wire.agentapi import LedgerVolume

KEYS = VolumeKeys.from_root(bytes(32))
CALLER = Caller(0, 0, 0, 0)
STEPS = 70
BLOCK = 4096
NAME = "v"


async def _call(_link, method, _params, _result, *, timeout=None):
    """An agent whose ledger knows nothing of the volume and whose peers are away."""
    if method == "ledger_volume":
        return LedgerVolume(b"", 0)
    with trio.move_on_after(timeout if timeout is not None else float("inf")):
        await trio.sleep_forever()
    raise RemoteTimeout("all peers are away")


async def _run(_link):
    await trio.sleep_forever()


@asynccontextmanager
async def open_volume(state: Path, elsewhere: Path) -> AsyncIterator[Volume]:
    """Open the volume whose state lies in `state`; leaving is a crash: nothing is flushed."""
    paths = Paths(elsewhere / "config", state, elsewhere / "cache", elsewhere / "run")
    document = new_document(NAME, KEYS.volume_id, bytes(32))
    setup = VolumeSetup(paths, document, KEYS, MountOptions(timeout=2.0), "/nowhere")
    directory = make_private_dir(paths.volume_state(NAME))
    with (
        mock.patch.object(AgentLink, "run", _run),
        mock.patch.object(AgentLink, "call", _call),
        StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store,
        SegmentStore(directory / "staged", "staged") as staged,
        CacheStore(make_private_dir(paths.volume_cache(NAME))) as cache,
    ):
        volume = Volume(setup, store, staged, cache)
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(60):
                    await volume.start(nursery)
                yield volume
            finally:
                volume.reader.stop()
                nursery.cancel_scope.cancel()


Names = dict[bytes, tuple[str, int, bytes]]
"""Path -> kind, inode, target of a link."""

Contents = dict[int, list[tuple[int, bytes]]]
"""Inode -> number of an operation, contents after it."""


async def read_tree(volume: Volume) -> tuple[Names, dict[int, bytes]]:
    """Return all names, and the contents of all files, read through the driver."""
    found: Names = {}
    contents: dict[int, bytes] = {}
    directories = [(ROOT, b"")]
    while directories:
        ino, path = directories.pop()
        rows = await volume.core.run(lambda ino=ino: list(volume.core.overlay.scan_prefix(entry_prefix(ino))))
        for key, data in rows:
            name = split_entry_key(key)[1]
            live = await volume.core.run(volume.core.inodes.get, decode_entry(name, data).inode)
            full = path + b"/" + name
            if live.is_dir:
                found[full] = "directory", live.ino, b""
                directories.append((live.ino, full))
            elif stat.S_ISLNK(live.mode):
                found[full] = "link", live.ino, live.target
            else:
                handle = volume.files.open(live, os.O_RDONLY, CALLER)
                data = b""
                while piece := bytes(await volume.reader.read(volume.files.handle(handle), len(data), 1 << 17)):
                    data += piece
                assert len(data) == live.size, f"{full!r} has {len(data)} bytes, not {live.size}"
                volume.files.release(handle)
                found[full] = "file", live.ino, b""
                contents[live.ino] = data
    return found, contents


def digest(names: Names) -> str:
    """Return a short name for all names."""
    return blake3(repr(sorted(names.items())).encode()).hexdigest(8)


def is_mixed(data: bytes, versions: Sequence[bytes]) -> bool:
    """Whether each block of `data` is from one of the versions, or of nothing where one of them ends."""
    if len(data) not in map(len, versions):
        return False
    return all(
        any(data[at : at + BLOCK] == version[at : at + BLOCK].ljust(len(data[at : at + BLOCK]), b"\0")[:BLOCK]
            for version in cut)
        for cut in [[version[: len(data)] for version in versions]]
        for at in range(0, len(data), BLOCK)
    )  # fmt: skip


class Worker:
    """Does operations on the volume and on a model of it."""

    def __init__(self, volume: Volume, note: Callable[[str], None]) -> None:
        self.volume = volume
        self._note = note
        self._number = 0
        self.names: Names = {}
        self.data: dict[int, bytes] = {}
        self.contents: Contents = {}
        self._chance = random.Random(8)
        self._count = 0

    def done(self) -> None:
        """Note what all names are after an operation, and that the next one begins."""
        self._note(f"tree {self._number} {digest(self.names)}")
        self._number += 1
        self._note(f"begin {self._number}")

    def _write(self, ino: int, data: bytes) -> None:
        self.data[ino] = data
        self.contents.setdefault(ino, []).append((self._number, data))

    def _pick(self, kind: str) -> bytes | None:
        names = sorted(path for path, found in self.names.items() if found[0] == kind)
        return self._chance.choice(names) if names else None

    def _new(self) -> bytes:
        self._count += 1
        parent = self._chance.choice([b"", *sorted(p for p, found in self.names.items() if found[0] == "directory")])
        return parent + b"/n%d" % self._count

    async def _live(self, path: bytes):
        ino = ROOT
        for name in path.split(b"/")[1:]:
            ino = (await self.volume.core.run(self.volume.namespace.lookup, ino, name)).ino
        return await self.volume.core.run(self.volume.core.inodes.get, ino)

    async def _parent(self, path: bytes) -> tuple[int, bytes]:
        parent, name = path.rsplit(b"/", 1)
        return (await self._live(parent)).ino, name

    async def step(self) -> None:
        """Do one operation, or two."""
        volume, chance = self.volume, self._chance
        names = volume.namespace
        what = chance.choice(
            ["create", "create", "write", "write", "write", "big", "truncate", "rename", "link", "unlink", "symlink",
             "mkdir", "orphan", "fsync", "fsync", "fsync", "commit"]
        )  # fmt: skip
        file = self._pick("file")
        if what in ("create", "big") or file is None:
            path = self._new()
            live = await volume.core.run(names.create, *await self._parent(path), stat.S_IFREG | 0o644, CALLER)
            self.names[path] = "file", live.ino, b""
            self._write(live.ino, b"")
            self.done()  # to make a file and to write to it are two operations
            data = chance.randbytes(1_300_000 if what == "big" else chance.choice([0, 10, 3000, 70_000]))
            volume.files.write_nowait(live, 0, data)
            self._write(live.ino, data)
        elif what == "mkdir":
            path = self._new()
            live = await volume.core.run(names.mkdir, *await self._parent(path), 0o755, CALLER)
            self.names[path] = "directory", live.ino, b""
        elif what == "symlink":
            path, target = self._new(), b"target %d" % self._count
            live = await volume.core.run(names.symlink, *await self._parent(path), target, CALLER)
            self.names[path] = "link", live.ino, target
        elif what == "write":
            live = await self._live(file)
            content = self.data[live.ino]
            offset, data = chance.randrange(len(content) + 5000), chance.randbytes(chance.choice([1, 4096, 20_000]))
            volume.files.write_nowait(live, offset, data)
            content = content.ljust(offset, b"\0")
            self._write(live.ino, content[:offset] + data + content[offset + len(data) :])
        elif what == "truncate":
            live = await self._live(file)
            content = self.data[live.ino]
            size = chance.randrange(len(content) + 3000)
            await volume.files.truncate(live, size)
            self._write(live.ino, content[:size].ljust(size, b"\0"))
        elif what == "rename":
            target = (self._pick("file") if chance.random() < 0.5 else None) or self._new()
            if self.names.get(target) != self.names[file]:
                gone = await volume.core.run(
                    names.rename, *await self._parent(file), *await self._parent(target), 0, CALLER
                )
                if gone is not None:
                    volume.maybe_reap(gone.ino)
                self.names[target] = self.names.pop(file)
        elif what == "link":
            path = self._new()
            await volume.core.run(names.link, (await self._live(file)).ino, *await self._parent(path), CALLER)
            self.names[path] = self.names[file]
        elif what in ("unlink", "orphan"):
            live = await self._live(file)
            if what == "orphan":
                volume.files.open(live, os.O_RDWR, CALLER)
            await volume.core.run(names.unlink, *await self._parent(file), CALLER)
            volume.maybe_reap(live.ino)
            del self.names[file]
        elif what == "commit":
            await volume.committer.commit()
        else:
            live = await self._live(file)
            await volume.files.fsync(live, volume.journal.flush)
            self._note(f"durable {self._number - 1} {live.ino}")
            return
        self.done()


async def main(root: Path, notes: Path) -> None:
    """Do all operations."""
    log = os.open(notes, os.O_WRONLY)

    def note(text: str) -> None:
        os.write(log, text.encode() + b"\n")

    with tempfile.TemporaryDirectory(prefix="fsdecloud-power-") as elsewhere:
        async with open_volume(root, Path(elsewhere)) as volume:
            worker = Worker(volume, note)
            worker.done()
            for _ in range(STEPS):
                await worker.step()
            names, data = await read_tree(volume)
            assert names == worker.names
            assert data == {ino: worker.data[ino] for kind, ino, _target in names.values() if kind == "file"}
            note("end")
    notes.with_name(notes.name + ".contents").write_bytes(pickle.dumps(worker.contents))


async def check(state: Path, elsewhere: Path, notes: Sequence[str], trees: Sequence[str], contents: Contents) -> None:
    """Open what a power cut left, read everything, and compare; `trees` are the digests after each operation."""
    begun = max([int(line.split()[1]) for line in notes if line.startswith("begin")], default=0)
    synced = [line.split()[1:] for line in notes if line.startswith("durable")]
    durable = max([int(number) for number, _ino in synced], default=0)
    async with open_volume(state, elsewhere) as volume:
        names, data = await read_tree(volume)
        found = digest(names)
        assert found in trees[durable : begun + 1], (
            f"the names are not as after any of the operations {durable} to {begun}, but "
            + (f"as after {trees.index(found)}" if found in trees else "as they never were")
        )
        for ino, held in data.items():
            since = max([int(number) for number, other in synced if int(other) == ino], default=0)
            first = max(i for i, (number, _data) in enumerate(contents[ino]) if number <= since or i == 0)
            versions = [version for number, version in contents[ino][first:] if number <= begun]
            assert is_mixed(held, versions), (
                f"inode {ino} has {len(held)} bytes that it never had since operation {since}"
            )
        await volume.reap_orphans()
        assert not [key for key, _value in volume.core.overlay.scan_prefix(b"O")], "an orphan is left"
        live = await volume.core.run(volume.namespace.create, ROOT, b"after", stat.S_IFREG | 0o644, CALLER)
        volume.files.write_nowait(live, 0, b"it goes on")
        await volume.files.fsync(live, volume.journal.flush)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), Path(sys.argv[-1]))
