"""Which contracts every daemon knows: the standard documents, by name and by id.

Pure: the texts are part of the program. A standard document is deployed by its id, so that a storage deal costs the chain
some hundred bytes and not three thousand. The ids are rules of the ledger: a document that changes is another one, under
another name, and the old one stays for the contracts that run.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

from fsdecloud.contracts.parsing import parse_document
from fsdecloud.contracts.program import Program, compile_document

STANDARD: Final = {
    "storage_deal": "19e53217d748293cefdb7a8fe0c4085d20401b64efaff7d6796cd77635c95659",
    "bandwidth_channel": "4bfbb0777070f3a35700688e711fe340c7a7b4d0bf56f8f5a2b127097db03501",
    "escrow": "76bb73179f8c2a5cccdb4a31135af88f5aafdcf6342114eea4a2bade2f153730",
    "subscription": "95875bea893145190eb5ea032df49e1b20870131ce9c70e5c7f2cf32f56992c8",
    "crowd_file": "818d8d600450157e2e3584a06c616730fd5a03423f5f1aee5d10b9351d13f350",
}
"""Each standard document's name and id."""

_BY_ID: Final = {bytes.fromhex(identity): name for name, identity in STANDARD.items()}


def standard_text(name: str) -> str:
    """Return the text of a standard document, comments and all. Raises KeyError for an unknown name."""
    if name not in STANDARD:
        raise KeyError(name)
    return (resources.files(__package__) / "documents" / f"{name}.contract").read_text("utf-8")


@cache
def standard(name: str) -> Program:
    """Return a standard document's program. Raises KeyError for an unknown name."""
    program = compile_document(parse_document(standard_text(name)))
    assert program.id.hex() == STANDARD[name], f"the text of {name} is not the document that the ledger's rules name"
    return program


def find_standard(identity: bytes) -> Program | None:
    """Return the program of the standard document with this id; None if there is none."""
    name = _BY_ID.get(identity)
    return None if name is None else standard(name)
