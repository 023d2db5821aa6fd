"""What happens to those who misbehave: points for what may be an accident, exclusion for what cannot be one.

Who sends what no honest daemon sends (an invalid header or block, a signature that is not one's, bytes that are no message)
is dropped, and whoever calls from that address is shut out for BAN_TIME. What a slow line, an old tip or a restart may cause
costs points, which are forgiven with time; FORGIVEN points at once come to the same end. Loopback addresses are not shut out:
everybody on this machine has them. Called only from the trio thread. Not here: what is worth how much (`session`, `sync`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fsdecloud.errors import RemoteProtocolError
from fsdecloud.net.address import client_group, is_loopback

POINTS_MAX: Final = 100.0
"""Points at which a session ends and its address is shut out."""

FALSE_CLAIM: Final = 20.0
"""Points for a claim that the headers do not prove."""

FORGIVEN: Final = 0.1
"""Points forgiven each second: a daemon that errs once in two minutes stays."""

BAN_TIME: Final = 24 * 3600
"""Seconds for which an address is shut out."""

BANS_MAX: Final = 1000
"""Addresses remembered; the ban that ends first gives way. Who has more addresses than this is not kept out by them."""


class Misbehaviour(RemoteProtocolError):
    """The other side did what no honest daemon does."""


class Points:
    """The points of one session."""

    def __init__(self, now: float) -> None:
        self._points = 0.0
        self._stamp = now

    def add(self, points: float, now: float) -> bool:
        """Add points at time `now` (monotonic seconds); return whether it is too many."""
        self._points = max(0.0, self._points - (now - self._stamp) * FORGIVEN) + points
        self._stamp = now
        return self._points >= POINTS_MAX


def is_valid(until: int, now: int) -> bool:
    """Tell whether a ban until then still holds: it is not over, nor made by a clock that was ahead."""
    return now < until <= now + BAN_TIME


class Bans:
    """The addresses that are shut out, until when (seconds since 1970)."""

    def __init__(self, entries: Iterable[tuple[str, int]] = ()) -> None:
        self._until: dict[str, int] = dict(entries)

    def ban(self, remote: str, now: int) -> bool:
        """Shut out whoever has the address HOST:PORT, whatever the port; return whether it is shut out now."""
        if is_loopback(remote):
            return False
        self._until[client_group(remote)] = now + BAN_TIME
        if len(self._until) > BANS_MAX:
            del self._until[min(self._until, key=self._until.__getitem__)]
        return True

    def is_banned(self, remote: str, now: int) -> bool:
        """Tell whether whoever has the address HOST:PORT is shut out."""
        until = self._until.get(client_group(remote))
        if until is None:
            return False
        if not is_valid(until, now):
            del self._until[client_group(remote)]
            return False
        return True

    def lift(self, address: str) -> bool:
        """Let an address, with or without its port, in again; return whether it was shut out. An IPv6 address stands for its
        /64, as in `entries`."""
        network, slash, _ = address.partition("/")
        host = network if slash or network.count(":") > 1 else network.rpartition(":")[0] or network
        for group in (address, client_group(network), client_group(f"[{host}]:0")):
            if self._until.pop(group, None) is not None:
                return True
        return False

    def lift_all(self) -> None:
        """Let everybody in again."""
        self._until.clear()

    def entries(self) -> tuple[tuple[str, int], ...]:
        """Return what to remember over a restart."""
        return tuple(self._until.items())
