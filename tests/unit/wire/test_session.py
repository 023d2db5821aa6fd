"""The session of client and peer: who may say what when, and that nothing else gets through."""

import contextlib
import itertools
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.events import AcceptConnection, BytesMessage, Request

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import LocalProtocolError, RemoteProtocolError
from fsdecloud.limits import MESSAGE_MAX, WINDOW_BYTES
from fsdecloud.net.frames import Framing
from fsdecloud.wire import deals, session
from fsdecloud.wire import peer as wire
from fsdecloud.wire.receipts import verify_receipt
from fsdecloud.wire.session import ClientSession, Greeting, ServerSession

PEER_SEED, DEAL_SEED, OWNER_SEED = b"p" * 32, b"d" * 32, b"o" * 32
PEER, DEAL, OWNER = map(sign.public_key, (PEER_SEED, DEAL_SEED, OWNER_SEED))
NETWORK, CERTIFICATE = b"n" * 32, b"c" * 32


def server(nonce=b"1" * 32, **changes):
    values = {"peer": PEER, "network": NETWORK, "nonce": nonce, "certificate_hash": CERTIFICATE, "window": WINDOW_BYTES}
    return ServerSession(**values | changes)


def client(nonce=b"2" * 32, **changes):
    values = {"peer": PEER, "network": NETWORK, "nonce": nonce, "certificate_hash": CERTIFICATE}
    return ClientSession(**values | changes)


def hello_to(s, c=None, deal=DEAL_SEED, owner=OWNER):
    """Return the hello with which a client answers a server's challenge."""
    c = c or client()
    c.receive(s.start())
    return c.hello(deal, owner)


def greeted(deal=DEAL_SEED):
    s, c = server(), client()
    greeting = s.receive(hello_to(s, c, deal))
    assert greeting == Greeting(wire.VERSION, DEAL, OWNER) if deal else Greeting(wire.VERSION, b"", b"")
    welcome = c.receive(s.welcome(admitted=bool(deal), free=5, reason=""))
    assert (welcome.admitted, welcome.free, c.window) == (bool(deal), 5, WINDOW_BYTES)
    return s, c


def put(c, *sizes):
    return c.request(
        wire.Put(c.next_number(), tuple(wire.Shard(bytes([i]) * 32, memoryview(bytes(n))) for i, n in enumerate(sizes)))
    )


def test_a_whole_conversation():
    s, c = greeted()
    frame = put(c, 3, 0)
    request = s.receive(frame)
    assert [(bytes(x.data), x.id) for x in request.shards] == [(bytes(3), bytes(32)), (b"", b"\x01" * 32)]
    assert request.shards[0].data.obj is frame  # a view: payloads are not copied
    second = s.receive(c.request(wire.Get(c.next_number(), b"s" * 32, 0, 0)))
    data = c.receive(s.answer(wire.Data(second.request, b"abc")))  # in any order
    assert data.data == b"abc"
    done = c.receive(s.answer(wire.PutDone(request.request, b"", ())))
    assert done.request == 0
    for build, answer in (
        (lambda n: wire.Has(n, (b"s" * 32,)), lambda n: wire.HasResult(n, (True,))),
        (lambda n: wire.Delete(n, b"grant"), lambda n: wire.DeleteDone(n, ())),
        (lambda n: wire.Renew(n, (b"s" * 32,)), lambda n: wire.RenewDone(n, b"")),
        (lambda n: attest(n), lambda n: wire.Attested(n, b"proof")),
        (wire.Info, lambda n: wire.InfoResult(n, "1", True, "", 1, 2, 3, 4)),
        (wire.Info, lambda n: wire.Error(n, "failed", "x")),
    ):
        number = s.receive(c.request(build(c.next_number()))).request
        assert c.receive(s.answer(answer(number))) == answer(number)


def attest(number):
    return wire.Attest(number, b"c" * 32, 2, b"s" * 32, 8)


