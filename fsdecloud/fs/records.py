"""What the ledger records of a file operation, and how records become batches.

Pure. A batch is a Merkle tree over the encodings of its records (`crypto.merkle`); its root stands, through the
commitment, in the anchor. A batch is stored as sealed entries of at most RECORDS_PER_ENTRY records and
RECORD_BYTES_PER_ENTRY bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.crypto import merkle
from fsdecloud.errors import MalformedError
from fsdecloud.limits import CHUNK_SIZE
from fsdecloud.types import Ref

RECORDS_PER_ENTRY: Final = 4096
"""Bounds the records of an entry, and those held in memory to as many."""

RECORD_BYTES_PER_ENTRY: Final = CHUNK_SIZE
"""Bounds the bytes of an entry of records: paths may be long, and no entry may hold more than a chunk."""

_ROW_OVERHEAD: Final = 5
"""Bytes that msgpack spends at most on a byte string's or an array's header."""


class Operation(enum.IntEnum):
    """What was done. The numbers are the format: never reuse one."""

    MOUNT = 1
    UNMOUNT = 2
    CREATE = 3
    READ = 4
    WRITE = 5
    RENAME = 6
    REMOVE = 7
    LINK = 8
    SYMLINK = 9
    MKDIR = 10
    RMDIR = 11
    MKNOD = 12
    ATTRIBUTES = 13
    TRUNCATE = 14
    SETXATTR = 15
    REMOVEXATTR = 16
    EXCHANGE = 17
    REPAIR = 18
    PAYMENT = 19
    RESTORE = 20
    SNAPSHOT = 21
    """A snapshot was kept, named or forgotten by hand, or the policy set: `path2` says what."""
    CERTIFY = 22
    """With a path: a certificate was made of it. Without one: `path2` is the commitment to a statement (`fs.statement`)."""


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One operation. `result` is 0 or an errno; `amount` counts bytes read or written, or the size set."""

    time: int
    """Nanoseconds since 1970."""
    operation: int
    inode: int
    path: bytes
    """From the volume's root, as far as it was known."""
    path2: bytes
    """The new path of a rename or link, the target of a symlink, the name of an attribute."""
    uid: int
    program: bytes
    """Name of the calling program as the kernel knows it (at most 15 bytes)."""
    result: int
    amount: int


class BatchEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One stored piece of a batch: its entry, how many records, and their Merkle root."""

    ref: Ref
    count: int
    root: bytes


def encode_records(records: Iterable[Record]) -> bytes:
    """Return the plaintext of one batch entry."""
    return codec.encode([codec.encode(record) for record in records])


def split_rows(rows: Iterable[bytes]) -> list[list[bytes]]:
    """Cut encodings of records into the pieces that become batch entries, in order; a record is never cut.

    One record is far below the bound: two paths of at most 256 names each, that is 128 KiB.
    """
    parts: list[list[bytes]] = []
    size = 0
    for row in rows:
        cost = len(row) + _ROW_OVERHEAD
        if not parts or len(parts[-1]) == RECORDS_PER_ENTRY or size + cost > RECORD_BYTES_PER_ENTRY:
            parts.append([])
            size = _ROW_OVERHEAD
        parts[-1].append(row)
        size += cost
    return parts


def decode_records(data: bytes) -> list[bytes]:
    """Return the encodings of the records in a batch entry. Raises MalformedError."""
    rows = codec.decode(data, list[bytes])
    if len(rows) > RECORDS_PER_ENTRY:
        raise MalformedError(f"a batch entry of {len(rows)} records")
    return rows


def batch_root(rows: Sequence[bytes]) -> bytes:
    """Return the Merkle root over the encodings of records."""
    return merkle.root(rows)


def batches_root(entries: Sequence[BatchEntry]) -> bytes:
    """Return the Merkle root over all batch entries of one anchor: what its commitment commits to."""
    return merkle.root([entry.count.to_bytes(8, "big") + entry.root for entry in entries])
