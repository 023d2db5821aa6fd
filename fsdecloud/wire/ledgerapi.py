"""What local programs ask the ledger daemon over its socket (framing: `wire.rpc`).

status: Empty -> LedgerStatus
submit: SubmitTx -> TxResult                 raises InvalidTransaction with the reason
tx: TxQuery -> TxFound                       by id
account: KeyQuery -> Account
accounts: AccountsQuery -> AccountsInfo      of several keys at one tip, with what waits of theirs
account_history: HistoryQuery -> HistoryPage    which blocks changed a balance, newest first; full daemons only
fee: FeeQuery -> FeeEstimate
contracts: ContractsQuery -> ContractsInfo   as they are after one tip
volume: KeyQuery -> VolumeAnchor             latest anchor on the best chain
anchors: AnchorQuery -> AnchorList           the volume's anchors on the best chain, oldest first, paged
blocks: BlockQuery -> BlockList              encoded blocks by height, paged (at most 1 MiB an answer, at least one); the
                                             first has height 1: the genesis block is the network document
headers: HeaderQuery -> HeaderList           encoded headers by height, paged
network: Empty -> NetworkInfo
accept_tip: KeyQuery -> LedgerStatus         follow the stored block with this id, however deep it reorganises
registry: Empty -> agentapi.Registry
finality: FinalityQuery -> FinalityInfo      checkpoints, votes and stakes; full daemons only
services: Empty -> ServicesInfo              mining, work for others, pages
bans: Empty -> BanList                       whose calls are not taken
unban: BannedAddress -> BanList              take them again; raises UsageError when it is not shut out
watch: Empty -> LedgerStatus                 afterwards `tip: TipNotice` notices are sent on this connection
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from fsdecloud.types import BlockId, TxId

HEADERS_AT_ONCE: Final = 2048
"""Headers of one answer: 400 KiB."""

KEYS_AT_ONCE: Final = 64
"""Keys of one `AccountsQuery`."""

VOTERS_SHOWN: Final = 256
"""Stakes of one `FinalityInfo`, the heaviest first."""


class LedgerPeer(msgspec.Struct, frozen=True, array_like=True):
    """A connected ledger daemon."""

    url: str
    id: bytes
    inbound: bool
    height: int


class SnapshotProgress(msgspec.Struct, frozen=True, array_like=True):
    """How far a chain has come whose state at one block was fetched from others and not computed."""

    stage: Literal["headers", "state", "history", "execute", "verified", "fault"]
    """What is being done: headers, then the state's nodes are fetched; the blocks before it are fetched, then executed; nothing
    is left to do; they break the rules."""
    pivot: int
    """Height of the block whose state it is; 0 while it is not known."""
    done: int
    total: int
    """Of headers, nodes or blocks; a total of 0 is not known."""


class LedgerStatus(msgspec.Struct, frozen=True, array_like=True):
    """The daemon's view of the chain."""

    pid: int
    network: bytes
    """Genesis id."""
    name: str
    url: str
    """Where other daemons reach this one (with its key and the network id): a bootstrap address."""
    height: int
    tip: BlockId
    tip_time: int
    work: bytes
    """Cumulative work of the best chain, big-endian."""
    mempool: int
    mining: bool
    hash_rate: float
    peers: tuple[LedgerPeer, ...]
    light: bool = False
    """It keeps headers only, and answers with what full daemons prove; `mempool` is what this machine submitted."""
    provers: int = 0
    """How many full daemons a light one is connected to."""
    history: int = 1
    """Height from which on blocks, transactions and anchors are known: those before it are still being fetched."""
    snapshot: SnapshotProgress | None = None
    """None when the daemon computed all states itself."""


class TipNotice(msgspec.Struct, frozen=True, array_like=True):
    """The best chain's tip changed."""

    height: int
    tip: BlockId
    time: int


class SubmitTx(msgspec.Struct, frozen=True, array_like=True):
    """An encoded transaction."""

    tx: bytes


