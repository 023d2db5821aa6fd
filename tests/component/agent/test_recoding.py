"""The redundancy of a volume changes: what is stored is coded anew behind its readers, whatever happens on the way."""

import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, open_driver, open_ledger, run, until

from fsdecloud import codec
from fsdecloud.agent import (
    arranging,
    auditor,
    garbage,
    hosts,
    ledgerlink,
    peers,
    recoding,
    repair,
    stack,
    upload,
)
from fsdecloud.agent.garbage import Condemned
from fsdecloud.agent.journal import CONDEMNED, META, ROWS, open_journal
from fsdecloud.agent.moving import Mover
from fsdecloud.agent.rows import BLOB_PREFIX, decode_blob_row
from fsdecloud.swarm.repair import Policy
from fsdecloud.wire import agentapi

CALM = Policy(audit_period=1e6)


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr(stack, "POLICY", CALM)
    monkeypatch.setattr(repair, "GATHER", 0.02)
    monkeypatch.setattr(repair, "RETRY", 0.2)
    monkeypatch.setattr(auditor, "PULSE", 0.1)
    monkeypatch.setattr(peers, "PROBE_URGENT", 0.05)
    monkeypatch.setattr(peers, "PROBE_IDLE", 0.1)
    monkeypatch.setattr(hosts, "SETTLE", 0.1)
    monkeypatch.setattr(hosts, "JOIN_WINDOW", 0.05)
    monkeypatch.setattr(hosts, "RECRUIT_FIRST", 0.05)
    monkeypatch.setattr(hosts, "RECRUIT_INTERVAL", 0.2)
    monkeypatch.setattr(ledgerlink, "REGISTRY_INTERVAL", 0.0)
    monkeypatch.setattr(upload, "PACK_DELAY", 0.05)
    monkeypatch.setattr(arranging, "GATHER", 0.02)
    monkeypatch.setattr(arranging, "RETRY", 0.2)
    monkeypatch.setattr(arranging, "REPAIR_PAUSE", 0.01)
    monkeypatch.setattr(arranging, "ROOM_PAUSE", 0.05)
    monkeypatch.setattr(arranging, "REPORT_INTERVAL", 0.2)
    monkeypatch.setattr(recoding, "WATCH", 0.05)
    monkeypatch.setattr(recoding, "STEADY", 0.4)


def open_writing(path, net, **changes):
    return open_driver(path, net, repair=True, **changes)


async def set_redundancy(driver, text):
    await driver.call("redundancy", agentapi.WantedRedundancy(text), agentapi.Empty)


async def store_some(driver, hosts_count, n, count=6):
    await driver.wait_hosts(hosts_count)
    data = [os.urandom(300_000 + i) for i in range(count)] + [os.urandom(3000), os.urandom(40)]
    entries = [driver.stage(item) for item in data]
    await driver.store(entries)
    await driver.wait_stored(entries, n)
    return dict(zip(entries, data, strict=True))


async def recoding_of(driver):
    return (await driver.status()).repair.recoding


async def is_done(driver, k, n):
    found = await recoding_of(driver)
    return found.is_counted and (found.k, found.n, found.blobs) == (k, n, 0)


async def check_all(driver, stored):
    for entry, item in stored.items():
        assert await driver.fetch(entry) == item


def rows_of(path):
    """Return the rows that wait for a fold, by blob; the agent is not running."""
    journal = open_journal(path / "agent" / "journal", b"V" * 32)
    try:
        assert journal.get(META, b"recoding") is None
        return {key[1:]: decode_blob_row(value) for key, value in journal.items(ROWS) if key[:1] == BLOB_PREFIX}
    finally:
        journal.close()


def left_behind(path):
    """Return what is noted as left behind: (shard, peer); the agent is not running."""
    journal = open_journal(path / "agent" / "journal", b"V" * 32)
    try:
        records = [codec.decode(value, Condemned) for _, value in journal.items(CONDEMNED)]
        return {pair for record in records for pair in record.left}
    finally:
        journal.close()


