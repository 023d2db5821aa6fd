"""Peers die, lose their stores, lie and withhold: the agent notices, and makes again what is missing. Requests are counted,
never timed."""

import os
import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, open_driver, open_ledger, run, until

from fsdecloud import codec
from fsdecloud.agent import auditor, peers, repair, stack
from fsdecloud.agent.garbage import Condemned
from fsdecloud.agent.journal import CONDEMNED, META, ROWS, UPLOADS, open_journal
from fsdecloud.agent.rows import UploadRecord, decode_blob_row
from fsdecloud.swarm.repair import Policy
from fsdecloud.wire import agentapi

HASTY = Policy(
    urgent_grace=0.05,
    grace=0.05,
    gone_after=0.4,
    audit_period=6.0,
    retries_absent=(0.1, 0.2),
    retries_silent=(0.05, 0.05, 0.05),
)
"""Seconds where the real policy has minutes; what is decided is the same."""


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr(stack, "POLICY", HASTY)
    monkeypatch.setattr(repair, "GATHER", 0.02)
    monkeypatch.setattr(repair, "RETRY", 0.2)
    monkeypatch.setattr(auditor, "PULSE", 0.1)
    monkeypatch.setattr(auditor, "AUDIT_TIMEOUT", 0.2)
    monkeypatch.setattr(auditor, "RECHECK", 0.2)
    monkeypatch.setattr(peers, "PROBE_URGENT", 0.05)
    monkeypatch.setattr(peers, "PROBE_IDLE", 0.1)
    monkeypatch.setattr(peers, "PROBE_TIMEOUT", 1.0)


def open_repairing(path, net, **changes):
    return open_driver(path, net, repair=True, **changes)


async def store_some(driver, net, count=8, hosts=None, n=6):
    await driver.wait_hosts(hosts or len(net.all()))
    data = [os.urandom(300_000 + i) for i in range(count)] + [os.urandom(3000), os.urandom(40)]
    entries = [driver.stage(item) for item in data]
    await driver.store()
    await driver.wait_stored(entries, n)
    return dict(zip(entries, data, strict=True))


async def repair_status(driver):
    return (await driver.status()).repair


async def whole(driver, net, stored):
    """Say whether each blob has n shards on n live peers, by what the peers have and by what the agent says."""
    found = await repair_status(driver)
    if found.degraded or found.away or found.contained or not found.blobs or found.is_surveying:
        return False
    live = [peer for peer in net.all() if not peer.is_down and not peer.is_withholding]
    for entry in stored:
        notice = driver.stored[entry][1]
        if notice.k == 1:
            count = sum(notice.blob in peer.shards for peer in live)
        else:
            count = sum(any(shard in peer.shards for peer in live) for shard in notice.shards)
        if count < notice.n:
            return False
    return True


async def check_all(driver, stored):
    for entry, item in stored.items():
        assert await driver.fetch(entry) == item


def test_f060_n_minus_k_peers_die_at_once_and_everything_comes_back_to_n(tmp_path):
    async def work():
        net = FakeTransport(10)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net, redundancy="2/6") as driver:
            stored = await store_some(driver, net)
            for peer in net.all()[:4]:
                peer.is_down = True
            await until(lambda: whole(driver, net, stored))
            found = await repair_status(driver)
            assert found.repaired_blobs >= 1
            assert found.repaired_shards >= 8
            assert found.unreadable == 0
            await driver.wait(lambda: driver.repaired)
            # Others die: only what was made again keeps the bytes.
            for peer in net.all()[4:8]:
                peer.is_down = True
            if await all_readable(driver, net, stored):
                await check_all(driver, stored)

    async def all_readable(driver, net, stored):
        live = [peer for peer in net.all() if not peer.is_down]
        return all(sum(any(s in p.shards for p in live) for s in set(driver.stored[e][1].shards)) >= 2 for e in stored)

    run(work)


