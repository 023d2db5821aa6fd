"""What a ledger daemon needs before it runs: the network's document and a key of its own. Blocking.

state/ledger/network    the network document, canonical bytes: `b3sum` of it is the network id
state/ledger/node.key   32-byte Ed25519 seed: proves the daemon's identity to others, receives its mining rewards
state/ledger/node.json  the address it listens on, so that it is found again after a restart, and who is shut out
state/ledger/addresses  other daemons' addresses (`swarm.addressbook`)
state/ledger/chain/     `store.chain`
state/ledger/light/     the same of a light daemon: headers only
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from fsdecloud.config import Paths, make_private_dir, read_private_file, write_private_file
from fsdecloud.errors import MalformedError, UsageError
from fsdecloud.ledger.network import NetworkDocument, decode_network, encode_network, network_id

_JSON_MAX: Final = 1 << 20


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a daemon remembers between runs."""

    listen: str = ""
    """HOST:PORT of the last run."""
    addresses: tuple[str, ...] = ()
    """Other daemons, as an earlier release kept them; now they are in the address book."""
    bans: tuple[tuple[str, int], ...] = ()
    """Addresses that are shut out, until when (seconds since 1970)."""
    light: bool = False
    """Whether it kept headers only."""


def init_ledger(paths: Paths, document: NetworkDocument) -> bytes:
    """Prepare this machine for the network and return the network's id. A second call with the same document changes
    nothing. Raises UsageError when another network is set up here."""
    present = load_network(paths)
    if present is not None and present != document:
        raise UsageError(
            f"{paths.ledger_state} belongs to the network {network_id(present).hex()} ({present.name}); "
            "move it away to join another"
        )
    make_private_dir(paths.ledger_state)
    if not _key_path(paths).exists():
        write_private_file(_key_path(paths), os.urandom(32))
    if present is None:
        write_private_file(_network_path(paths), encode_network(document))
    return network_id(document)


def load_network(paths: Paths) -> NetworkDocument | None:
    """Return the network this machine is set up for, None if for none. Raises UsageError when its file is damaged."""
    path = _network_path(paths)
    if not path.exists():
        return None
    try:
        return decode_network(read_private_file(path))
    except MalformedError as exc:
        raise UsageError(f"{path} is damaged ({exc}); restore it or move {path.parent} away to join again") from exc


def read_network_file(path: Path) -> NetworkDocument:
    """Return the network document in a file that a person named. Raises UsageError."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    try:
        return decode_network(data)
    except MalformedError as exc:
        raise UsageError(f"{path} is not a network document: {exc}") from exc


def load_node_seed(paths: Paths) -> bytes:
    """Return the daemon's Ed25519 seed. Raises UsageError when the file is missing, open to others, or damaged."""
    path = _key_path(paths)
    seed = read_private_file(path)
    if len(seed) != 32:
        raise UsageError(f"{path} has {len(seed)} bytes instead of 32; move it away to get a new identity")
    return seed


def load_config(paths: Paths) -> NodeConfig:
    """Return what the daemon remembered; nothing when there is no such file. A damaged one is an error."""
    path = paths.ledger_state / "node.json"
    if not path.exists():
        return NodeConfig()
    try:
        return msgspec.json.decode(read_private_file(path, _JSON_MAX), type=NodeConfig)
    except msgspec.DecodeError as exc:
        raise UsageError(f"{path} is damaged ({exc}); delete it, it only holds addresses") from exc


def save_config(paths: Paths, config: NodeConfig) -> None:
    """Remember `config`."""
    write_private_file(paths.ledger_state / "node.json", msgspec.json.format(msgspec.json.encode(config)))


def chain_path(paths: Paths) -> Path:
    """Return where the chain store lies."""
    return paths.ledger_state / "chain"


def book_path(paths: Paths) -> Path:
    """Return where the address book lies."""
    return paths.ledger_state / "addresses"


def light_path(paths: Paths) -> Path:
    """Return where a light daemon's store of headers lies."""
    return paths.ledger_state / "light"


def _network_path(paths: Paths) -> Path:
    return paths.ledger_state / "network"


def _key_path(paths: Paths) -> Path:
    return paths.ledger_state / "node.key"
