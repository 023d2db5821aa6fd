"""The worker process that searches for proofs of work: `python -m fsdecloud.ledgerd.miner`, started by `ledgerd.mining`.

Proof of work must not share an interpreter lock with anything. The worker reads jobs from its standard input and writes
results to its standard output; it sleeps without a job, drops a job when the next arrives, and ends when its input
does, so it never outlives the daemon, however that ends.

    job     u16 length of what follows | u32 job number | u64 first nonce | 32 bytes target | header bytes without nonce
            (a job without header bytes means: rest)
    result  u32 job number | u64 tries | u8 found | 8 bytes nonce
"""

from __future__ import annotations

import os
import select
import struct
from typing import Final

from fsdecloud.ledger.work import search

JOB: Final = struct.Struct(">IQ32s")
RESULT: Final = struct.Struct(">IQ?8s")
_LENGTH: Final = struct.Struct(">H")
_BATCH: Final = 4096
"""Tries between two looks at the input: about five milliseconds."""

_NICE: Final = 10
"""Whoever uses the machine comes first."""


def encode_job(number: int, start: int, target: bytes, prefix: bytes) -> bytes:
    """Return the bytes of one job."""
    body = JOB.pack(number, start, target) + prefix
    return _LENGTH.pack(len(body)) + body


def main() -> None:
    """Run until the input ends."""
    os.nice(_NICE)
    pending = bytearray()
    job: tuple[int, int, bytes, bytes] | None = None
    while True:
        if job is None or _has_input():
            data = os.read(0, 65536)
            if not data:
                return
            pending += data
            job = _last_job(pending) or job
            continue
        number, start, target, prefix = job
        if not prefix:
            job = None
            continue
        nonce, tried = search(prefix, target, start, _has_input, _BATCH)
        os.write(1, RESULT.pack(number, tried, nonce is not None, nonce or bytes(8)))
        job = None if nonce is not None else (number, start + tried, target, prefix)


def _last_job(pending: bytearray) -> tuple[int, int, bytes, bytes] | None:
    """Take all complete jobs out of `pending` and return the last."""
    job = None
    while len(pending) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(pending)
        if len(pending) < _LENGTH.size + length:
            break
        body = bytes(pending[_LENGTH.size : _LENGTH.size + length])
        del pending[: _LENGTH.size + length]
        job = (*JOB.unpack_from(body), body[JOB.size :])
    return job


def _has_input() -> bool:
    return bool(select.select([0], [], [], 0)[0])


if __name__ == "__main__":
    main()
