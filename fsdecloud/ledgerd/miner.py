"""The worker process that searches for proofs of work: `python -m fsdecloud.ledgerd.miner DUTY NICE`, started by
`ledgerd.crew`.

Proof of work must not share an interpreter lock with anything. The worker reads jobs from its standard input and writes
results to its standard output; it sleeps without a job, drops a job when the next arrives, and ends when its input
does, so it never outlives whoever started it, however that ends.

    job     u16 length of what follows | u32 job number | u64 first nonce | u64 last nonce | 32 bytes target |
            32 bytes share | header bytes without nonce
            (a job without header bytes means: rest)
    result  u32 job number | u64 tries | u32 microseconds | u8 found | 8 bytes nonce
            (tries and time are those since the result before)

A nonce whose hash is at most `share` is reported and the search goes on; one at most `target` solves the block, and the
worker rests until the next job. It rests as well when the range is used up.
"""

from __future__ import annotations

import os
import select
import struct
import sys
import time
from dataclasses import dataclass
from typing import Final

from fsdecloud.ledger.work import hash_header, search

RESULT: Final = struct.Struct(">IQI?8s")
NICE: Final = 10
"""Whoever uses the machine comes first."""

CREDIT: Final = 1.0
"""Seconds of rest that a worker may make up for later. With less, a busy machine would push its share below the limit; with
more, it would run at full speed for long after a pause."""

_JOB: Final = struct.Struct(">IQQ32s32s")
_LENGTH: Final = struct.Struct(">H")
_BATCH: Final = 4096
"""Tries between two looks at the input: about five milliseconds."""

_REST_MIN: Final = 0.05
"""Seconds. Shorter rests are saved up: each costs two switches of the processor."""

_REPORT: Final = 1.0
"""Seconds after which a worker says how far it is, found or not."""


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """What to search: nonces from `first` to `last` (64 bits, both included) for the header bytes `prefix`."""

    number: int
    first: int
    last: int
    target: bytes
    """32 bytes, big-endian. The search ends with a hash that is at most this."""
    share: bytes
    """Likewise, at least `target`. A hash at most this is reported."""
    prefix: bytes


class Duty:
    """Keeps a process to its share of one core. Pure: the caller passes times in seconds, counted from anywhere."""

    def __init__(self, share: float, used: float, now: float) -> None:
        """`share` is above 0 and at most 1; `used` is the processor time that the process has used until `now`."""
        if not 0 < share <= 1:
            raise ValueError(f"a share of one core is above 0 and at most 1, not {share}")
        self._share = share
        self._used = used
        self._since = now

    def rest(self, used: float, now: float) -> float:
        """Return for how many seconds to rest now; 0.0 for not at all."""
        if self._share == 1:
            return 0.0
        earned = (used - self._used) / self._share
        owed = earned - (now - self._since)
        if owed < -CREDIT:
            self._since = now - earned - CREDIT
        return max(0.0, owed)


def encode_job(job: WorkerJob | None) -> bytes:
    """Return the bytes of a job; None: rest."""
    if job is None:
        body = _JOB.pack(0, 0, 0, bytes(32), bytes(32))
    else:
        body = _JOB.pack(job.number, job.first, job.last, job.target, job.share) + job.prefix
    return _LENGTH.pack(len(body)) + body


class _Search:
    """The job at hand, and what of it was not reported yet."""

    def __init__(self, job: WorkerJob) -> None:
        self.job = job
        self._next = job.first
        self._tries = 0
        self._since = time.monotonic()

    def step(self) -> bool:
        """Try a batch of nonces and report; return whether to go on."""
        job = self.job
        nonce, tried = search(job.prefix, job.share, self._next, lambda: True, min(_BATCH, job.last - self._next + 1))
        self._next += tried
        self._tries += tried
        if nonce is not None:
            self.report(nonce)
            if hash_header(job.prefix, nonce) <= job.target:
                return False
        if self._next > job.last:
            self.report()
            return False
        if time.monotonic() - self._since >= _REPORT:
            self.report()
        return True

    def report(self, nonce: bytes | None = None) -> None:
        """Write a result, unless there is nothing new to say."""
        if nonce is None and not self._tries:
            return
        now = time.monotonic()
        microseconds = min(0xFFFFFFFF, round(1e6 * (now - self._since)))
        os.write(1, RESULT.pack(self.job.number, self._tries, microseconds, nonce is not None, nonce or bytes(8)))
        self._tries, self._since = 0, now


def main(argv: list[str] | None = None) -> None:
    """Run until the input ends. Arguments: percent of one core, nice level."""
    percent, nice = sys.argv[1:] if argv is None else argv
    os.nice(int(nice))
    try:
        _work(int(percent) / 100)
    except BrokenPipeError:  # nobody wants results any more
        return


def _work(share: float) -> None:
    duty = Duty(share, time.process_time(), time.monotonic())
    pending = bytearray()
    current: _Search | None = None
    while True:
        rest = 0.0 if current is None else duty.rest(time.process_time(), time.monotonic())
        if _has_input(None if current is None else rest if rest >= _REST_MIN else 0.0):
            data = os.read(0, 65536)
            if not data:
                return
            pending += data
            jobs = _take_jobs(pending)
            if jobs:
                if current is not None:
                    current.report()
                current = None if jobs[-1] is None else _Search(jobs[-1])
        elif current is not None and not current.step():
            current = None


def _take_jobs(pending: bytearray) -> list[WorkerJob | None]:
    """Take all complete jobs out of `pending`."""
    jobs: list[WorkerJob | None] = []
    while len(pending) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(pending)
        if len(pending) < _LENGTH.size + length:
            break
        body = bytes(pending[_LENGTH.size : _LENGTH.size + length])
        del pending[: _LENGTH.size + length]
        number, first, last, target, share = _JOB.unpack_from(body)
        prefix = body[_JOB.size :]
        jobs.append(WorkerJob(number, first, last, target, share, prefix) if prefix else None)
    return jobs


def _has_input(timeout: float | None) -> bool:
    return bool(select.select([0], [], [], timeout)[0])


if __name__ == "__main__":
    main()
