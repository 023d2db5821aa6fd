"""What the driver believes of its agent: a blob is stored when receipts of enough peers say so that hold, and no other ones."""

import os
import time

import pytest
import trio

from fsdecloud.crypto import sign
from fsdecloud.crypto.keys import deal_seed
from fsdecloud.driver.uploads import Uploads
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId
from fsdecloud.wire.agentapi import Stored
from fsdecloud.wire.receipts import ShardItem, sign_receipt

SECRET = b"d" * 32
K, N = 2, 6
SEEDS = [bytes([i + 1]) * 32 for i in range(N)]
SHARDS = tuple(ShardId(bytes([100 + i]) * 32) for i in range(N))
ENTRIES = (EntryId(b"e" * 32),)


class Entries:
    """Notes what counts as stored."""

    def __init__(self):
        self.complete, self.anchorable = [], []

    def mark_complete(self, entries):
        self.complete += entries

    def mark_anchorable(self, entries):
        self.anchorable += entries


def receipt(index, shards=None, **changes):
    """Return the receipt of peer `index` for its shard."""
    seed = changes.get("seed", SEEDS[index])
    peer = changes.get("peer", PeerId(sign.public_key(SEEDS[index])))
    deal = changes.get("deal", sign.public_key(deal_seed(SECRET, peer)))
    items = tuple(ShardItem(shard, 1000) for shard in (shards or [SHARDS[index]]))
    return sign_receipt(seed, peer, deal, int(changes.get("time", time.time())), items, changes.get("term", 1000))


def judged(receipts, *, k=K, n=N, shards=SHARDS):
    """Return (complete, anchorable, error) of what the driver makes of these receipts."""
    entries = Entries()

    async def work():
        uploads = Uploads(entries, SECRET, lambda: None, lambda: 0.0)
        uploads.take_stored(Stored(BlobId(b"b" * 32), k, n, shards, ENTRIES, tuple(receipts)))
        return uploads.last_error

    error = trio.run(work)
    return bool(entries.complete), bool(entries.anchorable), error


GOOD = [receipt(i) for i in range(N)]


def test_enough_receipts_of_distinct_peers():
    assert judged(GOOD) == (True, False, "")
    assert judged(GOOD[:4]) == (False, True, "")
    assert judged(GOOD[:3]) == (False, False, "")


STRANGER = b"x" * 32


@pytest.mark.parametrize(
    "wrong",
    [
        receipt(0, seed=STRANGER),
        receipt(0)[:-1] + bytes([receipt(0)[-1] ^ 1]),
        receipt(0, deal=sign.public_key(deal_seed(b"o" * 32, PeerId(sign.public_key(SEEDS[0]))))),
        receipt(0, deal=sign.public_key(deal_seed(SECRET, PeerId(sign.public_key(SEEDS[1]))))),
        receipt(0, time=time.time() - 2000),
        receipt(0, time=time.time() + 10 * 86400),
        receipt(0, term=0),
        b"",
        os.urandom(200),
    ],
    ids=["forged", "a changed bit", "another volume's", "another peer's deal", "expired", "of the future", "without a term",
         "nothing", "noise"],
)  # fmt: skip
def test_fault_077_a_receipt_that_does_not_hold_makes_nothing_stored(wrong):
    complete, anchorable, error = judged([wrong, *GOOD[1:]])
    assert (complete, anchorable) == (False, False)
    assert "receipt" in error


def test_fault_077_a_receipt_counts_once_and_for_its_own_blob_and_peer_only():
    assert judged([GOOD[0]] * N) == (False, False, "")
    # One peer that signs for all shards is one peer.
    assert judged([receipt(0, list(SHARDS))]) == (False, False, "")
    # Six peers that all sign for the same shard hold one.
    same = [receipt(i, [SHARDS[0]]) for i in range(N)]
    assert judged(same) == (False, False, "")
    assert judged(same, k=1, shards=(SHARDS[0],) * N) == (True, False, "")
    # Replayed: good receipts, of another blob.
    others = tuple(ShardId(bytes([200 + i]) * 32) for i in range(N))
    assert judged(GOOD, shards=others) == (False, False, "")


def test_fault_078_a_receipt_for_what_was_never_sent_does_not_count():
    """Nor does a stranger's: peers that no registry knows can sign what they like for deals that they have not."""
    never = [receipt(i, [ShardId(bytes([50 + i]) * 32)]) for i in range(3)]
    assert judged([*never, *GOOD[3:]]) == (False, False, "")
    assert judged([*never, *GOOD[2:]]) == (False, True, "")