def check_world(path, net, k, n):
    """Every blob is coded k/n (tiny ones as copies), each shard with another peer that has it; all else that peers have is
    noted as left behind."""
    rows = rows_of(path)
    named = set()
    for blob, row in rows.items():
        assert (row.k, row.n) == ((1, n - k + 1) if row.length <= 4096 else (k, n))
        shards = row.shards or (blob,) * row.n
        at = [{peer.id for peer in net.all() if shard in peer.shards} for shard in shards]
        assert all(at)
        named |= {(shard, peer) for shard, who in zip(shards, at, strict=True) for peer in who}
        assert len(set().union(*at)) >= row.n
    left = left_behind(path)
    for peer in net.all():
        for shard in peer.shards:
            assert (shard, peer.id) in named | left, "a shard that nobody knows of"
    return rows


def grow(ledger, net, count):
    """Let the registry name the first so many peers."""
    ledger.registry = net.registry()[:count]
    ledger.mine()


def test_what_is_stored_is_coded_anew_with_more_peers(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()[:3]) as ledger:
            async with open_writing(tmp_path, net) as driver:
                stored = await store_some(driver, 3, 3)
                assert (await driver.status()).k == 1
                grow(ledger, net, 6)
                await driver.wait_hosts(6)
                await set_redundancy(driver, "2/6")
                await until(lambda: is_done(driver, 2, 6))
                await check_all(driver, stored)
                found = await recoding_of(driver)
                assert found.done_bytes == sum(map(len, stored.values()))
                assert (found.waiting, found.last_error) == (0, "")
                await driver.wait(lambda: any(notice.redundancy == "2/6" for notice in driver.repaired))
                receipts = await driver.call("receipts", agentapi.ShardQuery(b""), agentapi.ReceiptPage)
                assert receipts.receipts
                assert not receipts.wrong, "the kept receipts bear out the new places"
                commit = await driver.call("commit_map", agentapi.Empty(), agentapi.MapCommit)
                for peer in net.all()[:4]:
                    peer.is_down = True
                await check_all(driver, stored)
            for peer in net.all():
                peer.is_down = False
        # Another machine finds it by the map alone, with any two peers.
        there = tmp_path / "there"
        based = {"map_root": commit.map_root, "host_map": commit.host_map, "map_sequence": 1}
        for peer in net.all()[2:]:
            peer.is_down = True
        async with open_ledger(there, net.registry()), open_driver(there, net, **based) as driver:
            await driver.wait_hosts(6)
            await check_all(driver, stored)

    run(work)


@pytest.mark.parametrize(
    "change", ["2/6 3/5", "3/5 2/6", "2/6 2/8", "2/8 2/6", "1/6 1/3", "1/3 1/6", "2/6 6/6", "4/8 1/2"]
)
def test_any_redundancy_becomes_any_other(tmp_path, change):
    first, second = change.split()
    n, k2, n2 = int(first[2:]), int(second[0]), int(second[2:])

    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()), open_writing(tmp_path, net, redundancy=first) as driver:
            stored = await store_some(driver, 8, n, count=4)
            before = {peer.id: peer.puts for peer in net.all()}
            await set_redundancy(driver, second)
            await until(lambda: is_done(driver, k2, n2))
            await check_all(driver, stored)
            sent = sum(peer.puts - before[peer.id] for peer in net.all())
            if change in ("2/8 2/6", "1/6 1/3"):
                assert sent == 0, "what is there already is not sent again"
        check_world(tmp_path, net, k2, n2)

    run(work)


STEPS = ["before the note", "after the note", "when some are sent", "before the row", "after the row"]