class TxResult(msgspec.Struct, frozen=True, array_like=True):
    """It is in the mempool, or already in a block."""

    id: TxId
    height: int | None


class TxQuery(msgspec.Struct, frozen=True, array_like=True):
    """Ask for a transaction."""

    id: TxId


class TxFound(msgspec.Struct, frozen=True, array_like=True):
    """The encoded transaction (b"" if unknown), its height (None in the mempool) and index in the block."""

    tx: bytes
    height: int | None
    index: int
    confirmations: int


class KeyQuery(msgspec.Struct, frozen=True, array_like=True):
    """Ask by public key."""

    key: bytes


class Account(msgspec.Struct, frozen=True, array_like=True):
    """Balance in the smallest unit, and the next nonce."""

    balance: int
    nonce: int


class AccountsQuery(msgspec.Struct, frozen=True, array_like=True):
    """Ask for the accounts of public keys, 1 to KEYS_AT_ONCE."""

    keys: tuple[bytes, ...]


class AccountState(msgspec.Struct, frozen=True, array_like=True):
    """Balance and nonce in the best chain, and the next nonce after what waits."""

    balance: int
    nonce: int
    next_nonce: int


class AccountsInfo(msgspec.Struct, frozen=True, array_like=True):
    """Accounts in the order of the question, at one tip, and the encoded transactions of theirs, or that pay to them, that wait
    for a block. A light daemon knows of those that were submitted to it."""

    height: int
    tip: BlockId
    tip_time: int
    accounts: tuple[AccountState, ...]
    waiting: tuple[bytes, ...]
    is_light: bool


class HistoryQuery(msgspec.Struct, frozen=True, array_like=True):
    """Ask for the blocks below the height `below` that changed the account of `key`, at most `count` (1 to 256)."""

    key: bytes
    below: int
    count: int


class AccountBlock(msgspec.Struct, frozen=True, array_like=True):
    """What one block did to an account."""

    height: int
    time: int
    change: int
    """Of the balance."""
    txs: tuple[bytes, ...]
    """The encoded transactions in it that name the key, in their order."""


class HistoryPage(msgspec.Struct, frozen=True, array_like=True):
    """Blocks by descending height; those below `below` are the next page, which is 0 when there are none."""

    blocks: tuple[AccountBlock, ...]
    below: int
    first: int
    """Height from which on everything is known: what was before is pruned, or not executed yet."""


class FeeQuery(msgspec.Struct, frozen=True, array_like=True):
    """Ask what a transaction of so many bytes should pay."""

    size: int


class FeeEstimate(msgspec.Struct, frozen=True, array_like=True):
    """The estimated fee and the network's least one, in the smallest unit."""

    fee: int
    minimum: int
    waiting: int
    """Transactions that were compared with; a light daemon knows none and says the least fee."""


class ContractsQuery(msgspec.Struct, frozen=True, array_like=True):
    """Ask for contracts by their ids, 1 to KEYS_AT_ONCE."""

    ids: tuple[bytes, ...]


class ContractsInfo(msgspec.Struct, frozen=True, array_like=True):
    """Contracts in the order of the question, after one tip. The ids of a challenge's blocks come from `headers`."""

    height: int
    """Of the tip: the next block's is one more."""
    tip: BlockId
    contracts: tuple[bytes, ...]
    """Each an encoded `contracts.machine.Instance`; b"" for one that there is not, or no longer."""


class VolumeAnchor(msgspec.Struct, frozen=True, array_like=True):
    """The encoded anchor transaction (b"" if there is none) and its height."""

    tx: bytes
    height: int


class AnchorQuery(msgspec.Struct, frozen=True, array_like=True):
    """Anchors with sequence numbers from `first` on, at most `count` (1 to 256)."""

    key: bytes
    first: int
    count: int


class AnchorList(msgspec.Struct, frozen=True, array_like=True):
    """Anchors, oldest first."""

    anchors: tuple[VolumeAnchor, ...]


