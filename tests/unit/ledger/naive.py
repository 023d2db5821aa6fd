"""A second implementation of the ledger's rules, made from fsdecloud-ledger(7): slow, plain, and without a line of the first.

It has every state whole in a dictionary and builds its tree anew for each block. Nothing here is imported from the program, so
that a mistake in one of the two is no mistake in the other; only BLAKE3 and Ed25519 come from the same libraries.
"""

import sys
from pathlib import Path

from blake3 import blake3

sys.path.append(str(Path(__file__).parent))
from naivecontracts import Contracts, is_act, is_argument, is_list
from naivenotation import AMOUNT, DOMAIN, H, Malformed, Refused, is_signed, is_somebodys, list_root, pack, unpack

COUNTER = 2**53 - 1
TIME = 2**40 - 1
NOTHING = bytes(32)


__all__ = ["AMOUNT", "DOMAIN", "H", "Malformed", "Refused", "is_signed", "is_somebodys", "list_root", "pack", "unpack"]


# ---- networks ----------------------------------------------------------------------------------------------------------
class Network:
    FIELDS = (
        *(
            "version",
            "name",
            "salt",
            "genesis_time",
            "interval",
            "half_life",
            "first_target",
            "easiest_target",
            "subsidy",
        ),
        *("minimum_fee", "stamp_bits", "finality_depth", "future_limit", "block_max", "transaction_max"),
        *("mine_when_idle", "halving", "checkpoint_interval", "unbond_delay", "least_bond", "least_stake"),
        *("storage_share", "storage_levy"),
    )

    def __init__(self, document):
        values = unpack(document)
        self.id = blake3(document).digest()
        values += [0] * (len(self.FIELDS) - len(values))
        self.__dict__.update(zip(self.FIELDS, values, strict=True))
        self.first_target = int.from_bytes(self.first_target, "big")
        self.easiest_target = int.from_bytes(self.easiest_target, "big")

    def subsidy_at(self, height):
        return self.subsidy >> (height - 1) // self.halving if self.halving else self.subsidy

    def share_at(self, height):
        return self.subsidy_at(height) * self.storage_share // 1000

    def reward_at(self, height):
        return self.subsidy_at(height) - self.share_at(height)


# ---- transactions --------------------------------------------------------------------------------------------------------
def number(low, high):
    return lambda v: type(v) is int and low <= v <= high


def binary(low, high):
    return lambda v: type(v) is bytes and low <= len(v) <= high


def url(v):
    return type(v) is str and 1 <= len(v) <= 300 and all(32 <= ord(c) <= 126 for c in v)


CHECKS = {
    "one": number(1, 1),
    "key": binary(32, 32),
    "signature": binary(0, 64),
    "payload": binary(1024, 1024),
    "nonce": binary(8, 8),
    "amount": number(0, AMOUNT),
    "counter": number(0, COUNTER),
    "positive": number(1, COUNTER),
    "height": number(1, TIME),
    "time": number(0, TIME),
    "stamp": number(0, 2**63 - 1),
    "url": url,
    "bool": lambda v: type(v) is bool,
    "key or nothing": lambda v: type(v) is bytes and len(v) in (0, 32),
    "vote": binary(0, 256),
    "document": binary(0, 16384),
    "arguments": lambda v: is_list(v, 32, is_argument),
    "acts": lambda v: is_list(v, 8, is_act),
}


def table(text):
    return {name: CHECKS[check] for name, check in (field.split(": ") for field in text.split(", "))}


