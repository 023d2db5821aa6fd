"""What a running deal names stays with the peer, whoever wants it gone: it has to be proved. Then the usual rules hold."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from peerworld import deal, run, shard, until, world

from fsdecloud.peerd import deleting, leases
from fsdecloud.store import shardleases, shards
from fsdecloud.store.shards import NAMED
from fsdecloud.wire import peer as wire

IDS = [shard(i)[0] for i in range(10)]
ITEMS = [shard(i) for i in range(10)]


class Deals:
    """The newest revision of a running deal names some shards."""

    def __init__(self, *named):
        self.named = set(named)

    def refusal(self, deal, size):
        return ""

    def keeps(self, shard):
        return shard in self.named

    async def answer(self, request, deal):
        return wire.Error(request.request, "refused", "not here")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(deleting, "PAUSE", 0.001)
    monkeypatch.setattr(leases, "PAUSE", 0.001)


def test_a_grant_leaves_what_the_deal_names_and_says_so(tmp_path):
    async def work():
        deals = Deals(*IDS[:3])
        async with world(tmp_path / "p", deals=deals) as w, w.client("a") as a:
            await a.put(w.address, ITEMS)
            kept = await a.delete(w.address, w.grant("a", IDS))
            assert kept == dict.fromkeys(IDS[:3], NAMED)
            await until(lambda: w.service.deleter.removed_shards == 7)
            assert (w.service.deleter.dropped_shards, w.store.counts()[0]) == (7, 3)
            assert [await a.get(w.address, i) for i in IDS[:3]] == [data for _, data in ITEMS[:3]]
            deals.named.clear()  # the deal is over
            assert await a.delete(w.address, w.grant("a", IDS[:3])) == {}
            await until(lambda: w.store.counts()[0] == 0)

    run(work)


def test_a_grant_of_somebody_else_learns_nothing_of_the_deal(tmp_path):
    async def work():
        async with world(tmp_path / "p", deals=Deals(IDS[0])) as w, w.client("a") as a, w.client("b") as b:
            await a.put(w.address, ITEMS[:1])
            await b.put(w.address, ITEMS[1:2])
            assert await b.delete(w.address, w.grant("b", IDS[:1])) == {}

    run(work)


def test_what_was_deleted_before_the_deal_named_it_is_not_removed(tmp_path):
    """Or an owner could have the peer promise what is about to go, and challenge it afterwards."""

    async def work():
        deals = Deals()
        async with world(tmp_path / "p", deals=deals) as w, w.client("a") as a:
            w.service.deleter._grace = 3600
            await a.put(w.address, ITEMS)
            assert await a.delete(w.address, w.grant("a", IDS)) == {}
            deals.named |= set(IDS[:4])
            w.service.deleter._grace = 0
            w.service.deleter.poke()
            await until(lambda: w.service.deleter.removed_shards == 6)
            assert await a.has(w.address, IDS) == (True,) * 4 + (False,) * 6
            assert w.store.doomed_count() == 4  # still nobody's: they go once the deal lets them
            deals.named.clear()
            while await w.service._writer.call(lambda: w.store.reap(1 << 31)):
                pass
            assert w.store.counts() == (0, 0)

    run(work)


def test_many_that_the_deal_names_hold_up_nothing(tmp_path, monkeypatch):
    """A step that removes nothing is not the last one."""
    monkeypatch.setattr(shards, "REAP_STEP", 2)
    monkeypatch.setattr(shardleases, "EXPIRE_STEP", 2)

    async def work():
        deals = Deals()
        async with world(tmp_path / "p", deals=deals, lease=1000, lease_grace=0) as w, w.client("a") as a:
            w.service.deleter._grace = 3600
            await a.put(w.address, ITEMS[:5])
            assert await a.delete(w.address, w.grant("a", IDS[:5])) == {}
            deals.named |= set(sorted(IDS[:5])[:4])
            w.service.deleter._grace = 0
            w.service.deleter.poke()
            await until(lambda: w.store.counts()[0] == 4)
            await a.put(w.address, ITEMS[5:])
            deals.named |= set(sorted(IDS[5:])[:4])
            w.service.leaser.clock._base += 1002
            await w.service.leaser._expire()
            assert w.store.counts()[0] == 8
            assert w.service.leaser.expired_shards == 1

    run(work)


def test_a_lease_on_what_the_deal_names_begins_anew(tmp_path):
    async def work():
        deals = Deals(*IDS[:3])
        async with world(tmp_path / "p", deals=deals, lease=1000, lease_grace=100) as w, w.client("a") as a:
            await a.put(w.address, ITEMS)
            w.service.leaser.clock._base += 1102
            await w.service.leaser._expire()
            assert await a.has(w.address, IDS) == (True,) * 3 + (False,) * 7
            assert w.service.leaser.expired_shards == 7
            assert w.store.usage(deal("a")) == (3, 3000)
            assert w.service.leaser.counts() == (0, 0)
            deals.named.clear()
            w.service.leaser.clock._base += 900  # within the new term
            await w.service.leaser._expire()
            assert await a.has(w.address, IDS[:3]) == (True,) * 3
            w.service.leaser.clock._base += 202
            await w.service.leaser._expire()
            assert await a.has(w.address, IDS[:3]) == (False,) * 3
            assert w.store.usage(deal("a")) == (0, 0)

    run(work)


def test_what_the_deal_names_and_the_disk_damaged_is_not_forgotten(tmp_path):
    """Storing it again gives it back to the deal, which still wants it."""

    async def work():
        deals = Deals(IDS[0])
        async with world(tmp_path / "p", deals=deals) as w, w.client("a") as a:
            await a.put(w.address, ITEMS[:2])
            for i in IDS[:2]:
                w.change(i)
                place = w.store.locate(i)
                assert await w.service._writer.call(lambda i=i, place=place: w.store.condemn(i, place))
            assert await a.delete(w.address, w.grant("a", IDS[:2])) == {IDS[0]: NAMED}
            assert w.store.damaged_count() == 1
            deals.named.clear()
            assert await a.delete(w.address, w.grant("a", IDS[:1])) == {}
            assert w.store.damaged_count() == 0

    run(work)
