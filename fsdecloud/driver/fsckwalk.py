"""Walking a volume's trees: is every node there and in its place, and what it refers to known and readable.

The trees of all retained snapshots share most of their nodes; what was seen once is not looked at again. For worker threads.
Memory: about 100 bytes for each distinct tree node (a node holds some fifty rows), and the batch under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from fsdecloud.crypto.seal import Kind, open_entry
from fsdecloud.driver.fsckstate import NotHere, Source
from fsdecloud.errors import BlobMissing, FsdecloudError, MalformedError, RemoteError, SealError
from fsdecloud.fs.chunks import Stored, decode_chunk
from fsdecloud.fs.findings import DAMAGE, FAULT, NOTE, Finding, Restage, Steps
from fsdecloud.fs.history import decode_batches
from fsdecloud.tree.node import Inner, Node
from fsdecloud.types import EntryId, Ref
from fsdecloud.wire.agentapi import KNOWN_MAX, EntryNames

_AT_ONCE: Final = 32
"""Entries read together, of up to a MiB each."""

_PATIENCE: Final = 60.0
"""Seconds for the agent to say which entries it knows: it may have to fetch nodes of the location map."""

_KINDS: Final = {b"D": "names in directory", b"C": "contents of inode", b"X": "attributes of inode", b"I": "inode"}


@dataclass(frozen=True, slots=True)
class Use:
    """One reference, and what it is used for."""

    ref: Ref
    kind: Kind
    length: int
    """The plaintext has at least so many bytes."""
    inode: int
    what: str


def uses_of(pairs: Iterable[tuple[bytes, bytes]], where: str) -> Iterator[Use]:
    """Yield what rows of the volume's map refer to, but for rows that cannot be read."""
    for key, value in pairs:
        if key[:1] == b"C":
            try:
                chunk = decode_chunk(value)
            except MalformedError:
                continue  # `fs.checkmap` says so, for the present
            if isinstance(chunk, Stored):
                ino, index = int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:], "big")
                if chunk.ref is not None:
                    yield Use(chunk.ref, Kind.CHUNK, chunk.length, ino, f"chunk {index}{where}")
                for patch in chunk.patches:
                    yield Use(patch.ref, Kind.PATCH, patch.length, ino, f"chunk {index}{where}")
        elif key[:1] == b"B":
            try:
                row = decode_batches(value)
            except MalformedError:
                continue
            for batch in row.batches:
                yield Use(batch.ref, Kind.RECORDS, 1, 0, f"records of anchor {int.from_bytes(key[1:9], 'big')}")


