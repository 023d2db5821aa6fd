"""Small writes: durable without an fsync soon, and an fsync of one costs about its bytes."""

from __future__ import annotations

import os

from fsdecloud import limits

MIB = limits.MIB


def test_what_was_written_is_durable_without_fsync_or_commit(run_driver):
    """The journal's own task does it; here no other runs that would."""

    async def test(driver):
        file = driver.new_file()
        driver.files.write_nowait(file, 0, b"written, closed, forgotten")
        await driver.files.check_error(file)
        driver.files.write_nowait(file, MIB, os.urandom(MIB))
        wanted = driver.core.change_sequence
        while driver.journal.durable_sequence < wanted or file.chunks.keys() - {0}:
            await driver.journal.wait_commit()
        after = await driver.crashed()
        assert await after.read(file.ino, 0, 100) == b"written, closed, forgotten".ljust(100, b"\0")
        assert await after.read(file.ino, MIB, MIB) == await driver.read(file.ino, MIB, MIB)
        after.close()

    assert limits.GROUP_COMMIT_DELAY <= 1.0
    run_driver(test)


def test_an_fsync_of_4_kib_writes_on_the_order_of_4_kib(run_driver, monkeypatch):
    async def test(driver):
        file = driver.new_file()
        data = bytearray(os.urandom(MIB))
        driver.files.write_nowait(file, 0, bytes(data))
        await driver.fsync(file)
        written = 0

        def counted(write):
            def call(fd, parts, *more):
                nonlocal written
                count = write(fd, parts, *more)
                written += count
                return count

            return call

        for name in ("pwrite", "pwritev", "write", "writev"):
            monkeypatch.setattr(os, name, counted(getattr(os, name)))
        for number in range(100):
            page = os.urandom(4096)
            data[number * 8192 : number * 8192 + 4096] = page
            driver.files.write_nowait(file, number * 8192, page)
            await driver.fsync(file)
        monkeypatch.undo()
        assert 100 * 4096 <= written <= 100 * 3 * 4096
        assert await driver.read(file.ino, 0, MIB) == data
        after = await driver.crashed()
        assert await after.read(file.ino, 0, MIB) == data
        after.close()

    run_driver(test)
