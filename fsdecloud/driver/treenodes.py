"""The metadata tree's nodes: decoded ones in memory, the rest wherever entries are.

`get` is called from the event loop and from the committer's thread; it only reads a dictionary and thread-safe stores.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Final

import trio

from fsdecloud import limits
from fsdecloud.crypto.seal import Kind, open_entry, seal
from fsdecloud.driver.entries import Entries, raise_first
from fsdecloud.errors import SealError
from fsdecloud.tree.lookup import missing, missing_range
from fsdecloud.tree.node import Node, NodeMissing, decode_node
from fsdecloud.types import Ref

_FETCHES: Final = 32
"""Nodes fetched at once."""


class TreeNodes:
    """All nodes of one volume's metadata tree, by 64-byte reference."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._entries: Entries | None = None
        self._nodes: OrderedDict[bytes, Node] = OrderedDict()
        self._lock = Lock()

    def attach(self, entries: Entries) -> None:
        """Give it the place where entries come from."""
        self._entries = entries

    def get(self, ref: bytes) -> Node:
        """Return a node from memory or this machine. Raises NodeMissing when it must come from peers."""
        node = self._nodes.get(ref)
        return node if node is not None else self._keep(ref, self._open_local(ref))

    def read(self, ref: bytes) -> Node:
        """As `get`, but without keeping the node: for walks over very many."""
        node = self._nodes.get(ref)
        return node if node is not None else decode_node(self._open_local(ref))

    def _open_local(self, ref: bytes) -> bytes:
        assert self._entries is not None
        where = Ref.from_bytes(ref)
        sealed = self._entries.small_nowait(where.id)
        if sealed is None:
            raise NodeMissing(ref)
        try:
            return open_entry(where.key, Kind.NODE, sealed, limit=limits.NODE_DECODE_MAX)
        except SealError:  # damaged in the cache, which `fetch` finds too, and asks peers
            raise NodeMissing(ref) from None

    async def fetch(self, ref: bytes) -> None:
        """Bring a node into memory. Raises RemoteError when no peer can give it in time."""
        assert self._entries is not None
        self._keep(ref, await self._entries.get(Ref.from_bytes(ref), Kind.NODE))

    async def fetch_paths(self, root: bytes, keys: list[bytes]) -> None:
        """Bring all nodes on the paths to `keys` (ascending) into memory, a level at a time."""
        while wanted := missing(self.get, root, keys):
            for start in range(0, len(wanted), _FETCHES):
                await self._fetch_all(wanted[start : start + _FETCHES])

    async def fetch_range(self, root: bytes, start: bytes, stop: bytes) -> None:
        """Bring the first nodes that are missing between two keys into memory, some of them at once."""
        await self._fetch_all(missing_range(self.get, root, start, stop)[:_FETCHES])

    async def _fetch_all(self, refs: list[bytes]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for ref in refs:
                    nursery.start_soon(self.fetch, ref)
        except BaseExceptionGroup as group:  # the workers' group; the caller wants the error itself
            raise_first(group)

    def seal(self, data: bytes) -> tuple[Ref, bytes]:
        """Seal an encoded node."""
        return seal(self._secret, Kind.NODE, data)

    def _keep(self, ref: bytes, data: bytes) -> Node:
        node = decode_node(data)
        with self._lock:
            self._nodes[ref] = node
            if len(self._nodes) > limits.NODE_CACHE_ITEMS:
                self._nodes.popitem(last=False)
        return node
