"""The gossip of ledger daemons: tests/vectors/gossip.json has an example of every message and must not change within a
version; fsdecloud-gossip(7) says what the code does. `python -m tests.unit.wire.test_gossip` writes the file anew.
"""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path

import msgspec
import pytest

from fsdecloud import codec, limits
from fsdecloud.errors import RemoteProtocolError
from fsdecloud.ledger import compact, headers, proofs
from fsdecloud.ledgerd import addresses, asking, clock, conduct, download, eviction, hub, light, relay, session, sync
from fsdecloud.wire import gossip

ROOT = Path(__file__).parents[3]
FILE = ROOT / "tests" / "vectors" / "gossip.json"
PAGE = (ROOT / "man" / "fsdecloud-gossip.7").read_text()
FLAT = " ".join(re.sub(r"^\.(?:Ar|Ql|Cm|Fl|Xr) ", "", PAGE, flags=re.MULTILINE).split())
KINDS = typing.get_args(gossip.Message)

ID, OTHER, THIRD = (bytes([value]) * 32 for value in (0xA1, 0xB2, 0xC3))
URL = f"wss://ledger.example:7713/{ID.hex()}?network={OTHER.hex()}"
PROOF = proofs.TxProof(ID, 2, 3, b"an anchor", (OTHER, THIRD))
EXAMPLES = (
    gossip.Hello(gossip.VERSION, ID, URL, OTHER, 1000, (1 << 70).to_bytes(32), THIRD, 640, 1_800_000_000, 1),
    gossip.Hello(gossip.VERSION, ID, "", OTHER, 0, bytes(32), ID, 0, 1_800_000_000, 1),
    gossip.GetNetwork(),
    gossip.Network(b"a document"),
    gossip.GetHeaders((ID, OTHER)),
    gossip.Headers((b"a header", b"the next")),
    gossip.Headers(()),
    gossip.GetBlocks((ID, OTHER)),
    gossip.Blocks((b"a block",)),
    gossip.NewTip(b"a header", (1 << 70).to_bytes(32), 640),
    gossip.Offer((ID, OTHER, THIRD)),
    gossip.GetTxs((ID,)),
    gossip.Txs((b"a transaction", b"another")),
    gossip.GetPeers(),
    gossip.Peers((URL,)),
    gossip.GetCompact(ID),
    gossip.Compact(b"a header", b"a coinbase", compact.short_id(ID, b"a transaction")),
    gossip.Compact(b"", b"", b""),
    gossip.GetBlockTxs(ID, (0, 3, 200)),
    gossip.BlockTxs((b"a coinbase", b"a transaction", b"another")),
    gossip.Hello(gossip.VERSION, ID, "", OTHER, 9, bytes(32), ID, 0, 1_800_000_000, gossip.NO_BODIES),
    gossip.GetState(ID, (b"A" + OTHER, b"N")),
    gossip.StateProof((b"a root", b"a leaf")),
    gossip.StateProof(()),
    gossip.GetNodes((ID, OTHER)),
    gossip.Nodes((b"a node",)),
    gossip.GetAnchors(ID, OTHER, 3, 16),
    gossip.Anchors((b"a root", b"a leaf"), b"an anchor", (PROOF,)),
    gossip.Anchors((), b"", ()),
    gossip.GetTxProofs((THIRD,)),
    gossip.TxProofs((PROOF,)),
)
REFUSED = {
    "no message": b"",
    "not an array": b"\xc0",
    "an unknown message": codec.encode([99]),
    "a missing field": codec.encode([4]),
    "a further field": codec.encode([12, 0]),
    "an id of 31 bytes": codec.encode([14, bytes(31)]),
    "a number where bytes belong": codec.encode([14, 5]),
    "a locator of 65 ids": codec.encode([4, [ID] * 65]),
    "501 headers": codec.encode([5, [b""] * 501]),
    "a header of 513 bytes": codec.encode([8, bytes(513), ID]),
    "no block asked for": codec.encode([6, []]),
    "65 blocks asked for": codec.encode([6, [ID] * 65]),
    "1001 offers": codec.encode([9, [ID] * 1001]),
    "257 transactions asked for": codec.encode([10, [ID] * 257]),
    "101 addresses": codec.encode([13, [""] * 101]),
    "an address of 513 characters": codec.encode([13, ["a" * 513]]),
    "no places": codec.encode([16, ID, []]),
    "a place below zero": codec.encode([16, ID, [-1]]),
    "a place above 10000": codec.encode([16, ID, [10_001]]),
    "a height of 2^40": codec.encode([1, 2, ID, "", ID, 1 << 40, ID, ID, 0, 1]),
    "no keys": codec.encode([18, ID, []]),
    "17 keys": codec.encode([18, ID, [b"A"] * 17]),
    "a key of 401 bytes": codec.encode([18, ID, [bytes(401)]]),
    "129 nodes": codec.encode([19, [b""] * 129]),
    "a node of 131073 bytes": codec.encode([21, [bytes(131_073)]]),
    "no node asked for": codec.encode([20, []]),
    "17 anchors asked for": codec.encode([22, ID, ID, 1, 17]),
    "a sequence number of 2^53": codec.encode([22, ID, ID, 1 << 53, 1]),
    "17 transactions with their places asked for": codec.encode([24, [ID] * 17]),
    "a path of 21 hashes": codec.encode([25, [[ID, 0, 1, b"", [ID] * 21]]]),
    "a hash of 31 bytes in a path": codec.encode([25, [[ID, 0, 1, b"", [bytes(31)]]]]),
    "a block of no transactions": codec.encode([25, [[ID, 0, 0, b"", []]]]),
    "a first block 0": codec.encode([1, 2, ID, "", ID, 1, ID, ID, 0, 0]),
}
"""What a daemon drops a connection for; those that are long are kept in the file by their beginning only."""


