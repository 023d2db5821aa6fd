"""Runs groups of cases on one target: a process that reads requests from standard input and answers on standard output.

    python -m tests.posix.runner TARGET DIRECTORY READONLY ELSEWHERE

Request and answer are a line of JSON each: [module, group, thorough] and {"checks", "failures", "seconds"}.
The process ends with its input.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time
import traceback

from tests.posix import suite
from tests.posix.calls import Child


def run_group(
    target: str, roots: list[str], callers: dict[tuple[int, ...], Child], module: str, name: str, thorough: bool
) -> dict[str, object]:
    """Run a group in a new directory and remove it."""
    start = time.monotonic()
    importlib.import_module(module)
    function = suite.GROUPS[module][name]
    directory = f"{module.rpartition('.')[2]}-{name}"
    base, readonly, elsewhere = (os.path.join(root, directory) for root in roots)
    for path in (base, elsewhere):
        os.mkdir(path)
        os.chmod(path, 0o777)
    os.chdir(base)
    os.umask(0o022)
    place = suite.Place(target, base, readonly, elsewhere, thorough, callers)
    try:
        function(place)
    except Exception:  # whatever a group meets is a failure of its own; the next ones still run
        place.checks += 1
        place.failures.append("the group ended early: " + traceback.format_exc(limit=-3))
    os.umask(0o022)
    os.chdir("/")
    for child in callers.values():
        child.rest()
    for path in (base, elsewhere):
        shutil.rmtree(path)
    return {"checks": place.checks, "failures": place.failures, "seconds": time.monotonic() - start}


def main() -> None:
    """Serve requests until the input ends."""
    target, *roots = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    callers: dict[tuple[int, ...], Child] = {}
    for line in sys.stdin:
        answers.write(json.dumps(run_group(target, roots, callers, *json.loads(line))) + "\n")
        answers.flush()
    for child in callers.values():
        child.end()


if __name__ == "__main__":
    main()
