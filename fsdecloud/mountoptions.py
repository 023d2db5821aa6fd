"""Which options a mount takes, and what each of them means: the text after `-o`, as in fstab(5).

Pure. `cli` parses what mount(8) hands over, the driver what `cli` hands over: both use `parse_options`, and
`format_options` is its inverse. A backslash takes the next character literally and double quotes protect commas, as in
libmount, so that any value survives the round trip. Source: mount(8), "External helpers"; operations.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Final

from fsdecloud.errors import UsageError
from fsdecloud.limits import CACHE_SIZE, HANDLER_DEADLINE, MIB, STAGE_SIZE
from fsdecloud.units import format_duration, format_size, parse_duration, parse_rate, parse_size

RELATIME: Final = "relatime"
STRICTATIME: Final = "strictatime"
NOATIME: Final = "noatime"

LONG_TIMEOUT: Final = 3600.0
"""Seconds the kernel may keep names and attributes: this mount is the volume's only writer."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What one mount was asked to do. Sizes in bytes, times in seconds."""

    read_only: bool = False
    allow_other: bool = False
    """Other users may enter; the kernel checks the mode bits (`default_permissions` is always on)."""
    foreground: bool = False
    """`mount` stays until the volume is unmounted (services)."""
    nonempty: bool = False
    """Mount over a directory that has files."""
    writeback: bool = True
    """The kernel collects writes (its writeback cache)."""
    cache_size: int = CACHE_SIZE
    """Bound on the clean cache's bytes on disk."""
    stage_size: int = STAGE_SIZE
    """Bound on the bytes that wait for peers."""
    up: int | None = None
    """Bytes per second sent to peers at most, 0 for no limit; None leaves it to the volume's own setting."""
    down: int | None = None
    """The same for what is fetched."""
    timeout: float = HANDLER_DEADLINE
    """A request that needs the network fails after this."""
    attr_timeout: float = LONG_TIMEOUT
    entry_timeout: float = LONG_TIMEOUT
    mount_timeout: float = 60.0
    """`mount` gives up when the file system does not answer within this."""
    fsname: str = ""
    """What /proc/mounts shows as the source; mount(8) compares it with fstab byte for byte. Empty: decloud:NAME."""
    credential: str = ""
    """Name of the systemd credential that holds the passphrase."""
    passfile: str = ""
    """File that holds the passphrase, mode 0600."""
    acl: bool = False
    """POSIX access control lists are kept and obeyed."""
    atime: str = RELATIME
    """When reading moves the access time: RELATIME, STRICTATIME or NOATIME."""
    nodiratime: bool = False
    """Access times of directories stay."""
    snapshot: str = ""
    """Mount this snapshot, read-only, instead of the volume: a sequence number, a name, a time, or `latest`."""
    show_snapshots: bool = False
    """Listing the root shows `.snapshots`."""
    kernel: tuple[str, ...] = ()
    """Flags handed to the kernel as they are: noexec, nosuid, suid, nodev, dev, sync, dirsync, allow_root."""


IGNORED: Final = frozenset(
    (
        "", "_netdev", "auto", "defaults", "group", "loud", "mand", "noauto", "nobootwait", "nofail", "nogroup", "nomand",
        "noowner", "nouser", "nousers", "nolazytime", "lazytime", "noiversion", "iversion",
        "owner", "silent", "user", "users", "rbind", "default_permissions",
    )
)  # fmt: skip
"""Said to mount(8), systemd or about things that do not exist here: accepted without effect."""

IGNORED_PREFIXES: Final = ("x-", "X-", "comment=", "subtype=", "uhelper=", "helper=")

_KERNEL: Final = {
    "noexec": "exec", "nosuid": "suid", "nodev": "dev", "sync": "async", "dirsync": "", "allow_root": "",
}  # fmt: skip
"""Kernel flag and the option that takes it back."""

_SNAPSHOT_MAX: Final = 64

_KERNEL_SENT: Final = frozenset((*_KERNEL, "suid", "dev"))
"""Those libfuse knows, and suid and dev, because libfuse mounts without both unless told."""

