"""Token buckets: what they let through in any span of time, and what is owed after a change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.swarm.bucket import TokenBucket


@given(st.lists(st.tuples(st.integers(1, 10_000_000), st.floats(0, 10)), max_size=60), st.floats(1000, 1e8))
def test_f064_the_bucket_bounds_every_span_of_time(takes, rate):
    burst = 1_000_000.0
    bucket = TokenBucket(rate, burst, 0.0)
    now, used = 0.0, 0
    for size, pause in takes:
        now += pause
        now += bucket.take(size, now)
        used += size
        assert used <= burst + rate * now * 1.001 + 1


def test_the_bucket_changes_its_rate_from_now_on():
    bucket = TokenBucket(100.0, 100.0, 0.0)
    assert bucket.take(100, 0.0) == 0
    assert bucket.take(100, 0.0) == pytest.approx(1.0)
    bucket.change(10.0, 100.0, 1.0)
    assert bucket.take(100, 1.0) == pytest.approx(10.0)


def test_what_is_not_used_is_saved_for_a_moment_only():
    bucket = TokenBucket(1000, 100, 0.0)
    bucket.take(1, 100.0)
    bucket.take(100, 100.0)
    assert bucket.wait(100.0) == pytest.approx(0.001)
    assert bucket.wait(100.001) == pytest.approx(0.0)
    assert bucket.take(5000, 100.001) == pytest.approx(5.0)


def test_what_is_owed_is_owed_in_time():
    bucket = TokenBucket(1000, 100, 0.0)
    assert bucket.take(5100, 0.0) == pytest.approx(5.0)
    bucket.change(10_000, 1000, 0.0)
    assert bucket.wait(0.0) == pytest.approx(5.0)
    bucket.change(10, 1, 6.0)
    assert bucket.take(11, 1000.0) == pytest.approx(1.0), "no more than the new burst is saved"


def test_a_clock_that_stands_or_goes_back_gives_nothing():
    bucket = TokenBucket(10, 20, 5.0)
    bucket.take(30, 5.0)
    assert bucket.wait(1.0) == pytest.approx(1.0)
    assert bucket.wait(5.5) == pytest.approx(0.5)


def test_a_rate_of_nothing_is_none():
    with pytest.raises(ValueError, match="more than nothing"):
        TokenBucket(0, 1, 0.0)
