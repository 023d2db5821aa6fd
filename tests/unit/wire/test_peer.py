"""The session of client and peer: who may say what when, and that nothing else gets through."""

import contextlib
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import LocalProtocolError, RemoteProtocolError
from fsdecloud.limits import MESSAGE_MAX, WINDOW_BYTES
from fsdecloud.wire import peer as wire
from fsdecloud.wire.receipts import verify_receipt

PEER_SEED, DEAL_SEED = b"p" * 32, b"d" * 32
PEER = sign.public_key(PEER_SEED)
NETWORK, CERTIFICATE = b"n" * 32, b"c" * 32


def server(nonce=b"1" * 32, **changes):
    values = {"peer": PEER, "network": NETWORK, "nonce": nonce, "certificate_hash": CERTIFICATE, "window": WINDOW_BYTES}
    return wire.ServerSession(**values | changes)


def client(nonce=b"2" * 32, **changes):
    values = {"peer": PEER, "network": NETWORK, "nonce": nonce, "certificate_hash": CERTIFICATE}
    return wire.ClientSession(**values | changes)


def greeted(deal=DEAL_SEED):
    s, c = server(), client()
    assert s.receive_hello(c.receive_challenge(s.challenge(), deal)) == (sign.public_key(deal) if deal else b"")
    c.receive_welcome(s.welcome(admitted=bool(deal), free=5, reason=""))
    return s, c


def put(c, *sizes):
    return c.request(
        wire.Put(c.next_number(), tuple(wire.Shard(bytes([i]) * 32, memoryview(bytes(n))) for i, n in enumerate(sizes)))
    )


def test_a_whole_conversation():
    s, c = greeted()
    request = s.receive(put(c, 3, 0))
    assert [(bytes(x.data), x.id) for x in request.shards] == [(bytes(3), bytes(32)), (b"", b"\x01" * 32)]
    second = s.receive(c.request(wire.Get(c.next_number(), b"s" * 32, 0, 0)))
    data = c.receive(s.answer(wire.Data(second.request, b"abc")))  # in any order
    assert data.data == b"abc"
    done = c.receive(s.answer(wire.PutDone(request.request, b"", ())))
    assert done.request == 0
    for build, answer in (
        (lambda n: wire.Has(n, (b"s" * 32,)), lambda n: wire.HasResult(n, (True,))),
        (wire.Info, lambda n: wire.InfoResult(n, "1", True, "", 1, 2, 3, 4)),
        (wire.Info, lambda n: wire.Error(n, "failed", "x")),
    ):
        number = s.receive(c.request(build(c.next_number()))).request
        assert c.receive(s.answer(answer(number))) == answer(number)


def test_a_reader_needs_no_key():
    s, _c = greeted(deal=None)
    assert s.deal == b""
    assert not s.is_admitted


@pytest.mark.parametrize(
    "changes", [{"network": b"x" * 32}, {"peer": b"x" * 32}, {"certificate_hash": b"x" * 32}], ids=str
)
def test_a_client_leaves_a_peer_that_is_not_the_one_it_means(changes):
    with pytest.raises(RemoteProtocolError):
        client().receive_challenge(server(**changes).challenge(), DEAL_SEED)


def test_versions_must_be_equal():
    hello = client().receive_challenge(server().challenge(), DEAL_SEED)
    later = codec.encode(msgspec.structs.replace(codec.decode(hello, wire.Hello), version=1))
    s = server()
    s.challenge()
    with pytest.raises(RemoteProtocolError, match="version 1"):
        s.receive_hello(later)
    challenge = codec.decode(server().challenge(), wire.Challenge)
    with pytest.raises(RemoteProtocolError, match="version 9"):
        client().receive_challenge(codec.encode(msgspec.structs.replace(challenge, version=9)), DEAL_SEED)


def test_fault_86_a_recorded_hello_is_worth_nothing_in_another_session():
    first = server(nonce=b"1" * 32)
    hello = client().receive_challenge(first.challenge(), DEAL_SEED)
    for replay in (
        server(nonce=b"3" * 32),
        server(peer=sign.public_key(b"q" * 32)),
        server(certificate_hash=b"e" * 32),
    ):
        replay.challenge()
        with pytest.raises(RemoteProtocolError, match="not signed"):
            replay.receive_hello(hello)


