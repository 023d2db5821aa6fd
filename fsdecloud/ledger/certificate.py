"""Certificates: is it true that the owner of a volume stated, before a certain block, what a file was.

Pure: whoever verifies needs the certificate, the network document, and, unless the certificate holds all headers from the first
on, the id of one block that it leads to. No key, no daemon, no peer. Man page: fsdecloud-certificate(5).

    file      what the statement says of it: BLAKE3 of its bytes, size
    statement over all its fields and 32 random bytes: what the record holds            fs.statement
    record    leaf of a batch, the batch leaf of all batches, those the third leaf of   crypto.merkle
    anchor    the anchor's commitment; volume and device have signed the anchor         ledger.transactions
    block     the anchor's bytes are a leaf below the header's `bytes_root`             ledger.blocks
    chain     each header names its parent; the first one's is the network document     ledger.chain

Not here: the file's bytes (`cli.verifycertificate` reads them), who makes statements (`driver.certifier`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final

import msgspec
from blake3 import blake3
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.crypto import merkle
from fsdecloud.errors import CertificateError, InvalidBlock, InvalidTransaction, MalformedError
from fsdecloud.fs.statement import PathOpening, Statement, check_statement_row, path_commitment
from fsdecloud.ledger.blocks import HEADER_MAX, Header, block_id, decode_header
from fsdecloud.ledger.chain import check_header, genesis_point
from fsdecloud.ledger.network import Bytes32, NetworkDocument, network_id
from fsdecloud.ledger.transactions import Anchor, check_signatures, decode_tx, link
from fsdecloud.limits import MIB, TX_MAX
from fsdecloud.types import BlockId, VolumeId

CERTIFICATE_MAX: Final = 8 * MIB
"""No certificate is longer: about 40,000 headers."""

HEADERS_MAX: Final = 1 << 16
"""More than fit: bounds what decoding takes."""

MAGIC: Final = b"fsdecloud certificate 1\n"
DIGEST_SIZE: Final = 32

_COMMITTED: Final = 3
"""Leaves of an anchor's commitment: manifest, tree root, record batches (`fs.manifest.commitment`)."""

_MINE: Final = 2
"""Which of them the record batches are."""

Known = Callable[[int], BlockId | None]
"""Tells the id of the block at a height in the chain that the verifier believes; None where it does not know one."""


class Branch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The way from one leaf of a Merkle tree to its root (`crypto.merkle`)."""

    index: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
    count: Annotated[int, Meta(ge=1, le=(1 << 53) - 1)]
    siblings: Annotated[tuple[Bytes32, ...], Meta(max_length=64)]


class Place(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A transaction, and where in the chain it is."""

    transaction: Annotated[bytes, Meta(max_length=TX_MAX)]
    height: Annotated[int, Meta(ge=1, le=(1 << 40) - 1)]
    branch: Branch
    """Below the `bytes_root` of that block's header."""


class Certificate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything between a file and the chain."""

    version: Annotated[int, Meta(ge=1, le=1)]
    network: Bytes32
    statement: Statement
    path: PathOpening | None
    """None: the path is not disclosed."""
    record: Annotated[bytes, Meta(max_length=1024)]
    """The encoded record that holds the statement's commitment."""
    record_branch: Branch
    batch: Bytes32
    """Root of the record's batch."""
    batch_branch: Branch
    batches: Bytes32
    """Root over the batches of the anchor."""
    sibling: Bytes32
    """Stands for manifest and tree root, which the anchor commits to as well."""
    anchor: Place
    """The anchor that the record is in."""
    state: Place | None
    """The anchor of the state that the statement is about; None where that is too far back to show."""
    headers: Annotated[
        tuple[Annotated[bytes, Meta(max_length=HEADER_MAX)], ...], Meta(min_length=1, max_length=HEADERS_MAX)
    ]
    """Encoded headers, one after the other, those of the two places among them. Beginning with block 1 they need no other
    proof than the network document."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a certificate was found to prove."""

    network: bytes
    volume: VolumeId
    """Its owner made the statement."""
    device: bytes
    content: bytes
    """BLAKE3 of the file."""
    size: int
    path: bytes | None
    """None: not disclosed."""
    stated: int
    """When the statement was made, nanoseconds since 1970, by the owner's clock."""
    sequence: int
    """The anchor with the statement."""
    height: int
    block: BlockId
    """The block that has it."""
    time: int
    """That block's time, seconds since 1970."""
    confirmations: int
    """That block and those after it which the verifier has reason to believe."""
    state_sequence: int
    """The state that the statement is about: the volume's anchor of this number."""
    state_height: int | None
    """None: the certificate does not show that anchor."""
    state_time: int | None
    tied_to: BlockId | None
    """The latest block that the verifier knew; None: the chain from block 1 on was taken for its work alone."""
    work: int | None
    """Hashes that the shown chain took, if it begins with block 1."""


