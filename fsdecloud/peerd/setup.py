"""What a storage peer needs before it runs: its key, its settings, and whom it admits. Blocking.

state/peers/NAME/peer.key     32-byte Ed25519 seed: the peer's identity
state/peers/NAME/peer.toml    settings (`PeerConfig`); the port that was picked at the first start is written back
state/peers/NAME/policy.toml  `admit`: deal keys that may store here, in hexadecimal, or ["*"]; `deny`: those that may not all
                              the same; read again when it changes
state/peers/NAME/operator.tx  who runs it (`peerd.operators`)
state/peers/NAME/known        other peers (`peerd.exchange`)
state/peers/NAME/departure.toml  what was announced (`peerd.departure`)
state/peers/NAME/shards index `store.shards`
state/peers/NAME/sets         `store.shardsets`
state/peers/NAME/deals        `peerd.dealbook`
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from fsdecloud.config import Paths, make_private_dir, read_private_file, write_private_file
from fsdecloud.crypto import sign
from fsdecloud.errors import MalformedError, UsageError
from fsdecloud.ledger.network import decode_network, has_contracts, network_id
from fsdecloud.limits import GIB, MIN_FREE
from fsdecloud.net import address
from fsdecloud.net.address import Address, format_endpoint, parse_endpoint
from fsdecloud.peerd.clients import ClientLimits
from fsdecloud.peerd.leases import LEASE_GRACE, TERM_MAX
from fsdecloud.types import PeerId
from fsdecloud.wire.receipts import LEASE_TERM

LISTEN_DEFAULT: Final = "127.0.0.1:0"
GRACE_DEFAULT: Final = 24 * 3600
"""A day: time to notice that something was deleted which should not have been, and to store it again."""

SCRUB_DAYS_DEFAULT: Final = 14
"""Latent sector errors come by the month; with a period of two weeks two of a blob's shards are seldom bad at once."""

PRICE_MAX: Final = 10**12
"""Smallest units for a GiB and 30 days: with more, the amounts of a deal no longer fit."""

COLLATERAL_DEFAULT: Final = 25
COLLATERAL_MAX: Final = 1000
"""Percent of what a deal can pay."""

DEAL_DAYS_DEFAULT: Final = 366
DEAL_DAYS_MAX: Final = 3660
DEAL_CREDIT_DEFAULT: Final = GIB
"""An owner stores for a flush, and its revision follows at the end: some blobs' worth for each of many files."""

CLIENT: Final = ClientLimits()

EVERYBODY: Final = "*"
_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - recognised here, not bound


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """peer.toml. Sizes in bytes."""

    quota: int
    """Most bytes of shards."""
    listen: str
    """HOST:PORT."""
    network: bytes
    """Genesis id of the ledger network, in hexadecimal in the file."""
    reserve: int = MIN_FREE
    """Disk space left free for everybody else."""
    announce: str = ""
    """HOST or HOST:PORT that others reach this peer by; empty: the one it listens on."""
    grace: int = GRACE_DEFAULT
    """Seconds for which a shard is kept after its last owner had it deleted."""
    deal_share: int = 100
    """Percent of the quota that one deal may hold."""
    scrub_days: int = SCRUB_DAYS_DEFAULT
    """Every shard is read again about once in so many days; 0: never."""
    client_connections: int = CLIENT.connections
    """What one client may take: see `peerd.clients`. Connections at once, requests a second, bytes a second, bytes that
    wait for the disk."""
    client_requests: int = int(CLIENT.requests)
    client_rate: int = int(CLIENT.rate)
    client_memory: int = CLIENT.memory
    client_forward_rate: int = int(CLIENT.forward_rate)
    """Bytes a second that are forwarded for one client; 0: nothing is forwarded."""
    bootstrap: str = ""
    """Addresses of peers that are asked for others, separated by spaces; needed only where the registry is not at hand."""
    lan: bool = False
    """Find, and be found by, peers and clients on the same links (`net.lan`)."""
    lease: int = LEASE_TERM
    """Seconds for which a shard is kept that nobody renews, and for how many more it is not removed yet (`peerd.leases`)."""
    lease_grace: int = LEASE_GRACE
    price: int = 0
    """Smallest units for a GiB and 30 days; 0: it stores for nothing, and makes no deals."""
    collateral: int = COLLATERAL_DEFAULT
    """Most that it pays into a deal itself, in percent of what the deal can pay."""
    deal_days: int = DEAL_DAYS_DEFAULT
    """Days of the longest deal that it enters."""
    deal_credit: int = DEAL_CREDIT_DEFAULT
    """Bytes that it stores for one deal ahead of the revision that names them."""

    @property
    def limits(self) -> ClientLimits:
        """What one client may take."""
        return ClientLimits(
            connections=self.client_connections,
            requests=self.client_requests,
            rate=self.client_rate,
            memory=self.client_memory,
            forward_rate=self.client_forward_rate,
        )


