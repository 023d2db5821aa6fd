"""Key slots: what opens them, what is said when nothing does, and files that are damaged or crafted."""

from __future__ import annotations

import json
import unicodedata

import msgspec
import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdecloud.crypto import slots
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.errors import FsdecloudError, MalformedError, UsageError

ROOT = bytes(range(32))
VOLUME = VolumeKeys.from_root(ROOT).volume_id
NETWORK = bytes(range(32, 64))
DEVICE = bytes(range(64, 96))
SALT = bytes(range(16))
NONCE = bytes(range(12))
CHEAP = slots.Cost(memory_kib=8, iterations=1, lanes=1)
EMPTY = slots.new_document("work", VOLUME, NETWORK, redundancy="2/6", created=1_700_000_000)
WITH_PASSPHRASE = slots.add_passphrase_slot(EMPTY, ROOT, "correct horse", SALT, NONCE, cost=CHEAP)
BOTH = slots.add_device_slot(WITH_PASSPHRASE, ROOT, DEVICE, NONCE)


def test_argon2id_published_vector():
    # RFC 9106, section 5.3.
    derived = Argon2id(
        salt=b"\2" * 16, length=32, iterations=3, lanes=4, memory_cost=32, ad=b"\4" * 12, secret=b"\3" * 8
    ).derive(b"\1" * 32)
    assert derived.hex() == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"


def test_the_default_cost_is_rfc_9106s_second_choice():
    cost = slots.DEFAULT_COST
    assert (cost.memory_kib, cost.iterations, cost.lanes) == (65536, 3, 4)
    document = slots.add_passphrase_slot(EMPTY, ROOT, "p", SALT, NONCE)
    assert slots.open_with_passphrase(document, "p") == ROOT


def test_a_document_survives_its_file():
    data = slots.encode_document(BOTH)
    assert data.endswith(b"}\n")
    document = slots.decode_document(data)
    assert document == BOTH
    assert slots.open_with_passphrase(document, "correct horse") == ROOT
    assert slots.open_with_device(document, DEVICE) == ROOT


def test_the_format_never_changes():
    assert [slot.sealed for slot in BOTH.slots] == FROZEN


def test_fault_129_neither_file_nor_repr_holds_the_root():
    shown = slots.encode_document(BOTH).decode() + repr(BOTH)
    assert ROOT.hex() not in shown
    assert repr(ROOT) not in shown
    assert "horse" not in shown


@pytest.mark.parametrize("wrong", ["correct horse ", "Correct horse", "correct horse\n", "correct", "x" * 4096])
def test_fault_121_a_wrong_passphrase_has_its_own_exit_code(wrong):
    with pytest.raises(UsageError, match=r"^wrong passphrase for volume work$") as caught:
        slots.open_with_passphrase(BOTH, wrong)
    assert caught.value.exit_code == slots.WRONG_SECRET_EXIT


def test_a_wrong_device_key_has_its_own_exit_code():
    for key in (bytes(32), b"", DEVICE + b"\n"):
        with pytest.raises(UsageError, match="device key") as caught:
            slots.open_with_device(BOTH, key)
        assert caught.value.exit_code == slots.WRONG_SECRET_EXIT


def test_without_a_slot_it_says_what_opens_the_volume():
    with pytest.raises(UsageError, match="no passphrase"):
        slots.open_with_passphrase(EMPTY, "p")
    with pytest.raises(UsageError, match="no device slot"):
        slots.open_with_device(WITH_PASSPHRASE, DEVICE)


@pytest.mark.parametrize("passphrase", [" a \"quoted\" $HOME 'x' ", "naïve Å ﬁ", "line\n", "密码"])
def test_fault_122_any_unicode_form_of_a_passphrase_opens(passphrase):
    document = slots.add_passphrase_slot(EMPTY, ROOT, passphrase, SALT, NONCE, cost=CHEAP)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert slots.open_with_passphrase(document, unicodedata.normalize(form, passphrase)) == ROOT


@pytest.mark.parametrize(("passphrase", "reason"), [("", "empty"), ("x" * 4097, "at most"), ("\ud800", "Unicode")])
def test_fault_123_unusable_passphrases_are_refused(passphrase, reason):
    with pytest.raises(UsageError, match=reason):
        slots.add_passphrase_slot(EMPTY, ROOT, passphrase, SALT, NONCE, cost=CHEAP)
    with pytest.raises(UsageError, match=reason):
        slots.open_with_passphrase(BOTH, passphrase)


def test_the_second_passphrase_opens_too():
    document = slots.add_passphrase_slot(BOTH, ROOT, "second", bytes(16), bytes(12), cost=CHEAP)
    assert slots.open_with_passphrase(document, "second") == ROOT
    assert slots.open_with_passphrase(document, "correct horse") == ROOT


