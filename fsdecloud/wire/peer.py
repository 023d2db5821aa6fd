"""What a client and a storage peer say to each other over a websocket (subprotocol "decloud-peer/2").

    server -> client  Challenge    who I am, which versions I speak, a nonce, my certificate's hash
    client -> server  Hello        versions, the deal's key, the key that may delete, a nonce, a signature over all that
                                   both said; or no key, to read
    server -> client  Welcome      the window, whether this deal may store, free space
    then, in any order, each request with a number greater than the one before:
    client -> server  Put Get Has Info Delete Forward Peers Renew Fund Revise Attest
    server -> client  PutDone Data HasResult InfoResult DeleteDone Forwarded PeersResult RenewDone DealState Attested, or
                      Error: one answer for each request, in any order

Storing needs the deal's key. Reading needs nothing: knowing a shard's id is the right to read it. A receipt names exactly
the shards that are durable; the others of the same Put stand in `refused`, each with its reason. Deleting needs a grant
that the owner signed (`wire.grants`) with the key that the deal showed when it stored its first shard. A shard is kept for
the term that its receipt says; Renew begins that anew for many shards at once. Forward hands a request to a peer that is to
see that another one gets it (`wire.forwarding`); Peers asks who else there is (`wire.announcements`). Fund, Revise and Attest
are about a deal that is paid for (`wire.deals`).

Flow control: a client leaves at most `Welcome.window` shard bytes of Puts and REQUESTS_MAX requests unanswered. Who exceeds
them, or sends what the state does not allow, is dropped.

Pure, messages and their limits only; fsdecloud-protocol(7) describes them for others, tests/vectors/peer.json has an example
of each. Not here: who may say what when (`wire.session`), connections (`net.pool`, `peerd.server`), what is stored
(`store.shards`).
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from fsdecloud.limits import KIB, MESSAGE_MAX
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire.deals import Attest as Attest
from fsdecloud.wire.deals import Attested as Attested
from fsdecloud.wire.deals import Dealing as Dealing
from fsdecloud.wire.deals import DealState as DealState
from fsdecloud.wire.deals import Fund as Fund
from fsdecloud.wire.deals import Revise as Revise
from fsdecloud.wire.grants import GRANT_SHARDS_MAX, GRANT_SIZE_MAX
from fsdecloud.wire.receipts import LEASE_TERM, ShardItem, sign_receipt

SUBPROTOCOL: Final = "decloud-peer/2"
"""Names the form of the handshake, up to Welcome; what follows has a version that the handshake agrees on."""

VERSION: Final = 5
OLDEST: Final = 5
"""The versions that this release speaks: from OLDEST to VERSION."""

SHARDS_MAX: Final = 1024
"""Shards in one Put."""

IDS_MAX: Final = 4096
"""Ids in one Has or Renew."""

RECEIPT_MAX: Final = 256 * KIB
"""Bytes of one receipt: 40 for each of IDS_MAX shards, with room to spare."""

PUT_BYTES_MAX: Final = MESSAGE_MAX - 64 * KIB
"""Shard bytes in one Put: what a message holds besides ids and lengths."""

REQUESTS_MAX: Final = 64
"""Unanswered requests on one connection."""

BODY_MAX: Final = MESSAGE_MAX - 8 * KIB
"""Bytes of a request or answer that is forwarded: any Put fits, and what is around it too."""

HOPS_MAX: Final = 3
"""Further peers that a Forward may pass through on its way to one that reaches its target."""

PATIENCE_MAX: Final = 60_000
"""Milliseconds that a Forward may wait for its answer."""

ANNOUNCEMENTS_MAX: Final = 64
"""Peers named in one answer: a bucket's worth of several networks, in under 64 KiB."""

ANNOUNCEMENT_SIZE_MAX: Final = 1024

TEXT_MAX: Final = 500

LEAVING: Final = "leaving"
MAINTENANCE: Final = "maintenance"
"""Reasons that a peer admits nothing: it leaves the network and waits until its shards were moved; or it will be away, and
the word is followed by " until " and the time in seconds since 1970."""

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Number = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """First word of the server. A later release may add fields at the end: they are ignored here, and signed as all of it."""

    newest: Number
    oldest: Number
    """The protocol versions that the server speaks, both ends included."""
    network: Bytes32
    """Genesis id: peers and clients of another network part here."""
    peer: Bytes32
    nonce: Bytes32
    certificate_hash: Bytes32


