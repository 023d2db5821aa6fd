"""Our framing and wsproto's own say the same about every stream of bytes, however it is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage
from wsproto.frame_protocol import XorMaskerSimple
from wsproto.utilities import RemoteProtocolError

from fsdecloud.limits import MESSAGE_MAX
from fsdecloud.net.frames import Framing, apply_mask, encode_binary

REQUEST = Request(host="h:1", target="/")
sizes = st.sampled_from([0, 1, 3, 125, 126, 127, 65535, 65536, 70001]) | st.integers(0, 300)
messages = st.builds(lambda n, b: bytes((i * b + n) & 255 for i in range(n)), sizes, st.integers(0, 7))
events = st.lists(
    st.builds(BytesMessage, messages)
    | st.builds(TextMessage, st.text(max_size=20))
    | st.builds(Ping, st.binary(max_size=125))
    | st.builds(Pong, st.binary(max_size=125))
    | st.lists(messages, min_size=2, max_size=4),
    max_size=6,
)


def flatten(items):
    for item in items:
        if isinstance(item, list):
            yield from (BytesMessage(part, message_finished=False) for part in item[:-1])
            yield BytesMessage(item[-1])
        else:
            yield item


def joined(stream):
    """Merge the pieces of messages, which may be cut anywhere."""
    result, part = [], None
    for event in stream:
        if isinstance(event, BytesMessage | TextMessage):
            part = event.data if part is None else part + event.data
            if event.message_finished:
                result.append(type(event)(part))
                part = None
        else:
            result.append(event)
    return result


def shake(client, server):
    head = client.send(REQUEST)
    server.receive_data(head)
    assert [type(e) for e in server.events()] == [Request]
    return server.send(AcceptConnection())


def feed(connection, data, cuts):
    got, position, turn = [], 0, 0
    while position < len(data):
        size = cuts[turn % len(cuts)] * (1 + len(data) // 2000)
        connection.receive_data(data[position : position + size])
        got += connection.events()
        position += size
        turn += 1
    return got


@settings(deadline=None, max_examples=60)
@given(events, st.lists(st.integers(1, 400) | st.just(100_000), min_size=1, max_size=5), st.booleans())
def test_both_ends_understand_wsproto_and_the_other_way(items, cuts, from_client):
    for sender_kind, receiver_kind in ((WSConnection, Framing), (Framing, WSConnection), (Framing, Framing)):
        kinds = (sender_kind, receiver_kind) if from_client else (receiver_kind, sender_kind)
        client, server = kinds[0](ConnectionType.CLIENT), kinds[1](ConnectionType.SERVER)
        answer = shake(client, server)
        sender, receiver = (client, server) if from_client else (server, client)
        data = b""
        if from_client:
            client.receive_data(answer)
            list(client.events())
        else:
            data = answer  # what follows the HTTP head arrives with it
        sent = list(flatten(items)) if sender_kind is WSConnection else [i for i in items if not isinstance(i, list)]
        data += b"".join(bytes(sender.send(event)) for event in sent)
        data += bytes(sender.send(CloseConnection(1000)))
        got = feed(receiver, data, cuts)
        if not from_client:
            assert isinstance(got.pop(0), type(AcceptConnection()))
        assert isinstance(got.pop(), CloseConnection)
        assert joined(got) == joined(sent)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=80), st.lists(st.integers(1, 9), min_size=1), st.booleans(), events)
def test_fault_81_any_bytes_mean_the_same_to_both(tail, cuts, as_server, items):
    results = []
    for kind in (WSConnection, Framing):
        client, server = WSConnection(ConnectionType.CLIENT), WSConnection(ConnectionType.SERVER)
        receiver = kind(ConnectionType.SERVER if as_server else ConnectionType.CLIENT)
        if as_server:
            client.receive_data(shake(client, receiver))
            list(client.events())
        else:
            receiver.receive_data(shake(receiver, server))
            list(receiver.events())
        # a fixed mask, so that both receive the same bytes
        data = b"".join(
            encode_binary(e.data, b"abcd" if as_server else b"") for e in flatten(items) if isinstance(e, BytesMessage)
        )
        got = []
        for event in feed_until_close(receiver, data + tail, cuts):
            got.append(event)
        results.append(joined(got))
    plain, ours = results
    assert ours == plain[: len(ours)]
    # wsproto refuses some headers at their second byte, we once they are complete
    assert all(isinstance(event, CloseConnection) for event in plain[len(ours) :])


def feed_until_close(connection, data, cuts):
    position, turn = 0, 0
    while position < len(data):
        size = cuts[turn % len(cuts)] * (1 + len(data) // 500)
        connection.receive_data(data[position : position + size])
        for event in connection.events():
            yield event
            if isinstance(event, CloseConnection):
                return
        position += size
        turn += 1


@given(st.binary(max_size=100), st.binary(min_size=4, max_size=4))
def test_the_mask_is_the_one_of_rfc_6455(data, key):
    assert apply_mask(data, key) == bytes(XorMaskerSimple(key).process(bytearray(data)))


def test_a_client_never_repeats_a_mask():
    client = Framing(ConnectionType.CLIENT)
    client.receive_data(shake(client, WSConnection(ConnectionType.SERVER)))
    list(client.events())
    frames = {client.send(BytesMessage(bytes(8))) for _ in range(200)}
    assert len(frames) == 200


def test_a_huge_frame_is_left_to_wsproto_which_streams_it():
    server = Framing(ConnectionType.SERVER)
    shake(WSConnection(ConnectionType.CLIENT), server)
    server.receive_data(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"abcd" + bytes(1000))
    (event,) = server.events()
    assert not event.message_finished
    assert len(event.data) == 1000
    assert MESSAGE_MAX < 1 << 40


def test_endless_heads_and_early_frames_are_refused():
    server = Framing(ConnectionType.SERVER)
    try:
        for _ in range(100):
            server.receive_data(b"GET / HTTP/1.1\r\n" + b"a" * 1000)
        raise AssertionError("not refused")
    except RemoteProtocolError:
        pass
    server = Framing(ConnectionType.SERVER)
    server.receive_data(Framing(ConnectionType.CLIENT).send(REQUEST))
    try:
        for _ in range(100):
            server.receive_data(bytes(1000))
        raise AssertionError("not refused")
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    "frame", [b"\x00\x80abcd", b"\x89\x80abcd", b"\x8a\x81abcdx"], ids=["fragments", "pings", "pongs"]
)
def test_fault_81_a_flood_of_small_frames_is_refused_at_once(frame):
    server = Framing(ConnectionType.SERVER)
    shake(WSConnection(ConnectionType.CLIENT), server)
    server.receive_data(b"\x02\x80abcd" if not frame[0] else b"")
    with pytest.raises(RemoteProtocolError, match="flood"):
        server.receive_data(frame * 300)


def test_a_ping_in_a_while_goes_on_for_ever():
    server = Framing(ConnectionType.SERVER)
    shake(WSConnection(ConnectionType.CLIENT), server)
    for _ in range(1000):
        server.receive_data(b"\x89\x80abcd")
        assert [type(e) for e in server.events()] == [Ping]
