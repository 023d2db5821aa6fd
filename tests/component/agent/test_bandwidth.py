"""The limits on bandwidth: they hold, they are fair, and what must not wait does not."""

import os
import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, open_driver, open_ledger, run

from fsdecloud.agent import hosts, ledgerlink, upload
from fsdecloud.agent.bandwidth import Limiter
from fsdecloud.limits import MIB
from fsdecloud.types import PeerId
from fsdecloud.wire import agentapi
from fsdecloud.wire.agentapi import Bandwidth, Empty


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(hosts, "SETTLE", 0.05)
    monkeypatch.setattr(hosts, "JOIN_WINDOW", 0.05)
    monkeypatch.setattr(hosts, "RECRUIT_FIRST", 0.05)
    monkeypatch.setattr(upload, "PACK_DELAY", 0.05)
    monkeypatch.setattr(ledgerlink, "REGISTRY_INTERVAL", 0.0)


def test_sending_and_fetching_keep_to_their_limits(tmp_path):
    """Times are bounded from below only: a busy machine is slower, never faster."""

    async def work():
        net = FakeTransport(6)
        limits = {"up": 8 * MIB, "down": 4 * MIB}
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, **limits) as driver:
            await driver.wait_hosts(6)
            entries = [driver.stage(os.urandom(300_000)) for _ in range(8)]
            start = trio.current_time()
            await driver.store()
            await driver.wait_stored(entries, 6)
            # All but the last message of each peer waited for the one before it.
            sent = (await driver.status()).uploaded_bytes
            assert sent >= 8 * 900_000
            assert trio.current_time() - start >= (sent - 1.6 * MIB) / (8 * MIB) - 0.2
            start = trio.current_time()
            for entry in entries:
                await driver.fetch(entry)
            fetched = (await driver.status()).downloaded_bytes
            assert trio.current_time() - start >= (fetched - 300_000) / (4 * MIB) - 0.2

    run(work)


def test_a_limit_changes_at_once_and_control_messages_do_not_wait_for_it(tmp_path):
    async def work():
        net = FakeTransport(6)
        limits = {"up": 16 << 10}
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, **limits) as driver:
            await driver.wait_hosts(6)
            entries = [driver.stage(os.urandom(300_000)) for _ in range(12)]
            await driver.store()  # takes minutes at that rate
            while sum(peer.puts for peer in net.all()) < 1:  # noqa: ASYNC110 - another task's state
                await trio.sleep(0.01)
            with trio.fail_after(5):
                # Peers are probed and asked what they have, and what is fetched has a limit of its own.
                known = await driver.call("shards", agentapi.ShardQuery(b""), agentapi.ShardPage)
                assert known is not None
                assert (await driver.status()).queued_entries == 12
            await driver.call("bandwidth", Bandwidth(up=0), Empty)
            with trio.fail_after(20):
                await driver.wait_stored(entries, 6)

    run(work)


def test_one_peers_queue_takes_nothing_from_another():
    async def work():
        limiter = Limiter(trio.current_time)
        limiter.set_rate(1 << 20)
        order = []

        async def take(peer, size):
            await limiter.take(PeerId(peer), size)
            order.append(peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(limiter.run)
            async with trio.open_nursery() as takers:
                for _ in range(20):
                    takers.start_soon(take, b"long", 50_000)
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(3):
                    takers.start_soon(take, b"short", 50_000)
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert order.index(b"short") <= 5
        assert [i for i, peer in enumerate(order) if peer == b"short"][-1] <= 9

    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))


def test_whoever_gives_up_does_not_hold_up_the_others():
    async def work():
        limiter = Limiter(trio.current_time)
        limiter.set_rate(1 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(limiter.run)
            await limiter.take(PeerId(b"a"), 1 << 20)
            with trio.move_on_after(0.1):
                await limiter.take(PeerId(b"a"), 1 << 30)
            with trio.fail_after(2):
                await limiter.take(PeerId(b"b"), 1000)
            assert limiter.rate == 1 << 20
            nursery.cancel_scope.cancel()

    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))
