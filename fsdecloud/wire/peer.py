"""What a client and a storage peer say to each other over a websocket (subprotocol "decloud-peer/1").

    server -> client  Challenge    who I am, a nonce, my certificate's hash
    client -> server  Hello        the deal's key, the key that may delete, a nonce, a signature over all; or no key, to read
    server -> client  Welcome      the window, whether this deal may store, free space
    then, in any order, each request with a number greater than the one before:
    client -> server  Put Get Has Info Delete
    server -> client  PutDone Data HasResult InfoResult DeleteDone, or Error: one answer for each request, in any order

Storing needs the deal's key. Reading needs nothing: knowing a shard's id is the right to read it. A receipt names exactly
the shards that are durable; the others of the same Put stand in `refused`, each with its reason. Deleting needs a grant
that the owner signed (`wire.grants`) with the key that the deal showed when it stored its first shard.

Flow control: a client leaves at most `Welcome.window` shard bytes of Puts and REQUESTS_MAX requests unanswered. Who exceeds
them, or sends what the state does not allow, is dropped.

The signature covers protocol version, network, peer id, certificate hash, both nonces and the deal's key, so that nothing
of a recorded session is worth anything in another one (fault 86), and nobody can stand in between.

Pure. `ServerSession` and `ClientSession` are the two state machines; bytes in, messages out. Not here: connections
(`net.pool`, `peerd.server`), what is stored (`store.shards`).
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import LocalProtocolError, MalformedError, RemoteProtocolError, SealError
from fsdecloud.limits import KIB, MESSAGE_MAX
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire.grants import GRANT_SHARDS_MAX, GRANT_SIZE_MAX
from fsdecloud.wire.receipts import ShardItem, sign_receipt

SUBPROTOCOL: Final = "decloud-peer/1"
VERSION: Final = 2
DOMAIN: Final = b"fsdecloud hello v1"

SHARDS_MAX: Final = 1024
"""Shards in one Put."""

IDS_MAX: Final = 4096
"""Ids in one Has."""

PUT_BYTES_MAX: Final = MESSAGE_MAX - 64 * KIB
"""Shard bytes in one Put: what a message holds besides ids and lengths."""

REQUESTS_MAX: Final = 64
"""Unanswered requests on one connection."""

TEXT_MAX: Final = 500

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Number = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]


class Challenge(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """First word of the server."""

    version: Number
    network: Bytes32
    """Genesis id: peers and clients of another network part here."""
    peer: Bytes32
    nonce: Bytes32
    certificate_hash: Bytes32


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """First word of the client."""

    version: Number
    network: Bytes32
    deal: Annotated[bytes, Meta(max_length=32)]
    """Public key of the deal, or b"" to read only."""
    nonce: Bytes32
    signature: Annotated[bytes, Meta(max_length=64)]
    owner: Annotated[bytes, Meta(max_length=32)] = b""
    """Public key whose grants may delete what the deal stores, or b"": nothing of it is ever deleted."""


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


class Refusal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A shard that was not stored, and why."""

    id: Bytes32
    reason: Text


class PutDone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=20):
    """Answer to Put."""

    request: Number
    receipt: Annotated[bytes, Meta(max_length=256 * KIB)]
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


class Error(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=30):
    """Answer to a request that cannot be fulfilled."""

    request: Number
    code: Annotated[str, Meta(max_length=32)]
    """"missing": no such shard; "range": the shard is shorter; "refused": not for this client, or a grant that does not
    hold; "busy": too many deletions, later; "failed": our fault."""
    text: Text


Request: TypeAlias = Put | Get | Has | Info | Delete
Answer: TypeAlias = PutDone | Data | HasResult | InfoResult | DeleteDone | Error
ToServer: TypeAlias = Hello | Request
ToClient: TypeAlias = Challenge | Welcome | Answer

_ANSWERS: Final[dict[type, type]] = {Put: PutDone, Get: Data, Has: HasResult, Info: InfoResult, Delete: DeleteDone}


