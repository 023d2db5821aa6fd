"""Is a volume's map in order: inodes, names, links, parents, chunks, attributes, counters.

Pure: the map comes in as a function that yields a range of it, and is read in order, a few times over. Nothing here is
believed but what stands in a row itself; what one row says of another is compared.

    inodes     each I row with its C, X, P and O rows: sizes, bytes held, attribute counts; rows of no inode
    places     each D row: its name, its hash, what it names; where every directory is
    reach      from the root, and from removed directories (`O`) whose contents go at the next mount
    names      each D row again: links, and directories with more than one name
    links      link counts, parents (P), the list of removed inodes (O), what has no name
    counters   the superblock, and how far inode numbers were given out
    history    snapshots, record batches, the policy

What only a removed inode holds is not compared: it is deleted in steps, and half of it may be gone already.

Memory: 35 bytes for each inode, and what was found.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.fs.chunks import decode_chunk, extent, held
from fsdecloud.fs.findings import DAMAGE, NOTE, Attach, Finding, RaiseBound, Rows, Scan, Steps
from fsdecloud.fs.history import ALL_HERE, decode_batches, decode_policy, decode_snapshot
from fsdecloud.fs.inode import (
    EntryValue,
    InodeValue,
    Superblock,
    decode_entry,
    decode_inode,
    decode_superblock,
    is_name,
)
from fsdecloud.fs.keys import (
    POLICY,
    ROOT,
    SUPERBLOCK,
    batches_key,
    chunk_prefix,
    entry_key,
    entry_prefix,
    inode_key,
    name_cookie,
    orphan_key,
    parent_key,
    prefix_end,
    split_chunk_key,
    split_entry_key,
)
from fsdecloud.limits import CHUNK_SIZE
from fsdecloud.types import Inode

PAUSE: Final = 256
"""Rows between two pauses."""

_SIZES: Final = {b"B": 11, b"C": 17, b"H": 9, b"I": 9, b"O": 9, b"P": 9, b"R": 1, b"S": 1}
"""Length of the keys of each kind; those of D and X end with a name."""

_LETTERS: Final = b"BCDHIOPRSX"

# States of a directory while `_reach` runs, and bits of what names an inode.
_UNKNOWN, _REACHED, _DOOMED, _LOST, _OPEN = 0, 1, 2, 4, 8


class MapCheck:
    """One check of one state of a volume."""

    def __init__(self, scan: Scan, secret: bytes, inode_bound: int) -> None:
        """`secret` is what names are hashed with; `inode_bound` is `VolumeMeta.inode_bound`, 0 if it has none."""
        self._scan = scan
        self._secret = secret
        self._bound = inode_bound
        self._numbers = array("Q")
        self._types = array("B")
        self._links = array("Q")
        self._stated = array("Q")
        self._place = array("I")
        """Index of the directory that first names it, plus one."""
        self._names = array("I")
        self._subdirs = array("I")
        self._state = bytearray()
        self._orphans = bytearray()
        self._held: list[tuple[int, Finding]] = []
        """What is said of inodes before it is known which of them are removed."""
        self._cut: set[int] = set()
        self._unsure: set[int] = set()
        """Directories with a name for an inode that cannot be read: how many directories they hold is not known."""
        self._told: set[bytes] = set()
        """Kinds of rows whose wrong keys were named."""
        self.bytes = 0
        self.names = 0
        self.chunks = 0

    @property
    def inodes(self) -> int:
        """How many there are."""
        return len(self._numbers)

    def run(self) -> Steps:
        """Check everything; the callable may raise, which ends it."""
        yield from self._strangers()
        yield from self._check_inodes()
        self._names = array("I", bytes(4 * self.inodes))
        self._subdirs = array("I", bytes(4 * self.inodes))
        self._place = array("I", bytes(4 * self.inodes))
        self._state = bytearray(self.inodes)
        yield from self._check_places()
        yield from self._reach()
        yield from self._check_names()
        yield from self._release()
        yield from self._check_links()
        yield from self._check_counters()
        yield from self._check_history()
        yield from self._release()

    def _release(self) -> Steps:
        """Yield what was held back, but for what is said of removed inodes."""
        held_back, self._held = self._held, []
        for index, finding in held_back:
            if not self._is_doomed(index):
                yield finding

    # ---- keys --------------------------------------------------------------------------------------------------------
    def _strangers(self) -> Steps:
        """Look for keys that no release writes."""
        start = b"\0"
        for letter in (*_LETTERS, 0xFF):
            kind = bytes((letter,))
            for key, _value in self._scan(start, kind):
                yield Finding("key", f"a row of an unknown kind: {key[:16].hex()}", DAMAGE)
            start = kind + b"\0" if _SIZES.get(kind) == 1 else bytes((min(letter + 1, 0xFF),))

    def _rows(self, letter: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of one kind whose keys have the right size. The others are named when they are first come by."""
        size = _SIZES.get(letter)
        for key, value in self._scan(letter, prefix_end(letter)):
            if len(key) == size or (size is None and len(key) > 9):
                yield key, value
            elif letter not in self._told:
                self._held.append((-1, Finding("key", f"a row with a key that none has: {key[:16].hex()}", DAMAGE)))
        self._told.add(letter)

    # ---- inodes ------------------------------------------------------------------------------------------------------
    def _check_inodes(self) -> Steps:
        streams = {letter: _Stream(self._rows(letter)) for letter in (b"C", b"X", b"P", b"O")}
        for count, (key, data) in enumerate(self._rows(b"I")):
            number = int.from_bytes(key[1:], "big")
            yield from self._nobodys(streams, number)
            index = self.inodes
            self._numbers.append(number)
            try:
                value = decode_inode(data)
            except MalformedError as exc:
                self._held.append((index, Finding("inode", f"cannot be read: {exc}", DAMAGE, number)))
                value = None
            self._types.append(stat.S_IFMT(value.mode) >> 12 if value is not None else 0)
            # One that cannot be read is not taken for removed.
            self._links.append(min(value.nlink, (1 << 64) - 1) if value is not None else (1 << 64) - 1)
            self._orphans.append(any(True for _row in streams[b"O"].of(number)))
            self._stated.append(0)
            for _key, parent in streams[b"P"].of(number):
                self._stated[index] = int.from_bytes(parent, "big") if len(parent) == 8 else (1 << 64) - 1
            if value is None:
                for letter in (b"C", b"X"):
                    for _row in streams[letter].of(number):
                        pass
            else:
                yield from self._check_contents(index, value, streams)
            if count % PAUSE == 0:
                yield None
        yield from self._nobodys(streams, 1 << 64)

    def _check_contents(self, index: int, value: InodeValue, streams: dict[bytes, _Stream]) -> Steps:
        """Compare an inode with its chunks and attributes; all that is wrong is put right by one row."""
        number, wrong, right = self._numbers[index], [], value
        allocated, end, unreadable = 0, 0, 0
        is_file = stat.S_ISREG(value.mode)
        for count, (key, data) in enumerate(streams[b"C"].of(number)):
            self.chunks += 1
            if count % PAUSE == PAUSE - 1:
                yield None
            chunk = split_chunk_key(key)[1]
            try:
                found = decode_chunk(data)
            except MalformedError as exc:
                unreadable += 1
                self._held.append((index, Finding("chunk", f"chunk {chunk} cannot be read: {exc}", DAMAGE, number)))
                continue
            allocated += held(found)
            end = max(end, chunk * CHUNK_SIZE + extent(found))
        xattrs = self._count_attributes(index, streams[b"X"])
        if not is_file and allocated:
            text = "has contents and is no regular file"
            self._held.append((index, Finding("chunk", text, inode=number)))
        elif end > value.size:
            wrong.append(("size", f"has contents up to {end}, its size is {value.size}"))
            right = msgspec.structs.replace(right, size=end)
        if stat.S_ISLNK(value.mode) and value.size != len(value.target):
            wrong.append(("size", f"is a link of {len(value.target)} bytes, its size is {value.size}"))
            right = msgspec.structs.replace(right, size=len(value.target))
        if is_file and not unreadable and allocated != value.allocated:
            wrong.append(("allocated", f"holds {allocated} bytes, and says {value.allocated}"))
            right = msgspec.structs.replace(right, allocated=allocated)
        if xattrs != value.xattrs:
            wrong.append(("xattrs", f"has {xattrs} extended attributes, and says {value.xattrs}"))
            right = msgspec.structs.replace(right, xattrs=xattrs)
        repair = Rows(((inode_key(number), codec.encode(right)),))
        for kind, text in wrong:
            self._held.append((index, Finding(kind, text, inode=number, repair=repair)))
        if is_file:
            self.bytes += value.size

    def _count_attributes(self, index: int, stream: _Stream) -> int:
        """Return how many attributes an inode has. A long value has several rows: name, 0, and the part's number in 2 bytes."""
        number, count, expected = self._numbers[index], 0, (b"", 0)
        for key, _value in stream.of(number):
            name, part = key[9:-2], int.from_bytes(key[-2:], "big")
            if part == 0:
                count += 1
            elif (name, part) != expected:
                text = f"attribute {ascii(name[:-1])[2:-1]} lacks the part before part {part}"
                self._held.append((index, Finding("attribute", text, DAMAGE, number)))
            expected = (name, part + 1)
        return count

    def _nobodys(self, streams: dict[bytes, _Stream], number: int) -> Steps:
        """Deal with rows of inodes below `number` that do not exist."""
        for ino, rows in streams[b"C"].groups_below(number):
            end, allocated = 0, 0
            for key, data in rows:
                try:
                    found = decode_chunk(data)
                except MalformedError:
                    continue
                end = max(end, split_chunk_key(key)[1] * CHUNK_SIZE + extent(found))
                allocated += held(found)
            value = InodeValue(0o100600, 0, 0, 1, end, 0, 0, 0, 0, 0, allocated, 0, b"")
            repair = Rows(((inode_key(ino), codec.encode(value)),))
            yield Finding("inode", f"is missing, and has contents of {end} bytes", DAMAGE, ino, repair=repair)
        for letter, what in ((b"X", "extended attribute"), (b"P", "parent"), (b"O", "mark as removed")):
            for ino, rows in streams[letter].groups_below(number):
                if letter != b"O" and self._is_made_anew(ino):
                    continue  # it has these again then; the next look compares them
                repair = Rows(tuple((key, None) for key, _data in rows))
                yield Finding("stray", f"does not exist, and has a row: {what}", inode=ino, repair=repair)

    def _is_made_anew(self, ino: int) -> bool:
        """Tell whether the repair of a missing inode makes it: it is the root, or has contents or names in it."""
        prefixes = (chunk_prefix(ino), entry_prefix(ino))
        return ino == ROOT or any(True for prefix in prefixes for _row in self._scan(prefix, prefix_end(prefix)))

    # ---- names -------------------------------------------------------------------------------------------------------
    def _index(self, number: int) -> int:
        """Return the index of an inode, -1 if there is none."""
        index = bisect_left(self._numbers, number)
        return index if index < self.inodes and self._numbers[index] == number else -1

    def _is_dir(self, index: int) -> bool:
        return self._types[index] == stat.S_IFDIR >> 12

    def _is_unreadable(self, index: int) -> bool:
        return index >= 0 and not self._types[index]

    def _sound_entry(self, key: bytes, data: bytes) -> tuple[int, int, int] | Finding:
        """Return the indexes of a D row's directory and of what it names, and the type it says; or what is wrong.

        Names in an inode that cannot be read are left alone: it may well be a directory.
        """
        number, (cookie, name) = int.from_bytes(key[1:9], "big"), split_entry_key(key)
        shown = ascii(name)[2:-1]
        parent = self._index(number)
        gone = Rows(((key, None),)) if not self._is_unreadable(parent) else None
        if parent >= 0 and not self._is_dir(parent) and gone is not None:
            return Finding("name", f"has the name {shown} in it and is no directory", inode=number, repair=gone)
        try:
            entry = decode_entry(name, data)
        except MalformedError as exc:
            return Finding("name", f"the name {shown} cannot be read: {exc}", inode=number, repair=gone)
        child = self._index(entry.inode)
        if child < 0 or entry.inode == ROOT:
            text = f"the name {shown} leads to inode {entry.inode}, which " + (
                "is the root" if entry.inode == ROOT else "does not exist"
            )
            return Finding("name", text, inode=number, repair=gone)
        if cookie != name_cookie(self._secret, name):
            right = (entry_key(self._secret, number, name), data)
            repair = Rows((*gone.changes, right)) if gone is not None else None
            return Finding("name", f"the name {shown} stands in a wrong place", inode=number, repair=repair)
        return parent, child, entry.type

    def _check_places(self) -> Steps:
        """Look at all names: what they are themselves, and where each directory is."""
        missing = 0
        for count, (key, data) in enumerate(self._rows(b"D")):
            if count % PAUSE == 0:
                yield None
            self.names += 1
            found = self._sound_entry(key, data)
            number = int.from_bytes(key[1:9], "big")
            if self._index(number) < 0:
                if number != missing:
                    missing = number
                    value = InodeValue(0o040700, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, b"")
                    repair = Rows(((inode_key(number), codec.encode(value)),))
                    yield Finding("inode", "is missing, and has names in it", DAMAGE, number, repair=repair)
                continue
            if isinstance(found, Finding):
                self._held.append((self._index(number), found))
                continue
            parent, child, kind = found
            if self._types[child] and kind >> 12 != self._types[child]:
                entry = codec.encode(EntryValue(Inode(self._numbers[child]), self._types[child] << 12))
                text = f"its name {ascii(split_entry_key(key)[1])[2:-1]} says that it is of another type"
                self._held.append(
                    (child, Finding("type", text, inode=self._numbers[child], repair=Rows(((key, entry),))))
                )
            is_stated = self._stated[child] == number
            if self._is_dir(child) and (not self._place[child] or is_stated):
                self._place[child] = parent + 1

    def _reach(self) -> Steps:
        """Find out which directories lead to the root, which to a removed one, and which in a circle or nowhere."""
        root = self._index(ROOT)
        if root < 0 or not (self._is_dir(root) or self._is_unreadable(root)):
            value = InodeValue(0o040755, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, b"")
            repair = Rows(((inode_key(ROOT), codec.encode(value)),)) if root < 0 else None
            yield Finding("inode", "the root directory is missing", DAMAGE, ROOT, repair=repair)
        for start in range(self.inodes):
            if start % PAUSE == 0:
                yield None
            if not self._is_dir(start) or self._state[start]:
                continue
            chain, at = [], start
            while not self._state[at]:
                self._state[at] = _OPEN
                chain.append(at)
                if at == root or not self._place[at]:
                    break
                at = self._place[at] - 1
            if self._state[at] != _OPEN:
                state = self._state[at]
            elif at == root:
                state = _REACHED
            elif not self._place[at]:
                state = _DOOMED if self._orphans[at] and self._links[at] == 0 else _LOST
            else:
                state = _LOST
                circle = chain[chain.index(at) :]
                self._cut.add(min(circle))
                text = f"is a directory in itself, {len(circle)} deep"
                yield Finding("circle", text, inode=self._numbers[min(circle)])
            for index in chain:
                self._state[index] = state

    def _check_names(self) -> Steps:
        """Count the names of each inode and the directories in each directory."""
        for count, (key, data) in enumerate(self._rows(b"D")):
            if count % PAUSE == 0:
                yield None
            found = self._sound_entry(key, data)
            if isinstance(found, Finding) or found[0] < 0:  # said already, or its directory is missing
                continue
            parent, child, _kind = found
            if not self._is_dir(child):
                if self._is_unreadable(child):
                    self._unsure.add(parent)
                self._names[child] += 1
                self._state[child] |= self._state[parent]
                self._place[child] = self._place[child] or parent + 1
                continue
            name = ascii(split_entry_key(key)[1])[2:-1]
            number = self._numbers[child]
            is_left = self._is_unreadable(parent) or self._is_unreadable(self._place[child] - 1)
            gone = Rows(((key, None),)) if not is_left else None
            if child in self._cut:
                yield Finding("circle", f"its name {name} leads back into it", inode=number, repair=gone)
            elif self._place[child] != parent + 1 or self._names[child]:
                yield Finding("name", f"is a directory with one more name, {name}", inode=number, repair=gone)
            else:
                self._names[child] = 1
                self._subdirs[parent] += 1

    # ---- links -------------------------------------------------------------------------------------------------------
    def _is_doomed(self, index: int) -> bool:
        """Tell whether an inode goes at the next mount, with all it holds."""
        if index < 0:
            return False
        if not self._names[index] and self._orphans[index] and self._links[index] == 0:
            return True
        return self._state[index] == _DOOMED

    def _check_links(self) -> Steps:
        for index, number in enumerate(self._numbers):
            if index % PAUSE == 0:
                yield None
            if not self._types[index] or self._is_doomed(index):
                continue
            is_dir, names = self._is_dir(index), self._names[index]
            if not names and number != ROOT and index not in self._cut:
                text = "has no name" if not self._orphans[index] else "is marked as removed and counts links"
                yield Finding("lost", text, inode=number, repair=Attach(number, self._types[index] << 12))
                continue
            if self._orphans[index]:
                gone = Rows(((orphan_key(number), None),))
                yield Finding("orphan", "is marked as removed, and has a name", inode=number, repair=gone)
            expected = 2 + self._subdirs[index] if is_dir else names
            if self._links[index] != expected and index not in self._unsure:
                text = f"has {expected} links, and says {self._links[index]}"
                repair = self._with_links(number, expected)
                yield Finding("links", text, inode=number, repair=repair)
            yield from self._check_parent(index, number, is_dir=is_dir)

    def _with_links(self, number: int, links: int) -> Rows:
        key = inode_key(number)
        (data,) = (data for _key, data in self._scan(key, key + b"\0"))
        return Rows(((key, codec.encode(msgspec.structs.replace(decode_inode(data), nlink=links))),))

    def _check_parent(self, index: int, number: int, *, is_dir: bool) -> Steps:
        stated = self._stated[index]
        if number == ROOT or not is_dir:
            if stated:
                gone = Rows(((parent_key(number), None),))
                yield Finding(
                    "parent", f"says that its parent is inode {stated}, and has none", inode=number, repair=gone
                )
            return
        if not self._place[index] or index in self._cut:
            return
        parent = self._numbers[self._place[index] - 1]
        if stated != parent:
            right = Rows(((parent_key(number), parent.to_bytes(8, "big")),))
            if stated:
                text = f"is in inode {parent}, and says that it is in inode {stated}"
                yield Finding("parent", text, inode=number, repair=right)
            else:
                yield Finding("parent", f"does not say that it is in inode {parent}", NOTE, number, repair=right)

    # ---- counters and history ----------------------------------------------------------------------------------------
    def _value(self, key: bytes) -> bytes | None:
        return next((value for _key, value in self._scan(key, key + b"\0")), None)

    def _check_counters(self) -> Steps:
        if not self.inodes:
            return
        highest = self._numbers[-1]
        right = Superblock(1, CHUNK_SIZE, highest + 1, self.inodes, self.bytes)
        data = self._value(SUPERBLOCK)
        wrong = []
        try:
            block = decode_superblock(data) if data is not None else None
        except MalformedError as exc:
            block = None
            wrong.append(f"the superblock cannot be read: {exc}")
        if block is not None:
            right = msgspec.structs.replace(right, next_inode=max(highest + 1, block.next_inode))
            if block.next_inode <= highest:
                wrong.append(f"the next inode is {block.next_inode}, and inode {highest} is in use")
            if block.files != right.files:
                wrong.append(f"the superblock counts {block.files} files, there are {right.files}")
            if block.bytes != right.bytes:
                wrong.append(f"the superblock counts {block.bytes} bytes, there are {right.bytes}")
        elif not wrong:
            wrong.append("there is no superblock")
        repair = Rows(((SUPERBLOCK, codec.encode(right)),))
        for text in wrong:
            yield Finding("superblock", text, repair=repair)
        if self._bound and highest >= self._bound:
            text = f"inode numbers up to {self._bound - 1} were given out, and inode {highest} is in use"
            yield Finding("bound", text, repair=RaiseBound(highest + 1))

    def _check_history(self) -> Steps:
        for key, data in self._rows(b"B"):
            try:
                decode_batches(data)
            except MalformedError as exc:
                text = f"the records of anchor {int.from_bytes(key[1:9], 'big')} cannot be read: {exc}"
                yield Finding("history", text, DAMAGE)
        complete = self._value(ALL_HERE[0]) is not None
        for key, data in self._rows(b"H"):
            sequence = int.from_bytes(key[1:], "big")
            try:
                decode_snapshot(key, data)
            except MalformedError as exc:
                yield Finding("snapshot", f"snapshot {sequence} cannot be read: {exc}", DAMAGE)
                continue
            if complete and self._value(batches_key(sequence, 0)) is None:
                yield Finding("history", f"the records of snapshot {sequence} are missing", DAMAGE)
        policy = self._value(POLICY)
        if policy is not None:
            try:
                decode_policy(policy)
            except MalformedError as exc:
                yield Finding("policy", f"{exc}: the default holds", repair=Rows(((POLICY, None),)))

    # ---- telling -----------------------------------------------------------------------------------------------------
    def path_of(self, number: int) -> bytes:
        """Return where an inode is, as far as its names lead; b"" if it has none. Reads the directories above it."""
        parts: list[bytes] = []
        seen: set[int] = set()
        index = self._index(number)
        while index >= 0 and self._numbers[index] != ROOT and index not in seen:
            seen.add(index)
            place = self._place[index] if self._place else 0
            if not place:
                return (
                    b"#%d" % self._numbers[index] + b"".join(b"/" + part for part in reversed(parts)) if parts else b""
                )
            name = self._name_in(self._numbers[place - 1], self._numbers[index])
            if name is None:
                return b""
            parts.append(name)
            index = place - 1
        is_found = index >= 0 and self._numbers[index] == ROOT
        return b"/" + b"/".join(reversed(parts)) if is_found else b""

    def _name_in(self, parent: int, number: int) -> bytes | None:
        prefix = entry_prefix(parent)
        for key, data in self._scan(prefix, prefix_end(prefix)):
            name = split_entry_key(key)[1]
            try:
                if is_name(name) and decode_entry(name, data).inode == number:
                    return name
            except MalformedError:
                continue
        return None


class _Stream:
    """Rows of one kind in the order of their inodes, read along with others."""

    def __init__(self, rows: Iterator[tuple[bytes, bytes]]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def _number(self) -> int:
        return int.from_bytes(self._next[0][1:9], "big") if self._next is not None else 1 << 64

    def of(self, number: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of an inode; those of lower ones must be taken before."""
        while self._next is not None and self._number() == number:
            row, self._next = self._next, next(self._rows, None)
            yield row

    def groups_below(self, number: int) -> Iterator[tuple[int, list[tuple[bytes, bytes]]]]:
        """Yield (inode, rows) of all inodes below `number`."""
        while self._next is not None and self._number() < number:
            ino = self._number()
            yield ino, list(self.of(ino))
