"""Forwarded requests: whatever anybody on the way changes is found out, and what makes no sense is refused."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import LocalProtocolError, MalformedError, RemoteProtocolError, SealError
from fsdecloud.limits import MESSAGE_MAX, WINDOW_BYTES
from fsdecloud.types import PeerId
from fsdecloud.wire import announcements, forwarding
from fsdecloud.wire import peer as wire
from fsdecloud.wire.session import ClientSession, ServerSession

NETWORK, NOW = b"n" * 32, 1_800_000_000
PEER_SEED, DEAL_SEED, OWNER_SEED = b"p" * 32, b"d" * 32, b"o" * 32
PEER, DEAL, OWNER = PeerId(sign.public_key(PEER_SEED)), sign.public_key(DEAL_SEED), sign.public_key(OWNER_SEED)
GET = wire.Get(0, bytes(32), 0, 0)
PUT = wire.Put(0, (wire.Shard(bytes(32), memoryview(b"data")),))


def make(request=PUT, *, deal_seed=DEAL_SEED, owner=OWNER, number=7, nonce=b"1" * 32):
    return forwarding.make_forward(
        request, network=NETWORK, target=PEER, nonce=nonce, hops=1, patience=1000, deal_seed=deal_seed, owner=owner, now=NOW
    )(number)  # fmt: skip


def answered(forward, answer, seed=PEER_SEED):
    return forwarding.make_answer(forward, answer, network=NETWORK, seed=seed)


def test_a_request_and_its_answer():
    forward = make()
    assert forward.request == 7
    forwarding.check_forward(forward, network=NETWORK, now=NOW + 10)
    assert codec.encode(forwarding.open_forward(forward)) == codec.encode(PUT)
    found = forwarding.check_answer(forward, answered(forward, wire.PutDone(0, b"", ())), network=NETWORK)
    assert found == wire.PutDone(0, b"", ())


def test_what_a_relay_changes_for_the_next_one_is_not_signed():
    """Number, hops and patience: they say nothing to the target."""
    forward = msgspec.structs.replace(make(), request=9, hops=0, patience=1)
    forwarding.check_forward(forward, network=NETWORK, now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"target": sign.public_key(b"x" * 32)},
        {"nonce": bytes(32)},
        {"deal": OWNER},
        {"owner": DEAL},
        {"owner": b""},
        {"expires": NOW + forwarding.LIFE + 1},
        {"body": memoryview(codec.encode(wire.Put(0, (wire.Shard(bytes(32), memoryview(b"dato")),))))},
        {"body": memoryview(codec.encode(GET))},
        {"signature": bytes(64)},
        {"signature": b""},
        {"deal": b""},
        {"deal": b"", "signature": b""},
        {"deal": b"", "signature": b"", "expires": 0},
    ],
    ids=str,
)
def test_every_field_that_matters_is_signed(changes):
    with pytest.raises(SealError):
        forwarding.check_forward(msgspec.structs.replace(make(), **changes), network=NETWORK, now=NOW)


def test_a_signature_holds_for_its_network_and_its_time():
    forward = make()
    for network, now in ((b"m" * 32, NOW), (NETWORK, NOW + forwarding.LIFE), (NETWORK, NOW - forwarding.LIFE_MAX)):
        with pytest.raises(SealError):
            forwarding.check_forward(forward, network=network, now=now)
    forwarding.check_forward(make(GET, deal_seed=None), network=b"m" * 32, now=0)  # says nothing that could be false


def test_an_owner_that_cannot_sign_is_refused():
    with pytest.raises(SealError):
        forwarding.check_forward(make(owner=b"\x01" + bytes(31)), network=NETWORK, now=NOW)


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", codec.encode(wire.Info(1)), codec.encode(wire.Peers(0, 1, b"")), codec.encode(wire.Data(0, b""))],
)
def test_a_body_that_is_no_request_is_refused(body):
    with pytest.raises(MalformedError):
        forwarding.open_forward(msgspec.structs.replace(make(), body=memoryview(body)))


def test_a_forward_in_a_forward_is_refused():
    with pytest.raises(MalformedError):
        forwarding.open_forward(msgspec.structs.replace(make(), body=memoryview(codec.encode(make(number=0)))))


@given(st.binary(max_size=200))
def test_any_body_is_a_request_or_malformed(body):
    with suppress(MalformedError):
        forwarding.open_forward(msgspec.structs.replace(make(GET), body=memoryview(body)))


def test_nobody_but_the_target_answers():
    forward = make(GET)
    good = answered(forward, wire.Error(0, "missing", "no"))
    assert forwarding.check_answer(forward, good, network=NETWORK).code == "missing"
    for other, answer, network in (
        (forward, answered(forward, wire.Error(0, "missing", "no"), seed=b"r" * 32), NETWORK),  # a relay's no
        (make(GET, nonce=b"2" * 32), good, NETWORK),  # said before
        (make(wire.Get(0, b"x" * 32, 0, 0)), good, NETWORK),  # said of something else
        (forward, good, b"m" * 32),
        (forward, msgspec.structs.replace(good, body=memoryview(codec.encode(wire.Data(0, b"")))), NETWORK),
    ):
        with pytest.raises(SealError):
            forwarding.check_answer(other, answer, network=network)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (GET, wire.HasResult(0, ())),
        (GET, wire.Data(1, b"")),
        (GET, wire.Forwarded(0, bytes(64), memoryview(b""))),
        (wire.Has(0, (bytes(32),)), wire.HasResult(0, (True, True))),
        (PUT, wire.PutDone(0, b"", (wire.Refusal(bytes(32), ""),) * 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_target_that_does_not_keep_to_the_protocol_is_not_believed(request_, answer):
    forward = make(request_)
    with pytest.raises(MalformedError):
        forwarding.check_answer(forward, answered(forward, answer), network=NETWORK)


# ---- sessions ----------------------------------------------------------------------------------------------------------
def sessions():
    server = ServerSession(peer=PEER, network=NETWORK, nonce=b"1" * 32, certificate_hash=bytes(32), window=WINDOW_BYTES)
    client = ClientSession(peer=PEER, network=NETWORK, nonce=b"2" * 32, certificate_hash=bytes(32))
    client.receive(server.start())
    server.receive(client.hello())
    client.receive(server.welcome(admitted=False, free=0, reason=""))
    return server, client


def test_a_message_holds_the_largest_forwarded_put_and_its_answer():
    largest = wire.PUT_BYTES_MAX // wire.SHARDS_MAX
    shards = tuple(wire.Shard(bytes(32), memoryview(bytes(largest))) for _ in range(wire.SHARDS_MAX))
    server, client = sessions()
    forward = make(wire.Put(0, shards), number=0)
    assert forward.body.nbytes <= wire.BODY_MAX
    frame = client.request(forward)
    assert len(frame) <= MESSAGE_MAX
    server.receive(frame)
    refusals = tuple(wire.Refusal(bytes(32), "x" * wire.TEXT_MAX) for _ in range(wire.SHARDS_MAX))
    for answer in (wire.Data(0, bytes(wire.PUT_BYTES_MAX)), wire.PutDone(0, bytes(256 << 10), refusals)):
        assert len(codec.encode(answered(forward, answer))) <= MESSAGE_MAX


def test_bodies_count_against_the_window():
    server, client = sessions()
    body = memoryview(bytes(wire.BODY_MAX))
    forward = msgspec.structs.replace(make(), body=body)
    for number in range(WINDOW_BYTES // wire.BODY_MAX):
        server.receive(client.request(msgspec.structs.replace(forward, request=number)))
    last = msgspec.structs.replace(forward, request=99)
    with pytest.raises(RemoteProtocolError, match="window"):
        server.receive(codec.encode(last))
    _, client = sessions()
    with pytest.raises(LocalProtocolError):
        client.request(msgspec.structs.replace(forward, request=0, body=memoryview(bytes(wire.BODY_MAX + 1))))


# ---- announcements -----------------------------------------------------------------------------------------------------
URL = f"wss://192.0.2.7:7711/{PEER.hex()}"


def test_an_announcement_is_its_peers_word_about_itself():
    data = announcements.sign_announcement(PEER_SEED, network=NETWORK, url=URL, sequence=NOW)
    found = announcements.verify_announcement(data, network=NETWORK, now=NOW)
    assert (found.peer, found.url, found.sequence) == (PEER, URL, NOW)
    for changes in ({"peer": DEAL}, {"url": URL + "?"}, {"sequence": NOW + 1}, {"version": 2}, {"network": bytes(32)}):
        changed = codec.encode(msgspec.structs.replace(found, **changes))
        with pytest.raises(SealError):
            announcements.verify_announcement(changed, network=NETWORK, now=NOW)
    for network, now in ((b"m" * 32, NOW), (NETWORK, NOW - announcements.FUTURE_MAX - 1)):
        with pytest.raises(SealError):
            announcements.verify_announcement(data, network=network, now=now)


@given(st.integers(0, 300), st.integers(1, 255))
def test_an_announcement_with_any_changed_byte_is_refused(at, change):
    data = bytearray(announcements.sign_announcement(PEER_SEED, network=NETWORK, url=URL, sequence=NOW))
    data[at % len(data)] ^= change
    with pytest.raises((SealError, MalformedError)):
        announcements.verify_announcement(bytes(data), network=NETWORK, now=NOW)
