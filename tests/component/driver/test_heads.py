"""What the ledger says of a volume's head: an older one changes nothing here, another one of the same number is a fork."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "gc"))

from gcworld import KEYS, NETWORK, Crash, World, content, make_world, run, until

from fsdecloud import codec, limits
from fsdecloud.crypto.payload import seal_payload
from fsdecloud.crypto.seal import Kind, seal
from fsdecloud.driver import anchors
from fsdecloud.driver.anchors import fetch_manifest, open_anchor
from fsdecloud.driver.committer import commit_interval
from fsdecloud.driver.history import History
from fsdecloud.errors import BlockPruned, RemoteError, SealError
from fsdecloud.fs.manifest import Manifest, encode_manifest
from fsdecloud.fs.records import Operation, Record
from fsdecloud.ledger.transactions import NO_LINK, Anchor, decode_tx, sign_anchor
from fsdecloud.wire.agentapi import Holders, StoreManifest
from fsdecloud.wire.controlapi import AnchorNumber, LogLine, LogQuery


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch)


def foreign(tx: bytes, sequence: int) -> bytes:
    """Return an anchor of another device in the place of `sequence`."""
    anchor = decode_tx(tx)
    return sign_anchor(
        NETWORK,
        KEYS.ledger_seed,
        b"d" * 32,
        sequence=sequence,
        commitment=b"c" * 32,
        previous=NO_LINK if sequence == 1 else anchor.previous,
        lease_expiry=int(time.time()) + 100,
        payload=anchor.payload,
        bits=anchor.bits if hasattr(anchor, "bits") else 4,
    )


async def look(world: World) -> str:
    """Have the volume compare heads as at each mount; return why it is read-only, "" if it is not."""
    await world.volume.anchors.check_head()
    return world.volume.core.read_only


def test_fault_071_an_older_head_is_not_taken(world: World) -> None:
    """A ledger daemon that hides the latest anchors rolls nothing back, not over a restart either."""

    async def work() -> None:
        async with world.open():
            await world.write("a", content(1))
            await world.anchor()
            await world.write("a", content(2))
            await world.anchor()
            sequence = world.volume.committer.meta.sequence
            assert sequence >= 2
            hidden = [list(block) for block in world.ledger.blocks]
            world.ledger.blocks = [block for block in hidden if all(decode_tx(tx).sequence == 1 for tx in block)]
            assert await look(world) == ""
            assert world.volume.committer.meta.sequence == sequence
            assert await world.read("a") == content(2)
        async with world.open():
            assert await look(world) == ""
            assert world.volume.committer.meta.sequence == sequence
            assert await world.read("a") == content(2)
            world.ledger.blocks = hidden
            await world.write("b", content(3))
            await world.anchor()
            assert world.volume.committer.meta.sequence > sequence

    run(work)


def test_fault_072_another_head_of_the_same_number_is_a_fork(world: World) -> None:
    """Nothing is merged and nothing dropped: the volume turns read-only, says why, and has what was written here."""

    async def work() -> None:
        async with world.open():
            await world.write("a", content(1))
            await world.anchor()
            sequence = world.volume.committer.meta.sequence
            ours = world.ledger.blocks[-1][-1]
            world.ledger.blocks[-1] = [foreign(ours, sequence)]
            assert "another device wrote this volume" in await look(world)
            assert await world.read("a") == content(1)
        async with world.open():  # what is asked at each mount comes to the same

            async def is_told() -> bool:
                return bool(world.volume.core.read_only)

            await until(is_told)
            assert await world.read("a") == content(1)

    run(work)


def test_fault_070_an_old_manifest_or_another_kind_of_entry_is_not_taken_for_the_manifest(world: World) -> None:
    """A manifest of another anchor, and a chunk of the same bytes: both sealed by us, neither is what the anchor names."""

    async def work() -> None:
        async with world.open():
            for i in range(2):
                await world.write("a", content(i))
                await world.anchor()
            anchors = [decode_tx(tx) for block in world.ledger.blocks for tx in block]
            first, last = anchors[0], anchors[-1]
            assert first.sequence < last.sequence
            volume = world.volume

            async def manifest_of(anchor: Anchor) -> Manifest:
                return await fetch_manifest(KEYS, anchor, volume.agent, volume.read_fetched)

            assert (await manifest_of(last)).sequence == last.sequence
            old = msgspec.structs.replace(last, payload=first.payload)
            with pytest.raises(RemoteError, match="not what the anchor commits to"):
                await manifest_of(old)
            payload = open_anchor(KEYS, last)
            plain = encode_manifest(await manifest_of(last))
            ref, sealed = seal(KEYS.seal_secret, Kind.CHUNK, plain)
            holders = await volume.agent.call("store_manifest", StoreManifest(sealed), Holders)
            other = msgspec.structs.replace(payload, manifest=ref, length=len(sealed), holders=holders.peers[:3])
            sealed_payload = seal_payload(KEYS.ledger_payload_key, bytes(12), codec.encode(other))
            with pytest.raises(SealError, match="manifest"):
                await manifest_of(msgspec.structs.replace(last, payload=sealed_payload))

    run(work)


def test_what_an_anchor_names_counts_as_anchored_before_it_has_all_its_copies(world: World) -> None:
    async def work() -> None:
        async with world.open():
            next(iter(world.transport.peers.values())).is_down = True
            await world.write("a", content(1, 3_000_000))
            await world.anchor()
            assert world.volume.anchors.anchored_bytes >= 3_000_000
            assert world.volume.entries.stored_bytes < 3_000_000

    run(work)


async def read_log(history: History) -> list[LogLine]:
    """Return all records."""
    lines: list[LogLine] = []
    cursor = 0
    while cursor >= 0:
        page = await history.page(LogQuery(cursor))
        lines += page.lines
        cursor = page.next_batch
    return lines


@contextmanager
def suppress_crash() -> Iterator[None]:
    """The mount inside ends as by a kill."""
    try:
        yield
    except* Crash:
        pass


def test_fault_114_more_batches_than_a_manifest_may_have(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger takes nothing for long: the records come with several anchors, each of which can be read."""
    monkeypatch.setattr(anchors, "BATCHES_MAX", 3)

    async def work() -> None:
        async with world.open():
            await world.write("a", content(0))
            await world.anchor()
            first = world.volume.committer.meta.sequence
            world.ledger.is_mining = False
            for i in range(11):
                await world.write("a", content(i))
                world.volume.core.recorder.record(Operation.WRITE, None, 2, b"/%d" % i)
                await world.volume.committer.request()
            assert len(world.volume.committer.latest.batches) >= 11
            world.ledger.is_mining = True
            world.ledger.mine()
            await world.anchor()
            meta = world.volume.committer.meta
            assert not meta.batches
            history = History(world.volume)
            sizes = [
                len((await history.contents(AnchorNumber(n))).batches) for n in range(first + 1, meta.sequence + 1)
            ]
            assert max(sizes) == 3
            assert sum(sizes) >= 11
            lines = await read_log(history)
            assert [line.sequence for line in lines] == sorted(line.sequence for line in lines)
            records = [codec.decode(line.record, Record) for line in lines]
            assert [r.path for r in records if r.operation == Operation.WRITE] == [b"/%d" % i for i in range(11)]
            assert await world.read("a") == content(10)

    run(work)


