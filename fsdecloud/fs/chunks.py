"""What a chunk's value in the tree says, and how the chunk's bytes follow from it.

Pure. A chunk without a value and one with the value `Hole` hold zeros. `Inline` holds the bytes themselves. `Stored` names an
entry with the chunk's first bytes (the base) and patches laid over it in their order, later ones on top. Whatever neither
base nor patch covers is zero. Entries may be longer than the lengths that stand here: a truncation shortens the lengths and
leaves the entries alone, and what was cut off never shows again, however the file grows.

Not here: sealing (the base is an entry of kind CHUNK, a patch one of kind PATCH), and the file's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.limits import CHUNK_SIZE, INLINE_MAX, MAX_PATCHES
from fsdecloud.types import Ref


class Patch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first `length` bytes (at least one) of the entry `ref`, shown from `offset` of the chunk on."""

    offset: int
    length: int
    ref: Ref

    @property
    def end(self) -> int:
        """Offset after the patch's last byte."""
        return self.offset + self.length


class Hole(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """Zeros, said explicitly."""


class Inline(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """The chunk's first bytes, 1 to INLINE_MAX of them; zeros follow."""

    data: bytes


class Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """The first `base_length` bytes (at least one) of the entry `ref`, and at most MAX_PATCHES patches over them."""

    base_length: int
    ref: Ref
    patches: tuple[Patch, ...] = ()

    @property
    def length(self) -> int:
        """Offset after the last byte that base or patches cover."""
        return max(self.base_length, max((patch.end for patch in self.patches), default=0))


ChunkValue: TypeAlias = Hole | Inline | Stored


def encode(value: ChunkValue) -> bytes:
    """Return the tree value. Raises MalformedError for one that `decode` would refuse, such as 65 patches."""
    _validate(value)
    return codec.encode(value)


def decode(data: bytes) -> ChunkValue:
    """Return the value whose canonical encoding is `data`.

    Raises MalformedError for anything else: an extent past the chunk's end, an empty one, a reference of another length, too
    many patches (fault 90).
    """
    value: ChunkValue = codec.decode(data, ChunkValue)  # type: ignore[arg-type]  # a union is a form, not a class, for mypy
    _validate(value)
    return value


def _validate(value: ChunkValue) -> None:
    if isinstance(value, Inline):
        if not 1 <= len(value.data) <= INLINE_MAX:
            raise MalformedError(f"an inline chunk has 1 to {INLINE_MAX} bytes, not {len(value.data)}")
    elif isinstance(value, Stored):
        if not 1 <= value.base_length <= CHUNK_SIZE:
            raise MalformedError(f"a chunk's base has 1 to {CHUNK_SIZE} bytes, not {value.base_length}")
        if len(value.patches) > MAX_PATCHES:
            raise MalformedError(f"a chunk has at most {MAX_PATCHES} patches, not {len(value.patches)}")
        for patch in value.patches:
            if patch.offset < 0 or patch.length < 1 or patch.end > CHUNK_SIZE:
                raise MalformedError(f"a patch of {patch.length} bytes at {patch.offset} of a chunk")
        if any(len(ref.id) != 32 or len(ref.key) != 32 for ref in refs(value)):
            raise MalformedError("a chunk's reference has 32 bytes of id and 32 of key")


def refs(value: ChunkValue) -> tuple[Ref, ...]:
    """Return the references of the entries that hold the chunk: the base's, then the patches' in their order."""
    return (value.ref, *(patch.ref for patch in value.patches)) if isinstance(value, Stored) else ()


def length(value: ChunkValue) -> int:
    """Return the offset after the last byte that the value covers; beyond are zeros."""
    if isinstance(value, Stored):
        return value.length
    return len(value.data) if isinstance(value, Inline) else 0


def clip(value: ChunkValue, size: int) -> ChunkValue:
    """Return the value after a truncation to `size` bytes of the chunk: what lies beyond reads as zeros for ever."""
    if size <= 0:
        return Hole()
    if size >= length(value):
        return value
    if isinstance(value, Inline):
        return Inline(value.data[:size])
    assert isinstance(value, Stored), "a hole covers nothing"
    patches = tuple(
        patch if patch.end <= size else Patch(patch.offset, size - patch.offset, patch.ref)
        for patch in value.patches
        if patch.offset < size
    )
    return Stored(min(value.base_length, size), value.ref, patches)


def takes_patches(value: ChunkValue, ranges: Sequence[tuple[int, bytes]]) -> bool:
    """Return whether the dirty (offset, bytes) ranges may become patches of the value; otherwise it is written whole.

    Inline data and holes are at hand and get no patches; a stored chunk gets as many as need no fold.
    """
    if not isinstance(value, Stored):
        return False
    count = len(value.patches) + len(ranges)
    held = sum(patch.length for patch in value.patches) + sum(len(data) for _, data in ranges)
    end = max((offset + len(data) for offset, data in ranges), default=0)
    return not _is_overgrown(count, held, max(value.length, end))


def with_patch(value: Stored, patch: Patch) -> Stored:
    """Return the value with `patch` on top; patches that it covers wholly are dropped. See `takes_patches`, `needs_fold`."""
    patches = tuple(old for old in value.patches if old.offset < patch.offset or old.end > patch.end)
    return Stored(value.base_length, value.ref, (*patches, patch))


def needs_fold(value: ChunkValue) -> bool:
    """Return whether the chunk should be written whole: over MAX_PATCHES patches, or they hold over half of its bytes."""
    if not isinstance(value, Stored) or not value.patches:
        return False
    return _is_overgrown(len(value.patches), sum(patch.length for patch in value.patches), value.length)


def _is_overgrown(count: int, held: int, covered: int) -> bool:
    return count > MAX_PATCHES or 2 * held > covered


def assemble(value: ChunkValue, base: bytes | None, patches: Sequence[bytes], size: int) -> bytes:
    """Return the chunk's first `size` bytes, zeros where nothing is.

    `base` and `patches` are the opened entries that `refs` names, in its order (None and () when it names none). Raises
    MalformedError when one is shorter than the value says, or their number is another.
    """
    if isinstance(value, Hole):
        return bytes(size)
    if isinstance(value, Inline):
        return value.data[:size].ljust(size, b"\0")
    if base is None or len(patches) != len(value.patches):
        raise MalformedError("a chunk's entries are not those that its value names")
    if len(base) < value.base_length:
        raise MalformedError(f"a chunk's base has {len(base)} bytes, its value says {value.base_length}")
    if not patches and size <= value.base_length:
        return base if len(base) == size else base[:size]
    buffer = bytearray(size)
    shown = min(value.base_length, size)
    buffer[:shown] = memoryview(base)[:shown]
    for patch, data in zip(value.patches, patches, strict=True):
        if len(data) < patch.length:
            raise MalformedError(f"a chunk's patch has {len(data)} bytes, its value says {patch.length}")
        stop = min(patch.end, size)
        if patch.offset < stop:
            buffer[patch.offset : stop] = memoryview(data)[: stop - patch.offset]
    return bytes(buffer)
