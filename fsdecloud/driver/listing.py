"""Listing a directory that is not on this machine: the tree nodes of many entries come at once, not one after another.

`Namespace.listing` answers from what is in memory. When something is missing, the next stretch of the directory's own
nodes is fetched in parallel, then the nodes of the inodes it names. Called only from the event loop.
"""

from __future__ import annotations

from typing import Final

from fsdecloud.driver.core import Core
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.treenodes import TreeNodes
from fsdecloud.fs.keys import entry_prefix, inode_key, prefix_end
from fsdecloud.tree.node import NodeMissing

_AHEAD: Final = 1024
"""Entries whose inodes are fetched at once: about ten nodes when they were made one after another."""


class Lister:
    """Lists the directories of one tree."""

    def __init__(self, core: Core, namespace: Namespace, nodes: TreeNodes) -> None:
        self._core = core
        self._namespace = namespace
        self._nodes = nodes

    async def entries(self, ino: int, after: int, limit: int) -> list[tuple[int, bytes, LiveInode]]:
        """Do as `Namespace.listing`, fetching what it needs. Raises RemoteError."""
        while True:
            try:
                return self._namespace.listing(ino, after, limit)
            except NodeMissing as missing:
                with self._core.waiters.one():
                    await self._fetch(ino, after, missing.ref)

    async def _fetch(self, ino: int, after: int, ref: bytes) -> None:
        root, prefix = self._core.overlay.root, entry_prefix(ino)
        await self._nodes.fetch(ref)
        await self._nodes.fetch_range(root, prefix + (after + 1).to_bytes(8, "big"), prefix_end(prefix))
        try:
            inodes = self._namespace.upcoming(ino, after, _AHEAD)
        except NodeMissing:
            return  # a level higher than leaves; the caller comes back
        await self._nodes.fetch_paths(root, sorted(inode_key(number) for number in inodes))
