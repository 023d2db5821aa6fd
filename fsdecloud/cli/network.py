"""The ledger network of this home, and what its own peers may store."""

from __future__ import annotations

import secrets
import time
import tomllib
from pathlib import Path
from typing import Final

from fsdecloud.cli import client, parts, peers
from fsdecloud.cli.output import note
from fsdecloud.config import Paths, write_private_file
from fsdecloud.errors import LedgerUnavailable, RemoteTimeout, UsageError
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import Account, KeyQuery, LedgerStatus

BALANCE_TIMEOUT: Final = 3.0
"""Seconds for a daemon to say what a key has: whoever asks how a peer does is told the rest without it."""


def has_network(paths: Paths) -> bool:
    """Whether this home belongs to a ledger network."""
    from fsdecloud.ledgerd.setup import load_network

    return load_network(paths) is not None


def require_network(paths: Paths) -> bytes:
    """Return the id of this home's network. Raises UsageError when it has none."""
    from fsdecloud.ledger.network import network_id
    from fsdecloud.ledgerd.setup import load_network

    document = load_network(paths)
    if document is None:
        raise UsageError(
            "this machine belongs to no ledger network yet: decloud up makes one of its own, "
            "decloud ledger run --bootstrap URL joins one"
        )
    return network_id(document)


def ensure_network(paths: Paths, *, priced: bool = False) -> bytes:
    """Return the id of this home's network; the first time, make an embedded one, in which peers are paid if it is `priced`.

    Raises UsageError when the present one is not, and cannot be."""
    from fsdecloud.ledger.network import embedded_network, has_contracts, priced_network
    from fsdecloud.ledgerd.setup import init_ledger, load_network

    present = load_network(paths)
    if present is None:
        make = priced_network if priced else embedded_network
        return init_ledger(paths, make("embedded", secrets.token_bytes(32), int(time.time())))
    if priced and not (has_contracts(present) and present.mine_when_idle):
        raise UsageError(
            "peers are paid for time, counted in blocks, and the network of this home makes blocks only when there is something"
            " to record: FSDECLOUD_HOME=DIR decloud up --priced makes another home with a network for it"
        )
    return require_network(paths)


def require_own(paths: Paths, volume: str, network: str, *, made_here: bool = False) -> None:
    """Raise UsageError when a volume's network (hex) is not this home's, or when it is `made_here` and this home has none.

    Such a volume finds neither its anchors nor its peers here, and would wait for them.
    """
    from fsdecloud.ledger.network import network_id
    from fsdecloud.ledgerd.setup import load_network

    document = load_network(paths)
    if (document is None and not made_here) or (document is not None and network_id(document).hex() == network):
        return
    here = "of no network any more" if document is None else f"of the network {network_id(document).hex()[:16]}"
    raise UsageError(
        f"volume {volume} was made in the network {network[:16]}, and this home is {here}: bring {paths.ledger_state} back"
        f" as it was, or move {paths.volume_config(volume)} away if that network is gone for good"
    )


def ensure_ledger(paths: Paths, *, light: bool = False) -> None:
    """Start this home's ledger daemon, a light one if a person wants that, if it belongs to a network and the daemon does not
    run. Raises UsageError as `light_arguments` does."""
    if has_network(paths) or light:
        process = parts.ensure_part(paths, parts.ledger_part(light_arguments(paths, light=light)))
        if process is not None:
            process.returncode = 0  # it lives on; nobody waits for it here


def light_arguments(paths: Paths, *, light: bool) -> list[str]:
    """Return the ledger daemon's arguments for keeping headers only, if a person wants that; it remembers.

    Raises UsageError when this home belongs to no network: a light daemon cannot begin one.
    """
    if not light:
        return []
    if not has_network(paths):
        raise UsageError(
            "a light ledger daemon needs a network that others keep: decloud ledger run --light --bootstrap URL joins one"
        )
    if parts.running_pid(paths, "ledger") is not None and not ledger_status(paths).light:
        note("the ledger daemon runs already, as a full one: stop it (decloud down), then --light holds")
    return ["--light"]


def require_ledger(paths: Paths) -> None:
    """Raise LedgerUnavailable, with what to do, unless this home's ledger daemon runs."""
    if parts.running_pid(paths, "ledger") is None:
        raise LedgerUnavailable("the ledger daemon of this home is not running: decloud up, or decloud ledger run")


def ledger_status(paths: Paths) -> LedgerStatus:
    """Ask the ledger daemon. Raises LedgerUnavailable when it does not run or answer."""
    require_ledger(paths)
    return client.call(paths.socket("ledger"), "status", Empty(), LedgerStatus, error=LedgerUnavailable)


def balance(paths: Paths, network: bytes, key: bytes) -> int:
    """Return what this home's ledger daemon says is the balance of a key in `network`, in the smallest unit.

    Raises LedgerUnavailable when none runs, answers soon, or belongs to that network.
    """
    require_ledger(paths)
    try:
        with client.Client(paths.socket("ledger"), error=LedgerUnavailable, timeout=BALANCE_TIMEOUT) as ledger:
            if ledger.call("status", Empty(), LedgerStatus, timeout=BALANCE_TIMEOUT).network != network:
                raise LedgerUnavailable("the ledger daemon of this home is of another network")
            return ledger.call("account", KeyQuery(key), Account, timeout=BALANCE_TIMEOUT).balance
    except RemoteTimeout as exc:
        raise LedgerUnavailable(str(exc)) from exc


def admit_volume(paths: Paths, root: bytes) -> None:
    """Let every peer of this home store for the volume with this root secret."""
    from fsdecloud.crypto import sign
    from fsdecloud.crypto.keys import VolumeKeys, deal_seed

    deal_secret = VolumeKeys.from_root(root).deal_secret
    for name in parts.local_peers(paths):
        key = sign.public_key(deal_seed(deal_secret, peers.peer_id(paths, name)))
        add_to_policy(paths.peer_state(name) / "policy.toml", key.hex())


def add_to_policy(path: Path, key: str) -> None:
    """Add a deal's public key to a peer's list of writers. Raises UsageError when the file cannot be understood."""
    admitted: list[str] = []
    if path.exists():
        try:
            found = tomllib.loads(path.read_text("utf-8")).get("admit", [])
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise UsageError(f"{path}: {exc}") from exc
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise UsageError(f'{path}: admit must be a list of deal keys, or ["*"]')
        admitted = found
    if key in admitted or "*" in admitted:
        return
    lines = "".join(f'    "{item}",\n' for item in [*admitted, key])
    write_private_file(
        path, f'# Deal keys that may store here; ["*"] admits everybody.\nadmit = [\n{lines}]\n'.encode()
    )
