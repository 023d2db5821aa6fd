"""How a certificate is put together from what a ledger daemon has, also when it has dropped old blocks."""

from __future__ import annotations

from fsdecloud import codec
from fsdecloud.cli.certify import _assemble
from fsdecloud.crypto import sign
from fsdecloud.errors import BlockPruned
from fsdecloud.fs.statement import statement_row
from fsdecloud.ledger.blocks import decode_block, encode_header
from fsdecloud.ledger.certificate import decode_certificate, encode_certificate, verify_certificate
from fsdecloud.wire.controlapi import Certified
from fsdecloud.wire.ledgerapi import AnchorList, BlockList, HeaderList, VolumeAnchor
from tests.unit.ledger.test_certificate import MANIFEST, ROOT, TIME, VOLUME, World, make_world, statement_about


class Ledger:
    """A ledger daemon with bodies from some height on."""

    def __init__(self, world: World, first_body: int) -> None:
        self._blocks = [data for _id, data in world.maker.chain()]
        self._anchors = [(2, decode_block(self._blocks[1])), (4, decode_block(self._blocks[3]))]
        self._first = first_body

    def call(self, method: str, params, _result, *, timeout: float = 0.0):
        if method == "headers":
            blocks = self._blocks[params.first - 1 : params.first - 1 + params.count]
            return HeaderList(tuple(encode_header(decode_block(data).header) for data in blocks))
        if method == "blocks":
            self._check(params.first)
            return BlockList((self._blocks[params.first - 1],))
        height, block = self._anchors[params.first - 1]
        self._check(height)
        return AnchorList((VolumeAnchor(block.transactions[-1], height),))

    def _check(self, height: int) -> None:
        if height < self._first:
            raise BlockPruned(f"block {height} is gone")


def certified(world: World, first_body: int):
    statement, opening = statement_about(bytes([3]) * 32)
    row = statement_row(statement, TIME)
    volume = sign.public_key(VOLUME)
    made = Certified(codec.encode(statement), codec.encode(opening), row, volume, 2, MANIFEST.id, ROOT.id)
    certificate = _assemble(Ledger(world, first_body), world.document, made, show_path=True, short=False)
    return verify_certificate(decode_certificate(encode_certificate(certificate)), world.document)


def test_with_the_blocks_of_statement_and_state() -> None:
    verdict = certified(make_world(), 1)
    assert (verdict.state_height, verdict.height) == (2, 4)


def test_without_the_block_of_the_state_it_holds_the_statement_all_the_same() -> None:
    """What the file was is in the statement; the block tells how long before that was anchored."""
    verdict = certified(make_world(), 3)
    assert (verdict.state_height, verdict.height, verdict.state_sequence) == (None, 4, 1)
    assert verdict.work is not None
