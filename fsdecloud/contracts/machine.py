"""What a contract does: how an input, or the passing of a height, brings it from one wait to the next.

Pure. After the published semantics of Marlowe: a contract is reduced until it waits, an input is applied to the first case that
it fits, and it is reduced again. A wait is over with the block of its timeout. What nobody's input brings about happens at the
height at which it was due, however late somebody notices: no outcome depends on who looks when, and a contract that is caught
up in several steps does what it does in one.

Whatever a document says, each step ends (`program`), money comes from deposits and goes to payees alone, and no account is
below zero: who has less than a `pay` wants pays what he has, with a notice. Integers stay within BOUND; what would be beyond is
set to the bound, with a notice: there is no failure in the middle of a contract, which could lock up money.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol, assert_never

import msgspec
from blake3 import blake3

from fsdecloud.contracts.bounds import Arguments, check_arguments, last_height, saturate
from fsdecloud.contracts.inputs import Act, Choosing, Depositing, Notifying, Proving, agreement_message, check_agreement
from fsdecloud.contracts.language import (
    BOUND,
    Add,
    Assert,
    AtMost,
    Available,
    Both,
    Choice,
    Chosen,
    Constant,
    Deposit,
    Divide,
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
    Observation,
    OneOf,
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
from fsdecloud.contracts.program import Program
from fsdecloud.contracts.reasons import (
    BadAgreement,
    ContractOver,
    InputRefused,
    InvalidArguments,
    NoSuchCase,
    NotBehind,
    NotHeld,
    OldAgreement,
    OutOfBounds,
    StillBehind,
    WrongActor,
    WrongAmount,
)
from fsdecloud.limits import CONTRACT_ACTIONS, CONTRACT_STEP, SAMPLES_MAX

SEED_BLOCKS: Final = 3
"""Consecutive blocks that a challenge is drawn from: who mines one of them cannot choose it."""

_SEED_CONTEXT: Final = "fsdecloud 2026 v1 storage challenge"

_SIGNATURE_WORK: Final = 256
_SAMPLE_WORK: Final = 1024
"""Values that take as long as a signature, and as a sample of a possession proof."""


# ---- state -------------------------------------------------------------------------------------------------------
class Decision(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last choice of a name."""

    choice: str
    sequence: int
    """That of the newest agreement."""
    values: tuple[int, ...]
    datum: bytes


