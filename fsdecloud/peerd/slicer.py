"""The worker process that hashes challenged shards: `python -m fsdecloud.peerd.slicer`, started by `peerd.proving`.

Hashing a shard so that every chaining value is known takes 30 ms for each MiB and holds the interpreter lock: in the peer's own
process its clients would wait. The worker reads jobs from its standard input, writes results to its standard output, and
ends when its input does, so it never outlives whoever started it, however that ends.

    job     u32 length of what follows | SliceJob
    result  u32 length of what follows | slice (`possession.slice_of`); nothing when the bytes are not the shard's
"""

from __future__ import annotations

import struct
import sys
from typing import BinaryIO, Final

import msgspec

from fsdecloud import codec
from fsdecloud.crypto.possession import Challenged, slice_of
from fsdecloud.errors import MalformedError
from fsdecloud.types import ShardId

LENGTH: Final = struct.Struct(">I")


class SliceJob(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A challenged shard and its bytes."""

    shard: ShardId
    length: int
    leaves: tuple[int, ...]
    data: bytes


def encode_job(challenged: Challenged, data: bytes) -> bytes:
    """Return the bytes of a job."""
    body = codec.encode(SliceJob(challenged.shard, challenged.length, challenged.leaves, data))
    return LENGTH.pack(len(body)) + body


def work(jobs: BinaryIO, results: BinaryIO) -> None:
    """Do jobs until there are no more."""
    while len(head := jobs.read(LENGTH.size)) == LENGTH.size:
        job = codec.decode(jobs.read(LENGTH.unpack(head)[0]), SliceJob)
        try:
            done = slice_of(Challenged(job.shard, job.length, job.leaves), job.data)
        except MalformedError:
            done = b""
        results.write(LENGTH.pack(len(done)) + done)
        results.flush()


def main() -> None:
    """Run until the input ends."""
    try:
        work(sys.stdin.buffer, sys.stdout.buffer)
    except (BrokenPipeError, MalformedError):  # whoever started it has ended, maybe in the middle of a job
        return


if __name__ == "__main__":
    main()
