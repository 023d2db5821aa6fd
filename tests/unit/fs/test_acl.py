"""Access control lists: their encoding, and how they and mode bits follow each other."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.errors import InvalidArgument
from fsdecloud.fs.acl import (
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    Entry,
    decode_acl,
    encode_acl,
    inherit,
    is_minimal,
    mode_of,
    with_mode,
)

PERM = st.integers(0, 7)
ID = st.integers(0, 0xFFFFFFFE)
MODE = st.integers(0, 0o7777)


@st.composite
def lists(draw):
    users = [Entry(USER, draw(PERM), number) for number in draw(st.lists(ID, max_size=3))]
    groups = [Entry(GROUP, draw(PERM), number) for number in draw(st.lists(ID, max_size=3))]
    mask = [Entry(MASK, draw(PERM))] if users or groups or draw(st.booleans()) else []
    owner, group, other = (Entry(tag, draw(PERM)) for tag in (USER_OBJ, GROUP_OBJ, OTHER))
    return (owner, *users, group, *groups, *mask, other)


@given(lists())
def test_round_trip(acl) -> None:
    assert decode_acl(encode_acl(acl)) == acl


@given(st.binary(max_size=60))
def test_nothing_else_is_taken(data: bytes) -> None:
    with suppress(InvalidArgument):
        assert encode_acl(decode_acl(data)) == data


@given(lists(), MODE)
def test_chmod_and_the_list_agree(acl, mode: int) -> None:
    changed = with_mode(acl, mode)
    assert mode_of(changed, mode) == mode
    decode_acl(encode_acl(changed))
    named = [entry for entry in acl if entry.tag in (USER, GROUP)]
    assert [entry for entry in changed if entry.tag in (USER, GROUP)] == named
    assert is_minimal(acl) == is_minimal(changed)


@given(lists(), MODE)
def test_what_is_inherited_grants_no_more_than_list_and_mode(acl, mode: int) -> None:
    inherited, result = inherit(acl, mode)
    assert result & ~mode == 0
    assert result & 0o777 & ~mode_of(acl, 0) == 0
    assert (inherited is None) == is_minimal(acl)
    if inherited is not None:
        assert mode_of(inherited, result) == result
        decode_acl(encode_acl(inherited))


@pytest.mark.parametrize(
    "acl",
    [
        (Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 7)),
        (Entry(GROUP_OBJ, 7), Entry(USER_OBJ, 7), Entry(OTHER, 7)),
        (Entry(USER_OBJ, 7), Entry(USER, 7, 5), Entry(GROUP_OBJ, 7), Entry(OTHER, 7)),
        (Entry(USER_OBJ, 8), Entry(GROUP_OBJ, 7), Entry(OTHER, 7)),
        (Entry(USER_OBJ, 7), Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 7), Entry(OTHER, 7)),
        (Entry(USER_OBJ, 7), Entry(USER, 7), Entry(GROUP_OBJ, 7), Entry(MASK, 7), Entry(OTHER, 7)),
    ],
)
def test_refused(acl) -> None:
    with pytest.raises(InvalidArgument):
        decode_acl(encode_acl(acl))
    with pytest.raises(InvalidArgument):
        decode_acl(encode_acl(())[:3])
    assert decode_acl(encode_acl(())) == ()
