"""The driver's side of its agent: start it, restart it, call it.

The agent is a child process on the other end of a socket pair. It may die at any time; whatever waits for it then waits
for the next one or raises AgentLost. Secrets travel in the first message, never in argv or the environment.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from fsdecloud.errors import AgentLost, FsdecloudError, RemoteTimeout
from fsdecloud.net.unix import Handler, NoticeHandler, RpcConnection, open_rpc
from fsdecloud.wire.agentapi import AgentHello, AgentReady, Anchored, GarbageFinal, LedgerTip, Repaired, Stored

log = logging.getLogger(__name__)

R = TypeVar("R")

START_TIMEOUT: Final = 30.0
"""Seconds until a starting agent must answer: Python and its libraries load in one, a busy machine needs more."""

RESTART_MAX: Final = 60.0
"""Longest pause between restarts of an agent that dies at once: starting Python takes a second of processor time."""

SOUND_AFTER: Final = 20.0
"""Seconds after which an agent that ends did not die at once."""

_TROUBLE: Final = 5
"""Agents in a row that died at once: from then on `trouble` says so."""

STOP_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True)
class AgentEvents:
    """What the driver wants to be told; called in the event loop, must not block."""

    ready: Callable[[], None]
    stored: Callable[[Stored], None]
    anchored: Callable[[Anchored], None]
    tip: Callable[[LedgerTip], None]
    garbage: Callable[[GarbageFinal], None] = lambda _notice: None
    repaired: Callable[[Repaired], None] = lambda _notice: None


class AgentLink:
    """The running agent, whichever process that is at the moment."""

    def __init__(
        self, make_hello: Callable[[], AgentHello], events: AgentEvents, methods: Mapping[str, Handler]
    ) -> None:
        """`methods` are what the agent may ask the driver."""
        self._make_hello = make_hello
        self._events = events
        self._methods = methods
        self._connection: RpcConnection | None = None
        self._connected = trio.Event()
        self._scope: trio.CancelScope | None = None
        self.pid = 0
        self.restarts = 0
        self.trouble = ""
        """What `status` says while no agent stays alive."""

    @property
    def connection(self) -> RpcConnection | None:
        """The live connection, if there is one."""
        return self._connection

    async def run(self) -> None:
        """Keep an agent running until cancelled."""
        pause, quick = 0.1, 0
        while True:
            started, reason = trio.current_time(), "it ended by itself"
            try:
                await self._run_once()
            except (FsdecloudError, OSError) as exc:  # OSError: no descriptor or process to be had just now
                reason = str(exc)
            self.restarts += 1
            if trio.current_time() - started > SOUND_AFTER:
                pause, quick = 0.1, 0
            pause, quick = min(pause * 2, RESTART_MAX), quick + 1
            if quick >= _TROUBLE:
                self.trouble = f"the agent ended {quick} times within seconds ({reason}); next start in {pause:.0f} s"
            log.warning("the agent ended (%s); starting it again in %.1f s", reason, pause)
            await trio.sleep(pause)

    def restart(self) -> None:
        """End the running agent; the next one is told where the volume stands now."""
        self._disconnect()
        if self._scope is not None:
            self._scope.cancel()

    async def call(self, method: str, params: object, result: type[R], *, timeout: float | None = None) -> R:
        """Call the agent, waiting for one to be there; if it dies over the call, ask the next one.

        Every method may be asked twice (`wire.agentapi`). Raises the agent's error, or RemoteTimeout after `timeout`.
        """
        with trio.CancelScope() if timeout is None else trio.move_on_after(timeout):
            while True:
                if self._connection is not None and self._connection.is_closed:
                    self._disconnect()
                while self._connection is None:
                    await self._connected.wait()
                try:
                    return await self._connection.call(method, params, result)
                except AgentLost:
                    self._disconnect()
        raise RemoteTimeout(f"{method}: the agent did not answer within {timeout:g} s")

    def _disconnect(self) -> None:
        """Have callers wait for the next agent."""
        if self._connection is not None:
            self._connection = None
            self._connected = trio.Event()
            self.pid = 0

    async def _run_once(self) -> None:
        notices: Mapping[str, NoticeHandler] = {
            "stored": (Stored, self._events.stored),
            "anchored": (Anchored, self._events.anchored),
            "ledger_tip": (LedgerTip, self._events.tip),
            "garbage": (GarbageFinal, self._events.garbage),
            "repaired": (Repaired, self._events.repaired),
        }
        async with self._start() as stream, open_rpc(stream, self._methods, notices, lost=AgentLost) as connection:
            try:
                ready = await connection.call("hello", self._make_hello(), AgentReady, timeout=START_TIMEOUT)
                self.pid = ready.pid
                self._connection = connection
                self._connected.set()
                self._events.ready()
                with trio.CancelScope() as self._scope:
                    with trio.move_on_after(SOUND_AFTER):
                        await connection.wait_closed()
                        return
                    self.trouble = ""
                    await connection.wait_closed()
            finally:
                self._disconnect()

    @asynccontextmanager
    async def _start(self) -> AsyncIterator[trio.SocketStream]:
        """Run an agent for the length of the body, with the socket to it."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-m", "fsdecloud.agent", "--fd", str(theirs.fileno())]
            process = await trio.lowlevel.open_process(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True, cwd="/"
            )
            theirs.close()
            try:
                yield trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            finally:
                ours.close()
                await _stop(process)


async def _stop(process: trio.Process) -> None:
    """End the child: it leaves when its socket closes; one that does not is killed."""
    with trio.CancelScope(shield=True):
        with trio.move_on_after(STOP_TIMEOUT):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
