"""The location map: where every entry and blob of the volume is.

Called only from the trio thread. New locations are rows in the journal; `fold` writes them into the tree, whose nodes are
sealed under the repair key and stored as whole copies on the peers, found by their id alone. A look-up asks the rows, then
the tree; nodes come from memory, the journal, or the peers.

When another device has anchored a newer map than ours, that one becomes the tree and ours an extra tree, asked last, until
its rows are merged at the next fold: nothing that this device stored is forgotten.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import islice
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.agent.garbage import Garbage
from fsdecloud.agent.gather import Place
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.journal import META, NODES, ROWS, UPLOADS, JournalWriter, Write
from fsdecloud.agent.rows import (
    BLOB_PREFIX,
    ENTRY_PREFIX,
    blob_key,
    decode_blob_row,
    decode_entry_row,
    entry_key,
)
from fsdecloud.agent.upload import Uploader
from fsdecloud.crypto import seal
from fsdecloud.crypto.keys import RepairKeys
from fsdecloud.crypto.seal import Kind
from fsdecloud.errors import BlobMissing, MalformedError, NotEnoughPeers
from fsdecloud.limits import KIB, NODE_CACHE_ITEMS, NODE_DECODE_MAX
from fsdecloud.swarm.hostmap import HostMap, decode_host_map, extends
from fsdecloud.tree.diff import diff, replaced
from fsdecloud.tree.lookup import lookup, missing, missing_range, prefix_end, scan
from fsdecloud.tree.node import Inner, Node, NodeMissing, decode_node
from fsdecloud.tree.update import update_steps
from fsdecloud.types import BlobId, EntryId, Ref

log = logging.getLogger(__name__)

NODE_SIZE: Final = 16 * KIB
"""Expected size of a node, for hedging."""

COMMIT_PATIENCE: Final = 60.0
"""A commit of the map that has not enough copies after this gives the driver an error to show; storing goes on."""

OWN_ROOTS: Final = 64
"""Roots of our own that are remembered. An older one is taken for another device's: more work, the same outcome."""

SWEEP_OVER: Final = 4096
"""Local nodes are swept at the start when there are more than this, and twice as many as were reachable last time."""

LOADS_MAX: Final = 16
"""Nodes fetched at once."""

FetchCopy = Callable[[EntryId, int], Awaitable[bytes]]


