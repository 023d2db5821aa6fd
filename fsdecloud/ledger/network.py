"""Which parameters make one ledger network, and its identity.

Pure. The network document is the genesis block: its BLAKE3 is the network id, and the parent of block 1. Two daemons with
different documents are in different networks and never exchange a block. Version 1 ends before `halving`, version 2 after
it; such documents stay valid as they are, and have no checkpoints. Version 3 ends before `storage_share` and has no
contracts. Not here: the rules that use the parameters (`work`, `state`, `chain`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from blake3 import blake3
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.limits import BLOCK_MAX, TX_MAX

STAMP_BITS: Final = 14
"""Work stamp of the preset networks: about 16,000 hashes, some ten milliseconds of Python: nothing for a person,
a cost for a flood. The signing helpers use it unless told otherwise; more bits than a network asks for are fine."""

TIME_MAX: Final = (1 << 40) - 1
"""Largest time in seconds since 1970 (year 36812): keeps sums of times far from 64 bits."""

AMOUNT_MAX: Final = (1 << 62) - 1
"""Largest amount and balance: a sum of two stays within a signed 64-bit integer."""

NETWORK_MAX: Final = 4096
"""Bytes of a network document; a real one has some two hundred."""

STEADY: Final = 8
"""A half-life has at least this many intervals (version 2): one block then never makes the next more than a third easier."""

DELAY_DEPTHS: Final = 8
"""Finality depths that a leaving stake stays locked at least: the voters are taken anew after a quarter of the delay, so
two."""

BOND_FEES: Final = 16
"""Least fees in a bond, at least."""

_MISSING: Final = {1: 7, 2: 6, 3: 2, 4: 0}
"""Fields at the end that documents of a version do not have."""

_EMBEDDED_WORK: Final = 1 << 16
"""Hashes a block costs at first in the embedded network: about a tenth of a second of one core in Python."""

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Seconds = Annotated[int, Meta(ge=0, le=TIME_MAX)]


class NetworkDocument(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The parameters that all daemons of one network share; times in seconds, sizes in bytes, targets big-endian."""

    version: Annotated[int, Meta(ge=1, le=4)]
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    salt: Bytes32
    """Random, so that two networks with equal parameters differ."""
    genesis_time: Seconds
    interval: Annotated[int, Meta(ge=1, le=3600)]
    """Time between blocks that the difficulty aims at."""
    half_life: Annotated[int, Meta(ge=60, le=1 << 24)]
    """Active time ahead of (behind) schedule after which the difficulty halves (doubles)."""
    first_target: Bytes32
    """A block's id, read as a big-endian number, must be at most its target; this is block 1's."""
    easiest_target: Bytes32
    """No target is ever above this one."""
    subsidy: Annotated[int, Meta(ge=0, le=1 << 40)]
    """New money in each block, in the smallest unit; see `subsidy_at`."""
    minimum_fee: Annotated[int, Meta(ge=0, le=1 << 40)]
    """Least fee of a transaction that carries no work stamp."""
    stamp_bits: Annotated[int, Meta(ge=0, le=40)]
    """Leading zero bits of the stamp's hash that stand for a fee (anchors and registrations only)."""
    finality_depth: Annotated[int, Meta(ge=1, le=1 << 20)]
    """Blocks with more than this many blocks after them are not replaced without a person's word."""
    future_limit: Annotated[int, Meta(ge=1, le=86400)]
    """How far a block's time may be ahead of the receiver's clock."""
    block_max: Annotated[int, Meta(ge=8192, le=BLOCK_MAX)]
    transaction_max: Annotated[int, Meta(ge=4096, le=TX_MAX)]
    mine_when_idle: bool
    """False: a block is mined only when there is something to record."""
    halving: Annotated[int, Meta(ge=0, le=1 << 32)] = 0
    """Blocks after which the subsidy halves; 0: never. Version 1 has no such field, and its subsidy never halves."""
    checkpoint_interval: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    """Blocks from one checkpoint to the next; 0: nobody votes. Versions 1 and 2 have neither this field nor those after it."""
    unbond_delay: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    """Blocks for which a stake that leaves stays locked, and can burn."""
    least_bond: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    """What one peer bonds at least."""
    least_stake: Annotated[int, Meta(ge=0, le=1 << 60)] = 0
    """Stake of all voters together with less than which nothing becomes final."""
    storage_share: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Thousandths of the subsidy that go into the pool for proven storage. Version 4 and up; those before have no contracts."""
    storage_levy: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Thousandths of what a contract pays for storage that burn; the payee has up to as much out of the pool."""


def network_id(document: NetworkDocument) -> bytes:
    """Return the network's id, the BLAKE3 of its document: the genesis id, 32 bytes."""
    return blake3(encode_network(document)).digest()


def encode_network(document: NetworkDocument) -> bytes:
    """Return the document's canonical bytes; `b3sum` of them is the network id."""
    return codec.encode(_fields(document))


def decode_network(data: bytes) -> NetworkDocument:
    """Return the network document in `data`. Raises MalformedError with the reason."""
    if len(data) > NETWORK_MAX:
        raise MalformedError(f"a network document has at most {NETWORK_MAX} bytes, not {len(data)}")
    document = codec.decode_loose(data, NetworkDocument)
    if encode_network(document) != data:
        raise MalformedError("not the canonical encoding of a network document")
    check_network(document)
    return document


