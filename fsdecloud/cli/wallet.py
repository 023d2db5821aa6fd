"""`decloud wallet address|balance|send|history|export`: money in the ledger, of a volume, a storage peer or a miner.

Amounts are in the smallest unit. Not here: whose keys (`purse`), what they have (`walletview`), the rules of what
may be spent (`ledger.wallet`).
"""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click

from fsdecloud.cli import client, submitting, walletview
from fsdecloud.cli.output import Progress, emit, emit_json, note
from fsdecloud.cli.purse import Purse, open_purse, purse_options, record_now
from fsdecloud.cli.run import PENDING
from fsdecloud.config import find_paths
from fsdecloud.errors import LedgerUnavailable, RemoteTimeout, StoreLocked, UsageError
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import AccountsInfo, AccountsQuery, NetworkInfo, TxFound, TxQuery

if TYPE_CHECKING:
    from fsdecloud.ledger.transactions import Transfer
    from fsdecloud.ledger.wallet import PaymentPlan
    from fsdecloud.store.lockfile import LockFile

AMOUNT_MAX: Final = (1 << 62) - 1
"""`ledger.network.AMOUNT_MAX`, without importing what is slow."""

TURN_TIMEOUT: Final = 30.0
"""Seconds to wait while another command pays from the same wallet."""

LOOK_EVERY: Final = 0.5
"""Seconds between two looks whether a payment is in a block."""

NONCE_TRIES: Final = 3
"""Times that a payment is signed anew because its number was taken meanwhile, by another machine with the same key."""

KEYS_WARNING: Final = (
    "whoever has these keys has all money that comes to them, now and later, and they cannot be changed: keep the file where "
    "nobody else reads it, and remove it when it is not needed any more"
)


