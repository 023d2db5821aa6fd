"""What bare trio-websocket connections move between two processes: the bound on storing and fetching shards.

Six connections over TLS 1.3 (self-signed Ed25519 certificate, as between agent and peers) carry messages of one shard of a
full chunk at k = 2: 512 KiB. *store* sends them client to server, each acknowledged by a short message, with at most
WINDOW bytes unanswered on a connection; *fetch* asks with a short message and gets 512 KiB back, equally pipelined.
Nothing is hashed, coded or written. Buffers are tuned: 256 KiB reads, no compression
(trio's SSLStream sizes its own reads).

With `--channels` the same messages go over the connections that agent and peers use (`net.websocket`): these take TLS and
frames apart with less work, which makes the bare ones a weak yardstick for storing (wsproto masks in Python).

    python -m tests.bench.transport [--bytes N] [--connections N] [--message N] [--channels]     prints one JSON object
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol

import trio
import trio_websocket
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from fsdecloud.errors import PeerUnavailable
from fsdecloud.net import websocket
from fsdecloud.net.address import Address
from fsdecloud.net.websocket import Channel

MIB: Final = 1 << 20
CONNECTIONS: Final = 6
MESSAGE: Final = 512 << 10
WINDOW: Final = 8 * MIB
BUFFER: Final = 256 << 10
MESSAGE_MAX: Final = 2 * MIB
HEADER: Final = 8
"""Every message begins with a request number; a fetch request is nothing but it and the length wanted."""

SEED: Final = b"b" * 32
SUBPROTOCOL: Final = "bench"
"""Of the channels."""


class Connection(Protocol):
    """What carries the messages."""

    async def send_message(self, message: bytes) -> None:
        """Send one message."""

    async def get_message(self) -> str | bytes:
        """Return the next message."""


class _Messages:
    """A channel as a connection."""

    def __init__(self, channel: Channel) -> None:
        self.send_message = channel.send
        self.get_message = channel.receive


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Write a self-signed Ed25519 certificate and its key; return their paths."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, None)
    )
    pem, key_pem = directory / "cert.pem", directory / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    key_pem.chmod(0o600)
    return pem, key_pem


def _context(*, server: bool, directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if server:
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    else:
        context.check_hostname = False
        context.load_verify_locations(directory / "cert.pem")
    return context


def _tls(stream: trio.SocketStream, context: ssl.SSLContext, *, server: bool) -> trio.SSLStream[trio.SocketStream]:
    return trio.SSLStream(stream, context, server_hostname=None if server else "bench", server_side=server)


_PAYLOAD: Final = os.urandom(MESSAGE_MAX)


# ---- the server process -----------------------------------------------------------------------------------------


async def _answer(connection: Connection) -> None:
    """Acknowledge long messages; answer short ones with as many bytes as they ask for."""
    with contextlib.suppress(trio_websocket.ConnectionClosed, PeerUnavailable):
        while True:
            message = await connection.get_message()
            assert isinstance(message, bytes)
            if len(message) > 2 * HEADER:
                await connection.send_message(message[:HEADER])
            else:
                length = int.from_bytes(message[HEADER:], "big")
                await connection.send_message(message[:HEADER] + _PAYLOAD[:length])


async def _serve_connection(stream: trio.SocketStream, context: ssl.SSLContext, *, plain: bool) -> None:
    transport: trio.abc.Stream = stream if plain else _tls(stream, context, server=True)
    with contextlib.suppress(trio_websocket.ConnectionClosed, trio.BrokenResourceError):
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(
                nursery,
                transport,
                max_message_size=MESSAGE_MAX,
                message_queue_size=16,
                receive_buffer_size=BUFFER,
            )
            connection = await request.accept()
            await _answer(connection)
            nursery.cancel_scope.cancel()


def _report(ready_fd: int, port: int) -> None:
    os.write(ready_fd, f"{port}\n".encode())
    os.close(ready_fd)


async def serve_channels(ready_fd: int) -> None:
    """Serve channels until killed."""

    async def handler(channel: Channel) -> None:
        channel.is_greeted = True
        await _answer(_Messages(channel))

    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(
            lambda task_status: websocket.serve("127.0.0.1", 0, SEED, SUBPROTOCOL, handler, task_status=task_status)
        )
        _report(ready_fd, port)


async def serve(directory: Path, ready_fd: int, *, plain: bool) -> None:
    """Serve on a free port of the loopback address until killed; write the port to `ready_fd`."""
    context = _context(server=True, directory=directory)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    _report(ready_fd, port)

    async def handler(stream: trio.SocketStream) -> None:
        await _serve_connection(stream, context, plain=plain)

    await trio.serve_listeners(handler, listeners)


# ---- the client process -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _connect(port: int, context: ssl.SSLContext, *, plain: bool) -> AsyncIterator[Connection]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    transport: trio.abc.Stream = stream if plain else _tls(stream, context, server=False)
    async with trio.open_nursery() as nursery:
        connection = await trio_websocket.wrap_client_stream(
            nursery,
            transport,
            "127.0.0.1",
            "/",
            max_message_size=MESSAGE_MAX,
            message_queue_size=16,
            receive_buffer_size=BUFFER,
        )
        try:
            yield connection
        finally:
            with trio.move_on_after(2):
                await connection.aclose()
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _connect_channel(port: int) -> AsyncIterator[Connection]:
    async with websocket.connect(Address("127.0.0.1", port, None, None), subprotocol=SUBPROTOCOL) as channel:
        yield _Messages(channel)


async def _run_connection(connection: Connection, count: int, message: int, payload: bytes | None) -> None:
    """Send `count` requests, at most WINDOW bytes unanswered, and check that each is answered in order."""
    slots = trio.Semaphore(max(1, WINDOW // message))

    async def send() -> None:
        for number in range(count):
            await slots.acquire()
            head = number.to_bytes(HEADER, "big")
            await connection.send_message(head + (payload or message.to_bytes(HEADER, "big")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for number in range(count):
            answer = await connection.get_message()
            if answer[:HEADER] != number.to_bytes(HEADER, "big"):
                raise RuntimeError("answers out of order")
            if payload is None and len(answer) != HEADER + message:
                raise RuntimeError(f"{len(answer)} bytes instead of {message}")
            slots.release()


async def measure(
    port: int, directory: Path, server: int, *, total: int, connections: int, message: int, plain: bool, channels: bool
) -> dict[str, float]:
    """Return MB/s in both directions over all connections together, and milliseconds of processor that both ends need for a
    MiB. `server` is the server's process."""
    context = None if channels else _context(server=False, directory=directory)
    count = max(1, total // message // connections)
    payload = os.urandom(message)
    figures: dict[str, float] = {}
    async with contextlib.AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(
                _connect_channel(port) if context is None else _connect(port, context, plain=plain)
            )
            for _ in range(connections)
        ]
        for name, body in (("store", payload), ("fetch", None)):
            for warm in (True, False):  # the first few messages grow TCP's windows
                start, used = time.perf_counter(), time.process_time() + processor_seconds(server)
                async with trio.open_nursery() as nursery:
                    for connection in opened:
                        nursery.start_soon(_run_connection, connection, 8 if warm else count, message, body)
                size = count * connections * message
                figures[name] = size / 1e6 / (time.perf_counter() - start)
                used = time.process_time() + processor_seconds(server) - used
                figures[f"{name}_cpu"] = used * 1e3 / (size / MIB)
    return figures


