"""What people and programs are told about money, and which words a payment is made of."""

from __future__ import annotations

import json

import pytest

from fsdecloud.cli import wallet, walletview
from fsdecloud.cli.purse import Purse, open_purse
from fsdecloud.cli.walletview import Event, History, Holdings
from fsdecloud.config import find_paths
from fsdecloud.crypto import sign
from fsdecloud.crypto.wallet import address_of
from fsdecloud.errors import UsageError
from fsdecloud.ledger.accounting import Line, Why
from fsdecloud.ledger.wallet import Funds
from fsdecloud.types import TxId

ME, YOU = (sign.public_key(bytes([n]) * 32) for n in (1, 2))
PURSE = Purse("volume v", bytes(32), lambda _first, _count: [], None, has_many=True, sent=list)
SENT = Line(ME, Why.SENT, -30, 2, YOU, TxId(bytes(32)), 7, 1_700_000_000)
WAITING = Line(ME, Why.RECEIVED, 5, 0, YOU, TxId(bytes(32)), None, 0)
REST = Line(ME, Why.OTHER, 9, 0, b"", TxId(b""), 6, 1_600_000_000)


def funds(confirmed: int, outgoing: int = 0, incoming: int = 0) -> Funds:
    return Funds(ME, confirmed, 0, 0, outgoing, incoming, ())


def test_the_balance() -> None:
    alone = Holdings(9, bytes(32), (funds(100),), is_light=False)
    assert walletview.holdings_lines(PURSE, alone) == ["volume v: 100 confirmed (block 9)"]
    both = Holdings(9, bytes(32), (funds(100, 40), funds(0), funds(0, 0, 7)), is_light=True)
    lines = walletview.holdings_lines(PURSE, both)
    assert lines[0] == "volume v: 100 confirmed, pending: 40 going and 7 coming, 60 can be spent now (block 9)"
    assert "is light" in lines[-1]
    shown = walletview.holdings_fields(PURSE, both)
    assert json.loads(json.dumps(shown)) == shown
    assert (shown["available"], len(shown["keys"])) == (60, 3)
    assert not Holdings(9, bytes(32), (funds(0),), is_light=False).has_money


def test_the_history() -> None:
    events = (Event(0, WAITING, 0), Event(0, SENT, 3), Event(0, REST, 4), Event(0, SENT, 0, "too late"))
    lines = walletview.event_lines(History(events, 9, 1, is_light=False))
    assert [line.split()[1] for line in lines] == ["kind", "received", "sent", "other", "sent"]
    assert lines[1].endswith("pending")
    assert lines[2].endswith("block 7, 3 confirmations")
    assert lines[4].endswith("failed: too late")
    assert address_of(YOU) in lines[2]
    assert "decloud ledger rebuild" in walletview.event_lines(History(events, 9, 5, is_light=False))[-1]
    assert "a full one knows all" in walletview.event_lines(History((), 9, 1, is_light=True))[-1]
    shown = [walletview.event_fields(event) for event in events]
    assert json.loads(json.dumps(shown)) == shown
    assert [fields["state"] for fields in shown] == ["pending", "confirmed", "confirmed", "failed"]
    assert (shown[2]["transaction"], shown[2]["other"], shown[0]["time"]) == (None, None, None)


@pytest.mark.parametrize(("text", "amount"), [("1", 1), ("all", None), (str((1 << 62) - 1), (1 << 62) - 1)])
def test_amounts(text: str, amount: int | None) -> None:
    assert wallet._parse_amount(text) == amount


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1e9", "ten", str(1 << 62), str(1 << 63), "9" * 50, "\u0661"])
def test_fault_112_what_is_no_amount(text: str) -> None:
    with pytest.raises(UsageError, match="no amount"):
        wallet._parse_amount(text)


@pytest.mark.parametrize("text", ["", "abc", "00" * 31, "zz" * 32])
def test_what_is_no_transaction_id(text: str) -> None:
    with pytest.raises(UsageError, match="no transaction id"):
        wallet._parse_id(text)


def test_whose_money(tmp_path) -> None:
    paths = find_paths({"FSDECLOUD_HOME": str(tmp_path)})
    for words, reason in (
        ({"name": None}, "this home has no volume: name one, or --peer PEER, or --miner"),
        ({"name": "v", "miner": True}, "one wallet at a time"),
        ({"name": None, "peer": "a", "miner": True}, "one wallet at a time"),
        ({"name": None, "peer": "a"}, "decloud peer init"),
        ({"name": "v"}, "there is no volume v"),
    ):
        with pytest.raises(UsageError, match=reason):
            open_purse(paths, **words)
