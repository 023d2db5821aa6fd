"""What happens around a mount: busy, detached, aborted, refused by the system, used by others, without its peers."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdecloud.cli import drivers
from fsdecloud.config import find_paths
from tests.cluster import cleanup
from tests.cluster.harness import DECLOUD, Network, Result

pytestmark = pytest.mark.fuse

MIB = 1 << 20
SYSTEM, MOUNT_FAILED = 2, 32


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """One peer, and a volume with one synced file."""
    with Network(peers=1) as fresh:
        fresh.up()
        fresh.worker("write_and_sync", fresh.mountpoint / "kept", str(MIB), "kept")
        yield fresh


@pytest.fixture
def mounted(network: Network) -> Network:
    """The network, mounted with the default options, whatever the test before did."""
    network.up()
    assert network.volume
    return network


@pytest.fixture
def unmounted(network: Network) -> Network:
    """The network, not mounted."""
    if cleanup.mounts_below(network.base):
        network.up()
        network.umount()
    return network


def decloud_under(network: Network, *wrapper: str | Path, environment: dict[str, str] | None = None) -> Result:
    """Run `WRAPPER decloud mount VOLUME MOUNTPOINT`."""
    variables = {"FSDECLOUD_HOME": str(network.home), **(environment or {})}
    return network.run(
        *wrapper, DECLOUD, "mount", network.volume, network.mountpoint, environment=variables, check=False
    )


def refused(network: Network, result: Result, code: int, says: str) -> None:
    """Check that a mount was refused with one line, and that nothing is left of it."""
    assert result.code == code, result.describe()
    assert len(result.err.splitlines()) == 1, result.describe()
    assert says in result.err, result.describe()
    assert cleanup.mounts_below(network.base) == []
    assert network.drivers() == []


# ---- ending while somebody uses it ----------------------------------------------------------------------------------

HOLDER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(fd, b"a" * 100_000)
print("open", flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
os.pwrite(fd, b"b" * 3_000_000, 100_000)
assert os.pread(fd, 5, 99_998) == b"aabbb"
os.close(fd)
"""


