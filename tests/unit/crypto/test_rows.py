"""Sealed journal rows: all of them, unchanged, in order, in their own transaction, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.crypto import rows
from fsdecloud.errors import SealError

KEY = bytes(range(32))
SALT = bytes(range(32, 64))
ROWS = [b"first row", b"", b"third"]


@given(st.lists(st.binary(max_size=100), max_size=20), st.integers(0, 2**64 - 1))
def test_round_trip(plain, sequence):
    sealed = rows.seal_rows(KEY, SALT, sequence, plain)
    assert [len(row) for row in sealed] == [len(row) + rows.OVERHEAD for row in plain]
    assert rows.open_rows(KEY, SALT, sequence, sealed) == plain


def test_the_format_never_changes():
    assert b"".join(rows.seal_rows(KEY, SALT, 7, ROWS)).hex() == FROZEN


def test_rows_open_only_where_they_were_sealed():
    sealed = rows.seal_rows(KEY, SALT, 7, ROWS)
    wrong = [
        (KEY, SALT, 8, sealed, b"journal"),
        (KEY, SALT, 7, sealed, b"meta"),
        (KEY, bytes(32), 7, sealed, b"journal"),
        (KEY, SALT[:31], 7, sealed, b"journal"),
        (bytes(32), SALT, 7, sealed, b"journal"),
        (KEY, SALT, 7, sealed[:2], b"journal"),
        (KEY, SALT, 7, sealed[1:], b"journal"),
        (KEY, SALT, 7, [*sealed, sealed[0]], b"journal"),
        (KEY, SALT, 7, [sealed[1], sealed[0], sealed[2]], b"journal"),
        (KEY, SALT, 7, [sealed[0], sealed[1], b""], b"journal"),
    ]
    for key, salt, sequence, changed, table in wrong:
        with pytest.raises(SealError):
            rows.open_rows(key, salt, sequence, changed, table=table)


def test_tampering_with_any_byte_names_the_row():
    sealed = rows.seal_rows(KEY, SALT, 7, ROWS)
    for number, row in enumerate(sealed):
        for i in range(len(row)):
            changed = list(sealed)
            changed[number] = row[:i] + bytes((row[i] ^ 1,)) + row[i + 1 :]
            with pytest.raises(SealError, match=f"row {number} of transaction 7 of journal"):
                rows.open_rows(KEY, SALT, 7, changed)


def test_equal_rows_look_different():
    sealed = [*rows.seal_rows(KEY, SALT, 1, [b"same"] * 3), *rows.seal_rows(KEY, bytes(32), 1, [b"same"] * 3)]
    assert len(set(sealed)) == 6


def test_a_bad_salt_or_key_is_our_own_mistake():
    with pytest.raises(ValueError, match="salt"):
        rows.seal_rows(KEY, bytes(16), 1, ROWS)
    with pytest.raises(ValueError, match="secret"):
        rows.seal_rows(bytes(16), SALT, 1, ROWS)


FROZEN = (
    "f74cecbe6b1002fd784b96856016583422e3ac76cd38097a9b503d1a0eb28a4026e7dd0dbe55838904243e58bda3b68ecb5e"
    "213eab546ebcf02fc9aea8a6"
)