def branch_of(leaves: Sequence[bytes], index: int) -> Branch:
    """Return the way from a leaf to the root over all of them. Raises IndexError when there is no such leaf."""
    return Branch(index, len(leaves), merkle.path(leaves, index))


def assemble_certificate(
    network: bytes,
    statement: Statement,
    path: PathOpening | None,
    record: bytes,
    stored: tuple[bytes, bytes],
    anchor: Place,
    state: Place | None,
    headers: Sequence[bytes],
) -> Certificate:
    """Return the certificate of a statement whose record is alone in its batch, and that alone in its anchor.

    `stored` are the ids of the manifest and the tree root that the anchor commits to too. Nothing is verified here.
    """
    batch = merkle.root([record])
    leaf = _batch_leaf(1, batch)
    return Certificate(
        version=1,
        network=network,
        statement=statement,
        path=path,
        record=record,
        record_branch=branch_of([record], 0),
        batch=batch,
        batch_branch=branch_of([leaf], 0),
        batches=merkle.root([leaf]),
        sibling=merkle.path([*stored, b""], _MINE)[0],
        anchor=anchor,
        state=state,
        headers=tuple(headers),
    )


def _batch_leaf(count: int, root: bytes) -> bytes:
    """Return what stands for a batch among those of its anchor (`fs.records.batches_root`)."""
    return count.to_bytes(8, "big") + root


def encode_certificate(certificate: Certificate) -> bytes:
    """Return the file's bytes. Raises CertificateError when there would be more than CERTIFICATE_MAX."""
    body = MAGIC + codec.encode(certificate)
    if len(body) + DIGEST_SIZE > CERTIFICATE_MAX:
        raise CertificateError(f"the certificate would be longer than {CERTIFICATE_MAX} bytes: leave headers out")
    return body + blake3(body).digest()


def decode_certificate(data: bytes) -> Certificate:
    """Return the certificate in a file. Raises CertificateError; nothing in it is verified yet.

    The digest at the end finds what was changed by chance, wherever it is: in headers far above the anchor's, too, where the
    change of a byte may by luck leave a block with enough work. It is no protection against anybody: `verify_certificate` is.
    """
    if len(data) > CERTIFICATE_MAX:
        raise CertificateError(f"a certificate has at most {CERTIFICATE_MAX} bytes")
    if not data.startswith(MAGIC):
        raise CertificateError("this is no certificate, or one of a newer version")
    body, digest = data[:-DIGEST_SIZE], data[-DIGEST_SIZE:]
    if len(body) < len(MAGIC) or blake3(body).digest() != digest:
        raise CertificateError("the certificate is damaged: its bytes are not those that were written")
    try:
        return codec.decode(body[len(MAGIC) :], Certificate)
    except MalformedError as exc:
        raise CertificateError(f"the certificate is malformed: {exc}") from exc


def verify_certificate(certificate: Certificate, document: NetworkDocument, known: Known | None = None) -> Verdict:
    """Return what the certificate proves to somebody who believes `document` and the blocks that `known` tells of.

    With `known` one of those blocks must be at or above the anchor's; without, the headers must begin with block 1 and follow
    all rules, and the verdict says how much work that took: whether it is the chain that everybody follows, nothing in a
    certificate can say. Costs three signatures, some hashes, and a hash or two for each header. Raises CertificateError.
    """
    network = network_id(document)
    if certificate.network != network:
        raise CertificateError(
            f"the certificate is of network {certificate.network.hex()}, the document at hand is that of {network.hex()}"
        )
    statement = certificate.statement
    try:
        stated = check_statement_row(certificate.record, statement)
    except MalformedError as exc:
        raise CertificateError(f"the statement is not the recorded one: {exc}") from exc
    if certificate.path is not None and path_commitment(certificate.path) != statement.path:
        raise CertificateError("the path is not the one that was stated")
    anchor = _anchor(network, certificate.anchor.transaction)
    _check_record(certificate, anchor.commitment)
    state = None if certificate.state is None else _anchor(network, certificate.state.transaction)
    if statement.sequence >= anchor.sequence:
        raise CertificateError("the statement is about a state that is not older than itself")
    if state is not None and (
        state.volume != anchor.volume
        or state.sequence != statement.sequence
        or link(state.volume, state.sequence, state.commitment) != statement.link
    ):
        raise CertificateError("the anchor of the state is not the one that the statement names")
    headers = _linked(certificate.headers)
    first = headers[0].height
    block = _block(headers, certificate.anchor)
    state_block = None if certificate.state is None else _block(headers, certificate.state)
    if state_block is not None and state_block.height >= block.height:
        raise CertificateError("the anchor of the state is not before that of the statement")
    work = _check_rules(document, headers) if first == 1 else None
    top = headers[-1].height if known is None else _tie(headers, block.height, known)
    if known is None and work is None:
        raise CertificateError(
            f"the headers begin with block {first}, and no block at or above {block.height} is known here: give the network's "
            "headers, or a block that you trust"
        )
    return Verdict(
        network=network,
        volume=VolumeId(anchor.volume),
        device=anchor.device,
        content=statement.content,
        size=statement.size,
        path=None if certificate.path is None else certificate.path.path,
        stated=stated,
        sequence=anchor.sequence,
        height=block.height,
        block=block_id(block),
        time=block.time,
        confirmations=top - block.height + 1,
        state_sequence=statement.sequence,
        state_height=None if state_block is None else state_block.height,
        state_time=None if state_block is None else state_block.time,
        tied_to=None if known is None else block_id(headers[top - first]),
        work=work,
    )


