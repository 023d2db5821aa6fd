"""The window follows a modelled line: it fills it, and does not fill the queue before it."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.swarm.window import Window

KIB = 1 << 10
MIB = 1 << 20


class Line:
    """A line of `rate` bytes per second and `delay` seconds, with an endless queue before it."""

    def __init__(self, rate, delay, size=64 * KIB):
        self.rate, self.delay, self.size = rate, delay, size
        self.now = self.free_at = 0.0
        self.answers = []

    def run(self, window, seconds):
        """Keep the window full for a time; return bytes per second and the mean bytes under way."""
        end, done, weighted, began = self.now + seconds, 0, 0.0, self.now
        while self.now < end:
            while window.fits(self.size):
                window.sent(self.size, self.now)
                self.free_at = max(self.free_at, self.now) + self.size / self.rate
                heapq.heappush(self.answers, (self.free_at + self.delay, self.now))
            at, since = heapq.heappop(self.answers)
            weighted += window.in_flight * (at - self.now)
            self.now = at
            window.answered(self.size, at - since, at)
            done += self.size
        return done / (self.now - began), weighted / (self.now - began)


@pytest.mark.parametrize(("rate", "delay"), [(10e6, 0.1), (1e6, 0.1), (50e6, 0.02), (2e6, 0.01), (100e6, 0.05)])
def test_it_fills_the_line_and_not_the_queue(rate, delay):
    line, window = Line(rate, delay), Window(256 * KIB, 128 * KIB, 8 * MIB)
    line.run(window, 20)
    got, under_way = line.run(window, 20)
    assert got >= 0.75 * min(rate, 8 * MIB / delay)
    assert under_way <= 4 * rate * delay + 512 * KIB


def test_it_follows_a_line_that_becomes_slower_and_faster_again():
    line, window = Line(50e6, 0.1), Window(256 * KIB, 128 * KIB, 16 * MIB)
    assert line.run(window, 20)[0] > 25e6
    line.rate = 1e6
    line.run(window, 60)
    got, under_way = line.run(window, 20)
    assert got > 0.8e6
    assert under_way < 1.5 * MIB
    line.rate = 50e6
    line.run(window, 30)
    assert line.run(window, 10)[0] > 20e6


def test_what_nobody_held_back_changes_nothing():
    window = Window(MIB, 128 * KIB, 8 * MIB)
    for i in range(100):
        assert window.fits(KIB)
        window.sent(KIB, float(i))
        window.answered(KIB, 0.5, i + 0.5)
    assert window.size == MIB


def test_one_message_always_goes_and_failures_halve_it():
    window = Window(MIB, 128 * KIB, 8 * MIB)
    assert window.fits(100 * MIB)
    window.sent(100 * MIB, 0.0)
    assert not window.fits(1)
    window.failed(100 * MIB)
    assert window.size == MIB / 2
    for _ in range(10):
        window.sent(1, 0.0)
        window.failed(1)
    assert window.size == 128 * KIB
    assert window.in_flight == 0
    with pytest.raises(ValueError, match="between"):
        Window(1, 2, 3)


@given(st.lists(st.tuples(st.integers(0, 2 * MIB), st.floats(0, 10), st.integers(0, 2)), max_size=200))
def test_it_stays_between_its_bounds(steps):
    window, now = Window(MIB, 128 * KIB, 8 * MIB), 0.0
    for size, seconds, how in steps:
        if window.fits(size):
            window.sent(size, now)
            now += seconds
            if how == 0:
                window.answered(size, seconds, now)
            else:
                (window.failed if how == 1 else window.dropped)(size)
        assert 128 * KIB <= window.size <= 8 * MIB
        assert window.in_flight == 0
