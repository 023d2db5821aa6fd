"""`mount -t decloud`, fstab and umount(8), through the helpers that `install-system` places.

In a mount namespace of its own, with the helpers in an overlay over /usr/sbin, so that the machine stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.harness import Network, Result

PROLOGUE = """
set -eu
mkdir -p "$WORK/overlay"
mount -t tmpfs tmpfs "$WORK/overlay"
mkdir "$WORK/overlay/upper" "$WORK/overlay/work"
mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$WORK/overlay/upper,workdir=$WORK/overlay/work" /usr/sbin
cp -P "$WORK/installed/sbin/"* /usr/sbin/
mkdir -p "$DIR"
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A network whose volume holds one file and is not mounted, and the helpers below work/installed."""
    with Network(peers=3) as fresh:
        fresh.up()
        fresh.worker("write_and_sync", fresh.mountpoint / "file", "100000", "helper")
        fresh.sync("anchored")
        fresh.umount()
        fresh.decloud("install-system", "--prefix", fresh.work / "installed")
        yield fresh


def helper(network: Network, script: str) -> Result:
    """Run a shell script with the helpers in place; $DIR is a directory, $WORK one for files."""
    environment = {"FSDECLOUD_HOME": str(network.home), "WORK": str(network.work), "DIR": str(network.work / "mounted")}
    return network.run(
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        PROLOGUE + script,
        environment=environment,
        check=False,
    )


def test_mount_and_umount(network: Network) -> None:
    done = helper(
        network,
        """
        mount -t decloud cloud "$DIR" -o ro,_netdev
        findmnt --noheadings --output SOURCE,FSTYPE,OPTIONS "$DIR"
        ls "$DIR"
        touch "$DIR/new" 2>&1 || true
        umount "$DIR"
        mount -t fuse.decloud decloud:cloud "$DIR"
        findmnt --noheadings --output SOURCE,FSTYPE "$DIR"
        touch "$DIR/new"
        umount.decloud "$DIR" -v
        decloud status || true
        """,
    )
    assert done.code == 0, done.describe()
    lines = done.out.splitlines()
    assert lines[0].split()[:2] == ["cloud", "fuse.decloud"]
    assert lines[0].split()[2].startswith("ro,")
    assert lines[1] == "file"
    assert "Read-only file system" in lines[2]
    assert lines[3].split() == ["decloud:cloud", "fuse.decloud"]
    assert lines[4].startswith(f"{network.work}/mounted is unmounted")
    assert lines[-1] == "no volume is mounted"


def test_137_fstab(network: Network) -> None:
    done = helper(
        network,
        """
        cat > "$WORK/fstab" <<END
decloud:cloud  $DIR  decloud  _netdev,nofail,x-systemd.automount,x-systemd.idle-timeout=10min,cache_size=1G  0 0
END
        findmnt --verify --fstab -F "$WORK/fstab" > "$WORK/verify" 2>&1 || cat "$WORK/verify"
        mount -fa -T "$WORK/fstab"
        findmnt "$DIR" || echo fake mounts nothing
        mount -a -T "$WORK/fstab"
        mount -av -T "$WORK/fstab"
        findmnt --noheadings --output SOURCE "$DIR"
        umount "$DIR"
        """,
    )
    assert done.code == 0, done.describe()
    lines = done.out.splitlines()
    assert lines[0] == "fake mounts nothing"
    assert "already mounted" in lines[1]
    assert lines[2:] == ["decloud:cloud"], "mounted once, under the name that fstab has"


def test_137_fstab_of_snapshots(network: Network) -> None:
    """However the source is written: `mount -a` mounts it once, and finds nothing wrong when run again."""
    done = helper(
        network,
        """
        mkdir -p "$DIR-2" "$DIR-3"
        cat > "$WORK/fstab" <<END
cloud@latest          $DIR    decloud  nofail                0 0
decloud:cloud         $DIR-2  decloud  nofail,snapshot=1     0 0
cloud@2199-01-01T18:30  $DIR-3  decloud  nofail              0 0
END
        mount -a -T "$WORK/fstab"
        mount -a -T "$WORK/fstab"
        for place in "$DIR" "$DIR-2" "$DIR-3"; do
            findmnt --noheadings --output SOURCE "$place"
        done
        ls "$DIR" "$DIR-2" > "$WORK/listed"
        mount -t decloud cloud -o snapshot=1 "$DIR-3" || echo $?
        umount "$DIR" "$DIR-2" "$DIR-3"
        """,
    )
    assert done.code == 0, done.describe()
    assert done.out.splitlines() == ["cloud@latest", "decloud:cloud@1", "decloud:cloud@2199-01-01T18.30", "32"]


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ('mount -t decloud nosuch "$DIR"', 1, "there is no volume nosuch"),
        ('mount -t decloud cloud "$DIR" -o bogus', 1, "unknown mount option 'bogus'"),
        ('mount -t decloud cloud "$DIR" -o password=hunter2', 1, "every process"),
        ('mount.decloud cloud "$WORK/missing"', 1, "does not exist"),
        ('mount.decloud cloud "$DIR" -x', 1, "-x"),
        ('umount.decloud "$DIR"', 1, "is not the mount point of a volume"),
        ('mount.decloud -s cloud "$DIR" -o bogus -f -v', 0, "ignored unknown options: bogus"),
        ('env -i "$(command -v mount.decloud)" nosuch "$DIR" -f', 1, "there is no volume nosuch"),
    ],
)
def test_159_exit_codes_of_the_helpers(network: Network, command: str, code: int, says: str) -> None:
    done = helper(network, command)
    assert done.code == code, done.describe()
    assert says in done.err, done.describe()
    assert len(done.err.strip().splitlines()) == 1, done.describe()
    assert "hunter2" not in done.err
