"""Transactions: one encoding each, ids without signatures, signatures for one network, stamps instead of fees."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import MalformedError
from fsdecloud.ledger import network as networks
from fsdecloud.ledger import transactions as t
from fsdecloud.ledger.reasons import BadSignature, BadStamp, MalformedTransaction

sys.path.insert(0, str(Path(__file__).parent))
import contextlib

from chainmaker import GENESIS_TIME, Maker, easy_network

VECTORS = Path(__file__).parents[2] / "vectors" / "ledger.json"
SEED = bytes([1]) * 32
VOLUME = bytes([2]) * 32
OPERATOR = bytes([3]) * 32


def samples(make: Maker | None = None) -> list[bytes]:
    make = make or Maker()
    return [
        make.transfer(SEED, bytes(32), 5, 0),
        make.register(SEED, 7),
        make.anchor(VOLUME, 1),
        make.anchor(VOLUME, 2, takeover=True, lease_expiry=GENESIS_TIME + 60),
        t.encode_tx(t.Coinbase(1, 3, bytes(32), 9)),
        make.operate(SEED, OPERATOR, 7),
        make.operate(SEED, None, 8),
    ]


def test_round_trip_and_signatures():
    network = networks.network_id(easy_network())
    for data in samples():
        tx = t.decode_tx(data)
        assert t.encode_tx(tx) == data
        t.check_signatures(network, tx)
        assert len(t.tx_id(tx)) == 32


def test_an_anchor_fits_and_has_one_size_for_all_small_numbers():
    assert {len(Maker().anchor(VOLUME, n)) for n in (1, 2, 100)} <= set(range(1290, 1320))


def test_110_the_id_does_not_depend_on_signatures():
    for data in (*samples()[:4], samples()[5]):
        tx = t.decode_tx(data)
        fields = [name for name in tx.__struct_fields__ if "signature" in name]
        for field in fields:
            other = msgspec.structs.replace(tx, **{field: bytes(64)})
            assert t.tx_id(other) == t.tx_id(tx)
            with pytest.raises(BadSignature):
                t.check_signatures(Maker().network, other)
            with pytest.raises(BadSignature):
                t.check_signatures(Maker().network, msgspec.structs.replace(tx, **{field: b""}))


def test_110_every_signed_field_matters():
    network = Maker().network
    changes = {
        int: lambda v: v + 1,
        bytes: lambda v: bytes([v[0] ^ 1]) + v[1:],
        str: lambda v: v + "x",
        bool: lambda v: not v,
    }
    for data in (*samples()[:4], samples()[5]):
        tx = t.decode_tx(data)
        for field in tx.__struct_fields__:
            if field == "version" or "signature" in field:
                continue
            value = getattr(tx, field)
            other = msgspec.structs.replace(tx, **{field: changes[type(value)](value)})
            assert t.tx_id(other) != t.tx_id(tx), field
            with pytest.raises(BadSignature):
                t.check_signatures(network, other)


def test_111_a_signature_for_another_network_is_none():
    other = networks.network_id(easy_network(salt=bytes([1]) * 32))
    for data in (*samples()[:4], samples()[5]):
        with pytest.raises(BadSignature):
            t.check_signatures(other, t.decode_tx(data))


def test_the_anchor_needs_both_keys():
    tx = t.decode_tx(Maker().anchor(VOLUME, 1))
    assert isinstance(tx, t.Anchor)
    swapped = msgspec.structs.replace(tx, volume_signature=tx.device_signature, device_signature=tx.volume_signature)
    with pytest.raises(BadSignature):
        t.check_signatures(Maker().network, swapped)


def test_a_stamp_or_a_fee():
    document = easy_network(stamp_bits=12)
    weak = t.decode_tx(Maker().anchor(VOLUME, 1))
    with pytest.raises(BadStamp):
        t.check_fee(document, weak)
    t.check_fee(document, msgspec.structs.replace(weak, fee=1))
    with pytest.raises(BadStamp):
        t.check_fee(document, t.decode_tx(Maker().transfer(SEED, bytes(32), 1, 0, fee=0)))
    assert t.grind_stamp(weak, 6, start=100) >= 100


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_120_cut_and_trailing_bytes(cut):
    for data in samples():
        with pytest.raises(MalformedTransaction):
            t.decode_tx(data[:cut] if cut else b"")
        with pytest.raises(MalformedTransaction):
            t.decode_tx(data + b"\0")


def test_unknown_kinds_versions_and_forms_are_refused():
    data = samples()[0]
    fields = msgspec.msgpack.decode(data)
    for kind in (4, 9, 10, 255, "1"):
        with pytest.raises(MalformedTransaction):
            t.decode_tx(codec.encode([kind, *fields[1:]]))
    for bad in (
        [1, 2, *fields[2:]],
        [*fields, 0],
        fields[:-1],
        [*fields[:4], -1, *fields[5:]],
        [*fields[:4], 1 << 63, *fields[5:]],
    ):
        with pytest.raises(MalformedTransaction):
            t.decode_tx(codec.encode(bad))
    with pytest.raises(MalformedTransaction):
        t.decode_tx(bytes(t.TX_MAX + 1))
    long_form = data.replace(b"\x05", b"\xcc\x05", 1)
    assert long_form != data
    with pytest.raises(MalformedTransaction):
        t.decode_tx(long_form)


def test_87_an_address_cannot_carry_control_characters():
    tx = t.decode_tx(samples()[1])
    with pytest.raises(MalformedTransaction):
        t.decode_tx(codec.encode(msgspec.structs.replace(tx, url="wss://\x1b[2J")))
    with pytest.raises(ValueError):
        t.sign_register(bytes(32), SEED, "", 0, 1, bits=1)


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_120_any_bytes_decode_or_are_refused(data):
    with contextlib.suppress(MalformedTransaction):
        t.decode_tx(data)
    with contextlib.suppress(MalformedError):
        networks.decode_network(data)


def test_fault_076_nobody_is_made_anothers_peer():
    """Peer and operator both have to sign for each other, in this network."""
    make = Maker()
    declared = t.decode_tx(make.operate(SEED, OPERATOR, 7))
    t.check_signatures(make.network, declared)
    stolen = msgspec.structs.replace(t.decode_tx(make.operate(VOLUME, OPERATOR, 7)), operator=sign.public_key(SEED))
    other_peer = msgspec.structs.replace(declared, peer=sign.public_key(VOLUME))
    unsigned = msgspec.structs.replace(declared, operator_signature=declared.signature)
    for forged in (stolen, other_peer, unsigned, msgspec.structs.replace(declared, operator_signature=b"")):
        with pytest.raises(BadSignature):
            t.check_signatures(make.network, forged)
    with pytest.raises(BadSignature):
        t.check_signatures(bytes(32), declared)
    for bad in (
        msgspec.structs.replace(declared, operator=b"k" * 31),
        msgspec.structs.replace(declared, operator=b""),  # and the signature of one
    ):
        with pytest.raises(MalformedTransaction):
            t.decode_tx(t.encode_tx(bad))


def test_network_documents():
    document = easy_network()
    data = networks.encode_network(document)
    assert networks.decode_network(data) == document
    assert networks.network_id(easy_network(salt=bytes([3]) * 32)) != networks.network_id(document)
    hard = ((1 << 256) // 1024).to_bytes(32)
    for bad in (
        msgspec.structs.replace(document, easiest_target=hard),
        msgspec.structs.replace(document, first_target=bytes(32)),
        msgspec.structs.replace(document, name="a\nb"),
    ):
        with pytest.raises(MalformedError):
            networks.decode_network(codec.encode(bad))
    assert networks.decode_network(networks.encode_network(networks.public_network("p", bytes(32), 5))).mine_when_idle


def test_network_documents_of_version_2():
    document = easy_network(version=2, halving=1000)
    data = networks.encode_network(document)
    assert networks.decode_network(data) == document
    assert (
        len(msgspec.msgpack.decode(data))
        == len(msgspec.msgpack.decode(networks.encode_network(easy_network(version=1)))) + 1
    )
    fields = msgspec.msgpack.decode(data)
    for bad in (
        fields[:-1],
        [1, *fields[1:]],
        [3, *fields[1:]],
        [*fields, 0],
        [*fields[:-1], -1],
        networks.encode_network(easy_network(version=2, halving=1 << 32, subsidy=1 << 30)),
        networks.encode_network(easy_network(version=2, half_life=60, interval=30)),
        networks.encode_network(easy_network(version=2, name="\u00e9")),
        networks.encode_network(easy_network(version=1, half_life=60, interval=30)) + b"\0",
        bytes(5000),
    ):
        with pytest.raises(MalformedError):
            networks.decode_network(bad if isinstance(bad, bytes) else codec.encode(bad))
    with pytest.raises(MalformedError):
        networks.check_network(easy_network(version=1, halving=5))


@pytest.mark.parametrize(
    ("version", "changes"), [(1, {}), (2, {}), (3, {}), (4, {"storage_share": 7, "storage_levy": 1000})]
)
def test_each_version_of_the_network_document_has_its_own_length(version, changes):
    document = easy_network(version=version, **changes)
    data = networks.encode_network(document)
    assert networks.decode_network(data) == document
    assert len(msgspec.msgpack.decode(data)) == {1: 16, 2: 17, 3: 21, 4: 23}[version]
    assert networks.has_contracts(document) == (version == 4)


@pytest.mark.parametrize("name", ["storage_share", "storage_levy"])
def test_only_version_4_has_a_pool_for_storage(name):
    with pytest.raises(MalformedError):
        networks.check_network(easy_network(version=3, **{name: 1}))
    fields = msgspec.msgpack.decode(networks.encode_network(easy_network(**{name: 1000})))
    fields[fields.index(1000, 20)] = 1001
    with pytest.raises(MalformedError):
        networks.decode_network(codec.encode(fields))


def test_the_subsidy_is_split_and_nothing_of_it_is_lost():
    document = easy_network(storage_share=333, subsidy=1001, halving=4)
    found = [(networks.subsidy_at(document, n), networks.storage_subsidy_at(document, n)) for n in (1, 4, 5, 9, 400)]
    assert found == [(1001, 333), (1001, 333), (500, 166), (250, 83), (0, 0)]


def test_golden_vectors():
    """Formats are promises: these bytes must not change within version 1."""
    make = Maker(easy_network(version=1))
    found = {
        "network": networks.encode_network(make.document).hex(),
        "network_id": make.network.hex(),
        "link": t.link(sign.public_key(VOLUME), 3, bytes(32)).hex(),
        "transactions": [{"bytes": data.hex(), "id": t.tx_id(t.decode_tx(data)).hex()} for data in samples(make)],
    }
    assert json.loads(VECTORS.read_text()) == found


@pytest.mark.parametrize("value", [-1, -(1 << 63), 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_fault_112_no_amount_is_negative_or_beyond_its_bound(value):
    for data in samples():
        fields = msgspec.msgpack.decode(data)
        names = ["kind", *t.decode_tx(data).__struct_fields__]
        for name in {"amount", "fee", "price"} & set(names):
            changed = list(fields)
            changed[names.index(name)] = value
            with pytest.raises(MalformedTransaction):
                t.decode_tx(codec.encode(changed))
            changed[names.index(name)] = t.AMOUNT_MAX
            t.decode_tx(codec.encode(changed))


def test_an_anchor_costs_less_than_600_bytes_besides_its_payload():
    """Whatever numbers are in it; how many operations it covers stands in its payload and commitment alone."""
    largest = t.decode_tx(Maker().anchor(VOLUME, 1))
    largest = msgspec.structs.replace(
        largest,
        lease_expiry=networks.TIME_MAX,
        sequence=(1 << 53) - 1,
        takeover=True,
        fee=t.AMOUNT_MAX,
        stamp=(1 << 63) - 1,
    )
    data = t.encode_tx(largest)
    assert t.decode_tx(data) == largest
    assert len(data) - t.ANCHOR_PAYLOAD < 600
