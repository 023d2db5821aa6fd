"""How many bytes a chunk holds, and when reading moves an access time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.fs.chunks import Hole, Inline, Patch, Stored, held
from fsdecloud.fs.inode import RELATIME_AGE, moves_atime
from fsdecloud.types import EntryId, Ref

REF = Ref(EntryId(bytes(32)), bytes(32))
PATCHES = st.lists(st.builds(Patch, offset=st.integers(0, 60), length=st.integers(1, 30), ref=st.just(REF)), max_size=6)


@given(st.integers(0, 50), PATCHES)
def test_held_counts_every_covered_byte_once(length: int, patches: list[Patch]) -> None:
    value = Stored(length, REF if length else None, tuple(patches))
    covered = set(range(length)).union(*(range(patch.offset, patch.end) for patch in patches))
    assert held(value) == len(covered)


def test_held_without_patches() -> None:
    assert (held(Hole()), held(Inline(b"abc"))) == (0, 3)


def test_relatime() -> None:
    assert moves_atime(now=10, atime=5, mtime=5, ctime=1)
    assert moves_atime(now=10, atime=5, mtime=1, ctime=5)
    assert not moves_atime(now=10, atime=5, mtime=4, ctime=4)
    assert moves_atime(now=5 + RELATIME_AGE, atime=5, mtime=4, ctime=4)
    assert not moves_atime(now=4 + RELATIME_AGE, atime=5, mtime=4, ctime=4)