def put_size(request: Put) -> int:
    """Return the shard bytes that a Put counts against the window."""
    return sum(shard.data.nbytes for shard in request.shards)


def _decode(message: bytes, kind: object) -> msgspec.Struct:
    try:
        value: msgspec.Struct = codec.decode_loose(message, kind)  # type: ignore[arg-type]  # a union is no type[T]
    except MalformedError as exc:
        raise RemoteProtocolError(str(exc)[:TEXT_MAX]) from exc
    return value


def _signed(challenge: Challenge, hello: Hello) -> bytes:
    """Return what a Hello's signature covers: everything both sides have said."""
    return codec.encode(challenge) + codec.encode(msgspec.structs.replace(hello, signature=b""))


def _check_owner(owner: bytes) -> None:
    if owner:
        try:
            sign.check_public_key(owner)
        except SealError as exc:
            raise RemoteProtocolError(f"the hello names a key that cannot sign: {exc}") from exc


class ServerSession:
    """The peer's side. Call `challenge`, then `receive_hello`, `welcome`, then `receive` and `answer`."""

    def __init__(self, *, peer: PeerId, network: bytes, nonce: bytes, certificate_hash: bytes, window: int) -> None:
        self._challenge = Challenge(VERSION, network, peer, nonce, certificate_hash)
        self._window = window
        self._state = "start"
        self._last = -1
        self._pending: dict[int, int] = {}
        """Shard bytes of each unanswered request."""
        self._bytes = 0
        self.deal = b""
        """The client's deal key, proved; b"" for one that only reads."""
        self.owner = b""
        """The key that the deal says may delete; b"" for none."""
        self.is_admitted = False

    def challenge(self) -> bytes:
        """Return the first message."""
        self._expect("start", "hello")
        return codec.encode(self._challenge)

    def receive_hello(self, message: bytes) -> bytes:
        """Return the client's deal key, verified (b"" if it shows none). Raises RemoteProtocolError."""
        self._expect("hello", "welcome")
        hello = _decode(message, Hello)
        assert isinstance(hello, Hello)
        if hello.version != VERSION:
            raise RemoteProtocolError(f"protocol version {hello.version}; this peer speaks {VERSION}")
        if hello.network != self._challenge.network:
            raise RemoteProtocolError(f"this peer belongs to network {self._challenge.network.hex()}")
        if hello.deal:
            try:
                sign.verify(hello.deal, DOMAIN, _signed(self._challenge, hello), hello.signature)
            except SealError as exc:
                raise RemoteProtocolError(f"the hello is not signed by its deal: {exc}") from exc
            _check_owner(hello.owner)
            self.owner = hello.owner
        self.deal = hello.deal
        return hello.deal

    def welcome(self, *, admitted: bool, free: int, reason: str) -> bytes:
        """Return the answer to a good hello."""
        self._expect("welcome", "open")
        self.is_admitted = admitted
        return codec.encode(Welcome(self._window, admitted, free, reason[:TEXT_MAX]))

    def receive(self, message: bytes) -> Request:
        """Return the client's next request, which is then pending. Raises RemoteProtocolError."""
        if self._state != "open":
            raise LocalProtocolError(f"a request in state {self._state}")
        request = _decode(message, Request)
        assert isinstance(request, Request)
        if request.request <= self._last:
            raise RemoteProtocolError(f"request number {request.request} after {self._last}")
        size = put_size(request) if isinstance(request, Put) else 0
        if len(self._pending) >= REQUESTS_MAX or self._bytes + size > self._window:
            raise RemoteProtocolError("more unanswered than the window allows")
        self._last = request.request
        self._pending[request.request] = size
        self._bytes += size
        return request

    def answer(self, answer: Answer) -> bytes:
        """Return the encoded answer; its request is then done."""
        try:
            self._bytes -= self._pending.pop(answer.request)
        except KeyError:
            raise LocalProtocolError(f"an answer to {answer.request}, which is not pending") from None
        return codec.encode(answer)

    def _expect(self, state: str, then: str) -> None:
        if self._state != state:
            raise LocalProtocolError(f"state {self._state} instead of {state}")
        self._state = then


