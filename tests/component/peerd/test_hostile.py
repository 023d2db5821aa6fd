"""Clients that say whatever they like to a peer that is a process: it goes on, stays small, and serves the others."""

import json
import os
import resource
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from wsproto.events import CloseConnection

from fsdecloud.crypto import sign
from fsdecloud.limits import MESSAGE_MAX, MIB, PEER_CONNECTIONS_MAX, WINDOW_BYTES
from fsdecloud.net.frames import encode_binary
from fsdecloud.net.pool import open_pool
from fsdecloud.types import PeerId
from fsdecloud.wire import forwarding
from fsdecloud.wire import peer as wire
from fsdecloud.wire.forwarding import make_forward
from tests.component.peerd.hostile import hostile, raw
from tests.component.peerd.process import DEAL_SEED, NETWORK, peer_process, shard

DEAL = sign.public_key(DEAL_SEED)
VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "peer.json").read_text())

GROWTH_MAX = 48 * MIB
"""What a peer may grow by, whatever is sent to it: some receive buffers, some messages, and what malloc keeps of them."""


def run(work):
    async def bounded():
        with trio.fail_after(120):
            await work()

    trio.run(bounded)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One peer for all tests here; at the end it must still be there, and end in peace."""
    with peer_process(tmp_path_factory.mktemp("peer")) as peer:
        yield peer


@pytest.fixture
def peer(running):
    """The peer; after each test it still serves, and has no bug in its log."""
    yield running
    run(running.check)
    assert "Traceback" not in running.log()
    assert "unexpectedly" not in running.log()


def messages():
    """Yield (name, before or after the hello, message): everything malformed that there is."""
    for error in VECTORS["errors"]:
        if error["instead_of"] in ("hello", "request"):
            yield f"{error['instead_of']}: {error['what']}", error["instead_of"], bytes.fromhex(error["bytes"])
    everywhere = {
        "nothing": b"",
        "not MessagePack": b"\xc1",
        "deep": b"\x91" * 100_000,
        "deep maps": b"\x81\xa1a" * 100_000,
        "2^32 - 1 elements": b"\xdd\xff\xff\xff\xff",
        "10^9 elements": b"\xdd" + (10**9).to_bytes(4, "big") + b"\xc0" * 1000,
        "2^32 - 1 pairs": b"\xdf\xff\xff\xff\xff",
        "4 GiB of bytes": b"\xc6\xff\xff\xff\xff",
        "4 GiB of text": b"\xdb\xff\xff\xff\xff",
        "an extension of 4 GiB": b"\xc9\xff\xff\xff\xff\x01",
        "a key twice": b"\x82\xa1a\x01\xa1a\x02",
        "not a number": msgspec.msgpack.encode([13, float("nan")]),
        "2 MiB of ones": b"\x01" * MESSAGE_MAX,
        "2 MiB of empty arrays": b"\xdd" + (MESSAGE_MAX - 5).to_bytes(4, "big") + b"\x90" * (MESSAGE_MAX - 5),
        "a challenge": bytes.fromhex(VECTORS["handshake"]["frames"][0]["bytes"]),
        "a welcome": bytes.fromhex(VECTORS["handshake"]["frames"][-1]["bytes"]),
        "text that is not UTF-8": b"\x94\x1e\x00\xa2\xff\xfe\xa0",
    }
    for name, data in everywhere.items():
        yield f"hello: {name}", "hello", data
        yield f"request: {name}", "request", data
    many = [[bytes(32), b""]] * (wire.SHARDS_MAX + 1)
    yield "too many shards", "request", msgspec.msgpack.encode([10, 0, many])
    yield "2 MiB of ids", "request", msgspec.msgpack.encode([12, 0, [bytes(32)] * 61_000])
    yield "2 MiB of ids to renew", "request", msgspec.msgpack.encode([16, 0, [bytes(32)] * 61_000])
    yield "a grant of 2 MiB", "request", msgspec.msgpack.encode([14, 0, bytes(2_000_000)])
    yield "a shard of 2 MiB", "request", msgspec.msgpack.encode([10, 0, [[bytes(32), bytes(MESSAGE_MAX - 60)]]])


def test_faults_079_and_085_every_malformed_message_there_is(peer):

    async def one(name, state, message):
        async with hostile(peer.address) as client:
            if state == "request":
                await client.greet(peer.address, NETWORK, DEAL_SEED)
            else:
                assert await client.receive()
            await client.send_frame(message)
            code, reason = await client.wait_closed()
            assert (code, bool(reason)) == (1002, True), name
            assert reason.isprintable(), name

    async def work():
        await peer.check()
        every = list(messages())
        for item in every[:10]:
            await one(*item)
        before = peer.resident()
        for item in every:
            await one(*item)
        assert peer.resident() - before < GROWTH_MAX
        await peer.check(1)

    stored = peer.status().stored_shards
    run(work)
    assert peer.status().stored_shards == stored + 2


def test_fault_085_a_client_of_other_versions_is_told_so(peer):

    async def work():
        for newest, oldest, words in (
            (wire.OLDEST - 1, 1, "no common protocol version"),
            (wire.VERSION + 9, wire.VERSION + 1, "no common protocol version"),
            (wire.VERSION + 9, wire.OLDEST, ""),
        ):
            async with hostile(peer.address) as client:
                assert await client.receive()
                terms = wire.HelloTerms(newest, oldest, NETWORK, bytes(32), b"", b"")
                await client.send_frame(msgspec.msgpack.encode(wire.Hello(msgspec.msgpack.encode(terms), b"")))
                if words:
                    code, reason = await client.wait_closed()
                    assert code == 1002
                    assert words in reason
                else:
                    assert msgspec.msgpack.decode(await client.receive() or b"")[0] == 3

    run(work)


def test_fault_080_compression_is_not_negotiated(peer):

    async def work():
        offer = [(b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits")]
        async with hostile(peer.address, offer) as client:
            assert not any(name.lower() == b"sec-websocket-extensions" for name, _ in client.headers)
            frame = bytearray(encode_binary(bytes(1000), b"mask"))
            frame[0] |= 0x40  # "this message is compressed"
            await client.send(bytes(frame))
            assert (await client.wait_closed())[0] in (1002, 1006)
        await peer.check()

    run(work)


def test_fault_081_floods_of_frames_cost_little(peer):
    """Empty fragments and pings by the million are read and dropped, and end when they brought no message for long."""

    async def pour(first, more):
        async with hostile(peer.address) as client:
            await client.greet(peer.address, NETWORK, None)
            await client.stream.send_all(first)

            async def drain():
                await client.wait_closed()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain)
                with suppress(trio.BrokenResourceError):
                    for _ in range(60):
                        await client.stream.send_all(more)
                nursery.cancel_scope.cancel()

    async def work():
        await peer.check()
        before = peer.resident()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, b"\x02\x80abcd", b"\x00\x80abcd" * 2000)
            nursery.start_soon(pour, b"", b"\x89\x80abcd" * 2000)
            for i in range(5):
                await peer.check(i)
        assert peer.resident() - before < GROWTH_MAX

    run(work)


def forwards(target):
    """Yield (name, what the answer's code may be, Forward): well-formed messages around everything that is wrong."""
    put = wire.Put(0, (wire.Shard(shard(3)[0], memoryview(shard(3)[1])),))
    other = PeerId(sign.public_key(b"z" * 32))
    make = partial(
        make_forward, network=NETWORK, target=target, nonce=bytes(32), hops=3, patience=60_000,
        deal_seed=DEAL_SEED, owner=b"", now=int(time.time()),
    )  # fmt: skip
    good = make(put)(0)
    yield "nobody knows the target", {"unreachable"}, make(put, target=other)(0)
    for error in VECTORS["errors"]:
        if error["instead_of"] == "request":
            bad = memoryview(bytes.fromhex(error["bytes"]))
            yield f"for us: {error['what']}", {"refused"}, msgspec.structs.replace(good, body=bad)
            yield f"for another: {error['what']}", {"refused"}, msgspec.structs.replace(good, body=bad, target=other)
    inner = memoryview(msgspec.msgpack.encode(good))
    yield "a Forward in a Forward", {"refused"}, msgspec.structs.replace(good, body=inner)
    yield (
        "a wish for peers in it",
        {"refused"},
        msgspec.structs.replace(good, body=memoryview(b"\x94\x10\x00\x40\xc4\x00")),
    )
    yield "a numbered request", {"refused"}, msgspec.structs.replace(good, body=memoryview(b"\x92\x0d\x01"))
    for name, changes in {
        "no signature": {"signature": b""},
        "another's signature": {"signature": bytes(64)},
        "another deal": {"deal": sign.public_key(b"e" * 32)},
        "a key of small order": {"deal": bytes(32)},
        "a deal of 5 bytes": {"deal": b"12345"},
        "another owner": {"owner": bytes(32)},
        "another nonce": {"nonce": b"1" * 32},
        "a later end": {"expires": good.expires + 1},
        "an end in 10,000 years": {"expires": (1 << 53) - 1},
        "no deal but an owner": {"deal": b"", "signature": b"", "expires": 0, "owner": bytes(32)},
        "no deal at all": {"deal": b"", "signature": b"", "expires": 0},
        "another shard": {"body": memoryview(bytes(good.body)[:-1] + b"!")},
    }.items():
        yield name, {"refused"}, msgspec.structs.replace(good, **changes)


def test_faults_079_and_095_forwards_of_everything_that_is_wrong(peer):
    """Each is answered with a no, and the connection goes on; nothing is stored."""

    async def work():
        async with open_pool(network=NETWORK) as pool:
            for name, codes, forward in forwards(peer.address.id):
                build = partial(lambda forward, number: msgspec.structs.replace(forward, request=number), forward)
                answer = await pool.forward(peer.address, build, forward.body.nbytes)
                if isinstance(answer, wire.Forwarded):
                    answer = check_said(forward, answer)
                assert isinstance(answer, wire.Error), name
                assert answer.code in codes, (name, answer)
            assert pool.statistics()["connections"] == 1

    stored = peer.status().stored_shards
    run(work)
    assert peer.status().stored_shards == stored


def check_said(forward, answer):
    """Return what a peer says of a body that need not make sense."""
    sign.verify(
        forward.target,
        forwarding.ANSWER_DOMAIN,
        forwarding._answer_terms(forward, NETWORK, answer.body),
        answer.signature,
    )
    return msgspec.msgpack.decode(answer.body, type=wire.Error)


def test_fault_095_a_flood_of_forwards_is_bounded_and_leaves_room_for_others(peer):
    """More than it forwards at once, each with a MiB, for peers that nobody knows; and questions for other peers."""
    put = wire.Put(0, (wire.Shard(bytes(32), memoryview(bytes(MIB))),))

    async def pour(codes):
        async with open_pool(network=NETWORK) as pool, trio.open_nursery() as nursery:

            async def one():
                make = make_forward(
                    put, network=NETWORK, target=PeerId(os.urandom(32)), nonce=os.urandom(32), hops=3,
                    patience=60_000, deal_seed=None, owner=b"", now=0,
                )  # fmt: skip
                answer = await pool.forward(peer.address, make, put.shards[0].data.nbytes + 100)
                codes[answer.code] += 1

            for _ in range(40):
                nursery.start_soon(one)

    async def work():
        await peer.check()
        codes = Counter()
        before = peer.resident()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(pour, codes)
            for i in range(5):
                await peer.check(i)
        assert sum(codes.values()) == 120
        assert set(codes) <= {"unreachable", "busy"}
        assert peer.resident() - before < 3 * 4 * WINDOW_BYTES + GROWTH_MAX

    run(work)


@pytest.mark.parametrize(
    "silent", [30, pytest.param(PEER_CONNECTIONS_MAX + 20, marks=pytest.mark.long)], ids=["some", "all"]
)
def test_fault_082_a_thousand_unfinished_handshakes_block_nobody(silent, peer):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))

    async def work():
        await peer.check()
        before = peer.resident()
        host, port = peer.address.host, peer.address.port
        async with AsyncExitStack() as stack:
            for i in range(1000 - silent):
                stream = await trio.open_tcp_stream(host, port)
                stack.push_async_callback(trio.aclose_forcefully, stream)
                if i % 2:
                    with suppress(trio.BrokenResourceError):
                        await stream.send_all(b"\x16\x03\x01\x02\x00")  # the beginning of a TLS record
            await peer.check(1)
            for _ in range(10):  # TLS, and half a request
                stream = await stack.enter_async_context(raw(peer.address))
                await stream.send_all(b"GET /")
            for i in range(silent):  # everything but a hello: more than it serves at once, from three places
                source = f"127.0.0.{2 + i % 3}"  # one alone gets three quarters
                client = await stack.enter_async_context(hostile(peer.address, source=source))
                assert client.headers is not None
                assert not client.rejected
            await peer.check(2)
            assert peer.resident() - before < PEER_CONNECTIONS_MAX * MIB  # the receive buffers of those it serves

    run(work)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /ID HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET /ID HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", b"400"),
        (b"POST /ID HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n0123456789", b"400"),
        (b"GET /ID HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
        (b"\x00\xff\r\n\r\n", b"400"),
    ],
    ids=["two lengths", "two hosts", "a body", "a long header", "not HTTP"],
)
def test_fault_083_requests_that_two_servers_would_read_differently(request_, status, peer):

    async def work():
        async with raw(peer.address) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(request_.replace(b"/ID", b"/" + peer.address.id.hex().encode()))
            answer = bytearray()
            with suppress(trio.BrokenResourceError):
                while data := await stream.receive_some():
                    answer += data
            assert not answer or answer.startswith(b"HTTP/1.1 4"), answer
            assert not answer or status in answer[:20]
        await peer.check()

    run(work)


