"""Certify: state what a file was in a snapshot, and get the statement into the ledger alone.

The content is read here, from the snapshot's own tree, so that nothing can change under the reader. The statement's record
becomes a batch of its own in an anchor of its own (`Committer.alone`): the hash of a record says whether a guess of that record
is right, so whoever is shown the way to one leaf of a tree of records learns about its neighbours, and here there are none.

Called only from the event loop. Not here: blocks, headers and the certificate's file (`cli.certify`).
"""

from __future__ import annotations

import os
import stat
import time
from typing import Final

import trio
from blake3 import blake3

from fsdecloud import codec
from fsdecloud.driver.anchors import Anchors, open_anchor
from fsdecloud.driver.committer import Committer
from fsdecloud.driver.core import Core
from fsdecloud.driver.history import AnchoredStates
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.restore import walk_path
from fsdecloud.driver.snapshots import Snapshots
from fsdecloud.driver.views import DIRECTORY, View, Views
from fsdecloud.errors import MalformedError, RemoteError, UsageError
from fsdecloud.fs.history import Snapshot, directory_name
from fsdecloud.fs.manifest import Manifest
from fsdecloud.fs.records import Operation, batch_root
from fsdecloud.fs.statement import PROGRAM, SALT_SIZE, PathOpening, Statement, path_commitment, statement_row
from fsdecloud.ledger.transactions import Anchor, link
from fsdecloud.limits import MIB
from fsdecloud.wire.controlapi import Certified, CertifyRequest

_PINS: Final = 1 << 32
"""Numbers of our pinned roots begin here, those of other tasks are below."""

_LOOK_AGAIN: Final = 0.1
"""Seconds between two looks whether the statement is anchored: a block takes longer."""


class Certifier:
    """Makes statements about the files of one mounted volume."""

    def __init__(
        self,
        core: Core,
        committer: Committer,
        anchors: Anchors,
        snapshots: Snapshots,
        views: Views,
        states: AnchoredStates,
    ) -> None:
        self._core = core
        self._committer = committer
        self._anchors = anchors
        self._snapshots = snapshots
        self._views = views
        self._states = states
        self._pins = 0

    async def certify(self, request: CertifyRequest, caller: Caller) -> Certified:
        """State what a file was in a snapshot; return when the statement is in a block.

        Takes an anchor, or two while other records wait for one. Raises UsageError, ReadOnly, RemoteError, LedgerUnavailable.
        Who gives up waiting leaves a statement behind that nobody can read.
        """
        self._core.check_writable()
        row = await self._snapshots.find(request.snapshot)
        found = await self._states.get(row.sequence)
        if found is None:
            raise RemoteError(f"the ledger does not know anchor {row.sequence} now: try again")
        _place, anchor, manifest = found
        if manifest.root.to_bytes() != row.root:
            raise MalformedError(f"snapshot {row.sequence} is not the state that its anchor names")
        ino, content, size = await self._read(row, request.path, caller)
        opening = PathOpening(os.urandom(SALT_SIZE), _normal(request.path))
        statement = Statement(
            1,
            content,
            size,
            row.sequence,
            link(anchor.volume, anchor.sequence, anchor.commitment),
            path_commitment(opening),
            os.urandom(SALT_SIZE),
        )
        record = statement_row(statement, time.time_ns())
        stated, beside = await self._publish(record)
        origin = b"/%s/%s%s" % (DIRECTORY, directory_name(row).encode(), opening.path)
        self._core.recorder.record(
            Operation.CERTIFY, caller, ino, opening.path, path2=origin, amount=size, program=PROGRAM
        )
        self._core.changed()
        return Certified(
            codec.encode(statement),
            codec.encode(opening),
            record,
            bytes(self._core.keys.volume_id),
            stated.sequence,
            bytes(open_anchor(self._core.keys, stated).manifest.id),
            bytes(beside.root.id),
        )

    async def _read(self, row: Snapshot, path: bytes, caller: Caller) -> tuple[int, bytes, int]:
        """Return the inode, the BLAKE3 and the size of a file in a snapshot, which stays while it is read."""
        view = self._views.make(row)
        self._pins += 1
        pin = _PINS + self._pins
        self._snapshots.pinned[pin] = row.root
        try:
            live = await walk_path(view.core, view.namespace, path, f"snapshot {row.sequence}")
            if not stat.S_ISREG(live.mode):
                raise UsageError(
                    f"{path.decode(errors='backslashreplace')} is no regular file: only those can be certified"
                )
            return live.ino, await _content(view, live, caller), live.size
        finally:
            del self._snapshots.pinned[pin]

    async def _publish(self, record: bytes) -> tuple[Anchor, Manifest]:
        """Get a record into a block, as the only one of its anchor; return that anchor and its manifest."""
        root = batch_root([record])
        before = self._committer.meta.sequence
        self._committer.alone.add(root)
        self._core.recorder.state(record)
        self._core.changed()
        await self._committer.commit()
        self._anchors.poke(urgent=True)
        while root in self._committer.alone:
            self._core.check_writable()
            await trio.sleep(_LOOK_AGAIN)
        for sequence in range(before + 1, self._committer.meta.sequence + 1):
            found = await self._states.get(sequence)
            if found is not None and [batch.root for batch in found[2].batches] == [root]:
                return found[1], found[2]
        raise RemoteError("the ledger lost the block with the statement for now: try again")


async def _content(view: View, live: LiveInode, caller: Caller) -> bytes:
    """Return the BLAKE3 of a file's bytes, a MiB in memory at a time."""
    handle = view.open(live, os.O_RDONLY, caller, PROGRAM, b"")
    try:
        hasher = blake3()
        offset = 0
        while piece := await view.reader.read(handle, offset, MIB):
            hasher.update(piece)
            offset += len(piece)
            await trio.lowlevel.checkpoint()
        if offset != live.size:
            raise MalformedError(f"the file has {live.size} bytes, {offset} could be read")
        return hasher.digest()
    finally:
        view.close(handle)


def _normal(path: bytes) -> bytes:
    """Return an absolute path without empty components and dots."""
    return b"/" + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
