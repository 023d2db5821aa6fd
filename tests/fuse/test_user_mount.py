"""A volume of a user who is not root, mounted through fusermount3.

In a mount namespace of its own, where everybody may use /dev/fuse, as udev sets it elsewhere, and /etc/fuse.conf is empty.
The user's processes may read what root may, so that they find the interpreter and this tree wherever they are; they may write
only what is theirs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import cleanup
from tests.cluster.harness import DECLOUD, Network, Result

pytestmark = pytest.mark.fuse

USER = 1000
USAGE, MOUNT_FAILED = 1, 32

NAMESPACE = """
mknod -m 666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
: > "$1/fuse.conf"
mount --bind "$1/fuse.conf" /etc/fuse.conf
touch "$1/ready"
exec sleep 3600
"""


@dataclass(frozen=True)
class User:
    """Runs programs as the user in the namespace."""

    network: Network
    namespace: int
    base: Path

    @property
    def mountpoint(self) -> Path:
        return self.base / "mnt"

    def as_root(self, *args: str | Path, check: bool = True) -> Result:
        """Run a program of root's in the namespace."""
        return self.network.run("nsenter", f"--target={self.namespace}", "--mount", "--", *args, check=check)

    def run(self, *args: str | Path, check: bool = True) -> Result:
        """Run a program of the user's."""
        capabilities = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
        account = (f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *capabilities)
        environment = ("env", f"FSDECLOUD_HOME={self.base}/home", f"HOME={self.base}", f"TMPDIR={self.base}")
        return self.as_root("setpriv", *account, *environment, *args, check=check)

    def mount(self, *options: str, directory: Path | None = None, check: bool = True) -> Result:
        return self.run(DECLOUD, "mount", "cloud", directory or self.mountpoint, *options, check=check)

    def umount(self) -> None:
        if self.drivers():
            self.run(DECLOUD, "umount", self.mountpoint)

    def drivers(self) -> list[int]:
        return [pid for pid in self.network.processes() if "fsdecloud.fuse" in cleanup.command_line(pid)]

    def wait_until_closed(self) -> None:
        self.network.wait_until(lambda: not self.drivers(), 30, "the driver ends")


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    """The user, with a volume `cloud` that is mounted and one peer."""
    with Network(peers=1) as network:
        base = network.base / "user"
        (base / "mnt").mkdir(parents=True)
        for path in (base, base / "mnt"):
            os.chown(path, USER, USER)
        command = ("unshare", "--mount", "--propagation=private", "sh", "-ec", NAMESPACE, "sh", network.work)
        namespace = network.start(*command)
        network.wait_until((network.work / "ready").exists, 20, "the namespace is made")
        found = User(network, namespace.pid, base)
        found.run(DECLOUD, "up", found.mountpoint, "--peers", "1", "--detach")
        yield found
        found.run(DECLOUD, "down")
        namespace.kill()
        namespace.wait()


def test_fault_136_mount_points_of_others(user: User) -> None:
    """What fusermount3 would refuse is said before a driver is started; what it takes is mounted."""
    user.umount()
    for name, mode, says in (
        ("sticky", 0o1777, "is sticky and not yours"),
        ("roots", 0o755, "must be writable by you"),
    ):
        directory = user.network.work / name
        directory.mkdir()
        directory.chmod(mode)
        refused = user.mount(directory=directory, check=False)
        assert refused.code == USAGE, refused.describe()
        assert says in refused.err
        assert len(refused.err.splitlines()) == 1
    for name, mode, owner in (("own sticky", 0o1777, USER), ("open", 0o777, 0)):
        directory = user.network.work / name
        directory.mkdir()
        directory.chmod(mode)
        os.chown(directory, owner, owner)
        user.mount(directory=directory)
        user.run(DECLOUD, "umount", directory)


def test_fault_136_a_dead_mount_of_the_user(user: User) -> None:
    """Seen as dead, not as an empty directory, and taken away by the next mount, without root."""
    if not user.drivers():
        user.mount()
    for pid in user.drivers():
        cleanup.send_signal(pid, signal.SIGKILL)
    user.wait_until_closed()
    said = user.run("ls", user.mountpoint, check=False).err
    assert "not connected" in said or "connection abort" in said  # the second, for what was asked while it ended
    user.mount()
    assert user.as_root("grep", "-c", f" {user.mountpoint} ", "/proc/self/mountinfo").out == "1\n"
    user.run("ls", user.mountpoint)


def test_fault_025_nobody_else_serves_the_same_home(user: User) -> None:
    """Not even root: it is refused before anything there is opened, and the user's driver goes on."""
    if not user.drivers():
        user.mount()
    (driver,) = user.drivers()
    other = user.network.work / "roots"
    other.mkdir(exist_ok=True)
    environment = ("env", f"FSDECLOUD_HOME={user.base}/home")
    refused = user.as_root(*environment, DECLOUD, "mount", "cloud", other, check=False)
    assert refused.code != 0
    assert len(refused.err.splitlines()) == 1, refused.describe()
    assert f"process {driver}" in refused.err or "belong to you" in refused.err, refused.describe()
    assert user.drivers() == [driver]
    user.run("touch", user.mountpoint / "still")


def test_fault_147_only_the_user_enters(user: User) -> None:
    """Not even root, unless the machine's administrator and the user both say so."""
    if not user.drivers():
        user.mount()
    assert "Permission denied" in user.as_root("ls", user.mountpoint, check=False).err
    user.umount()
    refused = user.mount("-o", "allow_other", check=False)
    assert refused.code == USAGE, refused.describe()
    assert "user_allow_other in /etc/fuse.conf" in refused.err
    configuration = user.network.work / "fuse.conf"
    configuration.write_text("user_allow_other\n")
    try:
        user.mount("--allow-other")
        user.as_root("ls", user.mountpoint)
        user.umount()
    finally:
        configuration.write_text("")


@pytest.mark.parametrize(
    "command",
    [
        ("fusermount3", "-u"),
        ("umount",),
        ("root", "umount"),
        ("root", "kill"),
    ],
    ids=" ".join,
)
def test_fault_140_ended_by(user: User, command: tuple[str, ...]) -> None:
    """Nothing is lost, synced or not, whoever unmounts; a service manager asks the driver itself, with SIGTERM."""
    if not user.drivers():
        user.mount()
    name = user.mountpoint / "-".join(command)
    wanted = user.run("sh", "-c", 'head -c 3000000 /dev/urandom | tee "$1" | sha256sum', "sh", name).out
    if command == ("root", "kill"):
        for pid in user.drivers():
            cleanup.send_signal(pid, signal.SIGTERM)
    elif command[0] == "root":
        user.as_root(*command[1:], user.mountpoint)
    else:
        user.run(*command, user.mountpoint)
    user.wait_until_closed()
    assert user.as_root("grep", "-c", f" {user.mountpoint} ", "/proc/self/mountinfo", check=False).out == "0\n"
    user.mount()
    assert user.run("sh", "-c", 'sha256sum < "$1"', "sh", name).out == wanted