def test_f060_what_was_repaired_is_in_the_map_and_survives_a_restart_and_another_machine(tmp_path):
    async def work():
        net = FakeTransport(10)
        here, there = tmp_path / "here", tmp_path / "there"
        async with open_ledger(here, net.registry()), open_repairing(here, net, redundancy="2/6") as driver:
            stored = await store_some(driver, net)
            for peer in net.all()[:4]:
                peer.is_down = True
                peer.shards.clear()
            await until(lambda: whole(driver, net, stored))
            receipts = await driver.call("receipts", agentapi.ShardQuery(b""), agentapi.ReceiptPage)
            assert not receipts.wrong, "the kept receipts bear out the new places"
        async with open_ledger(here, net.registry()), open_repairing(here, net, redundancy="2/6") as driver:
            await driver.wait(lambda: driver.repaired)
            commit = await driver.call("commit_map", agentapi.Empty(), agentapi.MapCommit)
            await check_all(driver, stored)
        based = {"map_root": commit.map_root, "host_map": commit.host_map, "map_sequence": 1}
        async with open_ledger(there, net.registry()), open_driver(there, net, **based) as driver:
            await driver.wait_hosts(10)
            await check_all(driver, stored)
            page = await driver.call("shards", agentapi.ShardQuery(b""), agentapi.ShardPage)
            assert page.short == ()

    run(work)


def test_f058_a_lost_store_is_noticed_by_a_read_and_filled_again(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net) as driver:
            stored = await store_some(driver, net)
            before = net.all()[2].shards
            net.all()[2].shards = {}
            await check_all(driver, stored)
            await until(lambda: whole(driver, net, stored))
            assert set(net.all()[2].shards) >= {s for e in stored for s in driver.stored[e][1].shards} & set(before)
            found = await repair_status(driver)
            assert found.audits_failed == 1, "who says so fails once, not once for each shard"
            assert all(state.state == "up" for state in (await driver.status()).peers)

    run(work)


def test_f058_a_store_lost_while_nobody_reads_is_noticed_by_samples(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net) as driver:
            stored = await store_some(driver, net)
            net.all()[4].shards = {}
            await until(lambda: whole(driver, net, stored))

    run(work)


def test_f069_wrong_bytes_are_replaced_with_another_peer(tmp_path):
    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net, redundancy="2/6") as driver:
            stored = await store_some(driver, net)
            liar = net.all()[1]
            held = {e: [s for s in driver.stored[e][1].shards if s in liar.shards] for e in stored}
            bad = next(shards[0] for entry, shards in held.items() if shards and driver.stored[entry][1].k > 1)
            liar.corrupt.add(bad)
            await until(lambda: _repaired(driver))
            await until(lambda: whole(driver, net, stored))
            assert sum(bad in peer.shards for peer in net.all()) == 2, "the liar would say that it has it"
            assert (await repair_status(driver)).repaired_shards == 1

    async def _repaired(driver):
        return (await repair_status(driver)).repaired_shards > 0

    run(work)


def test_f073_who_withholds_is_contained_then_replaced_and_trusted_again_when_it_serves(tmp_path):
    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net, redundancy="2/6") as driver:
            stored = await store_some(driver, net, count=16)
            bad = net.all()[0]
            bad.is_withholding = True

            async def state():
                return next(s.state for s in (await driver.status()).peers if s.id == bad.id)

            await until(lambda: _is(state, "distrusted"))
            await until(lambda: whole(driver, net, stored))
            assert (await repair_status(driver)).audits_failed >= 5
            puts = bad.puts
            more = await store_some(driver, net, count=8)
            assert bad.puts == puts, "nothing more is stored with it"
            bad.is_withholding = False
            await until(lambda: _is(state, "up"))
            await check_all(driver, stored | more)

    async def _is(state, wanted):
        return await state() == wanted

    run(work, seconds=60)


