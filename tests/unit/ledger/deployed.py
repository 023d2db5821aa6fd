"""Contracts in the histories: what is deployed, and what is sent to one, right and not quite.

A step's spec is data; what it becomes follows from what the second implementation (`naive`) says of the state.
"""

import sys
from pathlib import Path

from fsdecloud.contracts.inputs import DOMAIN
from fsdecloud.contracts.language import document_id, encode_document
from fsdecloud.contracts.parsing import parse_document
from fsdecloud.crypto import sign

sys.path.insert(0, str(Path(__file__).parent))
import naive
import naivecontracts

TASK = """
contract task
party owner
party peer
number due from -5 to 1000
number rounds from 1 to 100
number wait from 1 to 6
datum root

main {
    when {
        deposit due * rounds by owner into owner {
            repeat rounds times {
                when {
                    prove root at start - 3 samples 16 {
                        pay due from owner to peer for storage
                        next
                    }
                    choice agreed by owner and peer (paid from 0 to due) {
                        pay agreed.paid from owner into peer
                        next
                    }
                    notify now > start + 2 {
                        leave
                    }
                } after now + wait {
                    burn due from owner
                    next
                }
            }
            close
        }
    } after start + wait {
        close
    }
}
"""
"""A contract with everything in it: what is deployed has its document along."""

BODY = encode_document(parse_document(TASK))
STANDARD = {one: bytes.fromhex(vector["id"]) for one, vector in naivecontracts.VECTORS["standard"].items()}

DEPLOYED = ("task", "escrow", "unknown", "junk", "few", "many", "nobody")
"""What a deployment is of: the first two are right."""

FLAWS = (None, None, None, None, "amount", "actor", "values", "signature", "sequence", "proof", "case", "contract")
"""What is wrong with an input."""


def deployment(keys, who, what, number):
    """Return the document, body and arguments of a deployment. `number` is 0 and up, and chooses the numbers in it."""
    other = keys[(who + 1) % len(keys)]
    arguments = [keys[who], other, 7 + number, 1 + number % 5, 2 + number % 5, naivecontracts.empty_root()]
    document, body = document_id(BODY), BODY
    if what == "escrow":
        document, body = STANDARD["escrow"], b""
        arguments = [keys[who], other, keys[(who + 2) % len(keys)], 9 + number, 3, 1 + number % 4, 2]
    elif what == "unknown":
        body = b""
    elif what == "junk":
        body = b"\xc0"
        document = document_id(body)
    elif what == "few":
        arguments.pop()
    elif what == "many":
        arguments[2] = 1001
    elif what == "nobody":
        arguments[1] = bytes([1]) + bytes(31)
    elif what == "rounds":
        arguments[2:5] = [0, 100, 6]
    return document, body, arguments


def acts_for(ledger, state, seeds, contract, flaw, height, which):
    """Return acts that fit a contract, or do not for one reason, and the number of who sends them."""
    runs = state.contracts.running[contract][0].copy()
    runs.paid, runs.work = [], 0
    runs.reduce(height)
    keys = [sign.public_key(seed) for seed in seeds]
    if runs.where is None or not runs.where[1]:
        return [], 0
    action, _ = runs.where[1][(which + (flaw == "case")) % len(runs.where[1])]
    if action[0] == 0:
        amount = max(0, runs.value(action[3]) + (flaw == "amount"))
        who = keys.index(runs.arguments[action[1]])
        return [[0, action[1], action[2], amount]], (who + (flaw == "actor")) % len(keys)
    if action[0] == 2:
        return [[2]], which % len(keys)
    if action[0] == 3:
        return [[3, action[1], naivecontracts.EMPTY_PROOF + b"\0" * (flaw == "proof")]], which % len(keys)
    values = [runs.value(most if which % 2 else least) - (flaw == "values") for _, least, most in action[4]]
    parties = [keys.index(runs.arguments[party]) for party in action[2]]
    if len(parties) == 1:
        return [[1, action[1], 0, values, b"", []]], (parties[0] + (flaw == "actor")) % len(keys)
    sequence = max(1, runs.choices.get(action[1], [0])[0] + (flaw != "sequence"))
    message = ledger.network.id + contract + naive.pack([action[1], sequence, values, b""])
    signatures = [sign.sign(seeds[party], DOMAIN, message) for party in parties]
    if flaw == "signature":
        signatures[-1] = bytes(64)
    elif which % 2:
        signatures[0] = b""
    return [[1, action[1], sequence, values, b"", signatures]], parties[0]