def test_fault_084_a_page_in_a_browser_gets_nothing(peer):

    async def work():
        async with hostile(peer.address, [(b"Origin", b"https://evil.example")]) as client:
            assert client.rejected == 403
        other = type(peer.address)(peer.address.host, peer.address.port, bytes(32))
        async with hostile(other) as client:
            assert client.rejected == 404

    run(work)


def test_fault_086_a_recorded_session_is_worth_nothing(peer):

    async def work():
        i, data = shard(7, 5000)
        async with hostile(peer.address) as client:
            session = await client.greet(peer.address, NETWORK, DEAL_SEED)
            await client.send_frame(session.request(wire.Put(0, (wire.Shard(i, memoryview(data)),))))
            assert session.receive(await client.receive()).receipt
            recorded = bytes(client.sent)
        upgrade = recorded.index(b"\r\n\r\n") + 4
        async with hostile(peer.address) as client:
            await client.send(recorded[upgrade:])
            code, reason = await client.wait_closed()
            assert code == 1002
            assert "not signed" in reason

    stored = peer.status().stored_shards
    run(work)
    assert peer.status().stored_shards == stored + 1


def test_fault_087_nothing_that_a_client_says_reaches_the_log_as_it_is(peer):
    evil = b"\x1b[31mred\x07\r\nFORGED line \xe2\x80\xae"

    async def work():
        async with raw(peer.address) as stream:
            await stream.send_all(b"GET /%s HTTP/1.1\r\nHost: %s\r\n\r\n" % (evil, evil))
            with suppress(trio.BrokenResourceError):
                await stream.receive_some()
        async with hostile(peer.address) as client:
            await client.send(client.framing.send(CloseConnection(4000, evil[:20].decode("utf-8", "replace"))))
            await client.wait_closed()
        for state in (None, DEAL_SEED):
            async with hostile(peer.address) as client:
                await client.greet(peer.address, NETWORK, state)
                await client.send_frame(msgspec.msgpack.encode([evil.decode(), 0]))
                _, reason = await client.wait_closed()
                assert reason.isprintable()
        await peer.check()

    run(work)
    assert "\x1b" not in peer.log()
    assert "\x07" not in peer.log()
    assert "FORGED" not in peer.log()


