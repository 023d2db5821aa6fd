"""How the text form of a contract is read.

Pure. The grammar stands in fsdecloud-contract(5). `printing` writes it; what is printed parses to the same document. Not here:
what makes sense (`program`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fsdecloud.contracts.language import (
    BOUND,
    NAME_MAX,
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
    DatumParameter,
    Deposit,
    Divide,
    Document,
    Either,
    Equal,
    Field,
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
    Parameter,
    Part,
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
    Truth,
    Use,
    Value,
    When,
)
from fsdecloud.contracts.program import RESERVED
from fsdecloud.contracts.reasons import InvalidDocument

TEXT_MAX: Final = 1 << 17
"""Characters of a document's text, comments and all."""

_DEPTH_MAX: Final = 150
"""Nesting of a text that is read: no document that is valid goes as deep, brackets and all."""

_TOKEN: Final = re.compile(
    r"[ \t\r\n]+|#[^\n]*|(?P<token>[0-9][0-9_]*|[a-z][a-z0-9_]*|<=|>=|!=|[-+*/<>=(){},.])", re.ASCII
)
_PLAIN: Final[dict[str, type[Round | Now | Start]]] = {"round": Round, "now": Now, "start": Start}
_PAIRS: Final[dict[str, type[Add | Subtract | Multiply | Divide | Least | Greatest]]] = {
    "+": Add, "-": Subtract, "*": Multiply, "/": Divide, "least": Least, "greatest": Greatest,
}  # fmt: skip
_COMPARISONS: Final = ("<", "<=", ">", ">=", "=", "!=")


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    line: int


def parse_document(text: str) -> Document:
    """Return the document that a text describes. Raises InvalidDocument with the line."""
    if len(text) > TEXT_MAX:
        raise InvalidDocument(f"the text of a contract has at most {TEXT_MAX} characters, not {len(text)}")
    return _Parser(_tokens(text)).document()


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    place, line = 0, 1
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise InvalidDocument(f"line {line}: {text[place]!r} is no part of the language")
        token = match["token"]
        if token is not None:
            found.append(_Token(token, line))
        line += match[0].count("\n")
        place = match.end()
    return found


