"""How a daemon says that it serves: one JSON line to whoever started it, and a word to systemd.

The starter passes `--ready-fd N`; the daemon writes one line and closes it: its own facts when it serves, or
{"error": "...", "exit": N} when it cannot. Under systemd, `NOTIFY_SOCKET` gets READY=1 as well. Source: sd_notify(3).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from typing import Final

NOTIFY_VARIABLE: Final = "NOTIFY_SOCKET"


def report_ready(fd: int | None, facts: Mapping[str, object]) -> None:
    """Say that this daemon serves. A starter that is gone does not matter."""
    notify("READY=1")
    _write_line(fd, {"pid": os.getpid(), **facts})


def report_failure(fd: int | None, message: str, exit_code: int) -> None:
    """Say why this daemon cannot serve; `exit_code` is the one it ends with."""
    notify(f"STATUS={message.splitlines()[0] if message else ''}")
    _write_line(fd, {"error": message, "exit": exit_code})


def notify(state: str, environ: Mapping[str, str] | None = None) -> bool:
    """Send `state` ("READY=1", "STOPPING=1", "STATUS=...") to the service manager; return whether there is one.

    Blocks for no longer than a datagram to a local socket does. A manager that is gone is none.
    """
    address = (os.environ if environ is None else environ).get(NOTIFY_VARIABLE, "")
    if not address or address[0] not in "/@":
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(address)
            channel.sendall(state.encode("utf-8", "replace"))
    except OSError:
        return False
    return True


def _write_line(fd: int | None, facts: Mapping[str, object]) -> None:
    if fd is None:
        return
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(facts).encode() + b"\n")
    with contextlib.suppress(OSError):
        os.close(fd)
