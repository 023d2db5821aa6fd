"""What `make test` and `make test-long` run: some pytest processes side by side, because much of the time one would only wait.

    python -m tests.run MARKS [pytest's arguments]

The machine has two cores at least. The first group's output is shown as it comes, the others' when all have ended. With
arguments there is one process with just those. The exit code is the first that is not 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import Final

GROUPS: Final = (
    ("tests/fuse", "tests/posix", "tests/differential"),
    ("tests/unit", "tests/component", "tests/power"),
    ("tests/cluster", "tests/crash", "tests/programs"),
)
"""What runs beside each other: groups of about the same length."""


def main() -> int:
    """Run the tests and return the exit code."""
    marks, *arguments = sys.argv[1:]
    pytest = [sys.executable, "-m", "pytest", "-m", marks]
    if arguments:
        return subprocess.run([*pytest, *arguments], check=False).returncode
    missing = [name for name in _test_directories() if not any(name in group for group in GROUPS)]
    if missing:
        print(f"tests/run.py does not know {', '.join(missing)}", file=sys.stderr)
        return 1
    pytest.append("--durations=12")
    first, *others = GROUPS
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _group in others]
        beside = [
            subprocess.Popen([*pytest, *group], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
            for group, output in zip(others, outputs, strict=True)
        ]
        try:
            codes = [subprocess.run([*pytest, *first], check=False).returncode]
            codes += [process.wait() for process in beside]
        finally:
            for process, output in zip(beside, outputs, strict=True):
                process.kill()
                process.wait()
                output.seek(0)
                sys.stdout.flush()
                sys.stdout.buffer.write(output.read())
                sys.stdout.flush()
    return next(filter(None, codes), 0)


def _test_directories() -> list[str]:
    """Return the directories that hold tests."""
    found = []
    for entry in os.scandir("tests"):
        if entry.is_dir() and any(
            name.startswith("test_") for _path, _dirs, names in os.walk(entry.path) for name in names
        ):
            found.append(f"tests/{entry.name}")
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())
