"""What contracts do to the state of the second implementation (`naive`), made from fsdecloud-ledger(7): its rows and its rules.

How a contract runs is in `plain`. Two things are not done a second time: which documents are
of the language (one that is an array counts as one), and proofs of possession, of which it knows that of an empty set alone.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))
import plain
from naivenotation import AMOUNT, H, Malformed, Refused, is_signed, is_somebodys, pack, unpack

DOMAIN = b"fsdecloud agreement v1"
EMPTY_PROOF = bytes(3)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "contracts.json").read_text())
STANDARD = {bytes.fromhex(one["id"]): bytes.fromhex(one["bytes"]) for one in VECTORS["standard"].values()}


class Contracts:
    """The rows of contracts: {contract: [what runs, arguments, document id, its last height, the ledger's end]}, and so on."""

    def __init__(self, other=None):
        self.running = {k: [v[0].copy(), *v[1:]] for k, v in other.running.items()} if other else {}
        self.bodies = dict(other.bodies) if other else {}
        self.recent = dict(other.recent) if other else {}
        self.ends = {k: list(v) for k, v in other.ends.items()} if other else {}
        self.pool = list(other.pool) if other and other.pool else None
        self.work = other.work if other else 0

    def rows(self):
        rows = {b"B" + slot.to_bytes(2, "big"): pack(row) for slot, row in self.recent.items()}
        for contract, (runs, arguments, document, last, ends) in self.running.items():
            rows[b"C" + contract] = pack([runs.row(document, arguments, last), ends])
        rows |= {b"D" + contract: body for contract, body in self.bodies.items()}
        rows |= {b"E" + height.to_bytes(8, "big"): pack(ids) for height, ids in self.ends.items() if ids}
        if self.pool:
            rows[b"P"] = pack(self.pool)
        return rows

    # What a contract sees.
    def ids(self, height):
        rows = [self.recent.get(one % 4096) for one in range(height, height + 3)]
        if any(row is None or row[0] != height + n for n, row in enumerate(rows)):
            return None
        return [row[1] for row in rows]

    def is_held(self, root, drawn_from, samples, proof):
        return proof == EMPTY_PROOF and root == empty_root()

    def is_signed(self, key, prefix, fields, signature):
        return is_signed(key, prefix + pack(fields), signature, DOMAIN)

    # What blocks and transactions do.
    def begin(self, state, parent, height):
        network = state.network
        if network.version < 4:
            return
        self.work = 0
        self.recent[(height - 1) % 4096] = [height - 1, parent]
        share = network.share_at(height)
        if share:
            balance, burned = self.pool or [0, 0]
            self.pool = [min(AMOUNT, balance + share), burned]
        ids = self.ends.pop(height, [])
        left = []
        for contract in ids[:64]:
            runs = self.running[contract][0]
            runs.step(b"", height, [], self)
            self.pay_out(state, runs.paid)
            if runs.where is None:
                self.remove(contract)
            else:
                left.append(contract)
        left += ids[64:]
        for contract in left:
            self.running[contract][4] = height + 1
        if left:
            self.ends[height + 1] = left + self.ends.get(height + 1, [])

    def deploy(self, state, tx, height):
        network = state.network
        if network.version < 4:
            raise Refused("NoContracts")
        if not tx.body and tx.document not in STANDARD:
            raise Refused("UnknownDocument")
        if tx.nonce != state.account(tx.sender)[1]:
            raise Refused("WrongNonce")
        state.need(tx.sender, tx.fee)
        try:
            document = unpack(STANDARD.get(tx.document, tx.body))
        except Malformed:
            raise Refused("BadContract") from None
        if type(document) is not list or not self.fit(document[2], tx.arguments):
            raise Refused("BadContract")
        last, rounds = plain.last_height(document, tx.arguments, height)
        runs = plain.Plain(document, tx.arguments, height, network.id, tx.id)
        runs.reduce(height)
        if rounds > 1 << 16 or last > height + (1 << 24) or runs.where is None:
            raise Refused("BadContract")
        first = max(last, height + 1)
        free = [ends for ends in range(first, first + 64) if len(self.ends.get(ends, [])) < 32]
        if not free:
            raise Refused("EndsTaken")
        self.spend(runs.work)
        self.ends.setdefault(free[0], []).append(tx.id)
        self.running[tx.id] = [runs, tx.arguments, tx.document, last, free[0]]
        if tx.document not in STANDARD:
            self.bodies[tx.id] = tx.body
        state.account(tx.sender)[0] -= tx.fee
        state.account(tx.sender)[1] += 1

    def fit(self, parameters, arguments):
        def fits(parameter, value):
            if parameter[0] == 1:
                return type(value) is int and parameter[2] <= value <= parameter[3]
            return type(value) is bytes and (parameter[0] == 2 or is_somebodys(value))

        return len(parameters) == len(arguments) and all(map(fits, parameters, arguments))

    def input(self, state, tx, height):
        if state.network.version < 4:
            raise Refused("NoContracts")
        if tx.nonce != state.account(tx.sender)[1]:
            raise Refused("WrongNonce")
        deposits = sum(act[3] for act in tx.acts if act[0] == 0)
        state.need(tx.sender, tx.fee + deposits)
        if tx.contract not in self.running:
            raise Refused("UnknownContract")
        runs = self.running[tx.contract][0].copy()
        try:
            runs.step(tx.sender, height, tx.acts, self)
        except plain.Refused:
            raise Refused("RefusedByContract") from None
        self.spend(runs.work + runs.extra)
        state.account(tx.sender)[0] -= tx.fee + deposits
        state.account(tx.sender)[1] += 1
        self.running[tx.contract][0] = runs
        self.pay_out(state, runs.paid)
        if runs.where is None:
            self.ends[self.running[tx.contract][4]].remove(tx.contract)
            self.remove(tx.contract)

    def spend(self, work):
        if self.work + work > 1 << 20:
            raise Refused("TooMuchWork")
        self.work += work

    def pay_out(self, state, paid):
        for key, amount, for_storage in paid:
            balance, burned = self.pool or [0, 0]
            if not key:
                self.pool = [balance, min(AMOUNT, burned + amount)]
                continue
            levy = amount * state.network.storage_levy // 1000 if for_storage else 0
            bonus = min(levy, balance)
            account = state.account(key)
            wanted = account[0] + amount - levy + bonus
            account[0] = min(AMOUNT, wanted)
            if levy or wanted > AMOUNT:
                self.pool = [balance - bonus, min(AMOUNT, burned + levy + wanted - account[0])]

    def remove(self, contract):
        del self.running[contract]
        self.bodies.pop(contract, None)


def empty_root():
    """The root of a set of no shards."""
    return H("shard set root", bytes(32 + 24))


def is_name(v):
    """Whether it is a name in a contract."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return type(v) is str and 1 <= len(v) <= 32 and v[0] in letters and set(v) <= {*letters, *"0123456789_"}


def is_argument(v):
    """Whether it may be an argument of a deployment."""
    return is_integer(v) or (type(v) is bytes and len(v) == 32)


def is_integer(v):
    """Whether it is an integer within the bound."""
    return type(v) is int and abs(v) <= 2**62


def is_act(v):
    """Whether it is an act of an input."""
    match v:
        case [0, by, into, amount]:
            return is_name(by) and is_name(into) and is_integer(amount) and 0 <= amount <= AMOUNT
        case [1, name, sequence, values, datum, signatures]:
            return (
                is_name(name)
                and is_integer(sequence)
                and sequence >= 0
                and is_list(values, 8, is_integer)
                and is_bytes(datum, 32)
                and is_list(signatures, 16, lambda one: is_bytes(one, 64))
            )
        case [2]:
            return True
        case [3, root, proof]:
            return is_name(root) and is_bytes(proof, 16384)
    return False


def is_bytes(v, most):
    return type(v) is bytes and len(v) <= most


def is_list(v, most, check):
    return type(v) is list and len(v) <= most and all(map(check, v))
