"""`decloud log --verify`: is the volume's whole record what the ledger says, with nothing taken on trust.

The chain is verified block by block from genesis (work, links, signatures, state roots), then each anchor of the volume
found in it: sequence without gaps, link to the one before, commitment over manifest, tree root and record batches, and
every batch's Merkle root recomputed from the records themselves. Only the decryption is the driver's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fsdecloud.cli import client, drivers
from fsdecloud.config import Paths
from fsdecloud.crypto import merkle
from fsdecloud.errors import LedgerError, LedgerUnavailable, UsageError
from fsdecloud.fs.records import batch_root
from fsdecloud.ledger.blocks import decode_block
from fsdecloud.ledger.network import network_id
from fsdecloud.ledger.transactions import NO_LINK, Anchor, decode_tx, link
from fsdecloud.ledger.verify import verify_chain
from fsdecloud.ledgerd.setup import load_network
from fsdecloud.types import BlockId
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import AnchorContents, AnchorNumber, LogPage, LogQuery
from fsdecloud.wire.ledgerapi import BlockList, BlockQuery, LedgerStatus

_BLOCKS_AT_ONCE: Final = 256
_TIMEOUT: Final = 120.0


@dataclass(frozen=True, slots=True)
class LogReport:
    """What was verified."""

    volume: str
    network: str
    height: int
    anchors: int
    batches: int
    records: int
    pending: int
    """Records that no anchor in a block has yet: nothing proves those."""


class VerificationFailed(LedgerError):
    """The record and the ledger differ; the text says where."""


def verify_log(paths: Paths, volume: str, volume_id: bytes, progress: Callable[[str], None]) -> LogReport:
    """Verify the record of a mounted volume.

    Raises VerificationFailed or InvalidBlock at the first difference, UsageError when there is no ledger here.
    """
    document = load_network(paths)
    if document is None:
        raise UsageError("this machine has no ledger: decloud up, or decloud ledger run --bootstrap URL")
    anchors: list[tuple[int, Anchor]] = []
    height = 0
    with client.Client(paths.socket("ledger"), error=LedgerUnavailable) as ledger:
        status = ledger.call("status", Empty(), LedgerStatus, timeout=_TIMEOUT)

        def blocks() -> Iterator[tuple[BlockId | None, bytes]]:
            first = 1
            while first <= status.height:
                count = min(_BLOCKS_AT_ONCE, status.height - first + 1)
                found = ledger.call("blocks", BlockQuery(first, count), BlockList, timeout=_TIMEOUT).blocks
                if not found:
                    raise VerificationFailed(
                        f"the ledger daemon has no block {first}, but says its height is {status.height}"
                    )
                for data in found:
                    block = decode_block(data, document.block_max)
                    decoded = map(decode_tx, block.transactions)
                    anchors.extend((first, tx) for tx in decoded if isinstance(tx, Anchor) and tx.volume == volume_id)
                    yield None, data
                    first += 1

        for point in verify_chain(document, blocks()):
            height = point.height
            if height % 100 == 0:
                progress(f"verified {height} of {status.height} blocks")
    if height != status.height or network_id(document) != status.network:
        raise VerificationFailed(f"the chain ends at block {height}, the ledger daemon says {status.height}")
    batches, records, pending = _verify_anchors(paths, volume, anchors, progress)
    return LogReport(volume, network_id(document).hex(), height, len(anchors), batches, records, pending)


def _verify_anchors(
    paths: Paths, volume: str, anchors: list[tuple[int, Anchor]], progress: Callable[[str], None]
) -> tuple[int, int, int]:
    """Check anchors and batches; return how many batches, anchored records and pending records there are."""
    batches = records = 0
    previous = NO_LINK
    with client.Client(paths.socket(drivers.PREFIX + volume), error=drivers.UnansweredDriver) as driver:
        pages = _Pages(driver)
        for number, (height, anchor) in enumerate(anchors, start=1):
            where = f"anchor {anchor.sequence} in block {height}"
            if anchor.sequence != number or anchor.previous != previous:
                raise VerificationFailed(f"{where} does not follow anchor {number - 1}")
            previous = link(anchor.volume, anchor.sequence, anchor.commitment)
            contents = driver.call("contents", AnchorNumber(number), AnchorContents, timeout=_TIMEOUT)
            leaves = [count.to_bytes(8, "big") + root for count, root in contents.batches]
            if merkle.root([contents.manifest, contents.root, merkle.root(leaves)]) != anchor.commitment:
                raise VerificationFailed(f"{where} does not commit to its manifest, tree and batches")
            for index, (count, root) in enumerate(contents.batches):
                rows = pages.rows(number)
                if len(rows) != count or batch_root(rows) != root:
                    raise VerificationFailed(f"batch {index} of {where}: the records are not those committed to")
                batches += 1
                records += count
            progress(f"verified {number} of {len(anchors)} anchors")
        pending = pages.pending(len(anchors))
    return batches, records, pending


class _Pages:
    """The driver's log, a batch at a time."""

    def __init__(self, driver: client.Client) -> None:
        self._driver = driver
        self._cursor = 0

    def rows(self, sequence: int) -> list[bytes]:
        """Return the records of the next batch, which must belong to this anchor."""
        page = self._next()
        if any(line.sequence != sequence for line in page.lines):
            raise VerificationFailed(f"the driver's next batch is not of anchor {sequence}")
        return [line.record for line in page.lines]

    def pending(self, last: int) -> int:
        """Return how many records follow the last anchor that was verified."""
        count = 0
        while self._cursor >= 0:
            page = self._next()
            if any(0 < line.sequence <= last for line in page.lines):
                raise VerificationFailed("the driver shows more batches than the anchors commit to")
            count += len(page.lines)
        return count

    def _next(self) -> LogPage:
        if self._cursor < 0:
            raise VerificationFailed("the driver shows fewer batches than the anchors commit to")
        page = self._driver.call("log", LogQuery(self._cursor), LogPage, timeout=_TIMEOUT)
        self._cursor = page.next_batch
        return page