@pytest.mark.parametrize(
    "changes", [{"network": b"x" * 32}, {"peer": b"x" * 32}, {"certificate_hash": b"x" * 32}], ids=str
)
def test_a_client_leaves_a_peer_that_is_not_the_one_it_means(changes):
    with pytest.raises(RemoteProtocolError):
        client().receive(server(**changes).start())


def test_a_peer_leaves_a_client_of_another_network():
    s = server()
    s.start()
    hello = hello_to(server(network=b"x" * 32), client(network=b"x" * 32))
    with pytest.raises(RemoteProtocolError, match="belongs to network"):
        s.receive(hello)


# ---- versions --------------------------------------------------------------------------------------------------------
RANGES = [(low, high) for low in range(1, 5) for high in range(low, 5)]


def test_both_ends_agree_on_the_newest_version_they_have_in_common():
    for ours, theirs in itertools.product(RANGES, RANGES):
        common = set(range(ours[0], ours[1] + 1)) & set(range(theirs[0], theirs[1] + 1))
        for deal in (DEAL_SEED, None):
            s, c = server(versions=ours), client(versions=theirs)
            if not common:
                with pytest.raises(RemoteProtocolError, match="no common protocol version"):
                    hello_to(s, c, deal)
                s = server(versions=ours)
                s.start()
                with pytest.raises(RemoteProtocolError, match="no common protocol version"):
                    s.receive(hello_to(server(versions=theirs), c := client(versions=theirs), deal))
                continue
            assert s.receive(hello_to(s, c, deal)).version == s.version == c.version == max(common)


def test_a_proof_longer_than_any_is_refused():
    s, c = greeted()
    number = s.receive(c.request(attest(c.next_number()))).request
    longest = wire.Attested(number, bytes(deals.PROOF_MAX))
    assert c.receive(s.answer(longest)) == longest
    number = s.receive(c.request(attest(c.next_number()))).request
    with pytest.raises(RemoteProtocolError, match="not an answer"):
        c.receive(s.answer(wire.Attested(number, bytes(deals.PROOF_MAX + 1))))


@pytest.mark.parametrize("versions", [(5, 1), (0, 0), (1 << 52, (1 << 53) - 1)])
def test_fault_85_ranges_that_make_no_sense_have_nothing_in_common(versions):
    with pytest.raises(RemoteProtocolError, match="no common"):
        client().receive(server(versions=versions).start())


def test_fault_85_a_session_cannot_be_made_older_than_it_need_be():
    """Somebody in between changes what either side says of its versions."""
    s, c = server(versions=(1, 4)), client(versions=(1, 3))
    challenge = msgspec.structs.replace(codec.decode(s.start(), wire.Challenge), newest=1)
    c.receive(codec.encode(challenge))
    with pytest.raises(RemoteProtocolError, match="not signed"):
        s.receive(c.hello(DEAL_SEED))
    s, c = server(versions=(1, 4)), client(versions=(1, 3))
    hello = codec.decode(hello_to(s, c), wire.Hello)
    terms = msgspec.structs.replace(codec.decode(hello.terms, wire.HelloTerms), newest=1)
    with pytest.raises(RemoteProtocolError, match="not signed"):
        s.receive(codec.encode(wire.Hello(codec.encode(terms), hello.signature)))


def test_fault_85_later_fields_of_the_handshake_are_ignored_and_signed():
    s = server()
    fields = [*msgspec.msgpack.decode(s.start()), "a later field", 7]
    s._challenge = codec.encode(fields)
    c = client()
    assert c.receive(s._challenge).peer == PEER
    hello = codec.decode(c.hello(DEAL_SEED), wire.Hello)
    terms = codec.encode([*msgspec.msgpack.decode(hello.terms), "also later"])
    signature = sign.sign(DEAL_SEED, session.DOMAIN, s._challenge + terms)
    again = server()
    again._challenge = s._challenge
    again.start()
    with pytest.raises(RemoteProtocolError, match="not signed"):
        again.receive(codec.encode(wire.Hello(terms, hello.signature)))
    assert s.receive(codec.encode(wire.Hello(terms, signature))).deal == DEAL


