"""How a contract is written as text.

Pure. What is printed of a valid document parses to the same document (`parsing`): what is in the ledger can be read, changed
and deployed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fsdecloud.contracts.language import (
    Action,
    Add,
    Assert,
    AtMost,
    Available,
    Both,
    Case,
    Choice,
    Chosen,
    Close,
    Constant,
    Contract,
    Deposit,
    Divide,
    Document,
    Either,
    Equal,
    Go,
    Greatest,
    If,
    Least,
    Leave,
    Less,
    Let,
    Made,
    Multiply,
    Negate,
    Next,
    Not,
    Notify,
    Now,
    Number,
    NumberParameter,
    Observation,
    OneOf,
    PartyParameter,
    Pay,
    Payee,
    Repeat,
    Round,
    Scale,
    Sequence,
    Start,
    Subtract,
    Truth,
    Use,
    Value,
    When,
)

_INDENT: Final = "    "
_OR, _AND, _NOT, _COMPARED, _SUM, _PRODUCT, _UNIT = range(7)
_SIGNS: Final[dict[type, tuple[str, int]]] = {
    OneOf: ("or", _OR), Both: ("and", _AND), Less: ("<", _COMPARED), AtMost: ("<=", _COMPARED), Equal: ("=", _COMPARED),
    Add: ("+", _SUM), Subtract: ("-", _SUM), Multiply: ("*", _PRODUCT), Divide: ("/", _PRODUCT),
}  # fmt: skip
"""Each sign between two expressions, and how strongly it binds."""


def print_document(document: Document) -> str:
    """Return the document's text."""
    lines = [f"contract {document.name}", ""]
    for parameter in document.parameters:
        if isinstance(parameter, PartyParameter):
            lines.append(f"party {parameter.name}")
        elif isinstance(parameter, NumberParameter):
            lines.append(f"number {parameter.name} from {parameter.least} to {parameter.most}")
        else:
            lines.append(f"datum {parameter.name}")
    for part in document.parts:
        lines += ["", f"part {part.name} {{", *_lines(part.body, 1), "}"]
    lines += ["", "main {", *_lines(document.body, 1), "}", ""]
    return "\n".join(lines)


def print_node(node: Contract) -> str:
    """Return the text of a contract node and all that it leads to."""
    return "\n".join(_lines(node, 0))


def _lines(node: Contract, depth: int) -> Iterator[str]:
    indent = _INDENT * depth
    while isinstance(node, Pay | Let | Assert | Repeat):
        if isinstance(node, Repeat):
            yield f"{indent}repeat {print_expression(node.rounds)} times {{"
            yield from _lines(node.body, depth + 1)
            yield f"{indent}}}"
        else:
            yield indent + _statement(node)
        node = node.then
    if isinstance(node, If):
        yield f"{indent}if {print_expression(node.condition)} {{"
        yield from _lines(node.then, depth + 1)
        yield f"{indent}}} else {{"
        yield from _lines(node.otherwise, depth + 1)
        yield f"{indent}}}"
    elif isinstance(node, When):
        yield f"{indent}when {{"
        for case in node.cases:
            yield from _case_lines(case, depth + 1)
        yield f"{indent}}} after {print_expression(node.timeout)} {{"
        yield from _lines(node.then, depth + 1)
        yield f"{indent}}}"
    else:
        yield indent + _end(node)


def _case_lines(case: Case, depth: int) -> Iterator[str]:
    yield f"{_INDENT * depth}{print_action(case.action)} {{"
    yield from _lines(case.then, depth + 1)
    yield f"{_INDENT * depth}}}"


def _statement(node: Pay | Let | Assert) -> str:
    if isinstance(node, Let):
        return f"let {node.name} = {print_expression(node.value)}"
    if isinstance(node, Assert):
        return f"assert {print_expression(node.condition)}"
    amount = print_expression(node.amount)
    if node.kind is Payee.NOBODY:
        return f"burn {amount} from {node.source}"
    if node.kind is Payee.ACCOUNT:
        return f"pay {amount} from {node.source} into {node.to}"
    return f"pay {amount} from {node.source} to {node.to}" + (" for storage" if node.storage else "")


def _end(node: Contract) -> str:
    if isinstance(node, Go):
        return f"go {node.part}"
    assert isinstance(node, Close | Next | Leave)
    return type(node).__name__.lower()


def print_action(action: Action) -> str:
    """Return the text of an action that a contract waits for."""
    if isinstance(action, Deposit):
        return f"deposit {print_expression(action.amount)} by {action.by} into {action.into}"
    if isinstance(action, Notify):
        return f"notify {print_expression(action.condition)}"
    if isinstance(action, Choice):
        text = f"choice {action.name} by {' and '.join(action.by)}" + (f" via {action.via}" if action.via else "")
        if action.fields:
            fields = (f"{f.name} from {print_expression(f.least)} to {print_expression(f.most)}" for f in action.fields)
            text += f" ({', '.join(fields)})"
        return text + (" datum" if action.datum else "")
    return f"prove {action.root} at {print_expression(action.height)} samples {print_expression(action.samples)}"


def print_expression(item: Value | Observation) -> str:
    """Return the text of a value or an observation."""
    return _print(item, _OR)


def _print(item: Value | Observation, within: int) -> str:
    """Return the text of what stands where only what binds at least as strongly as `within` needs no brackets."""
    if isinstance(item, OneOf | Both | Less | AtMost | Equal | Add | Subtract | Multiply | Divide):
        sign, strength = _SIGNS[type(item)]
        # Comparisons do not follow each other; everything else goes from left to right.
        left = strength + 1 if strength == _COMPARED else strength
        text = f"{_print(item.left, left)} {sign} {_print(item.right, strength + 1)}"
        return f"({text})" if strength < within else text
    if isinstance(item, Not):
        text = f"not {_print(item.condition, _NOT)}"
        return f"({text})" if within > _NOT else text
    if isinstance(item, Either):
        condition, then, otherwise = (_print(one, _OR) for one in (item.condition, item.then, item.otherwise))
        return f"(if {condition} then {then} else {otherwise})"
    return _unit(item)


def _unit(item: Value | Observation) -> str:
    if isinstance(item, Constant):
        return str(item.value)
    if isinstance(item, Number | Use):
        return item.name
    if isinstance(item, Chosen):
        return f"{item.choice}.{item.field}"
    if isinstance(item, Available):
        return f"available({item.party})"
    if isinstance(item, Sequence | Made):
        return f"{type(item).__name__.lower()}({item.choice})"
    if isinstance(item, Negate):
        return f"-({_print(item.value, _OR)})"
    if isinstance(item, Least | Greatest):
        return f"{type(item).__name__.lower()}({_print(item.left, _OR)}, {_print(item.right, _OR)})"
    if isinstance(item, Scale):
        return f"scale({', '.join(_print(one, _OR) for one in (item.value, item.by, item.over))})"
    if isinstance(item, Truth):
        return "true" if item.value else "false"
    assert isinstance(item, Round | Now | Start)
    return type(item).__name__.lower()