class Loop(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A repeat that the contract is within."""

    node: int
    round: int
    rounds: int


class Running(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a contract is and what it knows: all that changes. It waits at a `when`."""

    node: int
    """The `when`, by its number in the program."""
    now: int
    """Height at which it came there."""
    balances: tuple[int, ...]
    """The parties' accounts, in the order of the document's parties."""
    variables: tuple[tuple[str, int], ...]
    """What `let` gave, by name."""
    decisions: tuple[Decision, ...]
    """By name."""
    loops: tuple[Loop, ...]
    """Outermost first."""


class Instance(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A contract that waits."""

    document: bytes
    """Id of its document."""
    arguments: Arguments
    start: int
    """Height of the block in which it was deployed."""
    end: int
    """Height at which it is over, whatever happens."""
    running: Running


@dataclass(frozen=True, slots=True)
class Payment:
    """Money that left a contract."""

    source: str
    """The account it came from."""
    party: str
    """"" for what was burned."""
    key: bytes
    """The party's public key; b"" for what was burned."""
    amount: int
    storage: bool


class Warn(Enum):
    """What is odd about something that happened all the same."""

    PARTIAL = "paid less than the contract says: the account had no more"
    NOTHING = "paid nothing: the amount is not above 0"
    SHADOWED = "a name was given a new value, outside of a repeat"
    ASSERTION = "what the contract asserts does not hold"
    SATURATED = "a value passed 2^62 and was set to it"


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning and the number of the contract node that it came from."""

    kind: Warn
    node: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step did."""

    instance: Instance | None
    """None: the contract has ended."""
    deposited: int
    """What the sender of the input pays."""
    payments: tuple[Payment, ...]
    notices: tuple[Notice, ...]
    work: int
    """What it cost: contract nodes, values and observations, and as many as signatures and proofs take as long as."""


class Environment(Protocol):
    """What a contract sees of the chain."""

    @property
    def network(self) -> bytes:
        """The network's id."""

    def block_ids(self, height: int) -> tuple[bytes, ...] | None:
        """Return the ids of SEED_BLOCKS consecutive blocks, the first of this height; None unless all are known."""

    def proves(self, root: bytes, seed: bytes, samples: int, proof: bytes) -> bool:
        """Tell whether `proof` shows `samples` leaves, drawn by `seed`, of what `root` stands for."""


def deploy(program: Program, arguments: Arguments, height: int) -> Outcome:
    """Return a contract that was deployed in the block of this height, waiting for the first time.

    Raises InvalidArguments, also for a contract that would not wait for anything.
    """
    check_arguments(program, arguments)
    end = last_height(program, arguments, height)
    fresh = Running(program.entry, height, (0,) * len(program.parties), (), (), ())
    run = _Run(program, arguments, height, fresh)
    run.reduce(height)
    if run.over:
        raise InvalidArguments("the contract would end at once: with these arguments it waits for nothing")
    return run.outcome(end)


def step(
    program: Program,
    contract: bytes,
    instance: Instance,
    actor: bytes,
    height: int,
    acts: tuple[Act, ...],
    environment: Environment,
) -> Outcome:
    """Apply the acts of an input in the block of this height, in their order, all or none.

    `contract` is the contract's id, `actor` the public key of the input's sender. Without acts it only goes through timeouts
    that have passed. Raises an InputRefused leaf.
    """
    run = _Run(program, instance.arguments, instance.start, instance.running)
    run.reduce(height)
    if not acts and not run.moved:
        raise NotBehind("there is nothing to do: the input has no act, and no timeout has passed")
    if len(acts) > CONTRACT_ACTIONS:
        raise InputRefused(f"an input has at most {CONTRACT_ACTIONS} acts, not {len(acts)}")
    for act in acts:
        run.take(act, contract, actor, height, environment)
        run.reduce(height)
    return run.outcome(instance.end)


def challenge_seed(contract: bytes, period: int, ids: tuple[bytes, ...]) -> bytes:
    """Return the seed (32 bytes) of the challenge in a round of a contract, drawn from SEED_BLOCKS block ids."""
    return blake3(contract + period.to_bytes(8) + b"".join(ids), derive_key_context=_SEED_CONTEXT).digest()


def timeout_of(program: Program, instance: Instance) -> int:
    """Return the height from which on the contract no longer waits where it is now."""
    return _Run(program, instance.arguments, instance.start, instance.running).timeout()


# ---- inner -------------------------------------------------------------------------------------------------------
class _Run:
    """A contract while it moves."""

    def __init__(self, program: Program, arguments: Arguments, start: int, running: Running) -> None:
        self.program = program
        self.arguments = arguments
        self.start = start
        self.node = running.node
        self.now = running.now
        self.balances = list(running.balances)
        self.variables = dict(running.variables)
        self.decisions = {decision.choice: decision for decision in running.decisions}
        self.loops = list(running.loops)
        self.deposited = 0
        self.payments: list[Payment] = []
        self.notices: list[Notice] = []
        self.work = 0
        self.moved = False
        self.over = False
        self.extra = 0

    def outcome(self, end: int) -> Outcome:
        """Return what was done, and the contract as it is now."""
        instance = None
        if not self.over:
            running = Running(
                self.node,
                self.now,
                tuple(self.balances),
                tuple(sorted(self.variables.items())),
                tuple(self.decisions[name] for name in sorted(self.decisions)),
                tuple(self.loops),
            )
            instance = Instance(self.program.id, self.arguments, self.start, end, running)
        return Outcome(instance, self.deposited, tuple(self.payments), tuple(self.notices), self.work + self.extra)

    def timeout(self) -> int:
        """Return the timeout of the `when` it waits at."""
        node = self.program.nodes[self.node]
        assert isinstance(node, When)
        return self.value(node.timeout)

    # ---- going on
    def reduce(self, height: int) -> None:
        """Go on until the contract waits for the block of this height or later, ends, or has cost CONTRACT_STEP."""
        nodes, children = self.program.nodes, self.program.children
        while not self.over:
            place = self.node
            node = nodes[place]
            if isinstance(node, When):
                if self.work >= CONTRACT_STEP:
                    return
                timeout = self.value(node.timeout)
                if height < timeout:
                    return
                self.now = max(self.now, timeout)
                self.node = children[place][-1]
            elif isinstance(node, Pay):
                self._pay(node)
                self.node = children[place][0]
            elif isinstance(node, If):
                self.node = children[place][0 if self.holds(node.condition) else 1]
            elif isinstance(node, Let):
                if node.name in self.variables and place not in self.program.looped:
                    self._notice(Warn.SHADOWED)
                self.variables[node.name] = self.value(node.value)
                self.node = children[place][0]
            elif isinstance(node, Assert):
                if not self.holds(node.condition):
                    self._notice(Warn.ASSERTION)
                self.node = children[place][0]
            elif isinstance(node, Repeat):
                rounds = self.value(node.rounds)
                if rounds > 0:
                    self.loops.append(Loop(place, 0, rounds))
                self.node = children[place][0 if rounds > 0 else 1]
            elif isinstance(node, Next):
                loop = self.loops.pop()
                if loop.round + 1 < loop.rounds:
                    self.loops.append(Loop(loop.node, loop.round + 1, loop.rounds))
                    self.node = children[loop.node][0]
                else:
                    self.node = children[loop.node][1]
            elif isinstance(node, Leave):
                self.node = children[self.loops.pop().node][1]
            elif isinstance(node, Go):
                self.node = children[place][0]
            else:
                self._close()
            self.moved = True
            self.work += 1

    def _pay(self, node: Pay) -> None:
        wanted = self.value(node.amount)
        source = self.program.parties[node.source]
        amount = min(wanted, self.balances[source])
        if wanted <= 0:
            self._notice(Warn.NOTHING)
            return
        if amount < wanted:
            self._notice(Warn.PARTIAL)
        if amount == 0:
            return
        self.balances[source] -= amount
        if node.kind is Payee.ACCOUNT:
            self.balances[self.program.parties[node.to]] += amount
        else:
            self._pay_out(node.source, node.to, amount, storage=node.storage)

    def _pay_out(self, source: str, party: str, amount: int, *, storage: bool) -> None:
        key = self._key(party) if party else b""
        self.payments.append(Payment(source, party, key, amount, storage))

    def _close(self) -> None:
        for party, place in self.program.parties.items():
            if self.balances[place]:
                self._pay_out(party, party, self.balances[place], storage=False)
                self.balances[place] = 0
        self.over = True

    def _notice(self, kind: Warn) -> None:
        self.notices.append(Notice(kind, self.node))

    def _key(self, party: str) -> bytes:
        key = self.arguments[self.program.parameters[party]]
        assert isinstance(key, bytes)
        return key

    # ---- acts
    def take(self, act: Act, contract: bytes, actor: bytes, height: int, environment: Environment) -> None:
        """Apply an act to the first case that it fits."""
        if self.over:
            raise ContractOver("the contract has ended")
        node = self.program.nodes[self.node]
        assert isinstance(node, When), "a contract rests at a when"
        if height >= self.value(node.timeout):
            raise StillBehind("more timeouts have passed than one step goes through: send inputs without acts first")
        if isinstance(act, Depositing):
            found = self._match_deposit(node, act, actor)
        elif isinstance(act, Choosing):
            found = self._match_choice(node, act, contract, actor, environment)
        elif isinstance(act, Notifying):
            found = self._match_notify(node)
        elif isinstance(act, Proving):
            found = self._match_proof(node, act, contract, environment)
        else:
            assert_never(act)
        self.node, self.now, self.moved = self.program.children[self.node][found], height, True

    def _match_deposit(self, node: When, act: Depositing, actor: bytes) -> int:
        refusal: InputRefused | None = None
        for index, case in enumerate(node.cases):
            action = case.action
            if not isinstance(action, Deposit) or (action.by, action.into) != (act.by, act.into):
                continue
            amount = self.value(action.amount)
            if amount < 0:
                continue
            if amount != act.amount:
                refusal = refusal or WrongAmount(f"the contract waits for a deposit of {amount}, not {act.amount}")
                continue
            if self._key(act.by) != actor:
                raise WrongActor(f"only {act.by} may make this deposit")
            if sum(self.balances) + amount >= BOUND:
                raise WrongAmount(f"a contract holds less than {BOUND} in all")
            self.balances[self.program.parties[act.into]] += amount
            self.deposited += amount
            return index
        raise refusal or NoSuchCase(f"the contract waits for no deposit by {act.by} into the account of {act.into}")

    def _match_choice(self, node: When, act: Choosing, contract: bytes, actor: bytes, environment: Environment) -> int:
        refusal: InputRefused | None = None
        for index, case in enumerate(node.cases):
            action = case.action
            if not isinstance(action, Choice) or action.name != act.choice:
                continue
            if action.via and self._key(action.via) != actor:
                refusal = refusal or WrongActor(f"only the input of {action.via} may bring this choice here")
                continue
            wrong = self._out_of_bounds(action, act)
            if wrong:
                refusal = refusal or OutOfBounds(wrong)
                continue
            self._check_parties(action, act, contract, actor, environment)
            before = self.decisions.get(act.choice)
            sequence = act.sequence or (0 if before is None else before.sequence)
            self.decisions[act.choice] = Decision(act.choice, sequence, act.values, act.datum)
            return index
        raise refusal or NoSuchCase(f"the contract does not wait for the choice {act.choice}")

    def _out_of_bounds(self, action: Choice, act: Choosing) -> str:
        if len(act.values) != len(action.fields):
            return f"{act.choice} has {len(action.fields)} fields, not {len(act.values)}"
        if len(act.datum) != (32 if action.datum else 0):
            return f"{act.choice} has a datum of 32 bytes" if action.datum else f"{act.choice} has no datum"
        for field, number in zip(action.fields, act.values, strict=True):
            least, most = self.value(field.least), self.value(field.most)
            if not least <= number <= most:
                return f"{act.choice}.{field.name} is {least} to {most} now, not {number}"
        return ""

    def _check_parties(
        self, action: Choice, act: Choosing, contract: bytes, actor: bytes, environment: Environment
    ) -> None:
        keys = [self._key(party) for party in action.by]
        if act.sequence == 0:
            if act.signatures:
                raise BadAgreement("what is signed by its parties has a sequence number of 1 or more")
            if keys != [actor]:
                raise WrongActor(f"only {' and '.join(action.by)} may choose {act.choice}")
            return
        known = self.decisions.get(act.choice)
        if known is not None and act.sequence <= known.sequence:
            raise OldAgreement(f"the contract knows {act.choice} {known.sequence}; this is {act.sequence}")
        if len(act.signatures) != len(keys):
            raise BadAgreement(f"{act.choice} is signed by {' and '.join(action.by)}")
        message = agreement_message(environment.network, contract, act.choice, act.sequence, act.values, act.datum)
        for key, signature in zip(keys, act.signatures, strict=True):
            if key == actor and not signature:
                continue
            self.extra += _SIGNATURE_WORK
            check_agreement(key, message, signature)

    def _match_notify(self, node: When) -> int:
        for index, case in enumerate(node.cases):
            if isinstance(case.action, Notify) and self.holds(case.action.condition):
                return index
        raise NoSuchCase("nothing that the contract waits to be told of holds now")

    def _match_proof(self, node: When, act: Proving, contract: bytes, environment: Environment) -> int:
        for index, case in enumerate(node.cases):
            action = case.action
            if not isinstance(action, Prove) or action.root != act.root:
                continue
            root = self._datum(action.root)
            if not root:
                raise NotHeld(f"there is nothing to prove yet: nobody chose {action.root}")
            height, samples = self.value(action.height), self.value(action.samples)
            if not 1 <= samples <= SAMPLES_MAX:
                raise NotHeld(f"a proof shows 1 to {SAMPLES_MAX} samples, and this contract wants {samples}")
            ids = environment.block_ids(height)
            if ids is None:
                raise NotHeld(f"the challenge is drawn from block {height} and those after it, which are not known now")
            self.extra += samples * _SAMPLE_WORK
            period = self.loops[-1].round if self.loops else 0
            if not environment.proves(root, challenge_seed(contract, period, ids), samples, act.proof):
                raise NotHeld("the possession proof does not verify")
            return index
        raise NoSuchCase(f"the contract does not wait for a proof of {act.root}")

    def _datum(self, name: str) -> bytes:
        if name in self.program.parameters:
            given = self.arguments[self.program.parameters[name]]
            assert isinstance(given, bytes)
            return given
        decision = self.decisions.get(name)
        return b"" if decision is None else decision.datum

    # ---- values and observations
    def value(self, value: Value) -> int:
        """Return what a value is now, within BOUND on either side."""
        self.work += 1
        return _VALUES[type(value)](self, value)

    def bounded(self, number: int) -> int:
        """Return a number, or the bound that it is beyond."""
        within = saturate(number)
        if within != number:
            self._notice(Warn.SATURATED)
        return within

    def holds(self, condition: Observation) -> bool:
        """Tell whether an observation holds now."""
        self.work += 1
        return _OBSERVATIONS[type(condition)](self, condition)

    def number(self, name: str) -> int:
        """Return a number that was given as an argument."""
        number = self.arguments[self.program.parameters[name]]
        assert isinstance(number, int)
        return number

    def chosen(self, value: Chosen) -> int:
        """Return a field of the last choice of a name; 0 before the first."""
        decision = self.decisions.get(value.choice)
        if decision is None:
            return 0
        fields = self.program.choices[value.choice].fields
        return next(number for field, number in zip(fields, decision.values, strict=True) if field.name == value.field)

    def sequence(self, choice: str) -> int:
        """Return the sequence number of the newest agreement of a name; 0 before the first."""
        decision = self.decisions.get(choice)
        return 0 if decision is None else decision.sequence


def divide(number: int, by: int) -> int:
    """Return the quotient, rounded towards zero; 0 if `by` is 0."""
    if by == 0:
        return 0
    quotient = abs(number) // abs(by)
    return quotient if (number < 0) == (by < 0) else -quotient


_VALUES: Final[dict[type, Callable[[_Run, Any], int]]] = {
    Constant: lambda _run, value: value.value,
    Number: lambda run, value: run.number(value.name),
    Use: lambda run, value: run.variables.get(value.name, 0),
    Available: lambda run, value: run.balances[run.program.parties[value.party]],
    Chosen: lambda run, value: run.chosen(value),
    Sequence: lambda run, value: run.sequence(value.choice),
    Round: lambda run, _value: run.loops[-1].round if run.loops else 0,
    Now: lambda run, _value: run.now,
    Start: lambda run, _value: run.start,
    Negate: lambda run, value: -run.value(value.value),
    Add: lambda run, value: run.bounded(run.value(value.left) + run.value(value.right)),
    Subtract: lambda run, value: run.bounded(run.value(value.left) - run.value(value.right)),
    Multiply: lambda run, value: run.bounded(run.value(value.left) * run.value(value.right)),
    Divide: lambda run, value: divide(run.value(value.left), run.value(value.right)),
    Scale: lambda run, value: run.bounded(divide(run.value(value.value) * run.value(value.by), run.value(value.over))),
    Least: lambda run, value: min(run.value(value.left), run.value(value.right)),
    Greatest: lambda run, value: max(run.value(value.left), run.value(value.right)),
    Either: lambda run, value: run.value(value.then if run.holds(value.condition) else value.otherwise),
}

_OBSERVATIONS: Final[dict[type, Callable[[_Run, Any], bool]]] = {
    Truth: lambda _run, condition: condition.value,
    Not: lambda run, condition: not run.holds(condition.condition),
    Both: lambda run, condition: run.holds(condition.left) and run.holds(condition.right),
    OneOf: lambda run, condition: run.holds(condition.left) or run.holds(condition.right),
    Less: lambda run, condition: run.value(condition.left) < run.value(condition.right),
    AtMost: lambda run, condition: run.value(condition.left) <= run.value(condition.right),
    Equal: lambda run, condition: run.value(condition.left) == run.value(condition.right),
    Made: lambda run, condition: condition.choice in run.decisions,
}