# ---- the hello -------------------------------------------------------------------------------------------------------
def test_fault_86_a_recorded_hello_is_worth_nothing_in_another_session():
    hello = hello_to(server(nonce=b"1" * 32))
    for replay in (
        server(nonce=b"3" * 32),
        server(peer=sign.public_key(b"q" * 32)),
        server(certificate_hash=b"e" * 32),
    ):
        replay.start()
        with pytest.raises(RemoteProtocolError, match="not signed"):
            replay.receive(hello)


def test_every_field_of_a_hello_is_signed():
    s = server()
    hello = codec.decode(hello_to(s), wire.Hello)
    terms = codec.decode(hello.terms, wire.HelloTerms)
    for change in (
        {"deal": sign.public_key(b"x" * 32)},
        {"deal": b"short"},
        {"nonce": b"9" * 32},
        {"owner": b""},
        {"oldest": 2},
        {"newest": 9},
    ):
        again = server()
        again.start()
        with pytest.raises(RemoteProtocolError, match="not signed"):
            again.receive(
                codec.encode(wire.Hello(codec.encode(msgspec.structs.replace(terms, **change)), hello.signature))
            )
    again = server()
    again.start()
    with pytest.raises(RemoteProtocolError, match="not signed"):
        again.receive(codec.encode(wire.Hello(hello.terms, b"")))
    s.receive(codec.encode(hello))


@pytest.mark.parametrize("owner", [bytes(32), b"\xff" * 32, b"short"])
def test_an_owner_that_cannot_sign_is_refused(owner):
    s = server()
    with pytest.raises(RemoteProtocolError, match="cannot sign"):
        s.receive(hello_to(s, owner=owner))


@pytest.mark.parametrize(("owner", "signature"), [(OWNER, b""), (b"", bytes(64))])
def test_a_hello_without_a_deal_signs_nothing(owner, signature):
    s = server()
    s.start()
    terms = wire.HelloTerms(wire.VERSION, wire.OLDEST, NETWORK, bytes(32), b"", owner)
    with pytest.raises(RemoteProtocolError, match="without a deal"):
        s.receive(codec.encode(wire.Hello(codec.encode(terms), signature)))


# ---- requests and answers --------------------------------------------------------------------------------------------
def test_who_shows_no_deal_may_ask_before_the_welcome_what_needs_no_window():
    s, c = server(), client()
    assert s.receive(hello_to(s, c, None, b"")).deal == b""
    asked = c.request(wire.Get(0, bytes(32), 0, 0))
    with pytest.raises(LocalProtocolError):
        put(c, 1)
    assert not c.is_welcome
    c.receive(s.welcome(admitted=False, free=0, reason=""))
    assert c.is_welcome
    assert isinstance(s.receive(asked), wire.Get)
    assert c.receive(s.answer(wire.Data(0, b"x"))).data == b"x"
    put(c, 1)

    s, c = server(), client()
    hello_to(s, c)
    with pytest.raises(LocalProtocolError):
        c.next_number()
    s, c = server(), client()
    s.receive(hello_to(s, c, None, b""))
    c.request(wire.Get(0, bytes(32), 0, 0))
    with pytest.raises(RemoteProtocolError):
        c.receive(codec.encode(wire.Data(0, b"x")))


