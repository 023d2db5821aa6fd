"""What driver and agent say to each other over their socket pair (framing: `wire.rpc`).

Two worlds: the driver knows entries and their keys, the agent knows blobs, shards and peers. Bulk data never crosses:
staged entries are read by the agent from the driver's staged segments, fetched ones are appended by the agent to cache
segments; only entries up to SMALL_ENTRY travel inline.

Calls, driver to agent (method: parameters -> result):

    hello: AgentHello -> AgentReady            first call; everything else is refused before it
    store: StoreEntries -> Empty               queue staged entries; idempotent; answers at once. `Stored` notices follow.
    flush: Empty -> Empty                      close the open pack now and do not wait for more small entries
    fetch: FetchEntry -> FetchedEntry          get one sealed entry, verified against its id
    commit_map: Empty -> MapCommit             write the pending locations into the location map, stored on peers
    store_manifest: StoreManifest -> Holders   store the manifest as whole copies, on n-k+1 distinct peers
    submit: SubmitAnchor -> Empty              put an anchor transaction into the durable outbox
    ledger_volume: Empty -> LedgerVolume       the latest anchor of the volume in the ledger
    registry: Empty -> Registry                the peers known through the ledger
    redundancy: WantedRedundancy -> Empty      store new blobs with this redundancy from now on
    gc_begin: Empty -> Empty                   a collection of garbage begins: the driver marks after this
    gc_sweep: GcSweep -> GcSwept               condemn what is not marked
    gc_grant: Empty -> GcGranted               have peers delete what is final; `sign_grant` calls come meanwhile
    gc_end: Empty -> Empty                     it is over
    known: EntryNames -> EntryNames            which of these entries (up to KNOWN_MAX) the location map does not know
    unreachable: ReachQuery -> EntryNames      which of these entries (up to KNOWN_MAX) the peers that answer cannot give
    shards: ShardQuery -> ShardPage            ask the peers which shards of some blobs they have; repeat from `following`
    receipts: ShardQuery -> ReceiptPage        check the receipts that are kept of some blobs; repeat from `following`
    status: Empty -> AgentStatus

Calls, agent to driver:

    grant_key: PeerName -> GrantKey            the public key that signs deletions at a peer, for the peer to know
    sign_grant: SignGrant -> SignedGrant       sign a deletion; only during a collection, after marking

Notices, agent to driver:

    stored: Stored                             a blob reached a new level of receipts
    anchored: Anchored                         the outbox's anchor is in a block (or no longer: height None)
    ledger_tip: LedgerTip                      the ledger daemon has a new tip
    garbage: GarbageFinal                      an anchor is final: what may be deleted now, after marking once more
    repaired: Repaired                         blobs have shards at new places, which an anchor should name
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from fsdecloud.types import BlobId, EntryId, PeerId, ShardId, TxId

GRANT_LIFE = 120
"""Seconds for which a deletion that the driver signs holds: it is sent at once."""

KNOWN_MAX = 1024
"""Entries in one `known` or `unreachable`."""


class Empty(msgspec.Struct, frozen=True, array_like=True):
    """Nothing to say."""


class AgentHello(msgspec.Struct, frozen=True, array_like=True):
    """What the agent may know. It gets no sealing key and no ledger signing key."""

    volume: bytes
    """Volume id, 32 bytes: whose anchors to watch."""
    deal_secret: bytes
    """Derives one Ed25519 seed per peer (`crypto.keys.deal_seed`): the right to store."""
    repair_secret: bytes
    """Derives the placement secret and the location map's sealing secret (`crypto.keys.RepairKeys`)."""
    state_dir: str
    """The agent's own directory (journal, location map nodes); made if missing."""
    staged_dir: str
    """Where the driver's staged segments lie (`store.segments`, read only)."""
    cache_dir: str
    """Where to append fetched entries (`store.segments`, prefix "fetched"); made if missing."""
    ledger_socket: str
    """The ledger daemon's socket."""
    network: bytes
    """Genesis id of the ledger network, 32 bytes; peers of another network are refused."""
    redundancy: str
    """"auto" or "k/n"."""
    map_root: bytes
    """Root of the last anchored location map (64-byte reference), b"" for a new volume. Used when the agent's own state
    is missing or older (a new machine)."""
    host_map: bytes
    """The manifest's encoded host map (`swarm.hostmap`), b"" for a new volume."""
    map_sequence: int
    """Sequence number of the anchor that `map_root` comes from; 0 for a new volume."""
    repair: bool = False
    """Audit peers and repair blobs: the mount that writes the volume has its agent do it."""
    up: int = 0
    down: int = 0
    """Limits of the traffic with peers, bytes per second; 0 for none."""
    bootstrap: tuple[str, ...] = ()
    """Addresses of peers to ask for others, besides those of the registry."""
    lan: bool = False
    """Listen for peers on the same link (`net.lan`)."""
    wallet: bytes = b""
    """The public key that pays for deals, b"" for a mount that makes none. Its secret stays with the driver."""
    budget: int = 0
    """What may be locked up in deals within a month, in the smallest unit."""