@pytest.mark.parametrize("step", STEPS)
def test_an_agent_that_ends_between_two_steps_goes_on_where_it_was(tmp_path, monkeypatch, step):
    reached = []

    async def stop():
        reached.append(step)
        await trio.sleep_forever()

    def patch(patched):
        note, reclaim, send, write = recoding.Recoder._note, garbage.Garbage.reclaim, Mover.send, Mover.write
        sent = []

        async def noted(self, *args):
            if step == "before the note" and len(reached) < 1:
                await stop()
            await note(self, *args)

        async def reclaimed(self, *args):
            if step == "after the note" and sys._getframe(1).f_code.co_name == "_store" and len(reached) < 1:
                await stop()
            await reclaim(self, *args)

        async def sending(self, *args):
            if step == "when some are sent" and len(sent) >= 9:
                await stop()
            receipt = await send(self, *args)
            sent.append(args)
            return receipt

        async def written(self, *args, **more):
            if step == "before the row":
                await stop()
            await write(self, *args, **more)
            if step == "after the row":
                await stop()

        patched.setattr(recoding.Recoder, "_note", noted)
        patched.setattr(garbage.Garbage, "reclaim", reclaimed)
        patched.setattr(Mover, "send", sending)
        patched.setattr(Mover, "write", written)

    async def work():
        net = FakeTransport(7)
        async with open_ledger(tmp_path, net.registry()):
            async with open_writing(tmp_path, net, redundancy="1/3") as driver:
                stored = await store_some(driver, 7, 3)
                with pytest.MonkeyPatch.context() as patched:
                    patch(patched)
                    await set_redundancy(driver, "2/6")

                    async def is_reached():
                        return bool(reached)

                    await until(is_reached)
                    await check_all(driver, stored)
            # One peer that got something is gone meanwhile: others take its shards.
            gone = max(net.all(), key=lambda peer: peer.puts)
            for attempt in range(2):
                gone.is_down = attempt == 0
                async with open_writing(tmp_path, net, redundancy="2/6") as driver:
                    await until(lambda: is_whole(driver))
                    await check_all(driver, stored)
        check_world(tmp_path, net, 2, 6)

    async def is_whole(driver):
        found = (await driver.status()).repair
        recoded = found.recoding
        return found.blobs and recoded.is_counted and (recoded.k, recoded.blobs, found.degraded) == (2, 0, 0)

    run(work)


def test_a_change_overtakes_another_one(tmp_path):
    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()):
            async with open_writing(tmp_path, net, redundancy="1/3") as driver:
                stored = await store_some(driver, 8, 3, count=12)
                for peer in net.all():
                    peer.delay = 0.03
                await set_redundancy(driver, "2/8")

                async def has_begun():
                    return (await recoding_of(driver)).done_blobs >= 2

                await until(has_begun)
                await set_redundancy(driver, "3/7")
                await trio.sleep(0.1)
                await set_redundancy(driver, "2/5")
                await until(lambda: is_done(driver, 2, 5))
                await check_all(driver, stored)
            check_world(tmp_path, net, 2, 5)

    run(work)


def test_reads_go_on_meanwhile(tmp_path):
    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()), open_writing(tmp_path, net, redundancy="1/3") as driver:
            stored = await store_some(driver, 8, 3, count=12)
            for peer in net.all():
                peer.delay = 0.01
            await set_redundancy(driver, "4/8")
            reads = 0
            while not await is_done(driver, 4, 8):
                await check_all(driver, stored)
                reads += 1
            assert reads
            await check_all(driver, stored)

    run(work)


def test_too_few_peers_are_waited_for_and_shown(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()[:4]) as ledger:
            async with open_writing(tmp_path, net, redundancy="1/3") as driver:
                stored = await store_some(driver, 4, 3)
                puts = sum(peer.puts for peer in net.all())
                await set_redundancy(driver, "2/6")

                async def waits():
                    found = await recoding_of(driver)
                    return found.waiting == found.blobs > 0 and "4 can be used now" in found.last_error

                await until(waits)
                assert sum(peer.puts for peer in net.all()) == puts, "nothing is sent for nothing"
                grow(ledger, net, 6)
                await until(lambda: is_done(driver, 2, 6))
                await check_all(driver, stored)
            check_world(tmp_path, net, 2, 6)

    run(work)


def test_a_peer_that_refuses_is_replaced(tmp_path):
    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()):
            async with open_writing(tmp_path, net, redundancy="1/3") as driver:
                stored = await store_some(driver, 8, 3)
                net.all()[0].is_refusing = True
                await set_redundancy(driver, "2/7")
                await until(lambda: is_done(driver, 2, 7))
                await check_all(driver, stored)
            check_world(tmp_path, net, 2, 7)

    run(work)


def test_a_mount_that_does_not_write_the_volume_leaves_it_alone(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, redundancy="1/3") as driver:
            await store_some(driver, 6, 3)
            puts = sum(peer.puts for peer in net.all())
            await set_redundancy(driver, "2/6")
            await trio.sleep(0.5)
            assert sum(peer.puts for peer in net.all()) == puts
            assert await recoding_of(driver) == agentapi.RecodingStatus()

    run(work)


