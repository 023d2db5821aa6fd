"""How peers and clients on one link find each other, where that was asked for: by datagrams to a multicast group.

A peer says at its start, now and then, and when somebody asks that it is there; a client asks. What is said is `wire.beacon`:
a hint where to look, which counts for no more than any other rumour (`net.discovery`). It stays on the link (TTL 1) and is sent
on every interface, over IPv4. What is sent and what is looked at is bounded in rate, whatever comes.

Called only from the trio thread.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import socket
import struct
from collections.abc import Callable
from typing import Final

import trio

from fsdecloud.errors import MalformedError
from fsdecloud.types import PeerId
from fsdecloud.wire.beacon import SIZE, Beacon, decode_beacon, encode_beacon, network_hash

log = logging.getLogger(__name__)

GROUP: Final = "239.255.77.11"
"""Of the range that is each site's own (RFC 2365)."""

PORT: Final = 7711

ANNOUNCE: Final = 600.0
"""Seconds between two beacons that nobody asked for, before jitter: two packets in ten minutes are idle enough."""

RETRY: Final = 60.0
"""Seconds until the next try where multicast does not work (yet)."""

ANSWER_DELAY: Final = 0.5
"""Seconds over which the peers of a link spread their answers."""

ANSWER_PAUSE: Final = 2.0
"""Seconds between two beacons, however many ask."""

LOOKED_AT: Final = 50
"""Datagrams a second that are looked at; the others are thrown away unread."""

_ALL: Final = 0x31  # IP_MULTICAST_ALL, which the socket module does not name


class Lan:
    """One program's voice and ear on its links."""

    def __init__(
        self,
        *,
        network: bytes,
        hint: Callable[[PeerId, str, int], None],
        peer: PeerId | None = None,
        host: str = "",
        port: int = 0,
    ) -> None:
        """`hint` is called with each peer, address and port that is heard of. `peer`, `host` and `port` are who we are and
        where we listen; a client is nobody and only asks."""
        self._network = network_hash(network)
        self._hint = hint
        self._peer = peer
        self._port = port
        self._only_loopback = _is_loopback(host)
        self._asked = trio.Event()
        self._wanted = trio.Event()
        self._joined: set[int] = set()
        self._second = 0.0
        self._looked = 0
        self.heard = 0
        """Beacons of our network so far."""

    def ask(self) -> None:
        """Ask who is there, soon."""
        self._wanted.set()

    async def run(self) -> None:
        """Speak and listen until cancelled."""
        while True:
            try:
                with await self._open() as sock:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._listen, sock)
                        nursery.start_soon(self._question, sock)
                        if self._peer is not None:
                            nursery.start_soon(self._announce, sock)
            except* OSError as exc:
                log.warning("nobody is found on this link: %s", exc.exceptions[0])
            await trio.sleep(RETRY)

    async def _open(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # other programs of this machine listen there too
            sock.setsockopt(socket.IPPROTO_IP, _ALL, 0)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            # Bound to the group: nothing that is sent to this machine alone arrives.
            await sock.bind((GROUP, PORT))
        except BaseException:  # cancelled or failed, nobody else would close it
            sock.close()
            raise
        self._joined.clear()
        self._join(sock)
        return sock

    def _join(self, sock: trio.socket.SocketType) -> None:
        """Listen on all interfaces that there are by now."""
        for index, name in socket.if_nameindex():
            if index not in self._joined:
                try:
                    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _mreqn(index, GROUP))
                except OSError as exc:
                    log.debug("no multicast on %s: %s", name, exc)
                else:
                    self._joined.add(index)

    # ---- speaking --------------------------------------------------------------------------------------------------
    async def _announce(self, sock: trio.socket.SocketType) -> None:
        while True:
            self._asked = trio.Event()
            await self._send(sock, Beacon(self._network, self._peer, self._port))
            await trio.sleep(ANSWER_PAUSE)
            with trio.move_on_after(ANNOUNCE * random.uniform(0.75, 1.25)):
                await self._asked.wait()
                await trio.sleep(random.uniform(0, ANSWER_DELAY))

    async def _question(self, sock: trio.socket.SocketType) -> None:
        while True:
            self._wanted = trio.Event()
            await self._send(sock, Beacon(self._network, None, 0))
            await trio.sleep(ANSWER_PAUSE)
            await self._wanted.wait()

    async def _send(self, sock: trio.socket.SocketType, beacon: Beacon) -> None:
        self._join(sock)
        data = encode_beacon(beacon)
        for index, name in socket.if_nameindex():
            if beacon.peer is not None and self._only_loopback and name != "lo":
                continue
            try:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _mreqn(index, "0.0.0.0"))  # noqa: S104
                await sock.sendto(data, (GROUP, PORT))
            except OSError as exc:  # an interface without an address, or one that is down
                log.debug("no beacon on %s: %s", name, exc)

    # ---- listening -------------------------------------------------------------------------------------------------
    async def _listen(self, sock: trio.socket.SocketType) -> None:
        while True:
            data, source = await sock.recvfrom(SIZE + 1)
            if self._is_too_much():
                continue
            try:
                beacon = decode_beacon(data)
            except MalformedError:
                continue
            if beacon.network != self._network:
                continue
            if beacon.peer is None:
                self._asked.set()
            elif beacon.peer != self._peer:
                self.heard += 1
                self._hint(beacon.peer, source[0], beacon.port)

    def _is_too_much(self) -> bool:
        now = trio.current_time()
        if now - self._second >= 1.0:
            self._second, self._looked = now, 0
        self._looked += 1
        return self._looked > LOOKED_AT


def _mreqn(index: int, group: str) -> bytes:
    """Return the struct ip_mreqn of ip(7)."""
    return struct.pack("@4s4si", socket.inet_aton(group), bytes(4), index)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
