"""What a local program asks a running storage peer over its control socket `peer-NAME` (framing: `wire.rpc`).

status: Empty -> PeerdStatus
announce: Announce -> Departing    leave, be away for some time, or stay; and what is still held
"""

from __future__ import annotations

from typing import Final

import msgspec

from fsdecloud.types import PeerId

HOLDERS_MAX: Final = 100
"""Deals that `Departing` names."""


class Announce(msgspec.Struct, frozen=True, array_like=True):
    """Say what this peer is about to do."""

    what: str
    """"leave", "maintenance", "stay", or "" to ask only."""
    seconds: int = 0
    """How long the maintenance takes."""


class Holder(msgspec.Struct, frozen=True, array_like=True):
    """A deal, and what this peer still holds for it."""

    deal: bytes
    shards: int
    size: int


class Departing(msgspec.Struct, frozen=True, array_like=True):
    """What a peer has announced, and what it would take with it."""

    reason: str
    """What clients are told: "leaving", "maintenance until ...", "" for nothing."""
    since: int
    """When it was announced, in seconds since 1970; 0 for never."""
    is_registered: bool
    """Whether the registry says so as well."""
    shards: int
    """Shards that somebody still wants, and their bytes."""
    size: int
    doomed_shards: int
    """Deleted, within their grace period."""
    holders: tuple[Holder, ...]
    """The deals with most bytes; what several deals hold counts for each."""


class DealsStatus(msgspec.Struct, frozen=True, array_like=True):
    """The deals of a peer with a price, as long as it remembers them; amounts in the smallest unit."""

    running: int
    ended: int
    """Over, and not buried deep enough yet to be forgotten."""
    size: int
    """Bytes that the running ones pay for."""
    earned: int
    """What both sides of each have signed."""
    paid: int
    """What those that run have been paid by the ledger; of one that ended everything has."""
    collateral: int
    """What is locked in those that run."""
    next_proof: int
    """Height at which the next period ends that has to be proved, 0 for none."""
    trouble: str
    """What a person should look at, "" for nothing."""


class PeerdStatus(msgspec.Struct, frozen=True, array_like=True):
    """One storage peer of this machine."""

    pid: int
    name: str
    id: PeerId
    url: str
    """Where others reach it."""
    network: bytes
    quota: int
    used: int
    """Bytes on disk in its shard segments."""
    free: int
    """Bytes it would still take: by quota and by the disk's free space."""
    shards: int
    connections: int
    registered_height: int
    """Height of the ledger's tip when its registration was last seen there, -1 before."""
    stored_shards: int
    stored_bytes: int
    served_shards: int
    served_bytes: int
    refused_shards: int
    """Since it was started."""
    doomed_shards: int
    """Shards that no owner wants any more, within their grace period."""
    dropped_shards: int
    """Shards that an owner gave up, removed from the disk, and grants refused: since it was started."""
    removed_shards: int
    refused_grants: int
    last_error: str
    reserve: int
    """Bytes of the disk that are left for everybody else."""
    requests: int
    received_bytes: int
    """Since it was started, of messages: without what TLS and the websocket add."""
    sent_bytes: int
    delays: int
    """How often a client had to wait for its rate."""
    refusals: tuple[tuple[str, int], ...]
    """Reason and how often: shards that were not taken, requests that failed, connections."""
    departure: str
    """What it announces: "leaving", "maintenance until ...", "" for nothing."""
    damaged_shards: int
    """Shards that are damaged on its disk and were not stored again."""
    damaged_found: int
    """Ever found."""
    scrub_started: int
    """When the pass under way began, 0 while none is; when the last ended, 0 for never: seconds since 1970."""
    scrub_finished: int
    scrub_shards: int
    """Shards and bytes read in this pass, or in the last."""
    scrub_bytes: int
    scrub_errors: int
    price: int
    """Smallest units for a GiB and 30 days, as it is registered; 0 where nothing is paid."""
    lease: int
    """Seconds for which a shard is kept that nobody renews."""
    renewed_shards: int
    """Leases renewed since it was started."""
    expiring_shards: int
    """Shards with a lease that ends within an eighth of that, and with one that is over, within their grace period."""
    expired_shards: int
    removed_expired: int
    """Shards removed since it was started because nobody renewed their leases."""
    departure_since: int
    """When it announced its departure, 0 for never, and how many shards were wanted then, 0 if that is not known."""
    departure_shards: int
    forwarded_requests: int = 0
    """Requests of clients that were passed on to other peers and answered, and bytes of both; since it was started."""
    forwarded_bytes: int = 0
    known_peers: int = 0
    """Other peers in its address book, and those of them that it has had a connection with."""
    tested_peers: int = 0
    operator: bytes = b""
    """Key of the operator that it declares, or that the ledger names while it declares nothing itself; b"" for none."""
    is_operator_registered: bool = False
    """Whether the ledger was last seen to say the same."""
    stake: int = 0
    """What it has bonded, in the smallest unit, as the ledger was last seen to have it; 0 where there is no stake."""
    stake_weight: int = 0
    """Its weight in the next set of voters, and the height at which the stake is paid back, 0 while it stays."""
    stake_release: int = 0
    is_stake_burned: bool = False
    last_vote: int = 0
    """Height of the checkpoint that it wrote down a vote for last; 0: none."""
    deals: DealsStatus | None = None
    """None where it makes none: it stores for nothing."""
