"""The ledger's time follows the wall clock, but for jumps that do not last (fault 30)."""

from __future__ import annotations

from fsdecloud.ledgerd.clock import BELIEVED_AFTER, SteadyClock

DAY = 86400


def test_fault_030_a_jump_is_believed_when_it_lasts():
    wall, steady = 1_700_000_000.0, 5000.0
    clock = SteadyClock(lambda: wall, lambda: steady)
    assert clock() == 1_700_000_000

    def wait(seconds: float, drift: float = 0.0) -> None:
        nonlocal wall, steady
        wall, steady = wall + seconds + drift, steady + seconds

    wait(3 * DAY)  # a long sleep is none
    assert clock() == wall
    for _ in range(100):  # a clock that goes wrong, slowly set right
        wait(60, -5)
        assert clock() == int(wall)
    right = wall
    for jump in (DAY, -DAY, 1000 - wall, 4_102_444_800 - wall):
        wall += jump
        assert clock() == int(right)
        wait(1)
        right += 1
        assert clock() == int(right)
        wall -= jump
        assert clock() == int(right)
    wall -= DAY
    assert clock() == int(right)
    wait(BELIEVED_AFTER - 1)
    assert clock() == int(right + BELIEVED_AFTER - 1)
    wait(2)
    assert clock() == int(wall)
    wait(10)
    assert clock() == int(wall)
    wall += DAY
    assert clock() == int(wall) - DAY
    wait(BELIEVED_AFTER / 2)
    wall += DAY  # it jumps again: the time begins anew
    assert clock() == int(wall) - 2 * DAY
    wait(BELIEVED_AFTER / 2 + 10)
    assert clock() == int(wall) - 2 * DAY