def test_auto_becomes_stronger_when_peers_have_been_there_for_long_and_never_weaker(tmp_path, monkeypatch):
    monkeypatch.setattr(recoding, "STEADY", 0.8)

    async def work():
        net = FakeTransport(6)
        async with AsyncExitStack() as exits:
            ledger = await exits.enter_async_context(open_ledger(tmp_path, net.registry()[:3]))
            driver = await exits.enter_async_context(open_writing(tmp_path, net))
            stored = await store_some(driver, 3, 3)
            grow(ledger, net, 6)
            await driver.wait_hosts(6)
            assert (await driver.status()).n == 6, "new data is stored with it at once"
            await trio.sleep(0.3)
            assert (await recoding_of(driver)).done_blobs == 0, "what is stored waits"
            await until(lambda: is_done(driver, 2, 6))
            await check_all(driver, stored)
            done = (await recoding_of(driver)).done_blobs
            for peer in net.all()[:3]:
                peer.is_refusing = True
                peer.is_down = True
            await trio.sleep(1.0)
            for peer in net.all()[:3]:
                peer.is_down = False

            async def is_weaker():
                return (await driver.status()).n == 3

            await until(is_weaker)  # full ones do not count for new data
            await trio.sleep(0.5)
            assert (await recoding_of(driver)).done_blobs == done
            await exits.aclose()
        check_world(tmp_path, net, 2, 6)

    run(work)


def test_blobs_that_wait_for_peers_are_begun_anew_with_what_there_are_peers_for(tmp_path):
    async def work():
        net = FakeTransport(3)
        async with open_ledger(tmp_path, net.registry()):
            async with open_writing(tmp_path, net, redundancy="4/12") as driver:
                await driver.wait_hosts(3)
                data = [os.urandom(300_000), os.urandom(3000)]
                entries = [driver.stage(item) for item in data]
                await driver.store()

                async def is_stuck():
                    return (await driver.status()).partial_blobs == 2

                await until(is_stuck)
                await set_redundancy(driver, "1/3")
                await driver.wait_stored(entries, 3)
                await check_all(driver, dict(zip(entries, data, strict=True)))
            assert {(row.k, row.n) for row in rows_of(tmp_path).values()} == {(1, 3)}

    run(work)


def test_copies_of_the_map_and_manifests_become_as_many_as_the_redundancy_says(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_writing(tmp_path, net, redundancy="1/2") as driver:
            await store_some(driver, 6, 2)
            commit = await driver.call("commit_map", agentapi.Empty(), agentapi.MapCommit)
            manifests = []
            for i in range(3):
                data = b"manifest %d" % i * 500
                await driver.call("store_manifest", agentapi.StoreManifest(data), agentapi.Holders)
                manifests.append(driver.stage(data))

            def copies(name):
                return sum(name in peer.shards for peer in net.all())

            async def stored():
                return all(copies(name) == 2 for name in (commit.map_root[:32], *manifests))

            await until(stored)
            await set_redundancy(driver, "2/6")

            async def all_there():
                return all(copies(name) >= 5 for name in (commit.host_map_copy[:32], *manifests))

            await until(all_there)

    run(work)


def test_f061_peers_are_gone_for_good_and_the_owner_asks_for_less(tmp_path):
    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()):
            async with open_writing(tmp_path, net, redundancy="2/8") as driver:
                stored = await store_some(driver, 8, 8)
                for peer in net.all()[:4]:
                    peer.is_down = True
                    peer.shards.clear()

                async def is_lacking():
                    found = (await driver.status()).repair
                    return found.degraded + found.away > 0

                await until(is_lacking)
                await set_redundancy(driver, "2/4")
                await until(lambda: is_done(driver, 2, 4))

                async def is_whole():
                    found = (await driver.status()).repair
                    return found.blobs and not found.degraded and not found.away

                await until(is_whole)
                await check_all(driver, stored)
            check_world(tmp_path, net, 2, 4)

    run(work)


def test_a_blob_that_is_repaired_meanwhile_is_coded_anew_after_that(tmp_path, monkeypatch):
    """The row changes between the first step and the last: what was sent is left behind, or used."""
    write, changed = Mover.write, []

    async def written(self, blob, before, old, new, *args, **more):
        if more and len(changed) < 3:
            changed.append(blob)
            before = b"another row"
        await write(self, blob, before, old, new, *args, **more)

    monkeypatch.setattr(Mover, "write", written)

    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()):
            async with open_writing(tmp_path, net, redundancy="1/3") as driver:
                stored = await store_some(driver, 8, 3)
                await set_redundancy(driver, "2/6")
                await until(lambda: is_done(driver, 2, 6))
                await check_all(driver, stored)
                assert len(changed) == 3
            check_world(tmp_path, net, 2, 6)

    run(work)