KINDS = {
    0: ("Coinbase", table("version: one, height: counter, recipient: key, amount: amount")),
    1: (
        "Transfer",
        table(
            "version: one, sender: key, recipient: key, amount: amount, fee: amount, nonce: counter, signature: signature"
        ),
    ),
    2: (
        "Register",
        table(
            "version: one, peer: key, url: url, capacity: counter, price: amount, sequence: counter, fee: amount, "
            "stamp: stamp, signature: signature"
        ),
    ),
    3: (
        "Anchor",
        table(
            "version: one, volume: key, device: key, lease_expiry: time, sequence: positive, commitment: key, "
            "previous: key, takeover: bool, payload: payload, fee: amount, stamp: stamp, volume_signature: signature, "
            "device_signature: signature"
        ),
    ),
    4: ("Bond", table("version: one, peer: key, amount: amount, fee: amount, nonce: counter, signature: signature")),
    5: ("Unbond", table("version: one, peer: key, fee: amount, nonce: counter, signature: signature")),
    6: (
        "Vote",
        table(
            "version: one, peer: key, source: key, source_height: counter, target: key, target_height: counter, "
            "signature: signature"
        ),
    ),
    7: ("Evidence", table("version: one, first: vote, second: vote, fee: amount")),
    8: (
        "Deploy",
        table(
            "version: one, sender: key, document: key, body: document, arguments: arguments, fee: amount, nonce: counter, "
            "signature: signature"
        ),
    ),
    9: (
        "Input",
        table(
            "version: one, sender: key, contract: key, acts: acts, fee: amount, nonce: counter, signature: signature"
        ),
    ),
    10: (
        "Operate",
        table(
            "version: one, peer: key, operator: key or nothing, sequence: counter, fee: amount, stamp: stamp, "
            "signature: signature, operator_signature: signature"
        ),
    ),
}
HEADER = table(
    "version: one, parent: key, height: height, time: time, target: key, ids_root: key, bytes_root: key, "
    "state_root: key, nonce: nonce"
)


class Transaction:
    def __init__(self, network, data):
        if len(data) > network.transaction_max:
            raise Refused("MalformedTransaction")
        try:
            values = unpack(data)
        except Malformed:
            raise Refused("MalformedTransaction") from None
        if type(values) is not list or not values or type(values[0]) is not int or values[0] not in KINDS:
            raise Refused("MalformedTransaction")
        self.number = values[0]
        self.kind, fields = KINDS[self.number]
        if len(values) != 1 + len(fields) or not all(
            check(v) for check, v in zip(fields.values(), values[1:], strict=True)
        ):
            raise Refused("MalformedTransaction")
        self.fields = dict(zip(fields, values[1:], strict=True))
        self.__dict__.update(self.fields)
        if self.kind == "Operate" and not self.operator and self.operator_signature:
            raise Refused("MalformedTransaction")
        if self.kind == "Deploy" and self.body and H("contract document", self.body) != self.document:
            raise Refused("MalformedTransaction")
        self.id = H("transaction id", self.unsigned())
        if self.kind in ("Coinbase", "Vote"):
            self.fee = 0
        self.votes = []
        if self.kind == "Evidence":
            self.votes = [Transaction(network, data) for data in (self.first, self.second)]
            if [vote.kind for vote in self.votes] != ["Vote", "Vote"] or len({vote.peer for vote in self.votes}) != 1:
                raise Refused("MalformedTransaction")

    def unsigned(self, **changes):
        cleared = {name: b"" for name in self.fields if name.endswith("signature")}
        return pack([self.number, *(self.fields | cleared | changes).values()])

    def check_fee(self, network):
        if self.kind in ("Coinbase", "Vote") or self.fee >= network.minimum_fee:
            return
        if self.kind in ("Transfer", "Bond", "Unbond", "Evidence", "Deploy", "Input"):
            raise Refused("BadStamp")
        base = H("stamp", self.unsigned(stamp=0))
        bits = bin(int.from_bytes(b"\1" + H("stamp", base + self.stamp.to_bytes(8, "big")), "big"))[3:]
        if not bits.startswith("0" * network.stamp_bits):
            raise Refused("BadStamp")

    def check_signatures(self, network):
        for vote in self.votes:
            vote.check_signatures(network)
        message = network.id + self.unsigned()
        signed = {
            "Coinbase": [],
            "Transfer": [("sender", "signature")],
            "Register": [("peer", "signature")],
            "Anchor": [("volume", "volume_signature"), ("device", "device_signature")],
            "Operate": [("peer", "signature"), ("operator", "operator_signature")],
            "Deploy": [("sender", "signature")],
            "Input": [("sender", "signature")],
            "Bond": [("peer", "signature")],
            "Unbond": [("peer", "signature")],
            "Vote": [("peer", "signature")],
            "Evidence": [],
        }[self.kind]
        for who, what in signed:
            if who == "operator" and not self.operator:
                continue
            if not is_signed(self.fields[who], message, self.fields[what]):
                raise Refused("BadSignature")


