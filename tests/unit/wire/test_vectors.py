"""The peer protocol's bytes are a promise: tests/vectors/peer.json has an example of everything, and it must not change
within a version. Whoever writes a second implementation tests it with the same file (fsdecloud-protocol(7)).
"""

import json
import typing
from pathlib import Path

import msgspec
import pytest

from fsdecloud import codec
from fsdecloud.contracts.deal import Revision, SignedRevision, sign_revision
from fsdecloud.crypto import sign
from fsdecloud.errors import RemoteProtocolError
from fsdecloud.limits import WINDOW_BYTES
from fsdecloud.net import tls
from fsdecloud.net.frames import encode_binary
from fsdecloud.swarm import dealing
from fsdecloud.wire import announcements, forwarding, grants, receipts, session
from fsdecloud.wire import peer as wire
from fsdecloud.wire.deals import Added
from fsdecloud.wire.session import ClientSession, Greeting, ServerSession

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "peer.json").read_text())

PEER_SEED, DEAL_SEED, OWNER_SEED = (bytes(range(start, start + 32)) for start in (0, 32, 64))
PEER, DEAL, OWNER = map(sign.public_key, (PEER_SEED, DEAL_SEED, OWNER_SEED))
NETWORK, SERVER_NONCE, CLIENT_NONCE, GRANT_NONCE = (bytes([value]) * 32 for value in (0xA1, 0xB2, 0xC3, 0xD4))
SHARD, OTHER = bytes([0xE5]) * 32, bytes([0xF6]) * 32
CERTIFICATE = tls.make_certificate(PEER_SEED)
LARGEST = (1 << 53) - 1

RECEIPT = receipts.sign_receipt(
    PEER_SEED, PEER, DEAL, 1_800_000_000, (receipts.ShardItem(SHARD, 5), receipts.ShardItem(OTHER, 70_000))
)
GRANT = grants.sign_grant(
    OWNER_SEED,
    network=NETWORK,
    peer=PEER,
    deal=DEAL,
    not_before=1_800_000_000,
    expires=1_800_000_120,
    nonce=GRANT_NONCE,
    shards=(SHARD, OTHER),
)
PUT = wire.Put(0, (wire.Shard(SHARD, memoryview(b"shard")),))
FORWARD_NONCE = bytes([0x17]) * 32


def forward(request, deal_seed, owner, nonce=FORWARD_NONCE):
    return forwarding.make_forward(
        request,
        network=NETWORK,
        target=PEER,
        nonce=nonce,
        hops=1,
        patience=15_000,
        deal_seed=deal_seed,
        owner=owner,
        now=1_800_000_000,
    )


FORWARD = forward(PUT, DEAL_SEED, OWNER)(201)
FORWARDED = forwarding.make_answer(FORWARD, wire.PutDone(0, RECEIPT, ()), network=NETWORK, seed=PEER_SEED)
URL = f"wss://192.0.2.7:7711/{PEER.hex()}?network={NETWORK.hex()}"
ANNOUNCEMENT = announcements.sign_announcement(PEER_SEED, network=NETWORK, url=URL, sequence=1_800_000_000)
FIRST = dealing.first_revision()
REVISION = Revision(2, bytes([0x28]) * 32, 70_005, 12_345, 3, False)
CONTRACT = bytes([0x39]) * 32


def signature(seed, revision):
    return sign_revision(seed, NETWORK, CONTRACT, revision)


