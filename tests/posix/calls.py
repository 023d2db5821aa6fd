"""System calls by name, and processes of other users that make them.

`Caller` makes them in this process; `Child` in a process that has given up root for one user and his groups, started once and
kept: asking it costs a round trip over a socket, not a fork. A call that fails returns its errno's name as `Errno`.
Imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pickle
import resource
import signal
import socket
import stat as stat_module
import struct
import time
from collections.abc import Callable
from typing import Any, Final

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EACCESS: Final = 0x200
AT_REMOVEDIR: Final = 0x200
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EMPTY_PATH: Final = 0x1000
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
O_TMPFILE: Final = os.O_TMPFILE
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
_SYS_FCHMODAT2: Final = 452

libc = ctypes.CDLL(None, use_errno=True)
_LONG = ctypes.c_long
for _name in ("syscall", "lseek", "read", "write", "readlink", "telldir", "getxattr", "listxattr", "copy_file_range"):
    getattr(libc, _name).restype = _LONG


class Errno(str):
    """The name of the errno that a call failed with."""

    __slots__ = ()


CALLS: Final[dict[str, Callable[..., Any]]] = {}


def call(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function available to callers under its name, less a trailing underscore."""
    CALLS[function.__name__.rstrip("_")] = function
    return function


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the function's result, or the errno it failed with."""
    try:
        return function(*args, **kwargs)
    except OSError as exc:
        name = errno.errorcode.get(exc.errno or 0, repr(exc))
        return Errno("EOPNOTSUPP" if name == "ENOTSUP" else name)


def checked(result: int) -> int:
    """Raise what errno says if a C function returned -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def pointer(path: str | bytes | int) -> Any:
    """Return a C string, or an address as it is (to pass bad ones)."""
    return ctypes.c_void_p(path) if isinstance(path, int) else os.fsencode(path)


_PLAIN: Final = (
    os.close, os.chdir, os.rmdir, os.unlink, os.truncate, os.ftruncate, os.fsync, os.fdatasync, os.lseek, os.pread,
    os.fchmod, os.fchown, os.lchown, os.getcwd, os.umask, os.pwrite, os.read, os.write, os.dup, os.fchdir,
    os.mkfifo, os.setxattr, os.getxattr, os.listxattr, os.removexattr, os.posix_fallocate,
)  # fmt: skip
for _function in _PLAIN:
    CALLS[_function.__name__] = _function


@call
def open_(path: Any, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    return os.open(path, flags, mode)


@call
def opens(path: Any, flags: int = os.O_RDONLY, mode: int = 0o666) -> None:
    """Open and close."""
    os.close(os.open(path, flags, mode))


@call
def openat(dirfd: int, path: Any, flags: int = os.O_RDONLY, mode: int = 0o666) -> None:
    os.close(os.open(path, flags, mode, dir_fd=dirfd))


@call
def fill(path: Any, data: bytes = b"", mode: int = 0o644) -> None:
    """Make or replace a file's contents."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)
    try:
        if data:
            os.write(fd, data)
    finally:
        os.close(fd)


@call
def append(path: Any, data: bytes) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


@call
def overwrite(path: Any, data: bytes, offset: int = 0) -> int:
    """Write into an existing file."""
    fd = os.open(path, os.O_WRONLY)
    try:
        return os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


@call
def content(path: Any, size: int = 1 << 20) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


@call
def mkdir(path: Any, mode: int = 0o777) -> None:
    os.mkdir(path, mode)


@call
def mkdirat(dirfd: int, path: Any, mode: int = 0o777) -> None:
    os.mkdir(path, mode, dir_fd=dirfd)


@call
def unlinkat(dirfd: int, path: Any, flags: int = 0) -> None:
    checked(libc.unlinkat(dirfd, os.fsencode(path), flags))


@call
def rename(old: Any, new: Any, flags: int = 0) -> None:
    if flags:
        checked(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))
    else:
        os.rename(old, new)


@call
def renameat(olddir: int, old: Any, newdir: int, new: Any, flags: int = 0) -> None:
    checked(libc.renameat2(olddir, os.fsencode(old), newdir, os.fsencode(new), flags))


@call
def link(old: Any, new: Any) -> None:
    checked(libc.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), 0))


@call
def linkat(olddir: int, old: Any, newdir: int, new: Any, flags: int = 0) -> None:
    checked(libc.linkat(olddir, os.fsencode(old), newdir, os.fsencode(new), flags))


