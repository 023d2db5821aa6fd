"""The volume's operation records, oldest first: anchored ones by way of the ledger, pending ones from memory.

A page is one batch. Its cursor is sequence number x LOG_CURSORS + index of the batch. What no anchor has yet counts under
the sequence number after the last: closed batches first, then what memory holds, cut as a commit cuts it. So a cursor stays
good while commits and anchors are made, and one can follow what comes: batches keep their order, those that an anchor did
not take are the first of the next, and the last page only grows at its end (a commit that fails joins the last two pages).
The ledger daemon is asked over its local socket; batches come from wherever entries are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fsdecloud.config import Paths
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.crypto.seal import Kind
from fsdecloud.driver.agentlink import AgentLink
from fsdecloud.driver.anchors import fetch_manifest, open_anchor
from fsdecloud.errors import BlockPruned, InvalidArgument, LedgerUnavailable, MalformedError
from fsdecloud.fs.manifest import Manifest
from fsdecloud.fs.records import BatchEntry, batch_root, decode_records, split_rows
from fsdecloud.ledger.transactions import Anchor, decode_tx, tx_id
from fsdecloud.net.unix import connect_unix, open_rpc
from fsdecloud.wire.agentapi import FetchedEntry
from fsdecloud.wire.controlapi import LOG_CURSORS, AnchorContents, AnchorNumber, LogLine, LogPage, LogQuery
from fsdecloud.wire.ledgerapi import AnchorList, AnchorQuery, VolumeAnchor

if TYPE_CHECKING:
    from fsdecloud.driver.volume import Volume

LEDGER_TIMEOUT: Final = 20.0
_MANIFESTS_KEPT: Final = 64


class AnchoredStates:
    """A volume's anchors by sequence number, each with the manifest it names; the last few are remembered."""

    def __init__(
        self, paths: Paths, keys: VolumeKeys, agent: AgentLink, read_fetched: Callable[[FetchedEntry], bytes]
    ) -> None:
        self._paths = paths
        self._keys = keys
        self._agent = agent
        self._read_fetched = read_fetched
        self._manifests: dict[int, tuple[VolumeAnchor, Anchor, Manifest]] = {}

    async def get(self, sequence: int) -> tuple[VolumeAnchor, Anchor, Manifest] | None:
        """Return an anchor of the best chain and the manifest it names, None past the last one.

        Raises RemoteError when the manifest cannot be fetched, LedgerUnavailable when the ledger daemon does not answer,
        BlockPruned when it has dropped the anchor's block.
        """
        known = self._manifests.get(sequence)
        if known is not None:
            return known
        stream = await connect_unix(self._paths.socket("ledger"), error=LedgerUnavailable)
        async with open_rpc(stream, lost=LedgerUnavailable) as ledger:
            found = await ledger.call(
                "anchors", AnchorQuery(self._keys.volume_id, sequence, 1), AnchorList, timeout=LEDGER_TIMEOUT
            )
        if not found.anchors:
            return None
        anchor = decode_tx(found.anchors[0].tx)
        if not isinstance(anchor, Anchor) or anchor.sequence != sequence:
            raise MalformedError(f"the ledger daemon did not answer with anchor {sequence}")
        manifest = await fetch_manifest(self._keys, anchor, self._agent, self._read_fetched)
        if len(self._manifests) > _MANIFESTS_KEPT:
            self._manifests.clear()
        self._manifests[sequence] = (found.anchors[0], anchor, manifest)
        return self._manifests[sequence]


class History:
    """Reads one volume's records."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._states = volume.states

    async def page(self, query: LogQuery) -> LogPage:
        """Return the records of one batch, and the cursor of the next (-1 after the last).

        Raises RemoteError when the batch cannot be fetched, LedgerUnavailable when the ledger daemon does not answer.
        """
        sequence, index = divmod(query.batch, LOG_CURSORS)
        if query.batch < 0:
            raise InvalidArgument("a log cursor is not negative")
        sequence = max(sequence, 1)
        while (found := await self._anchored(sequence)) is not None:
            height, tx, batches = found
            if index < len(batches):
                rows = await self._rows(batches[index])
                lines = [LogLine(row, sequence, height, tx) for row in rows]
                return LogPage(tuple(lines), sequence * LOG_CURSORS + index + 1)
            sequence, index = sequence + 1, index - len(batches)
        volume = self._volume
        batches, recorder = volume.committer.latest.batches, volume.core.recorder
        meta = volume.committer.meta
        if sequence > meta.sequence + 1:  # the ledger has the anchor in flight already, the driver was not told yet
            batches = batches[meta.inflight_batches :]
        in_memory = recorder.closing + split_rows(recorder.pending)
        count = len(batches) + len(in_memory)
        if index >= count:
            return LogPage((), -1)
        rows = await self._rows(batches[index]) if index < len(batches) else in_memory[index - len(batches)]
        following = sequence * LOG_CURSORS + index + 1 if index + 1 < count else -1
        return LogPage(tuple(LogLine(row, 0, -1, b"") for row in rows), following)

    async def contents(self, params: AnchorNumber) -> AnchorContents:
        """Return what the anchor with this sequence number commits to, for `log --verify`."""
        found = await self._states.get(params.sequence)
        if found is None:
            return AnchorContents(b"", b"", ())
        manifest = found[2]
        batches = tuple((batch.count, batch.root) for batch in manifest.batches)
        return AnchorContents(_manifest_id(self._volume, found[1]), manifest.root.id, batches)

    async def _anchored(self, sequence: int) -> tuple[int, bytes, tuple[BatchEntry, ...]] | None:
        """Return height, transaction and batches of an anchor, None past the last one. Of one whose block the ledger daemon has
        pruned, the batches that the volume's own tree names, and neither height nor transaction."""
        try:
            found = await self._states.get(sequence)
        except BlockPruned:
            own = await self._volume.snapshots.batches_of(sequence)
            if own is None:
                raise
            return -1, b"", own
        return None if found is None else (found[0].height, tx_id(found[1]), found[2].batches)

    async def _rows(self, batch: BatchEntry) -> list[bytes]:
        rows = decode_records(await self._volume.entries.get(batch.ref, Kind.RECORDS))
        if len(rows) != batch.count or batch_root(rows) != batch.root:
            raise MalformedError("a record batch is not what its manifest says")
        return rows


def _manifest_id(volume: Volume, anchor: Anchor) -> bytes:
    return bytes(open_anchor(volume.setup.keys, anchor).manifest.id)
