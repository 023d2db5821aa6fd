"""Cases that many system calls share: what a path may be, what a new file gets, who may change a directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from tests.posix.calls import Caller, Child, Errno, checked, libc
from tests.posix.suite import ALICE, BOB, KINDS, OK, STAFF, Place

UMASKS: Final = (0, 0o022, 0o027, 0o077, 0o111, 0o777)
MODES: Final = (0, 0o777, 0o644, 0o400, 0o020, 0o001, 0o751, 0o4755, 0o2755, 0o1777, 0o6711, 0o7777)
BAD_ADDRESSES: Final = (1, -4096)

OWNED: Final = (ALICE, STAFF)
"""Owner and group of the objects on which `classes` differ."""


def classes(place: Place) -> list[tuple[str, Child, int]]:
    """Return who falls into each class of an object that is OWNED, and the shift of that class' mode bits."""
    return [
        ("owner", place.user(ALICE, ALICE), 6),
        ("group", place.user(BOB, STAFF), 3),
        ("supplementary group", place.user(BOB, BOB, STAFF), 3),
        ("other", place.bob, 0),
    ]


def modes_for(bits: int, shift: int) -> tuple[int, int]:
    """Return two modes that give a class these bits: with nothing for the other classes, and with everything for them."""
    return bits << shift, bits << shift | 0o777 & ~(7 << shift)


