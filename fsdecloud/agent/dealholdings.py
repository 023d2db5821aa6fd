"""What the volume has at one peer by its location map: for a deal that begins where something is stored already.

Called only from the trio thread.
"""

from __future__ import annotations

from typing import Final

from fsdecloud import codec
from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.garbage import Garbage
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.locations import LocationMap
from fsdecloud.agent.rows import BLOB_PREFIX, UploadRecord, decode_blob_row, shard_places
from fsdecloud.agent.upload import Uploader
from fsdecloud.fs.keys import prefix_end
from fsdecloud.types import BlobId, PeerId, ShardId

PAGE: Final = 512
"""Rows looked at in one step."""


async def shards_at(
    locations: LocationMap, hosts: Hosts, uploader: Uploader, garbage: Garbage, peer: PeerId
) -> list[tuple[ShardId, int]]:
    """Return the shards, with their lengths, that a peer has by the location map and by the receipts of what is on its way.

    What is condemned is left out, and so are whole copies of the map's own nodes: they are small, and are revised when they are
    stored. Raises RemoteError when the map cannot be read.
    """
    found: dict[ShardId, int] = {}
    after, stop = BLOB_PREFIX, prefix_end(BLOB_PREFIX)
    while True:
        rows = await locations.rows_after(after, stop, PAGE)
        for key, value in rows:
            blob, row = BlobId(key[1:]), decode_blob_row(value)
            if garbage.get(blob) is not None or uploader.is_on_its_way(blob):
                continue
            for index, holder in shard_places(row, hosts.ranking(blob, row.epoch)).items():
                if holder == peer:
                    found[row.shard(blob, index)] = shard_size(row.k, row.length)
        if len(rows) < PAGE:
            break
        after = rows[-1][0]
    for name, value in uploader.records():
        record = codec.decode(value, UploadRecord)
        for index, holder in record.holders:
            if holder == peer and garbage.get(BlobId(name)) is None:
                shard = record.shards[index] if record.shards else ShardId(name)
                found[shard] = shard_size(record.k, record.length)
    return list(found.items())
