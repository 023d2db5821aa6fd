"""fsdecloud-protocol(7) says what the code does: every message with its number and fields, every limit."""

import re
import typing
from pathlib import Path

import pytest

from fsdecloud import limits
from fsdecloud.crypto import bao, shardset
from fsdecloud.crypto.keys import CONTEXT_PREFIX
from fsdecloud.net import frames, lan, tls, websocket
from fsdecloud.peerd import deleting, exchange
from fsdecloud.wire import announcements, beacon, deals, forwarding, grants, receipts, session
from fsdecloud.wire import peer as wire

PAGE = (Path(__file__).parents[3] / "man" / "fsdecloud-protocol.7").read_text()
TAGGED = (wire.Challenge, wire.Hello, wire.Welcome, *typing.get_args(wire.Request), *typing.get_args(wire.Answer))
SECTIONS = dict(re.findall(r"^\.(?:Sh|Ss) ([^\n]+)\n(.*?)(?=^\.Sh|^\.Ss|\Z)", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("kind", TAGGED, ids=lambda kind: kind.__name__)
def test_every_message_is_described_with_its_fields(kind):
    fields = ", ".join(kind.__struct_fields__)
    assert f".It {kind.__name__} ({kind.__struct_config__.tag}): {fields}\n" in PAGE


def test_no_other_message_is_described():
    assert set(re.findall(r"^\.It (\w+) \(\d+\):", PAGE, re.MULTILINE)) == {kind.__name__ for kind in TAGGED}


def test_terms_receipts_and_grants_are_described_with_their_fields():
    assert f".Ar {' , '.join(wire.HelloTerms.__struct_fields__)} .\n" in PAGE
    assert f".Ar {' , '.join(forwarding.RequestTerms.__struct_fields__)} ,\n" in PAGE
    for kind in (receipts.Receipt, grants.Grant, announcements.Announcement):
        assert f".It {kind.__name__}: {', '.join(kind.__struct_fields__)}\n" in PAGE


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("DESCRIPTION", f"version {wire.VERSION} of the protocol"),
        ("Notation", f"from 0 to {(1 << 53) - 1}"),
        ("TLS", tls._HASH_CONTEXT),
        ("Websocket", f"\n.Ql {wire.SUBPROTOCOL} .\n"),
        ("Websocket", f"a head of more than {frames._HEAD_MAX} bytes"),
        ("Websocket", f"too many connections ({limits.PEER_CONNECTIONS_MAX} at once)"),
        ("Websocket", f"have at most {limits.MESSAGE_MAX} bytes"),
        ("Websocket", f"more than {frames._ODD_MAX} fragments and control frames within {limits.RECEIVE_BUFFER} bytes"),
        ("Websocket", f"; {tls.UNDELIVERED_MAX} bytes without"),
        ("Websocket", f"with code {websocket.CLOSE_UNSUPPORTED}"),
        ("Silence", f"heard nothing for {limits.KEEPALIVE:g} seconds"),
        ("Silence", f"nothing comes for {websocket.PONG_TIMEOUT:g} more"),
        ("Silence", f"silent for {websocket.SILENCE_MAX:g} seconds"),
        ("Silence", f"does not take {tls.WRITE_SIZE} bytes of its answers in {websocket.SEND_MAX:g}"),
        ("HANDSHAKE", f"at most {session.HANDSHAKE_MAX} bytes"),
        ("HANDSHAKE", f"waits {limits.CONNECT_TIMEOUT:g} seconds"),
        ("HANDSHAKE", f"\n.Ql {session.DOMAIN.decode()}\n"),
        ("HANDSHAKE", f"({limits.MESSAGE_MAX} to {1 << 30}; {limits.WINDOW_BYTES} today)"),
        ("HANDSHAKE", f"at most {wire.TEXT_MAX} characters"),
        ("BEACONS", f"datagrams of {beacon.SIZE} bytes to {lan.GROUP}, port {lan.PORT}"),
        ("BEACONS", f"\n.Ql {beacon.MAGIC.decode()} ,\n"),
        ("BEACONS", f"\n.Ql {beacon._CONTEXT} ) ,\n"),
        ("BEACONS", f"every {lan.ANNOUNCE:g} seconds, and for a question, at most one in {lan.ANSWER_PAUSE:g} seconds"),
        ("REQUESTS", f"At most {wire.REQUESTS_MAX} requests"),
        ("REQUESTS", f"1 to {wire.SHARDS_MAX} shards"),
        ("REQUESTS", f"at most {wire.PUT_BYTES_MAX} bytes of shards"),
        ("REQUESTS", f"(each at most {limits.MESSAGE_MAX})"),
        ("REQUESTS", f"at most {wire.IDS_MAX} shards"),
        ("REQUESTS", f"these 1 to {wire.IDS_MAX} shards"),
        ("REQUESTS", f"(at most {grants.GRANT_SIZE_MAX} bytes"),
        ("REQUESTS", f"(0 to {wire.HOPS_MAX}) through"),
        ("REQUESTS", f"(1 to {wire.PATIENCE_MAX})"),
        ("REQUESTS", f"has at most {wire.BODY_MAX} bytes"),
        ("REQUESTS", f"(0 to {wire.ANNOUNCEMENTS_MAX}) other peers"),
        ("REQUESTS", f"(at most {wire.ANNOUNCEMENT_SIZE_MAX} bytes)"),
        ("FORWARDING", f"\n.Ql {forwarding.REQUEST_DOMAIN.decode()}\n"),
        ("FORWARDING", f"\n.Ql {forwarding.ANSWER_DOMAIN.decode()} ,\n"),
        ("FORWARDING", f"for more than {forwarding.LIFE_MAX} seconds"),
        ("ANNOUNCEMENTS", f"\n.Ql {announcements.DOMAIN.decode()} .\n"),
        ("ANNOUNCEMENTS", f"(at most {announcements.URL_MAX} characters)"),
        ("ANNOUNCEMENTS", f"more than {announcements.FUTURE_MAX} seconds ahead"),
        ("ANNOUNCEMENTS", f"{exchange.BURST:g} questions at once and one every {1 / exchange.RATE:g} seconds"),
        ("ANSWERS", f"at most {wire.TEXT_MAX} characters"),
        ("ANSWERS", f"(at most {wire.RECEIPT_MAX} bytes, see below) for those"),
        ("RECEIPTS AND GRANTS", f"more than {receipts.CLOCK_SKEW} seconds in the future"),
        ("RECEIPTS AND GRANTS", f"is {receipts.VERSION};"),
        ("RECEIPTS AND GRANTS", f"1 to {grants.GRANT_SHARDS_MAX} shard ids"),
        ("RECEIPTS AND GRANTS", f"at most {grants.GRANT_LIFE_MAX} apart"),
        ("RECEIPTS AND GRANTS", f"\n.Ql {receipts.DOMAIN.decode()} :\n"),
        ("RECEIPTS AND GRANTS", f"\n.Ql {grants.DOMAIN.decode()} :\n"),
        ("RECEIPTS AND GRANTS", f"{deleting.RATE:g} grants a second of one deal, and at {deleting.BURST:g} at once"),
        ("REQUESTS", f"by 1 to {deals.SAMPLES_MAX}\n"),
        ("REQUESTS", f"most {deals.CHANGES_MAX} of each."),
        ("ANSWERS", f"(at most {deals.PROOF_MAX} bytes, see"),
        ("SHARD SETS AND PROOFS", f"(1 to {shardset.LENGTH_MAX})"),
        ("SHARD SETS AND PROOFS", f"leaves of {bao.LEAF_SIZE} bytes"),
        ("SHARD SETS AND PROOFS", f"more than {shardset.HEIGHT_MAX} nodes"),
        ("SHARD SETS AND PROOFS", f"\n.Ql {CONTEXT_PREFIX}shard set shard .\n"),
        ("SHARD SETS AND PROOFS", f"\n.Ql {CONTEXT_PREFIX}shard set node :\n"),
        ("SHARD SETS AND PROOFS", f"\n.Ql {CONTEXT_PREFIX}shard set root ;\n"),
        ("Challenges", f"\n.Ql {CONTEXT_PREFIX}possession challenge ,\n"),
        ("BROKEN RULES", f"code {websocket.CLOSE_PROTOCOL}"),
    ],
)
def test_the_numbers_are_those_of_the_code(section, words):
    assert words in SECTIONS[section]
