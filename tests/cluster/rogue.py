"""Something that is not a peer, on the port of one: garbage, silence, or a stranger's answer.

    python -m tests.cluster.rogue PORT MODE [KEY]

Modes: `garbage` sends random bytes to whoever connects, without end; `silent` accepts and never says a word; `captive`
answers everything with an HTTP page, as a hotel's network does; `traitor` has the peer's own key (a file with the 32-byte
seed), so that the connection itself is fine, and then sends random messages. Runs until killed; prints a line when it
listens.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial
from pathlib import Path

import trio

from fsdecloud.net import websocket
from fsdecloud.wire.peer import SUBPROTOCOL

PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<h1>Hotel</h1>"


async def garbage(stream: trio.SocketStream) -> None:
    """Send random bytes until the other side has had enough."""
    while True:
        await stream.send_all(os.urandom(1 << 16))


async def silent(_stream: trio.SocketStream) -> None:
    """Keep the connection and say nothing."""
    await trio.sleep_forever()


async def captive(stream: trio.SocketStream) -> None:
    """Answer each packet with a web page."""
    async for _ in stream:
        await stream.send_all(PAGE)


MODES = {"garbage": garbage, "silent": silent, "captive": captive}


async def traitor(port: int, seed: bytes) -> None:
    """Serve the peers' own protocol up to the first message, then say anything."""

    async def handler(channel: websocket.Channel) -> None:
        for length in (0, 1, 7, 100, 4000, 1 << 20):
            await channel.send(os.urandom(length))
        while True:
            await channel.receive()
            await channel.send(os.urandom(50))

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(websocket.serve, "127.0.0.1", port, seed, SUBPROTOCOL, handler))
        print("listening", flush=True)


async def main(port: int, mode: str, key: str = "") -> None:
    """Listen on the loopback address."""
    if mode == "traitor":
        await traitor(port, Path(key).read_bytes())
        return

    async def handler(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                await MODES[mode](stream)

    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    print("listening", flush=True)
    await trio.serve_listeners(handler, listeners)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), *sys.argv[2:])
