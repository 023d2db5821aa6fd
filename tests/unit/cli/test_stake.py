"""What people and programs are told about checkpoints and stakes."""

from __future__ import annotations

import json

import msgspec

from fsdecloud.cli.stake import NO_CHECKPOINTS, finality_fields, finality_lines
from fsdecloud.wire.ledgerapi import CheckpointInfo, FinalityInfo, StakeInfo

ONE, TWO = bytes([1]) * 32, bytes([2]) * 32
STAKE = StakeInfo(ONE, 2000, 2000, may_vote=True, target=8, release=0, is_burned=False)
FOUND = FinalityInfo(
    height=14, interval=4, final=CheckpointInfo(4, ONE), justified=CheckpointInfo(8, TWO), newest=CheckpointInfo(12, TWO),
    front=6000, rear=5000, front_votes=2000, rear_votes=1000, bonded=6000, least_stake=3000, stake=None, voters=(STAKE,),
    voter_count=3,
)  # fmt: skip


def changed(**changes: object) -> StakeInfo:
    return msgspec.structs.replace(STAKE, **changes)


def test_the_lines() -> None:
    own = [("a", STAKE), ("b", None), ("c", changed(target=0, may_vote=False)), ("d", changed(release=99, weight=0)),
           ("e", changed(weight=0)), ("f", changed(is_burned=True, amount=0, weight=0))]  # fmt: skip
    assert finality_lines(FOUND, own) == [
        "final up to block 4 of 14, a checkpoint each 4 blocks",
        "justified up to block 8",
        "voted for block 12: 2000 of 6000 of the voters, 1000 of 5000 of those before; two thirds of both justify it",
        "bonded 6000 by 3 peers; less than 3000 makes nothing final",
        "  peer  stake  weight  last vote in block  state",
        "  a      2000    2000                   8  votes",
        "  c      2000    2000                   -  will vote from one of the next final checkpoints on",
        "  d      2000       0                   8  leaves, paid back at block 99",
        "  e      2000       0                   8  suspended for not voting: bond some more",
        "  f         0       0                   8  burned: its votes contradicted each other",
    ]
    assert finality_lines(FOUND, [("b", None)])[-1] == "no peer of this home has a stake: decloud ledger bond AMOUNT"
    settled = msgspec.structs.replace(FOUND, newest=FOUND.justified)
    assert "nothing to vote about until the next checkpoint" in finality_lines(settled, [])
    small = msgspec.structs.replace(FOUND, front=0)
    assert "nobody votes about block 12 yet: too little is bonded" in finality_lines(small, [])


def test_the_object() -> None:
    shown = finality_fields(FOUND, [("a", STAKE), ("b", None)])
    assert json.loads(json.dumps(shown)) == shown
    row = {
        "id": ONE.hex(),
        "stake": 2000,
        "weight": 2000,
        "votes": True,
        "last_vote": 8,
        "release": None,
        "burned": False,
    }
    assert shown["peers"] == [{"name": "a", **row}, {"name": "b", "stake": None}]
    assert shown["voters"] == [row]
    assert shown["final"] == {"height": 4, "id": ONE.hex()}
    assert (shown["front_votes"], shown["rear_votes"], shown["bonded"], shown["voter_count"]) == (2000, 1000, 6000, 3)


def test_a_network_without_checkpoints() -> None:
    none = msgspec.structs.replace(FOUND, interval=0)
    assert finality_lines(none, []) == [NO_CHECKPOINTS]
    assert finality_fields(none, [])["final"] is None
