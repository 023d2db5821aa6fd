"""What a path was in each snapshot, for `decloud history`: a look at one inode of each, no contents.

Called only from the event loop. Not here: which of them count as versions, and who made them (`cli.history`).
"""

from __future__ import annotations

from typing import Final

from fsdecloud.driver.core import Core
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.restore import walk_path
from fsdecloud.driver.snapshots import Snapshots
from fsdecloud.errors import MalformedError, UsageError
from fsdecloud.fs.inode import InodeValue, decode_entry, decode_inode
from fsdecloud.fs.keys import ROOT, entry_key, inode_key
from fsdecloud.fs.overlay import Overlay
from fsdecloud.wire.controlapi import Version, VersionPage, VersionQuery

PAGE: Final = 64
"""Snapshots looked at for one answer: some nodes of each may have to come from peers."""


class Versions:
    """Answers for one mounted volume."""

    def __init__(self, core: Core, namespace: Namespace, snapshots: Snapshots) -> None:
        self._core = core
        self._namespace = namespace
        self._snapshots = snapshots

    async def page(self, query: VersionQuery) -> VersionPage:
        """Return what a path was in the next snapshots, and the present with the last of them. Raises RemoteError."""
        parts = [part for part in query.path.split(b"/") if part not in (b"", b".")]
        found = []
        rows = await self._core.run(self._snapshots.rows_from, max(1, query.first), PAGE)
        for row in rows:
            number, value = await self._find(self._core.overlay.at(row.root), parts)
            found.append(_version(row.sequence, row.time, number, value))
        if len(rows) == PAGE:
            return VersionPage(tuple(found), rows[-1].sequence + 1)
        return VersionPage((*found, await self._present(query.path)), 0)

    async def _find(self, tree: Overlay, parts: list[bytes]) -> tuple[int, InodeValue | None]:
        """Return the inode at a path of a committed state, following no symbolic link; (0, None) if there is none."""
        number = int(ROOT)
        for name in parts:
            data = await self._core.run(tree.get, entry_key(self._core.keys.border_secret, number, name))
            if data is None:
                return 0, None
            number = int(decode_entry(name, data).inode)
        data = await self._core.run(tree.get, inode_key(number))
        if data is None:
            raise MalformedError(f"a snapshot names inode {number} and lacks it")
        return number, decode_inode(data)

    async def _present(self, path: bytes) -> Version:
        try:
            live = await walk_path(self._core, self._namespace, path, "the volume")
        except UsageError:
            return _version(0, 0, 0, None)
        return _version(0, 0, int(live.ino), live.to_value(live.size))


def _version(sequence: int, anchored: int, number: int, value: InodeValue | None) -> Version:
    if value is None:
        return Version(sequence, anchored, 0, 0, 0, 0, 0)
    return Version(sequence, anchored, number, value.mode, value.uid, value.size, value.mtime)
