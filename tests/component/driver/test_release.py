"""A staged segment becomes part of the cache: at no moment is an entry of it found in neither."""

from __future__ import annotations

import trio

from fsdecloud.crypto.seal import Kind, open_entry
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.uploads import Uploads
from fsdecloud.store.cache import CacheStore
from fsdecloud.store.segments import SegmentStore


class NoAgent:
    """Everything here must come from this machine."""

    async def call(self, *_arguments, **_options):
        raise AssertionError("an entry that is here was asked of the agent")


def test_entries_stay_readable_while_their_segment_is_released(tmp_path):
    async def main() -> None:
        with SegmentStore(tmp_path / "staged", "staged") as staged, CacheStore(tmp_path / "cache") as cache:
            entries = Entries(bytes(32), staged, cache, NoAgent(), 5.0)
            uploads = Uploads(entries, bytes(32), lambda: None, lambda: 0.0)
            small, large = await entries.stage([(Kind.NODE, b"node" * 100), (Kind.CHUNK, bytes(range(256)) * 300)])

            async def check() -> None:
                sealed = entries.small_nowait(small.id)
                assert sealed is not None
                assert open_entry(small.key, Kind.NODE, sealed) == b"node" * 100
                assert await entries.get(large, Kind.CHUNK) == bytes(range(256)) * 300

            entries.mark_complete([small.id, large.id])
            await check()
            staged.roll()
            (number,) = entries.finished_segments()
            uploads._adopt(number)
            await check()
            await uploads.release()
            assert not entries.staged
            assert staged.sizes() == {}
            await check()

    trio.run(main)


def test_a_segment_being_written_is_not_released(tmp_path):
    async def main() -> None:
        with SegmentStore(tmp_path / "staged", "staged") as staged, CacheStore(tmp_path / "cache") as cache:
            entries = Entries(bytes(32), staged, cache, NoAgent(), 5.0)
            (ref,) = await entries.stage([(Kind.NODE, b"one")])
            entries.mark_complete([ref.id])
            token = object()
            entries._appending[token] = staged.current  # a thread that may still append to this segment
            staged.roll()
            assert entries.finished_segments() == []
            del entries._appending[token]
            assert entries.finished_segments() == [1]

    trio.run(main)
