"""A second implementation of the contract language, made from what it says of each node: slow, plain, not a line of the first.

It works on a document as it is encoded, nested lists, and goes on with what is left of them; when asked it says where in the
document that is. Nothing is imported from the program.
"""

BOUND = 2**62
STEP = 2048
SIGNATURE, SAMPLE = 256, 1024


class Refused(Exception):
    """The reason's name."""


class Plain:
    """A contract that runs: `where` is what is left of the document, None once it is over."""

    def __init__(self, document, arguments, start, network=bytes(32), contract=bytes(32)):
        _, self.name, self.parameters, parts, self.body = document
        self.parts = dict(parts)
        self.arguments = {parameter[1]: value for parameter, value in zip(self.parameters, arguments, strict=True)}
        self.parties = [parameter[1] for parameter in self.parameters if parameter[0] == 0]
        self.start = self.now = start
        self.network, self.contract = network, contract
        self.balances = dict.fromkeys(self.parties, 0)
        self.variables, self.choices, self.loops = {}, {}, []
        self.where = self.body
        self.paid, self.deposited, self.work, self.extra = [], 0, 0, 0
        self.numbers = {}
        for body in (*self.parts.values(), self.body):
            self.number(body)
        self.fields = {}
        for body in (*self.parts.values(), self.body):
            self.find_fields(body)

    def copy(self):
        """Another that runs on by itself."""
        other = Plain.__new__(Plain)
        other.__dict__.update(self.__dict__)
        for name in ("balances", "variables", "choices"):
            setattr(other, name, dict(getattr(self, name)))
        other.loops, other.paid = list(self.loops), list(self.paid)
        return other

    # ---- where it is
    def number(self, node):
        self.numbers[id(node)] = len(self.numbers)
        for one in following(node):
            self.number(one)

    def find_fields(self, node):
        if node[0] == 5:
            for action, _ in node[1]:
                if action[0] == 1:
                    self.fields[action[1]] = [field[0] for field in action[4]]
        for one in following(node):
            self.find_fields(one)

    def row(self, document_id, arguments, end):
        decisions = [[name, *self.choices[name]] for name in sorted(self.choices)]
        loops = [[self.numbers[id(node)], one, rounds] for node, one, rounds in self.loops]
        running = [
            self.numbers[id(self.where)],
            self.now,
            list(self.balances.values()),
            [[name, self.variables[name]] for name in sorted(self.variables)],
            decisions,
            loops,
        ]
        return [document_id, list(arguments), self.start, end, running]

    # ---- values
    def value(self, v):
        self.work += 1
        match v:
            case [0, number]:
                return number
            case [1, name]:
                return self.arguments[name]
            case [2, name]:
                return self.variables.get(name, 0)
            case [3, party]:
                return self.balances[party]
            case [4, choice, field]:
                if choice not in self.choices:
                    return 0
                return dict(zip(self.fields[choice], self.choices[choice][1], strict=True))[field]
            case [5, choice]:
                return self.choices.get(choice, (0,))[0]
            case [6]:
                return self.loops[-1][1] if self.loops else 0
            case [7]:
                return self.now
            case [8]:
                return self.start
            case [9, a]:
                return -self.value(a)
            case [10, a, b]:
                return clamp(self.value(a) + self.value(b))
            case [11, a, b]:
                return clamp(self.value(a) - self.value(b))
            case [12, a, b]:
                return clamp(self.value(a) * self.value(b))
            case [13, a, b]:
                return quotient(self.value(a), self.value(b))
            case [14, a, b, c]:
                return clamp(quotient(self.value(a) * self.value(b), self.value(c)))
            case [15, a, b]:
                return min(self.value(a), self.value(b))
            case [16, a, b]:
                return max(self.value(a), self.value(b))
            case [17, condition, a, b]:
                return self.value(a) if self.holds(condition) else self.value(b)
        raise AssertionError(v)

    def holds(self, o):
        self.work += 1
        match o:
            case [0, truth]:
                return truth
            case [1, a]:
                return not self.holds(a)
            case [2, a, b]:
                return self.holds(a) and self.holds(b)
            case [3, a, b]:
                return self.holds(a) or self.holds(b)
            case [4, a, b]:
                return self.value(a) < self.value(b)
            case [5, a, b]:
                return self.value(a) <= self.value(b)
            case [6, a, b]:
                return self.value(a) == self.value(b)
            case [7, choice]:
                return choice in self.choices
        raise AssertionError(o)

    # ---- going on
    def reduce(self, height):
        """Whether it went on at all."""
        moved = False
        while self.where is not None:
            if self.where[0] == 5:
                if self.work >= STEP:
                    break
                timeout = self.value(self.where[2])
                if height < timeout:
                    break
                self.now = max(self.now, timeout)
                self.where = self.where[3]
            else:
                self.pass_node(self.where)
            moved = True
            self.work += 1
        return moved

    def pass_node(self, node):
        match node:
            case [0]:
                for party in self.parties:
                    self.pay_out(party, party, self.balances[party], False)
                self.where = None
            case [1, source, kind, to, amount, storage, then]:
                wanted = min(self.value(amount), self.balances[source])
                if wanted > 0 and kind == 1:
                    self.balances[source] -= wanted
                    self.balances[to] += wanted
                elif wanted > 0:
                    self.pay_out(source, to, wanted, storage)
                self.where = then
            case [2, condition, then, otherwise]:
                self.where = then if self.holds(condition) else otherwise
            case [3, name, value, then]:
                self.variables[name] = self.value(value)
                self.where = then
            case [4, condition, then]:
                self.holds(condition)
                self.where = then
            case [6, rounds, body, then]:
                count = self.value(rounds)
                if count > 0:
                    self.loops.append((node, 0, count))
                    self.where = body
                else:
                    self.where = then
            case [7]:
                repeat, done, rounds = self.loops.pop()
                if done + 1 < rounds:
                    self.loops.append((repeat, done + 1, rounds))
                    self.where = repeat[2]
                else:
                    self.where = repeat[3]
            case [8]:
                self.where = self.loops.pop()[0][3]
            case [9, part]:
                self.where = self.parts[part]

    def pay_out(self, source, party, amount, storage):
        if amount:
            self.balances[source] -= amount
            self.paid.append((self.arguments[party] if party else b"", amount, storage))

    # ---- acts
    def step(self, actor, height, acts, env):
        """Apply acts or raise Refused, after which this object is of no use."""
        self.paid, self.deposited, self.work, self.extra = [], 0, 0, 0
        moved = self.reduce(height)
        if not acts and not moved:
            raise Refused("NotBehind")
        for act in acts:
            if self.where is None:
                raise Refused("ContractOver")
            if height >= self.value(self.where[2]):
                raise Refused("StillBehind")
            self.where = self.take(act, actor, env)
            self.now = height
            self.reduce(height)

    def take(self, act, actor, env):
        reasons = []
        for action, then in self.where[1]:
            if action[0] != act[0]:
                continue
            reason = (self.deposit, self.choose, self.notify, self.prove)[act[0]](action, act, actor, env)
            if reason is None:
                return then
            if reason:
                reasons.append(reason)
        raise Refused(reasons[0] if reasons else "NoSuchCase")

    def deposit(self, action, act, actor, env):
        _, by, into, amount = act
        if action[1:3] != [by, into]:
            return ""
        wanted = self.value(action[3])
        if wanted < 0:
            return ""
        if wanted != amount:
            return "WrongAmount"
        if self.arguments[by] != actor:
            raise Refused("WrongActor")
        if sum(self.balances.values()) + amount >= BOUND:
            raise Refused("WrongAmount")
        self.balances[into] += amount
        self.deposited += amount
        return None

    def choose(self, action, act, actor, env):
        _, choice, sequence, values, datum, signatures = act
        _, name, by, via, fields, has_datum = action
        if name != choice:
            return ""
        if via and self.arguments[via] != actor:
            return "WrongActor"
        if len(values) != len(fields) or len(datum) != 32 * has_datum:
            return "OutOfBounds"
        for number, (_, least, most) in zip(values, fields, strict=True):
            low, high = self.value(least), self.value(most)
            if not low <= number <= high:
                return "OutOfBounds"
        keys = [self.arguments[party] for party in by]
        before = self.choices.get(choice, [0])[0]
        if sequence == 0:
            if signatures:
                raise Refused("BadAgreement")
            if keys != [actor]:
                raise Refused("WrongActor")
        else:
            if sequence <= before and choice in self.choices:
                raise Refused("OldAgreement")
            if len(signatures) != len(keys):
                raise Refused("BadAgreement")
            for key, signature in zip(keys, signatures, strict=True):
                if key == actor and not signature:
                    continue
                self.extra += SIGNATURE
                if not env.is_signed(key, self.network + self.contract, [choice, sequence, values, datum], signature):
                    raise Refused("BadAgreement")
        self.choices[choice] = [sequence or before, list(values), datum]
        return None

    def notify(self, action, act, actor, env):
        return None if self.holds(action[1]) else ""

    def prove(self, action, act, actor, env):
        if action[1] != act[1]:
            return ""
        root = self.arguments.get(action[1]) or self.choices.get(action[1], [0, [], b""])[2]
        if not root:
            raise Refused("NotHeld")
        height, samples = self.value(action[2]), self.value(action[3])
        ids = env.ids(height) if 1 <= samples <= 16 else None
        if ids is None:
            raise Refused("NotHeld")
        self.extra += SAMPLE * samples
        period = self.loops[-1][1] if self.loops else 0
        if not env.is_held(root, self.contract + period.to_bytes(8, "big") + b"".join(ids), samples, act[2]):
            raise Refused("NotHeld")
        return None


