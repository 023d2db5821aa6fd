"""Random contracts and what random parties send to them, most of which fits."""

import random

from fsdecloud.contracts import language as lang
from fsdecloud.contracts.inputs import Choosing, Depositing, Notifying, Proving, sign_agreement
from fsdecloud.contracts.program import compile_document
from fsdecloud.contracts.reasons import InvalidDocument
from fsdecloud.crypto import sign

SEEDS = [bytes([60 + n]) * 32 for n in range(3)]
KEYS = [sign.public_key(seed) for seed in SEEDS]
PARTIES = ("ann", "bob", "cid")
SEED_OF = dict(zip(PARTIES, SEEDS, strict=True))
NUMBERS = {"few": (1, 5), "many": (10, 60), "odd": (-lang.BOUND, lang.BOUND)}
NETWORK, CONTRACT = bytes([9]) * 32, bytes([8]) * 32
ROOT = bytes([5]) * 32
PARAMETERS = (
    *(lang.PartyParameter(name) for name in PARTIES),
    *(lang.NumberParameter(name, *bounds) for name, bounds in NUMBERS.items()),
    lang.DatumParameter("root"),
)
CHOICES = {"vote": (("ann",), ("size",), False), "deal": (("ann", "bob"), ("size", "earned"), True)}
VARIABLES = ("x", "y")


class Maker:
    """Makes one document."""

    def __init__(self, rng):
        self.rng = rng
        self.parts = []
        self.used = set()

    def document(self):
        """Return a document that compiles: what does not is made again."""
        while True:
            self.parts, self.used = [], set()
            for n in range(self.rng.randrange(4)):
                self.parts.append(lang.Part(f"part{n}", self.contract(3, False, False)))
            body = self.contract(5, False, False)
            document = lang.Document(1, "random", PARAMETERS, tuple(self.parts), body)
            try:
                return compile_document(document).document
            except InvalidDocument:
                continue

    def value(self, depth=2):
        rng = self.rng
        if depth == 0 or rng.random() < 0.4:
            leaf = rng.choice(["constant", "number", "use", "available", "chosen", "sequence", "now", "start"])
            if leaf == "constant":
                return lang.Constant(rng.choice([0, 1, -1, 2, 7, 100, lang.BOUND, -lang.BOUND, 1 << 40]))
            if leaf == "number":
                return lang.Number(rng.choice(list(NUMBERS)))
            if leaf == "use":
                return lang.Use(self.variable())
            if leaf == "available":
                return lang.Available(rng.choice(PARTIES))
            if leaf == "chosen":
                return lang.Chosen(*self.field())
            if leaf == "sequence":
                return lang.Sequence(self.field()[0])
            return lang.Now() if leaf == "now" else lang.Start()
        kinds = [lang.Add, lang.Subtract, lang.Multiply, lang.Divide, lang.Least, lang.Greatest]
        kind = rng.choice([*kinds, lang.Negate, lang.Scale, lang.Either])
        if kind is lang.Negate:
            return kind(self.value(depth - 1))
        if kind is lang.Scale:
            return kind(*(self.value(depth - 1) for _ in range(3)))
        if kind is lang.Either:
            return kind(self.condition(depth - 1), self.value(depth - 1), self.value(depth - 1))
        return kind(self.value(depth - 1), self.value(depth - 1))

    def condition(self, depth=1):
        rng = self.rng
        kind = rng.choice([lang.Truth, lang.Less, lang.AtMost, lang.Equal, lang.Made, lang.Not, lang.Both, lang.OneOf])
        if kind is lang.Truth or (depth == 0 and kind in (lang.Not, lang.Both, lang.OneOf)):
            return lang.Truth(rng.random() < 0.5)
        if kind is lang.Made:
            return kind(self.field()[0])
        if kind is lang.Not:
            return kind(self.condition(depth - 1))
        part = self.condition if kind in (lang.Both, lang.OneOf) else self.value
        return kind(part(max(depth - 1, 0)), part(max(depth - 1, 0)))

    def variable(self):
        return self.rng.choice(VARIABLES)

    def field(self):
        choice = self.rng.choice(list(CHOICES))
        return choice, self.rng.choice(CHOICES[choice][1])

    def timeout(self, in_repeat):
        rng = self.rng
        fixed = rng.choice([
            lang.Constant(rng.randrange(1, 30)),
            lang.Number(rng.choice(["few", "many"])),
            lang.Multiply(lang.Number("few"), lang.Round() if in_repeat else lang.Constant(3)),
        ])  # fmt: skip
        return lang.Add(rng.choice([lang.Now(), lang.Start(), lang.Start()]), fixed)

    def action(self):
        rng = self.rng
        kind = rng.choice(["deposit", "deposit", "choice", "choice", "notify", "prove"])
        if kind == "deposit":
            amount = rng.choice([self.value(), lang.Constant(rng.randrange(1, 1000)), lang.Number("many")])
            return lang.Deposit(rng.choice(PARTIES), rng.choice(PARTIES), amount)
        if kind == "notify":
            return lang.Notify(self.condition())
        if kind == "prove":
            return lang.Prove(rng.choice(["root", "deal"]), rng.choice([lang.Now(), lang.Start()]), lang.Number("few"))
        name = rng.choice(list(CHOICES))
        by, fields, datum = CHOICES[name]
        bounds = [(lang.Constant(0), lang.Constant(99)), (lang.Chosen(name, fields[0]), lang.Constant(1 << 30))]
        made = tuple(lang.Field(field, *rng.choice(bounds)) for field in fields)
        return lang.Choice(name, by, rng.choice(["", "", *PARTIES]), made, datum)

    def contract(self, depth, in_repeat, waited):
        rng = self.rng
        if depth == 0:
            if in_repeat and waited:
                return rng.choice([lang.Next(), lang.Leave(), lang.Close()])
            return lang.Close()
        kind = rng.choice(["when", "when", "when", "pay", "pay", "let", "if", "assert", "repeat", "go"])
        if kind == "when":
            cases = tuple(
                lang.Case(self.action(), self.contract(depth - 1, in_repeat, True)) for _ in range(rng.randrange(4))
            )
            return lang.When(cases, self.timeout(in_repeat), self.contract(depth - 1, in_repeat, True))
        then = self.contract(depth - 1, in_repeat, waited)
        if kind == "pay":
            payee = rng.choice(list(lang.Payee))
            to = "" if payee is lang.Payee.NOBODY else rng.choice(PARTIES)
            amount = rng.choice(
                [self.value(), lang.Number("many"), lang.Divide(lang.Available("bob"), lang.Constant(2))]
            )
            storage = payee is lang.Payee.PARTY and rng.random() < 0.5
            return lang.Pay(rng.choice(PARTIES), payee, to, amount, storage, then)
        if kind == "let":
            return lang.Let(self.variable(), self.value(), then)
        if kind == "assert":
            return lang.Assert(self.condition(), then)
        if kind == "if":
            return lang.If(self.condition(), then, self.contract(depth - 1, in_repeat, waited))
        if kind == "repeat":
            rounds = rng.choice([lang.Number("few"), lang.Constant(rng.randrange(4))])
            return lang.Repeat(rounds, self.contract(depth - 1, True, False), then)
        if self.parts and not in_repeat:
            return lang.Go(rng.choice(self.parts).name)
        return then