def spelled(path: str, length: int) -> str:
    """Return another spelling of a relative path, exactly this many bytes long: slashes are doubled, "./" is prefixed."""
    missing = length - len(path)
    assert missing >= 2
    prefix = "./" * (missing // 2)
    return prefix + "/" * (missing % 2) + path if missing % 2 else prefix + path


def path_errors(
    place: Place,
    call: Callable[[Caller, Any], Any],
    needs: str = "file",
    *,
    follows: bool = True,
    changes: bool = True,
    parent: bool = False,
    fault: Callable[[int], Any] | None = None,
    undo: Callable[[str], None] | None = None,
    read_only: Any = "EROFS",
    brief: bool = False,
) -> None:
    """Check everything about the path that a call takes.

    `needs` is the kind of file it works on ("missing": it makes one, and `undo` removes it); `follows`: a symlink at the end is
    followed; `changes`: it needs a writable file system; `parent`: it needs write permission in the directory; `brief`
    leaves out the matrices of permissions.
    """
    root = place.root

    def subject(directory: str = "", name: str = "", owner: tuple[int, int] | None = None) -> str:
        return place.make(needs, path=os.path.join(directory, name or place.name("x")), owner=owner)

    def check(label: str, want: Any, path: Any, who: Caller = root) -> None:
        got = call(who, path)
        place.equal(f"{who.name}, {label}", got, want)
        if needs == "missing" and not isinstance(got, Errno):
            (undo or os.unlink)(path)

    with place.case("path"):
        check("a plain path", OK, subject())
        check("an absolute path", OK, os.path.join(place.base, subject()))
        check("a path over ..", OK, "../" + os.path.basename(place.base) + "/" + subject())
        check("doubled slashes", OK, "." + "//" * 3 + subject())
    with place.case("ENOENT"):
        for who in (root, place.alice):
            check("an empty path", "ENOENT", "", who)
            check("a missing directory", "ENOENT", "missing/x", who)
            check("two missing directories", "ENOENT", "missing/missing/x", who)
            check("through a dangling symlink", "ENOENT", place.make("dangling") + "/x", who)
            if needs != "missing":
                check("a missing file", "ENOENT", place.name(), who)
                check("a missing file in a directory", "ENOENT", place.directory() + "/x", who)
                if follows:
                    check("a dangling symlink", "ENOENT", place.make("dangling"), who)
    with place.case("ENOTDIR"):
        for who in (root, place.alice):
            for kind in ("file", "fifo", "socket", "char", "block", "tofile"):
                check(f"through a {kind}", "ENOTDIR", place.make(kind) + "/x", who)
                check(f"deep through a {kind}", "ENOTDIR", place.make(kind) + "/x/y", who)
                check(f"to .. through a {kind}", "ENOTDIR", place.make(kind) + "/../x", who)
    with place.case("ENAMETOOLONG"):
        check("a name of 255 bytes", OK, subject(name=place.name("n").ljust(255, "n")))
        check("a name of 255 bytes, not text", OK, subject(name=place.name("y").ljust(255, os.fsdecode(b"\xff"))))
        check("a name of 254 bytes", OK, subject(name=place.name("o").ljust(254, "o")))
        long = "d" * 255
        if not os.path.exists(long):
            os.mkdir(long)
        check("in a directory with a name of 255 bytes", OK, subject(long))
        for who in (root, place.alice):
            check("a name of 256 bytes", "ENAMETOOLONG", "n" * 256, who)
            check("a name of 1000 bytes", "ENAMETOOLONG", "n" * 1000, who)
            check("a name of 256 bytes in a directory", "ENAMETOOLONG", long + "/" + "n" * 256, who)
            check("through a name of 256 bytes", "ENAMETOOLONG", "n" * 256 + "/x", who)
        for length in (4094, 4095):
            check(f"a path of {length} bytes", OK, spelled(subject(), length))
        for length in (4096, 4097, 8192):
            check(f"a path of {length} bytes", "ENAMETOOLONG", spelled(subject(), length))
    with place.case("ELOOP"):
        one, two, itself = (place.name("loop") for _ in range(3))
        os.symlink(one, two)
        os.symlink(two, one)
        os.symlink(itself, itself)
        for who in (root, place.alice):
            for loop in (one, itself):
                check("through a loop of symlinks", "ELOOP", loop + "/x", who)
                if follows and needs != "missing":
                    check("a loop of symlinks", "ELOOP", loop, who)
        chain = place.directory(0o777)
        for count in range(1, 42):
            following = place.name("link")
            os.symlink(chain, following)
            chain = following
            if count == 40 or (place.thorough and count in (1, 2, 39)):
                made = subject(chain)
                check(f"through {count} symlinks", OK, made)
        check("through 41 symlinks", "ELOOP", chain + "/x")
    with place.case("EACCES, searching"):
        for label, who, shift in [] if brief else classes(place):
            for bits in range(8) if place.thorough else (1, 6):
                for mode in place.some(modes_for(bits, shift), 1):
                    outer = place.directory(0o755, OWNED)
                    os.mkdir(outer + "/inner", 0o777)
                    os.chmod(outer + "/inner", 0o777)
                    made = subject(outer + "/inner", owner=(who.uid, who.gid))
                    os.chmod(outer, mode)
                    check(f"{label} of a directory {mode:#o} above", OK if bits & 1 else "EACCES", made, who)
        outer = place.directory(0)
        check("a directory 0 does not stop root", OK, subject(outer))
    if parent and not brief:
        with place.case("EACCES, writing"):
            for label, who, shift in classes(place):
                for bits in range(8) if place.thorough else (3, 1, 6):
                    for mode in place.some(modes_for(bits, shift), 1):
                        directory = place.directory(0o755, OWNED)
                        made = subject(directory, owner=(who.uid, who.gid))
                        os.chmod(directory, mode)
                        before = os.stat(directory)
                        allowed = bits & 3 == 3
                        check(f"{label} of a directory {mode:#o}", OK if allowed else "EACCES", made, who)
                        after = os.stat(directory)
                        if not allowed:
                            same = (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
                            place.equal("times are kept", same, True)
            directory = place.directory(0o555)
            check("a directory 0555 does not stop root", OK, subject(directory))
    if changes or read_only == OK:
        with place.case("EROFS"):
            for who in (root, place.alice):
                made = subject(owner=(ALICE, ALICE))
                if read_only == OK and needs == "missing":
                    continue
                check("on a read-only mount", read_only, os.path.join(place.readonly, made), who)
    if fault is not None:
        for address in BAD_ADDRESSES:
            place.equal(f"EFAULT: address {address}", fault(address), "EFAULT")


def existing_kinds(place: Place, call: Callable[[Caller, str], Any], want: Any = "EEXIST") -> None:
    """Check a call that makes a file, on names that are taken by each kind of file: it fails and changes nothing."""
    times = place.times()
    for kind in (*KINDS, "full", "todir", "tofile", "dangling"):
        for who in (place.root, place.alice):
            with place.case("EEXIST", kind):
                directory = place.directory(0o777)
                path = place.make(kind, path=directory + "/x")

                def act(who: Caller = who, path: str = path) -> Any:
                    return call(who, path)

                times.case(f"{who.name} over a {kind}", act, {path: "", directory: ""}, want)
    times.run()
    for who in (place.root, place.alice):
        for path in (".", "..", "/", "./", "../", "./."):
            place.equal(f"{who.name} on {path}", call(who, path), want)


def new_file(
    place: Place,
    call: Callable[[Caller, str, int], Any],
    kind: str,
    *,
    kept: int = 0o7777,
    modes: Sequence[int] = MODES,
    umasks: Sequence[int] = UMASKS,
    brief: bool = False,
    owned_by: Callable[[Place], Iterator[Child]] | None = None,
) -> None:
    """Check mode, owner, group, link count, size and times of what a call makes; `kept`: mode bits that it takes at all."""
    root = place.root
    for umask in place.some(umasks, 4):
        os.umask(umask)
        for mode in place.some(modes, 6 if brief else 12):
            path = place.name("m")
            with place.case(f"mode {mode:#o} umask {umask:#o}"):
                place.equal("made", call(root, path, mode), OK)
                place.shape(path, mode=mode & kept & ~umask, kind=kind, uid=0, gid=0, nlink=2 if kind == "dir" else 1)
    os.umask(0o022)
    callers: list[Child] = [place.alice, place.bob, place.user(ALICE, STAFF), place.user(BOB, BOB, STAFF)]
    group = 0o2000 if kind == "dir" else 0
    for who in callers if owned_by is None else owned_by(place):
        for directory_mode, directory_group in (
            (0o777, 0),
            (0o777, STAFF),
            (0o2777, 0),
            (0o2777, STAFF),
            (0o3777, BOB),
            (0o1777, 0),
        ):
            for mode in place.some((0o2755, 0o777, 0o2745, 0o2644, 0o4711, 0o1700, 0o7777), 2 if brief else 3):
                with place.case(f"by {who.name} in {directory_mode:#o} of group {directory_group}, mode {mode:#o}"):
                    directory = place.directory(directory_mode, (0, directory_group))
                    path = directory + "/new"
                    place.equal("made", call(who, path, mode), OK)
                    inherits = bool(directory_mode & 0o2000)
                    want = mode & kept & ~0o022
                    if inherits and kind != "dir" and not {who.gid, *who.groups} & {directory_group} and mode & 0o010:
                        want &= ~0o2000  # not a member of the group that the file gets: no program may run as it
                    if inherits:
                        want |= group
                    place.shape(path, mode=want, uid=who.uid, gid=directory_group if inherits else who.gid)
    with place.case("link count of the directory"):
        directory = place.directory(0o777)
        for count in range(1, 4):
            call(root, f"{directory}/n{count}", 0o755)
            place.shape(directory, nlink=2 + (count if kind == "dir" else 0))
    with place.case("times"):
        times = place.times()
        for who in (root, place.alice) if owned_by is None else (root,):
            directory = place.directory(0o777)
            times.case("a new name", lambda who=who, path=directory + "/new": call(who, path, 0o755), {directory: "mc"})
            closed = place.directory(0o555)
            want = OK if who is root else "EACCES"
            times.case(
                "a closed directory",
                lambda who=who, path=closed + "/new": call(who, path, 0o755),
                {closed: "mc" if who is root else ""},
                want,
            )
            times.case(
                "no directory", lambda who=who, path=directory + "/a/b": call(who, path, 0o755), {".": ""}, "ENOENT"
            )
        times.run()
        directory = place.directory(0o777)
        path = directory + "/timed"
        call(root, path, 0o755)
        info, above = os.lstat(path), os.lstat(directory)
        place.equal("atime = mtime = ctime", len({info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns}), 1)
        place.equal("the directory's mtime = ctime", above.st_mtime_ns, above.st_ctime_ns)
    with place.case("in a removed directory"):
        directory = place.directory(0o777)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        os.rmdir(directory)
        place.equal("made", call(root, f"/proc/self/fd/{fd}/x", 0o755), "ENOENT")
        os.close(fd)


def sticky_rules(place: Place, call: Callable[[Caller, str], Any], kinds: Sequence[str]) -> None:
    """Check who may remove or rename files of others: mode of the directory × its owner × the file's owner × caller."""
    alice, bob, root = place.alice, place.bob, place.root
    for kind in place.some(kinds, 2):
        for sticky in (0, 0o1000):
            for directory_owner in (0, ALICE, BOB):
                for file_owner in (0, ALICE, BOB):
                    for who, uid in ((root, 0), (alice, ALICE), (bob, BOB)):
                        with place.case(f"{kind} of {file_owner} in {sticky | 0o777:#o} of {directory_owner}"):
                            directory = place.directory(sticky | 0o777, (directory_owner, 0))
                            path = place.make(kind, path=directory + "/x", owner=(file_owner, file_owner))
                            allowed = not sticky or uid in (0, directory_owner, file_owner)
                            before = os.stat(directory)
                            place.equal(who.name, call(who, path), OK if allowed else "EPERM")
                            if not allowed:
                                after = os.stat(directory)
                                place.equal("the directory's ctime is kept", after.st_ctime_ns, before.st_ctime_ns)
                                place.equal("still there", place.kinds(path) != "missing", True)


def mount_point(place: Place, directory: str) -> Callable[[], None]:
    """Bind a directory over itself or a file; returns what takes it away."""
    source = os.fsencode(os.path.abspath(directory))
    checked(libc.mount(source, source, None, 4096, None))

    def undo() -> None:
        checked(libc.umount2(source, 2))

    return undo