@click.group("wallet", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """The money of a volume, of a storage peer, or of this home's ledger daemon."""


@command.command("address")
@click.argument("name", metavar="[NAME]", required=False)
@purse_options
@click.option("--index", metavar="N", type=click.IntRange(0, (1 << 31) - 1), default=0, help="Of the key of a deal.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def address_command(
    name: str | None, peer: str | None, miner: bool, passphrase_file: str | None, index: int, as_json: bool
) -> None:
    """Print where others pay to: the address of the volume NAME (the only one by default)."""
    from fsdecloud.crypto.wallet import address_of

    purse = open_purse(find_paths(), name, peer=peer, miner=miner, passphrase_file=passphrase_file)
    keys = purse.keys(index, 1)
    if not keys:
        raise UsageError(f"{purse.who} has one key, number 0")
    if as_json:
        emit_json({"wallet": purse.who, "index": index, "address": address_of(keys[0]), "key": keys[0].hex()})
    else:
        emit(address_of(keys[0]))


@command.command("balance")
@click.argument("name", metavar="[NAME]", required=False)
@purse_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def balance_command(
    name: str | None, peer: str | None, miner: bool, passphrase_file: str | None, as_json: bool
) -> None:
    """Show what there is: what blocks have, what is on its way, and what can be spent now."""
    paths = find_paths()
    purse = open_purse(paths, name, peer=peer, miner=miner, passphrase_file=passphrase_file)
    with submitting.open_ledger(paths, purse.network, purse.who) as ledger:
        holdings = walletview.read_holdings(ledger, purse)
        if walletview.own_payments(purse):
            walletview.submit_again(ledger, purse, holdings)
            holdings = walletview.read_holdings(ledger, purse)
    if as_json:
        emit_json(walletview.holdings_fields(purse, holdings))
    else:
        for line in walletview.holdings_lines(purse, holdings):
            emit(line)


@command.command("history")
@click.argument("name", metavar="[NAME]", required=False)
@purse_options
@click.option(
    "--count", metavar="N", type=click.IntRange(1), default=50, show_default=True, help="How many, newest first."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def history_command(
    name: str | None, peer: str | None, miner: bool, passphrase_file: str | None, count: int, as_json: bool
) -> None:
    """Show what came and went, newest first: sent, received, mined, fees, with block and confirmations."""
    paths = find_paths()
    purse = open_purse(paths, name, peer=peer, miner=miner, passphrase_file=passphrase_file)
    with submitting.open_ledger(paths, purse.network, purse.who) as ledger:
        history = _read_history(ledger, purse, count)
    if as_json:
        for event in history.events:
            emit_json(walletview.event_fields(event))
    else:
        for line in walletview.event_lines(history):
            emit(line)


@command.command("export")
@click.argument("name", metavar="[NAME]", required=False)
@purse_options
@click.option("--output", metavar="FILE", help="Write to a new file of mode 0600 instead of showing it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line instead of CSV.")
@click.option("--keys", "with_keys", is_flag=True, help="The secret keys instead of the history.")
def export_command(
    name: str | None,
    peer: str | None,
    miner: bool,
    passphrase_file: str | None,
    output: str | None,
    as_json: bool,
    with_keys: bool,
) -> None:
    """Write the whole history for another program; with --keys the secret keys, for a wallet elsewhere."""
    paths = find_paths()
    purse = open_purse(paths, name, peer=peer, miner=miner, passphrase_file=passphrase_file, with_secret=with_keys)
    if with_keys and output is None and sys.stdout.isatty():
        raise UsageError("secret keys are not shown on a terminal: --output FILE writes them to a file of mode 0600")
    with submitting.open_ledger(paths, purse.network, purse.who) as ledger:
        if with_keys:
            rows = _key_rows(purse, len(walletview.read_holdings(ledger, purse).funds))
        else:
            history = _read_history(ledger, purse, None)
            rows = [walletview.event_fields(event) for event in history.events]
            if history.is_light or history.first > 1:
                note(walletview.event_lines(history)[-1])
    text = _as_text(rows, _KEY_COLUMNS if with_keys else _COLUMNS, as_json=as_json)
    if output is None:
        sys.stdout.write(text)
    else:
        _write_new(output, text)
        emit(f"{len(rows)} {'keys' if with_keys else 'events'} of {purse.who} are in {output}")
    if with_keys:
        note(KEYS_WARNING)


@command.command("send")
@click.argument("words", metavar="[NAME] ADDRESS AMOUNT", nargs=-1, required=True)
@purse_options
@click.option("--fee", metavar="FEE", type=click.IntRange(0, AMOUNT_MAX), help="Instead of the estimated one.")
@click.option("--from", "index", metavar="N", type=click.IntRange(0), default=0, help="From the key of a deal.")
@click.option("--replace", metavar="ID", help="In the place of this payment that waits, for a higher fee.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", metavar="BLOCKS", type=click.IntRange(1, 10_000), help="Until so many blocks confirm it.")
@click.option(
    "--timeout", metavar="TIME", default="1h", show_default=True, help="Give up waiting after it (exit code 3)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def send_command(
    words: tuple[str, ...],
    peer: str | None,
    miner: bool,
    passphrase_file: str | None,
    fee: int | None,
    index: int,
    replace: str | None,
    yes: bool,
    wait: int | None,
    timeout: str,
    as_json: bool,
) -> int:
    """Pay AMOUNT ("all" for what there is), in the smallest unit, to ADDRESS, or to a key of 64 hexadecimal digits.

    A terminal is asked first. What was sent cannot be taken back, but until a block has it, --replace sends another payment in
    its place.
    """
    from fsdecloud.crypto.wallet import address_of, key_of
    from fsdecloud.units import parse_duration

    if not 2 <= len(words) <= 3:
        raise UsageError(
            "decloud wallet send takes ADDRESS and AMOUNT, and before them the volume's NAME if there are several"
        )
    name, recipient, amount = (words[0] if len(words) == 3 else None), key_of(words[-2]), _parse_amount(words[-1])
    limit = parse_duration(timeout, "--timeout")
    replaced = None if replace is None else _parse_id(replace)
    paths = find_paths()
    purse = open_purse(paths, name, peer=peer, miner=miner, passphrase_file=passphrase_file, with_secret=True)
    with submitting.open_ledger(paths, purse.network, purse.who) as ledger:
        if not yes and sys.stdin.isatty() and sys.stdout.isatty():
            plan = _plan(ledger, purse, index, recipient, amount, fee, replaced)
            _ask_person(purse, plan)
            amount, fee = plan.amount, plan.fee
        plan, identity = pay(ledger, purse, index, recipient, amount, fee, replaced)
        if purse.volume:
            record_now(paths, purse.volume)
        found = _wait(ledger, purse, identity, wait, limit) if wait else None
    confirmations = found.confirmations if found is not None else 0
    if as_json:
        emit_json({
            "transaction": identity.hex(),
            "from": address_of(plan.sender),
            "to": address_of(plan.recipient),
            "amount": plan.amount,
            "fee": plan.fee,
            "nonce": plan.nonce,
            "left": plan.left,
            "height": found.height if found is not None else None,
            "confirmations": confirmations,
        })  # fmt: skip
    else:
        state = f"{confirmations} blocks confirm it" if confirmations else "pending until a block has it"
        emit(f"{plan.amount} to {address_of(plan.recipient)}, fee {plan.fee}; {plan.left} are left; {state}")
        emit(f"transaction {identity.hex()}")
    return PENDING if wait and confirmations < wait else 0


# ---- paying --------------------------------------------------------------------------------------------------------
def pay(
    ledger: client.Client,
    purse: Purse,
    index: int,
    recipient: bytes,
    amount: int | None,
    fee: int | None,
    replaced: bytes | None,
) -> tuple[PaymentPlan, bytes]:
    """Sign a payment, note it durably, submit it; return it and its id. Raises UsageError, LedgerUnavailable, StoreError."""
    with _turn(purse):
        for attempt in range(NONCE_TRIES):
            plan = _plan(ledger, purse, index, recipient, amount, fee, replaced)
            data, identity = _sign(purse, index, plan)
            _note(purse, data, identity)
            try:
                submitting.submit(ledger, data, purse.who, plan.sender)
            except submitting.Refused as exc:
                if purse.store is not None:
                    purse.store.remove(identity)
                if exc.reason not in ("WrongNonce", "Conflict") or replaced is not None or attempt == NONCE_TRIES - 1:
                    raise
            except (LedgerUnavailable, RemoteTimeout) as exc:
                kept = "; it is kept here, and the next decloud wallet command submits it again" if purse.store else ""
                raise LedgerUnavailable(
                    f"it is not known whether the ledger daemon has taken payment {identity.hex()}: {exc}{kept}"
                ) from exc
            else:
                return plan, identity
    raise AssertionError("the last attempt returns or raises")


def _plan(
    ledger: client.Client,
    purse: Purse,
    index: int,
    recipient: bytes,
    amount: int | None,
    fee: int | None,
    replaced: bytes | None,
) -> PaymentPlan:
    """Return what would be signed now."""
    from fsdecloud.ledger.fees import TRANSFER_SIZE
    from fsdecloud.ledger.network import decode_network
    from fsdecloud.ledger.transactions import decode_tx
    from fsdecloud.ledger.wallet import funds_of, plan_payment

    keys = purse.keys(index, 1)
    if not keys:
        raise UsageError(f"{purse.who} has one key, number 0")
    info = ledger.call("accounts", AccountsQuery((keys[0],)), AccountsInfo)
    waiting = [decode_tx(data) for data in info.waiting]
    account = info.accounts[0]
    funds = funds_of(keys[0], account.balance, account.nonce, account.next_nonce, waiting)
    minimum = decode_network(ledger.call("network", Empty(), NetworkInfo).document).minimum_fee
    estimated = submitting.estimate(ledger, TRANSFER_SIZE).fee
    replaces: Transfer | None = None
    if replaced is not None:
        replaces = walletview.find_transfer(keys[0], replaced, waiting)
        if replaces is None:
            raise UsageError(
                f"no payment {replaced.hex()} of this key waits: decloud wallet history shows those that do"
            )
        estimated = max(estimated, replaces.fee + max(minimum, 1))
    return plan_payment(funds, recipient, amount, estimated if fee is None else fee, minimum, replaces=replaces)


def _sign(purse: Purse, index: int, plan: PaymentPlan) -> tuple[bytes, bytes]:
    from fsdecloud.ledger.transactions import decode_tx, sign_transfer, tx_id

    assert purse.seed is not None
    data = sign_transfer(purse.network, purse.seed(index), plan.recipient, plan.amount, plan.fee, plan.nonce)
    return data, tx_id(decode_tx(data))


def _note(purse: Purse, data: bytes, identity: bytes) -> None:
    """Note a payment for the volume's log, before anybody else hears of it."""
    if purse.store is None:
        return
    from fsdecloud.store.payments import Payment

    purse.store.add(Payment(1, time.time_ns(), identity, data, os.getuid(), b"decloud"))


def _turn(purse: Purse) -> LockFile:
    """Wait until nobody else pays from the wallet, and keep others from it. Raises UsageError after TURN_TIMEOUT."""
    assert purse.lock is not None
    deadline = time.monotonic() + TURN_TIMEOUT
    while True:
        try:
            return purse.lock()
        except StoreLocked as exc:
            if time.monotonic() >= deadline:
                raise UsageError(f"another command is still paying from {purse.who}: try again") from exc
            time.sleep(0.05)


def _ask_person(purse: Purse, plan: PaymentPlan) -> None:
    """Show a payment and ask. Raises click.Abort for no."""
    from fsdecloud.crypto.wallet import address_of

    emit(f"from  {purse.who}, {address_of(plan.sender)}")
    emit(f"to    {address_of(plan.recipient)}")
    emit(f"pays  {plan.amount}, and the fee {plan.fee}; {plan.left} are left")
    click.confirm("Send it?", abort=True)


def _wait(ledger: client.Client, purse: Purse, identity: bytes, blocks: int, limit: float) -> TxFound:
    """Wait until so many blocks confirm a payment, or the time is over; submit it again if the daemon forgets it."""
    from fsdecloud.types import TxId

    progress = Progress()
    deadline = time.monotonic() + limit
    try:
        while True:
            found = ledger.call("tx", TxQuery(TxId(identity)), TxFound)
            if found.confirmations >= blocks or time.monotonic() >= deadline:
                return found
            if not found.tx:  # a restarted daemon has forgotten what waited
                walletview.submit_again(ledger, purse, walletview.read_holdings(ledger, purse))
            where = "waiting for a block" if found.height is None else f"in block {found.height}"
            progress.show(f"{where}, {found.confirmations} of {blocks} blocks confirm it")
            time.sleep(min(LOOK_EVERY, max(deadline - time.monotonic(), 0.0)))
    finally:
        progress.end()


# ---- reading and writing -------------------------------------------------------------------------------------------
_COLUMNS: Final = (
    "time", "height", "confirmations", "state", "kind", "amount", "fee", "other", "index", "address", "transaction",
    "failure",
)  # fmt: skip
_KEY_COLUMNS: Final = ("index", "address", "key", "seed")


def _read_history(ledger: client.Client, purse: Purse, count: int | None) -> walletview.History:
    failed: dict[bytes, str] = {}
    if walletview.own_payments(purse):
        failed = walletview.submit_again(ledger, purse, walletview.read_holdings(ledger, purse))
    return walletview.read_history(ledger, purse, failed, count)


def _key_rows(purse: Purse, count: int) -> list[dict[str, object]]:
    from fsdecloud.crypto.sign import public_key
    from fsdecloud.crypto.wallet import address_of

    assert purse.seed is not None
    rows: list[dict[str, object]] = []
    for index in range(count):
        seed = purse.seed(index)
        key = public_key(seed)
        rows.append({"index": index, "address": address_of(key), "key": key.hex(), "seed": seed.hex()})
    return rows


def _as_text(rows: Iterable[dict[str, object]], columns: tuple[str, ...], *, as_json: bool) -> str:
    """Return rows as JSON lines, or as CSV as RFC 4180 has it, with a header."""
    if as_json:
        import json

        return "".join(json.dumps(row) + "\n" for row in rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_new(path: str, text: str) -> None:
    """Write a new file of mode 0600. Raises UsageError when it exists."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as exc:
        raise UsageError(f"{path} exists already: name a new file") from exc
    with open(fd, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)


def _parse_amount(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or not 1 <= int(text) <= AMOUNT_MAX:
        raise UsageError(f"{text!r} is no amount: a whole number of the smallest unit from 1 to {AMOUNT_MAX}, or all")
    return int(text)


def _parse_id(text: str) -> bytes:
    try:
        identity = bytes.fromhex(text)
    except ValueError:
        identity = b""
    if len(identity) != 32:
        raise UsageError(
            f"{text[:100]!r} is no transaction id: 64 hexadecimal digits, as decloud wallet history --json shows"
        )
    return identity
