"""A grant deletes what it names, where it says, when it says, and nothing else."""

import msgspec
import pytest

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import MalformedError, SealError
from fsdecloud.wire import grants

SEED, PEER, NETWORK, DEAL = b"s" * 32, b"p" * 32, b"n" * 32, b"d" * 32
OWNER = sign.public_key(SEED)
PLACE = {"network": NETWORK, "peer": PEER, "deal": DEAL}
SHARDS = (b"1" * 32, b"2" * 32)


def make(**changes):
    values = PLACE | {"not_before": 1000, "expires": 2000, "nonce": b"o" * 32, "shards": SHARDS}
    return grants.sign_grant(changes.pop("seed", SEED), **(values | changes))


def check(data, **changes):
    return grants.verify_grant(data, **(PLACE | {"owner": OWNER, "now": 1500} | changes))


def test_a_grant_says_what_may_go():
    grant = check(make())
    assert grant.shards == SHARDS
    assert check(make(), now=1000).nonce == b"o" * 32
    assert check(make(), now=1999)
    full = make(shards=tuple(i.to_bytes(32, "big") for i in range(grants.GRANT_SHARDS_MAX)))
    assert len(full) <= grants.GRANT_SIZE_MAX
    assert check(full)


@pytest.mark.parametrize(
    ("made", "checked", "why"),
    [
        ({"network": b"x" * 32}, {}, "another network"),
        ({"peer": b"x" * 32}, {}, "another peer"),
        ({"deal": b"x" * 32}, {}, "another deal"),
        ({"seed": b"x" * 32}, {}, "signature"),
        ({}, {"owner": b""}, "no key"),
        ({}, {"owner": b"short"}, "32 bytes"),
        ({}, {"now": 999}, "not hold yet"),
        ({}, {"now": 2000}, "expired"),
        ({"expires": 1001 + grants.GRANT_LIFE_MAX}, {}, "at most"),
    ],
)
def test_a_grant_of_or_for_somebody_else_or_another_time_is_refused(made, checked, why):
    with pytest.raises(SealError, match=why):
        check(make(**made), **checked)


def test_every_field_of_a_grant_is_signed():
    good = codec.decode(make(), grants.Grant)
    for change in ({"shards": SHARDS[:1]}, {"not_before": 999}, {"expires": 2001}, {"nonce": b"x" * 32}):
        with pytest.raises(SealError):
            check(codec.encode(msgspec.structs.replace(good, **change)))
    with pytest.raises(SealError, match="version"):
        check(codec.encode(msgspec.structs.replace(good, version=2)))


def test_what_is_no_grant_is_refused():
    good = make()
    too_many = codec.encode([1, NETWORK, PEER, DEAL, 1, 2, b"o" * 32, [bytes(32)] * 4097, bytes(64)])
    none = codec.encode([1, NETWORK, PEER, DEAL, 1, 2, b"o" * 32, [], bytes(64)])
    for data in (b"", good[:-1], good + b"\0", b"\xc1" * 100, bytes(grants.GRANT_SIZE_MAX + 1), too_many, none):
        with pytest.raises(MalformedError):
            check(data)
