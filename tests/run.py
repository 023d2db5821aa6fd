"""What `make test` and `make test-long` run: two pytest processes side by side, because much of the time one would only wait.

    python -m tests.run MARKS [pytest's arguments]

Together they take about as long as each of them; the machine has two cores at least. The first one's output is shown when
the second has ended. With arguments there is one process with just those. The exit code is the first that is not 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Final

FIRST: Final = ("tests/unit", "tests/component", "tests/power", "tests/cluster")
SECOND: Final = ("tests/fuse", "tests/posix", "tests/differential", "tests/crash", "tests/programs")


def main() -> int:
    """Run the tests and return the exit code."""
    marks, *arguments = sys.argv[1:]
    pytest = [sys.executable, "-m", "pytest", "-m", marks]
    if arguments:
        return subprocess.run([*pytest, *arguments], check=False).returncode
    missing = [name for name in _test_directories() if name not in (*FIRST, *SECOND)]
    if missing:
        print(f"tests/run.py does not know {', '.join(missing)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryFile() as output:
        beside = subprocess.Popen(
            [*pytest, "--durations=10", *FIRST], stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
        try:
            code = subprocess.run([*pytest, "--durations=15", *SECOND], check=False).returncode
            code = beside.wait() or code
        finally:
            beside.kill()
            beside.wait()
            output.seek(0)
            sys.stdout.flush()
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
    return code


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