def test_f073_without_spare_peers_who_withholds_is_waited_for(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net) as driver:
            stored = await store_some(driver, net)
            bad = net.all()[0]
            bad.is_withholding = True

            async def waits():
                found = await repair_status(driver)
                return found.audits_failed >= 5 and found.waiting == found.degraded > 0

            await until(waits)
            bad.is_withholding = False
            await until(lambda: whole(driver, net, stored))
            await until(lambda: usable(driver))
            await store_some(driver, net, count=1)

    async def usable(driver):
        return all(state.state == "up" for state in (await driver.status()).peers)

    run(work)


def test_f073_a_miss_that_does_not_come_again_costs_nothing(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net) as driver:
            stored = await store_some(driver, net)
            forgetful = net.all()[3]
            gone, forgetful.shards = forgetful.shards, {}

            async def contained():
                return (await repair_status(driver)).contained > 0

            await until(contained)
            forgetful.shards = gone

            async def forgiven():
                return (await repair_status(driver)).contained == 0

            await until(forgiven)
            await check_all(driver, stored)
            found = await repair_status(driver)
            assert (found.audits_failed, found.degraded, found.repaired_shards) == (0, 0, 0)

    run(work)


def test_f061_too_few_are_left_then_one_returns(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "POLICY", Policy(urgent_grace=3600.0, grace=3600.0))

    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net) as driver:
            stored = await store_some(driver, net)
            for peer in net.all()[:5]:
                peer.is_down = True

            async def unreadable():
                found = await repair_status(driver)
                return found.unreadable > 0 and found.degraded + found.away == found.blobs

            await until(unreadable)
            assert (await repair_status(driver)).repaired_shards == 0
            net.all()[0].is_down = False

            async def readable():
                found = await repair_status(driver)
                return found.unreadable == found.degraded == 0 and found.away == found.blobs

            await until(readable)
            await check_all(driver, stored)
            for peer in net.all():
                peer.is_down = False
            await until(lambda: whole(driver, net, stored))
            assert (await repair_status(driver)).repaired_shards == 0, "who returns with its store needs no repair"

    run(work)


def test_f058_a_full_peer_that_restarts_is_looked_at_again(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "POLICY", Policy(urgent_grace=3600.0, grace=3600.0, audit_period=1e6))

    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net, redundancy="2/6") as driver:
            stored = await store_some(driver, net)
            full = net.all()[0]
            full.is_refusing = True

            async def is_known():
                return any(peer.state == "refusing" for peer in (await driver.status()).peers)

            await until(is_known)
            full.is_down = True

            async def is_missed():
                return (await repair_status(driver)).away > 0

            await until(is_missed)
            full.is_down = False
            await until(lambda: whole(driver, net, stored))
            assert (await repair_status(driver)).repaired_shards == 0

    run(work)


def test_a_peer_that_is_distrusted_does_not_count_for_the_redundancy(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net) as driver:
            await store_some(driver, net, count=16)
            assert (await driver.status()).n == 6
            net.all()[0].is_withholding = True

            async def is_less():
                found = await driver.status()
                return found.n == 3 and any(peer.state == "distrusted" for peer in found.peers)

            await until(is_less)

    run(work)


def test_f074_an_audit_is_a_read_like_any_other(tmp_path, monkeypatch):
    """The same request, for a whole shard, of a random one: who answers audits answers reads, because it cannot tell."""
    monkeypatch.setattr(stack, "POLICY", Policy(audit_period=5.0))

    async def work():
        net = FakeTransport(6)
        asked, others = [], []
        get, has = net.get, net.has

        async def noted_get(address, shard, *more):
            asked.append((address.id, shard, more))
            return await get(address, shard, *more)

        async def noted_has(address, shards):
            others.append(shards)
            return await has(address, shards)

        net.get, net.has = noted_get, noted_has
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net) as driver:
            stored = await store_some(driver, net)
            asked.clear()
            others.clear()

            async def audited():
                return (await repair_status(driver)).audits_passed > 60

            await until(audited)
            audits = list(asked)
            assert not others, "nobody is asked whether it has what it should: that would give an audit away"
            asked.clear()
            await check_all(driver, stored)
            assert asked
            reads = {(peer, shard): more for peer, shard, more in asked}
            assert {more for _, _, more in audits} == set(reads.values()), "the same request"
            assert len({shard for _, shard, _ in audits}) > 10, "of shards by chance"
            assert {peer for peer, _, _ in audits} == {peer.id for peer in net.all()}

    run(work)