class _Parser:
    """Reads tokens from left to right, one ahead."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._place = 0
        self._depth = 0
        self._numbers: set[str] = set()

    # ---- tokens
    def _next(self) -> str:
        return self._tokens[self._place].text if self._place < len(self._tokens) else ""

    def _fail(self, wanted: str) -> InvalidDocument:
        if self._place < len(self._tokens):
            token = self._tokens[self._place]
            return InvalidDocument(f"line {token.line}: {wanted}, not {token.text[:40]!r}")
        return InvalidDocument(f"at the end: {wanted}")

    def _take(self) -> str:
        text = self._next()
        self._place += 1
        return text

    def _accept(self, *texts: str) -> str:
        return self._take() if self._next() in texts else ""

    def _expect(self, text: str) -> None:
        if self._next() != text:
            raise self._fail(f"{text!r} is wanted here")
        self._place += 1

    def _name(self, what: str) -> str:
        text = self._next()
        if not text or not text[0].isalpha() or text in RESERVED:
            raise self._fail(f"the name of {what} is wanted here")
        if len(text) > NAME_MAX:
            raise self._fail(f"a name has at most {NAME_MAX} characters")
        return self._take()

    def _integer(self) -> int:
        sign = -1 if self._accept("-") else 1
        text = self._next()
        if not text[:1].isdigit():
            raise self._fail("a whole number is wanted here")
        digits = text.replace("_", "")
        if len(digits) > 20 or int(digits) > BOUND:
            raise self._fail(f"a number is at most {BOUND}")
        self._place += 1
        return sign * int(digits)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise self._fail("less nesting is wanted: break it into parts")

    # ---- documents
    def document(self) -> Document:
        self._expect("contract")
        name = self._name("the contract")
        parameters: list[Parameter] = []
        while kind := self._accept("party", "number", "datum"):
            parameters.append(self._parameter(kind))
        parts: list[Part] = []
        while self._accept("part"):
            part = self._name("a part")
            parts.append(Part(part, self._block()))
        self._expect("main")
        body = self._block()
        if self._next():
            raise self._fail("the document ends behind the main block")
        return Document(1, name, tuple(parameters), tuple(parts), body)

    def _parameter(self, kind: str) -> Parameter:
        name = self._name(f"a {kind}")
        if kind == "party":
            return PartyParameter(name)
        if kind == "datum":
            return DatumParameter(name)
        self._numbers.add(name)
        self._expect("from")
        least = self._integer()
        self._expect("to")
        return NumberParameter(name, least, self._integer())

    def _block(self) -> Contract:
        self._expect("{")
        self._enter()
        body = self._statements()
        self._depth -= 1
        self._expect("}")
        return body

    def _statements(self) -> Contract:
        """Read statements up to the one that says how the contract goes on."""
        before: list[Pay | Let | Assert | Repeat] = []
        while word := self._accept("pay", "burn", "let", "assert", "repeat"):
            before.append(self._statement(word))
        body = self._last()
        for node in reversed(before):
            body = _followed(node, body)
        return body

    def _statement(self, word: str) -> Pay | Let | Assert | Repeat:
        end = Close()
        if word == "let":
            name = self._name("a value")
            self._expect("=")
            return Let(name, self._value(), end)
        if word == "assert":
            return Assert(self._condition(), end)
        if word == "repeat":
            rounds = self._value()
            self._expect("times")
            return Repeat(rounds, self._block(), end)
        amount = self._value()
        self._expect("from")
        source = self._name("a party")
        if word == "burn":
            return Pay(source, Payee.NOBODY, "", amount, False, end)
        if self._accept("into"):
            return Pay(source, Payee.ACCOUNT, self._name("a party"), amount, False, end)
        self._expect("to")
        party = self._name("a party")
        storage = bool(self._accept("for"))
        if storage:
            self._expect("storage")
        return Pay(source, Payee.PARTY, party, amount, storage, end)

    def _last(self) -> Contract:
        word = self._accept("close", "next", "leave", "go", "if", "when")
        if word == "close":
            return Close()
        if word == "next":
            return Next()
        if word == "leave":
            return Leave()
        if word == "go":
            return Go(self._name("a part"))
        if word == "if":
            condition = self._condition()
            then = self._block()
            self._expect("else")
            return If(condition, then, self._block())
        if word == "when":
            return self._when()
        raise self._fail("a statement is wanted here (a block ends with close, next, leave, go, if or when)")

    def _when(self) -> When:
        self._expect("{")
        cases: list[Case] = []
        while word := self._accept("deposit", "choice", "notify", "prove"):
            action = self._action(word)
            cases.append(Case(action, self._block()))
        self._expect("}")
        self._expect("after")
        return When(tuple(cases), self._value(), self._block())

    def _action(self, word: str) -> Action:
        if word == "deposit":
            amount = self._value()
            self._expect("by")
            by = self._name("a party")
            self._expect("into")
            return Deposit(by, self._name("a party"), amount)
        if word == "notify":
            return Notify(self._condition())
        if word == "prove":
            root = self._name("a choice or a datum")
            self._expect("at")
            height = self._value()
            self._expect("samples")
            return Prove(root, height, self._value())
        return self._choice()

    def _choice(self) -> Choice:
        name = self._name("a choice")
        self._expect("by")
        parties = [self._name("a party")]
        while self._accept("and"):
            parties.append(self._name("a party"))
        via = self._name("a party") if self._accept("via") else ""
        fields: list[Field] = []
        if self._accept("("):
            while not self._accept(")"):
                if fields:
                    self._expect(",")
                field = self._name("a field")
                self._expect("from")
                least = self._value()
                self._expect("to")
                fields.append(Field(field, least, self._value()))
        return Choice(name, tuple(parties), via, tuple(fields), bool(self._accept("datum")))

    # ---- expressions: one grammar for both kinds, so that a bracket needs no guess
    def _value(self) -> Value:
        place = self._place
        found = self._disjunction()
        if not isinstance(found, Value):
            self._place = place
            raise self._fail("a number is wanted here, and no condition that begins with it")
        return found

    def _condition(self) -> Observation:
        place = self._place
        found = self._disjunction()
        if not isinstance(found, Observation):
            self._place = place
            raise self._fail("a condition is wanted here, and no number that begins with it")
        return found

    def _need_value(self, found: Value | Observation) -> Value:
        if not isinstance(found, Value):
            raise self._fail("there is a condition before this where a number is wanted")
        return found

    def _need_condition(self, found: Value | Observation) -> Observation:
        if not isinstance(found, Observation):
            raise self._fail("there is a number before this where a condition is wanted")
        return found

    def _disjunction(self) -> Value | Observation:
        self._enter()
        left = self._conjunction()
        while self._accept("or"):
            first = self._need_condition(left)
            left = OneOf(first, self._need_condition(self._conjunction()))
        self._depth -= 1
        return left

    def _conjunction(self) -> Value | Observation:
        left = self._negation()
        while self._accept("and"):
            first = self._need_condition(left)
            left = Both(first, self._need_condition(self._negation()))
        return left

    def _negation(self) -> Value | Observation:
        if self._accept("not"):
            self._enter()
            inner = self._need_condition(self._negation())
            self._depth -= 1
            return Not(inner)
        return self._comparison()

    def _comparison(self) -> Value | Observation:
        found = self._sum()
        sign = self._accept(*_COMPARISONS)
        if not sign:
            return found
        left = self._need_value(found)
        right = self._need_value(self._sum())
        if sign in ("<", ">"):
            return Less(left, right) if sign == "<" else Less(right, left)
        if sign in ("<=", ">="):
            return AtMost(left, right) if sign == "<=" else AtMost(right, left)
        return Equal(left, right) if sign == "=" else Not(Equal(left, right))

    def _sum(self) -> Value | Observation:
        left = self._product()
        while sign := self._accept("+", "-"):
            first = self._need_value(left)
            left = _PAIRS[sign](first, self._need_value(self._product()))
        return left

    def _product(self) -> Value | Observation:
        left = self._unit()
        while sign := self._accept("*", "/"):
            first = self._need_value(left)
            left = _PAIRS[sign](first, self._need_value(self._unit()))
        return left

    def _unit(self) -> Value | Observation:
        self._enter()
        found = self._enclosed()
        self._depth -= 1
        return found

    def _enclosed(self) -> Value | Observation:
        text = self._next()
        if text[:1].isdigit():
            return Constant(self._integer())
        if self._accept("-"):
            if self._next()[:1].isdigit():
                return Constant(-self._integer())
            return Negate(self._need_value(self._unit()))
        if self._accept("("):
            found = self._disjunction()
            self._expect(")")
            return found
        if text in _PLAIN:
            return _PLAIN[self._take()]()
        if text in ("true", "false"):
            return Truth(self._take() == "true")
        if text in ("available", "sequence", "made"):
            return self._about(self._take())
        if text in ("least", "greatest", "scale"):
            return self._function(self._take())
        if self._accept("if"):
            condition = self._condition()
            self._expect("then")
            then = self._value()
            self._expect("else")
            return Either(condition, then, self._value())
        name = self._name("a value")
        if self._accept("."):
            return Chosen(name, self._name("a field"))
        return Number(name) if name in self._numbers else Use(name)

    def _about(self, word: str) -> Value | Observation:
        self._expect("(")
        name = self._name("a party" if word == "available" else "a choice")
        self._expect(")")
        if word == "available":
            return Available(name)
        return Sequence(name) if word == "sequence" else Made(name)

    def _function(self, word: str) -> Value:
        self._expect("(")
        first = self._value()
        self._expect(",")
        second = self._value()
        if word == "scale":
            self._expect(",")
            found: Value = Scale(first, second, self._value())
        else:
            found = _PAIRS[word](first, second)
        self._expect(")")
        return found


def _followed(node: Pay | Let | Assert | Repeat, then: Contract) -> Contract:
    if isinstance(node, Pay):
        return Pay(node.source, node.kind, node.to, node.amount, node.storage, then)
    if isinstance(node, Let):
        return Let(node.name, node.value, then)
    if isinstance(node, Assert):
        return Assert(node.condition, then)
    return Repeat(node.rounds, node.body, then)