class ClientSession:
    """The client's side. Call `receive_challenge`, `receive_welcome`, then `request` and `receive`."""

    def __init__(self, *, peer: PeerId, network: bytes, nonce: bytes, certificate_hash: bytes) -> None:
        self._peer = peer
        self._network = network
        self._nonce = nonce
        self._certificate_hash = certificate_hash
        self._state = "start"
        self._last = -1
        self._pending: dict[int, type] = {}
        self.welcome: Welcome | None = None

    def receive_challenge(self, message: bytes, deal_seed: bytes | None, owner: bytes = b"") -> bytes:
        """Return the Hello that answers the challenge, signed if there is a deal, whose grants `owner` signs.

        Raises RemoteProtocolError.
        """
        self._expect("start", "hello")
        challenge = _decode(message, Challenge)
        assert isinstance(challenge, Challenge)
        if challenge.version != VERSION:
            raise RemoteProtocolError(f"protocol version {challenge.version}; this client speaks {VERSION}")
        if challenge.network != self._network:
            raise RemoteProtocolError(
                f"the peer belongs to network {challenge.network.hex()}, not {self._network.hex()}"
            )
        if challenge.peer != self._peer or challenge.certificate_hash != self._certificate_hash:
            raise RemoteProtocolError("the peer's words do not match its certificate")
        if deal_seed is None:
            return codec.encode(Hello(VERSION, self._network, b"", self._nonce, b""))
        hello = Hello(VERSION, self._network, sign.public_key(deal_seed), self._nonce, b"", owner)
        signature = sign.sign(deal_seed, DOMAIN, _signed(challenge, hello))
        return codec.encode(msgspec.structs.replace(hello, signature=signature))

    def receive_welcome(self, message: bytes) -> Welcome:
        """Return the peer's welcome. Raises RemoteProtocolError."""
        self._expect("hello", "open")
        welcome = _decode(message, Welcome)
        assert isinstance(welcome, Welcome)
        self.welcome = welcome
        return welcome

    def next_number(self) -> int:
        """Return the number for the next request. Raises LocalProtocolError when too many are unanswered."""
        if self._state != "open":
            raise LocalProtocolError(f"a request in state {self._state}")
        if len(self._pending) >= REQUESTS_MAX:
            raise LocalProtocolError("too many unanswered requests")
        return self._last + 1

    def request(self, request: Request) -> bytes:
        """Return the encoded request, numbered by `next_number`; it is then pending."""
        if request.request != self.next_number():
            raise LocalProtocolError(f"request number {request.request}, not {self.next_number()}")
        self._last = request.request
        self._pending[request.request] = _ANSWERS[type(request)]
        return codec.encode(request)

    def receive(self, message: bytes) -> Answer:
        """Return the peer's next answer; its request is then done. Raises RemoteProtocolError."""
        if self._state != "open":
            raise LocalProtocolError(f"an answer in state {self._state}")
        answer = _decode(message, Answer)
        assert isinstance(answer, Answer)
        kind = self._pending.pop(answer.request, None)
        if kind is None or not isinstance(answer, (kind, Error)):
            raise RemoteProtocolError(f"an answer to {answer.request} that was not asked for")
        return answer

    def _expect(self, state: str, then: str) -> None:
        if self._state != state:
            raise LocalProtocolError(f"state {self._state} instead of {state}")
        self._state = then


def receipt_for(seed: bytes, peer: PeerId, deal: bytes, time: int, shards: list[tuple[bytes, int]]) -> bytes:
    """Return the encoded receipt for shards (id, length), b"" for none."""
    if not shards:
        return b""
    items = tuple(ShardItem(ShardId(shard), length) for shard, length in shards)
    return sign_receipt(seed, peer, deal, time, items)
