"""Which documents make sense, as programs whose nodes have numbers.

Pure. `compile_document` checks what the form of a document does not say: that names mean something, that it ends, that its size
is bounded. A contract's place is then the number of a node, so that its state is small however long its document is.

That it ends: parts go to earlier parts only, and a repeat has a number of rounds that follows from the arguments. That it ends
by a height known from the start: a timeout is made of arguments, the height of the start, the round, and at most one `now`
(`bounds`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fsdecloud.contracts.language import (
    Add,
    Assert,
    AtMost,
    Available,
    Both,
    Choice,
    Chosen,
    Close,
    Constant,
    Contract,
    DatumParameter,
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
    Prove,
    Repeat,
    Round,
    Scale,
    Sequence,
    Start,
    Subtract,
    Use,
    Value,
    When,
    decode_document,
    document_id,
    encode_document,
)
from fsdecloud.contracts.reasons import InvalidDocument
from fsdecloud.limits import CONTRACT_DEPTH, CONTRACT_MAX, CONTRACT_NAMES, CONTRACT_NODES, CONTRACT_PARTIES

RESERVED: Final = frozenset(
    (
        "account", "after", "and", "anybody", "as", "assert", "at", "available", "burn", "by", "choice", "chosen", "close",
        "contract", "data", "datum", "deposit", "else", "false", "for", "from", "go", "greatest", "if", "into", "least",
        "leave", "let", "main", "made", "next", "not", "notify", "now", "number", "or", "part", "party", "pay", "prove",
        "repeat", "round", "samples", "scale", "sequence", "start", "storage", "then", "times", "to", "true", "via", "when",
        "with",
    )
)  # fmt: skip
"""Words of the text form: no name is one of them."""

_REPEATS_MAX: Final = 3
"""Repeats within each other."""

_PAIRS: Final = Add | Subtract | Multiply | Divide | Least | Greatest
_COMPARED: Final = Less | AtMost | Equal


@dataclass(frozen=True, slots=True)
class Program:
    """A checked document, its contract nodes numbered: parts first, each before what it leads to."""

    document: Document
    id: bytes
    nodes: tuple[Contract, ...]
    children: tuple[tuple[int, ...], ...]
    """Numbers of what each node leads to: a `when`'s cases in order, then after its timeout; an `if`'s two ways; a repeat's
    body, then behind it; a `go`'s part."""
    entry: int
    parties: Mapping[str, int]
    """Each party's place among the accounts."""
    parameters: Mapping[str, int]
    """Each parameter's place among the arguments."""
    choices: Mapping[str, Choice]
    """One of the cases for each name of a choice: its parties and fields are those of all."""
    looped: frozenset[int]
    """The nodes that a repeat may come to more than once."""
    parts: tuple[tuple[int, str], ...]
    """The number of each part's first node and its name, ascending; "" for the main block."""


def load_document(data: bytes) -> Program:
    """Return the program of an encoded document. Raises InvalidDocument."""
    return _compile(decode_document(data), data)


def compile_document(document: Document) -> Program:
    """Return the program of a document. Raises InvalidDocument."""
    data = encode_document(document)
    return _compile(decode_document(data), data)


def _compile(document: Document, data: bytes) -> Program:
    if len(data) > CONTRACT_MAX:
        raise InvalidDocument(f"a contract document has at most {CONTRACT_MAX} bytes, not {len(data)}")
    _check_size(document)
    names = _Names(document)
    nodes: list[Contract] = []
    children: list[tuple[int, ...]] = []
    entries: dict[str, int] = {}
    for name, body in (*((part.name, part.body) for part in document.parts), ("", document.body)):
        entries[name] = _number(body, entries, nodes, children)
    for node in nodes:
        names.check(node)
    looped, reached = _check_repeats(nodes, children, entries[""])
    for name, entry in entries.items():
        if entry not in reached:
            raise InvalidDocument(f"nothing goes to part {name}")
    parties = [parameter.name for parameter in document.parameters if isinstance(parameter, PartyParameter)]
    return Program(
        document,
        document_id(data),
        tuple(nodes),
        tuple(children),
        entries[""],
        {name: place for place, name in enumerate(parties)},
        {parameter.name: place for place, parameter in enumerate(document.parameters)},
        names.choices,
        looped,
        tuple((entry, name) for name, entry in entries.items()),
    )


