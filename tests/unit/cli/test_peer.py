"""What `decloud peer status` says of a peer's deals."""

import json

import msgspec

from fsdecloud.cli.peer import status_fields, status_lines
from fsdecloud.wire.peerapi import DealsStatus, PeerdStatus

DEALS = DealsStatus(2, 1, 5 << 30, 700, 300, 250, 4711, "")


def status(**changes):
    kinds = {int: 0, str: "", bytes: b"", bool: False}
    values = {
        field.name: kinds.get(field.type, b"\1" * 32 if field.name == "id" else ())
        for field in msgspec.structs.fields(PeerdStatus)
        if field.required
    }
    return PeerdStatus(**(values | {"name": "a"} | changes))


def test_a_peer_with_a_price_shows_its_deals():
    text = "\n".join(status_lines(status(price=5000, deals=DEALS), 90))
    assert "earnings: 700 by the deals below; those that run have paid out 300; its key has 90 in the ledger" in text
    assert "deals: 2 running, 1 ended, 5.00 GiB under deals, next proof from block 4711 on" in text
    assert "price 5000 for a GiB and 30 days, 250 locked as collateral" in text
    assert "trouble" not in text
    shown = json.loads(json.dumps(status_fields(status(price=5000, deals=DEALS), 90)))
    assert (shown["earnings"], shown["price"], shown["balance"]) == (700, 5000, 90)
    assert shown["deals"] == {
        "running": 2, "ended": 1, "bytes": 5 << 30, "earned": 700, "paid": 300, "collateral": 250,
        "next_proof": 4711, "trouble": None,
    }  # fmt: skip


def test_its_trouble_is_shown_and_no_proof_that_is_not_due():
    deals = msgspec.structs.replace(DEALS, next_proof=0, trouble="no money\x1b[2J for\ncollateral")
    lines = status_lines(status(price=5000, deals=deals), None)
    text = "\n".join(lines)
    assert "next proof" not in text
    assert "the ledger cannot be reached" in text
    assert any(line.startswith("    trouble: no money") and "\x1b" not in line and "\n" not in line for line in lines)
    assert status_fields(status(deals=deals), None)["deals"]["next_proof"] is None


def test_nothing_of_deals_where_there_is_no_price():
    text = "\n".join(status_lines(status(), 90))
    assert "earnings: its key has 90 in the ledger; it makes no deals, the price is zero" in text
    assert "collateral" not in text
    assert (status_fields(status(), 90)["earnings"], status_fields(status(), 90)["deals"]) == (None, None)


def test_what_a_peer_of_an_earlier_release_answers_is_understood():
    """It ends before the deals."""
    fields = list(msgspec.structs.astuple(status()))[:-1]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=PeerdStatus) == status()
