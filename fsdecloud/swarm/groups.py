"""Who may be one and the same behind several peers: network groups, and what a host map takes into account of a peer.

Pure. Many peer ids cost nothing, many networks do: peers of one network group hold no two shards of a blob as long as there
are enough groups (fault 76). A group is

* the /24 of a public IPv4 address, the /48 of a public IPv6 address (an IPv4 address inside an IPv6 one counts as itself),
* the last two labels of a host name: nothing is resolved here, and names below one domain are one person's,
* the whole address **and port** of a loopback, link-local or private one. Such an address says nothing about who is behind it,
  and cannot be reached from elsewhere; so a network on one machine, or in one house, has as many groups as peers.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

LABEL_MAX: Final = 32
"""Longest label of a group, and of an operator (a public key)."""

_CONTEXT: Final = "fsdecloud 2026 v1 network group"

_LOCAL: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "::/127",
        "fc00::/7",
        "fe80::/10",
    )
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host map takes into account of one peer."""

    weight: int = 0
    """Free bytes; 0 is unknown, and counts as much as the others have."""
    group: bytes = b""
    """Of `network_group`; b"" is unknown, and the same as nobody's."""
    operator: bytes = b""
    """The key under which it declares to be run together with others; b"" for none."""


def network_group(host: str, port: int) -> bytes:
    """Return the label of the network group of an address: at most 9 bytes, equal for addresses of one group."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.lower().rstrip(".").split(".")
        if labels[-1] == "localhost":
            return b"p" + _short(f"localhost {port}")
        return b"n" + _short(".".join(labels[-2:]))
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    if any(address in network for network in _LOCAL if network.version == address.version):
        return b"p" + _short(f"{address} {port}")
    return b"4" + address.packed[:3] if address.version == 4 else b"6" + address.packed[:6]


def _short(text: str) -> bytes:
    return blake3(text.encode(), derive_key_context=_CONTEXT).digest(length=8)
