"""A damaged chain made anew: what is whole is kept, what is missing comes from others, and no crash in between loses more."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from fsdecloud.cli.ledger import rebuild_command
from fsdecloud.config import HOME_VARIABLE, find_paths
from fsdecloud.crypto import sign
from fsdecloud.errors import StoreError, StoreLocked, UsageError
from fsdecloud.ledger import chain, verify
from fsdecloud.ledgerd import rebuild
from fsdecloud.ledgerd.rebuild import Rebuilt, finish_rebuild, rebuild_chain
from fsdecloud.ledgerd.setup import chain_path, init_ledger
from fsdecloud.store.chain import open_chain
from fsdecloud.store.lockfile import acquire_lock

sys.path.insert(0, str(Path(__file__).parent))
from nodes import Node, connected, until

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import Maker

VOLUME = bytes([2]) * 32
HEIGHT = 12


@pytest.fixture
def home(tmp_path):
    """A machine with a chain of HEIGHT blocks, and who made it."""
    make = Maker()
    paths = find_paths({HOME_VARIABLE: str(tmp_path / "home")})
    init_ledger(paths, make.document)
    with open_chain(chain_path(paths), make.document) as store:
        for number in range(1, HEIGHT + 1):
            checked = make.add([make.anchor(VOLUME, number)])
            switch = chain.Switch(store.tip(), (), (checked.point,))
            store.add(checked, make.blocks[checked.point.id], switch)
    return paths, make


def damage(paths, make, height):
    """Flip a bit in every copy of a block's end."""
    file = chain_path(paths) / "data.mdb"
    data = bytearray(file.read_bytes())
    piece = make.chain()[height - 1][1][-40:]
    position = data.find(piece)
    assert position >= 0
    while position >= 0:
        data[position + 20] ^= 1
        position = data.find(piece, position + 40)
    file.write_bytes(data)


def check(paths, make, height):
    with open_chain(chain_path(paths), make.document) as store:
        assert store.tip().height == height
        assert len(list(verify.verify_chain(make.document, store.stored_blocks()))) == height
        assert len(store.anchors(sign.public_key(VOLUME), 1, 256)) == height


def test_fault_115_a_damaged_chain_keeps_what_is_whole_and_gets_the_rest_from_others(home, tmp_path):
    paths, make = home
    damage(paths, make, 5)
    seen = []
    found = rebuild_chain(paths, progress=lambda done, total: seen.append((done, total)))
    assert (found.kept, found.before) == (4, HEIGHT)
    assert found.reason.startswith("block 5: BodyMismatch")
    assert seen == [(number, HEIGHT) for number in range(1, 5)]
    check(paths, make, 4)
    assert {path.name for path in paths.ledger_state.iterdir()} & {"chain.new", "chain.old"} == set()

    async def sync():
        with (
            trio.fail_after(40),
            open_chain(chain_path(paths), make.document) as store,
            open_chain(tmp_path / "other", make.document, map_size=1 << 28) as full,
        ):
            ours, theirs = Node(store, 1), Node(full, 2)
            await theirs.keeper.accept_chain([data for _, data in make.chain()])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.hub.sync.run)
                async with connected(ours, theirs):
                    await until(ours, lambda: ours.keeper.tip == make.tip)
                nursery.cancel_scope.cancel()

    trio.run(sync)
    check(paths, make, HEIGHT)


def test_a_whole_chain_stays_as_it_is(home):
    paths, make = home
    assert rebuild_chain(paths) == Rebuilt(HEIGHT, HEIGHT, "")
    check(paths, make, HEIGHT)


def test_fault_115_a_chain_that_cannot_be_opened_is_begun_anew(home):
    paths, make = home
    with open(chain_path(paths) / "data.mdb", "r+b") as data:
        data.truncate(5000)
    found = rebuild_chain(paths)
    assert (found.kept, found.before) == (0, None)
    assert "damaged" in found.reason
    check(paths, make, 0)


def test_nothing_is_taken_with_discard(home):
    paths, make = home
    assert rebuild_chain(paths, discard=True).kept == 0
    check(paths, make, 0)


def test_not_while_the_daemon_runs_nor_without_a_network(home, tmp_path):
    paths, make = home
    with acquire_lock(paths.lock_file("ledger")), pytest.raises(StoreLocked):
        rebuild_chain(paths)
    check(paths, make, HEIGHT)
    with pytest.raises(UsageError, match="no ledger network"):
        rebuild_chain(find_paths({HOME_VARIABLE: str(tmp_path / "nobody")}))


@contextmanager
def failing(monkeypatch, name, number):
    """Let the n-th call of os.NAME below the ledger's directory fail."""
    real = getattr(os, name)
    calls = [0]

    def fail(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(rebuild.os, name, fail)
        yield


@pytest.mark.parametrize("number", [1, 2])
def test_a_crash_between_the_renames_loses_nothing(home, monkeypatch, number):
    paths, make = home
    damage(paths, make, 7)
    with failing(monkeypatch, "rename", number), pytest.raises(StoreError, match="No space"):
        rebuild_chain(paths)
    finish_rebuild(paths)  # as the daemon does when it starts
    if number == 1:
        assert rebuild_chain(paths).kept == 6
    check(paths, make, 6)
    assert rebuild_chain(paths) == Rebuilt(6, 6, "")
    assert {path.name for path in paths.ledger_state.iterdir()} & {"chain.new", "chain.old"} == set()


def test_a_crash_while_blocks_are_copied_loses_nothing(home, monkeypatch):
    paths, make = home

    def crash(done, _total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild_chain(paths, progress=crash)
    finish_rebuild(paths)
    check(paths, make, HEIGHT)


def test_the_command_says_what_it_kept_and_why_not_more(home, tmp_path):
    paths, make = home
    environment = {HOME_VARIABLE: str(tmp_path / "home")}
    damage(paths, make, 3)
    result = CliRunner().invoke(rebuild_command, [], env=environment)
    assert result.exit_code == 0, result.output
    assert f"2 blocks are kept of {HEIGHT}" in result.output
    assert "not more, because: block 3: BodyMismatch" in result.output
    assert "comes from other daemons" in result.output
    result = CliRunner().invoke(rebuild_command, ["--json"], env=environment)
    assert json.loads(result.output) == {"kept": 2, "before": 2, "reason": None}
    with acquire_lock(paths.lock_file("ledger")):
        result = CliRunner().invoke(rebuild_command, [], env=environment)
    assert "already running" in str(result.exception)
    check(paths, make, 2)
