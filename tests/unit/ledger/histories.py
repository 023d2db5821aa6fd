"""Makes histories that no honest program would: blocks and transactions right and wrong in every way, on any branch.

A history is data (`steps`, for hypothesis to shrink); `Writer` turns each step into the bytes of a block with the second
implementation (`naive`) alone. `Fast` is the program's own, with the same face as `naive.Ledger`.
"""

import sys
from functools import cache
from pathlib import Path

import msgspec
from hypothesis import strategies as st

from fsdecloud.crypto import sign
from fsdecloud.ledger.network import decode_network, encode_network

sys.path.insert(0, str(Path(__file__).parent))
import naive
from chainmaker import GENESIS_TIME, easy_network
from deployed import DEPLOYED, FLAWS, acts_for, deployment

SEEDS = [bytes([n + 1]) * 32 for n in range(5)]
KEYS = [sign.public_key(seed) for seed in SEEDS]
DOCUMENT = encode_network(
    easy_network(
        version=2,
        halving=4,
        subsidy=10_000,
        minimum_fee=2,
        stamp_bits=3,
        half_life=60,
        easiest_target=((1 << 256) // 4 - 1).to_bytes(32),
        block_max=8192,
        transaction_max=4096,
    )
)

VOTING = encode_network(
    msgspec.structs.replace(
        decode_network(DOCUMENT),
        version=3,
        checkpoint_interval=2,
        finality_depth=4,
        unbond_delay=32,
        least_bond=64,
        least_stake=1000,
    )
)
"""The same with checkpoints: the voters are taken anew after 8 blocks, a stake is back after 32."""

ROOMY = encode_network(msgspec.structs.replace(decode_network(VOTING), block_max=1 << 17))
"""The same with room for more votes than a block may hold."""

CONTRACTS = encode_network(
    msgspec.structs.replace(
        decode_network(DOCUMENT), version=4, halving=0, storage_share=100, storage_levy=250, block_max=1 << 14
    )
)
"""The same with contracts, and with room for some more transactions."""

WHO = st.integers(0, len(SEEDS) - 1)
FEE = st.sampled_from([0, 0, 0, 1, 2, 2, 3, 500, naive.AMOUNT])
OFF = st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1])
"""How far a nonce or a sequence number is beside the right one."""
FORGERIES = ("signature", "network", "stamp", "encoding", "short", "kind", "weak key", "stray")
FORGED = st.sampled_from([None] * 12 + [*FORGERIES])
LINKS = (None, None, None, "source", "target", "back")
"""What is wrong with a vote."""

PAIRS = {
    "one height": ((0, 2, 0), (0, 2, 1)),
    "spans": ((2, 4, 0), (0, 6, 0)),
    "the same": ((2, 4, 0), (2, 4, 0)),
    "after": ((0, 2, 0), (2, 4, 0)),
    "one source": ((2, 4, 0), (2, 6, 0)),
    "two peers": ((0, 2, 0), (0, 2, 1)),
}
"""Two votes each, as (source, target, which block of that height)."""

