"""The two ends of a conversation between client and storage peer (messages: `wire.peer`; fsdecloud-protocol(7)).

    server                                client
    start() -> frame           ------>    receive(frame) -> Challenge
    receive(frame) -> Greeting <------    hello(...) -> frame
    welcome(...) -> frame      ------>    receive(frame) -> Welcome
    receive(frame) -> Request  <------    request(...) -> frame
    answer(...) -> frame       ------>    receive(frame) -> Answer

Every frame that arrives goes through `receive`, which says what it is or raises RemoteProtocolError: the connection is
then closed with that reason, and the session is of no further use. LocalProtocolError means that our own side did what
the session does not allow.

**Version**: each side says which versions it speaks, a range; the session's version is the newest that both speak, which
either side computes and nobody chooses. A deal's signature covers both ranges, so that nobody can make a session older
than it need be without being noticed (fault 85), and nothing of a recorded session is worth anything in another one (fault
86). Within a version there is no unknown: Challenge and Hello may have further fields, which are signed and otherwise
ignored, every other message is exactly what that version says it is.

Pure, and no payload is copied: a decoded Put's shards are views into its frame. Not here: waiting for the window's room
(`net.pool`), what an answer is worth (receipts, shard ids: `net.pool`), connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar, cast

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import LocalProtocolError, MalformedError, RemoteProtocolError, SealError
from fsdecloud.limits import KIB, MESSAGE_MAX
from fsdecloud.types import PeerId
from fsdecloud.wire import peer as wire

DOMAIN: Final = b"fsdecloud hello v2"

HANDSHAKE_MAX: Final = 4 * KIB
"""Largest Challenge, Hello or Welcome: ten times what they have today."""

SPOKEN: Final = (wire.OLDEST, wire.VERSION)
"""First and last protocol version of this release."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Greeting:
    """A good Hello."""

    version: int
    deal: bytes
    """The client's deal key, proved; b"" for one that only reads."""
    owner: bytes
    """The key that the deal says may delete; b"" for none."""


ServerEvent: TypeAlias = Greeting | wire.Request
ClientEvent: TypeAlias = wire.Challenge | wire.Welcome | wire.Answer


def common_version(ours: tuple[int, int], theirs: tuple[int, int]) -> int:
    """Return the newest version in both ranges (first and last). Raises RemoteProtocolError when there is none."""
    version = min(ours[1], theirs[1])
    if version < max(ours[0], theirs[0]):
        raise RemoteProtocolError(
            f"no common protocol version: here {ours[0]} to {ours[1]}, there {theirs[0]} to {theirs[1]}"
        )
    return version


def _decode(frame: bytes, kind: type[T] | object, what: str, limit: int = MESSAGE_MAX) -> T:
    if len(frame) > limit:
        raise RemoteProtocolError(f"not {what}: {len(frame)} bytes, at most {limit}")
    try:
        return codec.decode_loose(frame, cast("type[T]", kind))  # a union is no type[T], and decodes all the same
    except MalformedError as exc:
        raise RemoteProtocolError(f"not {what}: {exc.__cause__}"[: wire.TEXT_MAX]) from exc


def _size_max(request: wire.Request) -> int:
    return wire.BODY_MAX if isinstance(request, wire.Forward) else wire.PUT_BYTES_MAX