class HelloTerms(msgspec.Struct, frozen=True, array_like=True):
    """What a client says of itself. A later release may add fields at the end: they are ignored here, and signed."""

    newest: Number
    oldest: Number
    """The protocol versions that the client speaks, both ends included."""
    network: Bytes32
    nonce: Bytes32
    deal: Annotated[bytes, Meta(max_length=32)]
    """Public key of the deal, or b"" to read only."""
    owner: Annotated[bytes, Meta(max_length=32)]
    """Public key whose grants may delete what the deal stores, or b"": nothing of it is ever deleted."""


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """First word of the client."""

    terms: bytes
    """Encoded HelloTerms."""
    signature: Annotated[bytes, Meta(max_length=64)]
    """By the deal's key over the Challenge's frame and `terms`, byte for byte; b"" without a deal."""


class Welcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """The server serves this client."""

    window: Annotated[int, Meta(ge=MESSAGE_MAX, le=1 << 30)]
    """Shard bytes that may be unanswered."""
    admitted: bool
    """Whether this client's Puts are taken."""
    free: Number
    """Bytes the peer would still take."""
    reason: Text
    """Why it is not admitted; empty if it is."""


class Shard(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A shard on its way to a peer. `data` decoded is a view into the message."""

    id: Bytes32
    data: memoryview


class Put(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=10):
    """Store shards."""

    request: Number
    shards: Annotated[tuple[Shard, ...], Meta(min_length=1, max_length=SHARDS_MAX)]


class Get(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=11):
    """Read `length` bytes (0: all) of a shard from `offset`."""

    request: Number
    shard: Bytes32
    offset: Annotated[int, Meta(ge=0, le=MESSAGE_MAX)]
    length: Annotated[int, Meta(ge=0, le=MESSAGE_MAX)]


class Has(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=12):
    """Ask which shards are there."""

    request: Number
    ids: Annotated[tuple[Bytes32, ...], Meta(max_length=IDS_MAX)]


class Info(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=13):
    """Ask how the peer is."""

    request: Number


class Delete(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=14):
    """Let go of the shards of a grant."""

    request: Number
    grant: Annotated[bytes, Meta(max_length=GRANT_SIZE_MAX)]
    """Encoded `wire.grants.Grant`."""


class Forward(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=15):
    """See that another peer gets a request, and pass its answer on."""

    request: Number
    target: Bytes32
    """The peer that the request is for: its id, never its address."""
    nonce: Bytes32
    """Random; names this request on its whole way, so that no peer takes it twice."""
    hops: Annotated[int, Meta(ge=0, le=HOPS_MAX)]
    """Through how many further peers it may go when the receiver does not reach the target itself."""
    patience: Annotated[int, Meta(ge=1, le=PATIENCE_MAX)]
    """Milliseconds after which the answer is of no use; less at each hop."""
    deal: Annotated[bytes, Meta(max_length=32)]
    """Public key of the deal with the target, or b"" to read only."""
    owner: Annotated[bytes, Meta(max_length=32)]
    """As in a Hello."""
    expires: Number
    """Seconds since 1970 until when the signature holds; 0 without a deal."""
    signature: Annotated[bytes, Meta(max_length=64)]
    """By the deal's key (`wire.forwarding`), b"" without a deal."""
    body: memoryview
    """An encoded request of `Direct` with the number 0, at most BODY_MAX bytes. Decoded, a view into the message."""


class Peers(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=16):
    """Ask for other peers."""

    request: Number
    count: Annotated[int, Meta(ge=0, le=ANNOUNCEMENTS_MAX)]
    """How many are wanted at most."""
    own: Annotated[bytes, Meta(max_length=ANNOUNCEMENT_SIZE_MAX)]
    """The asker's own announcement, if it is a peer that wants to be known, or b""."""


class Renew(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=17):
    """Keep shards that this deal stored for another term."""

    request: Number
    ids: Annotated[tuple[Bytes32, ...], Meta(min_length=1, max_length=IDS_MAX)]


class Refusal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A shard that was not stored, and why."""

    id: Bytes32
    reason: Text


class PutDone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=20):
    """Answer to Put."""

    request: Number
    receipt: Annotated[bytes, Meta(max_length=RECEIPT_MAX)]
    """Encoded `wire.receipts.Receipt` of what is durable; b"" when that is nothing."""
    refused: Annotated[tuple[Refusal, ...], Meta(max_length=SHARDS_MAX)]


class Data(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=21):
    """Answer to Get."""

    request: Number
    data: bytes


class HasResult(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=22):
    """Answer to Has: one truth for each id, in its order."""

    request: Number
    present: Annotated[tuple[bool, ...], Meta(max_length=IDS_MAX)]


class InfoResult(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=23):
    """Answer to Info."""

    request: Number
    release: Text
    admitted: bool
    reason: Text
    quota: Number
    used: Number
    free: Number
    shards: Number


class DeleteDone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=24):
    """Answer to a Delete whose grant holds: this deal has no claim any more on its shards, but for those kept."""

    request: Number
    kept: Annotated[tuple[Refusal, ...], Meta(max_length=GRANT_SHARDS_MAX)]


class Forwarded(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=25):
    """Answer to Forward: what the target answered to its body."""

    request: Number
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    """By the target's key (`wire.forwarding`)."""
    body: memoryview
    """The encoded answer, with the number 0."""


class PeersResult(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=26):
    """Answer to Peers."""

    request: Number
    announcements: Annotated[
        tuple[Annotated[bytes, Meta(max_length=ANNOUNCEMENT_SIZE_MAX)], ...], Meta(max_length=ANNOUNCEMENTS_MAX)
    ]
    """Encoded `wire.announcements.Announcement`s."""


class RenewDone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=27):
    """Answer to Renew."""

    request: Number
    receipt: Annotated[bytes, Meta(max_length=RECEIPT_MAX)]
    """Encoded `wire.receipts.Receipt` of those that are kept; b"" when that is none. The others are not here, or not this
    deal's."""


