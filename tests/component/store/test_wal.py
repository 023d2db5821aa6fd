"""The write-ahead log: what was acknowledged is read back, in order, whatever failed, tore or was used again."""

from __future__ import annotations

import os
import random
import shutil

import pytest

from fsdecloud.errors import StoreCorrupt, StoreError, StoreFull
from fsdecloud.store.wal import BLOCK, Wal

KEY = bytes(range(32))
SIZE = 16 * BLOCK


class FlakyDisk:
    """Fails or cuts short the writes it is told to."""

    def __init__(self) -> None:
        self.fail: list[tuple[int, int]] = []
        """For each of the next writes: (how many bytes it takes, errno or 0)."""

    def pwritev(self, fd, buffers, offset):
        data = b"".join(buffers)
        if not self.fail:
            return os.pwrite(fd, data, offset)
        taken, error = self.fail.pop(0)
        written = os.pwrite(fd, data[:taken], offset) if taken else 0
        if error:
            raise OSError(error, os.strerror(error))
        return written

    fdatasync = staticmethod(os.fdatasync)
    fsync = staticmethod(os.fsync)


def opened(path, disk=os) -> Wal:
    path.mkdir(exist_ok=True)
    return Wal(path, KEY, disk=disk, file_size=SIZE)


def contents(path, start=1) -> dict[int, bytes]:
    wal = opened(path)
    try:
        return dict(wal.read(start))
    finally:
        wal.close()


def test_files_are_used_again(tmp_path):
    """A long life takes few files, and none of what an older life left in them is read."""
    wal = opened(tmp_path / "log")
    for sequence in range(1, 500):
        wal.append(sequence, b"%d" % sequence * 50)
        if sequence % 7 == 0:
            wal.prepare()
        if sequence % 20 == 0:
            wal.drop_before(sequence - 10)
            assert len(list((tmp_path / "log").iterdir())) <= 4
    expected = {sequence: b"%d" % sequence * 50 for sequence in range(470, 500)}
    assert dict(wal.read(470)) == expected
    wal.close()
    assert contents(tmp_path / "log", 470) == expected


@pytest.mark.parametrize("seed", range(40))
def test_against_a_model(tmp_path, seed):
    """Random lives: records of all sizes, writes that fail half-way and are tried again with other contents, kills."""
    chance = random.Random(seed)
    disk = FlakyDisk()
    path = tmp_path / "log"
    wal = opened(path, disk)
    model: dict[int, bytes] = {}
    sequence, floor = 1, 1
    for _ in range(120):
        step = chance.random()
        if step < 0.70:
            data = chance.randbytes(chance.choice([0, 10, 3000, BLOCK, 9000, 2 * SIZE]))
            disk.fail = [
                (chance.randrange(0, 9000), chance.choice([0, 0, 5, 28])) for _ in range(chance.choice([0, 0, 1, 2]))
            ]
            try:
                wal.append(sequence, data)
            except StoreError:
                continue  # the same number again, probably with something else
            finally:
                disk.fail = []
            model[sequence] = data
            sequence += 1
        elif step < 0.80:
            floor = max(floor, sequence - chance.randrange(1, 30))
            wal.drop_before(floor)
            model = {number: data for number, data in model.items() if number >= floor}
        elif step < 0.88:
            wal.prepare()
        else:  # killed: another process opens it
            wal.close()
            wal = opened(path, disk)
            found = dict(wal.read(floor))
            assert {number: found[number] for number in model} == model
            extra = found.keys() - model.keys()
            assert extra <= {sequence}  # one that was written and never acknowledged may be there
            if extra:
                model[sequence] = found[sequence]
                sequence += 1
            wal.begin_file()
    found = dict(wal.read(floor))
    assert {number: data for number, data in found.items() if number < sequence} == model
    wal.close()


def test_a_torn_tail_is_the_end(tmp_path):
    """Whatever part of the last record's blocks was written, the ones before it are there and nothing else is."""
    wal = opened(tmp_path / "log")
    for sequence in range(1, 4):
        wal.append(sequence, bytes([sequence]) * 9000)
    wal.close()
    (file,) = (tmp_path / "log").iterdir()
    whole = file.read_bytes()
    start = BLOCK + 2 * 3 * BLOCK
    chance = random.Random(5)
    for _ in range(60):
        shutil.rmtree(tmp_path / "torn", ignore_errors=True)
        data = bytearray(whole)
        sectors = [at for at in range(start, start + 3 * BLOCK, 512) if chance.random() < 0.5]
        for at in sectors:
            data[at : at + 512] = bytes(512)
        (tmp_path / "torn").mkdir()
        (tmp_path / "torn" / file.name).write_bytes(data)
        found = contents(tmp_path / "torn")
        assert list(found)[:2] == [1, 2]
        assert len(found) == (2 if any(any(whole[at : at + 512]) for at in sectors) else 3)


def test_damage_before_the_end_is_an_error(tmp_path):
    wal = opened(tmp_path / "log")
    for sequence in range(1, 40):
        wal.append(sequence, bytes(1000))
    wal.close()
    files = sorted((tmp_path / "log").iterdir())
    assert len(files) >= 3
    for file, position in ((files[0], BLOCK + 5), (files[0], 3), (files[0], 2 * BLOCK + 90), (files[1], 20)):
        kept = file.read_bytes()
        data = bytearray(kept)
        data[position] ^= 4
        file.write_bytes(data)
        with pytest.raises(StoreCorrupt):
            contents(tmp_path / "log")
        file.write_bytes(kept)
    files[1].rename(tmp_path / "away")
    with pytest.raises(StoreCorrupt):
        contents(tmp_path / "log")


def test_13_a_full_disk_is_said(tmp_path):
    disk = FlakyDisk()
    wal = opened(tmp_path / "log", disk)
    disk.fail = [(100, 28)]
    with pytest.raises(StoreFull):
        wal.append(1, b"x")
    wal.append(1, b"x")
    assert dict(wal.read(1)) == {1: b"x"}
    wal.close()
