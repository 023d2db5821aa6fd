"""An unmounted volume, opened for `decloud fsck`: its stores, and the map that its next mount would begin with.

Nothing is started but, unless it may not be asked, the agent. What is read comes from the staged segments, the cache or the
peers, like in a mount, but damage is noted and nothing is done about it. Opening does what a mount does: an unfinished end of
the journal is cut off. A cache that is damaged is left alone, and a scratch one used in its place.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from fsdecloud import limits
from fsdecloud.config import make_private_dir
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.crypto.seal import Kind, entry_id, open_entry
from fsdecloud.driver.agentlink import AgentEvents, AgentLink
from fsdecloud.driver.core import Core
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.files import Files
from fsdecloud.driver.journal import META, replay
from fsdecloud.driver.meta import VolumeMeta, decode_meta
from fsdecloud.driver.reader import Reader
from fsdecloud.driver.sealer import Sealer
from fsdecloud.errors import (
    BlobCorrupt,
    FsdecloudError,
    MalformedError,
    RemoteError,
    SealError,
    StoreCorrupt,
    StoreError,
)
from fsdecloud.fs.findings import DAMAGE, NOTE, DropCached, EmptyCache, Finding
from fsdecloud.fs.overlay import Overlay
from fsdecloud.store.cache import CacheStore
from fsdecloud.store.environment import open_environment
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.store.state import StateStore
from fsdecloud.tree.node import Node, NodeMissing, decode_node
from fsdecloud.types import EntryId, Ref
from fsdecloud.wire.agentapi import FetchedEntry, FetchEntry

NODES_KEPT: Final = 512
"""Decoded tree nodes in memory: several passes read the tree at once, each a path of it. At most 40 MB."""

FETCHES: Final = 16
"""Entries fetched at once."""

_CACHE_DATABASES: Final = 11


class NotHere(RemoteError):
    """An entry is not on this machine, and nobody else may be asked."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where an unmounted volume lies."""

    state: Path
    cache: Path
    cache_size: int = limits.CACHE_SIZE


@dataclass(slots=True)
class Opened:
    """An open volume, as far as it can be opened."""

    keys: VolumeKeys
    store: StateStore
    segments: SegmentStore
    cache: CacheStore
    meta: VolumeMeta
    staged: dict[EntryId, Location]
    source: Source
    core: Core | None = None
    """The replayed journal over the committed tree; None if it cannot be replayed."""
    pages: list[tuple[int, int]] = field(default_factory=list)
    """Inode and end, in the file, of each chunk's journaled bytes."""
    records: int = 0
    """Number of the next operation record."""


