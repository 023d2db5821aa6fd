"""How the address of a peer or ledger daemon is written: `wss://HOST:PORT/ID?network=GENESIS`.

ID is the node's Ed25519 public key and GENESIS the ledger network's genesis id, 64 hexadecimal digits each; either may be
missing in what a person types (the node's key is then taken as found). Pure; nothing is resolved here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fsdecloud.errors import UsageError
from fsdecloud.types import PeerId

URL_MAX: Final = 512
"""Longest address: a host name has at most 253 characters."""

_URL: Final = re.compile(
    r"wss://(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})"
    r"(?:/(?P<id>[0-9a-fA-F]{64})?)?(?:\?network=(?P<network>[0-9a-fA-F]{64}))?",
    re.ASCII,
)
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", re.ASCII)
_EXAMPLE: Final = "an address looks like wss://host.example:7711/ID?network=ID, where each ID has 64 hexadecimal digits"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node is reached, and who must answer there."""

    host: str
    """Host name or IP address, IPv6 without brackets."""
    port: int
    id: PeerId | None = None
    network: bytes | None = None

    def __str__(self) -> str:
        return format_url(self)


def parse_bootstrap(texts: Iterable[str]) -> tuple[Address, ...]:
    """Return the addresses of peers to ask first for others. Raises UsageError for one that names no peer."""
    addresses = tuple(map(parse_url, texts))
    for address in addresses:
        if address.id is None:
            raise UsageError(f"bootstrap: {address} does not say which peer answers there")
    return addresses


def parse_url(text: str) -> Address:
    """Return the address that `text` writes. Raises UsageError, with an example, for anything else."""
    match = _URL.fullmatch(text) if len(text) <= URL_MAX else None
    if match is None:
        raise UsageError(f"{text[:URL_MAX]!r} is not an address: {_EXAMPLE}")
    port = int(match["port"])
    if not 0 < port < 65536:
        raise UsageError(f"{text!r}: a port is between 1 and 65535")
    host = match["v6"] or match["host"]
    _check_host(host, is_v6=match["v6"] is not None, text=text)
    return Address(
        host,
        port,
        PeerId(bytes.fromhex(match["id"])) if match["id"] else None,
        bytes.fromhex(match["network"]) if match["network"] else None,
    )


def format_url(address: Address) -> str:
    """Return the one way this address is written."""
    text = f"wss://{format_endpoint(address.host, address.port)}"
    if address.id is not None or address.network is not None:
        text += "/"
    if address.id is not None:
        text += address.id.hex()
    if address.network is not None:
        text += f"?network={address.network.hex()}"
    return text


def client_group(remote: str) -> str:
    """Return what counts as one client of HOST:PORT as a socket has it: the address, of IPv6 the /64 that one line gets."""
    host = remote.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host


def is_loopback(remote: str) -> bool:
    """Tell whether HOST:PORT as a socket has it is on this machine."""
    try:
        address = ipaddress.ip_address(remote.rpartition(":")[0].strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def parse_endpoint(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, port 0 allowed (to listen). Raises UsageError."""
    host, colon, port_text = text.rpartition(":")
    is_v6 = host.startswith("[") and host.endswith("]")
    if not colon or not host or not re.fullmatch("[0-9]{1,5}", port_text, re.ASCII) or int(port_text) > 65535:
        raise UsageError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:7711 or [::1]:7711")
    host = host[1:-1] if is_v6 else host
    _check_host(host, is_v6=is_v6, text=text)
    return host, int(port_text)


def format_endpoint(host: str, port: int) -> str:
    """Return HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_host(host: str, *, is_v6: bool, text: str) -> None:
    if is_v6:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as exc:
            raise UsageError(f"{text!r}: {exc}") from exc
    elif re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError as exc:
            raise UsageError(f"{text!r}: {exc}") from exc
    elif len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.rstrip(".").split(".")):
        raise UsageError(f"{text!r}: {host!r} is not a host name")
