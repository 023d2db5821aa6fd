"""The work protocol's messages: what decodes, what is refused, and what a proof is good for.

`python tests/unit/wire/test_work.py` writes tests/vectors/work.json anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.errors import RemoteProtocolError
from fsdecloud.ledger.blocks import Header, header_prefix
from fsdecloud.wire import work

TARGET = ((1 << 256) // 100_000).to_bytes(32)
HEADER = Header(1, bytes(32), 7, 1_700_000_000, TARGET, b"i" * 32, b"b" * 32, b"s" * 32, bytes(8))
SHARE = ((1 << 256) // 8192 - 1).to_bytes(32)
JOB = work.Job(3, header_prefix(HEADER), SHARE, 1 << 48, (1 << 49) - 1)
FROM_MINER = (work.Hello(1, b"p" * 32, "näme"), work.Share(3, b"nonce678"))
FROM_DAEMON = (JOB, work.Rest(), work.Answer(3, b"nonce678", work.Verdict.STALE), work.Refused("no"))

VECTORS = Path(__file__).parents[2] / "vectors" / "work.json"


def make_vectors():
    """Return what another program can be compared with."""
    token, certificate = bytes(range(32)), bytes(range(32, 64))
    return {
        "proof": {
            "token": token.hex(),
            "certificate_hash": certificate.hex(),
            "proof": work.prove_token(token, certificate).hex(),
        },
        "messages": [
            {"from": side, "name": type(message).__name__, "bytes": work.encode_message(message).hex()}
            for side, messages in (("miner", FROM_MINER), ("daemon", FROM_DAEMON))
            for message in messages
        ],
    }


def test_the_vectors_hold():
    assert json.loads(VECTORS.read_text()) == make_vectors()


def test_messages_are_what_was_sent():
    for message in FROM_MINER:
        assert work.decode_from_miner(work.encode_message(message)) == message
    for message in FROM_DAEMON:
        data = work.encode_message(message)
        assert len(data) <= work.MESSAGE_MAX
        assert work.decode_from_daemon(data) == message


@pytest.mark.parametrize("message", FROM_DAEMON, ids=lambda m: type(m).__name__)
def test_each_side_says_its_own_messages_only(message):
    with pytest.raises(RemoteProtocolError):
        work.decode_from_miner(work.encode_message(message))
    with pytest.raises(RemoteProtocolError):
        work.decode_from_daemon(work.encode_message(FROM_MINER[0]))


@given(st.binary(max_size=200))
def test_fault_120_any_bytes_are_a_message_or_an_error(data):
    for decode in (work.decode_from_miner, work.decode_from_daemon):
        try:
            message = decode(data)
        except RemoteProtocolError:
            continue
        assert decode(work.encode_message(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        ["x"],
        [1, 1, bytes(31), "short proof"],
        [1, 1, bytes(32), "n" * (work.NAME_MAX + 1)],
        [4, 1, bytes(9)],
        [4, -1, bytes(8)],
        [4, 1 << 32, bytes(8)],
        [4, 1, bytes(8), "more"],
    ],
)
def test_what_no_miner_says(message):
    with pytest.raises(RemoteProtocolError):
        work.decode_from_miner(codec.encode(message))


def test_a_large_message_is_not_decoded():
    with pytest.raises(RemoteProtocolError, match="at most 1024 bytes"):
        work.decode_from_daemon(bytes(work.MESSAGE_MAX + 1))


def test_a_job_is_for_its_header():
    assert work.read_job(JOB) == HEADER
    whole = msgspec.structs.replace(JOB, share=TARGET, first=5, last=5)
    assert work.read_job(whole) == HEADER


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prefix": b"to be hashed for somebody else"}, "no header"),
        ({"prefix": JOB.prefix + b"x"}, "no header"),
        ({"share": (int.from_bytes(TARGET) - 1).to_bytes(32)}, "harder to find than its block"),
        ({"share": b"\xff" * 32}, "less than 4096 hashes"),
        ({"first": 2, "last": 1}, "without a nonce"),
    ],
)
def test_a_job_that_cannot_be_meant(changes, words):
    with pytest.raises(RemoteProtocolError, match=words):
        work.read_job(msgspec.structs.replace(JOB, **changes))


def test_an_easy_block_has_easy_shares():
    easy = msgspec.structs.replace(HEADER, target=b"\x7f" + b"\xff" * 31)
    job = msgspec.structs.replace(JOB, prefix=header_prefix(easy), share=easy.target)
    assert work.read_job(job) == easy


def test_a_proof_is_for_one_token_and_one_certificate():
    proof = work.prove_token(b"t" * 32, b"c" * 32)
    assert len(proof) == 32
    assert proof != work.prove_token(b"T" * 32, b"c" * 32)
    assert proof != work.prove_token(b"t" * 32, b"C" * 32)


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(make_vectors(), indent=1) + "\n")
