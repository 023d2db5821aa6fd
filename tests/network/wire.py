"""A network for tests: machines as network namespaces, and between them a wire that delays, loses, repeats, reorders and cuts.

    python -m tests.network.wire

Each machine is a namespace with one TUN device; whatever its kernel sends comes here as a packet and goes to the machine that
has the destination's address, after what the rule for that pair of machines does to it. So the kernels' own TCP is tested, as
with sch_netem, which not every kernel has. No namespace has a name: this process holds them, and they end with it and the
programs in them, however that comes.

One JSON object per line on standard input, one answer per line on standard output; the end of standard input ends it.

    {"do": "machine", "name": N, "addresses": [A/BITS, ...]}   -> {"fd": F}: /proc/PID/fd/F is the namespace
    {"do": "address", "name": N, "address": A/BITS}            one more
    {"do": "route", "address": A, "name": N}                   packets to A go to N from now on ("" for nowhere)
    {"do": "rule", "from": [N], "to": [N], ...}                what happens to packets from these to those (`Rule`)
    {"do": "clear"}                                            no rules
    {"do": "count"}                                            -> {"carried": N, "dropped": N, "opened": {FROM: {TO: N}}}

Imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import ipaddress
import itertools
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

MTU: Final = 9000
"""Jumbo frames: a packet costs this process some 20 microseconds, whatever its size."""

CLONE_NEWNET: Final = 0x40000000
TUNSETIFF: Final = 0x400454CA
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
PLAIN_IPV4: Final = 0x45
"""First byte of an IPv4 packet without options."""
TCP: Final = 6
SYN: Final = 0x02
ACK: Final = 0x10
QUEUE: Final = 2000
"""Packets in the device before its kernel drops, as a long cable would hold."""

BATCH: Final = 64
"""Packets of one machine before it is another's turn."""

HELD_MAX: Final = 20_000
"""Delayed packets in all: 180 MB; more are dropped, as by any router."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to packets in one direction between two machines. Probabilities of each packet; seconds."""

    cut: bool = False
    """Dropped without a word: a black hole."""
    delay: float = 0.0
    jitter: float = 0.0
    """Up to so much more."""
    loss: float = 0.0
    repeat: float = 0.0
    """Sent twice."""
    reorder: float = 0.0
    """Sent at once, before those that are delayed."""


PLAIN: Final = Rule()


class Wire:
    """All machines, and the packets between them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._epoll = select.epoll()
        self._tuns: dict[str, int] = {}
        self._spaces: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._owners: dict[bytes, str] = {}
        self._rules: dict[tuple[str, str], Rule] = {}
        self._held: list[tuple[float, int, int, bytes]] = []
        self._last: dict[tuple[str, str], float] = {}
        self._order = itertools.count()
        self._carried = self._dropped = 0
        self._opened: Counter[tuple[str, str]] = Counter()
        """Tries to open a TCP connection over IPv4, the kernel's repetitions included."""

    # ---- orders ----------------------------------------------------------------------------------------------------
    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do what a line asks for, and return the answer."""
        kind = order.pop("do")
        if kind == "machine":
            return {"fd": self._add_machine(order["name"], order["addresses"])}
        if kind == "address":
            self._add_address(order["name"], order["address"])
        elif kind == "route":
            self._owners[ipaddress.ip_address(order["address"]).packed] = order["name"]
        elif kind == "rule":
            senders, receivers = order.pop("from"), order.pop("to")
            rule = Rule(**order)
            for pair in itertools.product(senders, receivers):
                self._rules[pair] = rule
        elif kind == "clear":
            self._rules.clear()
        elif kind == "count":
            opened: dict[str, dict[str, int]] = {}
            for (sender, receiver), count in self._opened.items():
                opened.setdefault(sender, {})[receiver] = count
            return {"carried": self._carried, "dropped": self._dropped, "opened": opened}
        else:
            raise ValueError(kind)
        return {}

    def _add_machine(self, name: str, addresses: list[str]) -> int:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"wire", IFF_TUN | IFF_NO_PI))
        space = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._tuns[name], self._spaces[name], self._names[tun] = tun, space, name
        _ip(space, "link", "set", "lo", "up")
        _ip(space, "link", "set", "wire", "mtu", str(MTU), "txqueuelen", str(QUEUE), "up")
        for address in addresses:
            self._add_address(name, address)
        self._epoll.register(tun, select.EPOLLIN)
        return space

    def _add_address(self, name: str, address: str) -> None:
        parsed = ipaddress.ip_interface(address)
        _ip(self._spaces[name], "address", "add", address, "dev", "wire", *(("nodad",) if parsed.version == 6 else ()))
        self._owners[parsed.ip.packed] = name

    # ---- packets ---------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Carry packets and obey until standard input ends."""
        standard_input = sys.stdin.fileno()
        self._epoll.register(standard_input, select.EPOLLIN)
        while True:
            wait = max(0.0, self._held[0][0] - time.monotonic()) if self._held else -1
            for fd, _event in self._epoll.poll(wait):
                if fd != standard_input:
                    self._drain(fd)
                    continue
                line = sys.stdin.readline()
                if not line:
                    return
                print(json.dumps(self.obey(json.loads(line))), flush=True)
            self._release()

    def _drain(self, tun: int) -> None:
        sender = self._names[tun]
        for _ in range(BATCH):
            try:
                packet = os.read(tun, 1 << 16)
            except BlockingIOError:
                return
            self._take(sender, packet)

    def _take(self, sender: str, packet: bytes) -> None:
        destination = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
        receiver = self._owners.get(destination, "")
        if not receiver:
            return
        pair = (sender, receiver)
        if packet[9] == TCP and packet[0] == PLAIN_IPV4 and packet[33] & (SYN | ACK) == SYN:
            self._opened[pair] += 1
        rule = self._rules.get(pair, PLAIN)
        if rule is PLAIN:
            self._send(self._tuns[receiver], packet)
            return
        if rule.cut or (rule.loss and self._random.random() < rule.loss):
            self._dropped += 1
            return
        copies = 1 + (rule.repeat > 0 and self._random.random() < rule.repeat)
        for _ in range(copies):
            if rule.reorder and self._random.random() < rule.reorder:
                self._send(self._tuns[receiver], packet)
                continue
            due = time.monotonic() + rule.delay + rule.jitter * self._random.random()
            due = self._last[pair] = max(due, self._last.get(pair, 0.0))  # one line: nothing overtakes by jitter
            if len(self._held) < HELD_MAX:
                heapq.heappush(self._held, (due, next(self._order), self._tuns[receiver], packet))
            else:
                self._dropped += 1

    def _release(self) -> None:
        now = time.monotonic()
        while self._held and self._held[0][0] <= now:
            _due, _order, tun, packet = heapq.heappop(self._held)
            self._send(tun, packet)

    def _send(self, tun: int, packet: bytes) -> None:
        try:
            os.write(tun, packet)
            self._carried += 1
        except OSError:
            self._dropped += 1


def _ip(space: int, *args: str) -> None:
    """Run ip(8) in a namespace of ours."""
    subprocess.run(
        ["nsenter", f"--net=/proc/{os.getpid()}/fd/{space}", "ip", *args],
        check=True,
        timeout=20,
        stdin=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    Wire(int(sys.argv[1]) if sys.argv[1:] else 0).run()
