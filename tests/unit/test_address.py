"""Addresses are written in one way, and nothing else is one."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.errors import UsageError
from fsdecloud.net.address import Address, format_endpoint, format_url, parse_endpoint, parse_url

ID = bytes(range(32))
keys = st.none() | st.binary(min_size=32, max_size=32)
hosts = st.sampled_from(["127.0.0.1", "::1", "fe80::1", "peer.example", "a-b.c_d.e", "localhost", "x."])


@given(st.builds(Address, hosts, st.integers(1, 65535), keys, keys))
def test_what_is_written_is_read(address):
    assert parse_url(format_url(address)) == address
    assert parse_endpoint(format_endpoint(address.host, address.port)) == (address.host, address.port)


@given(st.text(max_size=80) | st.text("ws:/[]0123456789abcf.?=network", max_size=120))
def test_fault_120_any_text_is_an_address_or_a_usage_error(text):
    for read in (parse_url, parse_endpoint):
        with contextlib.suppress(UsageError):
            read(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ws://h:1",
        "https://h:1/",
        "wss://h",
        "wss://h:0",
        "wss://h:65536",
        "wss://h:1/abcd",
        "wss://u@h:1/",
        "wss://h:1/#x",
        "wss://h:1/" + "0" * 63,
        "wss://h:1/?network=12",
        "wss://h:1/\n",
        "wss://h:\u0661/",
        "wss://[::g]:1",
        "wss://256.0.0.1:1",
        "wss://-a:1",
        "wss://" + "a" * 64 + ":1",
        "wss://h:1/" + "0" * 600,
        "WSS://h:1",
    ],
)
def test_what_is_not_an_address(text):
    with pytest.raises(UsageError):
        parse_url(text)


def test_the_short_forms():
    assert parse_url("wss://h:7") == parse_url("wss://h:7/") == Address("h", 7)
    assert parse_url(f"wss://h:7/{ID.hex().upper()}") == Address("h", 7, ID)
    assert parse_endpoint("[::]:0") == ("::", 0)
