"""A tree node that is damaged on this disk: what lies under it is lost until a peer has it, and nothing else is."""

from __future__ import annotations

import errno
from bisect import bisect_right

import pytest

from fsdecloud.driver.inodes import LiveInode
from fsdecloud.errors import NotEnoughPeers, RemoteError
from fsdecloud.fs.keys import inode_key
from fsdecloud.fuse.errnos import errno_of
from fsdecloud.tree.node import Inner
from fsdecloud.types import EntryId, Ref
from tests.component.driver.test_fsck_damage import flip

FILES = 600


class NoPeer:
    """Says at once that no peer is there."""

    async def call(self, _method, _params, _result, *, timeout):
        raise NotEnoughPeers("no peer")


def leaf_of(driver, key: bytes) -> EntryId:
    """Return the id of the leaf that a key lies in."""
    ref = driver.core.overlay.root
    while isinstance(node := driver.nodes.get(ref), Inner):
        ref = node.refs[max(0, bisect_right(node.keys, key) - 1)]
    return Ref.from_bytes(ref).id


def test_fault_019_a_damaged_node_costs_only_what_is_under_it(run_driver) -> None:
    async def test(driver) -> None:
        files: list[LiveInode] = [driver.new_file() for _ in range(FILES)]
        await driver.journal.flush()  # else what the commit makes durable is in the journal as well
        await driver.committer.commit()
        victim = files[FILES // 2].ino
        leaf = leaf_of(driver, inode_key(victim))
        place = driver.entries.staged[leaf]
        under = {file.ino for file in files if leaf_of(driver, inode_key(file.ino)) == leaf}
        assert victim in under
        assert len(under) < FILES // 4, "proved nothing: the tree is too small"
        after = await driver.crashed()
        after.entries._agent = NoPeer()
        flip(after.staged.path(place.segment), place.offset + place.length // 2)
        lost, errors = set(), set()
        for file in files:
            try:
                live = await after.core.run(after.core.inodes.get, file.ino)
                assert live.ino == file.ino
            except RemoteError as exc:
                errors.add(errno_of(exc))
                lost.add(file.ino)
        assert (lost, errors) == (under, {errno.EIO})
        assert after.entries.integrity_errors > 0
        assert not after.core.failure
        # Whatever needs no damaged node goes on, and so does the victim once a peer has its node.
        made = after.new_file()
        await after.fsync(made)
        with pytest.raises(RemoteError):
            await after.core.run(after.core.inodes.get, victim)
        flip(after.staged.path(place.segment), place.offset + place.length // 2)
        live = await after.core.run(after.core.inodes.get, victim)
        assert live.ino == victim
        after.close()

    run_driver(test)