def test_fault_114_days_without_a_ledger(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount works, over a crash and a mount that finds no daemon; `status` says so; the records come in order when it is
    back, with few batches however long that took."""
    monkeypatch.setattr(anchors, "OVERDUE", 0.0)
    paths = [b"/%d" % i for i in range(9)]

    async def change(numbers: range) -> None:
        for i in numbers:
            await world.write("a", content(i))
            world.volume.core.recorder.record(Operation.WRITE, None, 2, paths[i])
            await world.volume.committer.request()

    async def warnings() -> str:
        return "; ".join((await world.volume.status()).warnings)

    async def no_warning() -> bool:
        return "no anchor" not in await warnings()

    async def work() -> None:
        async with world.open():
            await world.write("a", content(0))
            await world.anchor()
            await until(no_warning)
        world.ledger.is_mining = False
        with suppress_crash():
            async with world.open(clean=False):
                await change(range(3))
                assert re.search(
                    r"the ledger has taken no anchor for \d+ s: \d+ records in \d+ batches", await warnings()
                )
        with suppress_crash():
            async with world.open(clean=False, ledger=False):
                assert await world.read("a") == content(2)
                await change(range(3, 6))
                assert "no anchor" in await warnings()
        async with world.open():
            assert await world.read("a") == content(5)
            await change(range(6, 9))
            world.ledger.is_mining = True
            world.ledger.mine()
            await world.anchor()
            await until(no_warning)
            assert not world.volume.committer.latest.batches
            lines = await read_log(History(world.volume))
            records = [codec.decode(line.record, Record) for line in lines]
            assert [r.path for r in records if r.operation == Operation.WRITE] == paths

    run(work)


def test_the_log_goes_on_where_the_ledger_daemon_pruned(world: World) -> None:
    """What the ledger does not tell any more the volume itself knows, but for the places."""

    async def work() -> None:
        async with world.open():
            for i in range(4):
                await world.write("a", content(i))
                world.volume.core.recorder.record(Operation.WRITE, None, 2, b"/%d" % i)
                await world.anchor()
            before = await read_log(History(world.volume))
        last = max(line.sequence for line in before)
        world.ledger.pruned_below = last
        async with world.open():
            lines = (await read_log(History(world.volume)))[: len(before)]
            assert [line.record for line in lines] == [line.record for line in before]
            assert [line.sequence for line in lines if line.sequence] == [
                line.sequence for line in before if line.sequence
            ]
            assert {line.height for line in lines if 0 < line.sequence < last} == {-1}
            assert all(line == old for line, old in zip(lines, before, strict=True) if line.sequence == last)
            with pytest.raises(BlockPruned):
                await History(world.volume).contents(AnchorNumber(1))

    run(work)


def test_fault_114_commits_come_more_rarely_while_many_batches_wait() -> None:
    assert commit_interval(0) == commit_interval(1024) == limits.COMMIT_INTERVAL
    assert commit_interval(10**9) == 300
    elapsed, batches = 0.0, 0
    while elapsed < 7 * 86400:
        elapsed += commit_interval(batches)
        batches += 1
    assert batches < 12_000
