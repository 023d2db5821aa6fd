"""What `decloud fsck` asks the agent: the shards that peers have, and the receipts that it keeps."""

import os
import sys
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, open_driver, open_ledger, run

from fsdecloud import codec
from fsdecloud.agent.journal import ROWS, UPLOADS, open_journal
from fsdecloud.agent.rows import BlobRow, UploadRecord, blob_key
from fsdecloud.types import BlobId, PeerId
from fsdecloud.wire import agentapi
from fsdecloud.wire.receipts import verify_receipt


async def receipts(driver) -> agentapi.ReceiptPage:
    return await driver.call("receipts", agentapi.ShardQuery(b""), agentapi.ReceiptPage)


def forged(record: UploadRecord) -> UploadRecord:
    """One receipt with another time than the one that was signed."""
    first, *rest = record.receipts
    receipt = verify_receipt(first)
    other = msgspec.structs.replace(receipt, time=receipt.time + 1)
    return msgspec.structs.replace(record, receipts=(codec.encode(other), *rest))


def exchanged(record: UploadRecord) -> UploadRecord:
    """Two peers that each have the other's shard."""
    (i, one), (j, other), *rest = record.holders
    return msgspec.structs.replace(record, holders=((i, other), (j, one), *rest))


def test_an_upload_that_goes_on_lacks_nothing(tmp_path):
    """Of what no peer was given yet nothing is missing; of what a peer gave a receipt for, its shard is."""

    async def shards(driver) -> agentapi.ShardPage:
        return await driver.call("shards", agentapi.ShardQuery(b""), agentapi.ShardPage)

    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await driver.wait_hosts(6)
            net.all()[5].is_down = True
            entry = driver.stage(os.urandom(1 << 19))
            await driver.store()
            await driver.wait_stored([entry], 5)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            page = await shards(driver)
            assert (page.blobs, page.under_way, page.short) == (1, 1, ())
            net.all()[0].shards.clear()
            page = await shards(driver)
            assert (page.blobs, page.under_way) == (1, 1)
            assert [(one.n, one.present, one.silent) for one in page.short] == [(5, 4, 0)]

    run(work)


CASES = {
    "forged": ("does not verify", lambda record, row: (forged(record), row)),
    "one receipt less": ("names shard", lambda r, row: (msgspec.structs.replace(r, receipts=r.receipts[1:]), row)),
    "exchanged": ("names shard", lambda record, row: (exchanged(record), row)),
    "noise": ("cannot be read", lambda record, _row: (record, b"noise")),
    "no location": ("does not know it", lambda record, _row: (record, None)),
    "another place": (
        "says otherwise",
        lambda record, row: (record, msgspec.structs.replace(row, exceptions=((2, PeerId(bytes(32))),))),
    ),
    "another shard": (
        "says otherwise",
        lambda record, row: (record, msgspec.structs.replace(row, shards=row.shards[::-1])),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_receipts_that_do_not_bear_out_the_map_are_named(tmp_path, case):
    says, change = CASES[case]

    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            entries = [driver.stage(os.urandom(1 << 19)) for _ in range(3)]
            await driver.store()
            await driver.wait_stored(entries, 6)
            page = await receipts(driver)
            assert (page.wrong, page.following) == ((), b"")
            assert page.receipts >= 6
            blob = driver.stored[entries[1]][1].blob
        journal = open_journal(tmp_path / "agent" / "journal", b"V" * 32)
        record = codec.decode(journal.get(UPLOADS, blob), UploadRecord)
        row = codec.decode(journal.get(ROWS, blob_key(BlobId(blob))), BlobRow)
        values = [v if v is None or isinstance(v, bytes) else codec.encode(v) for v in change(record, row)]
        journal.apply([(UPLOADS, blob, values[0]), (ROWS, blob_key(BlobId(blob)), values[1])])
        journal.close()
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            (wrong,) = (await receipts(driver)).wrong
            assert wrong.blob == blob
            assert says in wrong.reason

    run(work)
