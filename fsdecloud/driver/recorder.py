"""Operation records of this mount, from the call to the batch that an anchor commits to.

A record waits in memory until the next group commit journals it; RECORDS_PER_ENTRY of them, or a commit, close a batch
entry. Called only from the event loop. Reading the program's name costs a look into /proc, so it is remembered for a
moment for each pid.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from fsdecloud import codec, limits
from fsdecloud.fs.records import Operation, Record

_PROGRAM_TTL: Final = 2.0
"""Seconds a pid's program name is believed: exec changes it, pids are reused."""

_PROGRAMS_KEPT: Final = 512

READ_ONLY_OPERATIONS: Final = frozenset((Operation.READ, Operation.MOUNT, Operation.UNMOUNT))
"""These alone cause an anchor only every ten minutes."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: from the FUSE request."""

    uid: int
    gid: int
    pid: int
    umask: int


class Recorder:
    """Collects records."""

    def __init__(self) -> None:
        self.unjournaled: list[bytes] = []
        """Encoded records that the journal does not have yet."""
        self.pending: list[bytes] = []
        """Encoded records since the last closed batch entry, journaled or not."""
        self.pending_changes = 0
        """How many of `pending` are more than reads."""
        self.closing: list[list[bytes]] = []
        """Those before `pending`, as a commit under way makes batch entries of them."""
        self.statements: list[bytes] = []
        """Encoded records of statements, which the next commit puts into a batch each, after those of `pending`. The journal
        does not have them: who made a statement waits for its anchor, and a crash ends that."""
        self.dropped = 0
        """Reads that were not recorded because nothing could be made durable for too long."""
        self._is_stopped = False
        self._programs: dict[int, tuple[float, bytes]] = {}

    def program(self, pid: int) -> bytes:
        """Return the name of the program with this pid, b"" if it is gone (or the kernel itself)."""
        now = time.monotonic()
        known = self._programs.get(pid)
        if known is not None and known[0] > now:
            return known[1]
        try:
            with open(f"/proc/{pid}/comm", "rb") as file:
                name = file.read(64).rstrip(b"\n")
        except OSError:
            name = b""
        if len(self._programs) >= _PROGRAMS_KEPT:
            self._programs.clear()
        self._programs[pid] = (now + _PROGRAM_TTL, name)
        return name

    def record(
        self,
        operation: Operation,
        caller: Caller | None,
        inode: int,
        path: bytes,
        *,
        path2: bytes = b"",
        amount: int = 0,
        result: int = 0,
        program: bytes | None = None,
    ) -> None:
        """Record one operation, now.

        While the journal cannot be written, changes are refused at some point (`is_full`) and reads go unrecorded.
        """
        if self._is_stopped:
            return
        if operation in READ_ONLY_OPERATIONS and self.is_full:
            self.dropped += 1
            return
        if program is None:
            program = self.program(caller.pid) if caller is not None else b""
        uid = caller.uid if caller is not None else 0
        data = codec.encode(Record(time.time_ns(), operation, inode, path, path2, uid, program, result, amount))
        self.unjournaled.append(data)
        self.pending.append(data)
        if operation not in READ_ONLY_OPERATIONS:
            self.pending_changes += 1

    def state(self, row: bytes) -> None:
        """Take the record of a statement (`fs.statement`); the caller has it committed."""
        self.statements.append(row)
        self.pending_changes += 1

    @property
    def is_full(self) -> bool:
        """Whether as many records as memory may hold wait for the journal."""
        return len(self.unjournaled) >= limits.RECORDS_MAX

    def stop(self) -> None:
        """Record nothing more: nothing can be made durable any more."""
        self._is_stopped = True

    def take_unjournaled(self) -> list[bytes]:
        """Return the records that the journal must take now."""
        rows, self.unjournaled = self.unjournaled, []
        return rows

    def replay(self, rows: list[bytes]) -> None:
        """Take back records from the journal."""
        self.pending.extend(rows)
        for row in rows:
            if codec.decode(row, Record).operation not in READ_ONLY_OPERATIONS:
                self.pending_changes += 1