def following(node):
    """What a contract node leads to, in the order of the numbers."""
    match node:
        case [1, *_, then] | [3, _, _, then] | [4, _, then]:
            return [then]
        case [2, _, then, otherwise]:
            return [then, otherwise]
        case [5, cases, _, then]:
            return [*(one for _, one in cases), then]
        case [6, _, body, then]:
            return [body, then]
    return []


def clamp(number):
    return max(-BOUND, min(BOUND, number))


def quotient(a, b):
    if b == 0:
        return 0
    return a // b if (a < 0) == (b < 0) else -(-a // b)


# ---- when it is over -----------------------------------------------------------------------------------------------------
def last_height(document, arguments, start):
    """A height by which it is over, and how many rounds it has."""
    given = {parameter[1]: value for parameter, value in zip(document[2], arguments, strict=True)}
    nodes = []

    def visit(node):
        nodes.append(node)
        for one in following(node):
            visit(one)

    for body in (*(part[1] for part in document[3]), document[4]):
        visit(body)

    def span(v, rounds):
        match v:
            case [0, number]:
                return number, number
            case [1, name]:
                return given[name], given[name]
            case [8]:
                return start, start
            case [6]:
                return 0, rounds - 1
            case [sign, a, b]:
                ends = [(x, y) for x in span(a, rounds) for y in span(b, rounds)]
                act = {10: int.__add__, 11: int.__sub__, 12: int.__mul__, 15: min, 16: max}[sign]
                found = [clamp(act(x, y)) for x, y in ends]
                return min(found), max(found)
        raise AssertionError(v)

    counts = [max(1, span(node[1], 1)[1]) for node in nodes if node[0] == 6]
    product = 1
    for count in counts:
        product *= count
    rounds = max([*counts, 1])
    within = looped(document)
    latest, delays = start, 0
    for node in nodes:
        if node[0] != 5:
            continue
        timeout = node[2]
        if timeout[0] == 10 and timeout[1] == [7]:
            delays += max(0, span(timeout[2], rounds)[1]) * (product if id(node) in within else 1)
        else:
            latest = max(latest, span(timeout, rounds)[1])
    return latest + delays, product


def looped(document):
    """The nodes that stand in a repeat, or in a part that is gone to from one."""
    parts, found, seen = dict(document[3]), set(), set()

    def visit(node, inside):
        if (id(node), inside) in seen:
            return
        seen.add((id(node), inside))
        if inside:
            found.add(id(node))
        if node[0] == 9:
            visit(parts[node[1]], inside)
        elif node[0] == 6:
            visit(node[2], True)
            visit(node[3], inside)
        else:
            for one in following(node):
                visit(one, inside)

    visit(document[4], False)
    return found