def test_f053_a_flapping_peer_causes_no_repair(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "POLICY", Policy(urgent_grace=3600.0, grace=3600.0))

    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net, redundancy="2/6") as driver:
            stored = await store_some(driver, net)
            flapping = net.all()[0]
            for _ in range(10):
                for wanted in ("down", "up"):
                    flapping.is_down = wanted == "down"
                    await until(lambda wanted=wanted: _is(driver, flapping, wanted))
            await until(lambda: whole(driver, net, stored))
            assert (await repair_status(driver)).repaired_shards == 0

    async def _is(driver, peer, wanted):
        return next(s.state for s in (await driver.status()).peers if s.id == peer.id) == wanted

    run(work)


def test_f064_a_repair_storm_is_bounded_and_foreground_goes_on(tmp_path, monkeypatch):
    rate, burst = 400_000.0, 1_000_000.0
    monkeypatch.setattr(stack, "POLICY", Policy(urgent_grace=0.05, grace=0.05, rate=rate, rate_busy=rate, burst=burst))

    async def work():
        net = FakeTransport(10)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net, redundancy="2/6") as driver:
            stored = await store_some(driver, net, count=40)
            start = trio.current_time()
            for peer in net.all()[:3]:
                peer.is_down = True

            async def begun():
                return (await repair_status(driver)).repaired_shards > 0

            await until(begun)
            gets = sum(peer.gets for peer in net.all())
            for _ in range(3):
                await check_all(driver, stored)
            served = sum(peer.gets for peer in net.all()) - gets
            found = await repair_status(driver)
            spent = trio.current_time() - start
            # Each shard that is made costs at least itself and its part of what is fetched.
            assert found.repaired_bytes <= burst + rate * spent + 4 * 3 * 150_000
            assert served <= 3 * len(stored) * 3, "reads need k shards, and repairs beside them are few"
            assert found.degraded > 0, "most of it is still to come"

    run(work)


def test_f049_a_crash_between_storing_and_the_row_loses_nothing(tmp_path, monkeypatch):
    """The agent ends right before the new places are written: the next one comes to the same places."""
    crashed = trio.Event()
    original = repair.Repairer._write

    async def crash(_self, _blob, _before, _row, _made):
        crashed.set()
        await trio.sleep_forever()

    async def work():
        net = FakeTransport(10)
        async with open_ledger(tmp_path, net.registry()):
            monkeypatch.setattr(repair.Repairer, "_write", crash)
            async with open_repairing(tmp_path, net, redundancy="2/6") as driver:
                stored = await store_some(driver, net, count=3)
                notices = driver.stored
                for peer in net.all()[:4]:
                    peer.is_down = True
                await crashed.wait()
                await trio.sleep(0.2)  # the others come as far
            monkeypatch.setattr(repair.Repairer, "_write", original)
            async with open_repairing(tmp_path, net, redundancy="2/6") as driver:
                driver.stored = notices
                await until(lambda: whole(driver, net, stored))
                await check_all(driver, stored)
            for entry in stored:
                notice = notices[entry][1]
                if notice.k > 1:
                    for shard in notice.shards:
                        live = sum(shard in peer.shards for peer in net.all() if not peer.is_down)
                        assert live == 1, "the same shards went to the same peers"

    run(work)


