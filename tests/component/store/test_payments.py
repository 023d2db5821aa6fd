"""Notes of payments: durable, in order, sealed, moved once they are recorded; damage is named."""

from __future__ import annotations

import stat

import pytest

from fsdecloud.errors import StoreCorrupt, StoreLocked
from fsdecloud.store import payments as module
from fsdecloud.store.payments import Payment, PaymentStore

KEY = bytes([5]) * 32


def payment(number: int) -> Payment:
    return Payment(1, 1000 + number, bytes([number]) * 32, b"transaction %d" % number, 0, b"decloud")


@pytest.fixture
def store(tmp_path):
    return PaymentStore(tmp_path / "payments", KEY)


def test_noted_then_recorded(store, tmp_path):
    assert store.all() == store.unrecorded() == []
    for number in (2, 1, 3):
        store.add(payment(number))
    store.add(payment(1))
    assert store.unrecorded() == [payment(1), payment(2), payment(3)]
    store.mark_recorded(payment(2).id)
    store.remove(payment(3).id)
    store.remove(payment(3).id)
    again = PaymentStore(tmp_path / "payments", KEY)
    assert again.unrecorded() == [payment(1)]
    assert again.all() == [payment(1), payment(2)]


def test_nobody_else_reads_them(store, tmp_path):
    store.add(payment(1))
    [path] = (tmp_path / "payments" / "new").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    data = path.read_bytes() + path.name.encode()
    for secret in (payment(1).tx, payment(1).id, payment(1).id.hex().encode()):
        assert secret not in data
    with pytest.raises(StoreCorrupt, match="damaged"):
        PaymentStore(tmp_path / "payments", bytes(32)).all()


def test_damage_is_named(store, tmp_path):
    store.add(payment(1))
    [path] = (tmp_path / "payments" / "new").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreCorrupt, match=f"{path.name}.*the ledger still knows"):
        store.unrecorded()


def test_what_a_crash_left_half_written_is_no_payment(store, tmp_path):
    store.add(payment(1))
    [path] = (tmp_path / "payments" / "new").iterdir()
    path.with_name(f".{path.name}.1.tmp").write_bytes(b"half")
    assert store.unrecorded() == [payment(1)]


def test_one_at_a_time_pays(store, tmp_path):
    with store.lock(), pytest.raises(StoreLocked):
        PaymentStore(tmp_path / "payments", KEY).lock()
    store.lock().close()


def test_only_so_many_are_kept(store, monkeypatch):
    monkeypatch.setattr(module, "KEPT_MAX", 3)
    for number in range(6):
        store.add(payment(number))
        store.mark_recorded(payment(number).id)
    assert len(store.all()) == 3
    assert store.all()[-1] == payment(5)
