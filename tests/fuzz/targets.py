"""What is fuzzed: every decoder of bytes that somebody else wrote, and what each may raise. Anything else is a finding.

A target takes bytes. What it decodes is also encoded again and used a little: a decoder that lets something through which
nothing can work with is as bad as one that falls.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Callable

import h11
import msgspec
from blake3 import blake3
from wsproto import ConnectionType
from wsproto.events import AcceptConnection, Request
from wsproto.utilities import ProtocolError as WebsocketError

import fsdecloud.wire
from fsdecloud import codec
from fsdecloud.agent import rows
from fsdecloud.crypto import bao, possession, repairkey, shardset, sign
from fsdecloud.crypto.slots import decode_document
from fsdecloud.errors import (
    CertificateError,
    FsdecloudError,
    LedgerError,
    MalformedError,
    ProtocolError,
    SealError,
    UsageError,
)
from fsdecloud.fs import acl, chunks, history, inode, manifest, marks, records
from fsdecloud.ledger import blocks, certificate, headerfile, network, transactions
from fsdecloud.limits import MESSAGE_MAX
from fsdecloud.net import http
from fsdecloud.net.frames import Framing
from fsdecloud.swarm import addressbook, hostmap
from fsdecloud.tree import node
from fsdecloud.types import PeerId
from fsdecloud.wire import announcements, beacon, forwarding, gossip, grants, receipts, rpc, work
from fsdecloud.wire import peer as wire
from fsdecloud.wire.session import ClientSession, ServerSession

NETWORK = b"n" * 32
SEED = b"s" * 32
PEER = PeerId(sign.public_key(SEED))
NOW = 1_700_000_000

Decode = Callable[[bytes], object]


def structs():
    """Return every message of wire/, by its full name."""
    found = {}
    for module in pkgutil.iter_modules(fsdecloud.wire.__path__):
        for value in vars(importlib.import_module(f"fsdecloud.wire.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct:
                found[f"{value.__module__.rpartition('.')[2]}.{value.__name__}"] = value
    return found


def _loose(kind):
    """Decode a message that is never hashed; what was understood can be said again."""

    def decode(data):
        value = codec.decode_loose(data, kind)
        encoded = codec.encode(value)
        assert codec.encode(codec.decode_loose(encoded, kind)) == encoded
        return value

    return decode


def _again(decode, encode):
    """Decode, and compare what `encode` makes of it with what came."""

    def decode_and_encode(data):
        value = decode(data)
        assert encode(value) == data, f"{value!r} is encoded in another way"
        return value

    return decode_and_encode


def _pieces(data):
    """Cut a fuzzer's bytes into pieces of its choice: a length in two bytes before each."""
    at = 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        yield data[at + 2 : at + 2 + length]
        at += 2 + length


def server_session(data):
    """Be a peer whose client says what it likes, also after a hello that holds."""
    for greeted in (False, True):
        session = ServerSession(peer=PEER, network=NETWORK, nonce=bytes(32), certificate_hash=bytes(32), window=1 << 20)
        challenge = session.start()
        with contextlib.suppress(ProtocolError):
            if greeted:
                client = ClientSession(peer=PEER, network=NETWORK, nonce=bytes(32), certificate_hash=bytes(32))
                client.receive(challenge)
                session.receive(client.hello(SEED))
                session.welcome(admitted=True, free=1, reason="")
            for frame in _pieces(data):
                event = session.receive(frame)
                if isinstance(event, wire.Forward):
                    open_forward_of(event)
                elif not isinstance(event, msgspec.Struct):
                    session.welcome(admitted=False, free=0, reason="no")


def client_session(data):
    """Be a client whose peer says what it likes, with one request of each kind unanswered."""
    for greeted in (False, True):
        client = ClientSession(peer=PEER, network=NETWORK, nonce=bytes(32), certificate_hash=bytes(32))
        with contextlib.suppress(ProtocolError):
            if greeted:
                session = ServerSession(
                    peer=PEER, network=NETWORK, nonce=bytes(32), certificate_hash=bytes(32), window=1 << 20
                )
                client.receive(session.start())
                session.receive(client.hello(SEED))
                client.receive(session.welcome(admitted=True, free=1, reason=""))
                for make in (
                    lambda n: wire.Get(n, bytes(32), 0, 0),
                    lambda n: wire.Has(n, (bytes(32), bytes(32))),
                    wire.Info,
                    lambda n: wire.Peers(n, 10, b""),
                    lambda n: wire.Renew(n, (bytes(32),)),
                    lambda n: wire.Attest(n, bytes(32), 1, bytes(32), 3),
                    lambda n: wire.Delete(n, b"g"),
                ):
                    client.request(make(client.next_number()))
            for frame in _pieces(data):
                if isinstance(client.receive(frame), wire.Challenge):
                    client.hello(SEED)