SECRET_WORDS: Final = (
    "pass",
    "password",
    "passphrase",
    "passwd",
    "pw",
    "secret",
    "key",
    "phrase",
    "words",
    "mnemonic",
    "token",
)
"""Names under which a secret might be passed where every process can read it."""

_FLAGS: Final[dict[str, tuple[str, Any]]] = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "allow_other": ("allow_other", True),
    "foreground": ("foreground", True),
    "nonempty": ("nonempty", True),
    "writeback": ("writeback", True),
    "nowriteback": ("writeback", False),
    "show_snapshots": ("show_snapshots", True),
    "noshow_snapshots": ("show_snapshots", False),
    "acl": ("acl", True),
    "noacl": ("acl", False),
    "relatime": ("atime", RELATIME),
    "atime": ("atime", RELATIME),
    "norelatime": ("atime", RELATIME),
    "nostrictatime": ("atime", RELATIME),
    "strictatime": ("atime", STRICTATIME),
    "noatime": ("atime", NOATIME),
    "nodiratime": ("nodiratime", True),
    "diratime": ("nodiratime", False),
}

_VALUES: Final[dict[str, Callable[[str, str], Any]]] = {
    "cache_size": lambda text, what: parse_size(text, what, smallest=64 * MIB),
    "stage_size": lambda text, what: parse_size(text, what, smallest=64 * MIB),
    "up": lambda text, what: parse_rate(text, what),
    "down": lambda text, what: parse_rate(text, what),
    "timeout": lambda text, what: parse_duration(text, what, smallest=1, largest=3600),
    "attr_timeout": lambda text, what: parse_duration(text, what, smallest=0, largest=86400),
    "entry_timeout": lambda text, what: parse_duration(text, what, smallest=0, largest=86400),
    "mount_timeout": lambda text, what: parse_duration(text, what, smallest=1, largest=3600),
    "fsname": lambda text, what: _checked_text(text, what),
    "credential": lambda text, what: _checked_text(text, what),
    "passfile": lambda text, what: _checked_path(text, what),
    "snapshot": lambda text, what: _checked_snapshot(text, what),
}

_DESCRIPTIONS: Final[dict[str, str]] = {
    "ro": "mount read-only",
    "rw": "mount read-write (the default)",
    "allow_other": "let other users in; the mode bits decide what they may do",
    "allow_root": "let root in, and nobody else",
    "foreground": "stay until the volume is unmounted",
    "nonempty": "mount over a directory that has files",
    "writeback": "let the kernel collect writes (the default)",
    "nowriteback": "pass every write on at once",
    "snapshot": "mount a snapshot, read-only: its number, name or time, or latest",
    "show_snapshots": "list .snapshots at the root (it is there in any case)",
    "acl": "keep and obey POSIX access control lists",
    "noatime": "reading moves no access time",
    "strictatime": "reading always moves the access time (default: relatime, as on Linux disks)",
    "nodiratime": "listing moves no directory's access time",
    "cache_size": f"bound on cached data on the disk (default {format_size(CACHE_SIZE)})",
    "stage_size": f"bound on data that waits for peers (default {format_size(STAGE_SIZE)})",
    "up": "send at most so many bytes a second to peers, 0 for no limit (default: what the volume is set to)",
    "down": "fetch at most so many bytes a second from peers, 0 for no limit (default: what the volume is set to)",
    "timeout": f"a request that needs the network fails after this (default {format_duration(HANDLER_DEADLINE)})",
    "attr_timeout": f"how long the kernel keeps attributes (default {format_duration(LONG_TIMEOUT)})",
    "entry_timeout": f"how long the kernel keeps names (default {format_duration(LONG_TIMEOUT)})",
    "mount_timeout": "give up when the file system does not answer within this (default 60 s)",
    "fsname": "source shown in /proc/mounts (default decloud:NAME)",
    "credential": "systemd credential that holds the passphrase",
    "passfile": "file, mode 0600, that holds the passphrase",
}


def served_name(name: str, options: MountOptions) -> str:
    """Return what a driver is called after: the volume's name, with the snapshot behind it if one is mounted alone."""
    return f"{name}@{options.snapshot.replace(':', '.')}" if options.snapshot else name


def describe_options() -> list[tuple[str, str]]:
    """Return our options and what each does, for help texts."""
    return [(f"{name}=…" if name in _VALUES else name, text) for name, text in _DESCRIPTIONS.items()]