NEWEST = SignedRevision(REVISION, signature(DEAL_SEED, REVISION), signature(PEER_SEED, REVISION))
REQUESTS = (
    wire.Put(0, (wire.Shard(SHARD, memoryview(b"shard")), wire.Shard(OTHER, memoryview(b"")))),
    wire.Get(1, SHARD, 0, 0),
    wire.Get(2, SHARD, 1024, 65536),
    wire.Has(3, (SHARD, OTHER)),
    wire.Info(200),
    FORWARD,
    forward(wire.Get(0, SHARD, 0, 0), None, b"")(202),
    wire.Peers(203, 64, ANNOUNCEMENT),
    wire.Renew(204, (SHARD, OTHER)),
    wire.Fund(205, CONTRACT, signature(DEAL_SEED, FIRST)),
    wire.Revise(
        206,
        CONTRACT,
        (Added(SHARD, 5), Added(OTHER, 70_000)),
        (bytes([0x4A]) * 32,),
        REVISION,
        signature(DEAL_SEED, REVISION),
    ),
    wire.Attest(207, CONTRACT, 2, bytes([0x5B]) * 32, 46),
    wire.Delete(LARGEST, GRANT),
)
ANSWERS = (
    wire.PutDone(0, RECEIPT, ()),
    wire.PutDone(0, b"", (wire.Refusal(SHARD, "full"), wire.Refusal(OTHER, "not what its id says"))),
    wire.Data(1, b"shard"),
    wire.HasResult(3, (True, False)),
    wire.InfoResult(200, "0.1", True, "", 1 << 40, 1 << 39, 1 << 38, 1_000_000),
    wire.RenewDone(204, RECEIPT),
    wire.RenewDone(204, b""),
    wire.DealState(206, CONTRACT, True, NEWEST),
    wire.Attested(207, b"proof"),
    wire.DeleteDone(LARGEST, (wire.Refusal(OTHER, "stored again since"),)),
    FORWARDED,
    wire.PeersResult(203, (ANNOUNCEMENT,)),
    *(
        wire.Error(1, code, "why")
        for code in ("missing", "range", "refused", "busy", "failed", "unreachable", "late", "loop")
    ),
)
ERRORS = (
    ("challenge", "a shorter one", b"\x96\x01\x05\x05"),
    ("challenge", "a network of 31 bytes", [1, 5, 5, bytes(31), PEER, SERVER_NONCE, bytes(32)]),
    ("challenge", "no common version", [1, 2, 1, NETWORK, PEER, SERVER_NONCE, tls.certificate_hash(CERTIFICATE)]),
    ("hello", "one without signature", [2, [5, 5, NETWORK, CLIENT_NONCE, DEAL, b""], b""]),
    ("hello", "an owner without a deal", [2, [5, 5, NETWORK, CLIENT_NONCE, b"", OWNER], b""]),
    ("hello", "a further field outside the terms", [2, [5, 5, NETWORK, CLIENT_NONCE, b"", b""], b"", 0]),
    ("welcome", "a window under one message", [3, 1 << 20, True, 0, ""]),
    ("welcome", "a reason of 501 characters", [3, 1 << 23, True, 0, "x" * 501]),
    ("request", "a type that this version has not", [18, 0]),
    ("request", "an answer's type", [21, 0, b""]),
    ("request", "a further field", [13, 0, 0]),
    ("request", "a missing field", [11, 0, SHARD, 0]),
    ("request", "a map", {"request": 0}),
    ("request", "bytes after the end", b"\x92\x0d\x00\x00"),
    ("request", "a number past 2^53 - 1", [13, LARGEST + 1]),
    ("request", "a negative number", [13, -1]),
    ("request", "a Put of nothing", [10, 0, []]),
    ("request", "a Renew of nothing", [17, 0, []]),
    ("request", "a Renew with an id of 31 bytes", [17, 0, [bytes(31)]]),
    ("request", "an id of 33 bytes", [11, 0, bytes(33), 0, 0]),
    ("request", "a Put that says it has 2^32 - 1 shards", b"\x93\x0a\x00\xdd\xff\xff\xff\xff"),
    (
        "request",
        "a Forward through more hops than there are",
        [15, 0, PEER, FORWARD_NONCE, 4, 1, b"", b"", 0, b"", b""],
    ),
    ("request", "a Forward with no time left", [15, 0, PEER, FORWARD_NONCE, 0, 0, b"", b"", 0, b"", b""]),
    ("request", "a Forward to an address", [15, 0, URL, FORWARD_NONCE, 0, 1, b"", b"", 0, b"", b""]),
    ("request", "a wish for 65 peers", [16, 0, 65, b""]),
    ("request", "a Fund with a signature of 63 bytes", [40, 0, CONTRACT, bytes(63)]),
    ("request", "a Revise to revision 0", [41, 0, CONTRACT, [], [], [0, bytes(32), 0, 0, 0, False], bytes(64)]),
    (
        "request",
        "a Revise that adds nothing's bytes",
        [41, 0, CONTRACT, [[SHARD, 0]], [], [1, bytes(32), 0, 0, 0, False], bytes(64)],
    ),
    ("request", "an Attest without samples", [42, 0, CONTRACT, 1, bytes(32), 0]),
    ("request", "an Attest with 65 samples", [42, 0, CONTRACT, 1, bytes(32), 65]),
    ("answer", "one that nobody asked for", [21, 7, b""]),
    ("answer", "the wrong one", [21, 0, b""]),
    ("answer", "one truth for two ids", [22, 3, [True]]),
    ("answer", "a Forwarded with a signature of 63 bytes", [25, 4, bytes(63), b""]),
    ("answer", "more peers than were wanted", [26, 5, [b"", b""]]),
)
LENGTHS = (0, 1, 125, 126, 65535, 65536)