class WantedRedundancy(msgspec.Struct, frozen=True, array_like=True):
    """What `swarm.policy.parse_redundancy` understands: "auto" or "k/n"."""

    redundancy: str


class Bandwidth(msgspec.Struct, frozen=True, array_like=True):
    """Limits of the traffic with peers, bytes per second; 0 for none, None to leave one as it is."""

    up: Annotated[int, msgspec.Meta(ge=0)] | None = None
    down: Annotated[int, msgspec.Meta(ge=0)] | None = None


class PeerName(msgspec.Struct, frozen=True, array_like=True):
    """One peer."""

    id: PeerId


class GrantKey(msgspec.Struct, frozen=True, array_like=True):
    """The public key of the driver's deletions at one peer (`crypto.keys.grant_seed`), 32 bytes."""

    key: bytes


class AgentReady(msgspec.Struct, frozen=True, array_like=True):
    """The agent serves."""

    pid: int


class StagedEntry(msgspec.Struct, frozen=True, array_like=True):
    """One sealed entry in a staged segment."""

    id: EntryId
    segment: int
    offset: int
    length: int


class StoreEntries(msgspec.Struct, frozen=True, array_like=True):
    """Entries to store, oldest first."""

    entries: tuple[StagedEntry, ...]


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """One blob and the receipts it has. Sent when it becomes anchorable (k + ceil((n-k)/2) distinct peers) and when it
    is complete (n). The driver verifies `receipts` (`wire.receipts.verify_receipt`) before it believes them."""

    blob: BlobId
    k: int
    n: int
    shards: tuple[ShardId, ...]
    entries: tuple[EntryId, ...]
    receipts: tuple[bytes, ...]
    """Encoded `wire.receipts.Receipt`s that together cover the shards."""


class FetchEntry(msgspec.Struct, frozen=True, array_like=True):
    """Ask for one entry."""

    id: EntryId
    ahead: bool
    """True for read-ahead: foreground requests go first."""
    holders: tuple[PeerId, ...] = ()
    """Not empty: a whole copy that is in no location map (a manifest); ask these peers first, then all others."""


class FetchedEntry(msgspec.Struct, frozen=True, array_like=True):
    """The sealed bytes inline, or where they lie in the agent's cache segments (`data` is then empty)."""

    data: bytes
    segment: int
    offset: int
    length: int


class MapCommit(msgspec.Struct, frozen=True, array_like=True):
    """The location map as of now, complete on the peers."""

    map_root: bytes
    """64-byte reference of its root node, b"" while it is empty."""
    host_map: bytes
    host_map_copy: bytes = b""
    """64-byte reference of the host map, which is stored as whole copies too, for repair keys, and up to three holders."""
    holders: tuple[PeerId, ...] = ()


class StoreManifest(msgspec.Struct, frozen=True, array_like=True):
    """The sealed manifest (up to BLOB_MAX)."""

    data: bytes


class Holders(msgspec.Struct, frozen=True, array_like=True):
    """Who holds the manifest; at least one, best first."""

    peers: tuple[PeerId, ...]
    receipts: tuple[bytes, ...]


class SubmitAnchor(msgspec.Struct, frozen=True, array_like=True):
    """A signed anchor (encoded ledger transaction) for the outbox; it replaces an unanchored one of the same sequence."""

    tx: bytes
    sequence: int
    map_root: bytes = b""
    """The location map that its manifest names."""


class Anchored(msgspec.Struct, frozen=True, array_like=True):
    """Where the anchor with this sequence number stands."""

    sequence: int
    tx: TxId
    height: int | None
    error: str
    """Why the ledger refuses it; empty if it does not."""


class GcSweep(msgspec.Struct, frozen=True, array_like=True):
    """The driver's marks (`fs.marks`), in a file in the agent's state directory."""

    marks: str
    dry_run: bool


class GcSwept(msgspec.Struct, frozen=True, array_like=True):
    """What a sweep found. Bytes of entries before coding, but for `condemned_bytes`, which peers will give back."""

    live_entries: int
    live_bytes: int
    dead_entries: int
    dead_bytes: int
    condemned_blobs: int
    condemned_bytes: int
    is_complete: bool
    """False when the next collection will find more."""
    repack: tuple[EntryId, ...]
    """Live entries of packs that are mostly dead: stage them again."""


class GcGranted(msgspec.Struct, frozen=True, array_like=True):
    """What peers have deleted, and how many shards wait for peers that do not answer."""

    shards: int
    bytes: int
    waiting: int


