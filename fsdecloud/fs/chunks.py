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
    """A base, the first `length` bytes of the entry `ref` (None exactly when `length` is 0), and at most MAX_PATCHES patches.

    One of the two is there. The chunk may reach further than `length`: see `extent`.
    """

    length: int
    ref: Ref | None
    patches: tuple[Patch, ...] = ()


Chunk: TypeAlias = Hole | Inline | Stored


def encode_chunk(value: Chunk) -> bytes:
    """Return the tree value. Raises MalformedError for one that `decode_chunk` would refuse, such as 65 patches."""
    _validate(value)
    return codec.encode(value)


def decode_chunk(data: bytes) -> Chunk:
    """Return the value whose canonical encoding is `data`.

    Raises MalformedError for anything else: an extent past the chunk's end, an empty one, a reference of another length, too
    many patches (fault 90).
    """
    value: Chunk = codec.decode(data, Chunk)  # type: ignore[arg-type]  # a union is a form, not a class, for mypy
    _validate(value)
    return value


def _validate(value: Chunk) -> None:
    if isinstance(value, Inline):
        if not 1 <= len(value.data) <= INLINE_MAX:
            raise MalformedError(f"an inline chunk has 1 to {INLINE_MAX} bytes, not {len(value.data)}")
    elif isinstance(value, Stored):
        if not 0 <= value.length <= CHUNK_SIZE or (value.ref is None) != (value.length == 0):
            raise MalformedError(f"a chunk's base of {value.length} bytes, or one without its reference")
        if value.ref is None and not value.patches:
            raise MalformedError("a stored chunk that names no entry")
        if len(value.patches) > MAX_PATCHES:
            raise MalformedError(f"a chunk has at most {MAX_PATCHES} patches, not {len(value.patches)}")
        for patch in value.patches:
            if patch.offset < 0 or patch.length < 1 or patch.end > CHUNK_SIZE:
                raise MalformedError(f"a patch of {patch.length} bytes at {patch.offset} of a chunk")
        if any(len(ref.id) != 32 or len(ref.key) != 32 for ref in refs(value)):
            raise MalformedError("a chunk's reference has 32 bytes of id and 32 of key")


def refs(value: Chunk) -> tuple[Ref, ...]:
    """Return the references of the entries that hold the chunk: the base's if there is one, then the patches' in order."""
    if not isinstance(value, Stored):
        return ()
    patches = tuple(patch.ref for patch in value.patches)
    return patches if value.ref is None else (value.ref, *patches)


def extent(value: Chunk) -> int:
    """Return the offset after the last byte that inline data, base or patches cover; beyond are zeros."""
    if isinstance(value, Stored):
        return max(value.length, max((patch.end for patch in value.patches), default=0))
    return len(value.data) if isinstance(value, Inline) else 0


def held(value: Chunk) -> int:
    """Return how many of the chunk's bytes inline data, base or patches cover: what st_blocks counts, holes left out."""
    if not isinstance(value, Stored) or not value.patches:
        return extent(value)
    covered, reach = 0, 0
    for start, end in sorted([(0, value.length), *((patch.offset, patch.end) for patch in value.patches)]):
        covered += max(0, end - max(start, reach))
        reach = max(reach, end)
    return covered


def clip(value: Chunk, length: int) -> Chunk:
    """Return the value after a truncation to `length` bytes of the chunk: what lies beyond reads as zeros for ever."""
    if length <= 0:
        return Hole()
    if length >= extent(value):
        return value
    if isinstance(value, Inline):
        return Inline(value.data[:length])
    assert isinstance(value, Stored), "a hole covers nothing"
    patches = tuple(
        patch if patch.end <= length else Patch(patch.offset, length - patch.offset, patch.ref)
        for patch in value.patches
        if patch.offset < length
    )
    return Stored(min(value.length, length), value.ref, patches) if value.ref is not None or patches else Hole()


def can_patch(value: Chunk) -> bool:
    """Return whether `with_patch` may be used: inline data is at hand, so it is written whole instead."""
    return not isinstance(value, Inline)


def with_patch(value: Chunk, patch: Patch) -> Stored:
    """Return the value with `patch` on top; base and patches that it covers wholly are dropped.

    Raises ValueError for an inline chunk. The result may have to be folded (`needs_fold`) before it can be encoded.
    """
    if isinstance(value, Inline):
        raise ValueError("an inline chunk is written whole, not patched")  # noqa: TRY004 - the value, not its Python type
    if isinstance(value, Hole):
        return Stored(0, None, (patch,))
    patches = tuple(old for old in value.patches if old.offset < patch.offset or old.end > patch.end)
    if patch.offset == 0 and patch.length >= value.length:
        return Stored(0, None, (*patches, patch))
    return Stored(value.length, value.ref, (*patches, patch))


def needs_fold(value: Chunk) -> bool:
    """Return whether the chunk should be written whole: over MAX_PATCHES patches, or they hold over half of its bytes."""
    if not isinstance(value, Stored) or not value.patches:
        return False
    return len(value.patches) > MAX_PATCHES or 2 * sum(patch.length for patch in value.patches) > extent(value)


def assemble(value: Chunk, base: bytes | None, patches: Sequence[bytes], size: int) -> bytes:
    """Return the chunk's first `size` bytes, zeros where nothing is.

    `base` and `patches` are the opened entries that `refs` names, in its order; `base` is None where there is none. Raises
    MalformedError when one is shorter than the value says, or their number is another.
    """
    if isinstance(value, Hole):
        return bytes(size)
    if isinstance(value, Inline):
        return value.data[:size].ljust(size, b"\0")
    if (base is None) != (value.ref is None) or len(patches) != len(value.patches):
        raise MalformedError("a chunk's entries are not those that its value names")
    if base is not None and len(base) < value.length:
        raise MalformedError(f"a chunk's base has {len(base)} bytes, its value says {value.length}")
    if base is not None and not patches and size <= value.length:
        return base if len(base) == size else base[:size]
    buffer = bytearray(size)
    if base is not None:
        shown = min(value.length, size)
        buffer[:shown] = memoryview(base)[:shown]
    for patch, data in zip(value.patches, patches, strict=True):
        if len(data) < patch.length:
            raise MalformedError(f"a chunk's patch has {len(data)} bytes, its value says {patch.length}")
        stop = min(patch.end, size)
        if patch.offset < stop:
            buffer[patch.offset : stop] = memoryview(data)[: stop - patch.offset]
    return bytes(buffer)
