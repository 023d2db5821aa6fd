"""A peer's shard store: durable when it says so, within its quota, and itself again after any end."""

import errno
import os
import signal
import subprocess
import sys

import blake3
import pytest

from fsdecloud.errors import MalformedError, StoreError, StoreFull
from fsdecloud.limits import MESSAGE_MAX
from fsdecloud.store.shards import ROW_COST, ShardStore

MAP = 1 << 28


def shard(i, size=1000):
    data = (b"%08d" % i).ljust(size, b"s")
    return blake3.blake3(data).digest(), data


def open_store(path, quota=1 << 30, **options):
    return ShardStore(path, quota, reserve=options.pop("reserve", 0), map_size=MAP, **options)


def test_what_is_stored_is_read_also_after_reopening(tmp_path):
    shards = [shard(i, size) for i, size in enumerate((0, 8, 1000, 100_000, 1 << 20))]
    shards[0] = (blake3.blake3(b"").digest(), b"")
    with open_store(tmp_path / "p") as store:
        assert store.put_many(shards) == [""] * 5
        assert store.put_many([(i, memoryview(d)) for i, d in shards]) == [""] * 5  # once more: nothing to do
        assert store.counts() == (5, sum(len(d) for _, d in shards))
    with open_store(tmp_path / "p") as store:
        for i, data in shards:
            assert store.get(i) == data
        i, data = shards[3]
        assert store.get(i, 10, 20) == data[10:30]
        assert store.get(i, 99_990) == data[99_990:]
        with pytest.raises(MalformedError):
            store.get(i, 99_990, 11)
        with pytest.raises(KeyError):
            store.get(bytes(32))
        assert store.has_many([i, bytes(32)]) == (True, False)
        assert store.counts()[0] == 5


def test_fault_69_bytes_that_are_not_their_id_are_refused(tmp_path):
    with open_store(tmp_path / "p") as store:
        good = shard(1)
        large = bytes(MESSAGE_MAX + 1)
        reasons = store.put_many([(bytes(32), b"x"), good, (blake3.blake3(large).digest(), large)])
        assert [bool(why) for why in reasons] == [True, False, True]
        assert store.counts() == (1, 1000)


def test_fault_57_quota_and_reserve_are_checked_before_anything_is_written(tmp_path):
    with open_store(tmp_path / "p", quota=10 * (1000 + ROW_COST)) as store:
        reasons = store.put_many([shard(i) for i in range(12)])
        assert reasons == [""] * 10 + ["full"] * 2
        assert store.put_many([shard(3)]) == [""]  # is here already
        assert store.used_bytes <= store.quota
        assert store.put_many([shard(20), shard(20)]) == ["", ""]
        assert store.counts()[0] == 11  # rows cost less than was reckoned
    with open_store(tmp_path / "q", reserve=1 << 62) as store:
        assert store.put_many([shard(1)]) == ["full"]
        assert store.free_bytes() == 0


def test_a_damaged_shard_is_repaired_by_storing_it_again(tmp_path):
    i, data = shard(1)
    with open_store(tmp_path / "p") as store:
        store.put_many([(i, data)])
    (segment,) = (tmp_path / "p" / "shards").glob("*.seg")
    segment.write_bytes(b"X" + segment.read_bytes()[1:])
    with open_store(tmp_path / "p") as store:
        assert store.get(i) != data
        assert store.put_many([(i, data)]) == [""]
        assert store.get(i) == data
        assert store.counts() == (1, 1000)
    with open_store(tmp_path / "p") as store:  # the damaged segment held nothing else
        assert not segment.exists()
        assert store.get(i) == data


class FailingDisk:
    """`os`, but the n-th call that writes fails, once or from then on."""

    def __init__(self, n, *, forever, code):
        self.left, self.forever, self.code = n, forever, code
        self.hit = False

    def _call(self, function, *args):
        self.left -= 1
        if self.left == 0 or (self.forever and self.left < 0):
            self.hit = True
            raise OSError(self.code, os.strerror(self.code))
        return function(*args)

    def pwritev(self, *args):
        return self._call(os.pwritev, *args)

    def fdatasync(self, *args):
        return self._call(os.fdatasync, *args)

    def fsync(self, *args):
        return self._call(os.fsync, *args)


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_fault_13_and_15_every_failing_write(tmp_path, code, forever):
    for n in range(1, 20):
        path = tmp_path / f"{n}"
        disk = FailingDisk(n, forever=forever, code=code)
        stored = {}
        with open_store(path, disk=disk) as store:
            for i in range(4):
                item = shard(i)
                try:
                    if store.put_many([item]) == [""]:
                        stored[item[0]] = item[1]
                except StoreError as exc:
                    assert isinstance(exc, StoreFull) == (code == errno.ENOSPC)  # noqa: PT017
            for i, data in stored.items():
                assert store.get(i) == data
        with open_store(path) as store:
            assert store.counts()[0] == len(stored)
            for i, data in stored.items():
                assert store.get(i) == data
            assert store.put_many([shard(i) for i in range(4)]) == [""] * 4
        if not disk.hit:
            assert len(stored) == 4
            return
    raise AssertionError("never got through")


WRITER = """
import sys, blake3
from pathlib import Path
from fsdecloud.store.shards import ShardStore
store = ShardStore(Path(sys.argv[1]), 1 << 30, reserve=0, map_size=1 << 28)
first = store.counts()[0]
for i in range(first, first + 100000):
    batch = []
    for j in range(3):
        data = (b"%08d" % i).ljust(5000 + j, b"k")
        batch.append((blake3.blake3(data).digest(), data))
    assert store.put_many(batch) == [""] * 3
    sys.stdout.write("".join(s.hex() + "\\n" for s, _ in batch)); sys.stdout.flush()
"""


def test_fault_1_killed_at_any_moment_it_keeps_what_it_acknowledged(tmp_path):
    path = tmp_path / "p"
    acknowledged = []
    for round_ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(30 + 40 * round_):
            acknowledged.append(bytes.fromhex(writer.stdout.readline()))
        writer.send_signal(signal.SIGKILL)
        acknowledged += [bytes.fromhex(line) for line in writer.stdout if len(line) == 65]
        writer.wait()
        writer.stdout.close()
        with open_store(path) as store:
            for i in acknowledged:
                assert blake3.blake3(store.get(i)).digest() == i
            count, size = store.counts()
            assert count >= len(acknowledged)
            assert size <= store.used_bytes