def _anchor(network: bytes, data: bytes) -> Anchor:
    try:
        tx = decode_tx(data)
        if not isinstance(tx, Anchor):
            raise CertificateError("a transaction in the certificate is no anchor")
        check_signatures(network, tx)
    except InvalidTransaction as exc:
        raise CertificateError(f"an anchor in the certificate is invalid: {exc}") from exc
    return tx


def _check_record(certificate: Certificate, commitment: bytes) -> None:
    """Check the way from the record to an anchor's commitment."""
    record, batch = certificate.record_branch, certificate.batch_branch
    if not merkle.verify(certificate.batch, record.count, record.index, certificate.record, record.siblings):
        raise CertificateError("the record is not in its batch")
    leaf = _batch_leaf(record.count, certificate.batch)
    if not merkle.verify(certificate.batches, batch.count, batch.index, leaf, batch.siblings):
        raise CertificateError("the batch is not among the anchor's")
    if not merkle.verify(commitment, _COMMITTED, _MINE, certificate.batches, (certificate.sibling,)):
        raise CertificateError("the anchor does not commit to the record batches")


def _linked(encoded: Sequence[bytes]) -> list[Header]:
    """Return the headers, each of which names the one before as its parent."""
    try:
        headers = [decode_header(data) for data in encoded]
    except InvalidBlock as exc:
        raise CertificateError(f"a header in the certificate is malformed: {exc}") from exc
    for before, header in pairwise(headers):
        if header.height != before.height + 1 or header.parent != block_id(before):
            raise CertificateError(f"the header after block {before.height} does not follow it")
    return headers


def _block(headers: Sequence[Header], place: Place) -> Header:
    """Return the header of the block that a transaction is in."""
    offset = place.height - headers[0].height
    if not 0 <= offset < len(headers):
        raise CertificateError(f"the header of block {place.height} is missing")
    header, branch = headers[offset], place.branch
    if not merkle.verify(header.bytes_root, branch.count, branch.index, place.transaction, branch.siblings):
        raise CertificateError(f"the anchor is not in block {place.height}")
    return header


def _check_rules(document: NetworkDocument, headers: Sequence[Header]) -> int:
    """Return the work of a chain of headers from block 1 on, all of which follow the network's rules."""
    point = genesis_point(document)
    for header in headers:
        try:
            point = check_header(document, point, header, None)
        except InvalidBlock as exc:
            raise CertificateError(f"block {header.height} breaks the network's rules: {exc}") from exc
    return int.from_bytes(point.work, "big")


def _tie(headers: Sequence[Header], lowest: int, known: Known) -> int:
    """Return the greatest height from `lowest` on at which the chain has the block that is known there.

    Above it the two may part: the newest blocks of any chain may still be replaced.
    """
    other: tuple[int, BlockId] | None = None
    for header in reversed(headers[lowest - headers[0].height :]):
        wanted = known(header.height)
        if wanted == block_id(header):
            return header.height
        if wanted is not None:
            other = header.height, wanted
    if other is not None:
        raise CertificateError(f"the certificate is of another chain: known here is block {other[0]} {other[1].hex()}")
    raise CertificateError(
        f"no block from {lowest} to {headers[-1].height} is known here: the headers, the ledger or the block at hand are older"
    )