def open_forward_of(forward):
    """Check and open a Forward as its target does."""
    with contextlib.suppress(MalformedError, SealError):
        forwarding.check_forward(forward, network=NETWORK, now=NOW)
    with contextlib.suppress(MalformedError):
        forwarding.open_forward(forward)


def forwarded(data):
    """Decode a Forward, or an answer to one that its target has signed."""
    pieces = [*_pieces(data), b""]
    forward = codec.decode_loose(pieces[0], wire.Forward)
    open_forward_of(forward)
    answer = wire.Forwarded(forward.request, b"", memoryview(pieces[-1]))
    terms = forwarding._answer_terms(forward, NETWORK, answer.body)
    if forward.target == PEER:
        answer = msgspec.structs.replace(answer, signature=sign.sign(SEED, forwarding.ANSWER_DOMAIN, terms))
    forwarding.check_answer(forward, answer, network=NETWORK)


def announcement(data):
    """Verify an announcement as it is, and as if its peer had signed it."""
    found = codec.decode(data, announcements.Announcement)
    unsigned = msgspec.structs.replace(found, peer=PEER, network=NETWORK, signature=b"")
    signature = sign.sign(SEED, announcements.DOMAIN, codec.encode(unsigned))
    signed = codec.encode(msgspec.structs.replace(unsigned, signature=signature))
    with contextlib.suppress(SealError):
        announcements.verify_announcement(signed, network=NETWORK, now=NOW)
    announcements.verify_announcement(data, network=NETWORK, now=NOW)


def frames(data):
    """Cut a websocket's bytes, in pieces of the fuzzer's choice, before and after the handshake."""
    server = Framing(ConnectionType.SERVER)
    client = Framing(ConnectionType.CLIENT)
    hello = client.send(Request(host="h", target="/"))
    with contextlib.suppress(WebsocketError):
        fresh = Framing(ConnectionType.SERVER)
        for piece in _pieces(data):
            fresh.receive_data(piece)
            list(fresh.events())
    server.receive_data(hello)
    list(server.events())
    server.send(AcceptConnection())
    for piece in _pieces(data):
        try:
            server.receive_data(piece)
            list(server.events())
        except WebsocketError:
            return


def rpc_frames(data):
    """Cut a local socket's bytes into frames, in pieces of the fuzzer's choice."""
    reader = rpc.FrameReader(MESSAGE_MAX)
    for piece in _pieces(data):
        for frame in reader.feed(piece):
            rpc.body_to_error(frame.body)


def snapshot(data):
    """Decode a snapshot's row."""
    key, value = [*_pieces(data), b"", b""][:2]
    history.decode_snapshot(key, value)


def entry(data):
    """Decode a directory entry's row."""
    name, value = [*_pieces(data), b"", b""][:2]
    inode.decode_entry(name, value)


def host_map(data):
    """Decode a host map and use its tables."""
    found = hostmap.decode_host_map(data)
    assert len(found.labels()) == len(found.slots()) == len(found.current)
    hostmap.decode_host_map(hostmap.encode_host_map(found))


def address_book(data):
    """Decode an address book and use it."""
    book = addressbook.decode_book(data, PEER)
    for known in book.everybody():
        book.failed(PeerId(known.peer), known.host, known.port, NOW)
        book.answered(PeerId(known.peer), known.host, known.port, NOW)
    book.due(NOW, 10)
    book.tellable()
    addressbook.decode_book(book.encode(), PEER)


def grant(data):
    """Verify a grant as it is, and as if its owner had signed it."""
    found = codec.decode(data, grants.Grant)
    grants.verify_grant(data, network=found.network, peer=PeerId(found.peer), deal=found.deal, owner=PEER, now=NOW)


def certified(data):
    """Decode a certificate whose digest is right, and verify it; then one that somebody sent."""
    body = certificate.MAGIC + data
    with contextlib.suppress(CertificateError):
        certificate.decode_certificate(data)
    found = certificate.decode_certificate(body + blake3(body).digest())
    document = network.embedded_network("fuzz", NETWORK, NOW)
    own = msgspec.structs.replace(found, network=network.network_id(document))
    certificate.verify_certificate(own, document, lambda _height: None)


