"""`python -m tests.cluster.narrow PORT COMMAND...`: run a command in a network namespace of its own, from which one TCP
port of this machine's loopback can be reached, and nothing else.

What the command leaves running stays in the namespace. This process carries the connections to PORT until it is ended, and
prints "exit CODE" as soon as that has ended. Unix sockets are files, and go on working.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
from functools import partial
from typing import Final

import trio

CLONE_NEWNET: Final = 0x40000000
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 1
"""sched.h, linux/sockios.h, linux/if.h."""

LIBC: Final = ctypes.CDLL(None, use_errno=True)


def enter_new_namespace() -> int:
    """Move this process into a network namespace of its own, loopback up; return a descriptor of the one before."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    if LIBC.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", request)[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
    return before


async def carry(port: int, inside: trio.SocketStream) -> None:
    """Carry one connection to the same port outside."""
    async with inside:
        try:
            outside = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            return
        async with outside, trio.open_nursery() as nursery:

            async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                try:
                    async for data in source:
                        await sink.send_all(data)
                except trio.BrokenResourceError:
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, inside, outside)
            nursery.start_soon(pump, outside, inside)


def main() -> None:
    """Run the command, then carry connections for ever."""
    port = int(sys.argv[1])
    outer = enter_new_namespace()
    listener = socket.create_server(("127.0.0.1", port))  # of the namespace, wherever this process goes
    listener.setblocking(False)
    command = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
    if LIBC.setns(outer, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")

    async def wait() -> None:
        print("exit", await trio.to_thread.run_sync(command.wait), flush=True)

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            inside = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
            await trio.serve_listeners(partial(carry, port), [inside])

    trio.run(serve)


if __name__ == "__main__":
    main()