# ---- state ---------------------------------------------------------------------------------------------------------------
class State:
    """Rows as values, not as bytes: accounts {key: [balance, nonce]}, and so on.

    `stakes` is {peer: {"amount": .., "weights": {height: weight}, ..}}.
    """

    def __init__(self, other=None, network=None):
        self.network = network or other.network
        self.stakes = {k: v | {"weights": dict(v["weights"])} for k, v in other.stakes.items()} if other else {}
        self.unbonding = set(other.unbonding) if other else set()
        self.finality = dict(other.finality) if other else {}
        self.accounts = {k: list(v) for k, v in other.accounts.items()} if other else {}
        self.operated = dict(other.operated) if other else {}
        self.registered = dict(other.registered) if other else {}
        self.volumes = dict(other.volumes) if other else {}
        self.count = other.count if other else 0
        self.contracts = Contracts(other.contracts if other else None)

    def rows(self):
        rows = {b"A" + k: pack(v) for k, v in self.accounts.items() if v != [0, 0]}
        rows |= {b"O" + k: pack(v) for k, v in self.operated.items()}
        rows |= {b"R" + k: pack(v) for k, v in self.registered.items()}
        rows |= {b"V" + k: pack(v) for k, v in self.volumes.items()}
        if self.count:
            rows[b"N"] = pack(self.count)
        rows |= {b"S" + k: pack(stake_row(v)) for k, v in self.stakes.items()}
        rows |= {b"U" + height.to_bytes(8, "big") + peer: b"" for height, peer in self.unbonding}
        if self.finality:
            rows[b"F"] = pack(list(self.finality.values()))
        return rows | self.contracts.rows()

    # The checkpoints are {"final": [height, id, stake], "front": [height, stake], ..} in the order of the row.
    def votes(self):
        genesis = [0, self.network.id, 0]
        return self.finality or {
            **dict.fromkeys(("final", "justified", "newest"), genesis),
            "front": [0, 0],
            "rear": [0, 0],
            **dict.fromkeys(("front_votes", "rear_votes", "restarted", "bonded"), 0),
        }

    def begin(self, parent, height):
        """What comes before the transactions of a block."""
        self.begin_voting(parent, height)
        self.contracts.begin(self, parent, height)

    def begin_voting(self, parent, height):
        network = self.network
        if not network.checkpoint_interval:
            return
        for due, peer in sorted(self.unbonding):
            if due != height:
                continue
            self.unbonding.discard((due, peer))
            if not self.stakes[peer]["burned"]:
                account, amount = self.account(peer), self.stakes.pop(peer)["amount"]
                account[0] = min(AMOUNT, account[0] + amount)
        checkpoint = height - 1
        if checkpoint == 0 or checkpoint % network.checkpoint_interval:
            return
        f = self.votes()
        has_enough = f["front"][1] >= network.least_stake
        patience = network.unbond_delay // 4
        gave_up = has_enough and checkpoint >= max(f["final"][0], f["restarted"]) + patience
        if gave_up:
            for stake in self.stakes.values():
                could = any(weight_at(stake, f[voters][0]) for voters in ("front", "rear"))
                now = weight_at(stake, checkpoint)
                if could and now and stake["target"] <= checkpoint - patience:
                    f = f | {"bonded": f["bonded"] - now}
                    stake["weights"][checkpoint] = 0
        f = f | {"newest": [checkpoint, parent, f["bonded"]], "front_votes": 0, "rear_votes": 0}
        if gave_up or (not has_enough and f["bonded"] >= network.least_stake):
            f |= {"front": [checkpoint, f["bonded"]], "rear": [checkpoint, f["bonded"]], "restarted": checkpoint}
        self.finality = f

    def is_offering(self, peer):
        return peer in self.registered and self.registered[peer][2] > 0

    def apply_bond(self, tx, time, height):
        network, f = self.network, self.votes()
        if not network.checkpoint_interval:
            raise Refused("NoVoting")
        if not self.is_offering(tx.peer):
            raise Refused("NotRegistered")
        if tx.amount == 0:
            raise Refused("AmountOutOfRange")
        stake = self.stakes.get(tx.peer, {"amount": 0, "weights": {}, "target": 0, "release": 0, "burned": False})
        if stake["burned"] or stake["release"] or len(kept_weights(stake, f)) >= 8:
            raise Refused("StakeLocked")
        if tx.nonce != self.account(tx.peer)[1]:
            raise Refused("WrongNonce")
        self.need(tx.peer, tx.amount + tx.fee)
        amount = stake["amount"] + tx.amount
        if amount < network.least_bond or f["bonded"] + amount > AMOUNT:
            raise Refused("AmountOutOfRange")
        self.account(tx.peer)[0] -= tx.amount + tx.fee
        self.account(tx.peer)[1] += 1
        self.stakes[tx.peer] = self.weigh(stake | {"amount": amount}, height, amount)

    def apply_unbond(self, tx, time, height):
        if not self.network.checkpoint_interval:
            raise Refused("NoVoting")
        stake = self.stakes.get(tx.peer)
        if not stake or not stake["amount"]:
            raise Refused("NotBonded")
        if stake["release"]:
            raise Refused("StakeLocked")
        if tx.nonce != self.account(tx.peer)[1]:
            raise Refused("WrongNonce")
        self.need(tx.peer, tx.fee)
        self.account(tx.peer)[0] -= tx.fee
        self.account(tx.peer)[1] += 1
        release = height + self.network.unbond_delay
        self.unbonding.add((release, tx.peer))
        self.stakes[tx.peer] = self.weigh(stake | {"release": release}, height, 0)

    def weigh(self, stake, height, weight):
        """Give a stake another weight from a block on."""
        f = self.votes()
        before = weight_at(stake, height)
        self.finality = f | {"bonded": f["bonded"] + weight - before}
        return stake | {"weights": kept_weights(stake, f) | {height: weight}}

    def apply_vote(self, tx, time, height):
        network, f = self.network, self.votes()
        if not network.checkpoint_interval:
            raise Refused("NoVoting")
        stake = self.stakes.get(tx.peer)
        if not stake or stake["burned"] or not self.is_offering(tx.peer):
            raise Refused("NotAVoter")
        front, rear = weight_at(stake, f["front"][0]), weight_at(stake, f["rear"][0])
        if front == rear == 0:
            raise Refused("NotAVoter")
        source, target = f["justified"], f["newest"]
        if (
            [tx.source_height, tx.source] != source[:2]
            or [tx.target_height, tx.target] != target[:2]
            or source == target
        ):
            raise Refused("WrongLink")
        if tx.target_height <= stake["target"]:
            raise Refused("VotedAlready")
        stake["target"] = tx.target_height
        f = f | {"front_votes": f["front_votes"] + front, "rear_votes": f["rear_votes"] + rear}
        if (
            f["front"][1] >= network.least_stake
            and f["front_votes"] * 3 >= f["front"][1] * 2
            and f["rear_votes"] * 3 >= f["rear"][1] * 2
        ):
            f |= {"justified": target, "front_votes": 0, "rear_votes": 0}
            if target[0] - source[0] == network.checkpoint_interval:
                f["final"] = source
                if source[0] > f["front"][0]:
                    f |= {"front": [source[0], source[2]], "rear": f["front"]}
        self.finality = f

    def apply_evidence(self, tx, time, height):
        if not self.network.checkpoint_interval:
            raise Refused("NoVoting")
        one, other = sorted(tx.votes, key=lambda vote: vote.target_height)
        if one.unsigned() == other.unsigned():
            raise Refused("NoConflict")
        if one.target_height < other.target_height and other.source_height >= one.source_height:
            raise Refused("NoConflict")
        stake = self.stakes.get(one.peer)
        if not stake or not stake["amount"]:
            raise Refused("NotBonded")
        if tx.fee > stake["amount"] // 16:
            raise Refused("AmountOutOfRange")
        self.stakes[one.peer] = self.weigh(stake | {"amount": 0, "burned": True}, height, 0)

    def apply_deploy(self, tx, time, height):
        self.contracts.deploy(self, tx, height)

    def apply_input(self, tx, time, height):
        self.contracts.input(self, tx, height)

    def account(self, who):
        return self.accounts.setdefault(who, [0, 0])

    def need(self, who, money):
        if self.account(who)[0] < money:
            raise Refused("NotEnoughMoney")

    def apply(self, tx, time, height):
        """Change the state as the transaction does; a caller who keeps the state after a refusal gives a copy."""
        getattr(self, "apply_" + tx.kind.lower())(tx, time, height)

    def apply_coinbase(self, tx, time, height):
        raise Refused("MisplacedCoinbase")

    def apply_transfer(self, tx, time, height):
        if tx.amount == 0:
            raise Refused("AmountOutOfRange")
        if tx.nonce != self.account(tx.sender)[1]:
            raise Refused("WrongNonce")
        self.need(tx.sender, tx.amount + tx.fee)
        if tx.recipient != tx.sender and self.account(tx.recipient)[0] + tx.amount > AMOUNT:
            raise Refused("AmountOutOfRange")
        self.account(tx.sender)[0] -= tx.amount + tx.fee
        self.account(tx.sender)[1] += 1
        self.account(tx.recipient)[0] += tx.amount

    def apply_register(self, tx, time, height):
        row = self.registered.get(tx.peer)
        if row and tx.sequence <= row[4]:
            raise Refused("OldSequence")
        self.need(tx.peer, tx.fee)
        if row:
            place = row[0]
        else:
            place, self.count = self.count, self.count + 1
        self.registered[tx.peer] = (place, tx.url, tx.capacity, tx.price, tx.sequence, height)
        self.account(tx.peer)[0] -= tx.fee

    def apply_operate(self, tx, time, height):
        if tx.peer not in self.registered:
            raise Refused("NotRegistered")
        if tx.peer in self.operated and tx.sequence <= self.operated[tx.peer][1]:
            raise Refused("OldSequence")
        self.need(tx.peer, tx.fee)
        self.operated[tx.peer] = (tx.operator, tx.sequence)
        self.account(tx.peer)[0] -= tx.fee

    def apply_anchor(self, tx, time, height):
        row = self.volumes.get(tx.volume)
        if row:
            sequence, commitment, device, lease_expiry, _, row_height = row
            if tx.sequence != sequence + 1:
                raise Refused("WrongPredecessor")
            if tx.previous != H("anchor link", tx.volume + sequence.to_bytes(8, "big") + commitment):
                raise Refused("WrongPredecessor")
            if row_height == height:
                raise Refused("OneAnchorPerBlock")
            if tx.device != device and time < lease_expiry and not tx.takeover:
                raise Refused("LeaseHeld")
        elif tx.sequence != 1 or tx.previous != NOTHING:
            raise Refused("WrongPredecessor")
        self.need(tx.volume, tx.fee)
        self.volumes[tx.volume] = (tx.sequence, tx.commitment, tx.device, tx.lease_expiry, tx.id, height)
        self.account(tx.volume)[0] -= tx.fee


