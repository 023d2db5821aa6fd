"""Opens chunks ahead of a sequential reader, in one thread of its own that needs no wake-up between chunks.

A hop to a worker thread and back costs the event loop two wake-ups across cores, as much as decrypting 1 MiB. This thread
is only fed: the event loop queues what will be read soon and later finds the plaintext ready. What it finds queued but
not begun it opens itself, what is being opened it waits for, so no chunk is opened twice.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

import trio

from fsdecloud.driver.plaincache import Plain
from fsdecloud.errors import StoreError

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Job:
    raw: bytes
    prepare: Callable[[], None]
    work: Callable[[bytearray], Plain | None]
    out: bytearray
    is_begun: bool = False
    is_cancelled: bool = False
    waiter: trio.Event | None = None


class Opener:
    """The thread and its jobs, by encoded chunk value. All methods are called from the event loop."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._jobs: dict[bytes, _Job] = {}
        self._ready: list[tuple[bytes, Plain | None]] = []
        self._lock = threading.Lock()
        self._token: trio.lowlevel.TrioToken | None = None

    def start(self) -> None:
        """Start the thread; it ends with `stop`, or with the process. Raises StoreError when the system gives none."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            threading.Thread(target=self._run, name="open-ahead", daemon=True).start()
        except RuntimeError as exc:
            raise StoreError(f"cannot start a thread: {exc}; the limit on processes or memory is reached") from exc

    def stop(self) -> None:
        """End the thread."""
        self._queue.put(None)

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, raw: object) -> bool:
        return raw in self._jobs

    def request(
        self, raw: bytes, prepare: Callable[[], None], work: Callable[[bytearray], Plain | None], out: bytearray
    ) -> None:
        """Have `work` called soon, in the thread, with `out`; it returns a chunk's plaintext, or None if it cannot.

        `prepare` is called as soon as the thread sees the job, before it works on those that came earlier.
        """
        if raw not in self._jobs:
            job = _Job(raw, prepare, work, out)
            self._jobs[raw] = job
            self._queue.put(job)

    def collect(self) -> list[tuple[bytes, Plain | None]]:
        """Return what was opened since the last call."""
        if not self._ready:
            return []
        with self._lock:
            ready, self._ready = self._ready, []
        for raw, _plain in ready:
            del self._jobs[raw]
        return ready

    def take_back(self, raw: bytes) -> bytearray | None:
        """Withdraw a job that was not begun; return its buffer, None if it is too late."""
        job = self._jobs[raw]
        with self._lock:
            if job.is_begun:
                return None
            job.is_cancelled = True
        del self._jobs[raw]
        if job.waiter is not None:
            job.waiter.set()
        return job.out

    async def wait(self, raw: bytes) -> None:
        """Wait until a job is done, and `collect` has its result, or until it was taken back."""
        job = self._jobs.get(raw)
        if job is None:
            return
        with self._lock:
            if any(done == raw for done, _plain in self._ready):
                return
            if job.waiter is None:
                job.waiter = trio.Event()
            waiter = job.waiter
        await waiter.wait()

    def _run(self) -> None:
        waiting: deque[_Job] = deque()
        while True:
            while not waiting or not self._queue.empty():
                job = self._queue.get()
                if job is None:
                    return
                try:
                    job.prepare()
                except Exception:  # a hint
                    log.exception("cannot ask the disk for a chunk")
                waiting.append(job)
            job = waiting.popleft()
            with self._lock:
                if job.is_cancelled:
                    continue
                job.is_begun = True
            try:
                plain = job.work(job.out)
            except Exception:  # the reader then opens it itself and gets the error; this thread serves all files
                log.exception("cannot open a chunk ahead of its reader")
                plain = None
            with self._lock:
                self._ready.append((job.raw, plain))
                waiter = job.waiter
            if waiter is not None and self._token is not None:
                try:
                    self._token.run_sync_soon(waiter.set)
                except trio.RunFinishedError:
                    return