class GrantBlob(msgspec.Struct, frozen=True, array_like=True):
    """Shards of one blob to be deleted, and the entries that lay in it (none for a node of the location map)."""

    blob: BlobId
    entries: tuple[EntryId, ...]
    shards: tuple[ShardId, ...]


class SignGrant(msgspec.Struct, frozen=True, array_like=True):
    """Ask for a deletion at one peer."""

    peer: PeerId
    blobs: tuple[GrantBlob, ...]


class SignedGrant(msgspec.Struct, frozen=True, array_like=True):
    """The encoded grant (`wire.grants`), b"" for none, and the blobs that are no part of it: they are in use."""

    grant: bytes
    refused: tuple[BlobId, ...]


class SignPayment(msgspec.Struct, frozen=True, array_like=True):
    """Ask for a transfer from the volume's wallet to the key of the deals with a peer."""

    peer: PeerId
    amount: Annotated[int, msgspec.Meta(ge=1)]
    fee: Annotated[int, msgspec.Meta(ge=0)]
    nonce: Annotated[int, msgspec.Meta(ge=0)]


class SignedPayment(msgspec.Struct, frozen=True, array_like=True):
    """The encoded transfer. It is recorded already."""

    tx: bytes


class NotePayment(msgspec.Struct, frozen=True, array_like=True):
    """An encoded transfer from the key of the deals with a peer back to the wallet: it is to be recorded."""

    peer: PeerId
    tx: bytes


class DealInfo(msgspec.Struct, frozen=True, array_like=True):
    """One storage deal; amounts in the smallest unit."""

    peer: PeerId
    contract: bytes
    state: str
    """"forming", "waiting" (for the peer's collateral), "running", "disputed" (the peer has to prove on the chain), "ending"
    (another one follows, or its time is over), or "over"."""
    size: int
    """Bytes that the newest revision of both names."""
    price: int
    """For a GiB and a month."""
    escrow: int
    earned: int
    """By the peer, as both have signed or the chain has paid."""
    ends: int
    """Height at which its last period ends."""
    ends_in: int
    """Seconds until then, if blocks come as they should."""
    problem: str
    """What is wrong, "" for nothing."""


class DealsStatus(msgspec.Struct, frozen=True, array_like=True):
    """All storage deals of a volume; amounts in the smallest unit."""

    budget: int = 0
    deals: tuple[DealInfo, ...] = ()
    monthly: int = 0
    """What is stored in deals costs for a month."""
    earned: int = 0
    """By the peers of these deals."""
    locked: int = 0
    """In their escrows."""
    waiting: int = 0
    """Bytes that no revision names yet."""
    warnings: tuple[str, ...] = ()


class Budget(msgspec.Struct, frozen=True, array_like=True):
    """What may be locked up in deals within a month, in the smallest unit."""

    amount: Annotated[int, msgspec.Meta(ge=0)]


class EntryNames(msgspec.Struct, frozen=True, array_like=True):
    """Some entries."""

    entries: tuple[EntryId, ...]


class ReachQuery(msgspec.Struct, frozen=True, array_like=True):
    """Some entries that are not on this machine; with `probe`, all peers are asked for a sign of life before."""

    entries: tuple[EntryId, ...]
    probe: bool = False


class ShardQuery(msgspec.Struct, frozen=True, array_like=True):
    """Look at the blobs after this one; b"" begins."""

    after: bytes


class BlobShards(msgspec.Struct, frozen=True, array_like=True):
    """A blob that lacks shards: of n stored, any k of which give it, peers have `present`, and `silent` are with peers that did
    not answer. n counts what peers gave receipts for."""

    blob: BlobId
    k: int
    n: int
    present: int
    silent: int


class ShardPage(msgspec.Struct, frozen=True, array_like=True):
    """What the peers say: of so many blobs, all but those in `short` have what they should. `following` b"": no more."""

    blobs: int
    under_way: int
    """Blobs whose upload goes on: not all their shards were sent yet, and the staging area has what is in them."""
    short: tuple[BlobShards, ...]
    following: bytes


class WrongReceipts(msgspec.Struct, frozen=True, array_like=True):
    """A blob whose kept receipts are not what they should be, and why."""

    blob: BlobId
    reason: str


class ReceiptPage(msgspec.Struct, frozen=True, array_like=True):
    """Of so many receipts that the agent keeps, what is wrong. `following` b"": no more."""

    receipts: int
    wrong: tuple[WrongReceipts, ...]
    following: bytes


class GarbageFinal(msgspec.Struct, frozen=True, array_like=True):
    """The blobs that are to be deleted; nodes of the map, which come with every anchor, are not counted."""

    blobs: int
    """How many may be deleted now."""
    pending: int
    """How many wait for the ledger."""