def start_holder(network: Network, name: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Have a process open a file, write, and write more and close it once the returned path exists."""
    go, log = network.work / f"{name}.go", network.work / f"{name}.log"
    holder = network.start(sys.executable, "-c", HOLDER, network.mountpoint / name, go, log=log)
    network.wait_until(lambda: "open" in log.read_text(), 20, "the file is open")
    return holder, go


def test_fault_138_detached_while_files_are_open(mounted: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver stays until the last close, makes what came until then durable, and ends; nobody mounts beside it."""
    network = mounted
    status = network.status()
    pids = [status["driver_pid"], status["agent_pid"]]
    holder, go = start_holder(network, "held")
    network.decloud("umount", "--lazy", network.mountpoint)
    assert cleanup.mounts_below(network.base) == []
    assert network.run("ls", network.mountpoint).out == ""
    monkeypatch.setenv("FSDECLOUD_HOME", str(network.home))
    said = drivers.describe_running(find_paths(), network.volume)
    assert f"is detached from {network.mountpoint}" in said
    assert holder.poll() is None
    assert all(map(cleanup.is_alive, pids)), "it serves the file that is open"
    go.touch()
    assert network.wait_for_exit(holder, 30, "the program with the open file") == 0
    network.wait_until(lambda: not any(map(cleanup.is_alive, pids)), 30, "driver and agent end")
    network.mount()
    script = 'test "$(wc -c < "$1")" = 3100000 && tr -d ab < "$1" | wc -c && head -c 100000 "$1" | tr -d a | wc -c'
    assert network.run("sh", "-c", script, "sh", network.mountpoint / "held").out.split() == ["0", "0"]


@pytest.mark.parametrize("how", ["abort", "umount"])
def test_fault_139_aborted(unmounted: Network, how: str) -> None:
    """Whoever waits gets an error, what was synced is there, the driver ends as after an unmount."""
    network = unmounted
    log = network.work / f"{how}.driver"
    driver = network.start_decloud("mount", "--foreground", network.volume, network.mountpoint, log=log)
    network.wait_until(lambda: "is mounted at" in log.read_text(), 60, "the mount serves")
    network.worker("write_and_sync", network.mountpoint / how, str(3 * MIB), how)
    wanted = network.digest(how)
    holder, go = start_holder(network, f"{how} held")
    network.run("rm", "-f", network.mountpoint / "nothing")
    (pid,) = network.drivers()
    cleanup.send_signal(pid, signal.SIGSTOP)
    try:
        waiting = network.start("cat", network.mountpoint / "never looked up")
        network.wait_until(
            lambda: Path(f"/proc/{waiting.pid}/wchan").read_text() == "request_wait_answer",
            20,
            "a program waits for the driver",
        )
        if how == "abort":
            cleanup.abort_mounts(network.base)
        else:  # the force aborts; the open file then still keeps the mount busy
            assert "busy" in network.run("umount", "-i", "-f", network.mountpoint, check=False).err
        assert network.wait_for_exit(waiting, 20, "the program that waited") != 0
    finally:
        cleanup.send_signal(pid, signal.SIGCONT)
    assert network.wait_for_exit(driver, 30, "the driver") == 0
    assert "Traceback" not in log.read_text()
    go.touch()
    assert network.wait_for_exit(holder, 20, "the program whose writes fail") != 0
    listed = network.run("ls", network.mountpoint, check=False)
    assert listed.code != 0, "a dead mount is no empty directory"
    network.mount()
    assert len(cleanup.mounts_below(network.base)) == 1
    assert network.digest(how) == wanted
    assert network.digest("kept")


# ---- what the system may refuse -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kib", "code"), [(40_000, SYSTEM), (400_000, MOUNT_FAILED), (20_000_000, MOUNT_FAILED)])
def test_fault_155_too_little_address_space(unmounted: Network, kib: int, code: int) -> None:
    """Not enough for Python's libraries, for the first map, for the last."""
    result = decloud_under(unmounted, "sh", "-c", 'ulimit -v "$1"; shift; exec "$@"', "sh", str(kib))
    refused(unmounted, result, code, "ulimit -v unlimited")


WITHOUT_DEVICE = """
mount -t tmpfs dev "$DIR"
for name in null zero full random urandom tty; do : > "$DIR/$name"; mount --bind "/dev/$name" "$DIR/$name"; done
ln -s /proc/self/fd "$DIR/fd"
mount --bind "$DIR" /dev
exec "$@"
"""
FORBIDDEN_DEVICE = """
mount -t tmpfs -o nodev dev "$DIR"; mknod "$DIR/fuse" c 10 229; mount --bind "$DIR/fuse" /dev/fuse; exec "$@"
"""
DEVICE_WITHOUT_DRIVER = """
mount -t tmpfs dev "$DIR"; mknod "$DIR/fuse" c 240 77; mount --bind "$DIR/fuse" /dev/fuse; exec "$@"
"""
IN_NAMESPACE = ("unshare", "--mount", "--propagation", "private", "sh", "-ec")


@pytest.mark.parametrize(
    ("wrapper", "says"),
    [
        (("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"), "CAP_SYS_ADMIN"),
        ((*IN_NAMESPACE, WITHOUT_DEVICE, "sh"), "/dev/fuse does not exist"),
        ((*IN_NAMESPACE, FORBIDDEN_DEVICE, "sh"), "/dev/fuse: Permission denied"),
        ((*IN_NAMESPACE, DEVICE_WITHOUT_DRIVER, "sh"), "/dev/fuse does not work (No such device or address)"),
    ],
    ids=["no capability", "no device", "forbidden device", "no driver"],
)
def test_fault_155_containers(unmounted: Network, wrapper: tuple[str, ...], says: str) -> None:
    network = unmounted
    directory = network.work / "dev"
    directory.mkdir(exist_ok=True)
    result = decloud_under(network, *wrapper, environment={"DIR": str(directory)})
    refused(network, result, SYSTEM, says)


def test_fault_155_the_reason_of_the_kernel_is_passed_on(unmounted: Network) -> None:
    """mount(2) itself refuses, for a reason that nobody looks for before."""
    result = decloud_under(unmounted, "strace", "-f", "-o", "/dev/null", "-e", "inject=mount:error=ENOSPC")
    refused(unmounted, result, MOUNT_FAILED, "cannot mount: ")
    assert "No space left on device" in result.err


def test_fault_155_in_a_container_that_may_mount(unmounted: Network) -> None:
    """Root of a user name space of its own."""
    network = unmounted
    script = 'shift; "$@" && cat "$0/kept" | wc -c && echo new > "$0/from inside" && umount "$0"'
    result = decloud_under(
        network,
        *("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"),
        *("sh", "-ec", script, network.mountpoint, "sh"),
    )
    assert result.code == 0, result.describe()
    assert str(MIB) in result.out.split()
    network.wait_until(lambda: not network.drivers(), 30, "the driver ends")
    network.mount()
    assert network.run("cat", network.mountpoint / "from inside").out == "new\n"


# ---- our own files in the mount -------------------------------------------------------------------------------------


def test_fault_153_our_own_files_in_the_mount(mounted: Network) -> None:
    """Refused where the driver would wait for itself; harmless where it does not."""
    network = mounted
    link = network.work / "link to the home"
    link.symlink_to(network.home)
    for home in (network.home, link):
        result = network.run(
            *(DECLOUD, "mount", network.volume, network.base, "-o", "nonempty"),
            environment={"FSDECLOUD_HOME": str(home)},
            check=False,
        )
        assert result.code, result.describe()
    # Commands, and what they start, with their directory, output and temporary files in the mount.
    inside = network.mountpoint / "inside"
    network.run("mkdir", inside)
    commands = ("sync . --wait stored > out", "status >> out", "log > log")
    script = "{ " + " && ".join(f"decloud {command}" for command in commands) + "; } 2> err; cat err >&2; wc -c < out"
    result = network.run(
        *("sh", "-c", script),
        cwd=inside,
        environment={"FSDECLOUD_HOME": str(network.home), "TMPDIR": str(inside), "HOME": str(inside)},
    )
    assert int(result.out) > 0, result.describe()
    network.umount()
    script = 'cd "$1"; shift; exec "$@" > out 2> err'
    result = decloud_under(network, "sh", "-c", script, "sh", network.mountpoint, environment={"TMPDIR": str(inside)})
    assert result.code == MOUNT_FAILED or result.code == 1, "not empty: its own output lies there"
    network.run("sh", "-c", 'rm "$1/out" "$1/err"', "sh", network.mountpoint)
    result = decloud_under(
        network, "env", "-C", network.mountpoint, environment={"TMPDIR": str(inside), "HOME": str(inside)}
    )
    assert result.code == 0, result.describe()
    assert network.digest("kept")
    network.run("rm", "-r", inside)
    network.umount()


# ---- other users ----------------------------------------------------------------------------------------------------

MATRIX = """
import errno, itertools, json, os, stat, sys
os.chdir(sys.argv[1])
os.umask(0)
OWNER, GROUP = 1000, 2000
WHO = {"owner": (1000, 1000, []), "group": (1001, 2000, []), "member": (1002, 1002, [2000]), "other": (1003, 1003, [])}
MODES = [bits << shift for shift in (6, 3, 0) for bits in (1, 3, 4, 6, 7)] + [0, 0o777, 0o077]
KINDS = MODES + [special | mode for special in (0o1000, 0o2000) for mode in MODES if mode & 0o222 and mode & 0o111]
def make():
    for mode in MODES:
        with open(f"file-{mode:o}", "wb") as file:
            file.write(b"data")
        os.chown(f"file-{mode:o}", OWNER, GROUP)
        os.chmod(f"file-{mode:o}", mode)
    for mode in KINDS:
        name = f"dir-{mode:o}"
        os.mkdir(name)
        for inner in ("theirs", "gone", "moved"):
            open(f"{name}/{inner}", "w").close()
            os.chown(f"{name}/{inner}", 1009, 1009)
        os.chown(name, OWNER, GROUP)
        os.chmod(name, mode)
def attempt(function, *args):
    try:
        result = function(*args)
    except OSError as exc:
        return errno.errorcode[exc.errno]
    if isinstance(result, int) and result > 2:
        os.close(result)
    return "ok" if isinstance(result, (int, list, type(None), os.stat_result)) else repr(result)
def ask():
    said = {}
    for mode in MODES:
        path = f"file-{mode:o}"
        said[path] = [attempt(os.open, path, flags) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)]
        said[path] += [os.access(path, os.X_OK), attempt(os.utime, path), attempt(os.setxattr, path, "user.a", b"")]
    for mode in KINDS:
        path = f"dir-{mode:o}"
        tries = [(os.listdir, path), (os.stat, path + "/theirs"), (os.chdir, path)]
        tries += [(os.unlink, path + "/gone"), (os.rename, path + "/moved", path + "/new"), (os.mkdir, path + "/made")]
        answers = []
        for function, *args in tries:
            answers.append(attempt(function, *args))
            if function is os.chdir and answers[-1] == "ok":
                os.chdir("..")
        try:
            info = os.stat(path + "/made")
            answers += [info.st_gid, oct(info.st_mode)]
        except OSError as exc:
            answers.append(errno.errorcode[exc.errno])
        said[path] = answers
    for mode in MODES:
        said[f"chmod file-{mode:o}"] = attempt(os.chmod, f"file-{mode:o}", mode)
        said[f"chown file-{mode:o}"] = attempt(os.chown, f"file-{mode:o}", -1, GROUP)
    return said
def as_user(uid, gid, groups):
    reader, writer = os.pipe()
    if not os.fork():
        os.setgroups(groups); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
        with open(writer, "w") as pipe:
            json.dump(ask(), pipe)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    os.wait()
    return json.loads(text)
said = {}
for name, who in WHO.items():
    os.mkdir(name)
    os.chdir(name)
    make()
    said[name] = as_user(*who)
    os.chdir("..")
print(json.dumps(said, sort_keys=True))
"""


@pytest.mark.parametrize("options", ["allow_other", pytest.param("allow_other,acl", marks=pytest.mark.long)])
def test_fault_147_permission_matrix(unmounted: Network, options: str) -> None:
    """Owner, group, member of the group and others, in every class of mode bits, sticky and set-group-id directories."""
    network = unmounted
    network.remount(options)
    said = []
    for place in (network.mountpoint, network.work):
        network.run("chmod", "755", place)
        network.run("mkdir", place / "matrix")
        said.append(network.run(sys.executable, "-c", MATRIX, place / "matrix").json())
        network.run("rm", "-r", place / "matrix")
    assert said[0] == said[1]
    assert sum(len(answers) for answers in said[0].values()) > 300
    assert network.status()["handler_errors"] == 0


AS_OTHER = (
    "import json, os, sys, time; os.setgroups([]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)\n"
)


def test_fault_147_without_allow_other_nobody_else_enters(mounted: Network) -> None:
    network = mounted
    network.remount("rw")
    network.run("chmod", "777", network.mountpoint)
    script = AS_OTHER + "os.listdir(sys.argv[1])"
    refusal = network.run(sys.executable, "-c", script, network.mountpoint, check=False)
    assert "PermissionError" in refusal.err


HOLDING = (
    AS_OTHER
    + """
os.chdir(sys.argv[1])
def attempt(function, *args):
    try:
        function(*args)
        return "ok"
    except OSError as exc:
        return exc.strerror
held = os.open("d/f", os.O_RDONLY)
for _ in range(3):
    os.stat("d/f"), os.access("d/f", os.R_OK), os.listdir("d"), os.read(held, 1)
print("cached", flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
print(json.dumps([attempt(os.open, "d/f", os.O_RDONLY), attempt(os.listdir, "d"), attempt(os.stat, "d/f"),
                  os.access("d/f", os.R_OK), os.pread(held, 3, 0).decode(), attempt(os.open, "e/f", os.O_RDONLY)]))
"""
)


def test_fault_148_a_permission_taken_while_it_is_cached(unmounted: Network) -> None:
    """What another user holds open stays open; everything else ends with the change, not an attribute timeout later."""
    network = unmounted
    network.remount("allow_other")
    network.run("chmod", "755", network.mountpoint)
    said = []
    for place in (network.mountpoint / "revoked", network.work / "revoked"):
        script = 'mkdir "$1" "$1/d" "$1/e"; echo data | tee "$1/d/f" > "$1/e/f"; chmod -R a+rX "$1"'
        network.run("sh", "-c", script, "sh", place)
        go, log = Path(f"{network.work}/{len(said)}.go"), network.work / f"{len(said)}.said"
        holder = network.start(sys.executable, "-c", HOLDING, place, go, log=log)
        network.wait_until(lambda log=log: "cached" in log.read_text(), 20, "it has seen everything")
        network.run("chmod", "0", place / "e" / "f")
        network.run("chmod", "700", place / "d")
        go.touch()
        assert network.wait_for_exit(holder, 20, "the other user") == 0, log.read_text()
        said.append(log.read_text().splitlines()[-1])
        network.run("rm", "-r", place)
    assert said[0] == said[1]
    assert '"Permission denied", "Permission denied", "Permission denied", false, "dat", "Permission denied"' in said[0]


# ---- without peers --------------------------------------------------------------------------------------------------


def test_fault_157_df_with_all_peers_dead(unmounted: Network) -> None:
    """Answered from what is here, and as before; after a mount that never saw a peer as well."""
    network = unmounted
    network.up()
    network.sync("stored")
    before = network.run("df", "--output=source,fstype,size,used,avail,target", network.mountpoint).out
    assert f"decloud:{network.volume}" in before
    network.umount()
    for pid in network.processes():
        if "fsdecloud.peerd" in cleanup.command_line(pid):
            network.kill(pid)
    network.mount()
    command = ("df", "--output=source,fstype,size,used,avail,target", network.mountpoint)
    assert network.run(*command).out == before
    network.run("stat", "--file-system", network.mountpoint)
    network.run("ls", "-l", network.mountpoint)
