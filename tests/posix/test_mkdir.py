"""mkdir(2)."""

from __future__ import annotations

from tests.posix.suite import OK, Place, conformance, group


@group
def basics(place: Place) -> None:
    place.want(OK, place.root, "mkdir", "d", 0o755)
    place.want("EEXIST", place.alice, "mkdir", "d", 0o755)
    place.shape("d", mode=0o755, nlink=2)


test_mkdir = conformance(__name__)
