"""`python -m fsdecloud.agent --fd N`: the agent of one mount, started by the driver with one end of a socket pair.

It ends when the driver closes the other end. It reads no configuration: all it may know comes with the driver's hello.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from fsdecloud.agent.peer import Transport
from fsdecloud.agent.service import Service
from fsdecloud.crypto.keys import deal_seed
from fsdecloud.errors import FsdecloudError
from fsdecloud.net.nursery import open_background
from fsdecloud.net.pool import Owner, open_pool
from fsdecloud.net.unix import stream_from_fd
from fsdecloud.wire.agentapi import AgentHello

log = logging.getLogger(__name__)

SWITCH_INTERVAL: Final = 0.0005
"""Seconds after which a thread that computes gives the interpreter up. A worker that hashes or reads lets go of it for each
call and wants it back; with the default of 5 ms a busy event loop would make every blob wait ten times that."""

NICE: Final = 5
"""Below the driver and the programs it serves: uploading must not slow down the copy that it uploads."""


@asynccontextmanager
async def open_transport(hello: AgentHello, owner: Owner) -> AsyncIterator[Transport]:
    """Open the connections to peers."""
    async with open_pool(
        network=hello.network,
        deal_seed=lambda peer: deal_seed(hello.deal_secret, peer),
        owner=owner,
        nonce=lambda: os.urandom(32),
        does_forward=True,
    ) as pool:
        yield pool


async def _serve(fd: int) -> None:
    async with open_background() as nursery:
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        await Service(open_transport).run(stream_from_fd(fd))


async def _end_on_signal(scope: trio.CancelScope) -> None:
    # A hang-up is meant for somebody with a terminal; the driver passes on what there is to know.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number != signal.SIGHUP:
                scope.cancel()


def main() -> None:
    """Run the agent."""
    parser = argparse.ArgumentParser(prog="decloud-agent", description="started by mount.decloud, never by hand")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the socket to the driver")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("FSDECLOUD_LOG", "info").upper(), format="%(asctime)s agent %(levelname)s %(message)s"
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the keys are in memory
    os.nice(NICE)
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()
    try:
        trio.run(_serve, arguments.fd)
    except FsdecloudError as exc:
        log.error("the agent ends: %s", exc)
        sys.exit(1)


if __name__ == "__main__":
    main()
