"""The agent says which entries the peers that answer cannot give: those that a fetch does not get, and no others."""

import os
import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, open_driver, open_ledger, run, until

from fsdecloud.agent import fetch, stack
from fsdecloud.errors import MalformedError, RemoteError
from fsdecloud.swarm.repair import Policy
from fsdecloud.types import EntryId
from fsdecloud.wire.agentapi import KNOWN_MAX, EntryNames, ReachQuery


@pytest.fixture(autouse=True)
def _lazy_and_forgetful(monkeypatch):
    """Nothing is repaired meanwhile, and no pack stays in memory."""
    monkeypatch.setattr(stack, "POLICY", Policy(urgent_grace=3600.0, grace=3600.0))
    monkeypatch.setattr(fetch, "PACKS_KEPT", 0)


async def ask(driver, entries, *, probe=True):
    answer = await driver.call("unreachable", ReachQuery(tuple(entries), probe), EntryNames)
    assert len(set(answer.entries)) == len(answer.entries)
    return set(answer.entries)


async def fails(driver, entries):
    """Return which entries a fetch does not get."""
    found = set()
    for entry in entries:
        try:
            await driver.fetch(entry)
        except RemoteError:
            found.add(entry)
    return found


async def store(driver, sizes, redundancy_n):
    entries = [driver.stage(os.urandom(size)) for size in sizes]
    await driver.store(entries)
    await driver.wait_stored(entries, redundancy_n)
    return entries


@pytest.mark.parametrize("repair", [True, False], ids=["repairs", "read-only"])
def test_fault_061_what_is_unreachable_is_what_a_fetch_does_not_get(tmp_path, repair):
    """Of ten peers, each blob is with four, any two of which give it; peers die one after another, and return."""

    async def work():
        net = FakeTransport(10)
        options = {"redundancy": "2/4", "repair": repair}
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, **options) as driver:
            await driver.wait_hosts(10)
            entries = []
            for _ in range(6):  # packs, each with several entries, and blobs of their own
                entries += await store(driver, [40, 3000, 5000, 300_000], 4)
            nowhere = EntryId(os.urandom(32))
            assert await ask(driver, [*entries, nowhere]) == {nowhere}
            seen = set()
            for peer in net.all()[:8]:
                peer.is_down = True
                lost = await ask(driver, entries)
                assert lost == await fails(driver, entries)
                seen.add(len(lost))
            assert len(seen) > 2, "some were lost early, some late"
            assert len(lost) > 0
            assert await ask(driver, entries, probe=False) == lost
            for peer in net.all():
                peer.is_down = False
            assert await ask(driver, entries) == set()

    run(work, seconds=60)


def test_fault_061_a_pack_in_memory_needs_no_peer(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PACKS_KEPT", 1 << 20)

    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
            await driver.wait_hosts(6)
            kept = await store(driver, [100, 200], 6)
            others = await store(driver, [300, 400], 6)
            await driver.fetch(kept[0])
            for peer in net.all():
                peer.is_down = True
            assert await ask(driver, kept + others) == set(others) == await fails(driver, kept + others)

    run(work)


def test_fault_061_lost_shards_count_as_unreachable(tmp_path):
    """Peers that answer, and lost their stores."""

    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
            await driver.wait_hosts(6)
            entries = await store(driver, [300_000], 6)
            for peer in net.all():
                peer.shards.clear()

            async def is_known():
                await fails(driver, entries)
                return await ask(driver, entries) == set(entries)

            await until(is_known)

    run(work, seconds=60)


def test_a_question_has_a_limit(tmp_path):
    async def work():
        net = FakeTransport(3)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            with pytest.raises(MalformedError):
                await ask(driver, [EntryId(bytes(32))] * (KNOWN_MAX + 1))
            await trio.lowlevel.checkpoint()

    run(work)
