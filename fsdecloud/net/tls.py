"""How a connection is encrypted: TLS 1.3 with one self-signed Ed25519 certificate per node, pinned by its key.

There is no authority to ask: a node's id *is* its public key, and TLS 1.3 proves possession of the certificate's key in
every handshake. The client therefore compares that key with the id it expects and looks at nothing else in the
certificate. Clients present none; they sign the server's certificate hash inside (`wire.peer`).

`TlsStream` is a stream of our own over `ssl.MemoryBIO` because trio.SSLStream hands out one TLS record (16 KiB) per call,
each with a turn of the event loop and of the websocket parser behind it; this one decrypts all records that one receive
brought.
"""

from __future__ import annotations

import datetime
import math
import os
import socket
import ssl
import struct
from contextlib import suppress
from functools import cache
from typing import Final

import blake3
import trio
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from fsdecloud.errors import PeerUnavailable, RemoteProtocolError
from fsdecloud.limits import KIB, MESSAGE_MAX, RECEIVE_BUFFER
from fsdecloud.types import PeerId

_NOT_BEFORE: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
"""RFC 5280, 4.1.2.5: "no well-defined expiration date". Clocks of nodes may say anything."""

_HASH_CONTEXT: Final = "fsdecloud 2026 v1 certificate"

WRITE_SIZE: Final = 272 * KIB
"""Encrypted at once: enough to make calls rare, small enough to stay in the processor's cache until it is sent. A shard of a
full chunk at 4/12, with what is around it, is one piece: a rest of some bytes would cost a packet and wake the other side."""

UNDELIVERED_MAX: Final = 8 * MESSAGE_MAX
"""Bytes that may arrive without completing a message (`TlsStream.delivered`): stops endless empty fragments and pings."""

_LAST_DATA_RECEIVED: Final = 52
"""Offset of tcpi_last_data_recv in struct tcp_info (linux/tcp.h): milliseconds since data arrived. tcpi_last_ack_recv,
milliseconds since the last acknowledgement, comes next."""


def make_certificate(seed: bytes) -> bytes:
    """Return the DER certificate of the node with this Ed25519 seed; always the same bytes for one seed."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, key.public_key().public_bytes_raw().hex())])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
    )
    return builder.sign(key, None).public_bytes(serialization.Encoding.DER)


def certificate_hash(der: bytes) -> bytes:
    """Return the 32 bytes by which a session names the server's certificate."""
    return blake3.blake3(der, derive_key_context=_HASH_CONTEXT).digest()


def certificate_key(der: bytes) -> PeerId:
    """Return the raw Ed25519 key of a certificate. Raises RemoteProtocolError when it has none."""
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise RemoteProtocolError(f"the server's certificate cannot be read: {exc}") from exc
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise RemoteProtocolError("the server's certificate has no Ed25519 key")
    return PeerId(key.public_bytes_raw())


def server_context(seed: bytes) -> ssl.SSLContext:
    """Return the context of the node with this seed. The key never touches a disk: OpenSSL reads it from a memfd."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # a session is never resumed, so that every connection proves the key
    key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + ssl.DER_cert_to_PEM_cert(make_certificate(seed)).encode("ascii")
    fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


@cache
def client_context() -> ssl.SSLContext:
    """Return the context of all clients; it holds no state.

    Authorities are not asked: the caller compares the key of `TlsStream.server_certificate`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the handshake's signature is checked all the same (RFC 8446, 4.4.3)
    return context


