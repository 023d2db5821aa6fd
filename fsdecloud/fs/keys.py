"""Which keys a volume's tree has.

    S                                    the superblock
    I  inode:8                           an inode
    D  parent:8  hash:8  name            a directory entry; the 63-bit hash of the name is its readdir cookie
    C  inode:8  index:8                  a chunk (`fs.chunks`)
    X  inode:8  name                     an extended attribute
    P  inode:8                           a directory's parent, as 8 bytes (volumes made before had none)
    O  inode:8                           an inode without a name that may still be open; reaped at the next mount
    H  sequence:8                        a retained snapshot (`fs.history`)
    B  sequence:8  part:2                the record batches of an anchor, for ever; sequence 0: all earlier ones are there
    R                                    which snapshots are retained

Pure. Numbers are big-endian, so that a range of keys is a directory, a file, a file's attributes.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

from fsdecloud.types import ChunkIndex, Inode

SUPERBLOCK: Final = b"S"
ROOT: Final = Inode(1)

POLICY: Final = b"R"

INODE_BITS: Final = 40
"""Inode numbers of a volume stay below 2^40, so that one number can name a snapshot and an inode in it."""

COOKIE_MIN: Final = 3
"""0 starts a listing, and NFS gives 1 and 2 a meaning of their own."""


def inode_key(inode: int) -> bytes:
    """Return the key of an inode."""
    return b"I" + inode.to_bytes(8, "big")


def orphan_key(inode: int) -> bytes:
    """Return the key that marks an inode as having no name left."""
    return b"O" + inode.to_bytes(8, "big")


def parent_key(inode: int) -> bytes:
    """Return the key that says where a directory is."""
    return b"P" + inode.to_bytes(8, "big")


def name_cookie(secret: bytes, name: bytes) -> int:
    """Return the name's readdir cookie: 63 bits of its keyed hash, so that nobody outside can make names collide."""
    return max(COOKIE_MIN, int.from_bytes(blake3(name, key=secret).digest(8), "big") >> 1)


def entry_prefix(parent: int) -> bytes:
    """Return the prefix of all entries of a directory."""
    return b"D" + parent.to_bytes(8, "big")


def entry_key(secret: bytes, parent: int, name: bytes) -> bytes:
    """Return the key of a directory entry."""
    return b"D" + parent.to_bytes(8, "big") + name_cookie(secret, name).to_bytes(8, "big") + name


def split_entry_key(key: bytes) -> tuple[int, bytes]:
    """Return (cookie, name) of a directory entry's key."""
    return int.from_bytes(key[9:17], "big"), key[17:]


def chunk_key(inode: int, index: int) -> bytes:
    """Return the key of a chunk."""
    return b"C" + inode.to_bytes(8, "big") + index.to_bytes(8, "big")


def chunk_prefix(inode: int) -> bytes:
    """Return the prefix of all chunks of a file."""
    return b"C" + inode.to_bytes(8, "big")


def split_chunk_key(key: bytes) -> tuple[Inode, ChunkIndex]:
    """Return (inode, index) of a chunk's key."""
    return Inode(int.from_bytes(key[1:9], "big")), ChunkIndex(int.from_bytes(key[9:17], "big"))


def xattr_key(inode: int, name: bytes) -> bytes:
    """Return the key of an extended attribute."""
    return b"X" + inode.to_bytes(8, "big") + name


def xattr_prefix(inode: int) -> bytes:
    """Return the prefix of all extended attributes of an inode."""
    return b"X" + inode.to_bytes(8, "big")


def snapshot_key(sequence: int) -> bytes:
    """Return the key of a retained snapshot."""
    return b"H" + sequence.to_bytes(8, "big")


def batches_key(sequence: int, part: int) -> bytes:
    """Return the key of one part of an anchor's record batches."""
    return b"B" + sequence.to_bytes(8, "big") + part.to_bytes(2, "big")


def prefix_end(prefix: bytes) -> bytes:
    """Return the smallest key after all keys that start with `prefix` (its first byte is below 0xff)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,))
