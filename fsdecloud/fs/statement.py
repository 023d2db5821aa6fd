"""What an owner states of one file, so that it can be shown to others later: content, size, state, and hidden the path.

Pure. A statement's commitment stands in a record of operation CERTIFY, and that record is the only one of its batch, and the
batch the only one of its anchor (`driver.certifier`): so the way from a statement up to the anchor has no neighbour whose
hash somebody could guess from. A commitment hides: it is over 32 random bytes. The path is hidden a second time within the
statement, so that the statement can be shown without it. Man page: fsdecloud-certificate(5).

Why not the tree: a node's reference is the key to all that lies below it, so whoever is shown the root can read the volume; and
a sealed entry alone does not bind its contents (AES-GCM commits to no key: one sealed entry may open to two contents).
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from blake3 import blake3
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.crypto.keys import CONTEXT_PREFIX
from fsdecloud.errors import MalformedError
from fsdecloud.fs.records import Operation, Record
from fsdecloud.limits import MAX_FILE_SIZE

SALT_SIZE: Final = 32

PATH_MAX: Final = 128 << 10
"""Bytes of a path in a certificate: more than any record of a path has."""

PROGRAM: Final = b"decloud"

_STATEMENT: Final = CONTEXT_PREFIX + "certificate statement"
_PATH: Final = CONTEXT_PREFIX + "certificate path"

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Statement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a file was in one anchored state of its volume."""

    version: Annotated[int, Meta(ge=1, le=1)]
    content: Bytes32
    """Plain BLAKE3 of the file's bytes."""
    size: Annotated[int, Meta(ge=0, le=MAX_FILE_SIZE)]
    sequence: Annotated[int, Meta(ge=1, le=(1 << 53) - 1)]
    """The anchor of the state."""
    link: Bytes32
    """`ledger.transactions.link` of that anchor: which state it is, whatever chain one looks at."""
    path: Bytes32
    """`path_commitment`."""
    salt: Bytes32
    """Random: without it nobody can try out what a commitment stands for."""


class PathOpening(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What shows the path behind a path commitment."""

    salt: Bytes32
    path: Annotated[bytes, Meta(min_length=1, max_length=PATH_MAX)]
    """From the volume's root."""


def path_commitment(opening: PathOpening) -> bytes:
    """Return what stands for a path: 32 bytes that hide it."""
    return blake3(opening.salt + opening.path, derive_key_context=_PATH).digest()


def statement_commitment(statement: Statement) -> bytes:
    """Return what stands for a statement in its record: 32 bytes that hide it."""
    return blake3(codec.encode(statement), derive_key_context=_STATEMENT).digest()


def statement_row(statement: Statement, time: int) -> bytes:
    """Return the encoded record that holds the statement's commitment. `time` is in nanoseconds since 1970.

    It says nothing but the commitment and the time: neither file nor user, as others will see it.
    """
    commitment = statement_commitment(statement)
    return codec.encode(Record(time, Operation.CERTIFY, 0, b"", commitment, 0, PROGRAM, 0, 0))


def check_statement_row(row: bytes, statement: Statement) -> int:
    """Return when the record in `row` says it was made. Raises MalformedError unless it is exactly the statement's."""
    record = codec.decode(row, Record)
    if not 0 <= record.time < 1 << 63 or row != statement_row(statement, record.time):
        raise MalformedError("the record is not that of the statement")
    return record.time