class LedgerTip(msgspec.Struct, frozen=True, array_like=True):
    """The ledger daemon's tip; height -1 while there is no daemon."""

    height: int
    time: int


class LedgerVolume(msgspec.Struct, frozen=True, array_like=True):
    """The latest anchor of the volume on the best chain: its encoded transaction, b"" if there is none."""

    tx: bytes
    height: int


class RegistryPeer(msgspec.Struct, frozen=True, array_like=True):
    """A registered peer, in registry order (its index is its place)."""

    id: PeerId
    url: str
    capacity: int
    sequence: int = 0
    """Of its registration: when it was made, in seconds since 1970; 0 when a daemon of an earlier release answers."""
    operator: bytes = b""
    """The key under which it declares to be run together with others (`ledger.transactions.Operate`); b"" for none."""
    price: int = 0
    """Smallest units for a GiB and 30 days; 0 where nothing is paid."""


class Registry(msgspec.Struct, frozen=True, array_like=True):
    """All registered peers."""

    peers: tuple[RegistryPeer, ...]


class PeerState(msgspec.Struct, frozen=True, array_like=True):
    """One peer of the volume's host map as the agent sees it."""

    id: PeerId
    url: str
    state: str
    """"up", "down", "refusing", "leaving" (it can be read from), "corrupt" (it sent wrong bytes) or "distrusted" (it fails
    audits)."""
    failures: int
    corrupt: int
    """How often it sent bytes that are not what their id says."""
    stored_bytes: int
    fetched_bytes: int
    evidence: tuple[str, ...] = ()
    """The latest of its wrong answers: which shard was asked for, and what came instead."""
    way: bytes = b""
    """The peer by way of which it is reached, while it is not reached directly; b"" else."""


class RecodingStatus(msgspec.Struct, frozen=True, array_like=True):
    """What is still stored with another redundancy than the volume has now, and what was changed."""

    k: int = 0
    n: int = 0
    """What is stored is to have this redundancy; 0 for none: with `auto`, until enough peers have been there for long."""
    blobs: int = 0
    bytes: int = 0
    """Still stored otherwise; bytes before coding."""
    waiting: int = 0
    """Of these blobs, those for which there were too few peers when they had their turn."""
    done_blobs: int = 0
    done_bytes: int = 0
    """Coded anew since the agent started; bytes before coding."""
    last_error: str = ""
    is_counted: bool = False
    """False while it is not known yet how many blobs are stored otherwise."""


class RepairStatus(msgspec.Struct, frozen=True, array_like=True):
    """How whole the stored blobs are, and what is done about it. All zero in an agent that does not repair."""

    blobs: int = 0
    """Blobs of the location map that were looked at last."""
    degraded: int = 0
    """Of these, those that lack shards and do not only wait for peers that went a short time ago."""
    endangered: int = 0
    """Of these, those at or below the threshold of repair."""
    unreadable: int = 0
    """Of these, those with fewer than k: they come back with their peers only."""
    waiting: int = 0
    """Blobs for whose shards there is no peer at the moment."""
    moving: int = 0
    """Blobs that lack nothing, but have shards with peers that leave."""
    repaired_blobs: int = 0
    repaired_shards: int = 0
    repaired_bytes: int = 0
    """Shards made again since the agent started."""
    audits_passed: int = 0
    audits_failed: int = 0
    contained: int = 0
    """Shards that a peer did not give and is asked for again before that counts."""
    is_surveying: bool = False
    last_error: str = ""
    away: int = 0
    """Blobs that lack nothing but what peers have that went a short time ago: they are whole when those return."""
    recoding: RecodingStatus = RecodingStatus()


class Repaired(msgspec.Struct, frozen=True, array_like=True):
    """Blobs have shards at new places: the next anchor should have the location map that says so."""

    blobs: int
    """How many since the last notice; 0: some before the agent started."""
    redundancy: str = ""
    """They lacked nothing, and are stored with this redundancy now."""


class AgentStatus(msgspec.Struct, frozen=True, array_like=True):
    """What `decloud status` shows of the network side."""

    pid: int
    peers: tuple[PeerState, ...]
    k: int
    n: int
    warning: str
    queued_entries: int
    queued_bytes: int
    partial_blobs: int
    """Blobs with fewer than n receipts."""
    uploaded_bytes: int
    downloaded_bytes: int
    """Shard bytes since the agent started."""
    fetched_entries: int
    outbox: int
    ledger_height: int
    ledger_pid: int
    last_error: str
    condemned_blobs: int = 0
    """Blobs that are to be deleted, and have not been everywhere."""
    freed_bytes: int = 0
    """Bytes that peers were told to delete, and took, since the agent started."""
    repair: RepairStatus = RepairStatus()
    deals: DealsStatus = DealsStatus()