class _Session:
    """What both ends have in common: the state, and that nothing follows a broken frame."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._last = -1
        """Number of the last request."""
        self._bytes = 0
        """Shard bytes of unanswered Puts."""
        self.version = 0
        """The protocol version, once it is agreed on."""

    def _step(self, *states: str) -> str:
        """Leave one of these states; the session is broken until the caller sets the next one."""
        state = self._state
        if state not in states:
            raise LocalProtocolError(f"the session is in state {state}, not {' or '.join(states)}")
        self._state = "broken"
        return state

    def _need_open(self) -> None:
        if self._state != "open":
            raise LocalProtocolError(f"the session is in state {self._state}, not open")


class ServerSession(_Session):
    """The peer's end. `nonce` is 32 fresh random bytes; `window` the shard bytes that a client may leave unanswered."""

    def __init__(
        self,
        *,
        peer: PeerId,
        network: bytes,
        nonce: bytes,
        certificate_hash: bytes,
        window: int,
        versions: tuple[int, int] = SPOKEN,
    ) -> None:
        super().__init__("start")
        self._versions = versions
        self._network = network
        self._challenge = codec.encode(wire.Challenge(versions[1], versions[0], network, peer, nonce, certificate_hash))
        self._window = window
        self._pending: dict[int, int] = {}
        """Shard bytes of each unanswered request."""

    def start(self) -> bytes:
        """Return the first frame."""
        self._step("start")
        self._state = "hello"
        return self._challenge

    def receive(self, frame: bytes) -> ServerEvent:
        """Return what the client says. Raises RemoteProtocolError, after which the connection is to be closed."""
        if self._step("hello", "open") == "hello":
            greeting = self._greeting(frame)
            self.version = greeting.version
            self._state = "greeted"
            return greeting
        request = self._request(frame)
        self._state = "open"
        return request

    def _greeting(self, frame: bytes) -> Greeting:
        hello: wire.Hello = _decode(frame, wire.Hello, "a hello", HANDSHAKE_MAX)
        terms: wire.HelloTerms = _decode(hello.terms, wire.HelloTerms, "a hello")
        version = common_version(self._versions, (terms.oldest, terms.newest))
        if terms.network != self._network:
            raise RemoteProtocolError(f"this peer belongs to network {self._network.hex()}")
        if not terms.deal:
            if hello.signature or terms.owner:
                raise RemoteProtocolError("a hello without a deal has no signature and no owner")
            return Greeting(version, b"", b"")
        try:
            sign.verify(terms.deal, DOMAIN, self._challenge + hello.terms, hello.signature)
        except SealError as exc:
            raise RemoteProtocolError(f"the hello is not signed by its deal: {exc}") from exc
        if terms.owner:
            try:
                sign.check_public_key(terms.owner)
            except SealError as exc:
                raise RemoteProtocolError(f"the hello names a key that cannot sign: {exc}") from exc
        return Greeting(version, terms.deal, terms.owner)

    def welcome(self, *, admitted: bool, free: int, reason: str) -> bytes:
        """Return the frame that answers a Greeting."""
        self._step("greeted")
        self._state = "open"
        return codec.encode(wire.Welcome(self._window, admitted, free, reason[: wire.TEXT_MAX]))

    def _request(self, frame: bytes) -> wire.Request:
        request: wire.Request = _decode(frame, wire.Request, "a request")
        if request.request <= self._last:
            raise RemoteProtocolError(f"request number {request.request} after {self._last}")
        size = wire.window_size(request)
        if size > _size_max(request):
            raise RemoteProtocolError(f"{size} bytes in one request, at most {_size_max(request)}")
        if len(self._pending) >= wire.REQUESTS_MAX or self._bytes + size > self._window:
            raise RemoteProtocolError("more unanswered than the window allows")
        self._last = request.request
        self._pending[request.request] = size
        self._bytes += size
        return request

    def answer(self, answer: wire.Answer) -> bytes:
        """Return the frame of an answer; its request is then done."""
        self._need_open()
        try:
            self._bytes -= self._pending.pop(answer.request)
        except KeyError:
            raise LocalProtocolError(f"an answer to {answer.request}, which is not pending") from None
        return codec.encode(answer)


