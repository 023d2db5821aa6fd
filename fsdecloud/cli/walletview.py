"""What a wallet has, and what became of its payments, as this home's ledger daemon tells; for people and for programs.

Everything shown is of one tip: what was in a block that the chain has left is shown as waiting again. Payments of this machine
that the ledger neither has nor holds waiting (its daemon was restarted) are submitted again, and shown as failed when that is
refused: then another payment with the same number was made elsewhere, or the money is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fsdecloud.cli import client, submitting
from fsdecloud.cli.output import rfc3339, table
from fsdecloud.cli.purse import Purse, driver_purse
from fsdecloud.config import Paths
from fsdecloud.errors import FsdecloudError, LedgerUnavailable
from fsdecloud.wire.ledgerapi import (
    KEYS_AT_ONCE,
    AccountsInfo,
    AccountsQuery,
    HistoryPage,
    HistoryQuery,
    TxFound,
    TxQuery,
)

if TYPE_CHECKING:
    from fsdecloud.ledger.accounting import Line
    from fsdecloud.ledger.transactions import Transaction, Transfer
    from fsdecloud.ledger.wallet import Funds

PAGE: Final = 256
"""Blocks of one question about a history."""

TRIES: Final = 5
"""Times that a history is read anew because the chain changed meanwhile."""

STATUS_TIMEOUT: Final = 3.0
"""Seconds for `status` to reach the ledger daemon; it shows the rest without what it would say of money."""

HEIGHTS: Final = (1 << 53) - 1


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the keys of a wallet have at one tip."""

    height: int
    tip: bytes
    funds: tuple[Funds, ...]
    """By the keys' numbers: all up to the last that the ledger knows."""
    is_light: bool

    @property
    def confirmed(self) -> int:
        """What is in the best chain."""
        return sum(found.confirmed for found in self.funds)

    @property
    def outgoing(self) -> int:
        """What is on its way to others."""
        return sum(found.outgoing for found in self.funds)

    @property
    def incoming(self) -> int:
        """What is on its way here."""
        return sum(found.incoming for found in self.funds)

    @property
    def available(self) -> int:
        """What can be spent now."""
        return sum(found.available for found in self.funds)

    @property
    def has_money(self) -> bool:
        """Whether there is, or will be, anything to show."""
        return bool(self.confirmed or self.outgoing or self.incoming)


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a wallet's history."""

    index: int
    """Number of the key."""
    line: Line
    confirmations: int
    """Blocks from its own to the tip; 0 while it waits."""
    failure: str = ""
    """Why the ledger will never have it; empty otherwise."""

    @property
    def state(self) -> str:
        """One word: confirmed, pending or failed."""
        return "failed" if self.failure else "confirmed" if self.confirmations else "pending"


@dataclass(frozen=True, slots=True)
class History:
    """What happened to a wallet's money, newest first."""

    events: tuple[Event, ...]
    height: int
    first: int
    """Height from which on everything is known."""
    is_light: bool
    """Only the payments of this machine are known."""


def read_holdings(ledger: client.Client, purse: Purse) -> Holdings:
    """Ask what a wallet's keys have; finds the keys that are used."""
    from fsdecloud.crypto.wallet import used_count

    found: dict[int, Funds] = {}
    answers: list[AccountsInfo] = []

    def look(first: int, count: int) -> list[bool]:
        info, funds = ask_funds(ledger, purse.keys(first, count))
        answers.append(info)
        found.update(enumerate(funds, first))
        return [one.is_used for one in funds]

    if purse.has_many:
        count = used_count(look)
    else:
        look(0, 1)
        count = 1
    if len({info.tip for info in answers}) > 1:  # another tip meanwhile: the same keys, at once
        info, funds = ask_funds(ledger, purse.keys(0, count))
        return Holdings(info.height, info.tip, tuple(funds), info.is_light)
    info = answers[-1]
    return Holdings(info.height, info.tip, tuple(found[index] for index in range(count)), info.is_light)


def ask_funds(ledger: client.Client, keys: Sequence[bytes]) -> tuple[AccountsInfo, list[Funds]]:
    """Return what keys have, and the last answer about them."""
    from fsdecloud.ledger.transactions import decode_tx
    from fsdecloud.ledger.wallet import funds_of

    funds: list[Funds] = []
    for start in range(0, len(keys), KEYS_AT_ONCE):
        some = tuple(keys[start : start + KEYS_AT_ONCE])
        info = ledger.call("accounts", AccountsQuery(some), AccountsInfo)
        waiting = [decode_tx(data) for data in info.waiting]
        funds += [
            funds_of(key, account.balance, account.nonce, account.next_nonce, waiting)
            for key, account in zip(some, info.accounts, strict=True)
        ]
    return info, funds


