"""Which files of a mount cannot be read as a whole now, because too few peers answer (`decloud unreadable`).

A walk over the directories as a program would make it, without reading any contents: a file is named when an entry that
one of its chunks needs is neither staged nor cached here and the agent cannot have it from the peers (`agent.reach`), or
when a node of the tree that reading the file needs is such an entry. Tree nodes that only peers have are fetched, as
read-ahead. What is merely in memory (the kernel's pages, opened chunks) is not asked.

The walk goes over the live state, in steps of milliseconds with rests between: what is renamed meanwhile may be met twice or
not at all. Called only from the event loop. Memory: the directories from the root to where it is with a page of names
each, the chunks of one question to the agent, NODES_KEPT tree nodes.
"""

from __future__ import annotations

import stat
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, ParamSpec, TypeVar

import trio

from fsdecloud.crypto.seal import Kind
from fsdecloud.driver.agentlink import AgentLink
from fsdecloud.driver.core import Core
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.treenodes import TreeNodes
from fsdecloud.errors import FsdecloudError, MalformedError, UsageError
from fsdecloud.fs.chunks import decode_chunk, refs
from fsdecloud.fs.inode import decode_entry, decode_inode
from fsdecloud.fs.keys import (
    ROOT,
    chunk_key,
    chunk_prefix,
    entry_prefix,
    inode_key,
    prefix_end,
    split_chunk_key,
    split_entry_key,
)
from fsdecloud.fs.overlay import Overlay
from fsdecloud.limits import CHUNK_SIZE
from fsdecloud.net.unix import Handler
from fsdecloud.tree.lookup import leaf_at
from fsdecloud.tree.node import Inner, Node, NodeMissing, decode_node
from fsdecloud.types import EntryId, Ref
from fsdecloud.wire.agentapi import KNOWN_MAX, EntryNames, ReachQuery
from fsdecloud.wire.controlapi import Unreadable, UnreadablePage, UnreadableQuery

P = ParamSpec("P")
R = TypeVar("R")

STEP: Final = 0.01
"""Seconds of work in one step."""

REST: Final = 1.0
"""Rest after each step, in its length."""

PAGE: Final = 500
"""Names in one answer."""

PAGE_BYTES: Final = 1 << 20
"""An answer ends once its paths are so long together: it must fit into RPC_MAX."""

PAGE_TIME: Final = 1.0
"""Seconds after which an answer comes with what there is, so that progress can be shown."""

LISTED: Final = 64
"""Names, or chunks of a file, that are taken from the tree at once."""

RANGES_MAX: Final = 64
"""Ranges of one file that are told."""

PATH_MAX: Final = 1 << 16
"""A longer path begins with the number of a directory, `#17/...`, as in the record of operations."""

NODES_KEPT: Final = 128
"""Tree nodes of the walk in memory: it should not drive those out that programs use."""

AHEAD: Final = 16
"""Tree nodes fetched at once."""

SESSIONS_MAX: Final = 4

PATIENCE: Final = 90.0
"""Seconds for the agent to say what can be had: it may have to fetch nodes of the location map, from peers that are slow."""


class _Gone(Exception):
    """A part of the tree cannot be had now."""


@dataclass(slots=True, eq=False)
class _Directory:
    """One that is being listed, from `key` on."""

    ino: int
    path: bytes
    key: bytes
    above: _Directory | None = None
    is_cut: bool = False
    """No program gets here: its attributes, or those of one above it, cannot be read."""
    is_told: bool = False
    """It was named: for its attributes, or for names that are not known."""

    def is_in(self, ino: int) -> bool:
        """Whether it is, or lies in, a directory: a damaged tree may have circles."""
        at: _Directory | None = self
        while at is not None and at.ino != ino:
            at = at.above
        return at is not None


@dataclass(slots=True, eq=False)
class _File:
    """One whose chunks are being looked at, from `key` on."""

    ino: int
    path: bytes
    size: int
    key: bytes
    lost: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)
    has_more: bool = False

    def add(self, first: int, end: int) -> None:
        """Note chunks that cannot be read, ascending."""
        start, stop = first * CHUNK_SIZE, min(end * CHUNK_SIZE, self.size)
        if start >= stop:
            return
        self.lost += stop - start
        if self.ranges and self.ranges[-1][1] == start and not self.has_more:
            self.ranges[-1] = (self.ranges[-1][0], stop)
        elif len(self.ranges) < RANGES_MAX:
            self.ranges.append((start, stop))
        else:
            self.has_more = True