def test_fault_095_little_is_answered_to_who_has_not_said_who_it_is(peer):

    async def work():
        async with hostile(peer.address) as client:
            assert await client.receive()
            assert client.received < 1024  # the answer to the upgrade, and the challenge
            with trio.move_on_after(0.2):
                await client.receive()
                raise AssertionError("more was said")

    run(work)


def test_fault_095_small_requests_for_much_are_answered_as_fast_as_they_are_taken(peer):
    """Who asks for 64 MiB with 64 small messages, again and again, and takes nothing."""

    async def work():
        i, data = shard(1, MIB)
        async with open_pool(network=NETWORK, deal_seed=lambda _peer: DEAL_SEED) as pool:
            await pool.put(peer.address, [(i, data)])
        await peer.check(2)
        before, served = peer.resident(), peer.status().served_bytes
        clients = 4
        async with AsyncExitStack() as stack:
            for _ in range(clients):
                client = await stack.enter_async_context(hostile(peer.address))
                session = await client.greet(peer.address, NETWORK, None)
                for number in range(wire.REQUESTS_MAX):
                    await client.send_frame(session.request(wire.Get(number, i, 0, 0)))
            last = -1
            while (now := peer.status().served_bytes) != last:  # until nothing moves any more
                last = now
                await trio.sleep(0.3)
            # what lies in the kernel's buffers on both sides, and a few answers in the peer
            assert now - served < clients * 24 * MIB
            assert peer.resident() - before < clients * 8 * MIB + GROWTH_MAX
            await peer.check(3)

    run(work)