class LocationMap:
    """The map of one volume."""

    def __init__(self, writer: JournalWriter, keys: RepairKeys, hosts: Hosts, garbage: Garbage) -> None:
        """Begin with the journal's map."""
        self._garbage = garbage
        self._writer = writer
        self._journal = writer.journal
        self._keys = keys
        self._hosts = hosts
        self._nodes: OrderedDict[bytes, Node] = OrderedDict()
        self._fresh: dict[bytes, bytes] = {}
        """Sealed nodes of a fold that are not in the journal yet."""
        self._folding: dict[bytes, bytes] = {}
        """Rows that a fold is putting into the tree: when its transaction ends they leave the journal, and the root is changed
        a moment later."""
        self._lock = trio.Lock()
        self._uploader: Uploader | None = None
        self._fetch_copy: FetchCopy | None = None
        self.root = self._journal.get(META, b"map_root") or b""
        self.extra_root = self._journal.get(META, b"map_extra") or b""
        self._own_roots = self._journal.get(META, b"map_own_roots") or b""

    def connect(self, uploader: Uploader, fetch_copy: FetchCopy) -> None:
        """Take the collaborators that need this map themselves."""
        self._uploader = uploader
        self._fetch_copy = fetch_copy

    async def node(self, ref: bytes) -> Node:
        """Return a node of the map, from the peers if need be, without keeping it in memory. Raises RemoteError."""
        node = self._nodes.get(ref)
        if node is None:
            sealed = self._journal.get(NODES, ref[:32])
            if sealed is None:
                await self._load([ref])
                return self._get(ref)
            node = decode_node(seal.open_entry(ref[32:], Kind.MAP_NODE, sealed, limit=NODE_DECODE_MAX))
        return node

    async def reachable(self) -> list[bytes]:
        """Return the references of all nodes of the map. Raises RemoteError."""
        pending = [self.root] if self.root else []
        found: list[bytes] = []
        while pending:
            ref = pending.pop()
            found.append(ref)
            node = await self.node(ref)
            await trio.lowlevel.checkpoint()
            if isinstance(node, Inner):
                pending.extend(node.refs)
        return found

    async def tree_rows(self, root: bytes, prefix: bytes) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield the rows of a map under a prefix, without those that no fold has taken yet. Raises RemoteError."""
        stop = prefix_end(prefix)
        pending = [root] if root else []
        while pending:
            node = await self.node(pending.pop())
            await trio.lowlevel.checkpoint()
            if isinstance(node, Inner):
                for i in reversed(range(len(node.keys))):
                    upper = node.keys[i + 1] if i + 1 < len(node.keys) else None
                    if (upper is None or upper > prefix) and (stop is None or node.keys[i] < stop):
                        pending.append(node.refs[i])
            else:
                for key, value in zip(node.keys, node.values, strict=True):
                    if key.startswith(prefix):
                        yield key, value

    def copies(self) -> list[BlobId]:
        """Return the names of what is stored as whole copies besides the map's nodes: the latest manifest, the host map."""
        found = (self._journal.get(META, name) for name in (b"manifest", b"host_map_copy"))
        return [BlobId(value[:32]) for value in found if value]

    # ---- look-up ---------------------------------------------------------------------------------------------------
    async def locate(self, entry: EntryId) -> Place | None:
        """Return where an entry is, None if the map does not know it. Raises RemoteError when the map cannot be read."""
        own, packed = await self.find((blob_key(BlobId(entry)), entry_key(entry)))
        if own is not None:
            row = decode_blob_row(own)
            return Place(BlobId(entry), row, 0, row.length)
        if packed is None:
            return None
        where = decode_entry_row(packed)
        (found,) = await self.find((blob_key(where.blob),))
        if found is None:
            raise BlobMissing(f"the location map does not know the blob of entry {entry.hex()[:16]}")
        row = decode_blob_row(found)
        if where.offset + where.length > row.length:
            raise MalformedError("a location row points past the end of its blob")
        return Place(where.blob, row, where.offset, where.length)

    async def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key (ascending)."""
        found = [self._journal.get(ROWS, key) or self._folding.get(key) for key in keys]
        for root in (self.root, self.extra_root):
            if root and not all(found):
                while True:
                    try:
                        found = [f or lookup(self._get, root, key) for f, key in zip(found, keys, strict=True)]
                        break
                    except NodeMissing:
                        await self._load(missing(self._get, root, keys))
        return found

    async def rows_after(self, key: bytes, stop: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` rows with key < their key < stop, ascending. Raises RemoteError."""
        start = key + b"\0"
        found = {row: value for row, value in self._folding.items() if start <= row < stop}
        found |= dict(self._journal.items_between(ROWS, start, stop, limit))
        for root in (self.root, self.extra_root):
            while True:
                try:
                    rows = list(islice(scan(self._get, root, start, stop), limit))
                    break
                except NodeMissing:
                    await self._load(missing_range(self._get, root, start, stop)[:LOADS_MAX])
            found = dict(rows) | found
        return sorted(found.items())[:limit]

    def newer_rows(self) -> dict[bytes, bytes]:
        """Return all rows that are not in the tree of `root` yet, or differ there."""
        return self._folding | dict(self._journal.items(ROWS))

    def _get(self, ref: bytes) -> Node:
        node = self._nodes.get(ref)
        if node is not None:
            self._nodes.move_to_end(ref)
            return node
        sealed = self._fresh.get(ref) or self._journal.get(NODES, ref[:32])
        if sealed is None:
            raise NodeMissing(ref)
        return self._remember(ref, sealed)

    def _remember(self, ref: bytes, sealed: bytes) -> Node:
        node = decode_node(seal.open_entry(ref[32:], Kind.MAP_NODE, sealed, limit=NODE_DECODE_MAX))
        self._nodes[ref] = node
        if len(self._nodes) > NODE_CACHE_ITEMS:
            self._nodes.popitem(last=False)
        return node

    async def _load(self, refs: Sequence[bytes]) -> None:
        """Bring nodes from the peers into memory and journal. Raises RemoteError."""
        assert self._fetch_copy is not None
        fetch_copy = self._fetch_copy
        limiter = trio.CapacityLimiter(LOADS_MAX)
        errors: list[Exception] = []

        async def load(ref: bytes) -> None:
            async with limiter:
                try:
                    sealed = await fetch_copy(EntryId(ref[:32]), NODE_SIZE)
                    self._remember(ref, sealed)
                except Exception as exc:  # noqa: BLE001 - raised below, without an exception group around it
                    errors.append(exc)
                    return
            self._writer.write_nowait([(NODES, ref[:32], sealed)])

        async with trio.open_nursery() as nursery:
            for ref in refs:
                nursery.start_soon(load, ref)
        if errors:
            raise errors[0]

    # ---- writing ---------------------------------------------------------------------------------------------------
    async def commit(self) -> bytes:
        """Fold the pending rows into the tree and return its root once all its nodes have enough copies.

        Raises NotEnoughPeers when they have not within COMMIT_PATIENCE; they are stored further.
        """
        assert self._uploader is not None
        with trio.move_on_after(COMMIT_PATIENCE):
            await self._hosts.wait_known()
            async with self._lock:
                await self._merge()
                await self._fold()
                root = self.root
            await self._uploader.wait_anchorable(self._uploader.local_pending())
            return root
        raise NotEnoughPeers(f"the location map is not stored on enough peers yet: {self._uploader.last_error}")

    async def _fold(self) -> None:
        """Write the rows that are durable now into the tree, and take those of condemned blobs out. One transaction replaces
        them by nodes and root."""
        assert self._uploader is not None
        garbage = self._garbage
        # Nodes are fetched before the lock is taken: uploads wait for it.
        await self._bring([*self._journal.keys(ROWS), *(key for key, _ in (await garbage.dropping())[0])])
        async with garbage.lock:
            rows = self._journal.items(ROWS)
            dropped, records = await garbage.dropping()
            if not rows and not records:
                return
            self._fresh = {}
            old = self.root
            dropped = await self._still_inside(dropped, {blob for blob, _ in records})
            root = await self._update(sorted([*rows, *dropped]))
            gone = await self._replaced(old, root)
            blobs = [(BlobId(ref[:32]), len(sealed)) for ref, sealed in self._fresh.items()]
            writes: list[Write] = [(NODES, ref[:32], sealed) for ref, sealed in self._fresh.items()]
            on_their_way = {blob for blob, _ in blobs if self._uploader.is_on_its_way(blob)}
            writes += garbage.spared(on_their_way)
            writes += self._uploader.add_local(blobs)
            writes += self._uploader.folded()
            writes += garbage.dropped(records, (ref[:32] for ref in gone), self._hosts.map.current, NODE_SIZE)
            own_roots = (root + self._own_roots)[: OWN_ROOTS * 64]
            writes += [(META, b"map_root", root), (META, b"map_own_roots", own_roots)]
            self._folding = dict(rows)
            try:
                with trio.CancelScope(shield=True):  # memory and disk agree
                    await trio.to_thread.run_sync(lambda: self._journal.apply(writes, folded=self._folding))
            except BaseException:  # cancelled or failed, nothing was folded
                self._folding = {}
                self._uploader.take_back_local(blob for blob, _ in blobs if blob not in on_their_way)
                raise
            garbage.generation += 1
            self.root, self._own_roots = root, own_roots
            self._fresh, self._folding = {}, {}
        self._uploader.start_local([blob for blob, _ in blobs])

    async def _still_inside(
        self, dropped: Sequence[tuple[bytes, None]], blobs: set[BlobId]
    ) -> list[tuple[bytes, None]]:
        """Return what of these keys a fold may delete: an entry that the map has in none of `blobs` is needed elsewhere."""
        found: list[tuple[bytes, None]] = []
        for key, nothing in dropped:
            if key.startswith(ENTRY_PREFIX):
                data = await self._look_up(key)
                if data is not None and decode_entry_row(data).blob not in blobs:
                    log.error("entry %s of a condemned blob is in another one: its row stays", key[1:9].hex())
                    continue
            found.append((key, nothing))
        return found

    async def _look_up(self, key: bytes) -> bytes | None:
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return lookup(self._get, self.root, key) if self.root else None
            except NodeMissing as exc:
                await self._load([exc.ref])

    async def _replaced(self, old: bytes, new: bytes) -> list[bytes]:
        """Return the nodes of the old tree that the new one has no more."""
        while True:
            try:
                return list(replaced(self._get, old, new))
            except NodeMissing as exc:
                await self._load([exc.ref])

    async def _update(self, rows: Sequence[tuple[bytes, bytes | None]]) -> bytes:
        """Return the tree's root with `rows`; its new nodes are in `_fresh`. Starts again when a node must be fetched."""
        await self._bring([key for key, _ in rows])
        while True:
            steps = update_steps(self._get, self._put, self._keys.map_border_secret, self.root, rows)
            try:
                while True:
                    next(steps)
                    await trio.lowlevel.checkpoint()
            except StopIteration as stop:
                return bytes(stop.value)
            except NodeMissing as exc:
                await self._load([exc.ref])

    async def _bring(self, keys: list[bytes]) -> None:
        """Have all nodes on the paths to `keys` on this machine."""
        keys.sort()
        while absent := missing(self._get, self.root, keys):
            await self._load(absent)

    def _put(self, encoded: bytes) -> bytes:
        ref, sealed = seal.seal(self._keys.map_seal_secret, Kind.MAP_NODE, encoded)
        name = ref.to_bytes()
        self._fresh[name] = sealed
        return name

    # ---- another device's map --------------------------------------------------------------------------------------
    def has_written(self, root: bytes) -> bool:
        """Say whether this device wrote the map with this root, not long ago: ours then holds all that it does."""
        roots = self._own_roots
        return not root or any(roots[at : at + 64] == root for at in range(0, len(roots), 64))

    async def adopt(self, root: bytes, host_map: bytes) -> None:
        """Take over a newer map, keeping what only ours knows. `root` is b"" or a 64-byte reference.

        A host map that extends ours, or that ours extends, leaves our rows right. Otherwise (two devices added peers at
        the same time) theirs holds, and our rows name every peer from then on.
        """
        if root:
            Ref.from_bytes(root)
        if self.root != root:
            await self._garbage.forget_all()
        writes: list[Write] = [(META, b"map_root", root)]
        if self.root and self.root != root and not self.extra_root:
            log.info("another device has written a newer location map; merging ours into it")
            writes += [(META, b"map_extra", self.root), (META, b"host_map_extra", self._hosts.encoded)]
            self.extra_root = self.root
        theirs, ours = decode_host_map(host_map), self._hosts.map
        if not extends(ours, theirs):
            if not extends(theirs, ours):
                writes += self._pin_rows(self._journal.items(ROWS), ours)
            self._hosts.replace(theirs)
        self.root = root
        await self._writer.write(writes)

    async def follow(self, root: bytes, host_map: bytes, more: Sequence[Write]) -> None:
        """Take the owner's map for all there is, in place of whoever keeps it for them: our own rows were made from an older
        one. `more` is written with it. Raises MalformedError."""
        if root:
            Ref.from_bytes(root)
        theirs = decode_host_map(host_map)
        await self._garbage.forget_all()
        gone: list[Write] = [(ROWS, key, None) for key in self._journal.keys(ROWS)]
        if not extends(self._hosts.map, theirs):
            self._hosts.replace(theirs)
        self.root = root
        await self._writer.write([*gone, (META, b"map_root", root), *more])

    def _pin_rows(self, rows: Sequence[tuple[bytes, bytes]], host_map: HostMap) -> list[Write]:
        """Return rows that name the peer of every shard: they were made under `host_map`, which is given up."""
        writes: list[Write] = []
        for key, value in rows:
            pinned = value
            if key.startswith(BLOB_PREFIX):
                row = decode_blob_row(value)
                ranking = self._hosts.ranking_of_older(host_map, key[1:], row.epoch)
                named = dict(enumerate(ranking[: row.n])) | dict(row.exceptions)
                pinned = codec.encode(msgspec.structs.replace(row, exceptions=tuple(sorted(named.items()))))
            writes.append((ROWS, key, pinned))
        return writes

    async def _merge(self) -> None:
        """Make rows of what only the extra tree knows, and drop it."""
        while self.extra_root:
            found: list[tuple[bytes, bytes]] = []
            try:
                for key, theirs, ours in diff(self._get, self.root, self.extra_root):
                    if theirs is None and ours is not None and not self._journal.has(ROWS, key):
                        found.append((key, ours))
                    await trio.lowlevel.checkpoint()
            except NodeMissing as exc:
                await self._load([exc.ref])
                continue
            older = decode_host_map(self._journal.get(META, b"host_map_extra") or b"")
            if extends(self._hosts.map, older):
                writes: list[Write] = [(ROWS, key, value) for key, value in found]
            else:
                writes = self._pin_rows(found, older)
            await self._writer.write([*writes, (META, b"map_extra", None), (META, b"host_map_extra", None)])
            self.extra_root = b""

    # ---- local nodes -----------------------------------------------------------------------------------------------
    def sweep(self) -> None:
        """Delete local nodes that the map no longer reaches, when they are many. Blocking: a worker thread, at the start."""
        count = self._journal.count(NODES)
        last = int(self._journal.get(META, b"nodes_live") or b"0")
        if count <= max(SWEEP_OVER, 2 * last):
            return
        live = dict.fromkeys(self._journal.keys(UPLOADS))
        pending = [root for root in (self.root, self.extra_root) if root]
        while pending:
            ref = pending.pop()
            sealed = self._journal.get(NODES, ref[:32])
            if sealed is None:
                continue
            live[ref[:32]] = None
            node = decode_node(seal.open_entry(ref[32:], Kind.MAP_NODE, sealed, limit=NODE_DECODE_MAX))
            if isinstance(node, Inner):
                pending.extend(child for child in node.refs if child[:32] not in live)
        gone: list[Write] = [(NODES, key, None) for key in self._journal.keys(NODES) if key not in live]
        self._journal.apply([*gone, (META, b"nodes_live", str(len(live)).encode())])
        log.info("dropped %d local nodes that the location map no longer reaches", len(gone))