SPECS = st.one_of(
    st.tuples(st.just("transfer"), WHO, WHO, st.sampled_from([0, 1, 7, 900, naive.AMOUNT]), FEE, OFF, FORGED),
    st.tuples(st.just("register"), WHO, st.sampled_from(["wss://a", "x" * 300, "", "\t"]), FEE, OFF, FORGED),
    st.tuples(st.just("anchor"), WHO, WHO, st.integers(-5, 40), st.booleans(), FEE, OFF, st.booleans(), FORGED),
    st.tuples(st.just("operate"), WHO, st.none() | WHO, FEE, OFF, FORGED),
    st.tuples(st.just("bond"), WHO, st.sampled_from([0, 1, 63, 64, 1000, naive.AMOUNT]), FEE, OFF, FORGED),
    st.tuples(st.just("unbond"), WHO, FEE, OFF, FORGED),
    st.tuples(st.just("vote"), WHO, st.sampled_from(LINKS), FORGED),
    st.tuples(st.just("evidence"), WHO, st.sampled_from(sorted(PAIRS)), FEE, FORGED),
)
HEADER_FLAWS = ("parent", "height", "target", "work", "ids_root", "state_root", "version", "far")
BODY_FLAWS = (
    "false body",
    "reward",
    "rich",
    "no coinbase",
    "other height",
    "two coinbases",
    "twice",
    "big",
    "empty",
    "tail",
)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # how many blocks back from the last one the parent is
        st.sampled_from([1, 2, 2, 2, 3, 9, 100, 0, -1, -50]),  # seconds after the parent
        st.lists(SPECS, max_size=5),
        st.booleans(),  # whether transactions that cannot be applied stay in
        st.sampled_from([None] * 9 + [*HEADER_FLAWS, *BODY_FLAWS]),
        WHO,
    ),
    min_size=1,
    max_size=14,
)


def random_steps(rng, length):
    """Return a history most of whose blocks and transactions are valid, so that it goes deep; `STEPS` goes for the odd."""

    def one_of(usual, *odd):
        return rng.choice(odd) if rng.random() < 0.08 else usual

    def spec():
        who, other, fee = (rng.randrange(len(SEEDS)) for _ in range(3))
        off, forged = one_of(0, 1, -1), one_of(None, *FORGERIES)
        fee = rng.choice([0, 0, 2, 3, 40])
        return rng.choice([
            ("transfer", who, other, rng.choice([1, 7, 900, 5000]), max(2, fee), off, forged),
            ("register", who, rng.choice(["wss://a", "wss://b"]), fee, off, forged),
            ("anchor", who, other % 2, rng.randrange(-5, 20), rng.random() < 0.3, fee, off, True, forged),
            ("anchor", who, 0, rng.randrange(-5, 20), False, fee, off, True, forged),
            ("operate", who, one_of(other, None), fee, off, forged),
        ])  # fmt: skip

    return [
        (
            rng.choice([0, 0, 0, 0, 0, 1, 2]),
            rng.choice([1, 2, 2, 3, 9, 100]) if rng.random() < 0.9 else 0,
            [spec() for _ in range(rng.randrange(6))],
            rng.random() < 0.2,
            one_of(None, *HEADER_FLAWS, *BODY_FLAWS),
            rng.randrange(len(SEEDS)),
        )
        for _ in range(length)
    ]


def random_voting_steps(rng, length):
    """Return a history with voters: all mine, register and bond, and then mostly vote, in chains that part and join."""

    def one_of(usual, *odd):
        return rng.choice(odd) if rng.random() < 0.06 else usual

    def spec(who):
        return rng.choice([
            plain("bond", who, rng.choice([1, 70, 900]), 2, one_of(0, 1)),
            plain("bond", who, 500, 2, 0),
            plain("unbond", who, 2, one_of(0, 1)),
            plain("evidence", who, rng.choice([*PAIRS, "one height", "spans"]), rng.choice([2, 2, 3, 500])),
            ("register", who, "wss://b", 2, 0, one_of(None, "empty")),
            plain("transfer", who, rng.randrange(len(SEEDS)), 7, 2, 0),
        ])  # fmt: skip

    steps = [(0, 2, [plain("register", who, "wss://a", 0, 0)], False, None, who) for who in range(len(SEEDS))]
    steps += [(0, 2, [plain("bond", who, rng.choice([200, 700, 2000]), 2, 0)], False, None, who) for who in range(5)]
    present = len(SEEDS)
    for _ in range(length):
        if rng.random() < 0.1:
            present = rng.choice([1, 2, 4, 5, 5, 5])
        specs = [spec(rng.randrange(len(SEEDS)))] if rng.random() < 0.25 else []
        specs += [("vote", who, one_of(None, *LINKS), one_of(None, *FORGERIES)) for who in range(present)]
        rng.shuffle(specs)
        flaw = one_of(None, None, *HEADER_FLAWS, *BODY_FLAWS)
        keeps_bad = rng.random() < 0.05
        steps.append((rng.choice([0] * 9 + [1, 2, 5]), 2, specs, keeps_bad, flaw, rng.randrange(len(SEEDS))))
    return steps