def part_of(program: Program, node: int) -> str:
    """Return the name of the part that a node stands in; "" for the main block."""
    return next(name for entry, name in reversed(program.parts) if entry <= node)


# ---- size --------------------------------------------------------------------------------------------------------
_Item = Contract | Value | Observation


def inner(item: _Item) -> tuple[_Item, ...]:
    """Return what stands directly within a contract node, a value or an observation."""
    if isinstance(item, _PAIRS | _COMPARED | Both | OneOf):
        return item.left, item.right
    if isinstance(item, Negate):
        return (item.value,)
    if isinstance(item, Not):
        return (item.condition,)
    if isinstance(item, Scale):
        return item.value, item.by, item.over
    if isinstance(item, Either | If):
        return item.condition, item.then, item.otherwise
    if isinstance(item, Pay):
        return item.amount, item.then
    if isinstance(item, Let):
        return item.value, item.then
    if isinstance(item, Assert):
        return item.condition, item.then
    if isinstance(item, Repeat):
        return item.rounds, item.body, item.then
    if isinstance(item, When):
        return (*_of_cases(item), item.timeout, item.then)
    return ()


def _of_cases(node: When) -> Iterator[_Item]:
    for case in node.cases:
        action = case.action
        if isinstance(action, Deposit):
            yield action.amount
        elif isinstance(action, Choice):
            for field in action.fields:
                yield field.least
                yield field.most
        elif isinstance(action, Notify):
            yield action.condition
        else:
            yield action.height
            yield action.samples
        yield case.then


def _check_size(document: Document) -> None:
    pending: list[tuple[_Item, int]] = [(part.body, 1) for part in document.parts]
    pending.append((document.body, 1))
    count = 0
    while pending:
        item, depth = pending.pop()
        count += 1
        if count > CONTRACT_NODES:
            raise InvalidDocument(f"the contract has more than {CONTRACT_NODES} nodes: say what repeats in parts")
        if depth > CONTRACT_DEPTH:
            raise InvalidDocument(f"the contract is nested deeper than {CONTRACT_DEPTH}: break it into parts")
        pending += [(one, depth + 1) for one in inner(item)]


def _number(node: Contract, entries: Mapping[str, int], nodes: list[Contract], children: list[tuple[int, ...]]) -> int:
    """Number a body's nodes, each before what it leads to, and return the first one's number."""
    place = len(nodes)
    nodes.append(node)
    children.append(())
    following: tuple[Contract, ...] = ()
    if isinstance(node, Go):
        if node.part not in entries:
            raise InvalidDocument(f"go {node.part}: there is no part of this name before it")
        children[place] = (entries[node.part],)
        return place
    if isinstance(node, Pay | Let | Assert):
        following = (node.then,)
    elif isinstance(node, If):
        following = (node.then, node.otherwise)
    elif isinstance(node, When):
        following = (*(case.then for case in node.cases), node.then)
    elif isinstance(node, Repeat):
        following = (node.body, node.then)
    children[place] = tuple(_number(one, entries, nodes, children) for one in following)
    return place


