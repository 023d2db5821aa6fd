"""How a command ends: errors as one line, and the exit codes of the man page.

    0    done
    1    a wrong argument, or no permission
    2    the system refuses: disk, network, a daemon
    3    not everything is stored yet (`status`, `sync`)
    4    degraded: a peer is down or lies, the volume is read-only against its wish (`status`), files cannot be
         read (`unreadable`)
    8    interrupted (`mount`); 130 everywhere else
    32   the mount or unmount failed

Errors of ours end here; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import resource
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
    result = None
    try:
        # Not click's own main: it turns a closed pipe and Ctrl-C into exit codes of its own.
        with command.make_context(name, sys.argv[1:] if arguments is None else list(arguments)) as context:
            result = command.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        return _ending(exc.exit_code)
    except (KeyboardInterrupt, EOFError, click.Abort):
        error_line(name, "interrupted")
        return _ending(interrupted)
    except BrokenPipeError:
        _drop_output()  # whoever read it has seen enough
        return result if isinstance(result, int) else OK
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
    except (MemoryError, ImportError) as exc:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            raise
        error_line(name, f"{limit >> 20} MiB of address space are too little: ulimit -v unlimited ({exc})")
        return _ending(SYSTEM)
    return result if isinstance(result, int) else OK


def _os_error_text(exc: OSError) -> str:
    where = f"{clean(os.fsdecode(exc.filename))}: " if isinstance(exc.filename, str | bytes) else ""
    return f"{where}{exc.strerror or exc}"


def _ending(code: int) -> int:
    """Write what is left of the output; where it cannot be written, drop it, so that the interpreter does not fail on it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError as exc:
        _drop_output()
        if code == OK:
            error_line("decloud", exc.strerror or str(exc))
            return SYSTEM
    return code


def _drop_output() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
