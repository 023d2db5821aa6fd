"""`python -m fsdecloud.ledgerd run`: start a ledger daemon."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import trio

from fsdecloud.config import find_paths
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.ledgerd.daemon import Options, run_daemon
from fsdecloud.ledgerd.settings import Wishes
from fsdecloud.limits import MIB
from fsdecloud.readiness import report_failure

EXIT_FAILURE = 2
"""The system refuses (decloud(1), EXIT STATUS); a wrong argument has its own code."""

PRUNE_MIN = 16
"""Mebibytes of bodies that `--prune` keeps at least."""


def main(argv: list[str] | None = None) -> None:
    """Run the daemon that the arguments ask for, then exit: 0 after a signal, else with the error's code."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=os.environ.get("FSDECLOUD_LOG", "info").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        trio.run(run_daemon, find_paths(), options, strict_exception_groups=True)
    except* FsdecloudError as group:
        error = _first(group)
        code = error.exit_code if isinstance(error, UsageError) else EXIT_FAILURE
        report_failure(options.ready_fd, str(error), code)
        sys.stderr.write(f"decloud-ledgerd: {error}\n")
        sys.exit(code)


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _hashes(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 256:
        raise ValueError("work is a number of hashes, at least 0 and below 2^256")
    return number


def _prune(text: str) -> int:
    number = int(text)
    if not PRUNE_MIN <= number < 1 << 32:
        raise ValueError(f"at least {PRUNE_MIN} MiB of bodies are kept")
    return number * MIB


def _parse(argv: list[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="decloud-ledgerd", description="Ledger daemon of fsdecloud.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run in the foreground until SIGTERM", allow_abbrev=False)
    run.add_argument("--mine-workers", metavar="N", type=int, help="mining processes (1)")
    run.add_argument("--mine-duty", metavar="PERCENT", help="how much of one core each of them may use (100%%)")
    run.add_argument("--mine-nice", metavar="N", type=int, help="how much they yield to other programs, 0 to 19 (10)")
    run.add_argument("--work", metavar="[HOST:]PORT", help="give work to miners elsewhere (decloud mine)")
    run.add_argument("--explorer", metavar="[HOST:]PORT", help="show pages about the ledger on this machine")
    run.add_argument("--listen", metavar="HOST:PORT", help="where other daemons connect (default: as last time)")
    run.add_argument("--advertise", metavar="HOST", help="the host name that others should use to reach this machine")
    run.add_argument("--bootstrap", metavar="URL", action="append", default=[], help="another daemon; may be repeated")
    run.add_argument("--network", metavar="FILE", type=Path, help="join the network of this document")
    run.add_argument("--mine", action=argparse.BooleanOptionalAction, default=None, help="mine blocks")
    run.add_argument("--minimum-work", metavar="N", type=_hashes, default=0, help="follow no chain with less work")
    run.add_argument("--prune", metavar="MIB", type=_prune, help="keep only the last MIB mebibytes of block bodies")
    run.add_argument(
        "--light", action=argparse.BooleanOptionalAction, default=None, help="keep headers only (default: as last time)"
    )
    run.add_argument(
        "--snapshot",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let a new chain begin with a state from others (default: as last time)",
    )
    run.add_argument("--ready-fd", metavar="N", type=int, help="write one line of JSON here when serving")
    given = parser.parse_args(argv)
    return Options(
        wishes=Wishes(
            given.mine_workers,
            given.mine_duty,
            given.mine_nice,
            given.work,
            given.explorer,
            given.light,
            given.snapshot,
        ),
        listen=given.listen,
        advertise=given.advertise,
        bootstrap=tuple(given.bootstrap),
        network_file=given.network,
        mine=given.mine,
        minimum_work=given.minimum_work,
        body_limit=given.prune,
        ready_fd=given.ready_fd,
    )


if __name__ == "__main__":
    main()
