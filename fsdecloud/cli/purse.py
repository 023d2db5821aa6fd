"""Whose money a wallet command is about: a volume's, a storage peer's, or that of this home's ledger daemon, which mines.

A volume's wallet has many keys, the others one. Public keys come from the driver while the volume is mounted, so that looking
takes no passphrase; paying takes the secret. Not here: what the keys have (`walletview`), and the commands (`wallet`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsdecloud.cli import client, drivers, network, parts, stake, volumes
from fsdecloud.config import Paths, read_private_file
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.store.lockfile import LockFile, acquire_lock
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import WALLET_KEYS_AT_ONCE, PaymentList, WalletKeys, WalletQuery

if TYPE_CHECKING:
    from fsdecloud.store.payments import PaymentStore


@dataclass(frozen=True, slots=True)
class Purse:
    """The keys that one command is about."""

    who: str
    """For people: "volume NAME", "peer NAME", "the ledger daemon of this home"."""
    network: bytes
    keys: Callable[[int, int], list[bytes]]
    """Public keys with numbers from `first` on, `count` of them."""
    seed: Callable[[int], bytes] | None
    """The Ed25519 seed of a key; None where the secret was not asked for."""
    has_many: bool
    """Whether there are more keys than number 0."""
    sent: Callable[[], list[bytes]]
    """The encoded transfers that were made on this machine, oldest first."""
    lock: Callable[[], LockFile] | None = None
    """Keeps others of this machine from paying with the same keys; raises StoreLocked while somebody does. Two who pay the same
    amount to the same key at once would sign the same transaction, and only one payment be made. None without the secret."""
    store: PaymentStore | None = None
    """Where payments are noted for the volume's log; None for what has no log."""
    volume: str = ""


def purse_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say whose wallet is meant; see `open_purse`."""
    for option in (
        click.option("--passphrase-file", metavar="FILE", help="The volume's passphrase; - is standard input."),
        click.option("--miner", is_flag=True, help="What this home's ledger daemon has, which earns what it mines."),
        click.option("--peer", metavar="PEER", help="What the storage peer PEER of this home has."),
    ):
        function = option(function)
    return function


def open_purse(
    paths: Paths,
    name: str | None,
    *,
    peer: str | None = None,
    miner: bool = False,
    passphrase_file: str | None = None,
    with_secret: bool = False,
) -> Purse:
    """Return the keys of the volume `name` (by default the only one), or of the peer, or of the ledger daemon.

    Raises UsageError when there is no such thing, several are meant, or the secret cannot be opened.
    """
    if (name is not None) + (peer is not None) + miner > 1:
        raise UsageError("name a volume, or --peer PEER, or --miner: one wallet at a time")
    if miner:
        seed = read_private_file(paths.ledger_state / "node.key")
        return _single("the ledger daemon of this home", network.require_network(paths), seed, paths.ledger_state)
    if peer is not None:
        from fsdecloud.peerd.setup import load_config, load_seed

        peer = stake.choose_peer(paths, peer)
        network_id, seed = load_config(paths, peer).network, load_seed(paths, peer)
        return _single(f"peer {peer}", network_id, seed, paths.peer_state(peer))
    volume = _choose_volume(paths, name)
    document = volumes.load_document(paths, volume)
    network_id = bytes.fromhex(document.network)
    if not with_secret and _is_served(paths, volume):
        return driver_purse(paths, volume, network_id)
    return _from_secret(paths, volume, network_id, volumes.open_root(paths, volume, passfile=passphrase_file or ""))


def driver_purse(paths: Paths, volume: str, network_id: bytes) -> Purse:
    """Return the wallet of a mounted volume, without its secret; what is asked of it later raises as `driver_keys`."""
    return Purse(
        f"volume {volume}",
        network_id,
        lambda first, count: driver_keys(paths, volume, first, count),
        None,
        has_many=True,
        sent=lambda: list(_ask(paths, volume, "payments", Empty(), PaymentList).txs),
        volume=volume,
    )


def driver_keys(paths: Paths, volume: str, first: int, count: int) -> list[bytes]:
    """Return public keys of a mounted volume's wallet. Raises UnansweredDriver, RemoteError."""
    found: list[bytes] = []
    while len(found) < count:
        query = WalletQuery(first + len(found), min(count - len(found), WALLET_KEYS_AT_ONCE))
        found += _ask(paths, volume, "wallet", query, WalletKeys).keys
    return found


def record_now(paths: Paths, volume: str) -> None:
    """Have a mounted volume's driver record what was just noted; one that does not answer does it later."""
    if parts.running_pid(paths, drivers.PREFIX + volume) is None:
        return
    try:
        _ask(paths, volume, "record_payments", Empty(), Empty)
    except FsdecloudError:
        return


def _from_secret(paths: Paths, volume: str, network_id: bytes, root: bytes) -> Purse:
    from fsdecloud.crypto.keys import VolumeKeys
    from fsdecloud.crypto.wallet import wallet_key, wallet_seed
    from fsdecloud.store.payments import PaymentStore

    keys = VolumeKeys.from_root(root)
    store = PaymentStore(paths.volume_state(volume) / "payments", keys.at_rest_key)
    return Purse(
        f"volume {volume}",
        network_id,
        lambda first, count: [wallet_key(keys.wallet_secret, first + place) for place in range(count)],
        lambda index: wallet_seed(keys.wallet_secret, index),
        has_many=True,
        sent=lambda: [payment.tx for payment in store.all()],
        lock=store.lock,
        store=store,
        volume=volume,
    )


def _single(who: str, network_id: bytes, seed: bytes, state: Path) -> Purse:
    """Return what has one key; `state` is where its key lies."""
    from fsdecloud.crypto.sign import public_key

    key = public_key(seed)

    def only(index: int) -> bytes:
        if index:
            raise UsageError(f"{who} has one key, number 0")
        return seed

    return Purse(
        who,
        network_id,
        lambda first, _count: [] if first else [key],
        only,
        has_many=False,
        sent=list,
        lock=lambda: acquire_lock(state / "wallet.lock"),
    )


def _choose_volume(paths: Paths, name: str | None) -> str:
    known = volumes.list_volumes(paths)
    if name is not None:
        return name
    if len(known) != 1:
        there = f"this home has the volumes {', '.join(known)}" if known else "this home has no volume"
        raise UsageError(f"{there}: name one, or --peer PEER, or --miner")
    return known[0]


def _is_served(paths: Paths, volume: str) -> bool:
    """Whether a driver answers for the volume."""
    if parts.running_pid(paths, drivers.PREFIX + volume) is None:
        return False
    try:
        driver_keys(paths, volume, 0, 1)
    except FsdecloudError:
        return False
    return True


def _ask(paths: Paths, volume: str, method: str, params: object, kind: type[Any]) -> Any:
    return client.call(
        paths.socket(drivers.PREFIX + volume),
        method,
        params,
        kind,
        timeout=drivers.STATUS_TIMEOUT,
        error=drivers.UnansweredDriver,
    )