def init_peer(
    paths: Paths,
    name: str,
    quota: int,
    listen: str,
    network: bytes,
    bootstrap: str = "",
    *,
    price: int | None = None,
    collateral: int | None = None,
) -> PeerId:
    """Set up the peer `name` and return its id. A second call changes nothing but quota and address, and price and collateral
    (see `PeerConfig`) where they are given.

    It admits nobody until `policy.toml` says so. Raises UsageError when the name is taken for another network, a value makes no
    sense, or the network has no contracts for its price.
    """
    directory = paths.peer_state(name)
    parse_endpoint(listen)
    if quota <= 0 or len(network) != 32:
        raise UsageError(f"a peer needs a quota and a network, not {quota} and {network.hex()!r}")
    wanted = _with_offer(PeerConfig(quota, listen, network, bootstrap=bootstrap), price, collateral)
    if price:
        require_contracts(paths, network)
    make_private_dir(directory)
    if not (directory / "peer.key").exists():
        write_private_file(directory / "peer.key", os.urandom(32))
    if (directory / "peer.toml").exists():
        present = load_config(paths, name)
        if present.network != network:
            raise UsageError(
                f"{directory} belongs to the network {present.network.hex()}; move it away to join another"
            )
        present = replace(present, quota=quota, listen=_same_listen(present.listen, listen))
        wanted = _with_offer(present, price, collateral)
    save_config(paths, name, wanted)
    if not (directory / "policy.toml").exists():
        write_private_file(
            directory / "policy.toml", b'# Deal keys that may store here; ["*"] admits everybody.\nadmit = []\n'
        )
    return PeerId(sign.public_key(load_seed(paths, name)))


def _same_listen(present: str, wanted: str) -> str:
    """Keep the port that was picked once when any will do."""
    host, port = parse_endpoint(wanted)
    old_host, old_port = parse_endpoint(present)
    return format_endpoint(host, old_port if not port and host == old_host else port)


def require_contracts(paths: Paths, network: bytes) -> None:
    """Raise UsageError unless this home has the network's document, and contracts can be made there: a price needs them."""
    path = paths.ledger_state / "network"
    try:
        document = decode_network(path.read_bytes())
    except (OSError, MalformedError) as exc:
        raise UsageError(
            f"a peer with a price makes its deals through the ledger daemon of its home, and {path} cannot be read: {exc}"
        ) from exc
    if network_id(document) != network:
        raise UsageError(
            f"a peer with a price needs a ledger daemon of its network {network.hex()}: {path} is another's"
        )
    if not has_contracts(document):
        raise UsageError(
            f"the network {document.name} has no contracts (its document has version {document.version}, they came with 4):"
            " a peer there stores for nothing, with price = 0"
        )


def _with_offer(config: PeerConfig, price: int | None, collateral: int | None) -> PeerConfig:
    """Return the settings with another price and collateral, where they are not None. Raises UsageError."""
    changed = replace(
        config,
        price=config.price if price is None else price,
        collateral=config.collateral if collateral is None else collateral,
    )
    _check_offer(changed)
    return changed


def _check_offer(config: PeerConfig) -> None:
    """Raise UsageError for terms of deals that make no sense."""
    if not 0 <= config.price <= PRICE_MAX:
        raise UsageError(f"price is 0 to {PRICE_MAX} of the smallest unit for a GiB and 30 days, not {config.price}")
    if not 0 <= config.collateral <= COLLATERAL_MAX:
        raise UsageError(f"collateral is 0 to {COLLATERAL_MAX} percent, not {config.collateral}")
    if not 0 < config.deal_days <= DEAL_DAYS_MAX or config.deal_credit < 0:
        raise UsageError(f"deal_days is 1 to {DEAL_DAYS_MAX} days, deal_credit a number of bytes")


def load_config(paths: Paths, name: str) -> PeerConfig:
    """Return the peer's settings. Raises UsageError, naming what is wrong, when there are none or they make no sense."""
    path = paths.peer_state(name) / "peer.toml"
    values = _read_toml(path, f"there is no peer {name!r} here: decloud peer init makes one")
    known = {field.name: (str if field.name == "network" else field.type) for field in fields(PeerConfig)}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{path}: unknown setting {key!r}; there are {', '.join(known)}")
        if type(value).__name__ != getattr(known[key], "__name__", known[key]):
            raise UsageError(f"{path}: {key} = {value!r} has the wrong type")
    try:
        network = bytes.fromhex(values.pop("network"))
        config = PeerConfig(network=network, **values)
    except (KeyError, ValueError, TypeError) as exc:
        raise UsageError(f"{path}: quota, listen and network are needed ({exc})") from exc
    if len(network) != 32 or config.quota <= 0 or config.reserve < 0 or config.grace < 0:
        raise UsageError(
            f"{path}: a quota above 0, a reserve, a grace and a network of 64 hexadecimal digits are needed"
        )
    if not 0 < config.deal_share <= 100 or config.scrub_days < 0:
        raise UsageError(f"{path}: deal_share is a percentage, scrub_days a number of days")
    if not 0 < config.lease <= TERM_MAX or not 0 <= config.lease_grace <= TERM_MAX:
        raise UsageError(f"{path}: lease and lease_grace are seconds, at most {TERM_MAX}, and lease is above 0")
    for key in ("client_connections", "client_requests", "client_rate", "client_memory"):
        if getattr(config, key) <= 0:
            raise UsageError(f"{path}: {key} must be above 0")
    if config.client_forward_rate < 0:
        raise UsageError(f"{path}: client_forward_rate must not be below 0")
    try:
        _check_offer(config)
    except UsageError as exc:
        raise UsageError(f"{path}: {exc}") from exc
    parse_endpoint(config.listen)
    parse_bootstrap(config.bootstrap)
    return config