class Walk:
    """One check of all trees and references."""

    def __init__(self, source: Source, staged: Callable[[EntryId], bool], lost: set[EntryId], *, data: bool) -> None:
        """`lost` are staged entries that do not read back; with `data`, everything referred to is read."""
        self._source = source
        self._is_staged = staged
        self._lost = lost
        self._data = data
        self._seen: set[bytes] = set()
        self._batch: list[Use] = []
        self.nodes = 0
        self.references = 0
        self.unchecked = 0
        """References to entries that are not on this machine, while nobody else may be asked."""
        self.bytes = 0
        """Plaintext read."""

    # ---- trees -----------------------------------------------------------------------------------------------------------
    def walk(self, root: bytes, where: str) -> Iterator[Finding | None]:
        """Check the tree under a root; `where` is " of snapshot 7" or the like. Ends with all its references checked."""
        # Each entry: reference, level (None: any), first key, the bound above all keys.
        stack: list[tuple[bytes, int | None, bytes, bytes | None]] = [(root, None, b"", None)] if root else []
        while stack:
            ref, level, first, upper = stack.pop()
            if ref[:16] in self._seen:
                continue
            self._seen.add(ref[:16])
            node: Node | None = None
            try:
                node = self._source.node(ref)
                if level is not None and (node.level != level or node.keys[0] != first or not _fits(node, upper)):
                    raise MalformedError("it does not fit its place in the tree")
            except (FsdecloudError, ValueError) as exc:
                yield self._bad_node(ref, first, upper, where, exc)
                continue
            self.nodes += 1
            yield from self._refer(Use(Ref.from_bytes(ref), Kind.NODE, 1, 0, f"a tree node{where}"))
            if isinstance(node, Inner):
                self._source.bring(node.refs)
                for index in reversed(range(len(node.refs))):
                    bound = node.keys[index + 1] if index + 1 < len(node.keys) else upper
                    stack.append((node.refs[index], node.level - 1, node.keys[index], bound))
            else:
                yield from self.refer(zip(node.keys, node.values, strict=True), where)
            yield None
        yield from self.finish()

    def _bad_node(self, ref: bytes, first: bytes, upper: bytes | None, where: str, exc: Exception) -> Finding:
        if isinstance(exc, NotHere):
            return Finding("unchecked", f"a tree node{where} is not on this machine: {_range(first, upper)}", NOTE)
        if isinstance(exc, RemoteError) and not isinstance(exc, BlobMissing) and not self._is_staged(EntryId(ref[:32])):
            text = f"a tree node{where} cannot be read now ({_range(first, upper)}): {exc}"
            return Finding("unreadable", text, DAMAGE)
        return Finding("tree", f"a tree node{where} is lost ({_range(first, upper)}): {exc}", DAMAGE)

    # ---- references --------------------------------------------------------------------------------------------------------
    def refer(self, pairs: Iterable[tuple[bytes, bytes]], where: str) -> Steps:
        """Check what some rows refer to, in time."""
        for use in uses_of(pairs, where):
            yield from self._refer(use)

    def _refer(self, use: Use) -> Steps:
        self._batch.append(use)
        if len(self._batch) >= KNOWN_MAX:
            yield from self.finish()

    def finish(self) -> Steps:
        """Check what waits."""
        batch, self._batch = self._batch, []
        self.references += len(batch)
        absent: dict[EntryId, Use] = {}
        for use in batch:
            entry = use.ref.id
            if entry in self._lost:
                if use.kind is not Kind.NODE:  # else the node itself was found to be lost
                    yield self._missing(use, "its staged entry is damaged")
            elif not self._is_staged(entry):
                absent.setdefault(entry, use)
        yield from self._check_known(absent)
        if self._data:
            yield from self._read(batch)
        yield None

    def _check_known(self, absent: dict[EntryId, Use]) -> Steps:
        """Ask the agent for the places of entries that are not staged."""
        agent = self._source.agent
        if agent is None:
            self.unchecked += sum(not self._source.is_cached(entry) for entry in absent)
            return
        if not absent:
            return
        try:
            ask = partial(agent.call, "known", EntryNames(tuple(absent)), EntryNames, timeout=_PATIENCE)
            unknown = trio.from_thread.run(ask).entries
        except RemoteError as exc:
            yield Finding("unreadable", f"the location map cannot be read now: {exc}", DAMAGE)
            return
        for entry in unknown:
            if self._source.is_cached(entry) and self._source.cached(entry) is not None:
                text = f"{absent[entry].what}: only the cache has entry {entry.hex()[:16]}, no peer"
                yield Finding("reference", text, FAULT, absent[entry].inode, repair=Restage(entry))
            else:
                yield self._missing(absent[entry], "nothing knows where its entry is")

    def _missing(self, use: Use, why: str) -> Finding:
        return Finding("reference", f"{use.what} is lost: {why} ({use.ref.id.hex()[:16]})", DAMAGE, use.inode)

    def _read(self, batch: list[Use]) -> Steps:
        """Read and open everything of a batch but tree nodes, which were read."""
        wanted = [use for use in batch if use.kind is not Kind.NODE and use.ref.id not in self._lost]
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            found: dict[EntryId, bytes | FsdecloudError] = {}
            for use in part:
                sealed = self._source.local(use.ref.id)
                if sealed is not None:
                    found[use.ref.id] = sealed
            rest = [use.ref.id for use in part if use.ref.id not in found]
            if rest:
                found |= trio.from_thread.run(self._source.fetch_many, rest)
            for use in part:
                problem = self._open(use, found[use.ref.id])
                if problem is not None:
                    yield problem
            yield None

    def _open(self, use: Use, sealed: bytes | FsdecloudError) -> Finding | None:
        if isinstance(sealed, NotHere):
            return None  # counted already
        if isinstance(sealed, FsdecloudError):
            kind = "reference" if isinstance(sealed, BlobMissing) else "unreadable"
            return Finding(kind, f"{use.what} cannot be read: {sealed}", DAMAGE, use.inode)
        try:
            data = open_entry(use.ref.key, use.kind, sealed)
        except (SealError, MalformedError) as exc:
            return Finding("reference", f"{use.what} does not open: {exc}", DAMAGE, use.inode)
        self.bytes += len(data)
        if len(data) < use.length:
            text = f"{use.what} has {len(data)} bytes where {use.length} are named"
            return Finding("reference", text, DAMAGE, use.inode)
        return None


def _fits(node: Node, upper: bytes | None) -> bool:
    return upper is None or node.keys[-1] < upper


def _range(first: bytes, upper: bytes | None) -> str:
    """Say what rows lie between two keys."""

    def name(key: bytes) -> str:
        return f"{_KINDS.get(key[:1], 'row ' + key[:1].decode(errors='replace'))} {int.from_bytes(key[1:9], 'big')}"

    if not first:
        return "everything"
    return f"from {name(first)}" + (f" to {name(upper)}" if upper is not None else " on")