def test_the_window_and_the_number_of_requests_are_kept():
    s, c = greeted()
    for _ in range(WINDOW_BYTES // wire.PUT_BYTES_MAX):
        s.receive(put(c, wire.PUT_BYTES_MAX))
    with pytest.raises(LocalProtocolError, match="window"):
        put(c, wire.PUT_BYTES_MAX)
    with pytest.raises(RemoteProtocolError, match="window"):
        s.receive(put(greeted()[1], wire.PUT_BYTES_MAX).replace(b"\x93\x0a\x00", b"\x93\x0a\x63", 1))
    s, c = greeted()
    for _ in range(wire.REQUESTS_MAX):
        s.receive(c.request(wire.Info(c.next_number())))
    with pytest.raises(LocalProtocolError):
        c.next_number()
    c.receive(s.answer(wire.Error(7, "failed", "")))
    s.receive(c.request(wire.Info(c.next_number())))
    with pytest.raises(RemoteProtocolError, match="window"):
        s.receive(codec.encode(wire.Info(99)))


def test_answers_give_the_window_back():
    s, c = greeted()
    for number in range(20):
        s.receive(put(c, wire.PUT_BYTES_MAX))
        c.receive(s.answer(wire.PutDone(number, b"", ())))


def test_a_put_that_is_too_large_is_refused_on_both_sides():
    s, c = greeted()
    with pytest.raises(LocalProtocolError):
        put(c, wire.PUT_BYTES_MAX + 1)
    frame = codec.encode(wire.Put(0, (wire.Shard(bytes(32), memoryview(bytes(wire.PUT_BYTES_MAX + 1))),)))
    with pytest.raises(RemoteProtocolError, match="in one request"):
        s.receive(frame)


def test_fault_52_numbers_only_grow():
    s, c = greeted()
    message = c.request(wire.Info(c.next_number()))
    s.receive(message)
    with pytest.raises(RemoteProtocolError, match="number 0 after 0"):
        s.receive(message)


def test_answers_must_have_been_asked_for():
    for answer in (wire.Data(0, b""), wire.Error(5, "failed", ""), wire.InfoResult(1, "", True, "", 0, 0, 0, 0)):
        c = greeted()[1]
        c.request(wire.Info(c.next_number()))
        with pytest.raises(RemoteProtocolError, match="not asked for"):
            c.receive(codec.encode(answer))
    s, c = greeted()
    frame = put(c, 1)
    s.receive(frame)
    c.receive(done := s.answer(wire.PutDone(0, b"", ())))
    with pytest.raises(RemoteProtocolError, match="not asked for"):
        c.receive(done)  # once
    with pytest.raises(LocalProtocolError):
        s.answer(wire.Error(3, "failed", ""))


def test_answers_must_fit_their_questions():
    c = greeted()[1]
    c.request(wire.Has(0, (bytes(32), bytes(32))))
    with pytest.raises(RemoteProtocolError, match="1 answers to 2 questions"):
        c.receive(codec.encode(wire.HasResult(0, (True,))))
    c = greeted()[1]
    put(c, 1)
    with pytest.raises(RemoteProtocolError, match="2 of 1 shards"):
        c.receive(codec.encode(wire.PutDone(0, b"", (wire.Refusal(bytes(32), ""),) * 2)))


def test_our_own_steps_out_of_order_are_our_bug():
    for step in (
        lambda: server().receive(b""),
        lambda: server().welcome(admitted=True, free=0, reason=""),
        lambda: server().answer(wire.Error(0, "", "")),
        lambda: client().hello(),
        lambda: client().next_number(),
        lambda: greeted()[0].start(),
        lambda: greeted()[0].welcome(admitted=True, free=0, reason=""),
        lambda: greeted()[1].hello(),
        lambda: greeted()[1].request(wire.Info(5)),
    ):
        with pytest.raises(LocalProtocolError):
            step()


def test_nothing_follows_a_broken_frame():
    s, c = greeted()
    frame = c.request(wire.Info(0))
    for end, good in ((s, frame), (c, s.receive(frame) and s.answer(wire.Error(0, "failed", "")))):
        with pytest.raises(RemoteProtocolError):
            end.receive(b"\xc1")
        for step in (lambda end=end, good=good: end.receive(good), lambda: s.answer(wire.Error(0, "", ""))):
            with pytest.raises(LocalProtocolError, match="broken"):
                step()


# ---- any bytes -------------------------------------------------------------------------------------------------------
def challenged():
    c = client()
    c.receive(server().start())
    c.hello(DEAL_SEED)
    return c


def awaiting_hello():
    s = server()
    s.start()
    return s


ENDS = {
    "server, hello": awaiting_hello,
    "server, request": lambda: greeted()[0],
    "client, challenge": client,
    "client, welcome": challenged,
    "client, answer": lambda: greeted()[1],
}
numbers = st.integers(-5, 2**64 - 1)
values = numbers | st.binary(max_size=40) | st.text(max_size=5) | st.none() | st.floats() | st.booleans()
nested = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)
messages = st.binary(max_size=60) | st.builds(
    lambda tag, body: msgspec.msgpack.encode([tag, *body]), st.integers(0, 40), st.lists(nested, max_size=8)
)