def save_config(paths: Paths, name: str, config: PeerConfig) -> None:
    """Write the peer's settings."""
    lines = [f"quota = {config.quota}", f"listen = {_quote(config.listen)}", f'network = "{config.network.hex()}"']
    lines += [f"reserve = {config.reserve}", f"announce = {_quote(config.announce)}", f"grace = {config.grace}"]
    usual = PeerConfig(config.quota, config.listen, config.network)
    for field in fields(PeerConfig)[6:]:  # what is as usual follows the release
        if getattr(config, field.name) != getattr(usual, field.name):
            value = getattr(config, field.name)
            lines.append(f"{field.name} = {_toml(value)}")
    write_private_file(paths.peer_state(name) / "peer.toml", ("\n".join(lines) + "\n").encode())


def load_seed(paths: Paths, name: str) -> bytes:
    """Return the peer's Ed25519 seed. Raises UsageError when the file is missing, open to others, or damaged."""
    path = paths.peer_state(name) / "peer.key"
    seed = read_private_file(path)
    if len(seed) != 32:
        raise UsageError(f"{path} has {len(seed)} bytes instead of 32: restore it, or move {path.parent} away")
    return seed


def announced_address(config: PeerConfig, peer: PeerId, port: int) -> Address | None:
    """Return the address to register, None when it listens everywhere and is not told what it is reached by."""
    host, _ = parse_endpoint(config.listen)
    if config.announce:
        has_port = ":" in config.announce.rpartition("]")[2]
        host, announced = parse_endpoint(config.announce if has_port else f"{config.announce}:0")
        return Address(host, announced or port, peer, config.network)
    return None if host in _WILDCARDS else Address(host, port, peer, config.network)


def parse_bootstrap(text: str) -> tuple[Address, ...]:
    """Return the addresses of peer.toml's `bootstrap`, separated by spaces. Raises UsageError."""
    return address.parse_bootstrap(text.split())


class Policy:
    """Whom a peer admits: policy.toml, read again whenever the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._admitted: frozenset[str] = frozenset()
        self._denied: frozenset[str] = frozenset()
        self._error = ""

    def refusal(self, deal: bytes) -> str:
        """Return why the deal may not store here, "" if it may. An unreadable policy admits nobody and says so."""
        if not deal:
            return "no deal key was shown"
        self._refresh()
        if self._error:
            return "this peer's policy cannot be read"
        if deal.hex() in self._denied:
            return "this peer does not admit your deal key"
        if EVERYBODY in self._admitted or deal.hex() in self._admitted:
            return ""
        return "this peer does not know your deal key"

    @property
    def error(self) -> str:
        """Why the policy cannot be read; for the log and status."""
        return self._error

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            stamp: tuple[int, ...] = (status.st_mtime_ns, status.st_ino, status.st_size)
        except OSError:
            stamp = ()
        if stamp == self._stamp and not self._error:
            return
        self._stamp = stamp
        try:
            (self._admitted, self._denied), self._error = _read_policy(self._path), ""
        except UsageError as exc:
            self._admitted, self._denied, self._error = frozenset(), frozenset(), str(exc)


def _read_policy(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return who is admitted and who is denied."""
    values = _read_toml(path, f"{path} is missing")
    admit, deny = values.pop("admit", []), values.pop("deny", [])
    if values:
        raise UsageError(f"{path}: unknown setting {next(iter(values))!r}; there are admit, deny")
    return _read_keys(path, "admit", admit, EVERYBODY), _read_keys(path, "deny", deny, "")


def _read_keys(path: Path, name: str, keys: object, wildcard: str) -> frozenset[str]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UsageError(f"{path}: {name} must be a list of deal keys" + (f', or ["{wildcard}"]' if wildcard else ""))
    for key in keys:
        if (not wildcard or key != wildcard) and (len(key) != 64 or not set(key.lower()) <= set("0123456789abcdef")):
            raise UsageError(f"{path}: {key!r} is not a deal key of 64 hexadecimal digits")
    return frozenset(key.lower() for key in keys)


def _read_toml(path: Path, missing: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise UsageError(missing) from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"{path}: {exc}") from exc


def _toml(value: object) -> str:
    """Return a value of peer.toml as it is written there."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quote(value) if isinstance(value, str) else str(value)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
