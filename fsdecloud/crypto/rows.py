"""How the rows of one journal transaction are sealed at rest.

Pure. Each transaction has a key of its own, derived from the at-rest key and a fresh 32-byte salt; the nonce is the
row's number and the associated data names table, sequence number and row count: no row can be moved, dropped, repeated
or taken from another transaction. A salt that is used once makes (key, nonce) unique even when the machine is cloned
between two commits, as long as the clones draw different salts. Not here: where salt and rows are kept (`store.state`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fsdecloud.crypto.keys import CONTEXT_PREFIX, derive
from fsdecloud.errors import SealError

SALT_SIZE: Final = 32
OVERHEAD: Final = 16
"""Bytes by which a sealed row is longer: the tag."""

_CONTEXT: Final = CONTEXT_PREFIX + "journal transaction"
_NONCE_SIZE: Final = 12


def seal_rows(
    at_rest_key: bytes, salt: bytes, sequence: int, rows: Sequence[bytes], *, table: bytes = b"journal"
) -> list[bytes]:
    """Return the sealed rows of the transaction `sequence` (0 to 2^64-1), in order, each OVERHEAD bytes longer.

    `salt` is 32 fresh random bytes that the caller stores with them and never uses again. Raises ValueError for a key
    or salt of the wrong length.
    """
    cipher, aad = _prepare(at_rest_key, salt, table, sequence, len(rows))
    return [cipher.encrypt(number.to_bytes(_NONCE_SIZE, "big"), row, aad) for number, row in enumerate(rows)]


def open_rows(
    at_rest_key: bytes, salt: bytes, sequence: int, sealed: Sequence[bytes], *, table: bytes = b"journal"
) -> list[bytes]:
    """Return the rows that `seal_rows` was given. Raises SealError unless these are all of them, unchanged, in order."""
    if len(salt) != SALT_SIZE:
        raise SealError(f"the salt of {_name(table, sequence)} has {len(salt)} bytes instead of {SALT_SIZE}")
    cipher, aad = _prepare(at_rest_key, salt, table, sequence, len(sealed))
    rows: list[bytes] = []
    try:
        for number, row in enumerate(sealed):
            rows.append(cipher.decrypt(number.to_bytes(_NONCE_SIZE, "big"), row, aad))
    except InvalidTag as exc:
        raise SealError(f"row {len(rows)} of {_name(table, sequence)} is damaged or under another key") from exc
    return rows


def _prepare(at_rest_key: bytes, salt: bytes, table: bytes, sequence: int, count: int) -> tuple[AESGCM, bytes]:
    if len(salt) != SALT_SIZE:
        raise ValueError(f"a salt has {SALT_SIZE} bytes, not {len(salt)}")
    key = derive(at_rest_key, _CONTEXT, salt)
    # The fixed-width numbers come first, so that no table name can be read as another name with other numbers.
    return AESGCM(key), b"".join((sequence.to_bytes(8, "big"), count.to_bytes(8, "big"), table))


def _name(table: bytes, sequence: int) -> str:
    return f"transaction {sequence} of {table.decode('ascii', 'replace')}"
