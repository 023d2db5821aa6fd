"""Something that is not a peer, on the port of one: garbage, silence, or a stranger's answer.

    python -m tests.cluster.rogue PORT MODE

Modes: `garbage` sends random bytes to whoever connects, without end; `silent` accepts and never says a word; `captive`
answers everything with an HTTP page, as a hotel's network does. Runs until killed; prints a line when it listens.
"""

from __future__ import annotations

import contextlib
import os
import sys

import trio

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


async def main(port: int, mode: str) -> None:
    """Listen on the loopback address."""

    async def handler(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                await MODES[mode](stream)

    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    print("listening", flush=True)
    await trio.serve_listeners(handler, listeners)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2])
