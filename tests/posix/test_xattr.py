"""setxattr(2), getxattr(2), listxattr(2), removexattr(2) and their l and f forms."""

from __future__ import annotations

import os
from typing import Any

from tests.posix import common
from tests.posix.differences import differs
from tests.posix.suite import ALICE, BOB, KINDS, OK, STAFF, Place, conformance, group, matrix

CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.setxattr(path, "user.a", b"1"),
        fault=lambda address: place.root.raw("setxattr", address, "user.a", 0, 0, 0),
    )
    common.path_errors(place, lambda who, path: who.listxattr(path), changes=False, read_only=OK, brief=True)
    for name in ("get", "remove"):
        want: Any = {"get": "ENODATA", "remove": {"ENODATA", "EROFS"}}[name]
        path = place.make(mode=0o666)
        place.want(want, place.root, name + "xattr", path, "user.none")
        place.want(want, place.alice, name + "xattr", os.path.join(place.readonly, path), "user.none")


@group
def values(place: Place) -> None:
    root = place.root
    for kind in ("file", "dir"):
        path = place.make(kind)
        for size in (0, 1, 2, 100, 255, 256, 1000, 2047, 2048, 2049, 3000):
            value = os.urandom(size)
            place.want(OK, root, "setxattr", path, "user.v", value)
            place.want(value, root, "getxattr", path, "user.v")
            place.want(size, root, "getxattr_size", path, "user.v", 0)
            place.want(size, root, "getxattr_size", path, "user.v", size + 10)
            if size > 1:
                place.want("ERANGE", root, "getxattr_size", path, "user.v", size - 1)
                place.want("ERANGE", root, "getxattr_size", path, "user.v", 1)
            place.want(size, root, "getxattr_size", path, "user.v", max(size, 1))
        place.want(["user.v"], root, "listxattr", path)
        place.want(7, root, "listxattr_size", path, 0)
        place.want("ERANGE", root, "listxattr_size", path, 6)
        place.want(7, root, "listxattr_size", path, 7)
        place.want("E2BIG", root, "setxattr", path, "user.v", bytes(65537))
        place.want(differs("large attributes"), root, "setxattr", path, "user.large", bytes(65536))
        place.want(OK, root, "removexattr", path, "user.v")
        place.want("ENODATA", root, "getxattr", path, "user.v")
        place.want("ENODATA", root, "removexattr", path, "user.v")


@group
def flags(place: Place) -> None:
    for who in (place.root, place.alice):
        for kind in ("file", "dir"):
            path = place.make(kind, 0o777)
            place.want("ENODATA", who, "setxattr", path, "user.a", b"1", REPLACE)
            place.want(OK, who, "setxattr", path, "user.a", b"1", CREATE)
            place.want("EEXIST", who, "setxattr", path, "user.a", b"2", CREATE)
            place.want(b"1", who, "getxattr", path, "user.a")
            place.want(OK, who, "setxattr", path, "user.a", b"3", REPLACE)
            place.want(b"3", who, "getxattr", path, "user.a")
            place.want("EINVAL", who, "setxattr", path, "user.a", b"4", 4)
            place.want("EINVAL", who, "setxattr", path, "user.a", b"4", 255)
            place.want({"EEXIST", "EINVAL"}, who, "setxattr", path, "user.a", b"4", CREATE | REPLACE)
            place.want(OK, who, "setxattr", path, "user.a", b"5")
            place.want(b"5", who, "getxattr", path, "user.a")


@group
def names(place: Place) -> None:
    root = place.root
    for kind in ("file", "dir"):
        path = place.make(kind)
        good = [
            "user.a",
            "user.A",
            "user.a.b",
            "user." + "n" * 250,
            "user. ",
            "user.\n",
            "user.ü",
            "user.user.a",
            "trusted.a",
            "user.aa",
        ]
        for number, name in enumerate(good):
            place.want(OK, root, "setxattr", path, name, b"%d" % number)
        for number, name in enumerate(good):
            place.want(b"%d" % number, root, "getxattr", path, name)
        place.equal("list", sorted(root.listxattr(path)), sorted(good))
        for name, want in (
            ("user." + "n" * 251, "ERANGE"), ("u" * 256, "ERANGE"), ("", "ERANGE"), ("user.", "EINVAL"), ("trusted.", "EINVAL"),
            ("user", "EOPNOTSUPP"), ("nothing", "EOPNOTSUPP"), ("other.name", "EOPNOTSUPP"), ("USER.a", "EOPNOTSUPP"),
            ("system.other", "EOPNOTSUPP"),
        ):  # fmt: skip
            place.want(want, root, "setxattr", path, name, b"x")
            place.want(want, root, "getxattr", path, name)
            place.want(want, root, "removexattr", path, name)
        for name in good:
            place.want(OK, root, "removexattr", path, name)
        place.want([], root, "listxattr", path)


@group
def which_files_may_have_user_attributes(place: Place) -> None:
    """user.* only files and directories; trusted.* every kind, for root alone; security.* too."""
    for kind in KINDS:
        for who in (place.root, place.alice):
            path = place.make(kind, 0o777, (ALICE, ALICE))
            want: Any = OK if kind in ("file", "dir") else "EPERM"
            place.want(want, who, "xattr_of_link", "set", path, "user.a", b"1")
            place.want(b"1" if want is OK else "ENODATA", who, "xattr_of_link", "get", path, "user.a")
            place.want(["user.a"] if want is OK else [], who, "xattr_of_link", "list", path)
            place.want(want, who, "xattr_of_link", "remove", path, "user.a")
            want = OK if who is place.root else "EPERM"
            place.want(want, who, "xattr_of_link", "set", path, "trusted.a", b"t")
            place.want(b"t" if who is place.root else "ENODATA", who, "xattr_of_link", "get", path, "trusted.a")
            place.want(["trusted.a"] if who is place.root else [], who, "xattr_of_link", "list", path)
            place.want([], place.bob, "xattr_of_link", "list", path)
            place.want(want, who, "xattr_of_link", "remove", path, "trusted.a")
            place.want(want, who, "xattr_of_link", "set", path, "security.test", b"s")
            if who is place.root:
                place.want(b"s", place.bob, "xattr_of_link", "get", path, "security.test")