def arguments(rng):
    """Arguments for PARAMETERS."""
    odd = rng.choice([0, 5, -7, lang.BOUND, -lang.BOUND])
    return (*KEYS, rng.randrange(1, 6), rng.randrange(10, 61), odd, ROOT)


class Env:
    """A chain whose block ids are their heights, and proofs that say of themselves whether they hold."""

    network = NETWORK

    def __init__(self, height=0):
        self.height = height

    def block_ids(self, height):
        return None if height + 3 > self.height else tuple(n.to_bytes(32) for n in range(height, height + 3))

    def proves(self, root, seed, samples, proof):
        return proof == b"held"


def act_for(rng, action, run, sequence):
    """Return (act, the seed of who sends it) that would fit the action, or not quite. `run` evaluates values."""
    odd = rng.random() < 0.1
    if isinstance(action, lang.Deposit):
        amount = min(max(run(action.amount), 0), lang.BOUND - 1)
        who = rng.choice(PARTIES) if odd else action.by
        off = rng.random() < 0.1 and amount > 0
        return Depositing(action.by, action.into, amount - off), SEED_OF[who]
    if isinstance(action, lang.Notify):
        return Notifying(), rng.choice(SEEDS)
    if isinstance(action, lang.Prove):
        return Proving(action.root, b"lost" if odd else b"held"), rng.choice(SEEDS)
    values = tuple(
        max(min(run(rng.choice([field.least, field.most])), lang.BOUND), -lang.BOUND) for field in action.fields
    )
    if rng.random() < 0.1:
        values = (-1, *values[1:])
    datum = ROOT if action.datum else b""
    who = SEED_OF[action.via or rng.choice(action.by)]
    if action.by == ("ann",) and rng.random() < 0.5:
        return Choosing(action.name, 0, values, datum, ()), SEED_OF["ann"] if not action.via else who
    number = max(1, sequence + rng.choice([1, 1, 1, 5, 0]))
    signatures = tuple(
        sign_agreement(SEED_OF[party], NETWORK, CONTRACT, action.name, number, values, datum) for party in action.by
    )
    if odd:
        signatures = (*signatures[:-1], bytes(64))
    return Choosing(action.name, number, values, datum, signatures), who


def rng_of(seed):
    return random.Random(seed)
