"""How a command ends: errors as one line, and the exit codes of the man page.

    0    done
    1    a wrong argument, or no permission
    2    the system refuses: disk, network, a daemon
    3    not everything is stored yet (`status`, `sync`)
    4    degraded: a peer is down or lies, the volume is read-only against its wish (`status`)
    8    interrupted (`mount`); 130 everywhere else
    32   the mount or unmount failed

Errors of ours end here; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from fsdecloud.cli.output import clean, error_line
from fsdecloud.errors import FsdecloudError, FsError, UsageError

OK: Final = 0
USAGE: Final = 1
SYSTEM: Final = 2
PENDING: Final = 3
DEGRADED: Final = 4
INTERRUPTED_MOUNT: Final = 8
MOUNT_FAILED: Final = 32
INTERRUPTED: Final = 130

FALLBACK_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(command: click.Command, arguments: Sequence[str] | None, name: str, *, interrupted: int = INTERRUPTED) -> int:
    """Run a click command and return the exit code; `interrupted` is the one for Ctrl-C."""
    os.environ.setdefault("PATH", FALLBACK_PATH)  # systemd starts mount helpers without one
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        result = command.main(
            args=None if arguments is None else list(arguments), prog_name=name, standalone_mode=False
        )
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        error_line(name, "interrupted")
        return _ending(interrupted)
    except BrokenPipeError:
        # Whoever read our output has seen enough. Keep the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return OK
    except click.ClickException as exc:
        error_line(name, exc.format_message())
        return _ending(USAGE)
    except UsageError as exc:
        error_line(name, str(exc))
        return _ending(exc.exit_code)
    except FsError as exc:
        error_line(name, exc.strerror or str(exc))
        return _ending(SYSTEM)
    except FsdecloudError as exc:
        error_line(name, str(exc))
        return _ending(SYSTEM)
    except PermissionError as exc:
        error_line(name, _os_error_text(exc))
        return _ending(USAGE)
    except OSError as exc:
        error_line(name, _os_error_text(exc))
        return _ending(SYSTEM)
    return result if isinstance(result, int) else OK


def _os_error_text(exc: OSError) -> str:
    where = f"{clean(os.fsdecode(exc.filename))}: " if isinstance(exc.filename, str | bytes) else ""
    return f"{where}{exc.strerror or exc}"


def _ending(code: int) -> int:
    """Drop output that cannot be written (a full disk), so that the interpreter's last flush does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code