def header_file(data):
    """Read a file of headers, in two pieces."""
    document = network.embedded_network("fuzz", NETWORK, NOW)
    whole = headerfile.MAGIC + data
    list(headerfile.verify_headers(document, [whole[: len(whole) // 2], whole[len(whole) // 2 :]]))


def repair_key(data):
    """Decode a repair key's file."""
    repairkey.decode_repair_key(data)


def work_from_miner(data):
    """Decode what a miner says."""
    message = work.decode_from_miner(data)
    assert work.decode_from_miner(work.encode_message(message)) == message


def work_from_daemon(data):
    """Decode what a daemon that gives out work says, and take its job."""
    message = work.decode_from_daemon(data)
    assert work.decode_from_daemon(work.encode_message(message)) == message
    if isinstance(message, work.Job):
        work.read_job(message)


def browser_request(data):
    """Read the head of a browser's request."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=http.HEAD_MAX)
    http.check_request(http._parse(connection, data))


def possession_proof(data):
    """Verify a proof of some set, and of the one that it claims to be of."""
    assert not possession.verify(bytes(32), b"seed", 3, data)
    root = possession._Reader(data).root(b"seed", 3)
    assert possession.verify(root, b"seed", 3, data)
    assert not possession.verify(root, b"seed", 3, data + b"\0")


def shard_set_page(data):
    """Use the first page of a set."""
    pages = {b"": data}
    found = dict(shardset.shards_of(pages.get))
    shardset.update({}.get, shardset.EMPTY, found)
    shardset.update(pages.get, shardset.EMPTY, {bytes(32): 1})


MALFORMED = (MalformedError,)
SEALED = (MalformedError, SealError)

TARGETS: dict[str, tuple[Decode, tuple[type[Exception], ...]]] = {
    "server session": (server_session, ()),
    "client session": (client_session, ()),
    "forwarded": (forwarded, SEALED),
    "announcement": (announcement, SEALED),
    "beacon": (_again(beacon.decode_beacon, beacon.encode_beacon), MALFORMED),
    "websocket frames": (frames, ()),
    "rpc frames": (rpc_frames, (ProtocolError,)),
    "gossip": (_again(gossip.decode_message, gossip.encode_message), (ProtocolError,)),
    "work of a miner": (work_from_miner, (ProtocolError,)),
    "work of a daemon": (work_from_daemon, (ProtocolError,)),
    "browser request": (browser_request, (http.Refusal,)),
    "receipt": (receipts.verify_receipt, SEALED),
    "receipt's term": (lambda data: receipts.is_over(data, float(NOW)), SEALED),
    "grant": (grant, SEALED),
    "transaction": (_again(transactions.decode_tx, transactions.encode_tx), (LedgerError,)),
    "block": (blocks.decode_block, (LedgerError,)),
    "header": (blocks.decode_header, (LedgerError,)),
    "certificate": (certified, (CertificateError,)),
    "header file": (header_file, MALFORMED),
    "network": (network.decode_network, (*MALFORMED, LedgerError)),
    "host map": (host_map, MALFORMED),
    "address book": (address_book, MALFORMED),
    "tree node": (node.decode_node, MALFORMED),
    "chunk": (_again(chunks.decode_chunk, chunks.encode_chunk), MALFORMED),
    "inode": (inode.decode_inode, MALFORMED),
    "entry": (entry, MALFORMED),
    "superblock": (inode.decode_superblock, MALFORMED),
    "manifest": (manifest.decode_manifest, MALFORMED),
    "anchor payload": (manifest.decode_payload, MALFORMED),
    "repair payload": (manifest.decode_repair_payload, MALFORMED),
    "owner's part": (lambda data: manifest.open_owners_part(bytes(32), data), SEALED),
    "repair part": (lambda data: manifest.open_repair_part(bytes(32), data), SEALED),
    "records": (records.decode_records, MALFORMED),
    "batches": (history.decode_batches, MALFORMED),
    "snapshot": (snapshot, MALFORMED),
    "policy": (history.decode_policy, MALFORMED),
    "access control list": (acl.decode_acl, (FsdecloudError,)),
    "marks": (marks.Marks.decode, MALFORMED),
    "proof": (bao.decode_proof, SEALED),
    "possession proof": (possession_proof, MALFORMED),
    "shard set page": (shard_set_page, MALFORMED),
    "volume document": (decode_document, (*MALFORMED, UsageError)),
    "repair key": (repair_key, MALFORMED),
    "entry row": (rows.decode_entry_row, MALFORMED),
    "blob row": (rows.decode_blob_row, MALFORMED),
    "peer request": (_loose(wire.Request), MALFORMED),
    "peer answer": (_loose(wire.Answer), MALFORMED),
} | {f"message {name}": (_loose(kind), MALFORMED) for name, kind in structs().items()}
"""Name -> what takes bytes, and what it may raise."""


def run_one(name, data):
    """Run one target. Returns whether it understood the bytes; raises what it must not."""
    decode, declared = TARGETS[name]
    try:
        decode(data)
    except declared:
        return False
    return True
