"""The agent renews what the volume needs, with few messages, and lets the rest end."""

import os
import sys
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import Driver, FakeTransport, open_driver, open_ledger, run, until

from fsdecloud import codec
from fsdecloud.agent import leases, peers, repair, stack
from fsdecloud.agent.garbage import Condemned
from fsdecloud.agent.journal import CONDEMNED, GENERATIONS, META, UPLOADS, open_journal
from fsdecloud.agent.leases import LeaseRow
from fsdecloud.agent.rows import UploadRecord
from fsdecloud.swarm.repair import Policy
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire import agentapi
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.receipts import sign_receipt, verify_receipt

CALM = Policy(urgent_grace=0.05, grace=0.05, audit_period=1e6)


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr(stack, "POLICY", CALM)
    monkeypatch.setattr(repair, "GATHER", 0.02)
    monkeypatch.setattr(repair, "RETRY", 0.2)
    monkeypatch.setattr(peers, "PROBE_IDLE", 0.1)
    monkeypatch.setattr(peers, "PROBE_URGENT", 0.05)
    monkeypatch.setattr(leases, "FIRST", 0.0)
    monkeypatch.setattr(leases, "LOOK", 0.05)
    monkeypatch.setattr(leases, "BUSY_PAUSE", 0.01)


async def store_some(driver, net, count=5):
    await driver.wait_hosts(len(net.all()))
    entries = [driver.stage(os.urandom(300_000 + i)) for i in range(count)] + [driver.stage(os.urandom(40))]
    await driver.store()
    await driver.wait_stored(entries, len(net.all()))
    return entries


def lease_rows(path):
    """Return what the journal says. The agent must not run."""
    journal = open_journal(path / "agent" / "journal", b"V" * 32)
    try:
        return {row.peer: row for row in codec.decode(journal.get(META, b"leases"), tuple[LeaseRow, ...])}
    finally:
        journal.close()


def change(path, *writes):
    journal = open_journal(path / "agent" / "journal", b"V" * 32)
    journal.apply(writes)
    journal.close()


def age(path, *, renewed=0, seen=0):
    """Let time pass since each peer was renewed, and seen."""
    rows = lease_rows(path).values()
    older = tuple(LeaseRow(r.peer, r.seen - seen, max(r.renewed - renewed, 0), r.term) for r in rows)
    change(path, (META, b"leases", codec.encode(older)))


async def everything_is_renewed(net):
    return all(peer.shards.keys() <= peer.renewed for peer in net.all())


def test_everything_is_renewed_and_not_too_often(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "LOOK", 1e6)
    net = FakeTransport(6)

    async def first():
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await store_some(driver, net)
            await driver.call("store_manifest", agentapi.StoreManifest(b"an older manifest"), agentapi.Holders)
            await driver.call("commit_map", Empty(), agentapi.MapCommit)
            await driver.call("store_manifest", agentapi.StoreManifest(b"manifest"), agentapi.Holders)

    async def renewed():
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
            await driver.wait_hosts(6)
            await until(lambda: everything_is_renewed(net))  # shards, nodes of the map, the manifest
            await trio.sleep(0.05)

    async def again():
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
            await driver.wait_hosts(6)
            await trio.sleep(0.2)

    run(first)
    run(renewed)
    assert {row.renewed > 0 for row in lease_rows(tmp_path).values()} == {True}
    for peer in net.all():
        peer.renewed.clear()
    run(again)
    assert not any(peer.renewed for peer in net.all())  # nobody is due
    age(tmp_path, renewed=180 * 86400 // 8 + 10)
    run(renewed)
    for peer in net.all():
        peer.renewed.clear()
    age(tmp_path, renewed=-100 * 365 * 86400)  # the clock was set back since
    run(renewed)


def test_a_peer_that_was_away_is_renewed_when_it_is_back(tmp_path):
    net = FakeTransport(6)

    async def work():
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
            absent = net.all()[2]
            await store_some(driver, net)
            absent.is_down = True
            for peer in net.all():
                peer.renewed.clear()
        age(tmp_path, renewed=10**9)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
            others = [peer for peer in net.all() if peer is not absent]
            await until(lambda: others_renewed(others))
            assert not absent.renewed
            absent.is_down = False
            await until(lambda: others_renewed([absent]))

    async def others_renewed(peers):
        return all(peer.renewed for peer in peers)

    run(work)


def test_fault_113_status_warns_long_before_leases_end(tmp_path):
    """A volume that was not mounted for months, and a peer that is not there then."""
    net = FakeTransport(6)

    async def work():
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
            absent = net.all()[2]
            await store_some(driver, net)
            assert (await driver.status()).warning == ""
        for days, said in ((130, ""), (150, "end in 29 d"), (200, "ended 20 d")):
            absent.is_down = True
            before = lease_rows(tmp_path)[absent.id].renewed
            age(tmp_path, renewed=days * 86400)
            async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
                others = [peer.id for peer in net.all() if peer is not absent]
                await until(partial(has_warning, driver, said, absent))
            assert all(lease_rows(tmp_path)[peer].renewed >= before for peer in others)
            absent.renewed.clear()
            absent.is_down = False
            async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
                await until(lambda: is_renewed(absent))
                await until(lambda: has_warning(driver, "", absent))

    async def is_renewed(peer):
        return peer.renewed

    async def has_warning(driver, said, peer):
        """Whether there is one about this peer alone, or none."""
        warning = (await driver.status()).warning
        if not said:
            return "leases" not in warning
        return "stored at 1 peer have" in warning and f"at {peer.id.hex()[:8]}" in warning and said in warning

    run(work)


def test_fault_058_what_a_renewal_does_not_name_is_made_again(tmp_path):
    net = FakeTransport(6)

    async def work():
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
            await store_some(driver, net)
        age(tmp_path, renewed=10**9)
        forgetful = net.all()[1]
        before = dict(forgetful.shards)
        forgetful.shards.clear()

        async def has_all():
            return before.keys() <= forgetful.shards.keys()

        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True):
            await until(has_all)

    run(work)