def test_every_field_of_a_hello_is_signed():
    s = server()
    hello = codec.decode(client().receive_challenge(s.challenge(), DEAL_SEED), wire.Hello)
    for change in ({"deal": sign.public_key(b"x" * 32)}, {"nonce": b"9" * 32}, {"signature": b""}, {"deal": b"short"}):
        again = server()
        again.challenge()
        with pytest.raises(RemoteProtocolError, match="not signed"):
            again.receive_hello(codec.encode(msgspec.structs.replace(hello, **change)))
    s.receive_hello(codec.encode(hello))


def test_the_window_and_the_number_of_requests_are_kept():
    s, c = greeted()
    for _ in range(WINDOW_BYTES // wire.PUT_BYTES_MAX):
        s.receive(put(c, wire.PUT_BYTES_MAX))
    with pytest.raises(RemoteProtocolError, match="window"):
        s.receive(put(c, wire.PUT_BYTES_MAX))
    s, c = greeted()
    for _ in range(wire.REQUESTS_MAX):
        s.receive(c.request(wire.Info(c.next_number())))
    with pytest.raises(LocalProtocolError):
        c.next_number()
    with pytest.raises(RemoteProtocolError, match="window"):
        s.receive(codec.encode(wire.Info(99)))
    c.receive(s.answer(wire.Error(7, "failed", "")))
    s.receive(c.request(wire.Info(c.next_number())))


def test_fault_52_numbers_only_grow():
    s, c = greeted()
    message = c.request(wire.Info(c.next_number()))
    s.receive(message)
    with pytest.raises(RemoteProtocolError, match="number 0 after 0"):
        s.receive(message)


def test_answers_must_have_been_asked_for():
    s, c = greeted()
    c.request(wire.Info(c.next_number()))
    for answer in (wire.Data(0, b""), wire.Error(5, "failed", ""), wire.InfoResult(1, "", True, "", 0, 0, 0, 0)):
        fresh = greeted()[1]
        fresh.request(wire.Info(fresh.next_number()))
        with pytest.raises(RemoteProtocolError, match="not asked for"):
            fresh.receive(codec.encode(answer))
    with pytest.raises(LocalProtocolError):
        s.answer(wire.Error(3, "failed", ""))


def test_our_own_steps_out_of_order_are_our_bug():
    for step in (
        lambda: server().receive_hello(b""),
        lambda: server().receive(b""),
        lambda: server().welcome(admitted=True, free=0, reason=""),
        lambda: client().receive_welcome(b""),
        lambda: client().receive(b""),
        lambda: client().next_number(),
        lambda: greeted()[0].challenge(),
        lambda: greeted()[1].receive_challenge(b"", None),
    ):
        with pytest.raises(LocalProtocolError):
            step()


messages = st.binary(max_size=60) | st.builds(
    lambda tag, body: msgspec.msgpack.encode([tag, *body]),
    st.integers(0, 40),
    st.lists(
        st.integers(-5, 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=5) | st.lists(st.integers(0, 9)),
        max_size=8,
    ),
)


@given(messages)
def test_fault_85_and_120_any_message_is_understood_or_a_protocol_error(message):
    for receive in (
        lambda: (s := server(), s.challenge(), s.receive_hello(message)),
        lambda: greeted()[0].receive(message),
        lambda: client().receive_challenge(message, DEAL_SEED),
        lambda: (c := client(), c.receive_challenge(server().challenge(), None), c.receive_welcome(message)),
        lambda: greeted()[1].receive(message),
    ):
        with contextlib.suppress(RemoteProtocolError):
            receive()


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
        msgspec.msgpack.encode([13, 0]) + b"\0",
    ],
    ids=range(9),
)
def test_fault_79_bombs_are_refused(message):
    with pytest.raises(RemoteProtocolError):
        greeted()[0].receive(message)


def test_a_message_holds_the_largest_put():
    _, c = greeted()
    shards = tuple(wire.Shard(os.urandom(32), memoryview(b"")) for _ in range(wire.SHARDS_MAX - 1))
    big = wire.Shard(bytes(32), memoryview(bytes(wire.PUT_BYTES_MAX)))
    assert len(c.request(wire.Put(0, (*shards, big)))) <= MESSAGE_MAX


def test_receipts_of_nothing_are_empty():
    assert wire.receipt_for(PEER_SEED, PEER, b"d", 1, []) == b""
    receipt = verify_receipt(wire.receipt_for(PEER_SEED, PEER, bytes(32), 1, [(bytes(32), 5)]))
    assert receipt.shards[0].length == 5