def check_network(document: NetworkDocument) -> None:
    """Check what the types of the fields do not say. Raises MalformedError with the reason."""
    if not document.name.isprintable():
        raise MalformedError("the network's name has characters that cannot be printed")
    first, easiest = int.from_bytes(document.first_target), int.from_bytes(document.easiest_target)
    if not 0 < first <= easiest:
        raise MalformedError("the first target must be above zero and not easier than the easiest")
    if document.transaction_max > document.block_max:
        raise MalformedError("a transaction may not be larger than a block")
    if document.version < 4 and (document.storage_share or document.storage_levy):
        raise MalformedError(f"a document of version {document.version} has no pool for storage")
    if document.version < 3 and document.checkpoint_interval:
        raise MalformedError(f"a document of version {document.version} has no checkpoints")
    if document.version == 1:
        if document.halving:
            raise MalformedError("a document of version 1 has no halving")
        return
    if not document.name.isascii():
        raise MalformedError("the network's name has characters that are not ASCII")
    if document.half_life < STEADY * document.interval:
        raise MalformedError(f"the half-life must be {STEADY} intervals at least, or the difficulty never settles")
    if document.halving and 2 * document.subsidy * document.halving > AMOUNT_MAX:
        raise MalformedError(
            f"the money of all blocks together, twice subsidy times halving, may not pass {AMOUNT_MAX}"
        )
    _check_voting(document)


def _check_voting(document: NetworkDocument) -> None:
    interval = document.checkpoint_interval
    if interval == 0:
        if document.unbond_delay or document.least_bond or document.least_stake:
            raise MalformedError("without checkpoints there is no stake: its parameters must be 0")
        return
    if 2 * interval > document.finality_depth:
        raise MalformedError("the finality depth must be two checkpoint intervals at least")
    if document.unbond_delay < DELAY_DEPTHS * document.finality_depth:
        raise MalformedError(
            f"a leaving stake must stay locked for {DELAY_DEPTHS} finality depths at least, or it could vote unpunished"
        )
    if document.least_bond < max(1, BOND_FEES * document.minimum_fee):
        raise MalformedError(f"the least bond must be {BOND_FEES} least fees at least: it pays for evidence against it")
    if document.least_stake < document.least_bond:
        raise MalformedError("the least stake of all voters is not below the least bond of one")


def subsidy_at(document: NetworkDocument, height: int) -> int:
    """Return the new money in the block of this height (1 and up), in the smallest unit: the subsidy, halved and rounded
    down once for each `halving` blocks before it."""
    return document.subsidy >> min((height - 1) // document.halving, 64) if document.halving else document.subsidy


def storage_subsidy_at(document: NetworkDocument, height: int) -> int:
    """Return the part of the new money in the block of this height that goes into the pool for proven storage. Its miner
    has the rest."""
    return subsidy_at(document, height) * document.storage_share // 1000


def has_contracts(document: NetworkDocument) -> bool:
    """Tell whether contracts can be deployed in the network."""
    return document.version >= 4


def _fields(document: NetworkDocument) -> tuple[Any, ...]:
    fields = msgspec.structs.astuple(document)
    return fields[: len(fields) - _MISSING[document.version]]


def embedded_network(name: str, salt: bytes, time: int) -> NetworkDocument:
    """Return the parameters of a network for one machine or one household: an idle network is idle.

    Blocks come when there is something to record and cost about a tenth of a second of one core; anchors and
    registrations are free for a small work stamp.
    """
    return NetworkDocument(
        version=4,
        name=name,
        salt=salt,
        genesis_time=time,
        interval=2,
        half_life=600,
        first_target=target_of(_EMBEDDED_WORK),
        easiest_target=target_of(_EMBEDDED_WORK // 4),
        subsidy=1_000_000_000,
        minimum_fee=1,
        stamp_bits=STAMP_BITS,
        finality_depth=100,
        future_limit=7200,
        block_max=BLOCK_MAX,
        transaction_max=TX_MAX,
        mine_when_idle=False,
    )


def priced_network(name: str, salt: bytes, time: int) -> NetworkDocument:
    """Return the parameters of a network for one machine in which peers are paid: the embedded one's, but a block every ten
    seconds, because contracts count time in blocks, and a tenth of the subsidy for proven storage."""
    return msgspec.structs.replace(
        embedded_network(name, salt, time),
        interval=10,
        mine_when_idle=True,
        storage_share=100,
        storage_levy=100,
    )


def public_network(name: str, salt: bytes, time: int) -> NetworkDocument:
    """Return the parameters of a network of strangers: one block a minute, always mined, half the subsidy every four years,
    a checkpoint every ten minutes, two weeks until a stake is back, a tenth of the subsidy for proven storage."""
    return NetworkDocument(
        version=4,
        name=name,
        salt=salt,
        genesis_time=time,
        interval=60,
        half_life=6 * 3600,
        first_target=target_of(1 << 24),
        easiest_target=target_of(1 << 20),
        subsidy=1_000_000_000,
        minimum_fee=1000,
        stamp_bits=20,
        finality_depth=100,
        future_limit=7200,
        block_max=BLOCK_MAX,
        transaction_max=TX_MAX,
        mine_when_idle=True,
        halving=2_100_000,
        checkpoint_interval=10,
        unbond_delay=20_160,
        least_bond=100_000_000_000,
        least_stake=1_000_000_000_000,
        storage_share=100,
        storage_levy=100,
    )


def target_of(work: int) -> bytes:
    """Return the target that one in `work` hashes meets, for 1 to 2^256 - 1."""
    return ((1 << 256) // work - 1).to_bytes(32)
