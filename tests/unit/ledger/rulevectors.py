"""Writes tests/vectors/ledger-rules.json anew: an example of everything in fsdecloud-ledger(7), and of each rejection.

    .venv/bin/python tests/unit/ledger/rulevectors.py

Formats and rules are promises: what is written may get new parts, but what is there changes with a new version only. All of
it is made by the second implementation (`naive`), and `test_vectors.py` holds the program to it.
"""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[3])]
import naive  # noqa: E402 - beside this file
from chainmaker import GENESIS_TIME  # noqa: E402 - beside this file
from fast import outcome  # noqa: E402 - beside this file
from histories import (  # noqa: E402 - beside this file
    CONTRACTS,
    DOCUMENT,
    GOOD,
    KEYS,
    NOW,
    SEEDS,
    VOTING,
    Writer,
    contract_breaking,
    no_voting,
    plain,
    rule_breaking,
    vote_breaking,
    with_contracts,
    with_votes,
    without_contracts,
)

FILE = Path(__file__).parents[2] / "vectors" / "ledger-rules.json"

VERSION_1 = [
    1,
    "old",
    bytes(range(32)),
    GENESIS_TIME,
    60,
    21600,
    (1 << 232).to_bytes(32, "big"),
    (1 << 236).to_bytes(32, "big"),
]
VERSION_1 += [10**9, 1000, 20, 100, 7200, 1 << 20, 1 << 16, True]
VERSION_2 = [2, *VERSION_1[1:], 2_100_000]
VERSION_3 = [3, *VERSION_2[1:], 10, 20_160, 10**11, 10**12]


def changed(document, **changes):
    """Return a document with other fields."""
    fields = dict(zip(naive.Network.FIELDS, document, strict=False)) | changes
    return list(fields.values())


REFUSED_NETWORKS = {
    "a field is missing": VERSION_2[:-1],
    "a field too many": [*VERSION_2, 0],
    "version 1 has no halving": [1, *VERSION_2[1:]],
    "version 3": [3, *VERSION_2[1:]],
    "version 4": [4, *VERSION_3[1:]],
    "version 2 has no checkpoints": [2, *VERSION_3[1:]],
    "a field of version 4 is missing": [4, *VERSION_3[1:], 100],
    "more than the whole subsidy": [4, *VERSION_3[1:], 1001, 100],
    "more than all is burned": [4, *VERSION_3[1:], 100, 1001],
    "version 3 has no pool": [3, *VERSION_3[1:], 100, 100],
    "a depth of less than two checkpoints": changed(VERSION_3, finality_depth=19),
    "a delay of less than eight depths": changed(VERSION_3, unbond_delay=799),
    "a bond that does not pay for evidence": changed(VERSION_3, least_bond=15_999, least_stake=16_000),
    "a bond of nothing": changed(VERSION_3, least_bond=0, minimum_fee=0),
    "less stake than one bond": changed(VERSION_3, least_stake=10**11 - 1),
    "a stake without checkpoints": changed(VERSION_3, checkpoint_interval=0),
    "no name": changed(VERSION_2, name=""),
    "a control character": changed(VERSION_2, name="a\nb"),
    "not ASCII": changed(VERSION_2, name="\u00e9"),
    "no target": changed(VERSION_2, first_target=bytes(32)),
    "begins easier than the easiest": changed(VERSION_2, first_target=bytes([255]) * 32),
    "a half-life of less than 8 intervals": changed(VERSION_2, half_life=479),
    "more money than an amount can be": changed(VERSION_2, halving=1 << 32),
    "a transaction larger than a block": changed(VERSION_2, block_max=8192),
    "an interval of nothing": changed(VERSION_2, interval=0),
    "a stamp that nobody finds": changed(VERSION_2, stamp_bits=41),
}

EVERYTHING = [
    GOOD,
    (0, 1, [plain("transfer", 0, 1, 900, 2, 0), plain("register", 1, "wss://a", 3, 0)], True, None, 1),
    (0, 3, [plain("register", 0, "x" * 300, 0, 0), plain("register", 1, "wss://b", 0, 0)], True, None, 2),
    (0, 9, [plain("operate", 1, 3, 0, 0), plain("anchor", 4, 0, 40, False, 0, 0, True)], True, None, 0),
    (0, 100, [plain("operate", 1, None, 2, 0), plain("anchor", 4, 0, -5, False, 0, 0, True)], True, None, 0),
    (0, 2, [plain("anchor", 4, 1, 40, True, 0, 0, True), plain("transfer", 0, 0, 7, 40, 0)], True, None, 0),
    (2, 1, [], True, None, 3),
    (0, 1, [plain("anchor", 4, 2, 9, True, 0, 0, True)], True, None, 3),
    (0, 1, [], True, None, 3),
]
"""A chain with everything in it, and a branch that overtakes it."""

STRINGS = [[], [b""], [b"a", b"b"], [b"a", b"b", b"c"], [bytes([n]) * n for n in range(7)]]
LEADS = [-15000, -14999, -600, -61, -60, -59, -1, 0, 1, 17, 59, 60, 61, 119, 120, 200]
TIMES = [2, 2, 2, 40, 1, -9, 3, 500, 500, 500, 500, 500, 500, 0, 7, -600, 1, 1, 1, 90]


def hexed(rows):
    """Return rows with keys and values in hexadecimal, in the order of the keys."""
    return {k.hex(): v.hex() for k, v in sorted(rows.items())}


