"""The ledger's rules are a promise: tests/vectors/ledger-rules.json has an example of everything, and it must not change.

Whoever writes a second implementation tests it with the same file (fsdecloud-ledger(7)); `rulevectors.py` writes it.
"""

import json
import sys
from pathlib import Path

import pytest

from fsdecloud.errors import MalformedError
from fsdecloud.ledger import blocks, mempool, network, reasons, work
from fsdecloud.ledger import transactions as t
from fsdecloud.ledger.chain import genesis_point
from fsdecloud.ledger.state import State, StateNodes

sys.path.insert(0, str(Path(__file__).parent))
import naive
import rulevectors
from fast import Fast, outcome

VECTORS = json.loads(rulevectors.FILE.read_text())
DOCUMENT = bytes.fromhex(VECTORS["network"])
VOTING = bytes.fromhex(VECTORS["network with checkpoints"])
CONTRACTS = bytes.fromhex(VECTORS["network with contracts"])
LISTS = {
    "blocks": DOCUMENT,
    "blocks with stake and without checkpoints": DOCUMENT,
    "blocks with votes": VOTING,
    "blocks with contracts and without their version": DOCUMENT,
    "blocks with contracts": CONTRACTS,
}


def test_golden_vectors():
    assert json.loads(json.dumps(rulevectors.make())) == VECTORS


def test_list_roots():
    for vector in VECTORS["list roots"]:
        assert blocks.bytes_root([bytes.fromhex(s) for s in vector["strings"]]).hex() == vector["root"]


def test_networks():
    documents = [network.decode_network(bytes.fromhex(vector["bytes"])) for vector in VECTORS["networks"]]
    for vector, document in zip(VECTORS["networks"], documents, strict=True):
        assert network.encode_network(document).hex() == vector["bytes"]
        assert network.network_id(document).hex() == vector["id"]
    for vector in VECTORS["subsidies"]:
        assert network.subsidy_at(documents[vector["network"]], vector["height"]) == vector["subsidy"]


@pytest.mark.parametrize("vector", VECTORS["refused networks"], ids=lambda vector: vector["why"])
def test_refused_networks(vector):
    with pytest.raises(MalformedError):
        network.decode_network(bytes.fromhex(vector["bytes"]))


def test_difficulty_steps():
    document = network.decode_network(DOCUMENT)
    for vector in VECTORS["targets"]:
        assert work.target_after(document, vector["lead"]).hex() == vector["target"]
    recent, lead = genesis_point(document).recent, 0
    for vector in VECTORS["leads"]:
        lead = work.next_lead(document, lead, recent, vector["time"])
        recent = work.next_recent(recent, vector["time"])
        assert (lead, work.target_after(document, lead).hex()) == (vector["lead"], vector["target"])


def test_transactions():
    check_transactions(VECTORS["transactions"], network.decode_network(DOCUMENT))
    check_transactions(VECTORS["transactions about stake"], network.decode_network(VOTING))
    check_transactions(VECTORS["transactions about contracts"], network.decode_network(CONTRACTS))
    lists = ("transactions", "transactions about stake", "transactions about contracts")
    found = {vector["kind"] for name in lists for vector in VECTORS[name]}
    assert found == {kind for kind, _ in naive.KINDS.values()}


def check_transactions(vectors, document):
    for vector in vectors:
        tx = t.decode_tx(bytes.fromhex(vector["bytes"]), document.transaction_max)
        assert type(tx).__name__ == vector["kind"]
        fields = {
            k: rulevectors.plainly(v)
            for k, v in zip(tx.__struct_fields__, naive.unpack(t.encode_tx(tx))[1:], strict=True)
        }
        assert fields == vector["fields"]
        assert (t.tx_id(tx).hex(), t.encode_tx(t.unsigned(tx)).hex()) == (vector["id"], vector["unsigned"])
        t.check_fee(document, tx)
        t.check_signatures(network.network_id(document), tx)


@pytest.mark.parametrize("implementation", [Fast, naive.Ledger])
@pytest.mark.parametrize(
    ("name", "document"),
    LISTS.items(),
)
def test_fault_098_blocks_are_taken_or_refused_for_just_that_reason(implementation, name, document):
    """In their order: a false body comes before the right one, and does not keep it out."""
    ledger = implementation(document)
    for vector in VECTORS[name]:
        found, why = outcome(ledger, bytes.fromhex(vector["bytes"]), VECTORS["now"])
        assert why == tuple(vector["reasons"])
        if found is not None:
            cumulative = found.work if implementation is naive.Ledger else int.from_bytes(found.work)
            assert (found.id.hex(), found.lead, cumulative) == (vector["id"], vector["lead"], vector["work"])
            rows = found.state.rows() if implementation is naive.Ledger else ledger.rows(found)
            assert rulevectors.hexed(rows) == vector["state"]
            assert ledger.tip.id.hex() == vector["tip"]


def test_what_may_not_take_anothers_place():
    document = network.decode_network(DOCUMENT)
    for vector in VECTORS["conflicts"]:
        pool = mempool.Mempool(document)
        pool.rebase(lambda: State(StateNodes(lambda _: None).get, bytes(32)), 1, document.genesis_time)
        pool.add(bytes.fromhex(vector["first"]), document.genesis_time)
        with pytest.raises(reasons.Conflict):
            pool.add(bytes.fromhex(vector["second"]), document.genesis_time)


def test_there_is_one_for_each_rejection():
    found = {name for blocks in LISTS for vector in VECTORS[blocks] for name in vector["reasons"]}
    # A block with too many votes would be half of the file, two thousand contracts all of it. The others are of what is full,
    # stored or final here, not of a transaction or a block.
    others = {"TooManyVotes", "EndsTaken", "Conflict", "PoolFull", "KnownInvalid", "ReorgTooDeep", "ConflictsWithFinal"}
    others |= {"StoredBlockDiffers", "ChainDamaged"}
    assert found | others == {
        name for name, kind in vars(reasons).items() if isinstance(kind, type) and kind.__module__ == reasons.__name__
    }
