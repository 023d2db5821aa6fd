"""The two parts of an anchor's payload: each opens with its own key, and what an older release wrote is still read."""

import os

import pytest

from fsdecloud import codec
from fsdecloud.crypto.payload import seal_payload
from fsdecloud.errors import MalformedError, SealError
from fsdecloud.fs.manifest import (
    AnchorPayload,
    RepairPayload,
    decode_repair_payload,
    open_owners_part,
    open_repair_part,
    seal_anchor,
)
from fsdecloud.limits import ANCHOR_PAYLOAD, BLOB_MAX
from fsdecloud.types import EntryId, PeerId, Ref

OWNER, REPAIR = b"o" * 32, b"r" * 32
PEERS = tuple(PeerId(bytes([i]) * 32) for i in range(3))
MAX = (1 << 63) - 1
PAYLOAD = AnchorPayload(1, Ref(EntryId(b"i" * 32), b"k" * 32), BLOB_MAX, PEERS, MAX, MAX, MAX)
HEAD = RepairPayload(1, MAX, b"m" * 64, b"h" * 64, MAX, PEERS, b"i" * 32, MAX)


def sealed():
    return seal_anchor(OWNER, REPAIR, (os.urandom(12), os.urandom(12)), PAYLOAD, HEAD)


def test_both_parts_fit_whatever_they_say_and_open_with_their_own_key_only():
    data = sealed()
    assert len(data) == ANCHOR_PAYLOAD
    assert open_owners_part(OWNER, data) == PAYLOAD
    assert open_repair_part(REPAIR, data) == HEAD
    with pytest.raises(SealError):
        open_owners_part(REPAIR, data)
    with pytest.raises(SealError):
        open_repair_part(OWNER, data)


def test_an_anchor_of_an_older_release():
    data = seal_payload(OWNER, os.urandom(12), codec.encode(PAYLOAD))
    assert len(data) == ANCHOR_PAYLOAD
    assert open_owners_part(OWNER, data) == PAYLOAD
    with pytest.raises(SealError):
        open_repair_part(REPAIR, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"map_root": b"x"},
        {"host_map": b""},
        {"manifest": b"short"},
        {"holders": (*PEERS, PEERS[0])},
    ],
    ids=str,
)
def test_a_part_that_makes_no_sense(changes):
    values = {name: getattr(HEAD, name) for name in HEAD.__struct_fields__} | changes
    with pytest.raises(MalformedError):
        decode_repair_payload(codec.encode(RepairPayload(**values)))