class Search:
    """One walk."""

    def __init__(self, core: Core, entries: Entries, nodes: TreeNodes, agent: AgentLink) -> None:
        self._core = core
        self._entries = entries
        self._tree = nodes
        self._agent = agent
        self._stack = [_Directory(ROOT, b"", entry_prefix(ROOT))]
        self._files: deque[_File] = deque()
        self._found: deque[Unreadable] = deque()
        self._nodes: OrderedDict[bytes, Node] = OrderedDict()
        self._map = Overlay(self._node, b"")
        self._parent: Inner | None = None
        """The inner node that was read last: where siblings of a missing node are."""
        self._gone: set[bytes] = set()
        """Nodes that could not be had, in this page."""
        self._woken = 0.0
        self.names = 0
        """How many were looked at."""

    async def start(self) -> None:
        """Look which peers are there, and at the root directory. Raises RemoteError without an agent."""
        await self._ask((), probe=True)
        try:
            await self._run(self._inode, ROOT)
        except _Gone:
            self._tell(b"", ROOT, "attributes")
            self._stack[0].is_cut = self._stack[0].is_told = True

    async def page(self) -> tuple[list[Unreadable], bool]:
        """Go on for a while; return what was found, and whether that was all. Raises RemoteError without an agent."""
        self._gone.clear()  # peers return
        end = trio.current_time() + PAGE_TIME
        self._woken = trio.current_time()
        while (self._stack or self._files) and len(self._found) < PAGE and trio.current_time() < end:
            if self._files:
                await self._look(end)
            else:
                await self._list(self._stack[-1])
        found: list[Unreadable] = []
        size = 0
        while self._found and len(found) < PAGE and size < PAGE_BYTES:
            found.append(self._found.popleft())
            size += len(found[-1].path)
        return found, not (self._stack or self._files or self._found)

    def _tell(self, path: bytes, ino: int, lacks: str) -> None:
        self._found.append(Unreadable(path, ino, lacks, -1, ()))

    # ---- directories ---------------------------------------------------------------------------------------------------
    async def _list(self, directory: _Directory) -> None:
        """Take the next names of the directory on top of the stack."""
        stop = prefix_end(entry_prefix(directory.ino))
        try:
            rows = await self._run(self._rows, directory.key, stop)
        except _Gone:
            if not directory.is_told:
                directory.is_told = True
                self._tell(directory.path, directory.ino, "names")
            directory.key = await self._behind(directory.key, stop)
            rows = []
            if directory.key < stop:
                return
        if not rows:
            self._stack.pop()
            return
        directory.key = rows[-1][0] + b"\0"
        for key, value in rows:
            await self._enter(directory, split_entry_key(key)[1], value)

    async def _enter(self, directory: _Directory, name: bytes, value: bytes) -> None:
        """Look at what one name leads to."""
        self.names += 1
        try:
            entry = decode_entry(name, value)
        except MalformedError:
            return  # nothing to read, with or without peers: fsck
        ino = entry.inode
        prefix = directory.path if len(directory.path) < PATH_MAX else b"#%d" % directory.ino
        path = prefix + b"/" + name if prefix else name
        is_cut, is_told = directory.is_cut, False
        found: tuple[int, int] | None = (entry.type, 0)
        if is_cut:
            if not stat.S_ISDIR(entry.type):
                self._tell(path, ino, "path")
        else:
            try:
                found = await self._run(self._inode, ino)
            except _Gone:
                self._tell(path, ino, "attributes")
                is_cut = is_told = True
        if stat.S_ISDIR(entry.type):
            if not directory.is_in(ino):
                self._stack.append(_Directory(ino, path, entry_prefix(ino), directory, is_cut, is_told))
        elif not is_cut and found is not None and stat.S_ISREG(found[0]) and found[1]:
            # Not from the prefix on: that may lie in the leaf before, which no read needs.
            self._files.append(_File(ino, path, found[1], chunk_key(ino, 0)))

    def _inode(self, ino: int) -> tuple[int, int] | None:
        """Return an inode's mode and size, None if there is none."""
        live = self._core.inodes.peek(ino)
        if live is not None:
            return live.mode, live.size
        data = self._view().get(inode_key(ino))
        value = decode_inode(data) if data is not None else None
        return (value.mode, value.size) if value is not None else None

    # ---- files ---------------------------------------------------------------------------------------------------------
    async def _look(self, end: float) -> None:
        """Look at the next chunks of some files until some time: as many as the agent is asked about at once."""
        wanted: dict[EntryId, None] = {}
        waiting: list[tuple[_File, int, int, tuple[EntryId, ...]]] = []
        done: list[_File] = []
        is_late = False
        while self._files and len(wanted) < KNOWN_MAX - LISTED and not is_late:
            is_late = trio.current_time() >= end
            file = self._files[0]
            stop = prefix_end(chunk_prefix(file.ino))
            try:
                rows = await self._run(self._rows, file.key, stop)
            except _Gone:
                behind = await self._behind(file.key, stop)
                for first, last, absent in self._gap(file, behind, stop):
                    if len(wanted) + len(absent) > KNOWN_MAX:  # the rest comes with the next question
                        behind, is_late = chunk_key(file.ino, first), True
                        break
                    waiting.append((file, first, last, absent))
                    wanted.update(dict.fromkeys(absent))
                file.key = behind
                rows = []
                if file.key < stop:
                    continue
            for key, value in rows:
                index = split_chunk_key(key)[1]
                absent = self._absent(file, index, value)
                if len(wanted) + len(absent) > KNOWN_MAX:  # patches: the rest comes with the next question
                    break
                file.key = key + b"\0"
                if absent:
                    waiting.append((file, index, index + 1, absent))
                    wanted.update(dict.fromkeys(absent))
            else:
                if not rows:
                    done.append(self._files.popleft())
                continue
            break
        away = await self._ask(tuple(wanted)) if wanted else set()
        for file, first, last, absent in waiting:
            if not absent or not away.isdisjoint(absent):
                file.add(first, last)
        for file in done:
            if file.lost:
                self._found.append(
                    Unreadable(file.path, file.ino, "contents", file.lost, tuple(file.ranges), file.has_more)
                )

    def _gap(self, file: _File, behind: bytes, stop: bytes) -> Iterator[tuple[int, int, tuple[EntryId, ...]]]:
        """Yield the chunks between a file's key and `behind`, where the tree cannot be had, as first, end, and what they need:
        nothing for those that are not known. Those that wait for a commit are."""
        at = _chunk_at(file.key)
        end = _chunk_at(behind) if behind < stop else -(-file.size // CHUNK_SIZE)
        for key, value in self._view().pending(file.key, behind):
            index = split_chunk_key(key)[1]
            if at < index:
                yield at, index, ()
            if value is not None and (absent := self._absent(file, index, value)):
                yield index, index + 1, absent
            at = index + 1
        if at < end:
            yield at, end, ()

    def _absent(self, file: _File, index: int, value: bytes) -> tuple[EntryId, ...]:
        """Return the entries that reading a chunk would ask the peers for."""
        length = min(file.size - index * CHUNK_SIZE, CHUNK_SIZE)
        if length <= 0:
            return ()
        try:
            chunk = decode_chunk(value)
        except MalformedError:
            return ()  # fsck says so
        absent = tuple(ref.id for ref in refs(chunk) if not self._entries.is_local(ref.id))
        live = self._core.inodes.peek(file.ino) if absent else None
        dirty = live.chunks.get(index) if live is not None else None
        if dirty is not None and len(dirty.layers) == 1 and dirty.layers[0].extents.covers(length):
            return ()
        return absent

    # ---- the tree ------------------------------------------------------------------------------------------------------
    def _view(self) -> Overlay:
        """Return the map as it is now, read through the walk's own nodes."""
        view, overlay = self._map, self._core.overlay
        view.root, view.current, view.frozen = overlay.root, overlay.current, overlay.frozen
        return view

    def _node(self, ref: bytes) -> Node:
        node = self._nodes.get(ref)
        if node is None:
            node = self._keep(ref, self._tree.read(ref))
        else:
            self._nodes.move_to_end(ref)
        if isinstance(node, Inner):
            self._parent = node
        return node

    def _keep(self, ref: bytes, node: Node) -> Node:
        self._nodes[ref] = node
        if len(self._nodes) > NODES_KEPT:
            self._nodes.popitem(last=False)
        return node

    def _rows(self, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        """Return the next rows between two keys; fewer than LISTED also where a node is missing behind them."""
        rows: list[tuple[bytes, bytes]] = []
        try:
            for row in self._view().scan(start, stop):
                rows.append(row)
                if len(rows) == LISTED:
                    break
        except NodeMissing:
            if not rows:
                raise
        return rows

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that reads the tree, bringing what it needs. Raises _Gone when that cannot be had."""
        while True:
            await self._breathe()
            try:
                return function(*args, **kwargs)
            except NodeMissing as missing:
                await self._bring(missing.ref)
            except MalformedError as exc:
                raise _Gone from exc

    async def _breathe(self) -> None:
        """Rest after a step."""
        worked = trio.current_time() - self._woken
        if worked >= STEP:
            await trio.sleep(min(worked, 1.0) * REST)
            self._woken = trio.current_time()

    async def _behind(self, key: bytes, stop: bytes) -> bytes:
        """Return the first key from `key` on behind what cannot be had, `stop` if nothing is."""
        while key < stop:
            try:
                ref, upper = leaf_at(self._node, self._core.overlay.root, key)
            except MalformedError:
                return stop
            if not ref:
                key = stop if upper is None else min(upper, stop)
                continue
            try:
                await self._bring(ref)
            except _Gone:
                return stop if upper is None else min(upper, stop)
        return stop

    async def _bring(self, ref: bytes) -> None:
        """Fetch a node, and some behind it that will be wanted. Raises _Gone when it cannot be had."""
        if ref in self._gone:
            raise _Gone
        wanted = [ref]
        if self._parent is not None and ref in self._parent.refs:
            first = self._parent.refs.index(ref)
            wanted += [
                other
                for other in self._parent.refs[first + 1 : first + AHEAD]
                if other not in self._gone and not self._entries.is_local(EntryId(other[:32]))
            ]
        # A large one is not in memory though it is here.
        asked = [name for other in wanted if not self._entries.is_local(name := EntryId(other[:32]))]
        away = await self._ask(tuple(asked)) if asked else set()
        self._gone.update(other for other in wanted if other[:32] in away)

        async def fetch(other: bytes) -> None:
            try:
                data = await self._entries.get(Ref.from_bytes(other), Kind.NODE, ahead=True)
                self._keep(other, decode_node(data))
            except FsdecloudError:
                self._gone.add(other)

        async with trio.open_nursery() as nursery:
            for other in wanted:
                if other not in self._gone:
                    nursery.start_soon(fetch, other)
        self._woken = trio.current_time()
        if ref in self._gone:
            raise _Gone

    async def _ask(self, entries: Sequence[EntryId], *, probe: bool = False) -> set[EntryId]:
        """Return which of these entries the peers cannot give."""
        answer = await self._agent.call("unreachable", ReachQuery(tuple(entries), probe), EntryNames, timeout=PATIENCE)
        self._woken = trio.current_time()
        return set(answer.entries)


def _chunk_at(key: bytes) -> int:
    """Return the index of the first chunk that may stand from a key on."""
    return split_chunk_key(key)[1] + (len(key) > 17)


class _Session:
    """One walk that is asked for page by page."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.is_busy = False


class UnreadableControl:
    """Answers on the control socket of one mount. An abandoned walk goes when there are too many."""

    def __init__(self, make: Callable[[], Search]) -> None:
        self._make = make
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        self._last = 0

    def methods(self) -> Mapping[str, Handler]:
        """Return the methods by name."""
        return {"unreadable": (UnreadableQuery, self._page)}

    async def _page(self, query: UnreadableQuery) -> UnreadablePage:
        number = query.session or await self._begin()
        session = self._sessions.get(number)
        if session is None or session.is_busy:
            raise UsageError("that search is over: begin again")
        session.is_busy = True
        try:
            found, is_last = await session.search.page()
        except BaseException:  # cancelled or failed, its session is of no more use
            self._sessions.pop(number, None)
            raise
        session.is_busy = False
        if is_last:
            self._sessions.pop(number, None)
        return UnreadablePage(tuple(found), session.search.names, 0 if is_last else number)

    async def _begin(self) -> int:
        search = self._make()
        await search.start()
        self._last += 1
        self._sessions[self._last] = _Session(search)
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return self._last