def test_what_a_returning_peer_still_has_is_noted_for_deletion(tmp_path):
    async def work():
        net = FakeTransport(10)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net, redundancy="2/6") as driver:
            stored = await store_some(driver, net)
            gone = net.all()[:4]
            for peer in gone:
                peer.is_down = True
            await until(lambda: whole(driver, net, stored))
            notices = driver.stored
        journal = open_journal(tmp_path / "agent" / "journal", b"V" * 32)
        try:
            left = {
                item
                for key, value in journal.items(CONDEMNED)
                if key.startswith(b"moved")
                for item in codec.decode(value, Condemned).left
            }
            rows = {key[1:]: decode_blob_row(value) for key, value in journal.items(ROWS) if key.startswith(b"B")}
            records = {key: codec.decode(value, UploadRecord) for key, value in journal.items(UPLOADS)}
            assert journal.get(META, b"repaired")
        finally:
            journal.close()
        ids = {peer.id for peer in gone}
        for entry in stored:
            notice = notices[entry][1]
            holders = dict(records[notice.blob].holders)
            assert len(set(holders.values())) == notice.n, "no peer has two"
            assert not ids & set(holders.values())
            assert rows[notice.blob].n == notice.n
            for peer in gone:
                for shard in set(notice.shards) & set(peer.shards):
                    assert (shard, peer.id) in left

    run(work)


def test_a_blob_on_its_way_is_sent_again_when_a_peer_lost_it(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net) as driver:
            await driver.wait_hosts(6)
            net.all()[5].is_down = True
            item = os.urandom(400_000)
            entry = driver.stage(item)
            await driver.store()
            await driver.wait_stored([entry], 5)
            holder = net.all()[0]
            holder.shards.clear()
            assert await driver.fetch(entry) == item
            for peer in net.all()[1:5]:
                peer.is_down = True
            net.all()[5].is_down = False
            for peer in net.all():
                peer.is_down = False
            await driver.wait_stored([entry], 6)

    run(work)


def test_nodes_of_the_map_get_their_copies_back(tmp_path):
    async def work():
        net = FakeTransport(10)
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net, redundancy="2/6") as driver:
            await store_some(driver, net)
            commit = await driver.call("commit_map", agentapi.Empty(), agentapi.MapCommit)
            root = commit.map_root[:32]

            async def copies():
                return sum(root in peer.shards for peer in net.all() if not peer.is_down) >= 5

            await until(copies)
            for peer in [peer for peer in net.all() if root in peer.shards][:4]:
                peer.is_down = True
            await until(copies)

    run(work)


def test_an_agent_that_was_not_asked_to_repairs_nothing(tmp_path):
    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, redundancy="2/6") as driver:
            await store_some(driver, net)
            gets = sum(peer.gets for peer in net.all())
            for peer in net.all()[:4]:
                peer.is_down = True
            await trio.sleep(0.5)
            assert (await repair_status(driver)) == agentapi.RepairStatus()
            assert sum(peer.gets for peer in net.all()) == gets

    run(work)


def test_fault_074_an_audit_is_a_read(tmp_path, monkeypatch):
    """Whoever would serve one and not the other cannot tell which is which: the same call, for whole shards of all blobs."""
    monkeypatch.setattr(stack, "POLICY", Policy(audit_period=20.0))

    async def work():
        net = FakeTransport(6)
        asked = []
        get = net.get

        async def noting(address, shard):
            asked.append((address.id, shard))
            return await get(address, shard)

        net.get = noting
        async with open_ledger(tmp_path, net.registry()), open_repairing(tmp_path, net) as driver:
            stored = await store_some(driver, net, 3)
            audits, wanted = [], {peer.id for peer in net.all()}

            async def audited():
                audits[:] = asked
                return {peer for peer, _ in audits} == wanted

            await until(audited)
            large = {s for entry in list(stored)[:3] for s in driver.stored[entry][1].shards}
            assert {shard for _, shard in audits} & large
            asked.clear()
            await check_all(driver, stored)
            reads = list(asked)
        # No other request asks for bytes, and what is asked for is the same: a shard, by its id, all of it.
        assert {type(item) for item in audits[0]} == {type(item) for item in reads[0]}
        assert {shard for _, shard in reads} & large

    run(work)