def test_slots_are_limited():
    document = EMPTY
    for _ in range(slots.SLOTS_MAX):
        document = slots.add_device_slot(document, ROOT, DEVICE, NONCE)
    with pytest.raises(UsageError, match="8 key slots"):
        slots.add_device_slot(document, ROOT, DEVICE, NONCE)
    raw = json.loads(slots.encode_document(document))
    raw["slots"].append(raw["slots"][0])
    with pytest.raises(MalformedError):
        slots.decode_document(json.dumps(raw).encode())


def _edited(path: str, value: object) -> bytes:
    raw = json.loads(slots.encode_document(BOTH))
    *parents, last = path.split(".")
    place = raw
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    return json.dumps(raw).encode()


def test_name_and_redundancy_may_be_edited():
    for data in (_edited("name", "home"), _edited("redundancy", "auto"), _edited("created", 0)):
        assert slots.open_with_passphrase(slots.decode_document(data), "correct horse") == ROOT


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("volume_id", "00" * 32, "slot 1 of volume work is damaged"),
        ("network", "00" * 32, "slot 1 of volume work is damaged"),
        ("slots.0.salt", "00" * 16, "slot 1 of volume work is damaged"),
        ("slots.0.sealed", "00" * 48, "slot 1 of volume work is damaged"),
        ("slots.0.cost.iterations", 2, "slot 1 of volume work is damaged"),
        ("slots.1.nonce", "00" * 12, "slot 2 of volume work is damaged"),
        ("slots.1.check", "00" * 16, "slot 2 of volume work is damaged"),
        ("slots.1.check", "00" * 15 + "0g", "check"),
        ("slots.1.nonce", "00" * 12 + "\n", "nonce"),
        ("slots.0.kind", "credential", "kind"),
        ("slots.0.cost.memory_kib", 64 << 20, "memory_kib"),
        ("slots.0.cost.memory_kib", 2**70, "memory_kib"),
        ("slots.0.cost.iterations", 0, "iterations"),
        ("slots.0.cost.lanes", 17, "lanes"),
        ("slots.0.cost.lanes", 1.5, "lanes"),
        ("version", 2, "version 2"),
        ("name", "../x", "name"),
        ("name", "", "name"),
        ("redundancy", "x" * 17, "redundancy"),
        ("created", -1, "created"),
        ("colour", "blue", "colour"),
    ],
)
def test_fault_121_damaged_or_crafted_files_are_refused_with_the_reason(path, value, reason):
    with pytest.raises(MalformedError, match=reason):
        slots.decode_document(_edited(path, value))


def test_damage_is_never_called_a_wrong_passphrase():
    # Not even in a document that was never a file.
    slot = msgspec.structs.replace(BOTH.slots[0], sealed="00" * 48)
    with pytest.raises(MalformedError, match="damaged"):
        slots.open_with_passphrase(msgspec.structs.replace(BOTH, slots=(slot,)), "correct horse")


def test_a_cost_that_argon2_forbids_is_malformed():
    document = slots.add_passphrase_slot(EMPTY, ROOT, "p", SALT, NONCE, cost=slots.Cost(memory_kib=64, lanes=8))
    assert slots.open_with_passphrase(document, "p") == ROOT
    with pytest.raises(MalformedError, match="cost"):
        slots.add_passphrase_slot(EMPTY, ROOT, "p", SALT, NONCE, cost=slots.Cost(memory_kib=8, lanes=8))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 60000, b"{" * 10, b" " * 70000])
def test_any_other_file_is_malformed(data):
    with pytest.raises(MalformedError):
        slots.decode_document(data)


@settings(max_examples=200)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_one_changed_byte_never_opens_to_another_secret(place, value):
    data = bytearray(slots.encode_document(BOTH))
    data[place % len(data)] = value
    try:
        document = slots.decode_document(bytes(data))
        root = slots.open_with_passphrase(document, "correct horse")
    except FsdecloudError:
        return
    assert root == ROOT


def test_the_root_must_be_the_volumes():
    with pytest.raises(ValueError, match="not this volume"):
        slots.add_device_slot(EMPTY, bytes(32), DEVICE, NONCE)
    for salt, nonce in ((b"", NONCE), (SALT, b"")):
        with pytest.raises(ValueError, match=r"salt|nonce"):
            slots.add_passphrase_slot(EMPTY, ROOT, "p", salt, nonce, cost=CHEAP)
    with pytest.raises(ValueError, match="32 bytes"):
        slots.new_document("work", VOLUME, b"")


FROZEN = [
    "fa368a0fe446038363a03319b47859a6cea3cda15fcdfdfa8686316554ca33428b7fc8d6e78ec811a226a3d3322573b2",
    "3486e7e7261d709a2de72f060488fa9ec30ba8fa23e04d11d14906e717bcc7da96e956aca3c3d6c9f772cd143ae45ae6",
]