class BlockQuery(msgspec.Struct, frozen=True, array_like=True):
    """Blocks of the best chain from height `first`, at most `count` (1 to 256)."""

    first: int
    count: int


class BlockList(msgspec.Struct, frozen=True, array_like=True):
    """Encoded blocks by ascending height."""

    blocks: tuple[bytes, ...]


class HeaderQuery(msgspec.Struct, frozen=True, array_like=True):
    """Headers of the best chain from height `first` (1 or more), at most `count` (1 to HEADERS_AT_ONCE)."""

    first: int
    count: int


class HeaderList(msgspec.Struct, frozen=True, array_like=True):
    """Encoded headers by ascending height; fewer than asked for at the tip."""

    headers: tuple[bytes, ...]


class NetworkInfo(msgspec.Struct, frozen=True, array_like=True):
    """The network document (`ledger.network`), and why a chain with more work is not followed (empty: there is none)."""

    document: bytes
    alarm: str


class FinalityQuery(msgspec.Struct, frozen=True, array_like=True):
    """Ask for the checkpoints, and for the stake of `peer` (b"": of none)."""

    peer: bytes
    with_voters: bool = False


class CheckpointInfo(msgspec.Struct, frozen=True, array_like=True):
    """A checkpoint of the best chain."""

    height: int
    id: bytes


class StakeInfo(msgspec.Struct, frozen=True, array_like=True):
    """What a peer has bonded, in the smallest unit."""

    peer: bytes
    amount: int
    weight: int
    """Its weight in the next set of voters; 0 once it leaves, or was suspended."""
    may_vote: bool
    """A vote of it for the newest checkpoint would count."""
    target: int
    """Height of the checkpoint that the best chain has its last vote for; 0: none."""
    release: int
    """Height at which the stake is paid back; 0: it stays."""
    is_burned: bool


class FinalityInfo(msgspec.Struct, frozen=True, array_like=True):
    """The checkpoints as the next block finds them; amounts in the smallest unit."""

    height: int
    """Of the tip."""
    interval: int
    """Blocks from one checkpoint to the next; 0: this network has none, and what follows says nothing."""
    final: CheckpointInfo
    justified: CheckpointInfo
    newest: CheckpointInfo
    front: int
    """Stake of the two sets of voters, and of those of them that have voted for the newest checkpoint."""
    rear: int
    front_votes: int
    rear_votes: int
    bonded: int
    """All weight now."""
    least_stake: int
    """Less stake than this makes nothing final."""
    stake: StakeInfo | None
    """That of the peer that was asked for."""
    voters: tuple[StakeInfo, ...]
    voter_count: int
    """Peers with a stake, also those beyond VOTERS_SHOWN; 0 unless they were asked for."""


class Miner(msgspec.Struct, frozen=True, array_like=True):
    """A miner elsewhere that works for this daemon."""

    name: str
    remote: str
    shares: int
    blocks: int
    hash_rate: float
    """Hashes per second, as its shares prove."""


class ServicesInfo(msgspec.Struct, frozen=True, array_like=True):
    """What the daemon does besides keeping its chain."""

    explorer: str
    """Address of its pages; empty: there are none."""
    work: str
    """Where miners of other machines get work; empty: nowhere."""
    workers: int
    """Mining processes of its own."""
    duty: int
    """Percent of one core that each of them may use."""
    hash_rate: float
    """Hashes per second of all who mine for it, while they last did."""
    miners: tuple[Miner, ...]


class Ban(msgspec.Struct, frozen=True, array_like=True):
    """An address whose calls are not taken, of IPv6 a /64, and until when (seconds since 1970)."""

    address: str
    until: int


class BanList(msgspec.Struct, frozen=True, array_like=True):
    """All of them that still hold, the one that ends first before the others."""

    bans: tuple[Ban, ...]


class BannedAddress(msgspec.Struct, frozen=True, array_like=True):
    """One of them, with or without a port; "" for all."""

    address: str
