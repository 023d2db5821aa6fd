"""The kinds of contract that Marlowe was published with, written in this language: who has what at each of their ends.

Source: Lamela Seijas, Nemish, Smith and Thompson, "Marlowe: implementing and analysing financial contracts on blockchain"
(2020), and the examples of Marlowe's playground. Escrow is a standard document here, which pays the seller unless the buyer
objects in time.
"""

import pytest

from fsdecloud.contracts.inputs import Choosing, Depositing
from fsdecloud.contracts.library import standard
from fsdecloud.contracts.machine import deploy, step
from fsdecloud.contracts.parsing import parse_document
from fsdecloud.contracts.program import compile_document
from fsdecloud.contracts.reasons import NoSuchCase, OutOfBounds, WrongActor
from fsdecloud.crypto import sign

PEOPLE = ("ann", "bob", "cid")
KEYS = {name: sign.public_key(bytes([n + 70]) * 32) for n, name in enumerate(PEOPLE)}
NAMES = {key: name for name, key in KEYS.items()}
CONTRACT = bytes(32)

SWAP = """
contract swap
party ann
party bob
number hers from 1 to 1000000
number his from 1 to 1000000

main {
    when {
        deposit hers by ann into ann {
            when {
                deposit his by bob into bob {
                    pay hers from ann into bob
                    pay his from bob into ann
                    close
                }
            } after start + 20 {
                close
            }
        }
    } after start + 10 {
        close
    }
}
"""

BOND = """
contract zero_coupon_bond
party ann
party bob
number price from 1 to 1000000
number notional from 1 to 1000000

main {
    when {
        deposit price by ann into ann {
            pay price from ann to bob
            when {
                deposit notional by bob into bob {
                    pay notional from bob to ann
                    close
                }
            } after start + 100 {
                close
            }
        }
    } after start + 10 {
        close
    }
}
"""

AUCTION = """
contract auction
party ann
party bob
party cid
number least_bid from 1 to 1000

part ended {
    if cid_bid.size > bob_bid.size {
        pay cid_bid.size from cid to ann
        close
    } else {
        pay bob_bid.size from bob to ann
        close
    }
}

main {
    repeat 2 times {
        when {
            choice bob_bid by bob (size from least_bid to 1000) {
                when {
                    deposit bob_bid.size by bob into bob {
                        next
                    }
                } after now + 5 {
                    close
                }
            }
            choice cid_bid by cid (size from least_bid to 1000) {
                when {
                    deposit cid_bid.size by cid into cid {
                        next
                    }
                } after now + 5 {
                    close
                }
            }
        } after start + 30 {
            next
        }
    }
    go ended
}
"""


class Chain:
    """No block is asked for."""

    network = bytes(32)

    def block_ids(self, height):
        return None

    def proves(self, root, seed, samples, proof):
        return False


def play(program, arguments, acts):
    """Send (who, height, act) one after another; a None for an act is a look at the clock. Return who was paid what in all."""
    arguments = tuple(KEYS.get(argument, argument) for argument in arguments)
    instance = deploy(program, arguments, 1).instance
    paid = dict.fromkeys(PEOPLE, 0)
    for who, height, act in acts:
        assert instance is not None
        outcome = step(program, CONTRACT, instance, KEYS[who], height, () if act is None else (act,), Chain())
        for payment in outcome.payments:
            paid[NAMES[payment.key]] += payment.amount
        instance = outcome.instance
    assert instance is None
    return tuple(paid.values())


def pays(party, amount):
    return Depositing(party, party, amount)


def says(name, *values):
    return Choosing(name, 0, values, b"", ())


def program_of(text):
    return compile_document(parse_document(text))


BOUGHT = ("ann", 2, pays("buyer", 450))


@pytest.mark.parametrize(
    ("acts", "paid"),
    [
        ([BOUGHT, ("ann", 3, says("received"))], (0, 450, 0)),
        ([BOUGHT, ("ann", 3, says("objection")), ("bob", 4, says("given_in"))], (450, 0, 0)),
        (
            [BOUGHT, ("ann", 3, says("objection")), ("bob", 4, says("denied")), ("cid", 5, says("verdict", 1))],
            (0, 450, 0),
        ),
        (
            [BOUGHT, ("ann", 3, says("objection")), ("bob", 4, says("denied")), ("cid", 5, says("verdict", 0))],
            (450, 0, 0),
        ),
        ([BOUGHT, ("ann", 3, says("objection")), ("bob", 4, says("denied")), ("bob", 14, None)], (450, 0, 0)),
        ([BOUGHT, ("bob", 12, None)], (0, 450, 0)),
        ([("cid", 11, None)], (0, 0, 0)),
    ],
)
def test_escrow(acts, paid):
    assert play(standard("escrow"), ("ann", "bob", "cid", 450, 10, 10, 10), acts) == paid


@pytest.mark.parametrize(
    ("acts", "paid"),
    [
        ([("ann", 2, pays("ann", 30)), ("bob", 3, pays("bob", 7))], (7, 30, 0)),
        ([("ann", 2, pays("ann", 30)), ("cid", 21, None)], (30, 0, 0)),
        ([("cid", 11, None)], (0, 0, 0)),
    ],
)
def test_swap(acts, paid):
    assert play(program_of(SWAP), ("ann", "bob", 30, 7), acts) == paid


@pytest.mark.parametrize(
    ("acts", "paid"),
    [
        ([("ann", 2, pays("ann", 850)), ("bob", 90, pays("bob", 1000))], (1000, 850, 0)),
        ([("ann", 2, pays("ann", 850)), ("cid", 101, None)], (0, 850, 0)),
        ([("bob", 11, None)], (0, 0, 0)),
    ],
)
def test_zero_coupon_bond(acts, paid):
    assert play(program_of(BOND), ("ann", "bob", 850, 1000), acts) == paid


BOB = [("bob", 2, says("bob_bid", 100)), ("bob", 3, pays("bob", 100))]
CID = [("cid", 4, says("cid_bid", 120)), ("cid", 5, pays("cid", 120))]


@pytest.mark.parametrize(
    ("acts", "paid"),
    [
        ([*BOB, *CID], (120, 100, 0)),
        ([*BOB, ("ann", 31, None)], (100, 0, 0)),
        ([*BOB, CID[0], ("ann", 9, None)], (0, 100, 0)),
        ([("ann", 31, None)], (0, 0, 0)),
    ],
)
def test_auction(acts, paid):
    assert play(program_of(AUCTION), ("ann", "bob", "cid", 10), acts) == paid


@pytest.mark.parametrize(
    ("act", "who", "why"),
    [
        (says("bob_bid", 9), "bob", OutOfBounds),
        (says("bob_bid", 100), "cid", WrongActor),
        (pays("bob", 100), "bob", NoSuchCase),
    ],
)
def test_an_auction_takes_no_bid_that_is_not_one(act, who, why):
    with pytest.raises(why):
        play(program_of(AUCTION), ("ann", "bob", "cid", 10), [(who, 2, act)])
