"""Fill a file until the disk is full, and say later whether what was acknowledged is there.

    python -m tests.crash.filler fill PATH LIMIT        {"errno", "acked", "written"}, in MiB; an fsync every 4 MiB
    python -m tests.crash.filler check PATH COUNT       {"right"}: how many of the first COUNT MiB are

Imports nothing of the project.
"""

from __future__ import annotations

import errno
import json
import os
import sys

from tests.crash.workload import MIB, content


def fill(path: str, limit: int) -> dict[str, object]:
    """Write until an error or the limit."""
    acked, number, name = 0, 0, ""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        for number in range(limit):
            view = memoryview(content(f"{os.path.basename(path)}/{number}", MIB))
            while view:
                view = view[os.write(fd, view) :]
            if number % 4 == 3:
                os.fsync(fd)
                acked = number + 1
    except OSError as exc:
        name = errno.errorcode.get(exc.errno or 0, str(exc.errno))
    try:
        os.close(fd)
    except OSError as exc:
        name = name or errno.errorcode.get(exc.errno or 0, str(exc.errno))
    return {"errno": name, "acked": acked, "written": number}


def check(path: str, count: int) -> dict[str, object]:
    """Compare."""
    with open(path, "rb") as file:
        right = sum(file.read(MIB) == content(f"{os.path.basename(path)}/{number}", MIB) for number in range(count))
    return {"right": right}


if __name__ == "__main__":
    operation, path, number = sys.argv[1:]
    print(json.dumps({"fill": fill, "check": check}[operation](path, int(number))))