@given(messages)
def test_fault_85_and_120_any_message_is_understood_or_a_protocol_error(message):
    for make in ENDS.values():
        with contextlib.suppress(RemoteProtocolError):
            make().receive(message)


def good_frames():
    """Yield (end, frame that it takes), one for each kind of frame but answers."""
    s = server()
    yield "client, challenge", s.start()
    s = server()
    hello = hello_to(s)
    yield "server, hello", hello_to(server())
    s.receive(hello)
    yield "client, welcome", s.welcome(admitted=True, free=1, reason="why")
    c = greeted()[1]
    yield "server, request", put(c, 3, 0)
    for request in (
        wire.Get(1, bytes(32), 1, 2),
        wire.Has(2, (bytes(32), b"i" * 32)),
        wire.Info(3),
        wire.Delete(4, b"grant"),
        wire.Renew(5, (bytes(32), b"i" * 32)),
    ):
        yield "server, request", c.request(request)


FRAMES = list(good_frames())


@pytest.mark.parametrize(("end", "frame"), FRAMES, ids=[f"{e} {f[1]}" for e, f in FRAMES])
def test_every_frame_cut_or_longer_is_a_protocol_error(end, frame):
    ENDS[end]().receive(frame)
    for wrong in (*(frame[:i] for i in range(len(frame))), frame + b"\0", frame + frame):
        with pytest.raises(RemoteProtocolError):
            ENDS[end]().receive(wrong)


@pytest.mark.parametrize(("end", "frame"), FRAMES, ids=[f"{e} {f[1]}" for e, f in FRAMES])
def test_fault_85_every_frame_with_any_changed_byte_is_understood_or_a_protocol_error(end, frame):
    for i in range(len(frame)):
        for bit in (1, 0x10, 0x80):
            with contextlib.suppress(RemoteProtocolError):
                ENDS[end]().receive(frame[:i] + bytes((frame[i] ^ bit,)) + frame[i + 1 :])


@pytest.mark.parametrize(("end", "frame"), FRAMES[3:], ids=[str(f[1]) for _, f in FRAMES[3:]])
def test_fault_85_unknown_fields_and_types_are_refused(end, frame):
    fields = msgspec.msgpack.decode(frame)
    for wrong in ([*fields, None], fields[:-1], [99, *fields[1:]], [2, *fields[1:]], {"type": fields[0]}, [[]]):
        with pytest.raises(RemoteProtocolError, match="not a request"):
            ENDS[end]().receive(msgspec.msgpack.encode(wrong))


@pytest.mark.parametrize(
    "message",
    [
        b"\x93\x0a\x00\xdd\xff\xff\xff\xff",
        b"\x93\x0c\x00\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x93\x15\x00\xc6\xff\xff\xff\xff",
        msgspec.msgpack.encode([10, 0, [[bytes(32), b""]] * (wire.SHARDS_MAX + 1)]),
        msgspec.msgpack.encode([11, 0, bytes(32), 0, 0, 0]),
        msgspec.msgpack.encode([11, 0, bytes(31), 0, 0]),
        msgspec.msgpack.encode([11, 0, bytes(32), MESSAGE_MAX + 1, 0]),
        msgspec.msgpack.encode([11, float("nan"), bytes(32), 0, 0]),
        msgspec.msgpack.encode([11, 1 << 53, bytes(32), 0, 0]),
        msgspec.msgpack.encode([12, 0, [bytes(32)] * (wire.IDS_MAX + 1)]),
        b"\x82\xa1a\x01\xa1a\x02",  # a map, its key twice
        msgspec.msgpack.encode([13, 0]) + b"\0",
        bytes(MESSAGE_MAX + 1),
    ],
    ids=range(14),
)
def test_fault_79_bombs_are_refused(message):
    for make in ENDS.values():
        with pytest.raises(RemoteProtocolError):
            make().receive(message)


