"""`decloud contract check|show`: read a contract's text, say what is wrong with it, and what it is.

Not here: what contracts do (fsdecloud-contract(5), `contracts`), deals (`decloud deals`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsdecloud.cli.output import emit, emit_json
from fsdecloud.errors import MalformedError, UsageError
from fsdecloud.limits import CONTRACT_MAX

if TYPE_CHECKING:
    from fsdecloud.contracts.program import Program

_TEXT_MAX = 16 * CONTRACT_MAX
"""Bytes of a text that is read: comments and names make it longer than the document."""


@click.group("contract", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Read the text of contracts. FILE is a path, or the name of a standard contract, such as storage_deal."""


@command.command("check")
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check_command(file: str, as_json: bool) -> None:
    """Check that FILE is a contract that the ledger takes."""
    fields = _fields(_read(file))
    if as_json:
        emit_json(fields)
    else:
        emit(
            f"{fields['name']}: good, {fields['nodes']} nodes, {fields['size']} bytes"
            f"{', a standard contract' if fields['is_standard'] else ''}"
        )
        emit(f"id {fields['id']}")


@command.command("show")
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_command(file: str, as_json: bool) -> None:
    """Print the contract in FILE as the ledger understands it: without comments, in the usual form."""
    from fsdecloud.contracts.printing import print_document

    program = _read(file)
    text = print_document(program.document)
    if as_json:
        emit_json(_fields(program) | {"text": text})
    else:
        emit(text.rstrip("\n"))


def _read(file: str) -> Program:
    """Return the program of a text. Raises UsageError, with the place of what is wrong."""
    from fsdecloud.contracts.library import STANDARD, standard
    from fsdecloud.contracts.parsing import parse_document
    from fsdecloud.contracts.program import compile_document
    from fsdecloud.contracts.reasons import InvalidDocument

    if file in STANDARD and not Path(file).exists():
        return standard(file)
    with open(file, "rb") as source:
        data = source.read(_TEXT_MAX + 1)
    if len(data) > _TEXT_MAX:
        raise UsageError(f"{file}: a contract's text has at most {_TEXT_MAX} bytes")
    try:
        return compile_document(parse_document(data.decode()))
    except UnicodeDecodeError as exc:
        raise UsageError(f"{file}: a contract is text in UTF-8: {exc}") from exc
    except (InvalidDocument, MalformedError) as exc:
        raise UsageError(f"{file}: {exc}; fsdecloud-contract(5) describes the form") from exc


def _fields(program: Program) -> dict[str, Any]:
    from fsdecloud.contracts.language import DatumParameter, PartyParameter, encode_document
    from fsdecloud.contracts.library import find_standard

    document = program.document
    kinds = {PartyParameter: "party", DatumParameter: "datum"}
    return {
        "name": document.name,
        "id": program.id.hex(),
        "is_standard": find_standard(program.id) is not None,
        "size": len(encode_document(document)),
        "nodes": len(program.nodes),
        "parameters": [{"name": one.name, "kind": kinds.get(type(one), "number")} for one in document.parameters],
        "choices": sorted(program.choices),
    }