# ---- names -------------------------------------------------------------------------------------------------------
class _Names:
    """What the names of a document stand for."""

    def __init__(self, document: Document) -> None:
        self.parties: set[str] = set()
        self.numbers: set[str] = set()
        self.data: set[str] = set()
        self.choices: dict[str, Choice] = {}
        self.variables: set[str] = set()
        taken: set[str] = set()
        for parameter in document.parameters:
            self._take(parameter.name, taken)
            if isinstance(parameter, PartyParameter):
                self.parties.add(parameter.name)
            elif isinstance(parameter, NumberParameter):
                self.numbers.add(parameter.name)
                if parameter.least > parameter.most:
                    raise InvalidDocument(f"number {parameter.name}: its least value is above its most")
            else:
                assert isinstance(parameter, DatumParameter)
                self.data.add(parameter.name)
        if len(self.parties) > CONTRACT_PARTIES:
            raise InvalidDocument(f"a contract has at most {CONTRACT_PARTIES} parties, not {len(self.parties)}")
        if not self.parties:
            raise InvalidDocument("a contract has a party at least")
        if document.name in RESERVED:
            raise InvalidDocument(f"{document.name} is a word of the language, and no name")
        parts: set[str] = set()
        for part in document.parts:
            self._take(part.name, parts)
        for body in (*(part.body for part in document.parts), document.body):
            self._collect(body, taken)

    @staticmethod
    def _take(name: str, taken: set[str]) -> None:
        if name in RESERVED:
            raise InvalidDocument(f"{name} is a word of the language, and no name")
        if name in taken:
            raise InvalidDocument(f"two things have the name {name}")
        taken.add(name)

    def _collect(self, body: Contract, parameters: set[str]) -> None:
        """Note the names that `let` and choices give."""
        pending: list[_Item] = [body]
        while pending:
            item = pending.pop()
            pending += inner(item)
            if isinstance(item, Let):
                if item.name in parameters or item.name in self.choices or item.name in RESERVED:
                    raise InvalidDocument(f"let {item.name}: the name is taken")
                self.variables.add(item.name)
            if isinstance(item, When):
                for case in item.cases:
                    if isinstance(case.action, Choice):
                        self._collect_choice(case.action, parameters)
        if len(self.variables) > CONTRACT_NAMES or len(self.choices) > CONTRACT_NAMES:
            raise InvalidDocument(f"a contract has at most {CONTRACT_NAMES} names of choices, and of let")

    def _collect_choice(self, choice: Choice, parameters: set[str]) -> None:
        where = f"choice {choice.name}"
        if choice.name in parameters or choice.name in self.variables or choice.name in RESERVED:
            raise InvalidDocument(f"{where}: the name is taken")
        fields = [field.name for field in choice.fields]
        if len(set(fields)) != len(fields):
            raise InvalidDocument(f"{where}: two fields have one name")
        bad = RESERVED.intersection(fields)
        if bad:
            raise InvalidDocument(f"{where}: {min(bad)} is a word of the language, and no name")
        if len(set(choice.by)) != len(choice.by):
            raise InvalidDocument(f"{where}: a party is named twice")
        for party in choice.by:
            self._need_party(party, where)
        if choice.via:
            self._need_party(choice.via, where)
        first = self.choices.setdefault(choice.name, choice)
        same = (first.by, first.datum, [field.name for field in first.fields])
        if same != (choice.by, choice.datum, fields):
            raise InvalidDocument(f"{where}: all choices of one name have the same parties and fields")

    def _need_party(self, name: str, where: str) -> None:
        if name not in self.parties:
            raise InvalidDocument(f"{where}: there is no party {name}")

    def check(self, node: Contract) -> None:
        """Check the names in a contract node, not those in the nodes that it leads to. Raises InvalidDocument."""
        if isinstance(node, Pay):
            self._need_party(node.source, "pay")
            if node.kind is Payee.NOBODY:
                if node.to or node.storage:
                    raise InvalidDocument("pay: what is burned goes to nobody, and pays for nothing")
            else:
                self._need_party(node.to, "pay")
            if node.storage and node.kind is not Payee.PARTY:
                raise InvalidDocument("pay: only what is paid to a party pays for storage")
            self._check_value(node.amount)
        elif isinstance(node, If | Assert):
            self._check_condition(node.condition)
        elif isinstance(node, Let):
            self._check_value(node.value)
        elif isinstance(node, Repeat):
            self._check_value(node.rounds)
            if not _is_fixed(node.rounds):
                raise InvalidDocument("repeat: the rounds follow from numbers that are given when it is deployed alone")
        elif isinstance(node, When):
            for case in node.cases:
                self._check_action(case.action)
            self._check_value(node.timeout)
            if not (_is_scheduled(node.timeout) or _is_delay(node.timeout)):
                raise InvalidDocument(
                    "after: a timeout is made of numbers, start, round, + - * least and greatest, or is now plus such"
                )

    def _check_action(self, action: object) -> None:
        if isinstance(action, Deposit):
            self._need_party(action.by, "deposit")
            self._need_party(action.into, "deposit")
            self._check_value(action.amount)
        elif isinstance(action, Choice):
            for field in action.fields:
                self._check_value(field.least)
                self._check_value(field.most)
        elif isinstance(action, Notify):
            self._check_condition(action.condition)
        else:
            assert isinstance(action, Prove)
            choice = self.choices.get(action.root)
            if action.root not in self.data and (choice is None or not choice.datum):
                raise InvalidDocument(
                    f"prove {action.root}: there is no choice with a datum, and no datum, of this name"
                )
            self._check_value(action.height)
            self._check_value(action.samples)

    def _check_value(self, value: Value) -> None:
        self._check_items([value])

    def _check_condition(self, condition: Observation) -> None:
        self._check_items([condition])

    def _check_items(self, pending: list[_Item]) -> None:
        while pending:
            item = pending.pop()
            pending += inner(item)
            if isinstance(item, Number) and item.name not in self.numbers:
                raise InvalidDocument(f"there is no number {item.name}")
            if isinstance(item, Use) and item.name not in self.variables:
                raise InvalidDocument(f"{item.name} is neither a number nor given by a let")
            if isinstance(item, Available):
                self._need_party(item.party, "available")
            if isinstance(item, Chosen | Sequence | Made) and item.choice not in self.choices:
                raise InvalidDocument(f"there is no choice {item.choice}")
            if isinstance(item, Chosen):
                choice = self.choices[item.choice]
                if item.field not in {field.name for field in choice.fields}:
                    raise InvalidDocument(f"choice {item.choice} has no field {item.field}")