def blocks(ledger, histories):
    """Return valid and refused blocks in the order in which they come: each reason once or more."""
    found = {}
    for steps in histories:
        writer = Writer(ledger)
        writer.points = [ledger.entries[ledger.network.id]]
        for step in steps:
            data = writer.block(step)
            entry, why = outcome(ledger, data, NOW)
            if entry is None:
                found.setdefault(data, {"bytes": data.hex(), "reasons": why})
                continue
            writer.points.append(entry)
            found.setdefault(
                data,
                {
                    "bytes": data.hex(),
                    "reasons": [],
                    "id": entry.id.hex(),
                    "lead": entry.lead,
                    "work": entry.work,
                    "tip": ledger.tip.id.hex(),
                    "state": hexed(entry.state.rows()),
                },
            )
    return list(found.values())


CONTRACTING = ("Deploy", "Input")
STAKING = ("Bond", "Unbond", "Vote", "Evidence")


def transactions(ledger, found_blocks, kinds=None):
    """Return the first transaction of each kind and form in the blocks."""
    found = {}
    for block in found_blocks:
        if block["reasons"]:
            continue
        for body in naive.unpack(bytes.fromhex(block["bytes"]))[1]:
            tx = naive.Transaction(ledger.network, body)
            if kinds is not None and tx.kind not in kinds:
                continue
            form = (tx.kind, tx.fee > 0, getattr(tx, "takeover", None), getattr(tx, "operator", None) == b"")
            found.setdefault(form, tx_vector(tx, body))
    return list(found.values())


def tx_vector(tx, body):
    return {
        "kind": tx.kind,
        "fields": {k: plainly(v) for k, v in tx.fields.items()},
        "bytes": body.hex(),
        "unsigned": tx.unsigned().hex(),
        "id": tx.id.hex(),
    }


def plainly(value):
    """Return a field's value with its bytes in hexadecimal."""
    if isinstance(value, list):
        return [plainly(one) for one in value]
    return value.hex() if isinstance(value, bytes) else value


def leads(ledger):
    """Return the lead after each of a row of blocks with these times after the one before."""
    entry, found = ledger.entries[ledger.network.id], []
    for seconds in TIMES:
        time = max(entry.times[-1] + seconds, naive.median(entry.times) + 1)
        lead = ledger.lead_after(entry, time)
        entry = naive.Entry(b"", entry, entry.height + 1, [*entry.times, time], lead, 0, None)
        found.append({"time": time, "lead": lead, "target": f"{ledger.target_after(lead):064x}"})
    return found


def conflicts(ledger):
    """Return pairs of transactions of which the second may not take the place of the first."""
    writer, state = Writer(ledger), naive.State(ledger.entries[ledger.network.id].state)
    time = GENESIS_TIME + 2
    pairs = [
        (plain("anchor", 0, 1, 9, False, 0, 0, True), plain("anchor", 0, 2, 8, False, 0, 0, True)),
        (plain("register", 0, "wss://a", 0, 2), plain("register", 0, "wss://a", 0, 1)),
    ]
    return [
        {n: writer.transaction(state, s, time, 1).hex() for n, s in zip(("first", "second"), p, strict=True)}
        for p in pairs
    ]


def make():
    """Return everything."""
    ledger = naive.Ledger(DOCUMENT)
    found = blocks(ledger, [EVERYTHING, *rule_breaking()])
    more = blocks(naive.Ledger(DOCUMENT), no_voting())
    voting = naive.Ledger(VOTING)
    early = blocks(naive.Ledger(DOCUMENT), without_contracts())
    contracting = naive.Ledger(CONTRACTS)
    dealt = blocks(contracting, [with_contracts(), *contract_breaking()])
    voted = blocks(voting, [*with_votes().values(), *vote_breaking()])
    documents = [naive.pack(VERSION_1), naive.pack(VERSION_2), DOCUMENT, naive.pack(VERSION_3), VOTING, CONTRACTS]
    return {
        "seeds": [seed.hex() for seed in SEEDS],
        "keys": [key.hex() for key in KEYS],
        "list roots": [
            {"strings": [s.hex() for s in strings], "root": naive.list_root(strings).hex()} for strings in STRINGS
        ],
        "networks": [{"bytes": d.hex(), "id": naive.Network(d).id.hex()} for d in documents],
        "refused networks": [
            {"why": why, "bytes": naive.pack(fields).hex()} for why, fields in REFUSED_NETWORKS.items()
        ],
        "subsidies": [
            {"network": 1, "height": h, "subsidy": naive.Network(documents[1]).subsidy_at(h)} for h in HEIGHTS
        ],
        "network": DOCUMENT.hex(),
        "targets": [{"lead": lead, "target": f"{ledger.target_after(lead):064x}"} for lead in LEADS],
        "leads": leads(ledger),
        "transactions": transactions(ledger, found),
        "now": NOW,
        "blocks": found,
        "conflicts": conflicts(ledger),
        "blocks with stake and without checkpoints": more,
        "network with checkpoints": VOTING.hex(),
        "transactions about stake": transactions(voting, voted, STAKING),
        "blocks with votes": voted,
        "blocks with contracts and without their version": early,
        "network with contracts": CONTRACTS.hex(),
        "transactions about contracts": transactions(contracting, dealt, CONTRACTING),
        "blocks with contracts": dealt,
    }


HEIGHTS = [1, 2_100_000, 2_100_001, 4_200_001, 2_100_000 * 30 + 1, 1 << 39]

if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), indent=1) + "\n")