class Source:
    """Gives entries. `read` blocks and is for worker threads of the event loop; everything else is for the loop."""

    def __init__(
        self,
        staged: dict[EntryId, Location],
        segments: SegmentStore,
        cache: CacheStore,
        agent: AgentLink | None,
        timeout: float,
    ) -> None:
        self._staged = staged
        self._segments = segments
        self._cache = cache
        self.agent = agent
        self._timeout = timeout
        self._nodes: OrderedDict[bytes, Node] = OrderedDict()
        self.damaged: dict[EntryId, Finding] = {}
        """Cached entries that did not verify."""

    def is_cached(self, entry: EntryId) -> bool:
        """Whether the cache has the entry."""
        return self._cache.has(entry)

    def is_here(self, entry: EntryId) -> bool:
        """Whether reading the entry asks no peer, if its bytes are sound."""
        return entry in self._staged or self._cache.has(entry)

    def local(self, entry: EntryId) -> bytes | None:
        """Return the sealed bytes of an entry that this machine has, verified by their id. Blocking."""
        location = self._staged.get(entry)
        if location is not None:
            with suppress(StoreError):
                sealed = self._segments.read(location)
                if entry_id(sealed) == entry:
                    return sealed
        return self.cached(entry)

    def cached(self, entry: EntryId) -> bytes | None:
        """Return the sealed bytes of a cached entry, verified by their id. Blocking."""
        if not self._cache.has(entry):
            return None
        found = self._cache.locate(entry)
        try:
            store = self._cache.fetched if found is not None and found[0] == "fetched" else self._cache.kept
            sealed = store.read(found[1]) if found is not None else self._cache.get_small(entry)
        except StoreError:
            sealed = None
        if sealed is not None and entry_id(sealed) == entry:
            return sealed
        text = f"cached entry {entry.hex()[:16]} is damaged"
        self.damaged.setdefault(entry, Finding("cache", text, repair=DropCached(entry)))
        return None

    def sealed(self, entry: EntryId) -> bytes:
        """Return an entry's sealed bytes from wherever they are. In a worker thread. Raises RemoteError."""
        sealed = self.local(entry)
        return sealed if sealed is not None else trio.from_thread.run(self.fetch, entry)

    def read(self, ref: Ref, kind: Kind, *, limit: int = limits.CHUNK_SIZE) -> bytes:
        """Return an entry's plaintext. In a worker thread. Raises RemoteError, BlobCorrupt when the reference is wrong."""
        return _open(ref, kind, self.sealed(ref.id), limit)

    async def fetch(self, entry: EntryId) -> bytes:
        """Return an entry's sealed bytes from the peers. Raises NotHere, RemoteError."""
        if self.agent is None:
            raise NotHere(f"entry {entry.hex()[:16]} is not on this machine")
        answer = await self.agent.call("fetch", FetchEntry(entry, True), FetchedEntry, timeout=self._timeout)
        location = Location(answer.segment, answer.offset, answer.length)
        sealed = answer.data or await trio.to_thread.run_sync(self._cache.fetched.read, location)
        if entry_id(sealed) != entry:
            raise BlobCorrupt(f"the agent sent something else than entry {entry.hex()[:16]}")
        return sealed

    async def fetch_many(self, entries: Sequence[EntryId]) -> dict[EntryId, bytes | FsdecloudError]:
        """Return the sealed bytes of entries from the peers, or why they cannot be had; FETCHES at a time."""
        found: dict[EntryId, bytes | FsdecloudError] = {}
        limiter = trio.CapacityLimiter(FETCHES)

        async def one(entry: EntryId) -> None:
            async with limiter:
                try:
                    found[entry] = await self.fetch(entry)
                except FsdecloudError as exc:
                    found[entry] = exc

        async with trio.open_nursery() as nursery:
            for entry in dict.fromkeys(entries):
                nursery.start_soon(one, entry)
        return found

    # ---- tree nodes ------------------------------------------------------------------------------------------------------
    def bring(self, refs: Sequence[bytes]) -> None:
        """Fetch those of some nodes that are not here, some at once, into memory and cache. In a worker thread."""
        absent = [ref for ref in refs if ref not in self._nodes and not self.is_here(EntryId(ref[:32]))]
        if len(absent) < 2 or self.agent is None:
            return
        for start in range(0, len(absent), NODES_KEPT // 4):
            part = absent[start : start + NODES_KEPT // 4]
            answers = trio.from_thread.run(self.fetch_many, [EntryId(ref[:32]) for ref in part])
            self._put_cache([(entry, data) for entry, data in answers.items() if isinstance(data, bytes)])
            for ref in part:
                sealed = answers[EntryId(ref[:32])]
                if isinstance(sealed, bytes):
                    with suppress(BlobCorrupt):
                        self._keep(ref, sealed)

    def node(self, ref: bytes) -> Node:
        """Return a tree node. In a worker thread. Raises RemoteError, BlobCorrupt."""
        node = self._nodes.get(ref)
        if node is not None:
            self._nodes.move_to_end(ref)
            return node
        entry = Ref.from_bytes(ref).id
        sealed = self.local(entry)
        if sealed is None:
            sealed = trio.from_thread.run(self.fetch, entry)
            self._put_cache([(entry, sealed)])
        return self._keep(ref, sealed)

    def node_nowait(self, ref: bytes) -> Node:
        """Return a tree node that is in memory. Raises NodeMissing."""
        node = self._nodes.get(ref)
        if node is None:
            raise NodeMissing(ref)
        return node

    async def fetch_node(self, ref: bytes) -> None:
        """Bring a tree node into memory, from wherever it is. Raises RemoteError, BlobCorrupt."""
        await trio.to_thread.run_sync(self.node, ref)

    def _keep(self, ref: bytes, sealed: bytes) -> Node:
        try:
            node = decode_node(_open(Ref.from_bytes(ref), Kind.NODE, sealed, limits.NODE_DECODE_MAX))
        except MalformedError as exc:
            raise BlobCorrupt(str(exc)) from exc
        self._nodes[ref] = node
        if len(self._nodes) > NODES_KEPT:
            self._nodes.popitem(last=False)
        return node

    def _put_cache(self, entries: list[tuple[EntryId, bytes]]) -> None:
        with suppress(StoreError):  # it is fetched again
            self._cache.put_small([(entry, data) for entry, data in entries if len(data) <= limits.SMALL_ENTRY])


def _open(ref: Ref, kind: Kind, sealed: bytes, limit: int) -> bytes:
    try:
        return open_entry(ref.key, kind, sealed, limit=limit)
    except (SealError, MalformedError) as exc:
        raise BlobCorrupt(f"entry {ref.id.hex()[:16]} does not open with its reference's key: {exc}") from exc


# ---- opening -----------------------------------------------------------------------------------------------------------
def cache_damage(path: Path) -> str:
    """Return what is wrong with the index of a cache, "" if it opens or there is none. Blocking; changes nothing."""
    if not (path / "index").is_dir():
        return ""
    try:
        open_environment(path / "index", limits.CACHE_MAP_SIZE, _CACHE_DATABASES, sync=False).close()
    except StoreCorrupt as exc:
        return str(exc)
    return ""


@contextmanager
def open_stores(
    places: Places, keys: VolumeKeys, findings: list[Finding], *, repair: bool
) -> Iterator[tuple[StateStore, SegmentStore, CacheStore, VolumeMeta] | None]:
    """Open the stores of a volume whose lock is held; give None if that cannot be done, and what is wrong in `findings`.

    Blocking. Raises StoreError for what is no damage: a full disk, no permission.
    """
    scratch = places.cache.with_name(places.cache.name + ".fsck")
    with ExitStack() as exits:
        try:
            store = exits.enter_context(StateStore(places.state / "state.lmdb", keys.at_rest_key, keys.volume_id))
            data = store.meta(META)
            meta = decode_meta(data) if data is not None else VolumeMeta()
        except (StoreCorrupt, MalformedError) as exc:
            text = f"the local state cannot be opened: {exc}; what was anchored is with the peers (decloud recover)"
            findings.append(Finding("state", text, DAMAGE))
            yield None
            return
        segments = exits.enter_context(SegmentStore(make_private_dir(places.state / "staged"), "staged"))
        cache, reason = places.cache, cache_damage(places.cache)
        if reason:
            # A note: nothing is lost with it, and a boot must not stop for what its mount empties by itself.
            text = f"the cache is damaged: {reason}; the next mount begins with an empty one"
            findings.append(Finding("cache", text, NOTE, repair=EmptyCache()))
            if not repair:
                exits.callback(shutil.rmtree, scratch, ignore_errors=True)
                cache = scratch
        yield store, segments, exits.enter_context(CacheStore(cache, limit=places.cache_size)), meta


def no_events() -> AgentEvents:
    """Return what an agent's notices are to `fsck`: nothing."""

    def ignore(_notice: object) -> None:
        """The next mount asks again."""

    return AgentEvents(lambda: None, ignore, ignore, ignore, ignore)


async def replay_journal(opened: Opened, findings: list[Finding]) -> None:
    """Lay the journal over the committed tree, as a mount does. Sets `core`, unless that cannot be done.

    Raises RemoteError when a tree node that it takes cannot be had.
    """
    source, keys = opened.source, opened.keys
    core = Core(keys, Overlay(source.node_nowait, opened.meta.root), source.fetch_node)
    entries = Entries(keys.seal_secret, opened.segments, opened.cache, _Nobody(), 1.0)  # type: ignore[arg-type]
    reader = Reader(core, entries)
    sealer = Sealer(core, entries, reader.load_plain)
    files = Files(core, entries, sealer, kernel_times=False, stage_size=limits.STAGE_SIZE)
    try:
        opened.records = replay(core, files, opened.store.replay(), opened.meta.batched)
        await files.install_replayed()
    except (StoreCorrupt, MalformedError) as exc:
        findings.append(Finding("journal", f"the journal cannot be replayed: {exc}", DAMAGE))
        return
    opened.pages = [
        (chunk.ino, chunk.index * limits.CHUNK_SIZE + max(layer.extents.end for layer in chunk.layers))
        for chunk in (*files.dirty.values(), *sealer.waiting_chunks())
        if chunk.layers
    ]
    core.write_back()
    core.overlay.take_unjournaled()
    opened.core = core


class _Nobody:
    """In place of an agent where nothing is fetched."""

    async def call(self, *_arguments: object, **_options: object) -> None:
        raise NotHere("nothing is fetched here")
