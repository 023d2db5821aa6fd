"""`decloud ledger bond|unbond|finality`: the stake of this home's peers, and what votes have made final.

Amounts are in the smallest unit. Not here: the rules (`ledger.staking`), voting (`peerd.voting`), payments (`wallet`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import click

from fsdecloud.cli import client, network, parts, peers, submitting
from fsdecloud.cli.output import emit, emit_json, table
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import FsdecloudError, LedgerUnavailable, UsageError
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import (
    Account,
    CheckpointInfo,
    FinalityInfo,
    FinalityQuery,
    KeyQuery,
    NetworkInfo,
    StakeInfo,
)

AMOUNT_MAX: Final = (1 << 62) - 1
"""`ledger.network.AMOUNT_MAX`, without importing what is slow."""

STATUS_TIMEOUT: Final = 3.0
"""Seconds for `status` to be told what is final; it shows the rest without that."""

NO_CHECKPOINTS: Final = (
    "this network has no checkpoints: nobody bonds or votes in it, and blocks below the finality depth are not replaced "
    "without a person's word"
)

TRANSACTION_SIZE: Final = 192
"""Bytes of a bond or an unbond, at most: what its fee is estimated for."""


@click.command("bond")
@click.argument("amount", metavar="AMOUNT", type=click.IntRange(1, AMOUNT_MAX))
@click.option("--peer", "name", metavar="NAME", help="Which peer of this home, if there are several.")
def bond_command(amount: int, name: str | None) -> None:
    """Lock AMOUNT of a peer's money as its stake, in the smallest unit: while it runs, it votes about checkpoints by itself.

    What it bonded before is added to. Votes that contradict each other burn the stake: never run two copies of one peer.
    """
    from fsdecloud.ledger.transactions import sign_bond

    name = _submit_signed(name, lambda network_id, seed, fee, nonce: sign_bond(network_id, seed, amount, fee, nonce))
    emit(f"peer {name} bonds {amount}, once a block has it; decloud ledger finality shows it")


@click.command("unbond")
@click.option("--peer", "name", metavar="NAME", help="Which peer of this home, if there are several.")
def unbond_command(name: str | None) -> None:
    """Take a peer's whole stake back. It stays locked, and can burn, for the network's unbond delay.

    Keep the peer running until then: its votes count for up to two more final checkpoints.
    """
    from fsdecloud.ledger.transactions import sign_unbond

    name = _submit_signed(name, sign_unbond)
    emit(f"the stake of peer {name} leaves, once a block has it; decloud ledger finality shows when it is paid back")


@click.command("finality")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def finality_command(as_json: bool) -> None:
    """Show which blocks are final, what is being voted about, and the stakes, those of this home's peers above all."""
    paths = find_paths()
    network.require_ledger(paths)
    with client.Client(paths.socket("ledger"), error=LedgerUnavailable) as ledger:
        found = ledger.call("finality", FinalityQuery(b"", with_voters=True), FinalityInfo)
        own: list[tuple[str, StakeInfo | None]] = []
        for name in parts.local_peers(paths) if found.interval else ():
            query = FinalityQuery(peers.peer_id(paths, name))
            own.append((name, ledger.call("finality", query, FinalityInfo).stake))
    if as_json:
        emit_json(finality_fields(found, own))
    else:
        for line in finality_lines(found, own):
            emit(line)


def look(paths: Paths) -> FinalityInfo | None:
    """Return what is final, for `status`; None where the ledger daemon does not say, or the network has no checkpoints."""
    try:
        with client.Client(paths.socket("ledger"), error=LedgerUnavailable, timeout=STATUS_TIMEOUT) as ledger:
            found = ledger.call("finality", FinalityQuery(b""), FinalityInfo, timeout=STATUS_TIMEOUT)
    except FsdecloudError:
        return None
    return found if found.interval else None


def final_line(found: FinalityInfo, anchor_height: int) -> str:
    """Return a line for `status`: up to where the chain is final, and whether a volume's last anchor is (-1: there is none)."""
    line = f"final up to block {found.final.height}"
    if anchor_height < 0:
        return line
    is_final = "is final" if anchor_height <= found.final.height else "is not final yet"
    return f"{line}; the last anchor, in block {anchor_height}, {is_final}"


def finality_fields(found: FinalityInfo, own: list[tuple[str, StakeInfo | None]]) -> dict[str, object]:
    """Return the object of `ledger finality --json`; `own` are the peers of this home by name."""
    if not found.interval:
        return {"height": found.height, "interval": 0, "final": None, "justified": None, "newest": None}
    return {
        "height": found.height,
        "interval": found.interval,
        "final": _checkpoint_fields(found.final),
        "justified": _checkpoint_fields(found.justified),
        "newest": _checkpoint_fields(found.newest),
        "front": found.front,
        "front_votes": found.front_votes,
        "rear": found.rear,
        "rear_votes": found.rear_votes,
        "bonded": found.bonded,
        "least_stake": found.least_stake,
        "voter_count": found.voter_count,
        "voters": [_stake_fields(stake) for stake in found.voters],
        "peers": [
            {"name": name, **({"stake": None} if stake is None else _stake_fields(stake))} for name, stake in own
        ],
    }  # fmt: skip


