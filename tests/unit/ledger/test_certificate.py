"""Certificates: what they prove, to whom, and that nothing about them can be changed."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from blake3 import blake3

from fsdecloud.crypto import merkle, sign
from fsdecloud.errors import CertificateError, MalformedError
from fsdecloud.fs.manifest import commitment
from fsdecloud.fs.records import BatchEntry, Operation, Record, batch_root
from fsdecloud.fs.statement import (
    PathOpening,
    Statement,
    check_statement_row,
    path_commitment,
    statement_commitment,
    statement_row,
)
from fsdecloud.ledger.blocks import decode_block, decode_header, encode_header
from fsdecloud.ledger.certificate import (
    CERTIFICATE_MAX,
    MAGIC,
    Certificate,
    Place,
    assemble_certificate,
    branch_of,
    decode_certificate,
    encode_certificate,
    verify_certificate,
)
from fsdecloud.ledger.headerfile import MAGIC as HEADERS_MAGIC
from fsdecloud.ledger.headerfile import encode_row, ids_of, split_rows, verify_headers
from fsdecloud.ledger.network import network_id
from fsdecloud.ledger.transactions import link
from fsdecloud.types import BlockId, EntryId, Ref
from tests.unit.ledger.chainmaker import Maker, easy_network

VOLUME, DEVICE = bytes([1]) * 32, bytes([2]) * 32
CONTENT = b"the minutes of the meeting"
TIME = 1_700_000_000_123_456_789
ROOT = Ref(EntryId(bytes([11]) * 32), bytes([12]) * 32)
MANIFEST = Ref(EntryId(bytes([13]) * 32), bytes([14]) * 32)
RECORD = Ref(EntryId(bytes([15]) * 32), bytes([16]) * 32)


@dataclass
class World:
    """A chain with the anchor of a state, the anchor of a statement about it, and three blocks more."""

    maker: Maker
    certificate: Certificate
    short: Certificate

    @property
    def document(self):
        return self.maker.document

    @property
    def ids(self):
        return ids_of(self.certificate.headers)


def statement_about(state: bytes, sequence: int = 1) -> tuple[Statement, PathOpening]:
    opening = PathOpening(bytes([7]) * 32, b"/minutes/monday.txt")
    content = blake3(CONTENT).digest()
    named = link(sign.public_key(VOLUME), sequence, state)
    return Statement(1, content, len(CONTENT), sequence, named, path_commitment(opening), bytes([8]) * 32), opening


def make_world(sequence: int = 1) -> World:
    """`sequence` is that of the state which the statement names."""
    maker = Maker()
    first = bytes([3]) * 32
    state_tx = maker.anchor(VOLUME, 1, device=DEVICE, commitment=first)
    statement, opening = statement_about(first, sequence)
    row = statement_row(statement, TIME)
    batch = BatchEntry(RECORD, 1, batch_root([row]))
    previous = link(sign.public_key(VOLUME), 1, first)
    committed = commitment(MANIFEST, ROOT, (batch,))
    tx = maker.anchor(VOLUME, 2, device=DEVICE, commitment=committed, previous=previous)
    for transactions in ([], [state_tx], [], [tx], [], [], []):
        maker.add(transactions)
    chain = [decode_block(data) for _id, data in maker.chain()]
    headers = [encode_header(block.header) for block in chain]

    def place(data: bytes, height: int) -> Place:
        transactions = chain[height - 1].transactions
        return Place(data, height, branch_of(transactions, transactions.index(data)))

    def made(rows: list[bytes]) -> Certificate:
        return assemble_certificate(
            maker.network, statement, opening, row, (MANIFEST.id, ROOT.id), place(tx, 4), place(state_tx, 2), rows
        )

    return World(maker, made(headers), made(headers[1:4]))


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def refused(certificate: Certificate, world: World, *, known: bool = False) -> str:
    with pytest.raises(CertificateError) as caught:
        verify_certificate(certificate, world.document, world.ids.get if known else None)
    return str(caught.value)


def replace(certificate: Certificate, **changes: object) -> Certificate:
    return msgspec.structs.replace(certificate, **changes)


# ---- what they prove -----------------------------------------------------------------------------------------------
def test_the_network_document_is_enough(world: World) -> None:
    verdict = verify_certificate(decode_certificate(encode_certificate(world.certificate)), world.document)
    assert verdict.content == blake3(CONTENT).digest()
    assert verdict.size == len(CONTENT)
    assert verdict.path == b"/minutes/monday.txt"
    assert verdict.volume == sign.public_key(VOLUME)
    assert verdict.device == sign.public_key(DEVICE)
    assert (verdict.sequence, verdict.height, verdict.confirmations) == (2, 4, 4)
    assert (verdict.state_sequence, verdict.state_height) == (1, 2)
    assert verdict.block == world.ids[4]
    assert verdict.stated == TIME
    assert verdict.tied_to is None
    assert verdict.work == int.from_bytes(world.maker.tip.work, "big")


def test_headers_that_are_known_tie_a_short_one(world: World) -> None:
    verdict = verify_certificate(world.short, world.document, world.ids.get)
    assert verdict.tied_to == world.ids[4]
    assert (verdict.height, verdict.confirmations, verdict.work) == (4, 1, None)
    assert len(encode_certificate(world.short)) < 5000
    only = {7: world.ids[7]}
    later = verify_certificate(
        replace(world.certificate, headers=world.certificate.headers[1:]), world.document, only.get
    )
    assert (later.tied_to, later.confirmations) == (world.ids[7], 4)


def test_a_short_one_alone_proves_nothing(world: World) -> None:
    assert "give the network's headers" in refused(world.short, world)
    with pytest.raises(CertificateError, match="no block from 4 to 4 is known"):
        verify_certificate(world.short, world.document, {3: world.ids[3], 5: world.ids[5]}.get)


def test_a_chain_that_parted_later_is_the_same_up_to_there(world: World) -> None:
    known = {**world.ids, 6: BlockId(bytes(32)), 7: BlockId(bytes(32))}
    assert verify_certificate(world.certificate, world.document, known.get).confirmations == 2
    parted = {height: BlockId(bytes(32)) for height in (4, 5, 6, 7)}
    with pytest.raises(CertificateError, match="of another chain"):
        verify_certificate(world.certificate, world.document, parted.get)


def test_it_can_be_shown_without_the_path_and_says_nothing_else(world: World) -> None:
    hidden = replace(world.certificate, path=None)
    data = encode_certificate(hidden)
    assert verify_certificate(decode_certificate(data), world.document).path is None
    assert b"monday" not in data
    record = msgspec.msgpack.decode(hidden.record, type=Record)
    assert (record.path, record.uid, record.inode, record.amount) == (b"", 0, 0, 0)
    # No hash in it is one of a record or batch other than the statement's own.
    assert hidden.record_branch.siblings == hidden.batch_branch.siblings == ()
    for key in (ROOT.key, MANIFEST.key, RECORD.key, RECORD.id, ROOT.id, MANIFEST.id):
        assert key not in data


def test_another_network_is_refused(world: World) -> None:
    other = easy_network(bytes([5]) * 32)
    with pytest.raises(CertificateError, match="is of network"):
        verify_certificate(world.certificate, other)
    posing = replace(world.certificate, network=network_id(other))
    with pytest.raises(CertificateError):
        verify_certificate(posing, other)


# ---- what cannot be changed ----------------------------------------------------------------------------------------
def test_any_changed_byte_fails(world: World) -> None:
    """Of the whole chain's certificate too, in which a change far above the anchor could be a block with enough work."""
    data = encode_certificate(world.certificate)
    for at in range(len(data)):
        for flip in (1, 0x80):
            changed = data[:at] + bytes((data[at] ^ flip,)) + data[at + 1 :]
            with pytest.raises(CertificateError):
                decode_certificate(changed)
    for wrong in (data[:-1], data + b"\0", data[1:], b"", MAGIC, data[: len(MAGIC) + 32], data[: len(data) // 2]):
        with pytest.raises(CertificateError):
            decode_certificate(wrong)


def test_any_changed_byte_fails_for_one_who_writes_the_digest_anew(world: World) -> None:
    body = MAGIC + msgspec.msgpack.encode(world.short)
    for at in range(len(MAGIC), len(body)):
        changed = body[:at] + bytes((body[at] ^ 1,)) + body[at + 1 :]
        with pytest.raises(CertificateError):
            verify_certificate(decode_certificate(changed + blake3(changed).digest()), world.document, world.ids.get)


def test_a_certificate_has_a_limit() -> None:
    with pytest.raises(CertificateError, match="at most"):
        decode_certificate(MAGIC + bytes(CERTIFICATE_MAX))
    world = make_world()
    huge = replace(world.certificate, headers=world.certificate.headers * (CERTIFICATE_MAX // 1000))
    with pytest.raises(CertificateError, match="longer than"):
        encode_certificate(huge)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("content", bytes(32), "not the recorded one"),
        ("size", 1, "not the recorded one"),
        ("path", bytes(32), "not the recorded one"),
        ("sequence", 2, "not the recorded one"),
        ("link", bytes(32), "not the recorded one"),
    ],
)
def test_a_changed_statement_is_not_the_recorded_one(world: World, field: str, value: object, reason: str) -> None:
    changed = msgspec.structs.replace(world.certificate.statement, **{field: value})
    assert reason in refused(replace(world.certificate, statement=changed), world)


def test_each_link_of_the_way_is_checked(world: World) -> None:
    good = world.certificate
    other, _ = statement_about(bytes([9]) * 32)
    row = statement_row(other, TIME)
    assert "not in its batch" in refused(replace(good, statement=other, record=row, path=None), world)
    batch = batch_root([row])
    step = replace(good, statement=other, record=row, path=None, batch=batch)
    assert "not among the anchor's" in refused(step, world)
    leaf = (1).to_bytes(8, "big") + batch
    assert "does not commit" in refused(replace(step, batches=merkle.root([leaf])), world)
    assert "path" in refused(replace(good, path=PathOpening(bytes([7]) * 32, b"/minutes/tuesday.txt")), world)
    assert "path" in refused(replace(good, path=PathOpening(bytes([6]) * 32, b"/minutes/monday.txt")), world)
    swapped = replace(good, anchor=good.state, state=None)
    assert "does not commit" in refused(swapped, world)
    assert "not the one that the statement names" in refused(replace(good, state=good.anchor), world)
    moved = replace(good.anchor, height=5)
    assert "not in block 5" in refused(replace(good, anchor=moved), world)
    assert "header of block 4 is missing" in refused(replace(good, headers=good.headers[:3]), world)
    gap = (*good.headers[:4], *good.headers[5:])
    assert "does not follow" in refused(replace(good, headers=gap), world)
    assert "does not follow" in refused(replace(good, headers=(good.headers[0], *good.headers)), world)


def test_only_anchors_count_and_only_signed_ones(world: World) -> None:
    good = world.certificate
    coinbase = decode_block(world.maker.blocks[world.ids[4]]).transactions[0]
    assert "is no anchor" in refused(replace(good, anchor=replace(good.anchor, transaction=coinbase)), world)
    forged = good.anchor.transaction[:-1] + bytes((good.anchor.transaction[-1] ^ 1,))
    assert "signature" in refused(replace(good, anchor=replace(good.anchor, transaction=forged)), world)
    assert "invalid" in refused(replace(good, anchor=replace(good.anchor, transaction=b"")), world)


def test_a_chain_from_the_first_block_on_must_follow_the_rules(world: World) -> None:
    """Whoever has no header but those of the certificate sees at least that they cost work, and how much."""
    cheap = []
    parent = world.maker.network
    for encoded in world.certificate.headers:
        header = msgspec.structs.replace(decode_header(encoded), parent=parent, target=b"\xff" * 32)
        cheap.append(encode_header(header))
        parent = next(iter(ids_of([cheap[-1]]).values()))
    assert "target is not the one" in refused(replace(world.certificate, headers=tuple(cheap)), world)


def test_the_state_must_come_before_its_statement(world: World) -> None:
    """A statement about an anchor that is not there yet could be shown with any anchor made later."""
    early = make_world(sequence=2)
    assert "not older than itself" in refused(replace(early.certificate, state=None), early)


# ---- statements ----------------------------------------------------------------------------------------------------
def test_commitments_hide_and_bind() -> None:
    statement, opening = statement_about(bytes(32))
    assert len(statement_commitment(statement)) == len(statement.path) == 32
    salted = msgspec.structs.replace(statement, salt=bytes(32))
    assert statement_commitment(salted) != statement_commitment(statement)
    assert path_commitment(msgspec.structs.replace(opening, salt=bytes(32))) != statement.path


def test_a_record_that_says_more_is_not_a_statements() -> None:
    statement, _ = statement_about(bytes(32))
    row = statement_row(statement, TIME)
    assert check_statement_row(row, statement) == TIME
    record = msgspec.msgpack.decode(row, type=Record)
    for changes in ({"path": b"/x"}, {"uid": 1}, {"inode": 5}, {"operation": int(Operation.WRITE)}, {"amount": 1},
                    {"time": -1}, {"program": b"x"}, {"path2": b""}):  # fmt: skip
        with pytest.raises(MalformedError):
            check_statement_row(msgspec.msgpack.encode(msgspec.structs.replace(record, **changes)), statement)
    with pytest.raises(MalformedError):
        check_statement_row(row + b"\0", statement)


# ---- the file of headers -------------------------------------------------------------------------------------------
def header_file(world: World) -> bytes:
    return HEADERS_MAGIC + b"".join(map(encode_row, world.certificate.headers))


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_headers_come_back_from_their_file(world: World, size: int) -> None:
    data = header_file(world)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert tuple(split_rows(pieces)) == world.certificate.headers
    assert {point.height: point.id for point in verify_headers(world.document, pieces)} == world.ids


def test_a_wrong_file_of_headers_is_refused(world: World) -> None:
    data = header_file(world)
    first = len(HEADERS_MAGIC)
    for wrong in (b"", b"x", b"x" * 100, data[:-1], data + b"\0", data[:first] + b"\0\0", data[:first] + b"\xff\xff"):
        with pytest.raises(MalformedError):
            list(split_rows([wrong]))
    for at in range(first, len(data), 5):
        changed = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        if at < len(data) - 200:  # the last header's change may by luck leave it enough work
            with pytest.raises(MalformedError):
                list(verify_headers(world.document, [changed]))