def vectors() -> dict[str, object]:
    """What the file holds."""
    return {
        "version": gossip.VERSION,
        "subprotocol": gossip.SUBPROTOCOL,
        "messages": [
            {"message": type(m).__name__, "fields": fields_of(m), "bytes": gossip.encode_message(m).hex()}
            for m in EXAMPLES
        ],
        "refused": {why: data.hex() for why, data in REFUSED.items() if len(data) <= 3000},
        "short_id": {
            "block": ID.hex(),
            "transaction": b"a transaction".hex(),
            "short_id": compact.short_id(ID, b"a transaction").hex(),
        },
    }


def fields_of(message: msgspec.Struct) -> dict[str, object]:
    def plain(value: object) -> object:
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, msgspec.Struct):
            return fields_of(value)
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return {name: plain(getattr(message, name)) for name in message.__struct_fields__}


def test_the_vectors_are_what_this_version_says():
    assert json.loads(FILE.read_text()) == vectors()


def test_there_is_an_example_of_every_message_and_each_decodes():
    assert {type(m) for m in EXAMPLES} == set(KINDS)
    for example in json.loads(FILE.read_text())["messages"]:
        message = gossip.decode_message(bytes.fromhex(example["bytes"]))
        assert type(message).__name__ == example["message"]
        assert fields_of(message) == example["fields"]
        assert gossip.encode_message(message).hex() == example["bytes"]


@pytest.mark.parametrize("why", REFUSED)
def test_fault_120_what_is_no_message_is_refused(why):
    with pytest.raises(RemoteProtocolError):
        gossip.decode_message(REFUSED[why])


def test_fault_109_a_message_over_the_limit_is_refused():
    with pytest.raises(RemoteProtocolError, match="at most"):
        gossip.decode_message(bytes(limits.MESSAGE_MAX + 1))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_is_described_with_its_fields(kind):
    fields = ", ".join(kind.__struct_fields__)
    assert f".It {kind.__name__} ({kind.__struct_config__.tag}):{' ' if fields else ''}{fields}\n" in PAGE