@call
def symlink(target: Any, path: Any) -> None:
    os.symlink(target, path)


@call
def readlink(path: Any) -> bytes:
    return os.readlink(os.fsencode(path))


@call
def readlink_size(path: Any, size: int) -> bytes:
    """readlink(2) with a buffer of this size."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    length = checked(libc.readlink(os.fsencode(path), buffer, ctypes.c_size_t(size)))
    return buffer.raw[:length]


@call
def mknod(path: Any, mode: int, rdev: int = 0) -> None:
    os.mknod(path, mode, rdev)


@call
def chmod(path: Any, mode: int) -> None:
    os.chmod(path, mode)


@call
def fchmodat(dirfd: int, path: Any, mode: int, flags: int = 0) -> None:
    checked(libc.syscall(_LONG(_SYS_FCHMODAT2), dirfd, os.fsencode(path), mode, flags))


@call
def chown(path: Any, uid: int, gid: int) -> None:
    os.chown(path, uid, gid)


@call
def fchownat(dirfd: int, path: Any, uid: int, gid: int, flags: int = 0) -> None:
    checked(
        libc.fchownat(
            dirfd, os.fsencode(path), ctypes.c_uint32(uid & 0xFFFFFFFF), ctypes.c_uint32(gid & 0xFFFFFFFF), flags
        )
    )


@call
def utimensat(path: Any, atime: Any, mtime: Any, flags: int = 0, dirfd: int = AT_FDCWD) -> None:
    """Each time is (seconds, nanoseconds); both None passes no pointer. A path of None means the descriptor itself."""
    times = None
    if atime is not None:
        times = (ctypes.c_int64 * 4)(*atime, *mtime)
    if path is None:
        checked(libc.futimens(dirfd, times))
    else:
        checked(libc.utimensat(dirfd, os.fsencode(path), times, flags))


def _shape(info: os.stat_result) -> dict[str, int]:
    names = ("mode", "ino", "dev", "nlink", "uid", "gid", "size", "rdev", "blksize", "blocks")
    found = {name: int(getattr(info, f"st_{name}")) for name in names}
    return found | {"atime": info.st_atime_ns, "mtime": info.st_mtime_ns, "ctime": info.st_ctime_ns}


@call
def stat(path: Any) -> dict[str, int]:
    return _shape(os.stat(path))


@call
def lstat(path: Any) -> dict[str, int]:
    return _shape(os.lstat(path))


@call
def fstat(fd: int) -> dict[str, int]:
    return _shape(os.fstat(fd))


@call
def access(path: Any, mode: int) -> None:
    checked(libc.access(os.fsencode(path), mode))


@call
def faccessat(dirfd: int, path: Any, mode: int, flags: int = 0) -> None:
    checked(libc.faccessat(dirfd, os.fsencode(path), mode, flags))


@call
def listdir(path: Any = ".") -> list[str]:
    return sorted(os.listdir(path))


@call
def statvfs(path: Any) -> int:
    return os.statvfs(path).f_namemax


@call
def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    checked(libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


@call
def flock(fd: int, operation: int) -> None:
    fcntl.flock(fd, operation | fcntl.LOCK_NB)


@call
def record_lock(
    fd: int, kind: int, start: int = 0, length: int = 0, command: int = fcntl.F_SETLK
) -> tuple[int, int, int]:
    """fcntl(2) locks; returns (type, start, length) as the kernel left them."""
    answer = fcntl.fcntl(fd, command, struct.pack("hhqqi", kind, os.SEEK_SET, start, length, 0))
    kind, _whence, start, length, _pid = struct.unpack("hhqqi", answer[: struct.calcsize("hhqqi")])
    return kind, start, length


@call
def execute(path: Any, *args: str) -> str:
    """Run a program; return what it printed. Raises OSError as execve(2) did."""
    out, into = os.pipe()
    failed, report = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.dup2(into, 1)
            os.execve(path, [os.fsdecode(path) if not isinstance(path, int) else "fd", *args], {"LC_ALL": "C"})
        except OSError as exc:
            os.write(report, str(exc.errno).encode())
        os._exit(127)
    os.close(into)
    os.close(report)
    with open(failed, "rb") as errors, open(out, "rb") as output:
        number, said = errors.read(), output.read()
    os.waitpid(pid, 0)
    if number:
        raise OSError(int(number), "execve")
    return said.decode()


@call
def getxattr_size(path: str, name: str, size: int) -> int:
    buffer = ctypes.create_string_buffer(max(size, 1))
    return checked(libc.getxattr(os.fsencode(path), os.fsencode(name), buffer, ctypes.c_size_t(size)))


@call
def listxattr_size(path: str, size: int) -> int:
    buffer = ctypes.create_string_buffer(max(size, 1))
    return checked(libc.listxattr(os.fsencode(path), buffer, ctypes.c_size_t(size)))


@call
def xattr_of_link(action: str, path: str, name: str = "", value: bytes = b"") -> Any:
    """The l forms."""
    if action == "set":
        return os.setxattr(path, name, value, follow_symlinks=False)
    if action == "get":
        return os.getxattr(path, name, follow_symlinks=False)
    if action == "remove":
        return os.removexattr(path, name, follow_symlinks=False)
    return os.listxattr(path, follow_symlinks=False)


@call
def limited(size: int, name: str, *args: Any) -> Any:
    """Make another call under a limit on file sizes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        return CALLS[name](*args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@call
def masked(umask: int, name: str, *args: Any) -> Any:
    """Make another call under a umask."""
    before = os.umask(umask)
    try:
        return CALLS[name](*args)
    finally:
        os.umask(before)


@call
def raw(name: str, *args: Any) -> int:
    """Call a C function: integers are passed as 64 bits, strings as C strings."""
    passed = [_LONG(arg) if isinstance(arg, int) else os.fsencode(arg) for arg in args]
    return checked(getattr(libc, name)(*passed))


class Caller:
    """Whoever runs this process: `caller.mkdir("d", 0o755)` returns the result or an Errno."""

    name = "root"

    def make(self, name: str, args: tuple[Any, ...]) -> Any:
        """Make one call."""
        return attempt(CALLS[name], *args)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in CALLS:
            raise AttributeError(name)
        return lambda *args: self.make(name, args)


class Child(Caller):
    """A process of another user."""

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...] = ()) -> None:
        self.uid, self.gid, self.groups = uid, gid, groups
        self.name = f"user {uid}:{','.join(map(str, (gid, *groups)))}"
        self._directory = ""
        mine, theirs = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            try:
                self._serve(theirs)
            finally:
                os._exit(1)
        theirs.close()
        self._socket = mine
        self._file = mine.makefile("rwb")

    def make(self, name: str, args: tuple[Any, ...]) -> Any:
        """Make one call there, in this process' working directory."""
        directory = os.getcwd()
        if directory != self._directory:
            self._ask(("chdir", (directory,)))
            self._directory = directory
        return self._ask((name, args))

    def _ask(self, question: Any) -> Any:
        pickle.dump(question, self._file)
        self._file.flush()
        answer = pickle.load(self._file)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def rest(self) -> None:
        """Leave the working directory, which may be about to be removed."""
        self._ask(("chdir", ("/",)))
        self._directory = ""

    def end(self) -> None:
        """Let the process end."""
        self._file.close()
        self._socket.close()
        os.waitpid(self.pid, 0)

    def _serve(self, sock: socket.socket) -> None:
        number = sock.fileno()
        os.closerange(3, number)
        os.closerange(number + 1, 256)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        os.setgroups(list(self.groups))
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        file = sock.makefile("rwb")
        while True:
            try:
                name, args = pickle.load(file)
            except EOFError:
                os._exit(0)
            answer: Any
            try:
                answer = attempt(CALLS[name], *args)
            except Exception as exc:  # the caller raises it: it must not end the child, which others use
                answer = RuntimeError(f"{self.name}: {name}{args!r}: {exc!r}")
            pickle.dump(answer, file)
            file.flush()


def kind_of(mode: int) -> str:
    """Return the name of a file type."""
    kinds = {stat_module.S_IFREG: "file", stat_module.S_IFDIR: "dir", stat_module.S_IFLNK: "symlink",
             stat_module.S_IFIFO: "fifo", stat_module.S_IFSOCK: "socket", stat_module.S_IFCHR: "char",
             stat_module.S_IFBLK: "block"}  # fmt: skip
    return kinds[stat_module.S_IFMT(mode)]


def now() -> int:
    """Return the time of day, ns."""
    return time.time_ns()