class Error(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=30):
    """Answer to a request that cannot be fulfilled."""

    request: Number
    code: Annotated[str, Meta(max_length=32)]
    """"missing": no such shard; "lost": it was here and is damaged or gone; "range": the shard is shorter; "refused": not
    for this client, or a grant that does not hold; "busy": too many deletions, forwards or proofs, later; "failed": our fault;
    and of a Forward that found no answer, "unreachable": nobody here reaches the target; "late": not within its patience;
    "loop": it was here before."""
    text: Text


Direct: TypeAlias = Put | Get | Has | Info | Delete | Renew | Dealing
"""What can be forwarded."""
Request: TypeAlias = Direct | Forward | Peers
DirectAnswer: TypeAlias = (
    PutDone | Data | HasResult | InfoResult | DeleteDone | RenewDone | DealState | Attested | Error
)
Answer: TypeAlias = DirectAnswer | Forwarded | PeersResult
ToServer: TypeAlias = Hello | Request
ToClient: TypeAlias = Challenge | Welcome | Answer

ANSWERS: Final[dict[type, type]] = {
    Put: PutDone,
    Get: Data,
    Has: HasResult,
    Info: InfoResult,
    Delete: DeleteDone,
    Forward: Forwarded,
    Peers: PeersResult,
    Renew: RenewDone,
    Fund: DealState,
    Revise: DealState,
    Attest: Attested,
}
"""What answers each request, if not an Error."""


def put_size(request: Put) -> int:
    """Return the shard bytes of a Put."""
    return sum(shard.data.nbytes for shard in request.shards)


def window_size(request: Request) -> int:
    """Return the bytes that a request counts against the window."""
    if isinstance(request, Put):
        return put_size(request)
    return request.body.nbytes if isinstance(request, Forward) else 0


def answer_count(request: Request) -> int:
    """Return how many things a request asks for, which its answer may have: see `wrong_count`."""
    if isinstance(request, Put):
        return len(request.shards)
    if isinstance(request, Has | Renew):
        return len(request.ids)
    return request.count if isinstance(request, Peers) else 0


def wrong_count(answer: Answer, count: int) -> str:
    """Return what is wrong with an answer to a request for `count` things, "" for nothing."""
    if isinstance(answer, HasResult) and len(answer.present) != count:
        return f"{len(answer.present)} answers to {count} questions"
    if isinstance(answer, PutDone) and len(answer.refused) > count:
        return f"{len(answer.refused)} of {count} shards refused"
    if isinstance(answer, PeersResult) and len(answer.announcements) > count:
        return f"{len(answer.announcements)} peers where {count} were wanted"
    return ""


def receipt_for(
    seed: bytes, peer: PeerId, deal: bytes, time: int, shards: list[tuple[bytes, int]], term: int = LEASE_TERM
) -> bytes:
    """Return the encoded receipt for shards (id, length) kept for `term` seconds, b"" for none."""
    if not shards:
        return b""
    items = tuple(ShardItem(ShardId(shard), length) for shard, length in shards)
    return sign_receipt(seed, peer, deal, time, items, term)