def parse_options(
    text: str, *, sloppy: bool = False, base: MountOptions | None = None
) -> tuple[MountOptions, tuple[str, ...]]:
    """Return the options in `text`, over `base`, and the names of unknown ones that `sloppy` let pass.

    Spelled with `_` or `-` alike; the last word on a thing counts. Raises UsageError naming the option: unknown, with a
    missing or bad value, or one that would put a secret where others can read it (its value is not repeated).
    """
    values: dict[str, Any] = {} if base is None else {field.name: getattr(base, field.name) for field in fields(base)}
    kernel = dict.fromkeys(values.pop("kernel", ()))
    unknown: list[str] = []
    for item in split_options(text):
        name, equals, value = item.partition("=")
        key = name.replace("-", "_")
        if item in IGNORED or item.startswith(IGNORED_PREFIXES):
            continue
        if key in _FLAGS and not equals:
            field, flag = _FLAGS[key]
            values[field] = flag
        elif key in _VALUES:
            if not equals:
                raise UsageError(f"mount option {name!r} needs a value: {name}=…")
            values[key] = _VALUES[key](value, f"mount option {name}")
        elif item in _KERNEL or item in _KERNEL.values():
            kernel.pop(_KERNEL.get(item, ""), None)
            for flag_name, opposite in _KERNEL.items():
                if opposite == item:
                    kernel.pop(flag_name, None)
            if item in _KERNEL_SENT:
                kernel[item] = None
        elif item == "remount":
            raise UsageError("a mounted volume cannot change its options: unmount it and mount it again")
        elif key in SECRET_WORDS:
            raise UsageError(
                f"mount option {name!r} would show a secret to every process: "
                "use credential=NAME, passfile=FILE, a device key, or the prompt"
            )
        elif sloppy:
            unknown.append(name)
        else:
            raise UsageError(f"unknown mount option {name!r}{_suggest(key)}")
    if values.get("snapshot"):
        values["read_only"] = True
    return MountOptions(**values, kernel=tuple(kernel)), tuple(unknown)


def format_options(options: MountOptions) -> str:
    """Return the text that `parse_options` reads as `options`; options at their default are left out."""
    words = []
    default = MountOptions()
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name == "kernel":
            words += value
        elif value == getattr(default, field.name):
            continue
        elif isinstance(value, bool) or field.name == "atime":
            words.append(next(name for name, meaning in _FLAGS.items() if meaning == (field.name, value)))
        elif isinstance(value, float):
            words.append(f"{field.name}={value:.6f}".rstrip("0").rstrip("."))
        else:
            words.append(f"{field.name}={_escape(str(value))}")
    return ",".join(words)


def split_options(text: str) -> Iterator[str]:
    """Yield the options between the commas of `text`, quotes and backslashes undone. Raises UsageError if one is open."""
    item: list[str] = []
    quoted = False
    characters = iter(text)
    for character in characters:
        if character == "\\":
            following = next(characters, None)
            if following is None:
                raise UsageError(f"mount options end in a backslash: {text!r}")
            item.append(following)
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            yield "".join(item).strip()
            item = []
        else:
            item.append(character)
    if quoted:
        raise UsageError(f"mount options have an open quote: {text!r}")
    yield "".join(item).strip()


def _escape(value: str) -> str:
    return "".join(f"\\{c}" if c in '\\,"' else c for c in value)


def _checked_text(text: str, what: str) -> str:
    if not text or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise UsageError(f"{what} cannot be {text!r}: write printable text")
    return text


def _checked_snapshot(text: str, what: str) -> str:
    if not 0 < len(text) <= _SNAPSHOT_MAX or not all(c.isascii() and (c.isalnum() or c in "._-:") for c in text):
        raise UsageError(f"{what} cannot be {text!r}: use a snapshot's number, name or time, or latest")
    return text


def _checked_path(text: str, what: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise UsageError(f"{what} must be an absolute path, not {text!r}")
    return text


def _suggest(name: str) -> str:
    known = [*_FLAGS, *_VALUES, *_KERNEL, *filter(None, _KERNEL.values())]
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "; decloud mount --help lists them"