def random_contract_steps(rng, length):
    """Return a history with contracts: all mine, and then deploy and send inputs, in chains that part and join."""

    def one_of(usual, *odd):
        return rng.choice(odd) if rng.random() < 0.06 else usual

    def spec():
        who, fee = rng.randrange(len(SEEDS)), rng.choice([2, 2, 2, 3, one_of(40, 0, 10**6)])
        off, forged = one_of(0, 1, -1), one_of(None, *FORGERIES)
        if rng.random() < 0.25:
            what = rng.choice(["task", "task", "escrow", one_of("escrow", *DEPLOYED)])
            return ("deploy", who, what, rng.randrange(12), fee, off, forged)
        flaw = rng.choice(FLAWS) if rng.random() < 0.4 else None
        return ("input", who, rng.randrange(100), flaw, one_of(1, 0, 2, 3), fee, off, forged)

    steps = [(0, 2, [], False, None, who) for who in range(len(SEEDS))]
    for _ in range(length):
        specs = [spec() for _ in range(rng.randrange(7))]
        if rng.random() < 0.2:
            specs.append(plain("transfer", rng.randrange(len(SEEDS)), rng.randrange(len(SEEDS)), 7, 2, 0))
        flaw, keeps_bad = one_of(None, *HEADER_FLAWS, *BODY_FLAWS), rng.random() < 0.15
        steps.append((rng.choice([0] * 9 + [1, 2, 5]), 2, specs, keeps_bad, flaw, rng.randrange(len(SEEDS))))
    return steps


@cache
def signature(seed, message):
    return sign.sign(seed, naive.DOMAIN, message)