def weight_at(stake, height):
    """The weight after the block of a height."""
    return next((stake["weights"][h] for h in sorted(stake["weights"], reverse=True) if h <= height), 0)


def kept_weights(stake, f):
    """What the row keeps when its weight changes: from the last one at or before the rear voters to the newest checkpoint."""
    heights = sorted(stake["weights"])
    start = max((h for h in heights if h <= f["rear"][0]), default=0)
    return {h: stake["weights"][h] for h in heights if start <= h <= f["newest"][0]}


def stake_row(stake):
    weights = [[h, stake["weights"][h]] for h in sorted(stake["weights"])]
    return [stake["amount"], weights, stake["target"], stake["release"], stake["burned"]]


def state_root(network, rows):
    if not rows:
        return NOTHING
    border = H("ledger state border", network.id)
    items, level = sorted(rows.items()), 0
    while True:
        nodes = []
        for item in items:
            if not nodes or ends_node(border, level, nodes[-1]):
                nodes.append([])
            nodes[-1].append(item)
        items = []
        for node in nodes:
            columns = [[k for k, _ in node], [v for _, v in node]]
            data = pack([1, level, *columns] if level else [0, *columns])
            items.append((node[0][0], H("ledger state node", data)))
        if len(items) == 1:
            return items[0][1]
        level += 1