@matrix
def permissions(place: Place) -> None:
    """Reading needs read permission, changing write permission, for every class; a sticky directory is for its owner."""
    for kind in ("file", "dir"):
        path = place.make(kind, owner=common.OWNED)
        for label, who, shift in common.classes(place):
            for bits in range(8):
                for mode in place.some(common.modes_for(bits, shift), 1):
                    with place.case(f"{label} of a {kind} {mode:#o}"):
                        os.chmod(path, mode)
                        os.setxattr(path, "user.a", b"1")
                        place.want(b"1" if bits & 4 else "EACCES", who, "getxattr", path, "user.a")
                        place.want(OK if bits & 2 else "EACCES", who, "setxattr", path, "user.a", b"2")
                        place.want(OK if bits & 2 else "EACCES", who, "removexattr", path, "user.a")
                        place.want([] if bits & 2 else ["user.a"], who, "listxattr", path)
    for mode in (0o777, 0o1777):
        directory = place.directory(mode, (ALICE, STAFF))
        place.want(OK, place.alice, "setxattr", directory, "user.a", b"1")
        place.want(OK, place.root, "setxattr", directory, "user.a", b"1")
        want = OK if mode == 0o777 else "EPERM"
        for who in (place.bob, place.user(BOB, STAFF)):
            place.want(want, who, "setxattr", directory, "user.b", b"1")
            place.want(b"1", who, "getxattr", directory, "user.a")


@group
def descriptors_and_links(place: Place) -> None:
    root = place.root
    path = place.make()
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        fd = os.open(path, flags)
        place.want(OK, root, "setxattr", fd, "user.fd", b"%d" % flags)
        place.want(b"%d" % flags, root, "getxattr", path, "user.fd")
        place.want(["user.fd"], root, "listxattr", fd)
        place.want(OK, root, "removexattr", fd, "user.fd")
        os.close(fd)
        place.want("EBADF", root, "getxattr", fd, "user.fd")
    other = place.name()
    os.link(path, other)
    place.want(OK, root, "setxattr", path, "user.shared", b"x")
    place.want(b"x", root, "getxattr", other, "user.shared")
    link = place.name()
    os.symlink(path, link)
    place.want(b"x", root, "getxattr", link, "user.shared")
    place.want("ENODATA", root, "xattr_of_link", "get", link, "user.shared")
    place.want(OK, root, "unlink", path)
    place.want(b"x", root, "getxattr", other, "user.shared")
    place.want(OK, root, "rename", other, path)
    place.want(b"x", root, "getxattr", path, "user.shared")
    place.make(path="fresh")
    place.want([], root, "listxattr", "fresh")
    os.unlink("fresh")
    place.make(path="fresh")
    place.want([], root, "listxattr", "fresh")


@group
def times(place: Place) -> None:
    table = place.times()
    for kind in ("file", "dir"):
        for who in (place.root, place.alice):
            directory = place.directory(0o777)
            paths = [place.make(kind, 0o777, (ALICE, ALICE), f"{directory}/{number}") for number in range(7)]
            for path in paths:
                os.setxattr(path, "user.a", b"1")
            table.case(
                "set", lambda who=who, path=paths[0]: who.setxattr(path, "user.b", b"1"), {paths[0]: "c", directory: ""}
            )
            table.case("replace", lambda who=who, path=paths[1]: who.setxattr(path, "user.a", b"2"), {paths[1]: "c"})
            table.case("remove", lambda who=who, path=paths[2]: who.removexattr(path, "user.a"), {paths[2]: "c"})
            table.case("get", lambda who=who, path=paths[3]: who.getxattr(path, "user.a"), {paths[3]: ""})
            table.case("list", lambda who=who, path=paths[4]: who.listxattr(path), {paths[4]: ""})
            table.case(
                "none to remove",
                lambda who=who, path=paths[5]: who.removexattr(path, "user.c"),
                {paths[5]: ""},
                "ENODATA",
            )
            table.case(
                "exists",
                lambda who=who, path=paths[6]: who.setxattr(path, "user.a", b"2", CREATE),
                {paths[6]: ""},
                "EEXIST",
            )
        path = place.make(kind, 0o755)
        table.case("not permitted", lambda path=path: place.alice.setxattr(path, "user.a", b"2"), {path: ""}, "EACCES")
    table.run()


@group
def many(place: Place) -> None:
    root = place.root
    for kind in ("file", "dir"):
        path = place.make(kind)
        names = [f"user.n{number:03}" for number in range(60)]
        for name in names:
            place.want(OK, root, "setxattr", path, name, name.encode())
        place.equal("list", sorted(root.listxattr(path)), names)
        for name in names[::2]:
            place.want(OK, root, "removexattr", path, name)
        place.equal("the others", sorted(root.listxattr(path)), names[1::2])
        for name in names[1::2]:
            place.want(name.encode(), root, "getxattr", path, name)


test_xattr = conformance(__name__)
