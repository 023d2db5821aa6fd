"""Whether arguments fit a program, and by which height its contract has ended.

Pure. A timeout at a height follows from arguments, the start and the round, so its largest value follows from theirs. A delay
is counted from when the contract came to its `when`; that is at most once in each round of the repeats around it, so all delays
together are at most each one times the product of the rounds. The contract has ended by the latest of the former, or the start,
plus the sum of the latter. The bound is not tight, and need not be: it says when a contract's rows are gone from the ledger at
the latest.
"""

from __future__ import annotations

from fsdecloud.contracts.language import (
    BOUND,
    Add,
    Constant,
    Greatest,
    Least,
    Multiply,
    Now,
    Number,
    NumberParameter,
    PartyParameter,
    Repeat,
    Round,
    Start,
    Subtract,
    Value,
    When,
)
from fsdecloud.contracts.program import Program
from fsdecloud.contracts.reasons import InvalidArguments
from fsdecloud.crypto import sign
from fsdecloud.errors import SealError
from fsdecloud.limits import CONTRACT_HORIZON, CONTRACT_ROUNDS

Arguments = tuple[int | bytes, ...]
"""A value for each parameter, in the document's order: a public key, a number, or 32 bytes."""

Interval = tuple[int, int]


def check_arguments(program: Program, arguments: Arguments) -> None:
    """Check that there is an argument for each parameter, and that it is one. Raises InvalidArguments."""
    parameters = program.document.parameters
    if len(arguments) != len(parameters):
        raise InvalidArguments(f"{program.document.name} has {len(parameters)} parameters, not {len(arguments)}")
    for parameter, argument in zip(parameters, arguments, strict=True):
        if isinstance(parameter, NumberParameter):
            if not isinstance(argument, int) or isinstance(argument, bool):
                raise InvalidArguments(f"{parameter.name} is a number")
            if not parameter.least <= argument <= parameter.most:
                raise InvalidArguments(f"{parameter.name} is {parameter.least} to {parameter.most}, not {argument}")
        elif not isinstance(argument, bytes) or len(argument) != 32:
            raise InvalidArguments(f"{parameter.name} has 32 bytes")
        elif isinstance(parameter, PartyParameter):
            try:
                sign.check_public_key(argument)
            except SealError as exc:
                raise InvalidArguments(f"{parameter.name} is a public key: {exc}") from exc


def last_height(program: Program, arguments: Arguments, start: int) -> int:
    """Return a height at which a contract that starts at `start` has ended, whatever happens. The arguments were checked.

    Raises InvalidArguments for one that would run for too many rounds or too long.
    """
    rounds = [_interval(program, arguments, 0, 0, node.rounds)[1] for node in program.nodes if isinstance(node, Repeat)]
    product = 1
    for count in rounds:
        product *= max(count, 1)
    if product > CONTRACT_ROUNDS:
        raise InvalidArguments(
            f"the contract has at most {CONTRACT_ROUNDS} rounds, all repeats multiplied, not {product}"
        )
    last_round = max((*rounds, 1)) - 1
    latest, delays = start, 0
    for place, node in enumerate(program.nodes):
        if not isinstance(node, When):
            continue
        timeout = node.timeout
        if isinstance(timeout, Add) and isinstance(timeout.left, Now):
            most = _interval(program, arguments, start, last_round, timeout.right)[1]
            delays += max(most, 0) * (product if place in program.looped else 1)
        else:
            latest = max(latest, _interval(program, arguments, start, last_round, timeout)[1])
    if latest + delays > start + CONTRACT_HORIZON:
        raise InvalidArguments(
            f"the contract may last for {latest + delays - start} blocks, and {CONTRACT_HORIZON} is the most"
        )
    return latest + delays


def _interval(program: Program, arguments: Arguments, start: int, last_round: int, value: Value) -> Interval:
    """Return the least and the most that a timeout's value can be."""
    if isinstance(value, Constant):
        return value.value, value.value
    if isinstance(value, Number):
        number = arguments[program.parameters[value.name]]
        assert isinstance(number, int)
        return number, number
    if isinstance(value, Start):
        return start, start
    if isinstance(value, Round):
        return 0, last_round
    assert isinstance(value, Add | Subtract | Multiply | Least | Greatest), "the program was checked"
    a, b = _interval(program, arguments, start, last_round, value.left)
    c, d = _interval(program, arguments, start, last_round, value.right)
    if isinstance(value, Add):
        return saturate(a + c), saturate(b + d)
    if isinstance(value, Subtract):
        return saturate(a - d), saturate(b - c)
    if isinstance(value, Least):
        return min(a, c), min(b, d)
    if isinstance(value, Greatest):
        return max(a, c), max(b, d)
    corners = (a * c, a * d, b * c, b * d)
    return saturate(min(corners)), saturate(max(corners))


def saturate(number: int) -> int:
    """Return the number, or the bound that it is beyond."""
    return min(max(number, -BOUND), BOUND)