class TlsStream(trio.abc.Stream):
    """TLS over a stream. One task may receive while others send."""

    def __init__(self, transport: trio.abc.Stream, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._send_lock = trio.StrictFIFOLock()
        self._ended = False
        self._undelivered = 0
        self.last_received = trio.current_time()
        """When bytes of the other side were last read, on trio's clock."""
        self.sending_since = math.inf
        """Since when a piece of at most WRITE_SIZE bytes waits for the kernel to take it, on trio's clock; infinity if none."""

    @property
    def transport(self) -> trio.abc.Stream:
        """The stream below."""
        return self._transport

    def server_certificate(self) -> bytes:
        """Return the server's certificate as DER, on the client's side, after `do_handshake`."""
        der = self._tls.getpeercert(binary_form=True)
        if der is None:
            raise RemoteProtocolError("the server sent no certificate")
        return der

    def last_heard(self) -> float:
        """Return when the other side last sent something, on trio's clock, be it read from the socket yet or not."""
        return max(self.last_received, self._last_at_socket()[0])

    def last_progress(self) -> float:
        """Return when the other side last sent something, or its kernel last took something of ours, on trio's clock."""
        return max(self.last_received, *self._last_at_socket())

    def _last_at_socket(self) -> tuple[float, float]:
        """Return when our kernel last got data and when an acknowledgement, to some milliseconds."""
        if not isinstance(self._transport, trio.SocketStream):
            return self.last_received, self.last_received
        try:
            info = self._transport.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
        except OSError:  # closed
            return self.last_received, self.last_received
        data, ack = struct.unpack_from("=II", info, _LAST_DATA_RECEIVED)
        now = trio.current_time()
        return now - data / 1000, now - ack / 1000

    async def do_handshake(self) -> None:
        """Finish the handshake. Raises PeerUnavailable when the other side ends it or speaks something else."""
        try:
            while True:
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._fill()
                else:
                    await self._flush()
                    return
        except ssl.SSLError as exc:
            raise PeerUnavailable(f"TLS: {exc.reason or exc}") from exc
        except trio.BrokenResourceError as exc:
            raise PeerUnavailable(f"the connection broke during the TLS handshake: {exc}") from exc

    async def send_all(self, data: bytes | bytearray | memoryview, *, head: bytes = b"") -> None:
        """Encrypt and send `head` and `data`; without a turn of the event loop when the kernel takes it at once."""
        try:
            self._send_lock.acquire_nowait()
        except trio.WouldBlock:
            await self._send_lock.acquire()
        try:
            if head:
                self._encrypt(memoryview(head))
            with memoryview(data) as view:
                for start in range(0, len(view), WRITE_SIZE):
                    self._encrypt(view[start : start + WRITE_SIZE])
                    await self._deliver(memoryview(self._outgoing.read()))
        finally:
            self._send_lock.release()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport takes more."""
        async with self._send_lock:
            await self._transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return the plaintext of all records that have arrived, b"" at the end of the stream."""
        limit = max_bytes or RECEIVE_BUFFER
        data = self._decrypt(limit)
        if data:
            await trio.lowlevel.checkpoint()
        while not data:
            if self._ended or not await self._fill():
                return b""
            data = self._decrypt(limit)
        self._undelivered += len(data)
        if self._undelivered > UNDELIVERED_MAX:
            raise trio.BrokenResourceError(f"{self._undelivered} bytes without a complete message")
        return data

    def delivered(self) -> None:
        """Say that a whole message arrived; see UNDELIVERED_MAX."""
        self._undelivered = 0

    async def aclose(self) -> None:
        """Say goodbye as far as that is possible at once, and close the transport."""
        try:
            with suppress(ssl.SSLError):  # "want read": our half is written, and nobody waits for the other one
                self._tls.unwrap()
            with trio.move_on_after(0.1):
                await self._flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await self._transport.aclose()

    # ---- inside ----------------------------------------------------------------------------------------------------
    def _encrypt(self, piece: memoryview) -> None:
        while piece:
            try:
                piece = piece[self._tls.write(piece) :]
            except ssl.SSLError as exc:
                raise trio.BrokenResourceError(f"TLS: {exc}") from exc

    async def _deliver(self, data: memoryview) -> None:
        """Give the transport what is encrypted; the caller holds the lock."""
        if isinstance(self._transport, trio.SocketStream):
            with suppress(OSError):  # it takes nothing now, or never again: what follows says why
                data = data[os.write(self._transport.socket.fileno(), data) :]
            if not data:
                return
        self.sending_since = trio.current_time()
        try:
            await self._transport.send_all(data)
        finally:
            self.sending_since = math.inf

    def _decrypt(self, limit: int) -> bytearray:
        """Decrypt what has arrived, at most `limit` bytes. Returns nothing when more must arrive first, or at the end."""
        room = min(limit, self._incoming.pending + self._tls.pending())
        data = bytearray(room)
        count = 0
        try:
            with memoryview(data) as view:
                while count < room:
                    got = self._tls.read(room - count, view[count:])
                    if not got:
                        break
                    count += int(got)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._ended = True
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError(f"TLS: {exc.reason or exc}") from exc
        del data[count:]
        return data

    async def _fill(self) -> bool:
        """Receive from the transport once; False at its end. Sends what TLS itself wants to answer (key updates)."""
        data = await self._transport.receive_some(RECEIVE_BUFFER)
        if not data:
            self._incoming.write_eof()
            return False
        self.last_received = trio.current_time()
        self._incoming.write(data)
        if self._outgoing.pending and not self._send_lock.locked():
            await self._flush()
        return True

    async def _flush(self) -> None:
        async with self._send_lock:
            if data := self._outgoing.read():
                await self._transport.send_all(data)
