"""Which transactions exist, how they are encoded, identified, stamped and signed.

Pure. Canonical MessagePack arrays, the kind's number first. A transaction's id is the hash of the encoding with empty
signatures, so that no one can change the id without the key. Signatures cover the network id and that encoding under a
domain of their own: nothing signed for another network or another purpose is valid here. Not here: what a transaction
does to the state (`state`).

What is free pays with a *stamp*, if it may: a number in the signed part that makes a hash start with zero bits. Votes are
free as they are: a stake has one for each checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Annotated, Any, Final, TypeAlias, cast

import msgspec
from blake3 import blake3
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.contracts.inputs import Act
from fsdecloud.contracts.language import Integer, document_id
from fsdecloud.crypto import sign
from fsdecloud.errors import MalformedError, SealError
from fsdecloud.ledger.network import AMOUNT_MAX, STAMP_BITS, TIME_MAX, Bytes32, NetworkDocument, Seconds
from fsdecloud.ledger.reasons import BadSignature, BadStamp, MalformedTransaction
from fsdecloud.limits import ANCHOR_PAYLOAD, CONTRACT_ACTIONS, CONTRACT_MAX, CONTRACT_NAMES, TX_MAX
from fsdecloud.types import PeerId, TxId, VolumeId

DOMAIN: Final = b"fsdecloud transaction v1"
URL_MAX: Final = 300
VOTE_MAX: Final = 256
"""No encoded vote is longer."""
NO_LINK: Final = bytes(32)
"""`previous` of a volume's first anchor."""

_ID_CONTEXT: Final = "fsdecloud 2026 v1 transaction id"
_LINK_CONTEXT: Final = "fsdecloud 2026 v1 anchor link"
_STAMP_CONTEXT: Final = "fsdecloud 2026 v1 stamp"

Amount = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
Counter = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
Stamp = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Version = Annotated[int, Meta(ge=1, le=1)]
Signature = Annotated[bytes, Meta(max_length=64)]


class Kind(IntEnum):
    """A transaction's number in its encoding. Those without a struct are reserved."""

    COINBASE = 0
    TRANSFER = 1
    REGISTER = 2
    ANCHOR = 3
    BOND = 4
    UNBOND = 5
    VOTE = 6
    EVIDENCE = 7
    DEPLOY = 8
    INPUT = 9
    OPERATE = 10


