"""Votes that were seen: two that nobody may sign both are found, and memory stays bounded."""

import random
import sys
from pathlib import Path

from fsdecloud.ledger import votebook
from fsdecloud.ledger.staking import is_conflict
from fsdecloud.ledger.transactions import Vote, decode_tx, sign_vote
from fsdecloud.ledger.votebook import VoteBook

sys.path.insert(0, str(Path(__file__).parent))
from chainmaker import KEYS, VOTERS

NETWORK = bytes(32)


def vote(source, target, fork=0, seed=VOTERS[0]):
    data = sign_vote(NETWORK, seed, bytes([source, 0] * 16), source, bytes([target, fork] * 16), target)
    return decode_tx(data), data


def test_two_for_one_height_and_one_that_spans_another_are_found():
    for first, second in (((0, 4), (0, 4, 1)), ((4, 8), (0, 12)), ((0, 12), (4, 8))):
        book = VoteBook()
        assert book.note(*vote(*first)) is None
        assert book.note(*vote(*first)) is None, "the same again is no second vote"
        assert book.note(*vote(*second)) == (vote(*first)[1], vote(*second)[1])
    book = VoteBook()
    assert all(book.note(*vote(height, height + 4)) is None for height in range(0, 200, 4))
    assert book.note(*vote(0, 4, 1, VOTERS[1])) is None, "another's"


def test_each_pair_that_is_found_is_one_and_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(votebook, "VOTERS_MAX", 2)
    rng = random.Random(3)
    book = VoteBook()
    for _ in range(1000):
        source = rng.randrange(30)
        found = book.note(*vote(source, source + rng.randrange(1, 8), rng.randrange(2), rng.choice(VOTERS)))
        if found is not None:
            one, other = map(decode_tx, found)
            assert isinstance(one, Vote)
            assert is_conflict(one, other)
        assert len(book._votes) <= 2
        assert all(len(votes) <= votebook.KEPT for votes in book._votes.values())
    assert set(book._votes) <= set(KEYS)