def processor_seconds(pid: int) -> float:
    """Return what a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(
    *,
    total: int,
    connections: int = CONNECTIONS,
    message: int = MESSAGE,
    plain: bool = False,
    channels: bool = False,
) -> dict[str, float]:
    """Start the server process, measure, end it. Returns {"store": MB/s, "store_cpu": ms/MiB, the same for "fetch"}."""
    with tempfile.TemporaryDirectory(prefix="decloud-bench-") as name:
        directory = Path(name)
        make_certificate(directory)
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "tests.bench.transport", "--serve", name, "--ready-fd", str(writer)]
        server = subprocess.Popen(command + ["--plain"] * plain + ["--channels"] * channels, pass_fds=[writer])
        os.close(writer)
        try:
            with open(reader, "rb") as ready:
                port = int(ready.readline() or b"0")
            if not port:
                raise RuntimeError("the transport server did not start")
            return trio.run(
                lambda: measure(
                    port,
                    directory,
                    server.pid,
                    total=total,
                    connections=connections,
                    message=message,
                    plain=plain,
                    channels=channels,
                )
            )
        finally:
            server.kill()
            server.wait()


def main() -> None:
    """Measure once and print the figures as JSON; with --serve be the other process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=1024 * MIB, help="per direction (default 1 GiB)")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--message", type=int, default=MESSAGE)
    parser.add_argument("--plain", action="store_true", help="without TLS")
    parser.add_argument("--channels", action="store_true", help="over the connections of agent and peers")
    parser.add_argument("--serve", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        if arguments.channels:
            trio.run(serve_channels, arguments.ready_fd)
        else:
            trio.run(lambda: serve(Path(arguments.serve), arguments.ready_fd, plain=arguments.plain))
        return
    figures = run(
        total=arguments.bytes,
        connections=arguments.connections,
        message=arguments.message,
        plain=arguments.plain,
        channels=arguments.channels,
    )
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