class Coinbase(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """First in each block: pays the subsidy and the block's fees to its miner. `height` makes its id unique."""

    version: Version
    height: Counter
    recipient: Bytes32
    amount: Amount


class Transfer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Move `amount` from one key to another; `nonce` is the sender's next (0 for its first)."""

    version: Version
    sender: Bytes32
    recipient: Bytes32
    amount: Amount
    fee: Amount
    nonce: Counter
    signature: Signature


class Register(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Say where a storage peer is and what it offers. `sequence` must be above that of its registration before."""

    version: Version
    peer: Bytes32
    url: Annotated[str, Meta(min_length=1, max_length=URL_MAX)]
    capacity: Counter
    """Bytes it offers."""
    price: Amount
    """Smallest units per GiB and 30 days."""
    sequence: Counter
    fee: Amount
    stamp: Stamp
    signature: Signature


class Anchor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Publish a volume's commit and the operations since the last one. Signed by the volume's key and the device's."""

    version: Version
    volume: Bytes32
    device: Bytes32
    """Public key of the machine that writes."""
    lease_expiry: Seconds
    """Until this block time no other device's anchor is valid, except a take-over."""
    sequence: Annotated[int, Meta(ge=1, le=(1 << 53) - 1)]
    """1 for the first, then one more each."""
    commitment: Bytes32
    """Commits to the manifest and the record batches; opaque here."""
    previous: Bytes32
    """`link` of the anchor before; NO_LINK for the first."""
    takeover: bool
    """Ends another device's lease."""
    payload: Annotated[bytes, Meta(min_length=ANCHOR_PAYLOAD, max_length=ANCHOR_PAYLOAD)]
    """Encrypted for the owner."""
    fee: Amount
    stamp: Stamp
    volume_signature: Signature
    device_signature: Signature


class Operate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=10):
    """Declare who runs a registered storage peer, so that no volume relies on his peers to fail one by one.

    Both sign: nobody is put among the peers of an operator who does not say so too, and so nobody can take the places that a
    volume leaves to one operator. A declaration can only lose its peer places, so there is nothing to gain by a false one; that
    somebody declares nothing, or each peer alone, cannot be prevented, and network groups are there for that.
    """

    version: Version
    peer: Bytes32
    operator: Annotated[bytes, Meta(max_length=32)]
    """The operator's public key; b"" takes the declaration back."""
    sequence: Counter
    """Above that of the peer's declaration before: the time in seconds does."""
    fee: Amount
    stamp: Stamp
    signature: Signature
    operator_signature: Signature
    """b"" without an operator."""


class Bond(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """Lock money of a storage peer as the stake that its votes weigh; `nonce` is its account's next."""

    version: Version
    peer: Bytes32
    amount: Amount
    fee: Amount
    nonce: Counter
    signature: Signature


class Unbond(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """Stop voting, and have the whole stake back after the network's delay."""

    version: Version
    peer: Bytes32
    fee: Amount
    nonce: Counter
    signature: Signature


class Vote(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """Link the justified checkpoint to the newest one, in the manner of Casper FFG. Free: a stake has one for each target."""

    version: Version
    peer: Bytes32
    source: Bytes32
    source_height: Counter
    target: Bytes32
    target_height: Counter
    signature: Signature


class Evidence(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """Two encoded votes that one peer may not both sign: its stake burns. Anybody may send it; the stake pays the fee."""

    version: Version
    first: Annotated[bytes, Meta(max_length=VOTE_MAX)]
    second: Annotated[bytes, Meta(max_length=VOTE_MAX)]
    fee: Amount


class Deploy(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8):
    """Begin a contract: its id is this transaction's. `nonce` is the sender's next."""

    version: Version
    sender: Bytes32
    document: Bytes32
    """Id of the contract's document."""
    body: Annotated[bytes, Meta(max_length=CONTRACT_MAX)]
    """The document in full; b"" for one that every daemon knows (`contracts.library`)."""
    arguments: Annotated[tuple[Integer | Bytes32, ...], Meta(max_length=CONTRACT_NAMES)]
    fee: Amount
    nonce: Counter
    signature: Signature


class Input(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=9):
    """Do something that a contract waits for, all the acts in their order or none; `nonce` is the sender's next."""

    version: Version
    sender: Bytes32
    contract: Bytes32
    """Id of the transaction that deployed it."""
    acts: Annotated[tuple[Act, ...], Meta(max_length=CONTRACT_ACTIONS)]
    fee: Amount
    nonce: Counter
    signature: Signature


Transaction: TypeAlias = (
    Coinbase | Transfer | Register | Anchor | Bond | Unbond | Vote | Evidence | Deploy | Input | Operate
)
Stamped: TypeAlias = Register | Anchor | Operate
"""What a stamp may pay for."""


def encode_tx(tx: Transaction) -> bytes:
    """Return the transaction's canonical bytes."""
    return codec.encode(tx)


def decode_tx(data: bytes, limit: int = TX_MAX) -> Transaction:
    """Return the transaction whose canonical encoding is `data`, signatures not checked. Raises MalformedTransaction."""
    if len(data) > limit:
        raise MalformedTransaction(f"a transaction has at most {limit} bytes, not {len(data)}")
    try:
        tx = cast("Transaction", codec.decode(data, cast("type[Any]", Transaction)))
    except MalformedError as exc:
        raise MalformedTransaction(str(exc)) from exc
    if isinstance(tx, Register) and not (tx.url.isascii() and tx.url.isprintable()):
        raise MalformedTransaction("the address in a registration must be printable ASCII")
    if isinstance(tx, Operate) and len(tx.operator) not in (0, 32):
        raise MalformedTransaction(f"an operator's key has 32 bytes, not {len(tx.operator)}")
    if isinstance(tx, Operate) and not tx.operator and tx.operator_signature:
        raise MalformedTransaction("a declaration without an operator has no signature of one")
    if isinstance(tx, Deploy) and tx.body and document_id(tx.body) != tx.document:
        raise MalformedTransaction("the document that it carries is not the one that it names")
    if isinstance(tx, Evidence):
        first, second = votes_of(tx)
        if first.peer != second.peer:
            raise MalformedTransaction("evidence is two votes of one peer")
    return tx


def votes_of(tx: Evidence) -> tuple[Vote, Vote]:
    """Return the two votes in evidence, signatures not checked. Raises MalformedTransaction."""
    try:
        return codec.decode(tx.first, Vote), codec.decode(tx.second, Vote)
    except MalformedError as exc:
        raise MalformedTransaction(f"evidence is two votes: {exc}") from exc


def tx_id(tx: Transaction) -> TxId:
    """Return the transaction's id: signatures excluded, 32 bytes."""
    return TxId(blake3(codec.encode(unsigned(tx)), derive_key_context=_ID_CONTEXT).digest())


def unsigned(tx: Transaction) -> Transaction:
    """Return the transaction with empty signatures: what the id and the signatures cover."""
    if isinstance(tx, Anchor):
        return msgspec.structs.replace(tx, volume_signature=b"", device_signature=b"")
    if isinstance(tx, Coinbase | Evidence):
        return tx
    if isinstance(tx, Operate):
        return msgspec.structs.replace(tx, signature=b"", operator_signature=b"")
    return msgspec.structs.replace(tx, signature=b"")


def link(volume: VolumeId | bytes, sequence: int, commitment: bytes) -> bytes:
    """Return what the volume's next anchor names as `previous`. No transaction id in it: raising a fee, or signing
    again, must not break the chain of anchors."""
    return blake3(volume + sequence.to_bytes(8) + commitment, derive_key_context=_LINK_CONTEXT).digest()


def fee_of(tx: Transaction) -> int:
    """Return what the transaction pays to the miner of its block."""
    return 0 if isinstance(tx, Coinbase | Vote) else tx.fee


def signers(tx: Transaction) -> tuple[tuple[bytes, bytes], ...]:
    """Return each (public key, signature) over the transaction; none for a coinbase and for evidence, whose votes are
    signed."""
    if isinstance(tx, Anchor):
        return (tx.volume, tx.volume_signature), (tx.device, tx.device_signature)
    if isinstance(tx, Transfer | Deploy | Input):
        return ((tx.sender, tx.signature),)
    if isinstance(tx, Register | Bond | Unbond | Vote):
        return ((tx.peer, tx.signature),)
    if isinstance(tx, Operate):
        peers = (tx.peer, tx.signature)
        return (peers, (tx.operator, tx.operator_signature)) if tx.operator else (peers,)
    return ()


def check_signatures(network: bytes, tx: Transaction) -> None:
    """Verify all signatures for the network with this id. Raises BadSignature."""
    if isinstance(tx, Evidence):
        for vote in votes_of(tx):
            check_signatures(network, vote)
    message = network + codec.encode(unsigned(tx))
    for public, signature in signers(tx):
        try:
            sign.verify(public, DOMAIN, message, signature)
        except SealError as exc:
            raise BadSignature(f"the signature of {public.hex()} does not verify: {exc}") from exc


def check_fee(document: NetworkDocument, tx: Transaction) -> None:
    """Check that the fee, or the stamp where one may stand for it, is sufficient. Raises BadStamp."""
    if isinstance(tx, Coinbase | Vote) or tx.fee >= document.minimum_fee:
        return
    if not isinstance(tx, Stamped):
        raise BadStamp(f"a {type(tx).__name__.lower()} pays at least {document.minimum_fee}, not {tx.fee}")
    found = stamp_bits(tx)
    if found < document.stamp_bits:
        raise BadStamp(f"its stamp has {found} zero bits; without a fee it needs {document.stamp_bits}")


# ---- stamps ------------------------------------------------------------------------------------------------------
def stamp_bits(tx: Stamped) -> int:
    """Return the number of leading zero bits of the transaction's stamp hash."""
    value = blake3(_stamp_base(tx) + tx.stamp.to_bytes(8), derive_key_context=_STAMP_CONTEXT).digest()
    return 256 - int.from_bytes(value).bit_length()


def _stamp_base(tx: Stamped) -> bytes:
    bare = msgspec.structs.replace(unsigned(tx), stamp=0)
    return blake3(codec.encode(bare), derive_key_context=_STAMP_CONTEXT).digest()


def grind_stamp(tx: Stamped, bits: int, start: int = 0) -> int:
    """Return the first stamp from `start` on with at least `bits` zero bits: about 2**bits hashes."""
    return next(stamp for stamp in grind_steps(tx, bits, start) if stamp is not None)


def grind_steps(tx: Stamped, bits: int, start: int = 0) -> Iterator[int | None]:
    """Search as `grind_stamp`, yielding None after each 256 tries, so that an event loop can run in between."""
    base = blake3(_stamp_base(tx), derive_key_context=_STAMP_CONTEXT)
    bound = 1 << (256 - bits)
    stamp = start
    while True:
        for candidate in range(stamp, stamp + 256):
            hasher = base.copy()
            hasher.update(candidate.to_bytes(8))
            if int.from_bytes(hasher.digest()) < bound:
                yield candidate
                return
        stamp += 256
        yield None


# ---- signing -----------------------------------------------------------------------------------------------------
def sign_transfer(network: bytes, seed: bytes, recipient: bytes, amount: int, fee: int, nonce: int) -> bytes:
    """Return the encoded transfer signed with the sender's Ed25519 seed. `network` is the network id."""
    tx = Transfer(1, sign.public_key(seed), recipient, amount, fee, nonce, b"")
    return _finish(network, tx, signature=seed)


def sign_register(
    network: bytes,
    seed: bytes,
    url: str,
    capacity: int,
    sequence: int,
    *,
    price: int = 0,
    fee: int = 0,
    bits: int = STAMP_BITS,
    start: int = 0,
) -> bytes:
    """Return a peer's encoded registration signed with its Ed25519 seed.

    `sequence` must be above the one registered before: the time in seconds does. With `fee` 0 a stamp of `bits` is
    ground, beginning at `start`.
    """
    tx = Register(1, PeerId(sign.public_key(seed)), url, capacity, price, sequence, fee, 0, b"")
    if fee == 0:
        tx = msgspec.structs.replace(tx, stamp=grind_stamp(tx, bits, start))
    return _finish(network, tx, signature=seed)


def sign_operate(
    network: bytes,
    seed: bytes,
    operator_seed: bytes | None,
    sequence: int,
    *,
    fee: int = 0,
    bits: int = STAMP_BITS,
    start: int = 0,
) -> bytes:
    """Return the encoded declaration that the peer with this Ed25519 seed is run by the operator with that one; None for by
    nobody. `sequence`, `fee`, `bits` and `start` as for `sign_register`."""
    operator = b"" if operator_seed is None else sign.public_key(operator_seed)
    tx = Operate(1, PeerId(sign.public_key(seed)), operator, sequence, fee, 0, b"", b"")
    if fee == 0:
        tx = msgspec.structs.replace(tx, stamp=grind_stamp(tx, bits, start))
    if operator_seed is None:
        return _finish(network, tx, signature=seed)
    return _finish(network, tx, signature=seed, operator_signature=operator_seed)


def sign_bond(network: bytes, seed: bytes, amount: int, fee: int, nonce: int) -> bytes:
    """Return the encoded bond of `amount` signed with the peer's Ed25519 seed."""
    return _finish(network, Bond(1, sign.public_key(seed), amount, fee, nonce, b""), signature=seed)


def sign_unbond(network: bytes, seed: bytes, fee: int, nonce: int) -> bytes:
    """Return the encoded end of a bond signed with the peer's Ed25519 seed."""
    return _finish(network, Unbond(1, sign.public_key(seed), fee, nonce, b""), signature=seed)


def sign_vote(
    network: bytes, seed: bytes, source: bytes, source_height: int, target: bytes, target_height: int
) -> bytes:
    """Return the encoded vote signed with the peer's Ed25519 seed.

    Whoever signs keeps the rules of `finality.plan_vote`, over restarts and power cuts too, or the stake burns.
    """
    vote = Vote(1, sign.public_key(seed), source, source_height, target, target_height, b"")
    return _finish(network, vote, signature=seed)


def sign_deploy(
    network: bytes,
    seed: bytes,
    document: bytes,
    arguments: tuple[int | bytes, ...],
    fee: int,
    nonce: int,
    *,
    body: bytes = b"",
) -> bytes:
    """Return the encoded deployment of a contract, signed with the sender's Ed25519 seed.

    `document` is the id of the contract's document, `body` that document in full unless it is a standard one. The contract's id
    is `tx_id` of the transaction. Raises ValueError for what no deployment may have.
    """
    tx = Deploy(1, sign.public_key(seed), document, body, arguments, fee, nonce, b"")
    return _finish(network, tx, signature=seed)


def sign_input(network: bytes, seed: bytes, contract: bytes, acts: tuple[Act, ...], fee: int, nonce: int) -> bytes:
    """Return the encoded input to a contract, signed with the sender's Ed25519 seed."""
    return _finish(network, Input(1, sign.public_key(seed), contract, acts, fee, nonce, b""), signature=seed)


def encode_evidence(first: bytes, second: bytes, fee: int) -> bytes:
    """Return the encoded evidence of two encoded votes. Raises ValueError for what are no two votes of one peer."""
    return _finish(b"", Evidence(1, first, second, fee))


def sign_anchor(
    network: bytes,
    volume_seed: bytes,
    device_seed: bytes,
    *,
    sequence: int,
    commitment: bytes,
    previous: bytes,
    lease_expiry: int,
    payload: bytes,
    takeover: bool = False,
    fee: int = 0,
    bits: int = STAMP_BITS,
    start: int = 0,
) -> bytes:
    """Return the encoded anchor signed with the volume's and the device's Ed25519 seeds.

    `previous` is `link(...)` of the anchor before (NO_LINK for sequence 1), `lease_expiry` in seconds since 1970,
    `payload` exactly ANCHOR_PAYLOAD bytes. With `fee` 0 a stamp of `bits` is ground, beginning at `start` (about ten
    milliseconds for the default). Raises ValueError on a field that no anchor may have.
    """
    tx = Anchor(
        1,
        VolumeId(sign.public_key(volume_seed)),
        sign.public_key(device_seed),
        lease_expiry,
        sequence,
        commitment,
        previous,
        takeover,
        payload,
        fee,
        0,
        b"",
        b"",
    )
    if not (0 <= lease_expiry <= TIME_MAX and len(payload) == ANCHOR_PAYLOAD and len(commitment) == 32):
        raise ValueError("an anchor's lease, payload or commitment has a wrong size")
    if fee == 0:
        tx = msgspec.structs.replace(tx, stamp=grind_stamp(tx, bits, start))
    return _finish(network, tx, volume_signature=volume_seed, device_signature=device_seed)


def _finish(network: bytes, tx: Transaction, **seeds: bytes) -> bytes:
    message = network + codec.encode(unsigned(tx))
    signatures = {field: sign.sign(seed, DOMAIN, message) for field, seed in seeds.items()}
    data = codec.encode(msgspec.structs.replace(tx, **cast("dict[str, Any]", signatures)))
    try:
        decode_tx(data)
    except MalformedTransaction as exc:
        raise ValueError(f"no such transaction can exist: {exc}") from exc
    return data
