"""Statements, from their fields to an anchor's commitment: what is in tests/vectors/certificate.json."""

from __future__ import annotations

import json
from pathlib import Path

from fsdecloud import codec
from fsdecloud.crypto import merkle
from fsdecloud.fs.manifest import commitment
from fsdecloud.fs.records import BatchEntry, batch_root, batches_root
from fsdecloud.fs.statement import PathOpening, Statement, path_commitment, statement_commitment, statement_row
from fsdecloud.types import EntryId, Ref

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "certificate.json").read_text())


def test_every_step_of_the_vectors() -> None:
    for vector in VECTORS["statements"]:
        given = {name: bytes.fromhex(text) for name, text in vector.items() if isinstance(text, str)}
        opening = PathOpening(given["path_salt"], given["path"])
        assert path_commitment(opening) == given["path_commitment"]
        statement = Statement(
            1,
            given["content"],
            vector["size"],
            vector["sequence"],
            given["link"],
            given["path_commitment"],
            given["salt"],
        )
        assert codec.encode(statement) == given["statement"]
        assert statement_commitment(statement) == given["commitment"]
        record = statement_row(statement, vector["time"])
        assert record == given["record"]
        assert batch_root([record]) == given["batch"]
        batch = BatchEntry(Ref(EntryId(bytes(32)), bytes(32)), 1, given["batch"])
        assert batches_root([batch]) == given["batches"]
        manifest, root = (Ref(EntryId(given[name]), bytes(32)) for name in ("manifest", "root"))
        assert commitment(manifest, root, (batch,)) == given["anchor_commitment"]
        assert merkle.path([given["manifest"], given["root"], given["batches"]], 2) == (given["sibling"],)
        assert merkle.verify(given["anchor_commitment"], 3, 2, given["batches"], (given["sibling"],))
