"""The thread that opens chunks ahead of their readers."""

import trio
import trio.testing

from fsdecloud.driver.opener import Opener


def test_who_waits_for_a_job_that_another_reader_takes_back_goes_on():
    async def main():
        opener, buffer, gone_on = Opener(), bytearray(4), []  # its thread is busy elsewhere: it was not even started

        async def wait():
            await opener.wait(b"chunk")
            gone_on.append("chunk" in opener)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                opener.request(b"chunk", lambda: None, lambda out: out, buffer)
                for _ in range(2):
                    nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                assert opener.take_back(b"chunk") is buffer
        assert gone_on == [False, False]

    trio.run(main)
