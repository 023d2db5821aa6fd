"""Two directories that must never differ: one in the mount, one on a plain ext4, each with a process that works in it."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.cluster.harness import Hung, Network

DEADLINE: Final = 60.0
_OPTIONS: Final = ("allow_other", "suid", "dev")


class Pair:
    """The mount and the plain disk."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.plain = network.mount_ext4("ext4", 2 << 30)
        self._count = 0
        self._name = ""
        self._actors: dict[Path, subprocess.Popen[bytes]] = {}
        self.history: list[Any] = []
        """What the current example did."""
        self.failures: list[str] = []
        self.steps = 0
        self.refused = 0
        self.remounts = 0
        self.kills = 0
        network.up()
        network.remount(*_OPTIONS)
        network.run("chmod", "755", network.mountpoint, self.plain)

    # ---- one example ------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Start with an empty directory of its own on both."""
        self._count += 1
        self._name = f"example-{self._count}"
        self.history = []
        for root in self._roots():
            self._ask(root, ["begin", str(root / self._name)])

    def end(self) -> None:
        """Leave the directory, and remove it on both."""
        for root in self._roots():
            self._ask(root, ["leave"])
            self.network.run("rm", "-rf", root / self._name)

    def step(self, *request: Any) -> None:
        """Do one operation on both and compare everything."""
        self.steps += 1
        self._checked(list(request), lambda: self._compare(list(request)))

    # ---- what happens to a mount ----------------------------------------------------------------------------------------
    def disturb(self) -> None:
        """Do one of these, in turn from example to example."""
        (self.remount, self.drop_caches, self.kill, self.drop_caches, self.drop_caches)[self._count % 5]()

    def remount(self) -> None:
        """Unmount cleanly and mount again: everything is as it was."""
        self.remounts += 1
        self._checked("remount", self._remount)

    def kill(self) -> None:
        """Make everything D1, kill driver and agent, mount again: everything is as it was."""
        self.kills += 1
        self._checked("kill", self._kill)

    def drop_caches(self) -> None:
        """Have the kernel forget pages, names and inodes of both."""
        self._checked("drop caches", self._drop_caches)

    def _remount(self) -> None:
        self._leave()  # closing a file may move its access time
        before = self._numbers("stored")
        self._leave()
        self.network.remount(*_OPTIONS)
        self._check_numbers(before, "inode", "blocks", "atime", "mtime", "ctime")
        self._compare(["tree"])

    def _kill(self) -> None:
        self._leave()
        before = self._numbers("durable")
        self._leave()
        self.network.kill_driver()
        self.network.decloud("mount", self.network.volume, self.network.mountpoint, "-o", ",".join(_OPTIONS))
        self._check_numbers(before, "inode", "mtime", "ctime")  # a crash may undo what reading moved (mount.decloud(8))
        self._compare(["tree"])

    def _drop_caches(self) -> None:
        before = self._numbers("durable")
        self.network.run("sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches")
        self._check_numbers(before, "inode", "atime", "mtime", "ctime")
        self._compare(["tree"])

    def _numbers(self, level: str) -> Any:
        """Return the numbers of each path once all that was collected has reached a level; below "stored" the blocks are an
        estimate, as on ext4 until they have a place."""
        self.network.run("sync", "-f", self.network.mountpoint)
        self.network.decloud("sync", self.network.mountpoint, "--wait", level)
        return self._ask(self.network.mountpoint, ["numbers", None])

    def _check_numbers(self, before: Any, *names: str) -> None:
        """Fail unless the mount says the same as before of each path."""
        after = self._ask(self.network.mountpoint, ["numbers", list(before)])
        changed = {
            path: {name: (old[name], after[path][name]) for name in names if old[name] != after[path][name]}
            for path, old in before.items()
        }
        assert not any(changed.values()), {path: found for path, found in changed.items() if found}

    def _leave(self) -> None:
        for actor in self._actors.values():
            self._end(actor)
        self._actors = {}

    def _compare(self, request: list[Any]) -> None:
        mount, plain = (self._ask(root, request) for root in self._roots())
        self.refused += isinstance(plain, list) and isinstance(plain[0], str) and plain[0].startswith("E")
        assert mount == plain, f"{request}\n  mount: {_difference(mount, plain)}\n  ext4:  {_difference(plain, mount)}"

    def _checked(self, what: Any, function: Callable[[], None]) -> None:
        """Call the function; note how it failed with all that led to it, because Hypothesis only shows what repeats."""
        self.history.append(what)
        try:
            function()
        except Exception as exc:  # whatever it is, the history that led there is what helps
            self.failures.append(f"{exc}\nafter {json.dumps(self.history)}")
            raise

    # ---- the processes ---------------------------------------------------------------------------------------------------
    def _roots(self) -> tuple[Path, Path]:
        return self.network.mountpoint, self.plain

    def _ask(self, root: Path, request: Any) -> Any:
        actor = self._actors.get(root)
        if actor is None:
            directory = root / self._name if request[0] != "begin" else root
            actor = self._actors[root] = subprocess.Popen(
                # The child itself goes into the directory: the parent never touches the mount.
                [sys.executable, "-m", "tests.differential.actor", str(directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                env=self.network.environment,
                cwd=self.network.work,
            )
        assert actor.stdin is not None
        assert actor.stdout is not None
        actor.stdin.write(json.dumps(request).encode() + b"\n")
        actor.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(actor.stdout, selectors.EVENT_READ)
            if not selector.select(DEADLINE):
                raise Hung(f"{request} has no answer at {root}{self.network.logs()}")
        line = actor.stdout.readline()
        if not line:
            del self._actors[root]
            self._end(actor)
        assert line, f"{request}: the process at {root} ended with {actor.wait()}{self.network.logs()}"
        return json.loads(line)

    def _end(self, actor: subprocess.Popen[bytes]) -> None:
        assert actor.stdin is not None
        assert actor.stdout is not None
        actor.stdin.close()
        actor.wait(DEADLINE)
        actor.stdout.close()

    def close(self) -> None:
        """End the processes and detach the plain disk."""
        self._leave()
        self.network.run("umount", self.plain)


def _difference(one: Any, other: Any) -> Any:
    """Return what is in one and not the same in the other."""
    if isinstance(one, list) and len(one) == 2 and isinstance(one[1], dict):
        return [one[0], _difference(one[1], other[1])]
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: value for key, value in one.items() if other.get(key) != value}
    return one
