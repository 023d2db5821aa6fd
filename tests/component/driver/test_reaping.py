"""What lost its last name is deleted within the same mount, wherever its inode is by then."""

from __future__ import annotations

import os
import stat

import trio

from fsdecloud.fs.keys import ROOT, chunk_prefix, orphan_key
from tests.power.driver_workload import CALLER, open_volume


def test_an_inode_that_left_memory_is_reaped_in_the_same_mount(tmp_path) -> None:
    """It was removed while it was open and closed again; others took its place in memory before the kernel forgot it."""

    async def main() -> None:
        async with open_volume(tmp_path / "state", tmp_path) as volume:
            core, inodes, files = volume.core, volume.core.inodes, volume.files
            before = core.files, core.bytes
            live = await core.run(volume.namespace.create, ROOT, b"gone", stat.S_IFREG | 0o600, CALLER)
            ino = live.ino
            handle = files.open(live, os.O_RDWR, CALLER)
            inodes.count_lookup(ino)
            files.write_nowait(live, 0, os.urandom(3_000_000))
            await core.run(volume.namespace.unlink, ROOT, b"gone", CALLER)
            volume.maybe_reap(ino)
            await volume.sync("durable")
            assert files.release(handle) is live
            volume.maybe_reap(ino)
            del live
            await volume.committer.request()
            for number in range(20):
                made = await core.run(volume.namespace.create, ROOT, b"%d" % number, stat.S_IFREG | 0o600, CALLER)
                inodes.count_lookup(made.ino)
            inodes.kept = 10
            with trio.fail_after(30):
                while inodes.peek(ino) is not None:
                    await volume.flush()
                    inodes.evict()
                    await trio.sleep(0.01)
                assert core.overlay.get(orphan_key(ino)) is not None
                assert (core.files, core.bytes) == (before[0] + 21, before[1] + 3_000_000)
                assert inodes.forget(ino, 1)
                volume.maybe_reap(ino)
                while (core.files, core.bytes) != (before[0] + 20, before[1]):  # noqa: ASYNC110 - the reaper tells nobody
                    await trio.sleep(0.01)
            assert core.overlay.get(orphan_key(ino)) is None
            assert not await core.run(lambda: list(core.overlay.scan_prefix(chunk_prefix(ino))))
            assert inodes.peek(ino) is None
            assert ino not in core.orphans

    trio.run(main)
