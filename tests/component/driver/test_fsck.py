"""fsck finds nothing wrong in whatever a crash leaves of a volume in use."""

from __future__ import annotations

import pytest

from tests.component.driver.fsckworld import Life, copy_of, look, texts


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 60))])
def test_nothing_is_wrong_after_a_crash_at_any_time(run_driver, seed: int) -> None:
    async def test(driver) -> None:
        life = Life(driver, seed)
        for _round in range(6):
            await life.run(60)
            report = await look(copy_of(driver.directory))
            assert texts(report.findings) == []
            assert report.exit_code == 0
        await driver.journal.flush()
        report = await look(copy_of(driver.directory))
        assert texts(report.findings) == []
        assert report.inodes == driver.core.files
        assert report.bytes == driver.core.bytes

    run_driver(test)