def test_what_is_condemned_is_not_renewed(tmp_path, monkeypatch):
    net = FakeTransport(6)

    async def work():
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            entries = await store_some(driver, net)
        notice = driver.stored[entries[0]][1]
        left = tuple((shard, net.all()[i].id) for i, shard in enumerate(notice.shards))
        record = Condemned((entries[0],), left, 100)
        change(
            tmp_path,
            (CONDEMNED, notice.blob, codec.encode(record)),
            (GENERATIONS, bytes(9) + notice.blob, b""),
        )
        other = driver.stored[entries[1]][1]
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True):
            await until(lambda: is_renewed(set(other.shards)))
            assert not any(peer.renewed & set(notice.shards) for peer in net.all())

    async def is_renewed(shards):
        return shards <= set().union(*(peer.renewed for peer in net.all()))

    run(work)


@pytest.mark.parametrize("is_crowded", [False, True])
def test_records_of_peers_gone_for_longer_than_their_leases_are_dropped(tmp_path, monkeypatch, is_crowded):
    net = FakeTransport(6)
    gone, shard = PeerId(b"g" * 32), ShardId(b"s" * 32)

    async def work():
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True) as driver:
            await store_some(driver, net, 1)
        writes = [
            (CONDEMNED, bytes([i]) * 32, codec.encode(Condemned((), ((shard, gone), (shard, net.all()[0].id)), 9, 1)))
            for i in range(5)
        ]
        keys = [(GENERATIONS, (1).to_bytes(8, "big") + b"\0" + bytes([i]) * 32, b"") for i in range(5)]
        change(tmp_path, *writes, *keys, (META, b"final_generation", b"0"))
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True):
            await trio.sleep(0.3)
        assert len(targets()[gone]) == 5  # it was first looked for a moment ago
        age(tmp_path, seen=90 * 86400)
        if is_crowded:
            monkeypatch.setattr(leases, "CROWDED", 5)
        else:
            async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True):
                await trio.sleep(0.3)
            assert len(targets()[gone]) == 5
            age(tmp_path, seen=91 * 86400)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, repair=True):
            await trio.sleep(0.3)
        assert targets() == {net.all()[0].id: [bytes([i]) * 32 for i in range(5)]}

    def targets():
        journal = open_journal(tmp_path / "agent" / "journal", b"V" * 32)
        found = {}
        for key, value in journal.items(CONDEMNED):
            for _, peer in codec.decode(value, Condemned).left:
                found.setdefault(peer, []).append(key)
        journal.close()
        return found

    run(work)


def test_fault_077_what_only_expired_receipts_bear_out_is_stored_again(tmp_path):
    """An upload that was interrupted for longer than its leases: the driver would not believe them."""
    net = FakeTransport(6)

    async def work():
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            (entry, *_) = await store_some(driver, net, 1)
        notice = driver.stored[entry][1]
        journal = open_journal(tmp_path / "agent" / "journal", b"V" * 32)
        record = codec.decode(journal.get(UPLOADS, notice.blob), UploadRecord)
        old = []
        for data in record.receipts:
            receipt = verify_receipt(data)
            seed = net.peers[receipt.peer].seed
            old.append(sign_receipt(seed, receipt.peer, receipt.deal, receipt.time - 200 * 86400, receipt.shards))
        changed = msgspec.structs.replace(record, receipts=(*record.receipts[:2], *old[2:]))
        journal.apply([(UPLOADS, notice.blob, codec.encode(changed))])
        journal.close()
        puts = sum(peer.puts for peer in net.all())
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            driver.locations = {entry: driver_location(driver, notice)}
            await driver.store([entry])
            await driver.wait_stored([entry], 6)
        assert sum(peer.puts for peer in net.all()) > puts

    def driver_location(driver, notice):
        return staged[notice.entries[0]]

    staged = {}
    stage = Driver.stage

    def noting(self, data):
        entry = stage(self, data)
        staged[entry] = self.locations[entry]
        return entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Driver, "stage", noting)
        run(work)
