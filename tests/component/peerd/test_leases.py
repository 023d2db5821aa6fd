"""A peer keeps what it signed for as long as it said, by a clock that nobody sets, and no longer than its grace period."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import trio
from peerworld import NETWORK, PEER, deal, run, shard, until, world

from fsdecloud.errors import PeerRefused, PeerUnavailable
from fsdecloud.net.address import Address
from fsdecloud.net.pool import open_pool
from fsdecloud.peerd import leases
from fsdecloud.peerd.leases import LeaseClock
from fsdecloud.store.shards import ShardStore


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(leases, "PAUSE", 0.01)


def forward(w, seconds):
    """Let lease time pass."""
    w.service.leaser.clock._base += seconds


async def expired(w):
    """Wait for what one look at the leases removes."""
    await w.service.leaser._expire()


def test_a_receipt_names_its_end_and_renewing_begins_it_anew(tmp_path):
    async def work():
        async with world(tmp_path / "p", lease=1000, lease_grace=100) as w, w.client("a") as a:
            first = await a.put(w.address, [shard(i) for i in range(5)])
            assert first.term == 1000
            assert abs(first.time - time.time()) < 30
            forward(w, 900)
            ids = [shard(i)[0] for i in range(5)]
            assert w.service.leaser.counts() == (5, 0)
            again = await a.renew(w.address, [*ids[:3], bytes(32)])
            assert again.term == 1000
            assert {item.id: item.length for item in again.shards} == dict.fromkeys(ids[:3], 1000)
            forward(w, 150)
            assert w.service.leaser.counts() == (0, 2)
            await expired(w)  # over, within the grace period
            assert await a.has(w.address, ids) == (True,) * 5
            assert await a.renew(w.address, [ids[4]]) is not None  # it is not too late yet
            forward(w, 60)
            await expired(w)
            assert await a.has(w.address, ids) == (True, True, True, False, True)
            assert w.service.leaser.expired_shards == 1
            assert await a.renew(w.address, [ids[3]]) is None
            await until(lambda: w.store.used_bytes == 4000 or w.store.counts()[0] == 4)

    run(work)


def test_a_lease_is_renewed_by_its_own_deal_only(tmp_path):
    async def work():
        policy = 'admit = ["*"]\n'
        async with world(tmp_path / "p", policy=policy, lease=1000, lease_grace=0) as w:
            async with w.client("a") as a, w.client("b") as b, w.client() as nobody:
                await a.put(w.address, [shard(1)])
                assert await b.renew(w.address, [shard(1)[0]]) is None
                with pytest.raises(PeerRefused, match="no deal key"):
                    await nobody.renew(w.address, [shard(1)[0]])
                forward(w, 1002)
                await expired(w)
                assert await a.has(w.address, [shard(1)[0]]) == (False,)
            (w.path / "policy.toml").write_text(f'admit = ["*"]\ndeny = ["{deal("a").hex()}"]\n')
            async with w.client("a") as a:  # who is not wanted any more keeps what was promised, and gets no more
                with pytest.raises(PeerRefused, match="does not admit"):
                    await a.renew(w.address, [shard(1)[0]])

    run(work)


def test_many_shards_in_one_message(tmp_path):
    async def work():
        async with world(tmp_path / "p") as w, w.client("a") as a:
            ids = [shard(i, 20)[0] for i in range(4096)]
            for start in range(0, 4096, 1024):
                await a.put(w.address, [shard(i, 20) for i in range(start, start + 1024)])
            receipt = await a.renew(w.address, ids)
            assert [item.id for item in receipt.shards] == ids
            assert w.service.leaser.renewed_shards == 4096

    run(work)


@pytest.mark.parametrize("jump", [10 * 365 * 86400, -10 * 365 * 86400])
def test_the_wall_clock_may_jump(tmp_path, monkeypatch, jump):
    """Ten years forward or back: nothing ends, and nothing lives for ever."""

    async def work():
        async with world(tmp_path / "p", lease=1000, lease_grace=0) as w, w.client("a") as a:
            await a.put(w.address, [shard(1)])
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + jump)
            await expired(w)
            assert await a.has(w.address, [shard(1)[0]]) == (True,)
            forward(w, 1002)
            await expired(w)
            assert await a.has(w.address, [shard(1)[0]]) == (False,)

    run(work)


def test_the_client_of_a_peer_with_a_clock_of_long_ago(tmp_path, monkeypatch):
    """Its receipts are over before they begin: nothing counts as stored there."""

    async def work():
        async with world(tmp_path / "p", lease=1000) as w, w.client("a") as a:
            real = time.time
            monkeypatch.setattr("fsdecloud.peerd.server.time.time", lambda: 1e6)
            monkeypatch.setattr("fsdecloud.net.pool.time", type("T", (), {"time": staticmethod(real)}))
            with pytest.raises(PeerUnavailable, match="expired"):
                await a.put(w.address, [shard(1)])

    run(work)


def test_lease_time_is_time_served(tmp_path):
    """It goes on where it was saved, whatever happened meanwhile, and never backwards by more than that."""
    ticks = [1000.0]
    (tmp_path / "s").mkdir()
    with ShardStore(tmp_path / "s", 1 << 20, reserve=0, map_size=1 << 26) as store:
        clock = LeaseClock(store, lambda: ticks[0])
        begin = clock.now()
        assert begin > 0
        ticks[0] += 500
        clock.save()
        ticks[0] += 30  # a crash: not saved
    ticks[0] = 3.0  # another boot, years later
    with ShardStore(tmp_path / "s", 1 << 20, reserve=0, map_size=1 << 26) as store:
        clock = LeaseClock(store, lambda: ticks[0])
        assert clock.now() == begin + 500
        ticks[0] -= 2  # no monotonic clock does that
        assert clock.now() == begin + 500


def test_a_restart_keeps_leases(tmp_path):
    async def work():
        async with world(tmp_path / "p", lease=1000, lease_grace=0) as w, w.client("a") as a:
            await a.put(w.address, [shard(i) for i in range(3)])
        async with world(tmp_path / "p", lease=1000, lease_grace=0) as w, w.client("a") as a:
            assert await a.has(w.address, [shard(0)[0]]) == (True,)
            await a.renew(w.address, [shard(0)[0]])
            forward(w, 1002)
            await trio.sleep(1.1)  # what was renewed a moment later ends a moment later, or with the others
            await expired(w)
            assert await a.has(w.address, [shard(1)[0], shard(2)[0]]) == (False, False)

    run(work)


def test_renewals_of_a_full_peer_that_leaves(tmp_path):
    """Neither keeps anybody from renewing what is there."""

    async def work():
        async with (
            world(tmp_path / "p", quota=3000) as w,
            open_pool(network=NETWORK, deal_seed=lambda _p: b"a" * 32) as a,
        ):
            address = Address(w.address.host, w.address.port, PEER, NETWORK)
            await a.put(address, [shard(1)])
            w.service._departure.leave()
            assert (await a.renew(address, [shard(1)[0]])).shards[0].length == 1000

    run(work)
