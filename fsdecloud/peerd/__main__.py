"""`python -m fsdecloud.peerd run --name NAME [--listen HOST:PORT] [--ready-fd N]`: run a storage peer in the foreground."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

from fsdecloud.config import find_paths
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.peerd.daemon import run
from fsdecloud.readiness import report_failure

EXIT_FAILURE: Final = 2
"""The system refuses (decloud(1), EXIT STATUS); a wrong argument has its own code."""

NICE: Final = 10
"""Whoever lends storage comes first on that machine."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 after SIGTERM or SIGINT, else the error's, with one line of reason."""
    parser = argparse.ArgumentParser(prog="decloud-peerd", description="A storage peer of fsdecloud.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("run", help="serve until SIGTERM")
    serve.add_argument("--name", required=True, help="which peer of this machine")
    serve.add_argument("--listen", default="", metavar="HOST:PORT", help="instead of what peer.toml says")
    serve.add_argument("--ready-fd", type=int, metavar="N", help="write one JSON line there when serving")
    arguments = parser.parse_args(argv)
    level = os.environ.get("FSDECLOUD_LOG", "info").upper()
    logging.basicConfig(
        level=level if level in logging.getLevelNamesMapping() else "INFO",
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    os.nice(NICE)
    try:
        run(find_paths(), arguments.name, listen=arguments.listen, ready_fd=arguments.ready_fd)
    except FsdecloudError as exc:
        code = exc.exit_code if isinstance(exc, UsageError) else EXIT_FAILURE
        logging.getLogger(__name__).error("%s", exc)
        report_failure(arguments.ready_fd, str(exc), code)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
