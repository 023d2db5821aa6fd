"""What stands in a tree or an anchor is not believed: every object that a program of ours would not write is refused."""

from __future__ import annotations

import stat
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud import codec, limits
from fsdecloud.errors import MalformedError
from fsdecloud.fs.inode import (
    EntryValue,
    InodeValue,
    Superblock,
    decode_entry,
    decode_inode,
    decode_superblock,
    is_name,
)
from fsdecloud.fs.manifest import (
    AnchorPayload,
    Manifest,
    decode_manifest,
    decode_payload,
    encode_manifest,
)
from fsdecloud.types import EntryId, Inode, PeerId, Ref

FILE = InodeValue(stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, b"")
LINK = msgspec.structs.replace(FILE, mode=stat.S_IFLNK | 0o777, target=b"../there")
ENTRY = EntryValue(Inode(7), stat.S_IFREG)
REF = Ref(EntryId(b"i" * 32), b"k" * 32)
MANIFEST = Manifest(1, 3, 0, REF, b"m" * 64, b"", ())
PAYLOAD = AnchorPayload(1, REF, 1000, (PeerId(b"p" * 32),), 0, 0, 0)


def changed(value: Any, **fields: Any) -> bytes:
    """Return the encoding of a value with other fields."""
    return codec.encode(msgspec.structs.replace(value, **fields))


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"/etc/passwd", b"a\0", b"\0", b"n" * 256], ids=repr)
def test_fault_088_names_that_no_directory_may_hold(name: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_entry(name, codec.encode(ENTRY))


@given(st.binary(max_size=300))
def test_fault_088_any_other_bytes_are_a_name(name: bytes) -> None:
    """Also a trailing newline, and what is no UTF-8: those are names on every file system."""
    if is_name(name):
        assert decode_entry(name, codec.encode(ENTRY)) == ENTRY
        assert b"/" not in name
        assert b"\0" not in name
        assert 0 < len(name) <= 255


@pytest.mark.parametrize("name", [b"a\n", b"\xff\xfe", b"\x1b[31m", b"...", b"n" * 255], ids=repr)
def test_fault_088_odd_names_are_names(name: bytes) -> None:
    assert decode_entry(name, codec.encode(ENTRY)) == ENTRY


@pytest.mark.parametrize(
    "fields",
    [
        {"inode": 0},
        {"inode": 1},  # the root has no name: nothing leads back to the top
        {"inode": -1},
        {"inode": 1 << 63},
        {"type": 0},
        {"type": 0o644},
        {"type": stat.S_IFREG | 0o644},
        {"type": 0o170000},
    ],
    ids=str,
)
def test_faults_088_and_089_entries_that_lead_nowhere(fields: dict[str, int]) -> None:
    with pytest.raises(MalformedError):
        decode_entry(b"name", changed(ENTRY, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 1 << 63},
        {"size": limits.MAX_FILE_SIZE + 1},
        {"size": -1},
        {"nlink": -1},
        {"allocated": -1},
        {"xattrs": -1},
        {"mode": 0o644},
        {"mode": stat.S_IFREG | 1 << 16},
        {"mode": -1},
        {"mode": 0o170000},
        {"uid": 1 << 32},
        {"uid": -1},
        {"gid": 1 << 32},
        {"rdev": -1},
    ],
    ids=str,
)
def test_fault_090_inodes_that_make_no_sense(fields: dict[str, int]) -> None:
    with pytest.raises(MalformedError):
        decode_inode(changed(FILE, **fields))


@pytest.mark.parametrize("target", [b"", b"t" * 4096, b"a\0b"], ids=["empty", "too long", "NUL"])
def test_fault_091_targets_that_no_symlink_may_have(target: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_inode(changed(LINK, target=target))


def test_fault_091_only_symlinks_have_targets() -> None:
    assert decode_inode(codec.encode(LINK)) == LINK
    assert decode_inode(changed(LINK, target=b"t" * 4095)).target == b"t" * 4095
    with pytest.raises(MalformedError):
        decode_inode(changed(FILE, target=b"there"))


@pytest.mark.parametrize(
    "fields", [{"version": 2}, {"chunk_size": 1}, {"next_inode": 1}, {"files": -1}, {"bytes": -1}], ids=str
)
def test_fault_090_superblocks_that_make_no_sense(fields: dict[str, int]) -> None:
    with pytest.raises(MalformedError):
        decode_superblock(changed(Superblock(1, limits.CHUNK_SIZE, 2, 1, 0), **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2},
        {"sequence": 0},
        {"root": Ref(EntryId(b"short"), b"k" * 32)},
        {"root": Ref(EntryId(b"i" * 32), b"")},
        {"map_root": b"m" * 63},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fault_093_manifests_that_make_no_sense(fields: dict[str, Any]) -> None:
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST
    with pytest.raises(MalformedError):
        decode_manifest(changed(MANIFEST, **fields))


@pytest.mark.parametrize("head", [b"\xdd\x00\x98\x96\x80", b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff"])
def test_fault_093_a_manifest_that_claims_very_many_entries_takes_no_memory(head: bytes) -> None:
    """Ten million batches would be 700 MB; an entry ends at a MiB, and no claim of a length is believed."""
    whole = encode_manifest(MANIFEST)
    assert whole.endswith(b"\x90"), "the batches are last"
    tracemalloc.start()
    try:
        with pytest.raises(MalformedError):
            decode_manifest(whole[:-1] + head + b"\x90" * 1000)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 0},
        {"manifest": Ref(EntryId(b"short"), b"k" * 32)},
        {"manifest": Ref(EntryId(b"i" * 32), b"short")},
        {"holders": (PeerId(b"p" * 32),) * 4},
        {"holders": (PeerId(b"p"),)},
        {"length": 0},
        {"length": limits.BLOB_MAX + 1},
        {"files": -1},
        {"bytes": -1},
        {"records": -1},
    ],
    ids=str,
)
def test_fault_093_anchor_payloads_that_make_no_sense(fields: dict[str, Any]) -> None:
    assert decode_payload(codec.encode(PAYLOAD)) == PAYLOAD
    with pytest.raises(MalformedError):
        decode_payload(changed(PAYLOAD, **fields))


DECODERS = {
    "inode": decode_inode,
    "entry": lambda data: decode_entry(b"name", data),
    "superblock": decode_superblock,
    "manifest": decode_manifest,
    "payload": decode_payload,
}
MADE = [codec.encode(value) for value in (FILE, LINK, ENTRY, Superblock(1, 1 << 20, 2, 1, 0), MANIFEST, PAYLOAD)]


@pytest.mark.parametrize("name", DECODERS)
@given(st.data())
def test_faults_088_to_093_any_bytes_are_understood_or_malformed(name: str, data: st.DataObject) -> None:
    """Any bytes, and what we write with any byte of it changed."""
    given_bytes = data.draw(st.binary(max_size=100) | st.sampled_from(MADE))
    if given_bytes and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(given_bytes) - 1))
        given_bytes = given_bytes[:place] + data.draw(st.binary(max_size=9)) + given_bytes[place + 1 :]
    try:
        value = DECODERS[name](given_bytes)
    except MalformedError:
        return
    assert codec.encode(value) == given_bytes