def test_no_other_message_is_described():
    assert set(re.findall(r"^\.It (\w+) \(\d+\):", PAGE, re.MULTILINE)) == {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize(
    "words",
    [
        f"version {gossip.VERSION} of the protocol",
        gossip.SUBPROTOCOL,
        f"at most {limits.MESSAGE_MAX} bytes",
        f"text of at most {gossip._URL_MAX} characters",
        f"waits {limits.REQUEST_TIMEOUT:g} seconds for the Hello",
        f"({clock.OTHERS_MIN} at least) is more than {clock.OFF:g} seconds off",
        f"ids ({gossip.LOCATOR_MAX} at most)",
        f"At most {gossip.HEADERS_MAX} encoded headers (of {gossip._HEADER_MAX} bytes at most)",
        f"1 to {gossip.BLOCKS_MAX} blocks",
        f"up to {gossip.BATCH_BYTES} bytes in all",
        f"{compact.SHORT_ID} bytes for each other one",
        f"1 to {gossip.PLACES_MAX} of them, ascending",
        f"{gossip.IDS_MAX} at most, that the sender can give",
        f"1 to {gossip.TXS_MAX} transactions that were offered",
        f"Addresses, {gossip.PEERS_MAX} at most",
        f"within {relay.ASK_AGAIN:g} seconds",
        f"at most {relay.ORPHANS_MAX} others ({relay.ORPHAN_BYTES} bytes)",
        f"At most {relay.OFFERED_MAX} offers",
        f"interval, {hub.OFFER_MEAN_MAX:g} seconds at most",
        f"answers {session.PEERS_BURST + 1:g} GetPeers at once and one every {1 / session.PEERS_RATE:g} seconds",
        f"takes {session.URL_BURST:g} addresses at once from one connection and one every {1 / session.URL_RATE:g} seconds",
        f"of {headers.BRANCH_MAX} headers at most",
        f"in batches of {download.FETCH_BATCH}",
        f"at most {download.WINDOW} blocks ahead",
        f"asked of another after {download.STALL:g} seconds",
        f"again after {sync.HELD_RETRY:g} seconds",
        f"shut out for {conduct.BAN_TIME} seconds",
        f"At most {conduct.BANS_MAX} addresses",
        f"{conduct.POINTS_MAX:g} are too many, and one is forgiven every {1 / conduct.FORGIVEN:g} seconds",
        f"It {sync.FALSE_CLAIM:g} points A claim of a better chain",
        f"It {session.SPAM:g} points Offers without end: more than {session.OFFER_BURST:g} at once",
        f"and {session.OFFER_RATE:g} a second, and {session.OFFER_DEBT:g} seconds' worth beyond",
        f"It {session.UNASKED:g} points A transaction that nobody asked for",
        f"lets all others wait for its blocks {download.STALLS_MAX} times",
        f"beyond {session.TX_BURST:g} at once and {session.TX_RATE:g} a second",
        f"within {limits.REQUEST_TIMEOUT:g} seconds, or takes none of its messages for {session.SEND_TIMEOUT:g}",
        f"says {gossip.NO_BODIES} (2^40",
        f"1 to {gossip.KEYS_MAX} keys",
        f"1 to {gossip.NODES_MAX} nodes",
        f"(at most {gossip.PROOFS_MAX}) from",
        f"1 to {gossip.PROOFS_MAX} transactions of the best chain",
        f"{proofs.PATH_MAX} hashes at most",
        f"{session.PROOF_BURST:g} of them at once and {session.PROOF_RATE:g} a second",
        f"keeps the first {light.KEPT_HEADERS} headers of a branch",
        f"{asking.PATIENCE:g} seconds for a proof",
        f"asks {asking.ASKED_MAX} of them at most",
        f"It {asking.SILENT:g} points No answer to a question for a proof",
        f"It {asking.ABSENT:g} points A proof that is not at hand",
        f"keeps {hub.OUTBOUND_MAX} connections of its own",
        f"The first {addresses.ANCHORS_FIRST} go to",
        f"serves {hub.INBOUND_MAX} connections",
        f"not those of {eviction.PROTECTED} network groups",
        f"not the {eviction.PROTECTED} that last gave new blocks nor the {eviction.PROTECTED} that last gave new transactions",
    ],
)
def test_every_number_is_the_programs(words):
    assert words in FLAT


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n")