def submit_again(ledger: client.Client, purse: Purse, holdings: Holdings) -> dict[bytes, str]:
    """Submit the payments of this machine that should wait and do not; return why the ledger refuses some, by their ids."""
    from fsdecloud.ledger.transactions import tx_id

    failed: dict[bytes, str] = {}
    by_key = {funds.key: funds for funds in holdings.funds}
    for data, tx in own_payments(purse):
        funds = by_key.get(tx.sender)
        if funds is None or tx.nonce < funds.nonce or tx_id(tx) in {line.tx for line in funds.waiting}:
            continue
        try:
            submitting.submit(ledger, data, purse.who, tx.sender)
        except submitting.Refused as exc:
            failed[tx_id(tx)] = str(exc)
    return failed


def own_payments(purse: Purse) -> list[tuple[bytes, Transfer]]:
    """Return the payments that were made on this machine, oldest first, encoded and decoded."""
    from fsdecloud.ledger.transactions import Transfer, decode_tx

    decoded = ((data, decode_tx(data)) for data in purse.sent())
    return [(data, tx) for data, tx in decoded if isinstance(tx, Transfer)]


def read_history(ledger: client.Client, purse: Purse, failed: dict[bytes, str], most: int | None = None) -> History:
    """Return a wallet's history, of more than `most` events the newest. Raises LedgerUnavailable when the chain does not stay
    the same for long enough to be read."""
    for _ in range(TRIES):
        holdings = read_holdings(ledger, purse)
        if holdings.is_light:
            return _light_history(ledger, purse, holdings, failed, most)
        lines, first = _ledger_lines(ledger, holdings, most)
        if read_holdings(ledger, purse).tip == holdings.tip:
            return _history(ledger, purse, holdings, lines, failed, most, first)
    raise LedgerUnavailable("the chain changes too fast for its history to be read: try again")


def _ledger_lines(ledger: client.Client, holdings: Holdings, most: int | None) -> tuple[list[Line], int]:
    """Return the lines of all keys, and from which height on they are all known."""
    from fsdecloud.ledger.accounting import lines_of_block
    from fsdecloud.ledger.transactions import decode_tx

    lines: list[Line] = []
    first = 1
    for funds in holdings.funds:
        below, own = HEIGHTS, 0
        while below and (most is None or own < most):
            page = ledger.call("account_history", HistoryQuery(funds.key, below, PAGE), HistoryPage, timeout=60.0)
            for block in page.blocks:
                found = lines_of_block(
                    funds.key, block.change, [decode_tx(tx) for tx in block.txs], block.height, block.time
                )
                lines += found
                own += len(found)
            below, first = page.below, max(first, page.first)
    return lines, first


def _light_history(
    ledger: client.Client, purse: Purse, holdings: Holdings, failed: dict[bytes, str], most: int | None
) -> History:
    """Return what a light daemon proves: where the payments of this machine are."""
    from fsdecloud.ledger.accounting import line_of
    from fsdecloud.ledger.transactions import tx_id

    lines: list[Line] = []
    for _, tx in own_payments(purse)[-(most or 0) :]:
        found = ledger.call("tx", TxQuery(tx_id(tx)), TxFound, timeout=60.0)
        if found.height is not None and (line := line_of(tx, tx.sender, found.height)) is not None:
            lines.append(line)
    return _history(ledger, purse, holdings, lines, failed, most, 1)


def _history(
    ledger: client.Client,
    purse: Purse,
    holdings: Holdings,
    lines: list[Line],
    failed: dict[bytes, str],
    most: int | None,
    first: int,
) -> History:
    """Put together what is in blocks, what waits, and what of this machine's payments failed."""
    from fsdecloud.ledger.accounting import line_of, newest_first
    from fsdecloud.ledger.transactions import tx_id

    index_of = {funds.key: index for index, funds in enumerate(holdings.funds)}
    waiting = [line for funds in holdings.funds for line in funds.waiting]
    known = {line.tx for line in (*waiting, *lines)}
    events = []
    for _, tx in reversed(own_payments(purse)[-(most or 0) :]):
        identity, index = tx_id(tx), index_of.get(tx.sender)
        line = line_of(tx, tx.sender)
        if index is None or line is None or identity in known:
            continue
        reason = failed.get(identity, "")
        if not reason and first == 1 and tx.nonce < holdings.funds[index].nonce:
            # It may be in a block that is older than what was asked for; a ledger that prunes cannot tell.
            is_old = most is not None and ledger.call("tx", TxQuery(identity), TxFound, timeout=60.0).height is not None
            reason = "" if is_old else "another payment with its number is in the ledger"
        if reason:
            events.append(Event(index, line, 0, reason))
    events += [
        Event(index_of[line.key], line, 0 if line.height is None else holdings.height - line.height + 1)
        for line in newest_first([*waiting, *lines])
    ]
    return History(tuple(events[:most]), holdings.height, first, holdings.is_light)