def server():
    return ServerSession(
        peer=PEER,
        network=NETWORK,
        nonce=SERVER_NONCE,
        certificate_hash=tls.certificate_hash(CERTIFICATE),
        window=WINDOW_BYTES,
    )


def client():
    return ClientSession(
        peer=PEER, network=NETWORK, nonce=CLIENT_NONCE, certificate_hash=tls.certificate_hash(CERTIFICATE)
    )


def fields(value):
    """Return a message as JSON: structs as objects, bytes in hexadecimal."""
    if isinstance(value, msgspec.Struct):
        return {name: fields(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple | list):
        return [fields(item) for item in value]
    return bytes(value).hex() if isinstance(value, bytes | memoryview) else value


def described(message, data):
    config = type(message).__struct_config__
    return {"type": type(message).__name__, "tag": config.tag, "fields": fields(message), "bytes": data.hex()}


def error_bytes(state, body):
    if isinstance(body, bytes):
        return body
    if state == "hello":
        body = [body[0], msgspec.msgpack.encode(body[1]), *body[2:]]
    return msgspec.msgpack.encode(body)


def handshake():
    s, c = server(), client()
    challenge = s.start()
    c.receive(challenge)
    hello = c.hello(DEAL_SEED, OWNER)
    assert s.receive(hello) == Greeting(wire.VERSION, DEAL, OWNER)
    welcome = s.welcome(admitted=True, free=1 << 38, reason="")
    c.receive(welcome)
    reader = client()
    reader.receive(challenge)
    terms = codec.decode(hello, wire.Hello).terms
    return {
        "subprotocol": wire.SUBPROTOCOL,
        "request_path": "/" + PEER.hex(),
        "certificate": CERTIFICATE.hex(),
        "certificate_hash": tls.certificate_hash(CERTIFICATE).hex(),
        "frames": [
            described(codec.decode(challenge, wire.Challenge), challenge),
            described(codec.decode(hello, wire.Hello), hello),
            described(codec.decode(reader_hello := reader.hello(), wire.Hello), reader_hello),
            described(codec.decode(welcome, wire.Welcome), welcome),
        ],
        "terms": [described(codec.decode(terms, wire.HelloTerms), terms)],
        "signed": (bytes([len(session.DOMAIN)]) + session.DOMAIN + challenge + terms).hex(),
    }


def found():
    """Return what the file must say."""
    return {
        "keys": {
            "peer_seed": PEER_SEED.hex(),
            "peer": PEER.hex(),
            "deal_seed": DEAL_SEED.hex(),
            "deal": DEAL.hex(),
            "owner_seed": OWNER_SEED.hex(),
            "owner": OWNER.hex(),
        },
        "versions": list(session.SPOKEN),
        "handshake": handshake(),
        "framing": [
            {
                "message": f"{length} bytes 0x78",
                "server_frame_begins": encode_binary(b"x" * length, b"")[:16].hex(),
                "mask": "0badcafe",
                "client_frame_begins": encode_binary(b"x" * length, bytes.fromhex("0badcafe"))[:20].hex(),
            }
            for length in LENGTHS
        ],
        "requests": [described(message, codec.encode(message)) for message in REQUESTS],
        "answers": [described(message, codec.encode(message)) for message in ANSWERS],
        "receipt": described(codec.decode(RECEIPT, receipts.Receipt), RECEIPT),
        "grant": described(codec.decode(GRANT, grants.Grant), GRANT),
        "announcement": described(codec.decode(ANNOUNCEMENT, announcements.Announcement), ANNOUNCEMENT),
        "errors": [
            {"instead_of": state, "what": what, "bytes": error_bytes(state, body).hex()} for state, what, body in ERRORS
        ],
    }


def test_golden_vectors():
    """Formats are promises: these bytes must not change within one version."""
    assert found() == VECTORS


def test_every_message_has_a_vector():
    assert {type(m) for m in REQUESTS} == set(typing.get_args(wire.Request))
    assert {type(m) for m in ANSWERS} == set(typing.get_args(wire.Answer))
    assert set(wire.ANSWERS) == set(typing.get_args(wire.Request))
    assert {f["type"] for f in VECTORS["handshake"]["frames"]} == {"Challenge", "Hello", "Welcome"}
    tags = [
        kind.__struct_config__.tag
        for kind in (wire.Challenge, wire.Hello, wire.Welcome, *wire.ANSWERS, *typing.get_args(wire.Answer))
    ]
    assert len(set(tags)) == len(tags)


def untagged(vector):
    """Return the fields in their order, as plain MessagePack has them."""

    def plain(value):
        return (
            [plain(v) for v in (value.values() if isinstance(value, dict) else value)]
            if isinstance(value, dict | list)
            else value
        )

    return ([] if vector["tag"] is None else [vector["tag"]]) + plain(vector["fields"])


def every_vector():
    shake = VECTORS["handshake"]
    return [
        *shake["frames"],
        *shake["terms"],
        *VECTORS["requests"],
        *VECTORS["answers"],
        VECTORS["receipt"],
        VECTORS["grant"],
        VECTORS["announcement"],
    ]


@pytest.mark.parametrize("vector", every_vector(), ids=lambda v: v["type"])
def test_a_vector_is_an_array_of_its_fields(vector):
    """Decoded by what knows nothing of our messages."""
    assert fields(msgspec.msgpack.decode(bytes.fromhex(vector["bytes"]))) == untagged(vector)


@pytest.mark.parametrize("vector", VECTORS["requests"] + VECTORS["answers"], ids=lambda v: v["type"])
def test_a_vector_decodes_to_what_it_says_and_encodes_again(vector):
    data = bytes.fromhex(vector["bytes"])
    message = codec.decode(data, getattr(wire, vector["type"]))
    assert fields(message) == vector["fields"]
    assert codec.encode(message) == data


def test_the_signatures_hold():
    shake = VECTORS["handshake"]
    hello = shake["frames"][1]["fields"]
    signed = bytes.fromhex(shake["signed"])
    assert hello["terms"] in shake["signed"]
    sign.verify(DEAL, session.DOMAIN, signed[1 + signed[0] :], bytes.fromhex(hello["signature"]))
    assert receipts.verify_receipt(bytes.fromhex(VECTORS["receipt"]["bytes"])).peer == PEER
    grant = bytes.fromhex(VECTORS["grant"]["bytes"])
    announcement = bytes.fromhex(VECTORS["announcement"]["bytes"])
    assert announcements.verify_announcement(announcement, network=NETWORK, now=1_800_000_000).url == URL
    forwarding.check_forward(FORWARD, network=NETWORK, now=1_800_000_001)
    assert forwarding.check_answer(FORWARD, FORWARDED, network=NETWORK).receipt == RECEIPT
    grants.verify_grant(grant, network=NETWORK, peer=PEER, deal=DEAL, owner=OWNER, now=1_800_000_060)


def ready(state):
    """Return the session that waits for what an error vector comes instead of."""
    s, c = server(), client()
    if state == "challenge":
        return c
    challenge = s.start()
    if state == "hello":
        return s
    c.receive(challenge)
    hello = c.hello(DEAL_SEED, OWNER)
    if state == "welcome":
        return c
    s.receive(hello)
    c.receive(s.welcome(admitted=True, free=0, reason=""))
    if state == "request":
        return s
    for request in (
        REQUESTS[0],
        *map(wire.Info, (1, 2)),
        REQUESTS[3],
        forward(PUT, None, b"")(4),
        wire.Peers(5, 1, b""),
    ):
        c.request(request)
    return c


@pytest.mark.parametrize("error", VECTORS["errors"], ids=lambda e: f"{e['instead_of']}: {e['what']}")
def test_fault_85_what_the_errors_show_is_refused(error):
    with pytest.raises(RemoteProtocolError):
        ready(error["instead_of"]).receive(bytes.fromhex(error["bytes"]))
