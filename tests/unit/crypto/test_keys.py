"""Which keys follow from a root secret: frozen values, separation, and nothing secret in a repr."""

from __future__ import annotations

import dataclasses

import pytest
from blake3 import blake3

from fsdecloud.crypto import keys, sign
from fsdecloud.types import PeerId

ROOT = bytes(range(32))


def test_blake3_published_vectors():
    # https://github.com/BLAKE3-team/BLAKE3 test_vectors.json: input length 1025, first 32 bytes of each mode.
    data = bytes(i % 251 for i in range(1025))
    context = "BLAKE3 2019-12-27 16:29:52 test vectors context"
    assert blake3(data).hexdigest() == "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"
    assert (
        blake3(data, key=b"whats the Elvish word for friend").hexdigest()
        == "357dc55de0c7e382c900fd6e320acc04146be01db6a8ce7210b7189bd664ea69"
    )
    assert (
        blake3(data, derive_key_context=context).hexdigest()
        == "effaa245f065fbf82ac186839a249707c3bddf6d3fdda22d1b95a3c970379bcb"
    )


def test_the_keys_of_a_root_never_change():
    # A volume written today has these keys for ever.
    volume = keys.VolumeKeys.from_root(ROOT)
    repair = keys.RepairKeys.from_secret(volume.repair_secret)
    found = {f.name: getattr(volume, f.name).hex() for f in dataclasses.fields(volume)}
    found |= {f.name: getattr(repair, f.name).hex() for f in dataclasses.fields(repair)}
    found["deal_seed"] = keys.deal_seed(volume.deal_secret, PeerId(bytes(32))).hex()
    found["grant_seed"] = keys.grant_seed(volume.grant_secret, PeerId(bytes(32))).hex()
    assert found == FROZEN
    assert len(set(found.values())) == len(found)


def test_the_volume_id_is_the_ledger_seeds_public_key():
    volume = keys.VolumeKeys.from_root(ROOT)
    assert volume.volume_id == sign.public_key(volume.ledger_seed)


def test_each_deal_has_its_own_key():
    secret = keys.VolumeKeys.from_root(ROOT).deal_secret
    assert keys.deal_seed(secret, PeerId(b"a" * 32)) != keys.deal_seed(secret, PeerId(b"b" * 32))


def test_fault_129_no_secret_in_a_repr():
    volume = keys.VolumeKeys.from_root(ROOT)
    repair = keys.RepairKeys.from_secret(volume.repair_secret)
    shown = f"{volume!r} {volume} {repair!r} {repair}"
    for value in (volume, repair):
        for field in dataclasses.fields(value):
            secret = getattr(value, field.name)
            if field.name != "volume_id":
                assert repr(secret) not in shown
                assert secret.hex() not in shown


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_secret_has_32_bytes(size):
    with pytest.raises(ValueError, match="32 bytes"):
        keys.derive(bytes(size), keys.CONTEXT_PREFIX + "test")


def test_a_context_has_the_prefix():
    with pytest.raises(ValueError, match="fsdecloud 2026 v1"):
        keys.derive(ROOT, "rows")


FROZEN = {
    "volume_id": "079bb22d1e5c80e9f8f57177208fafba5f8dd59561185bbe912b35a3fd31a4ef",
    "seal_secret": "83a9ae08e3ee6b2124fef5f7fffce66509e56801dc707254ed8265f42661e04c",
    "border_secret": "2bbb5ffe9f185c24454bb48d1155523bb1d7558eb3c36c878d5689de2512dd9b",
    "ledger_payload_key": "0c8303bbeab3bf65dae21d4d10d90497a7489264bfbd886924fd30391d52117d",
    "ledger_seed": "65195598b6ce87a9df015883dcba448a1bd8da0c7016c506e7a690faf57a09c0",
    "deal_secret": "e249727871487fe4cbfcfab4fa30a3ce333e76f0af0754eb459985f0ade29281",
    "repair_secret": "eddbbc9cd32b40a21a3b908f76c5e2533ece32606749067e721f7f9d97cb682c",
    "at_rest_key": "e6390ace8f4e5d78c3a04ad5d5a0b3636341bb3f9f457a12f39a5ef48c7df5bd",
    "placement_secret": "4caf81dfb4c54676e2932fc9d6b7ce73c8a2a4d07365d048db3b752da6d1ea33",
    "map_seal_secret": "15ed5043ac68a13aa327aa86e222ff4d2e4dd22066d294bbc290a8f991cc2cf7",
    "map_border_secret": "073e834583566d61d3776e2bfcd568b1c50f7aa7c6ec44cc3fefcc74e3365703",
    "payload_key": "19046db9addaef47dd41e761c11a406c27406158c00c2a8b938a9688cff1affa",
    "deal_seed": "ef93efb0df98cea69264f955c9a5bee79dc7a2fe95d00dbfed195ad554f623e1",
    "grant_secret": "7185d697cdf9cad6d82f42a8b0f1ed539e45751ef509a2d70bc2f8482d26c19d",
    "wallet_secret": "e573293c4ee0a53e1d8f1c9ad04d2f22070283b5064f38cf46c1b3e03d40995a",
    "grant_seed": "036bbdad072cd3a0807b1da5d5e2ca0045510ad94908c2788e9b7339b77ca61e",
}