def look(paths: Paths, volume: str, network: bytes) -> Holdings | None:
    """Return what a mounted volume's wallet has, for `status`; None where there is nothing, or nobody says."""
    if "@" in volume:  # a snapshot that is mounted alone has no wallet
        return None
    purse = driver_purse(paths, volume, network)
    try:
        with client.Client(paths.socket("ledger"), error=LedgerUnavailable, timeout=STATUS_TIMEOUT) as ledger:
            found = read_holdings(ledger, purse)
    except FsdecloudError:
        return None
    return found if found.has_money else None


# ---- for programs and for people -----------------------------------------------------------------------------------
def holdings_fields(purse: Purse, holdings: Holdings) -> dict[str, object]:
    """Return the object of `wallet balance --json`."""
    from fsdecloud.crypto.wallet import address_of

    return {
        "wallet": purse.who,
        "network": purse.network.hex(),
        "height": holdings.height,
        **money_fields(holdings),
        "light": holdings.is_light,
        "keys": [
            {
                "index": index,
                "address": address_of(funds.key),
                "key": funds.key.hex(),
                "confirmed": funds.confirmed,
                "outgoing": funds.outgoing,
                "incoming": funds.incoming,
                "available": funds.available,
            }
            for index, funds in enumerate(holdings.funds)
        ],
    }


def holdings_lines(purse: Purse, holdings: Holdings) -> list[str]:
    """Return what people read."""
    from fsdecloud.crypto.wallet import address_of

    lines = [f"{purse.who}: {money_words(holdings)} (block {holdings.height})"]
    used = [(index, funds) for index, funds in enumerate(holdings.funds) if funds.is_used]
    if len(used) > 1:
        rows = [
            [str(index), address_of(funds.key), str(funds.confirmed), str(-funds.outgoing or 0), str(funds.incoming)]
            for index, funds in used
        ]
        header = ("key", "address", "confirmed", "going", "coming")
        lines += table(rows, header=header, right=(0, 2, 3, 4), indent="  ")
    if holdings.is_light:
        lines.append("the ledger daemon is light: what others have sent and no block has yet is not known here")
    return lines


def money_fields(holdings: Holdings) -> dict[str, object]:
    """Return the amounts of all keys together."""
    return {
        "confirmed": holdings.confirmed,
        "outgoing": holdings.outgoing,
        "incoming": holdings.incoming,
        "available": holdings.available,
    }


def money_words(holdings: Holdings) -> str:
    """Say in a few words what a wallet has."""
    words = [f"{holdings.confirmed} confirmed"]
    if holdings.outgoing or holdings.incoming:
        pending = [f"{holdings.outgoing} going"] * bool(holdings.outgoing)
        pending += [f"{holdings.incoming} coming"] * bool(holdings.incoming)
        words.append(f"pending: {' and '.join(pending)}")
        words.append(f"{holdings.available} can be spent now")
    return ", ".join(words)


def event_fields(event: Event) -> dict[str, object]:
    """Return one object of `wallet history --json`."""
    from fsdecloud.crypto.wallet import address_of

    line = event.line
    return {
        "state": event.state,
        "kind": str(line.why),
        "amount": line.amount,
        "fee": line.fee,
        "other": address_of(line.other) if line.other else None,
        "index": event.index,
        "address": address_of(line.key),
        "transaction": line.tx.hex() or None,
        "height": line.height,
        "time": rfc3339(line.time) if line.time else None,
        "confirmations": event.confirmations,
        "failure": event.failure or None,
    }


def event_lines(history: History) -> list[str]:
    """Return what people read, newest first."""
    rows = []
    for event in history.events:
        fields = event_fields(event)
        where = "pending" if event.state == "pending" else f"failed: {event.failure}"
        if event.state == "confirmed":
            where = f"block {event.line.height}, {event.confirmations} confirmations"
        rows.append([
            str(fields["time"] or "-"),
            str(event.line.why),
            f"{event.line.amount:+d}" if event.line.amount else "0",
            str(event.line.fee or "-"),
            str(fields["other"] or "-"),
            where,
        ])  # fmt: skip
    lines = table(rows, header=("time", "kind", "amount", "fee", "other side", "state"), right=(2, 3)) if rows else []
    if not rows:
        lines.append("nothing has come or gone")
    if history.is_light:
        lines.append("the ledger daemon is light: only the payments of this machine are known; a full one knows all")
    elif history.first > 1:
        lines.append(
            f"what was before block {history.first} is not known to this ledger daemon: it prunes, is still executing older "
            "blocks (decloud ledger status), or was of an older release (decloud ledger rebuild)"
        )
    return lines


def find_transfer(sender: bytes, identity: bytes, transactions: Iterable[Transaction]) -> Transfer | None:
    """Return the payment of a key with this id among `transactions`."""
    from fsdecloud.ledger.transactions import Transfer, tx_id

    for tx in transactions:
        if isinstance(tx, Transfer) and tx.sender == sender and tx_id(tx) == identity:
            return tx
    return None
