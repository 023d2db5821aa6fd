"""execve(2): who may execute what, set-ID programs, ETXTBSY."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

from tests.posix import common
from tests.posix.suite import ALICE, BOB, GUESTS, KINDS, OK, STAFF, Place, conformance, group, matrix


def program(place: Place, mode: int = 0o755, owner: tuple[int, int] = (0, 0), source: str = "/usr/bin/id") -> str:
    """Copy a program and return its path."""
    path = "./" + place.name("program")
    shutil.copyfile(source, path)
    os.chown(path, *owner)
    os.chmod(path, mode)
    return path


def script(place: Place, mode: int = 0o755, owner: tuple[int, int] = (0, 0), text: str = "#!/bin/echo ran\n") -> str:
    """Make a script."""
    path = "./" + place.name("script")
    place.root.fill(path, text.encode())
    os.chown(path, *owner)
    os.chmod(path, mode)
    return path


@matrix
def permissions(place: Place) -> None:
    """Binaries need x, scripts x and r."""
    for make, needed in ((program, 1), (script, 1)):
        path = make(place, 0o755, common.OWNED) if make is script else make(place, 0o755, common.OWNED, "/bin/true")
        for label, who, shift in common.classes(place):
            for bits in place.some((1, 0, 4, 5, 2, 3, 6, 7), 4):
                mode = common.modes_for(bits, shift)[1]
                os.chmod(path, mode)
                with place.case(f"{label} of {mode:#o}"):
                    want: Any = OK if bits & needed else "EACCES"
                    if make is script and bits == 1:
                        continue  # the interpreter may or may not read it
                    place.want(want, who, "execute", path)
    for mode, want in ((0, "EACCES"), (0o666, "EACCES"), (0o100, OK), (0o010, OK), (0o001, OK)):
        place.want(want, place.root, "execute", program(place, mode, common.OWNED, "/bin/true"))
    path = program(place, 0o755, (0, 0), "/bin/true")
    for mode in (0o700, 0o744, 0o711):
        directory = place.directory(mode)
        os.link(path, directory + "/p")
        place.want(OK if mode & 1 else "EACCES", place.alice, "execute", directory + "/p")


@group
def kinds(place: Place) -> None:
    for who in (place.root, place.alice):
        for kind in KINDS:
            want = {"file": "ENOEXEC", "symlink": "ENOENT"}.get(kind, "EACCES")
            place.want(want, who, "execute", "./" + place.make(kind, 0o755))
        place.want("ENOENT", who, "execute", "./missing")
        place.want("ENOTDIR", who, "execute", "./" + place.make() + "/x")
        place.want("ENAMETOOLONG", who, "execute", "./" + "n" * 256)
        place.want("ENOENT", who, "execute", script(place, text="#!/no/such/interpreter\n"))
        place.want("ENOEXEC", who, "execute", script(place, text="echo no interpreter\n"))
        path = place.name()
        os.symlink(script(place), path)
        place.want(OK, who, "execute", "./" + path)
        itself = place.name()
        os.symlink(itself, itself)
        place.want("ELOOP", who, "execute", "./" + itself)


@group
def set_ids(place: Place) -> None:
    """Set-ID programs run as the owner or group of the file."""
    alice = place.alice
    for mode, owner, wanted in (
        (0o755, (BOB, GUESTS), (ALICE, ALICE)),
        (0o4755, (BOB, GUESTS), (BOB, ALICE)),
        (0o2755, (BOB, GUESTS), (ALICE, GUESTS)),
        (0o6755, (BOB, GUESTS), (BOB, GUESTS)),
        (0o4755, (0, 0), (0, ALICE)),
        (0o2745, (BOB, GUESTS), (ALICE, ALICE)),
        (0o2755, (BOB, STAFF), (ALICE, STAFF)),
    ):
        path = program(place, mode, owner)
        for flag, want in (("-u", wanted[0]), ("-g", wanted[1])):
            place.want(f"{want}\n", alice, "execute", path, flag)


@group
def busy(place: Place) -> None:
    """A running program cannot be written, a file open for writing cannot be run."""
    for who in (place.root, place.alice):
        path = program(place, 0o777, (0, 0), "/bin/sleep")
        pid = os.spawnv(os.P_NOWAIT, path, [path, "60"])
        end = time.monotonic() + 30
        while os.readlink(f"/proc/{pid}/exe") != os.path.realpath(path) and time.monotonic() < end:
            time.sleep(0.005)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
            place.want("ETXTBSY", who, "opens", path, flags)
        place.want("ETXTBSY", who, "truncate", path, 0)
        place.want(OK, who, "opens", path, os.O_RDONLY)
        place.want(OK, place.root, "chmod", path, 0o777)
        place.want(OK, place.root, "rename", path, path + ".moved")
        place.want(OK, place.root, "unlink", path + ".moved")
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        path = script(place, 0o777)
        binary = program(place, 0o777, (0, 0), "/bin/true")
        for target in (path, binary):
            fd = who.open(target, os.O_WRONLY)
            place.want("ETXTBSY", place.alice, "execute", target)
            place.want(OK, who, "close", fd)
            place.want(OK, place.alice, "execute", target)


@group
def fresh_programs(place: Place) -> None:
    """What was just written, renamed or changed runs as it is now."""
    for number in range(5):
        path = script(place, text=f"#!/bin/echo version-{number}\n")
        got = place.want(OK, place.root, "execute", path)
        place.equal("output", got.startswith(f"version-{number}"), True)
        place.root.fill(path, f"#!/bin/echo other-{number}\n".encode())
        place.equal("changed", place.root.execute(path).startswith(f"other-{number}"), True)
        os.rename(path, "./current")
        place.equal("renamed", place.root.execute("./current").startswith(f"other-{number}"), True)


test_exec = conformance(__name__)
