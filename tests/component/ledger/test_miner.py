"""The mining worker: finds, goes on, changes over, rests, keeps to its share of a core, and ends with its input."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from fsdecloud.ledgerd.miner import CREDIT, RESULT, Duty, WorkerJob, encode_job

EASY = ((1 << 256) // 256 - 1).to_bytes(32)
NEVER = bytes(32)
CONTEXT = "fsdecloud 2026 v1 block"
LAST = (1 << 64) - 1


@contextmanager
def worker(duty=100, nice=10):
    with subprocess.Popen(
        [sys.executable, "-m", "fsdecloud.ledgerd.miner", str(duty), str(nice)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            assert process.wait(20) == 0


def hash_of(nonce, prefix=b"prefix"):
    return blake3(prefix + nonce, derive_key_context=CONTEXT).digest()


def hopeless(number):
    return WorkerJob(number, 0, LAST, NEVER, NEVER, b"hopeless")


def easy(number, first=0, last=LAST, target=EASY, share=EASY):
    return WorkerJob(number, first, last, target, share, b"prefix")


def read_result(process):
    number, tries, _, is_found, nonce = RESULT.unpack(process.stdout.read(RESULT.size))
    return number, tries, is_found, nonce


def find(process, number):
    """Read results up to the next nonce for this job; return the tries for it."""
    total = 0
    while True:
        found, tries, is_found, nonce = read_result(process)
        assert found <= number
        if found == number:
            total += tries
            if is_found:
                return total, nonce


def send(process, *jobs):
    process.stdin.write(b"".join(map(encode_job, jobs)))
    process.stdin.flush()


def test_finds_nonces():
    with worker() as process:
        for number in range(1, 4):
            send(process, easy(number, number << 40))
            tries, nonce = find(process, number)
            assert hash_of(nonce) <= EASY
            assert int.from_bytes(nonce) - (number << 40) + 1 == tries


def test_the_latest_job_counts():
    with worker() as process:
        send(process, hopeless(1), hopeless(2))
        send(process, easy(3))
        find(process, 3)


def test_rests_and_ends_in_the_middle_of_a_search():
    with worker() as process:
        send(process, hopeless(1))
        send(process, None)
        send(process, easy(4))
        find(process, 4)
        send(process, hopeless(5))


def test_shares_are_reported_until_the_block_is_solved():
    """Every hash at most the share target of the range is reported once, in order, and nothing after the block."""
    target = ((1 << 256) // 20_000 - 1).to_bytes(32)
    expected = []
    for number in range(1 << 20):
        nonce = number.to_bytes(8)
        if hash_of(nonce) <= EASY:
            expected.append(nonce)
            if hash_of(nonce) <= target:
                break
    with worker() as process:
        send(process, easy(1, target=target))
        assert [find(process, 1)[1] for _ in expected] == expected
        send(process, easy(2))
        find(process, 2)


def test_nothing_outside_the_range_is_tried():
    with worker() as process:
        for last in (0, 5000, 9999):
            send(process, WorkerJob(1, 0, last, NEVER, NEVER, b"prefix"))
            total = 0
            while total <= last:
                number, tries, is_found, _ = read_result(process)
                assert (number, is_found) == (1, False)
                total += tries
            assert total == last + 1
        send(process, easy(2, LAST - 10_000, LAST))
        assert int.from_bytes(find(process, 2)[1]) >= LAST - 10_000


def test_yields_to_others():
    with worker(nice=7) as process:
        send(process, easy(1))
        find(process, 1)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)


def test_a_worker_keeps_to_its_duty():
    """However busy the machine is: not more than its share of the time that has passed, and what it may make up for."""

    def used(process):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with worker(duty=25) as process:
        send(process, easy(1))
        find(process, 1)
        before, begun = used(process), time.monotonic()
        send(process, easy(2, target=NEVER, share=((1 << 256) // 3000).to_bytes(32)))
        tries = 0
        while tries < 2_000_000:  # about a second at full speed
            tries += find(process, 2)[0]
        assert used(process) - before <= 0.25 * (time.monotonic() - begun + CREDIT) + 0.03


# ---- the share of a core, under a clock of its own -------------------------------------------------------------------
class Machine:
    """A process that works in steps of 5 ms and rests when it is told to; while others want the core it gets none."""

    def __init__(self, share):
        self.now = self.used = 0.0
        self.duty = Duty(share, 0.0, 0.0)

    def run(self, seconds, busy=0.0):
        """Run for so long; after each step others have the core for `busy` seconds. Returns the share that was used."""
        begun, before = self.now, self.used
        while self.now < begun + seconds:
            rest = self.duty.rest(self.used, self.now)
            if rest >= 0.05:
                self.now += rest
                continue
            self.used += 0.005
            self.now += 0.005 + busy
        return (self.used - before) / (self.now - begun)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0])
def test_duty_keeps_to_the_share(share):
    machine = Machine(share)
    assert machine.run(60) == pytest.approx(share, abs=0.005)
    assert machine.run(60, busy=0.002 if share < 0.7 else 0) == pytest.approx(share, abs=0.005)


def test_duty_makes_up_for_little():
    """What a busy machine or a pause took away is not taken from it in one piece afterwards."""
    machine = Machine(0.25)
    assert machine.run(60, busy=0.045) == pytest.approx(0.1, abs=0.01)
    machine.now += 1000.0
    before = machine.used
    machine.run(10)
    assert machine.used - before <= 0.25 * (10 + CREDIT) + 0.02


@pytest.mark.parametrize("share", [0, -1, 1.1, float("nan")])
def test_no_such_duty(share):
    with pytest.raises(ValueError, match="share of one core"):
        Duty(share, 0.0, 0.0)
