"""Where the mount answers otherwise than ext4, what both answer, and why: the only place for such things.

Each is a limit of FUSE in Linux or of pyfuse3, not of the driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Difference:
    """What one case expects of each target."""

    ext4: Any
    decloud: Any
    reason: str


TABLE: Final[dict[str, Difference]] = {}


def differs(name: str) -> Difference:
    """Return an entry of the table."""
    return TABLE[name]