def finality_lines(found: FinalityInfo, own: list[tuple[str, StakeInfo | None]]) -> list[str]:
    """Return what people read."""
    if not found.interval:
        return [NO_CHECKPOINTS]
    lines = [
        f"final up to block {found.final.height} of {found.height}, a checkpoint each {found.interval} blocks",
        f"justified up to block {found.justified.height}",
        _vote_line(found),
        f"bonded {found.bonded} by {found.voter_count} peers; less than {found.least_stake} makes nothing final",
    ]
    rows = [[name, *_stake_cells(stake)] for name, stake in own if stake is not None]
    if rows:
        header = ("peer", "stake", "weight", "last vote in block", "state")
        lines += table(rows, header=header, right=(1, 2, 3), indent="  ")
    elif own:
        lines.append("no peer of this home has a stake: decloud ledger bond AMOUNT")
    return lines


# ---- inner ---------------------------------------------------------------------------------------------------------
def _submit_signed(name: str | None, sign: Callable[[bytes, bytes, int, int], bytes]) -> str:
    """Sign with the key of a peer of this home, and submit; return the peer's name."""
    from fsdecloud.peerd.setup import load_config, load_seed

    paths = find_paths()
    name = choose_peer(paths, name)
    network_id, seed = load_config(paths, name).network, load_seed(paths, name)
    _submit(paths, network_id, seed, lambda fee, nonce: sign(network_id, seed, fee, nonce), f"peer {name}")
    return name


def _submit(paths: Paths, network_id: bytes, seed: bytes, sign: Callable[[int, int], bytes], who: str) -> None:
    """Sign with the estimated fee and the key's next nonce, and submit. Raises UsageError with what to do if it is refused."""
    from fsdecloud.crypto.sign import public_key
    from fsdecloud.ledger.network import decode_network

    key = public_key(seed)
    with submitting.open_ledger(paths, network_id, who) as ledger:
        if not decode_network(ledger.call("network", Empty(), NetworkInfo).document).checkpoint_interval:
            raise UsageError(NO_CHECKPOINTS)
        fee = submitting.estimate(ledger, TRANSACTION_SIZE).fee
        nonce = ledger.call("account", KeyQuery(key), Account).nonce
        submitting.submit(ledger, _signed(sign, fee, nonce), who, key)


def _signed(sign: Callable[[int, int], bytes], fee: int, nonce: int) -> bytes:
    try:
        return sign(fee, nonce)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def choose_peer(paths: Paths, name: str | None) -> str:
    """Return the peer that is meant. Raises UsageError when there is none, or several and none is named."""
    names = parts.local_peers(paths)
    if not names:
        raise UsageError("this machine has no peer: decloud peer init NAME")
    if name is None:
        if len(names) > 1:
            raise UsageError(f"this home has the peers {', '.join(names)}: name one with --peer")
        return names[0]
    if name not in names:
        raise UsageError(f"this home has no peer {name!r}; it has {', '.join(names)}")
    return name


def _checkpoint_fields(found: CheckpointInfo) -> dict[str, object]:
    return {"height": found.height, "id": found.id.hex()}


def _stake_fields(stake: StakeInfo) -> dict[str, object]:
    return {
        "id": stake.peer.hex(),
        "stake": stake.amount,
        "weight": stake.weight,
        "votes": stake.may_vote,
        "last_vote": stake.target or None,
        "release": stake.release or None,
        "burned": stake.is_burned,
    }


def _stake_cells(stake: StakeInfo) -> list[str]:
    if stake.is_burned:
        state = "burned: its votes contradicted each other"
    elif stake.release:
        state = f"leaves, paid back at block {stake.release}"
    elif not stake.weight:
        state = "suspended for not voting: bond some more"
    else:
        state = "votes" if stake.may_vote else "will vote from one of the next final checkpoints on"
    return [str(stake.amount), str(stake.weight), str(stake.target or "-"), state]


def _vote_line(found: FinalityInfo) -> str:
    if found.newest.height <= found.justified.height:
        return "nothing to vote about until the next checkpoint"
    if found.front < found.least_stake:
        return f"nobody votes about block {found.newest.height} yet: too little is bonded"
    sets = (("the voters", found.front_votes, found.front), ("those before", found.rear_votes, found.rear))
    shown = ", ".join(f"{votes} of {stake} of {which}" for which, votes, stake in sets)
    return f"voted for block {found.newest.height}: {shown}; two thirds of both justify it"
