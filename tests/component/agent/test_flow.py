"""Who is asked next of one peer: reads go before repairs and audits, whatever waits."""

import trio
import trio.testing

from fsdecloud.agent.flow import Flow


def test_fault_064_a_read_waits_for_no_repair_but_the_one_under_way():
    """A line that brings one shard a second, and a storm of repairs that want it: each read comes after one of them at most,
    and the storm goes on when nobody reads."""
    order = []

    async def fetch(flow, name, *, is_background):
        asked = trio.current_time()
        async with flow.slot(100, is_background=is_background):
            order.append(name)
            await trio.sleep(1)
        return trio.current_time() - asked

    async def main():
        flow = Flow(trio.current_time, (100, 100, 100))
        async with trio.open_nursery() as nursery:
            for i in range(50):
                nursery.start_soon(lambda name: fetch(flow, name, is_background=True), f"repair {i}")
            await trio.sleep(3.5)
            for i in range(5):
                assert await fetch(flow, f"read {i}", is_background=False) <= 2.0  # twice what it takes alone
        assert len(order) == 55
        assert [at for at, name in enumerate(order) if "read" in name] == [4, 6, 8, 10, 12]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_fault_064_a_read_that_is_given_up_leaves_its_turn_to_others():
    async def main():
        flow = Flow(trio.current_time, (100, 100, 100))
        async with trio.open_nursery() as nursery:

            async def hold():
                async with flow.slot(100, is_background=True):
                    await trio.sleep(5)

            nursery.start_soon(hold)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(1):
                async with flow.slot(100, is_background=False):
                    raise AssertionError("there is no room")
            async with flow.slot(100, is_background=True):
                assert trio.current_time() >= 5

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
