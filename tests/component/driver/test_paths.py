"""Records name what was done by its path, also long after the inodes on the way were dropped from memory."""

from __future__ import annotations

import stat
from itertools import count

import trio

from fsdecloud.fs.keys import ROOT
from tests.power.driver_workload import CALLER, open_volume


def test_a_path_is_known_while_the_kernel_knows_the_inode(tmp_path) -> None:
    """The kernel does not ask again for what it has not forgotten, however much was looked at here since."""

    async def main() -> None:
        with trio.fail_after(30):
            await work()

    async def work() -> None:
        async with open_volume(tmp_path / "state", tmp_path) as volume:
            core, inodes, namespace = volume.core, volume.core.inodes, volume.namespace
            parent, numbers = ROOT, []
            for name in (b"a", b"b", b"c"):
                made = await core.run(namespace.mkdir, parent, name, 0o700, CALLER)
                parent = made.ino
                numbers.append(made.ino)
            file = (await core.run(namespace.create, parent, b"file", stat.S_IFREG | 0o600, CALLER)).ino
            known = [*numbers, file]
            for ino in known:
                inodes.count_lookup(ino)
            await volume.committer.request()

            elsewhere = (await core.run(namespace.mkdir, ROOT, b"elsewhere", 0o700, CALLER)).ino
            fresh = count()
            inodes.kept = 10

            async def drop_all() -> None:
                """Look at others until none of these is in memory."""
                while any(inodes.peek(ino) for ino in (ROOT, *known)):
                    for _ in range(20):
                        name = b"other %d" % next(fresh)
                        await core.run(namespace.create, elsewhere, name, stat.S_IFREG | 0o600, CALLER)
                    await volume.flush()
                    await volume.committer.request()
                    inodes.evict()

            await drop_all()
            live = await core.run(inodes.get, file)
            assert core.path_of(live) == b"/a/b/c/file"
            assert core.child_path(await core.run(inodes.get, numbers[1]), b"x") == b"/a/b/x"
            await core.run(namespace.rename, numbers[0], b"b", ROOT, b"moved", 0, CALLER)
            assert core.path_of(live) == b"/moved/c/file"
            await volume.committer.request()
            await drop_all()
            assert core.path_of(await core.run(inodes.get, file)) == b"/moved/c/file"
            # Whoever the kernel has forgotten is looked up again, by name.
            await drop_all()
            for ino in known:
                assert inodes.forget(ino, 1)
            assert not inodes._places
            assert core.path_of(await core.run(inodes.get, file)) == b"/#%d" % file

    trio.run(main)
