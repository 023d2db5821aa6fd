"""The standard documents: their texts are the documents that the rules name, and they can be written down and read again."""

import json
from pathlib import Path

import pytest

from fsdecloud.contracts.language import decode_document, encode_document
from fsdecloud.contracts.library import STANDARD, find_standard, standard, standard_text
from fsdecloud.contracts.parsing import parse_document
from fsdecloud.contracts.printing import print_document
from fsdecloud.contracts.program import compile_document, load_document

VECTORS = Path(__file__).parents[2] / "vectors" / "contracts.json"


def vectors():
    """What the file holds: each standard document's encoding and id."""
    programs = {name: standard(name) for name in STANDARD}
    return {
        "standard": {
            name: {"id": program.id.hex(), "bytes": encode_document(program.document).hex()}
            for name, program in programs.items()
        }
    }


def test_golden_vectors():
    """Formats are promises: a standard document that changes is another one, under another name."""
    assert json.loads(VECTORS.read_text()) == vectors()


@pytest.mark.parametrize("name", STANDARD)
def test_a_standard_document_is_the_one_that_the_rules_name(name):
    program = standard(name)
    assert program.id.hex() == STANDARD[name]
    assert find_standard(program.id) is program
    assert program.document.name == name


@pytest.mark.parametrize("name", STANDARD)
def test_a_document_is_the_same_after_printing_and_after_encoding(name):
    document = parse_document(standard_text(name))
    printed = print_document(document)
    assert parse_document(printed) == document
    assert print_document(parse_document(printed)) == printed
    data = encode_document(document)
    assert decode_document(data) == document
    assert load_document(data).id == compile_document(document).id


def test_an_unknown_id_is_no_standard_document():
    assert find_standard(bytes(32)) is None


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