def ends_node(border, level, node):
    """Whether a node of a level ends after its last item so far."""
    sizes = [len(k) + len(v) + 4 for k, v in node]
    if len(node) == 128 or sum(sizes) >= 16384:
        return True
    first = blake3(bytes([level]) + node[-1][0], key=border).digest()[:4]
    return sum(sizes) >= 1024 and int.from_bytes(first, "big") < (max(sizes[-1], 128) << 32) // 8192


# ---- blocks --------------------------------------------------------------------------------------------------------------
class Entry:
    """A block that is in some chain."""

    def __init__(self, identity, parent, height, times, lead, work, state):
        self.id, self.parent, self.height, self.times = identity, parent, height, times
        self.lead, self.work, self.state = lead, work, state


def median(times):
    last = sorted(times[-11:])
    return last[len(last) // 2]


class Ledger:
    """All valid blocks that it was given, and the best chain among them."""

    def __init__(self, document):
        self.network = Network(document)
        genesis = Entry(self.network.id, None, 0, [self.network.genesis_time], 0, 0, State(network=self.network))
        self.entries = {genesis.id: genesis}
        self.tip = genesis

    def target_after(self, lead):
        network = self.network
        exponent = (lead << 16) // network.half_life
        shift = exponent >> 16
        fraction = exponent - (shift << 16)
        cubic = 195766423245049 * fraction + 971821376 * fraction**2 + 5127 * fraction**3 + 2**47
        target = network.first_target * (65536 + (cubic >> 48))
        target = target << shift if shift >= 0 else target >> -shift
        return max(1, min(target >> 16, network.easiest_target))

    def lead_after(self, entry, time):
        network = self.network
        active = min(median([*entry.times, time]) - median(entry.times), 4 * network.interval)
        top = network.half_life * (network.easiest_target // network.first_target).bit_length()
        return max(-250 * network.half_life, min(entry.lead + active - network.interval, top))

    def add(self, data, now=None):
        """Take an encoded block and return its entry, or raise Refused."""
        network = self.network
        header, bodies = self.parse(data)
        identity = H("block", pack(list(header.values())))
        if identity in self.entries:
            return self.entries[identity]
        parent = self.entries.get(header["parent"])
        if parent is None:
            raise Refused("UnknownParent")
        if header["height"] != parent.height + 1:
            raise Refused("WrongHeight")
        target = int.from_bytes(header["target"], "big")
        if target != self.target_after(parent.lead):
            raise Refused("WrongTarget")
        if int.from_bytes(identity, "big") > target:
            raise Refused("NotEnoughWork")
        if header["time"] <= median(parent.times):
            raise Refused("TimeTooOld")
        if now is not None and header["time"] > now + network.future_limit:
            raise Refused("TimeTooNew")
        if header["bytes_root"] != list_root(bodies):
            raise Refused("BodyMismatch")
        if len(data) > network.block_max:
            raise Refused("BlockTooBig")
        state = self.apply(header, bodies, State(parent.state))
        if state_root(network, state.rows()) != header["state_root"]:
            raise Refused("WrongStateRoot")
        times = [*parent.times, header["time"]]
        lead = self.lead_after(parent, header["time"])
        entry = Entry(identity, parent, header["height"], times, lead, parent.work + 2**256 // (target + 1), state)
        self.entries[identity] = entry
        if entry.work > self.tip.work or (entry.work == self.tip.work and entry.id < self.tip.id):
            self.tip = entry
        return entry

    def parse(self, data):
        try:
            block = unpack(data)
        except Malformed:
            raise Refused("MalformedBlock") from None
        if type(block) is not list or len(block) != 2 or not all(type(part) is list for part in block):
            raise Refused("MalformedBlock")
        values, bodies = block
        if len(values) != len(HEADER) or not all(c(v) for c, v in zip(HEADER.values(), values, strict=True)):
            raise Refused("MalformedBlock")
        if not all(type(body) is bytes and len(body) >= 39 for body in bodies):
            raise Refused("MalformedBlock")
        return dict(zip(HEADER, values, strict=True)), bodies

    def apply(self, header, bodies, state):
        network, height = self.network, header["height"]
        txs = []
        for body in bodies:
            try:
                tx = Transaction(network, body)
                tx.check_fee(network)
                tx.check_signatures(network)
            except Refused as exc:
                raise Refused("BadTransaction", *exc.reasons) from None
            txs.append(tx)
        if header["ids_root"] != list_root([tx.id for tx in txs]):
            raise Refused("WrongIdsRoot")
        if len({tx.id for tx in txs}) < len(txs):
            raise Refused("DuplicateTransaction")
        if len([tx for tx in txs if tx.kind == "Vote"]) > 512:
            raise Refused("TooManyVotes")
        if not txs or txs[0].kind != "Coinbase" or txs[0].height != height:
            raise Refused("NoCoinbase")
        coinbase = txs[0]
        state.begin(header["parent"], height)
        for tx in txs[1:]:
            try:
                state.apply(tx, header["time"], height)
            except Refused as exc:
                raise Refused("BadTransaction", *exc.reasons) from None
        if coinbase.amount != network.reward_at(height) + sum(tx.fee for tx in txs):
            raise Refused("WrongReward")
        if state.account(coinbase.recipient)[0] + coinbase.amount > AMOUNT:
            raise Refused("BadTransaction", "AmountOutOfRange")
        state.account(coinbase.recipient)[0] += coinbase.amount
        return state
