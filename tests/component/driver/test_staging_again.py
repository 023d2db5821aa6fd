"""An entry that was handed over and is staged again belongs to the index, whatever is committed together."""

from __future__ import annotations

import os

from fsdecloud.crypto.seal import Kind


def test_an_entry_staged_again_stays_in_the_index(run_driver):
    async def test(driver):
        data = os.urandom(5000)
        (ref,) = await driver.entries.stage([(Kind.CHUNK, data)])
        await driver.journal.commit()
        old = driver.entries.staged[ref.id]
        driver.entries.mark_complete([ref.id])
        driver.staged.roll()
        driver.entries.release(old.segment)  # leaves the index with the next commit, which also
        await driver.entries.stage([(Kind.CHUNK, data)])  # has it staged anew
        await driver.journal.commit()
        assert dict(driver.store.staged()) == {ref.id: driver.entries.staged[ref.id]}
        assert driver.entries.staged[ref.id] != old

    run_driver(test)