# ---- ends --------------------------------------------------------------------------------------------------------
def _is_fixed(value: Value) -> bool:
    """Tell whether a value follows from the arguments alone."""
    if isinstance(value, Add | Subtract | Multiply | Least | Greatest):
        return _is_fixed(value.left) and _is_fixed(value.right)
    return isinstance(value, Constant | Number)


def _is_scheduled(value: Value) -> bool:
    """Tell whether a value follows from the arguments, the height of the start, and the round."""
    if isinstance(value, Add | Subtract | Multiply | Least | Greatest):
        return _is_scheduled(value.left) and _is_scheduled(value.right)
    return isinstance(value, Constant | Number | Start | Round)


def _is_delay(value: Value) -> bool:
    """Tell whether a value is the present height and something that follows from arguments and round."""
    return isinstance(value, Add) and isinstance(value.left, Now) and _is_scheduled(value.right)


def _check_repeats(
    nodes: list[Contract], children: list[tuple[int, ...]], entry: int
) -> tuple[frozenset[int], set[int]]:
    """Check that `next`, `leave` and `round` stand within a repeat, and that no round is over without a `when`.

    Return the nodes that are within one, and those that the contract can come to. Raises InvalidDocument.
    """
    seen: set[tuple[int, int, bool]] = set()
    looped: set[int] = set()
    pending = [(entry, 0, False)]
    while pending:
        place, depth, waited = pending.pop()
        if (place, depth, waited) in seen:
            continue
        seen.add((place, depth, waited))
        node = nodes[place]
        if depth:
            looped.add(place)
        elif isinstance(node, Next | Leave) or _has_round(node):
            raise InvalidDocument(f"{_word(node)} stands outside of a repeat")
        if isinstance(node, Next) and not waited:
            raise InvalidDocument("a round of a repeat may end without a when: it would go on without waiting")
        if isinstance(node, Repeat):
            if depth == _REPEATS_MAX:
                raise InvalidDocument(f"more than {_REPEATS_MAX} repeats stand within each other")
            body, behind = children[place]
            pending += [(body, depth + 1, False), (behind, depth, waited)]
        else:
            waited = waited or isinstance(node, When)
            pending += [(child, depth, waited) for child in children[place]]
    return frozenset(looped), {place for place, _, _ in seen}


def _has_round(node: Contract) -> bool:
    following = (Close, Pay, If, Let, Assert, When, Repeat, Next, Leave, Go)
    pending: list[_Item] = [item for item in inner(node) if not isinstance(item, following)]
    while pending:
        item = pending.pop()
        if isinstance(item, Round):
            return True
        pending += inner(item)
    return False


def _word(node: Contract) -> str:
    return type(node).__name__.lower() if isinstance(node, Next | Leave) else "round"
