"""Putting right what `decloud fsck -y` found, a group at a time, each group as one commit of the journal.

A repair is rows of the volume's map, written to the journal like any change: the next mount takes them from there into the
tree. Whatever ends this in between leaves a volume with some of the repairs; the next run finds the rest. File contents are
never touched. Each repair is recorded as an operation.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.driver.clock import now
from fsdecloud.driver.fsckstate import Opened
from fsdecloud.driver.journal import META, Pairs, Records
from fsdecloud.errors import FsdecloudError, MalformedError
from fsdecloud.fs.findings import Attach, DropCached, Finding, RaiseBound, Restage, Rows
from fsdecloud.fs.inode import EntryValue, InodeValue, decode_entry, decode_inode
from fsdecloud.fs.keys import ROOT, entry_key, inode_key, orphan_key, parent_key
from fsdecloud.fs.overlay import Overlay
from fsdecloud.fs.records import Operation, Record
from fsdecloud.types import Inode

LOST_AND_FOUND: Final = b"lost+found"

GROUP: Final = 256
"""Findings put right in one commit."""

_PROGRAM: Final = b"fsck.decloud"


class Repairer:
    """Repairs one volume. `view` reads the map, in a worker thread, as it was checked."""

    def __init__(self, opened: Opened, view: Overlay) -> None:
        self._opened = opened
        self._view = view
        self._changed: set[bytes] = set()
        self._changes: dict[bytes, bytes | None] = {}
        self._records: list[bytes] = []

    async def repair(self, findings: Sequence[Finding]) -> list[Finding]:
        """Put right what can be; return the findings that were. What another repair of this call has changed waits for the
        next look. Raises StoreError, RemoteError."""
        done = []
        self._changed = set()
        for start in range(0, len(findings), GROUP):
            part = findings[start : start + GROUP]
            done += await trio.to_thread.run_sync(self._repair_some, part)
        return done

    def _repair_some(self, findings: Sequence[Finding]) -> list[Finding]:
        """Worker thread."""
        self._changes, self._records = {}, []
        done = [finding for finding in findings if self._repair_one(finding)]
        self._commit()
        return done

    def _repair_one(self, finding: Finding) -> bool:
        repair = finding.repair
        if isinstance(repair, Rows):
            return self._put(finding, dict(repair.changes))
        if isinstance(repair, Attach):
            return self._attach(finding, repair)
        if isinstance(repair, RaiseBound):
            meta = msgspec.structs.replace(self._opened.meta, inode_bound=repair.least)
            self._opened.store.commit([], meta={META: codec.encode(meta)})
            self._opened.meta = meta
            return True
        if isinstance(repair, DropCached):
            self._opened.cache.remove(repair.entry)
            return True
        if isinstance(repair, Restage):
            return self._restage(finding, repair)
        return repair is not None  # an empty cache was begun with when it was opened

    def _put(self, finding: Finding, changes: dict[bytes, bytes | None]) -> bool:
        if not self._changed.isdisjoint(changes):
            return all(self._changes.get(key, b"") == value for key, value in changes.items())
        self._changed.update(changes)
        self._changes.update(changes)
        path = finding.path or b"#%d" % finding.inode
        record = Record(
            time.time_ns(), Operation.REPAIR, finding.inode, path, finding.text.encode(), os.getuid(), _PROGRAM, 0, 0
        )
        self._records.append(codec.encode(record))
        return True

    def _commit(self) -> None:
        if not self._changes:
            return
        opened = self._opened
        rows = [
            codec.encode(Pairs(tuple(self._changes.items()))),
            codec.encode(Records(opened.records, tuple(self._records))),
        ]
        opened.store.commit(rows)
        opened.records += len(self._records)
        self._view.current.update(self._changes)

    # ---- names -----------------------------------------------------------------------------------------------------------
    def _get(self, key: bytes) -> bytes | None:
        return self._changes[key] if key in self._changes else self._view.get(key)

    def _attach(self, finding: Finding, repair: Attach) -> bool:
        """Give an inode a name in /lost+found; its links are counted at the next look."""
        if inode_key(repair.inode) in self._changed:
            return False
        changes: dict[bytes, bytes | None] = {}
        place = self._lost_and_found(changes)
        if place is None:
            return False
        secret = self._opened.keys.border_secret
        name, number = b"#%d" % repair.inode, 0
        while self._get(entry_key(secret, place, name)) is not None:
            number += 1
            name = b"#%d.%d" % (repair.inode, number)
        changes[entry_key(secret, place, name)] = codec.encode(EntryValue(Inode(repair.inode), repair.type))
        if self._get(orphan_key(repair.inode)) is not None:
            changes[orphan_key(repair.inode)] = None
        if stat.S_ISDIR(repair.type):
            changes[parent_key(repair.inode)] = place.to_bytes(8, "big")
        # Making /lost+found may touch what was changed before, in the same way.
        fresh = {key: value for key, value in changes.items() if key not in self._changes}
        self._changes.update({key: value for key, value in changes.items() if key in self._changes})
        return self._put(finding, fresh)

    def _lost_and_found(self, changes: dict[bytes, bytes | None]) -> int | None:
        """Return the inode of the directory; what makes it goes into `changes`. None if the root cannot be read."""
        secret = self._opened.keys.border_secret
        for number in range(100):
            name = LOST_AND_FOUND if not number else b"%s.%d" % (LOST_AND_FOUND, number)
            data = self._get(entry_key(secret, ROOT, name))
            if data is None:
                break
            try:
                entry = decode_entry(name, data)
                row = self._get(inode_key(entry.inode))
                if row is not None and stat.S_ISDIR(decode_inode(row).mode):
                    return int(entry.inode)
            except MalformedError:
                continue
        root = self._get(inode_key(ROOT))
        try:
            top = decode_inode(root) if root is not None else None
        except MalformedError:
            top = None
        if top is None:
            return None
        inode, moment = self._new_number(), now()
        value = InodeValue(0o040700, os.getuid(), os.getgid(), 2, 0, moment, moment, moment, moment, 0, 0, 0, b"")
        changes[inode_key(inode)] = codec.encode(value)
        changes[entry_key(secret, ROOT, name)] = codec.encode(EntryValue(Inode(inode), stat.S_IFDIR))
        changes[parent_key(inode)] = ROOT.to_bytes(8, "big")
        changes[inode_key(ROOT)] = codec.encode(
            msgspec.structs.replace(top, nlink=top.nlink + 1, mtime=moment, ctime=moment)
        )
        return inode

    def _new_number(self) -> int:
        """Return an inode number that was never given out, noted as given out before it is used."""
        opened = self._opened
        highest = 1
        for key, _value in self._view.scan(b"I", b"J"):
            highest = int.from_bytes(key[1:9], "big")
        changed = [int.from_bytes(key[1:9], "big") for key in self._changes if key[:1] == b"I"]
        number = max(highest + 1, opened.meta.inode_bound, *(ino + 1 for ino in changed), 2)
        meta = msgspec.structs.replace(opened.meta, inode_bound=number + 1)
        opened.store.commit([], meta={META: codec.encode(meta)})
        opened.meta = meta
        return number

    # ---- entries ---------------------------------------------------------------------------------------------------------
    def _restage(self, finding: Finding, repair: Restage) -> bool:
        """Stage an entry again from the cache or the peers, in place of its damaged bytes."""
        opened, entry = self._opened, repair.entry
        try:
            sealed = opened.source.cached(entry)
            if sealed is None:
                sealed = trio.from_thread.run(opened.source.fetch, entry)
        except FsdecloudError:
            return False
        location = opened.segments.append(sealed)
        opened.segments.sync()
        record = Record(
            time.time_ns(),
            Operation.REPAIR,
            finding.inode,
            finding.path,
            finding.text.encode(),
            os.getuid(),
            _PROGRAM,
            0,
            0,
        )
        opened.store.commit(
            [codec.encode(Records(opened.records, (codec.encode(record),)))], staged=[(entry, location)]
        )
        opened.records += 1
        opened.staged[entry] = location
        return True