def test_handshake_frames_are_small():
    big = codec.encode([*msgspec.msgpack.decode(server().start()), bytes(session.HANDSHAKE_MAX)])
    for make in (client, awaiting_hello, challenged):
        with pytest.raises(RemoteProtocolError, match="at most 4096"):
            make().receive(big)


def test_a_message_holds_the_largest_put():
    _, c = greeted()
    shards = tuple(wire.Shard(os.urandom(32), memoryview(b"")) for _ in range(wire.SHARDS_MAX - 1))
    big = wire.Shard(bytes(32), memoryview(bytes(wire.PUT_BYTES_MAX)))
    assert len(c.request(wire.Put(0, (*shards, big)))) <= MESSAGE_MAX


def test_receipts_of_nothing_are_empty():
    assert wire.receipt_for(PEER_SEED, PEER, b"d", 1, []) == b""
    receipt = verify_receipt(wire.receipt_for(PEER_SEED, PEER, bytes(32), 1, [(bytes(32), 5)]))
    assert receipt.shards[0].length == 5


# ---- byte by byte ----------------------------------------------------------------------------------------------------
class End:
    """A session under its websocket framing: what a connection is once TLS is taken away."""

    def __init__(self, kind, session, react):
        self.framing = Framing(kind)
        self.session = session
        self.react = react
        self.out = bytearray()
        self.events = []

    def send(self, frame):
        self.out += self.framing.send(BytesMessage(frame))

    def feed(self, data):
        self.framing.receive_data(data)
        for event in self.framing.events():
            if isinstance(event, Request):
                self.out += self.framing.send(AcceptConnection(subprotocol=wire.SUBPROTOCOL))
                self.send(self.session.start())
            elif isinstance(event, BytesMessage):
                happened = self.session.receive(event.data)
                self.events.append(happened)
                self.react(self, happened)


def server_reacts(end, event):
    match event:
        case Greeting():
            end.send(end.session.welcome(admitted=True, free=9, reason=""))
        case wire.Put():
            end.send(end.session.answer(wire.PutDone(event.request, b"", ())))
        case wire.Get():
            end.send(end.session.answer(wire.Data(event.request, bytes(event.length))))


def client_reacts(end, event):
    match event:
        case wire.Challenge():
            end.send(end.session.hello(DEAL_SEED, OWNER))
        case wire.Welcome():
            end.send(put(end.session, 200, 70_000))
            end.send(end.session.request(wire.Get(1, bytes(32), 0, 300)))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000, 1 << 20])
def test_a_whole_conversation_byte_by_byte(step):
    s, c = End(ConnectionType.SERVER, server(), server_reacts), End(ConnectionType.CLIENT, client(), client_reacts)
    c.out += c.framing.send(Request(host="h", target="/" + PEER.hex(), subprotocols=[wire.SUBPROTOCOL]))
    while s.out or c.out:
        for source, target in ((c, s), (s, c)):
            data, source.out = bytes(source.out), bytearray()
            for i in range(0, len(data), step):
                target.feed(data[i : i + step])
    assert [type(e) for e in s.events] == [Greeting, wire.Put, wire.Get]
    assert [type(e) for e in c.events] == [wire.Challenge, wire.Welcome, wire.PutDone, wire.Data]
    assert [shard.data.nbytes for shard in s.events[1].shards] == [200, 70_000]
    assert c.events[-1].data == bytes(300)