class ClientSession(_Session):
    """The client's end: with the peer that TLS has proved, and its certificate's hash. `nonce` is 32 fresh random bytes."""

    def __init__(
        self,
        *,
        peer: PeerId,
        network: bytes,
        nonce: bytes,
        certificate_hash: bytes,
        versions: tuple[int, int] = SPOKEN,
    ) -> None:
        super().__init__("challenge")
        self._versions = versions
        self._peer = peer
        self._network = network
        self._nonce = nonce
        self._certificate_hash = certificate_hash
        self._challenge = b""
        self._is_reader = False
        """Whether our Hello showed no deal."""
        self._pending: dict[int, tuple[type, int, int]] = {}
        """Of each unanswered request what answers it, its shard bytes, and how many ids it names."""
        self.window = 0
        """Shard bytes that may be unanswered, once we are welcome."""

    def receive(self, frame: bytes) -> ClientEvent:
        """Return what the peer says. Raises RemoteProtocolError, after which the connection is to be closed."""
        state = self._step("challenge", "welcome", "open")
        event: ClientEvent
        if state == "challenge":
            event = self._take_challenge(frame)
            self._state = "hello"
        elif state == "welcome":
            event = cast("wire.Welcome", _decode(frame, wire.Welcome, "a welcome", HANDSHAKE_MAX))
            self.window = event.window
            self._state = "open"
        else:
            event = self._take_answer(frame)
            self._state = "open"
        return event

    def _take_challenge(self, frame: bytes) -> wire.Challenge:
        challenge: wire.Challenge = _decode(frame, wire.Challenge, "a challenge", HANDSHAKE_MAX)
        self.version = common_version(self._versions, (challenge.oldest, challenge.newest))
        if challenge.network != self._network:
            raise RemoteProtocolError(
                f"the peer belongs to network {challenge.network.hex()}, not {self._network.hex()}"
            )
        if challenge.peer != self._peer or challenge.certificate_hash != self._certificate_hash:
            raise RemoteProtocolError("the peer's words do not match its certificate")
        self._challenge = frame
        return challenge

    def hello(self, deal_seed: bytes | None = None, owner: bytes = b"") -> bytes:
        """Return the frame that answers a Challenge, signed if there is a deal, whose grants `owner` signs (b"": none)."""
        self._step("hello")
        self._state = "welcome"
        deal = b"" if deal_seed is None else sign.public_key(deal_seed)
        self._is_reader = not deal
        oldest, newest = self._versions
        terms = codec.encode(wire.HelloTerms(newest, oldest, self._network, self._nonce, deal, owner if deal else b""))
        signature = b"" if deal_seed is None else sign.sign(deal_seed, DOMAIN, self._challenge + terms)
        return codec.encode(wire.Hello(terms, signature))

    @property
    def is_welcome(self) -> bool:
        """Whether the Welcome has come."""
        return self._state == "open"

    def next_number(self) -> int:
        """Return the number for the next request. Raises LocalProtocolError when too many are unanswered.

        Who shows no deal need not wait for the Welcome with requests that need no window: that saves a round trip.
        """
        if not (self._state == "welcome" and self._is_reader):
            self._need_open()
        if len(self._pending) >= wire.REQUESTS_MAX:
            raise LocalProtocolError("too many unanswered requests")
        return self._last + 1

    def request(self, request: wire.Request) -> bytes:
        """Return the frame of a request numbered by `next_number`; it is then pending."""
        if request.request != self.next_number():
            raise LocalProtocolError(f"request number {request.request}, not {self.next_number()}")
        size = wire.window_size(request)
        if size > _size_max(request) or self._bytes + size > self.window:
            raise LocalProtocolError("more unanswered bytes than the window allows")
        count = wire.answer_count(request)
        frame = codec.encode(request)
        self._last = request.request
        self._bytes += size
        self._pending[request.request] = (wire.ANSWERS[type(request)], size, count)
        return frame

    def _take_answer(self, frame: bytes) -> wire.Answer:
        answer: wire.Answer = _decode(frame, wire.Answer, "an answer")
        kind, size, count = self._pending.pop(answer.request, (None, 0, 0))
        if kind is None or not isinstance(answer, (kind, wire.Error)):
            raise RemoteProtocolError(f"an answer to {answer.request} that was not asked for")
        if wrong := wire.wrong_count(answer, count):
            raise RemoteProtocolError(wrong)
        self._bytes -= size
        return answer
