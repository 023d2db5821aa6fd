"""The mining worker: finds, changes over, rests, and ends with its input."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager

from blake3 import blake3

from fsdecloud.ledgerd.miner import RESULT, encode_job

EASY = ((1 << 256) // 256 - 1).to_bytes(32)
CONTEXT = "fsdecloud 2026 v1 block"


@contextmanager
def worker():
    with subprocess.Popen(
        [sys.executable, "-m", "fsdecloud.ledgerd.miner"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            assert process.wait(20) == 0


def results(process, number):
    while True:
        found, tries, is_found, nonce = RESULT.unpack(process.stdout.read(RESULT.size))
        assert found <= number
        if found == number and is_found:
            return tries, nonce


def send(process, data):
    process.stdin.write(data)
    process.stdin.flush()


def test_finds_nonces():
    with worker() as process:
        for number in range(1, 4):
            send(process, encode_job(number, number << 40, EASY, b"prefix"))
            _, nonce = results(process, number)
            assert blake3(b"prefix" + nonce, derive_key_context=CONTEXT).digest() <= EASY
            assert int.from_bytes(nonce) >= number << 40


def test_the_latest_job_counts():
    with worker() as process:
        send(process, encode_job(1, 0, bytes(32), b"hopeless") + encode_job(2, 0, bytes(32), b"hopeless"))
        send(process, encode_job(3, 0, EASY, b"prefix"))
        results(process, 3)


def test_rests_and_ends_in_the_middle_of_a_search():
    with worker() as process:
        send(process, encode_job(1, 0, bytes(32), b"hopeless"))
        send(process, encode_job(0, 0, bytes(32), b""))
        send(process, encode_job(4, 0, EASY, b"prefix"))
        results(process, 4)
        send(process, encode_job(5, 0, bytes(32), b"hopeless"))