class Writer:
    """Turns steps into blocks. `ledger` says what is in it so far."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.network = ledger.network
        self.points = [ledger.tip]

    def block(self, step):
        back, seconds, specs, keeps_bad, flaw, miner = step
        parent = self.points[max(-1 - back, -len(self.points))]
        height, time = parent.height + 1, max(0, parent.times[-1] + seconds)
        scratch, bodies = naive.State(parent.state), []
        scratch.begin(parent.id, height)
        for spec in specs:
            body = self.transaction(scratch, spec, time, height)
            copy = naive.State(scratch)
            try:
                tx = naive.Transaction(self.network, body)
                tx.check_fee(self.network)
                tx.check_signatures(self.network)
                copy.apply(tx, time, height)
                scratch = copy
            except naive.Refused:
                if not keeps_bad:
                    continue
            bodies.append(body)
        if flaw == "twice" and bodies:
            bodies.append(bodies[-1])
        fees = sum(naive.unpack(body)[self.fee_index(body)] for body in bodies if self.fee_index(body))
        reward = self.network.reward_at(height) + fees + {"reward": -1, "rich": naive.AMOUNT}.get(flaw, 0)
        coinbase = naive.pack([0, 1, height + (flaw == "other height"), KEYS[miner], min(max(0, reward), 2**64 - 1)])
        bodies.insert(0, coinbase)
        account = scratch.account(KEYS[miner])
        account[0] = min(
            max(0, account[0] + reward), 2**64 - 1
        )  # what no number can say is refused for more than its root
        if flaw == "no coinbase":
            bodies = bodies[1:]
        elif flaw == "two coinbases":
            bodies.append(naive.pack([0, 1, height, KEYS[miner - 1], 0]))
        elif flaw == "big":
            count = 1 + self.network.block_max // len(bodies[-1])
            bodies += [bodies[-1][:-1] + bytes([n % 256]) for n in range(count)]
        elif flaw == "votes":
            fields = [[6, 1, KEYS[0], bytes(32), 0, bytes(32), n, b""] for n in range(513)]
            bodies += [self.finish(one, {7: 0}, None) for one in fields]
        elif flaw == "empty":
            bodies.append(b"")
        header = {
            "version": 1 + (flaw == "version"),
            "parent": bytes(32) if flaw == "parent" else parent.id,
            "height": height + (flaw == "height"),
            "time": time + (1_000_000 if flaw == "far" else 0),
            "target": (self.ledger.target_after(parent.lead) - (flaw == "target")).to_bytes(32, "big"),
            "ids_root": bytes(32) if flaw == "ids_root" else naive.list_root([self.id_of(body) for body in bodies]),
            "bytes_root": naive.list_root(bodies),
            "state_root": bytes(32) if flaw == "state_root" else naive.state_root(self.network, scratch.rows()),
            "nonce": b"",
        }
        if flaw == "false body":
            bodies[-1] = bodies[-1][:-1] + bytes([bodies[-1][-1] ^ 1])
        return naive.pack([self.mine(header, flaw == "work"), bodies]) + b"\0" * (flaw == "tail")

    def mine(self, header, is_lazy):
        target = int.from_bytes(header["target"], "big")
        for nonce in range(1 << 20):
            header["nonce"] = nonce.to_bytes(8, "big")
            values = [*header.values()]
            if (int.from_bytes(naive.H("block", naive.pack(values)), "big") <= target) != is_lazy:
                return values
        raise AssertionError("no such nonce")

    def fee_index(self, body):
        try:
            fields = naive.unpack(body)
            names = [None, *naive.KINDS[fields[0]][1]]
            index = names.index("fee")
            return index if type(fields[index]) is int and len(fields) == len(names) else 0
        except (naive.Malformed, KeyError, ValueError, IndexError, TypeError):
            return 0

    def id_of(self, body):
        try:
            return naive.Transaction(self.network, body).id
        except naive.Refused:
            return bytes(32)

    def transaction(self, state, spec, time, height):
        kind, who, *rest, forged = spec
        key = KEYS[who]
        if kind == "transfer":
            to, amount, fee, off = rest
            nonce = max(0, state.account(key)[1] + off)
            fields, signers = [1, 1, key, KEYS[to], amount, fee, nonce, b""], {7: who}
        elif kind == "register":
            url, fee, off = rest
            sequence = max(0, state.registered.get(key, (0,) * 6)[4] + 1 + off)
            fields, signers = [2, 1, key, url, 0 if forged == "empty" else 5, 7, sequence, fee, 0, b""], {9: who}
        elif kind == "bond":
            amount, fee, off = rest
            fields, signers = [4, 1, key, amount, fee, max(0, state.account(key)[1] + off), b""], {6: who}
        elif kind == "unbond":
            fee, off = rest
            fields, signers = [5, 1, key, fee, max(0, state.account(key)[1] + off), b""], {5: who}
        elif kind == "vote":
            f = state.votes()
            source, target = f["justified"], f["newest"]
            links = {"source": (target, target), "target": (source, [target[0], bytes(32)]), "back": (target, source)}
            source, target = links.get(rest[0], (source, target))
            fields, signers = [6, 1, key, source[1], source[0], target[1], target[0], b""], {7: who}
        elif kind == "evidence":
            name, fee = rest
            votes = [
                self.finish([6, 1, key, bytes([s]) * 32, s, bytes([which]) * 32, t, b""], {7: who}, None)
                for s, t, which in PAIRS[name]
            ]
            if name == "two peers":
                votes[1] = self.finish([6, 1, KEYS[who - 1], bytes(32), 0, bytes(32), 2, b""], {7: who - 1}, None)
            if forged == "signature":
                votes[1] = votes[1][:-64] + bytes(64)
            fields, signers = [7, 1, *votes, fee], {}
        elif kind == "anchor":
            device, lease, takeover, fee, off, follows = rest
            row = state.volumes.get(key)
            sequence = max(0, (row[0] if row else 0) + 1 + off)
            link = naive.H("anchor link", key + row[0].to_bytes(8, "big") + row[1]) if row else naive.NOTHING
            previous = link if follows or not row else bytes(32)
            commitment = naive.H("test", key + bytes([sequence % 256, device]))
            fields = [3, 1, key, KEYS[device], time + lease, sequence, commitment, previous, takeover, bytes(1024)]
            fields, signers = [*fields, fee, 0, b"", b""], {12: who, 13: device}
        elif kind == "deploy":
            what, number, fee, off = rest
            nonce = max(0, state.account(key)[1] + off)
            fields, signers = [8, 1, key, *deployment(KEYS, who, what, number), fee, nonce, b""], {8: who}
        elif kind == "input":
            which, flaw, times, fee, off = rest
            contracts = sorted(state.contracts.running)
            contract = contracts[which % len(contracts)] if contracts and flaw != "contract" else bytes(32)
            acts = []
            if any(contracts) and contract != bytes(32):
                acts, who = acts_for(self.ledger, state, SEEDS, contract, flaw, height, which)
            nonce = max(0, state.account(KEYS[who])[1] + off)
            fields, signers = [9, 1, KEYS[who], contract, acts * times, fee, nonce, b""], {7: who}
        else:
            operator, fee, off = rest
            sequence = max(0, state.operated.get(key, (0, 0))[1] + 1 + off)
            named = b"" if operator is None else KEYS[operator]
            fields, signers = [10, 1, key, named, sequence, fee, 0, b"", b""], {7: who}
            if operator is not None:
                signers[8] = operator
        return self.finish(fields, signers, forged)

    def finish(self, fields, signers, forged):
        """Grind the stamp, sign, and forge."""
        if forged == "weak key":
            fields[2] = bytes([1]) + bytes(31)
        names = [None, *naive.KINDS[fields[0]][1]]
        if "stamp" in names and fields[names.index("fee")] < self.network.minimum_fee and forged != "stamp":
            index = names.index("stamp")
            base = naive.H("stamp", naive.pack(fields))
            bound = 1 << (256 - self.network.stamp_bits)
            while int.from_bytes(naive.H("stamp", base + fields[index].to_bytes(8, "big")), "big") >= bound:
                fields[index] += 1
        message = (bytes(32) if forged == "network" else self.network.id) + naive.pack(fields)
        for index, who in signers.items():
            fields[index] = signature(SEEDS[who], message)
        if forged == "signature" and signers:
            fields[-1] = bytes(64)
        elif forged == "stray" and fields[0] == 10:
            fields[-1] = fields[-1] or bytes(64)
        elif forged == "short":
            fields = fields[:-1]
        elif forged == "kind":
            fields[0] = 4 if fields[0] != 4 else 11
        return naive.pack(fields) + (b"\0" if forged == "encoding" else b"")


GOOD = (0, 2, [], True, None, 0)


def plain(kind, who, *rest):
    """Return the spec of a transaction that nobody forged."""
    return (kind, who, *rest, None)


def voters(steps):
    """Return a history that begins with five voters of the same stake and ends with `steps`, the first of them block 8."""
    found = [(0, 2, [plain("register", who, "wss://a", 0, 0)], False, None, who) for who in range(len(SEEDS))]
    bonds = [plain("bond", who, 500, 2, 0) for who in range(len(SEEDS))]
    return [*found, (0, 2, bonds, False, None, 0), GOOD, *steps]


def votes(*who, wrong=None):
    return [plain("vote", one, wrong) for one in who]


def vote_breaking():
    """Return histories of the network with checkpoints whose last blocks break every rule of stake and votes."""

    def last(*specs):
        return (0, 2, list(specs), True, None, 0)

    found = [
        voters([last(*specs)])
        for specs in (
            votes(0, 0),
            votes(0, wrong="source"),
            votes(0, wrong="target"),
            votes(0, wrong="back"),
            [plain("unbond", 0, 2, 0), plain("unbond", 0, 2, 0)],
            [plain("unbond", 0, 2, 0), plain("bond", 0, 500, 2, 0)],
            [plain("unbond", 0, 2, 1)],
            [plain("unbond", 0, 1, 0)],
            [plain("bond", 0, 0, 2, 0)],
            [plain("bond", 0, 1, 2, 1)],
            [plain("bond", 0, naive.AMOUNT, 2, 0)],
            [("register", 0, "wss://b", 2, 0, "empty"), *votes(0)],
            [("register", 0, "wss://b", 2, 0, "empty"), plain("bond", 0, 500, 2, 0)],
            *([plain("evidence", 0, pair, 2)] for pair in PAIRS),
            [plain("evidence", 0, "spans", 31)],
            [plain("evidence", 0, "spans", 32)],
            [plain("evidence", 0, "spans", 1)],
            [("evidence", 0, "spans", 2, "signature")],
            [plain("evidence", 0, "spans", 2), *votes(0)],
            [plain("evidence", 0, "spans", 2), plain("evidence", 0, "one height", 2)],
            [plain("evidence", 0, "spans", 2), plain("bond", 0, 500, 2, 0)],
        )
    ]
    register = plain("register", 0, "wss://a", 0, 0)
    found += [
        [GOOD, last(*specs)]
        for specs in (
            votes(0),
            [plain("unbond", 0, 2, 0)],
            [plain("evidence", 0, "spans", 2)],
            [plain("bond", 0, 500, 2, 0)],
            [register, plain("bond", 0, 63, 2, 0)],
            [register, plain("bond", 0, 64, 1, 0)],
            [register, plain("bond", 0, 64, 2, 0), *votes(0)],
        )
    ]
    found.append(voters([GOOD, last(*votes(0)), last(*votes(0))]))
    return found


TOO_MANY_VOTES = voters([(0, 2, [], True, "votes", 0)])


def with_votes():
    """Return histories of the network with checkpoints in which all goes well: see the names."""
    everybody = [(0, 2, votes(*range(5)) if n % 2 else [], False, None, 0) for n in range(8)]
    first = [(0, 2, votes(0, 1) if n % 2 else [], False, None, 0) for n in range(14)]
    return {
        "checkpoints become final": voters([*everybody, (2, 3, [], True, None, 1)]),
        "three fifths are not enough, and the others are suspended": voters([*first, *everybody]),
        "a stake is back after its delay": voters([
            (0, 2, [plain("unbond", 4, 2, 0)], True, None, 1),
            *[GOOD] * 31,
            (0, 2, [plain("transfer", 4, 0, 7, 2, 0)], True, None, 1),
        ]),
        "a stake burns": voters([(0, 2, [plain("evidence", 3, "spans", 31)], True, None, 1), *everybody]),
    }  # fmt: skip


def no_voting():
    """Return histories of the network without checkpoints that hold what has no place in it."""
    specs = (plain("bond", 0, 500, 2, 0), plain("unbond", 0, 2, 0), *votes(0), plain("evidence", 0, "spans", 2))
    return [[GOOD, (0, 2, [spec], True, None, 0)] for spec in specs]


def contract_breaking():
    """Return histories of the network with contracts whose last blocks break every rule of contracts but EndsTaken."""

    def last(*specs):
        return (0, 2, list(specs), True, None, 0)

    started = [(0, 2, [], True, None, who) for who in range(len(SEEDS))]
    task, due = plain("deploy", 0, "task", 0, 2, 0), plain("input", 0, 0, None, 1, 2, 0)
    found = [[*started, last(plain("deploy", 0, what, 0, 2, 0))] for what in DEPLOYED]
    found += [
        [*started, last(*specs)]
        for specs in (
            [plain("deploy", 0, "task", 0, 1, 0)],
            [plain("deploy", 0, "task", 0, 2, 1)],
            [plain("deploy", 0, "task", 0, naive.AMOUNT, 0)],
            [("deploy", 0, "task", 0, 2, 0, "signature")],
            [task, plain("input", 0, 0, None, 1, 1, 0)],
            [task, plain("input", 0, 0, None, 1, 2, 1)],
            [task, plain("input", 0, 0, None, 1, naive.AMOUNT, 0)],
            [task, ("input", 0, 0, None, 1, 2, 0, "signature")],
            [task, due, due],
            *([task, plain("input", 0, 0, flaw, 1, 2, 0)] for flaw in FLAWS[4:]),
            *([task, due, plain("input", 0, which, flaw, 1, 2, 0)] for which in range(3) for flaw in FLAWS[4:]),
        )
    ]
    rounds = plain("deploy", 0, "rounds", 0, 2, 0)
    found.append([*started, last(rounds, due, *[plain("input", 0, 0, None, 8, 2, 0)] * 8)])
    return found


def with_contracts():
    """Return a history of the network with contracts in which one ends of itself, and one is paid out of the pool."""
    started = [(0, 2, [], True, None, who) for who in range(len(SEEDS))]
    task, due = plain("deploy", 0, "task", 1, 2, 0), plain("input", 0, 0, None, 1, 2, 0)
    paid = [(0, 2, [due], True, None, 0) for _ in range(2)]
    return [
        *started,
        (0, 2, [task, due], True, None, 0),
        *paid,
        (0, 2, [plain("deploy", 1, "escrow", 0, 2, 0)], True, None, 0),
        *[GOOD] * 14,
    ]


def without_contracts():
    """Return histories of the network of version 2 that hold contracts."""
    specs = plain("deploy", 0, "escrow", 0, 2, 0), plain("input", 0, 0, None, 1, 2, 0)
    return [[GOOD, (0, 2, [spec], True, None, 0)] for spec in specs]


def rule_breaking():
    """Return histories whose last blocks break every rule of a block or of a transaction in one, each at least once."""
    anchor = plain("anchor", 0, 1, 30, False, 0, 0, True)
    found = [[GOOD, (0, 2, [anchor], True, flaw, 0)] for flaw in (*HEADER_FLAWS, *BODY_FLAWS)]
    found.append([GOOD, (0, -50, [], True, None, 0)])
    found += [
        [GOOD, (0, 2, specs, True, None, 0)]
        for specs in (
            [plain("transfer", 0, 1, 0, 2, 0)],
            [plain("transfer", 0, 1, 1, 2, 1)],
            [plain("transfer", 0, 1, naive.AMOUNT, 2, 0)],
            [plain("transfer", 0, 1, 1, 1, 0)],
            [plain("register", 0, "wss://a", 0, -1), plain("register", 0, "wss://b", 0, -1)],
            [plain("register", 0, "", 0, 0)],
            [plain("register", 0, "\t", 0, 0)],
            [plain("register", 1, "wss://a", 3, 0)],
            [plain("operate", 0, 1, 0, 0)],
            [plain("register", 1, "wss://a", 0, 0), plain("operate", 1, 2, 0, 0), plain("operate", 1, 3, 0, -1)],
            [plain("register", 1, "wss://a", 0, 0), ("operate", 1, None, 0, 0, "stray")],
            [plain("anchor", 0, 1, 9, False, 0, 1, True)],
            [plain("anchor", 1, 1, 9, False, 500, 0, True)],
            [anchor, anchor],
            *([("anchor", 0, 1, 9, False, 0, 0, True, forged)] for forged in FORGERIES),
        )
    ]
    taken = (0, 2, [anchor], True, None, 0)
    for spec in (plain("anchor", 0, 2, 30, False, 0, 0, True), plain("anchor", 0, 1, 30, False, 0, 0, False)):
        found.append([GOOD, taken, (0, 2, [spec], True, None, 0)])
    return found


NOW = GENESIS_TIME + 100_000
"""When blocks arrive: far after those that follow one another, long before those from the future."""
