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
    gc_begin: Empty -> Empty                   a collection of garbage begins: the driver marks after this
    gc_sweep: GcSweep -> GcSwept               condemn what is not marked
    gc_grant: Empty -> GcGranted               have peers delete what is final; `sign_grant` calls come meanwhile
    gc_end: Empty -> Empty                     it is over
    known: EntryNames -> EntryNames            which of these entries (up to KNOWN_MAX) the location map does not know
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
"""

from __future__ import annotations

import msgspec

from fsdecloud.types import BlobId, EntryId, PeerId, ShardId, TxId

GRANT_LIFE = 120
"""Seconds for which a deletion that the driver signs holds: it is sent at once."""

KNOWN_MAX = 1024
"""Entries in one `known`."""


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


class EntryNames(msgspec.Struct, frozen=True, array_like=True):
    """Some entries."""

    entries: tuple[EntryId, ...]


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


class Registry(msgspec.Struct, frozen=True, array_like=True):
    """All registered peers."""

    peers: tuple[RegistryPeer, ...]


class PeerState(msgspec.Struct, frozen=True, array_like=True):
    """One peer of the volume's host map as the agent sees it."""

    id: PeerId
    url: str
    state: str
    """"up", "down", "refusing" or "corrupt" (it sent wrong bytes)."""
    failures: int
    corrupt: int
    """How often it sent bytes that are not what their id says."""
    stored_bytes: int
    fetched_bytes: int


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
