"""Every payment of a volume is in its log: paid while it is mounted or not, and whatever is killed in between."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "gc"))

from gcworld import KEYS, NETWORK, World, make_world, run, until

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.crypto.wallet import address_of, wallet_key, wallet_seed
from fsdecloud.driver.history import History
from fsdecloud.errors import StoreError, StoreLocked, UsageError
from fsdecloud.fs.payment import PaymentWords, payment_words, read_payment_words
from fsdecloud.fs.records import Operation, Record
from fsdecloud.ledger.transactions import decode_tx, sign_transfer, tx_id
from fsdecloud.store.payments import Payment, PaymentStore
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import LogQuery, WalletQuery

RECIPIENT = sign.public_key(bytes([9]) * 32)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch)


def store_of(world: World) -> PaymentStore:
    return PaymentStore(world.paths.volume_state("v") / "payments", KEYS.at_rest_key)


def payment(number: int) -> Payment:
    tx = sign_transfer(NETWORK, wallet_seed(KEYS.wallet_secret, 0), RECIPIENT, 100 + number, 2, number)
    return Payment(1, 10**18 + number, tx_id(decode_tx(tx)), tx, 1000, b"decloud")


async def recorded(world: World) -> list[Record]:
    """The payments in the volume's log."""
    history = History(world.volume)
    found, cursor = [], 0
    while cursor >= 0:
        page = await history.page(LogQuery(cursor))
        found += [codec.decode(line.record, Record) for line in page.lines]
        cursor = page.next_batch
    return [record for record in found if record.operation == Operation.PAYMENT]


def amounts(records: list[Record]) -> list[int]:
    return [record.amount for record in records]


async def wait_recorded(world: World, count: int) -> list[Record]:
    async def is_there() -> bool:
        return not store_of(world).unrecorded()

    await until(is_there)
    found = await recorded(world)
    assert len(found) == count
    return found


def test_a_payment_of_a_volume_that_is_not_mounted_is_recorded_by_the_next_mount(world: World) -> None:
    async def work() -> None:
        async with world.open():
            assert await recorded(world) == []
        for number in (1, 0):
            store_of(world).add(payment(number))
        async with world.open():
            found = await wait_recorded(world, 2)
            assert amounts(found) == [100, 101]
            assert (found[0].uid, found[0].program, found[0].path) == (1000, b"decloud", b"")
            words = read_payment_words(found[0].path2)
            assert words == PaymentWords(address_of(RECIPIENT), 2, payment(0).id.hex())
            await world.anchor()
            assert world.volume.committer.meta.sequence >= 1
        async with world.open():
            assert amounts(await recorded(world)) == [100, 101]
            assert [p.id for p in store_of(world).all()] == [payment(0).id, payment(1).id]

    run(work)


def test_a_mounted_volume_records_when_it_is_told(world: World) -> None:
    async def work() -> None:
        async with world.open():
            payments = world.volume.payments
            store = store_of(world)
            with store.lock():
                store.add(payment(0))
                await payments.answer_record(Empty())  # somebody is still paying: soon
                with pytest.raises(StoreLocked):
                    await payments.record_noted()
                assert await recorded(world) == []
            await payments.answer_record(Empty())
            await wait_recorded(world, 1)
            await payments.pay(payment(1))
            assert amounts(await wait_recorded(world, 2)) == [100, 101]
            assert (await payments.answer_list(Empty())).txs == (payment(0).tx, payment(1).tx)
            keys = (await payments.answer_keys(WalletQuery(3, 2))).keys
            assert keys == tuple(wallet_key(KEYS.wallet_secret, index) for index in (3, 4))
            for query in (WalletQuery(-1, 1), WalletQuery(0, 0), WalletQuery(0, 65), WalletQuery(1 << 31, 1)):
                with pytest.raises(UsageError):
                    await payments.answer_keys(query)

    run(work)


@pytest.mark.parametrize("is_committed", [False, True])
def test_a_crash_between_a_record_and_its_note_records_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    """The record is durable, the note still says it is not recorded."""

    def killed(*_: object) -> None:
        raise StoreError("killed before it is moved")

    async def work() -> None:
        async with world.open():
            pass
        store_of(world).add(payment(0))
        with monkeypatch.context() as patch:
            patch.setattr(PaymentStore, "mark_recorded", killed)
            async with world.open():

                async def is_recorded() -> bool:
                    return len(await recorded(world)) == 1

                await until(is_recorded)
                if is_committed:
                    await world.volume.committer.request()
                    assert not world.volume.core.recorder.pending
        assert len(store_of(world).unrecorded()) == 1
        async with world.open():
            assert amounts(await wait_recorded(world, 1)) == [100]

    run(work)


def test_the_words_of_a_record() -> None:
    words = payment_words(RECIPIENT, 7, bytes(32))
    assert read_payment_words(words) == PaymentWords(address_of(RECIPIENT), 7, "00" * 32)
    for other in (b"", words + b"\n", b"kept", words[:-1]):
        assert read_payment_words(other) is None
