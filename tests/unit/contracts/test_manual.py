"""fsdecloud-contract(5) says what the code does: every word, every limit, every standard document."""

import re
from pathlib import Path

import pytest

from fsdecloud import limits
from fsdecloud.contracts import language, library, parsing, program

PAGE = (Path(__file__).parents[3] / "man" / "fsdecloud-contract.5").read_text()


def test_every_word_of_the_language_is_there():
    unknown = {word for word in program.RESERVED if not re.search(rf"\b{word}\b", PAGE)}
    assert unknown <= {"account", "anybody", "as", "at", "data", "chosen", "with"}


def test_every_standard_document_is_there():
    for name in library.STANDARD:
        assert f".Ql {name}" in PAGE


@pytest.mark.parametrize(
    "words",
    [
        f"at most {parsing.TEXT_MAX} characters",
        f"1 to {language.NAME_MAX} small letters",
        f"at most {limits.CONTRACT_MAX} bytes encoded, {limits.CONTRACT_NODES} nodes",
        f"a nesting of {limits.CONTRACT_DEPTH}, {limits.CONTRACT_NAMES} parameters",
        f"{limits.CONTRACT_PARTIES} parties, {program._REPEATS_MAX} repeats within each other,",
        f"and {limits.CONTRACT_FIELDS} fields",
        f"at most {limits.CONTRACT_ROUNDS} rounds",
        f"over {limits.CONTRACT_HORIZON} blocks",
    ],
)
def test_the_limits_are_those_of_the_code(words):
    assert words in PAGE.replace("\n", " ")
