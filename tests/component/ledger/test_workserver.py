"""The work protocol over loopback sockets: miners elsewhere, bad tokens, bad miners, bad daemons, lost connections."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from fsdecloud.crypto import sign
from fsdecloud.errors import PeerUnavailable, UsageError
from fsdecloud.ledger.blocks import encode_block
from fsdecloud.ledger.work import hash_header, search
from fsdecloud.ledgerd import remote as remote_module
from fsdecloud.ledgerd import workserver as module
from fsdecloud.ledgerd.crew import CrewPlan
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.miner import WorkerJob
from fsdecloud.ledgerd.mining import Mining
from fsdecloud.ledgerd.remote import RemoteMining
from fsdecloud.ledgerd.shares import FIRST_WORK, SHARE_EVERY, STEP, ShareRate
from fsdecloud.ledgerd.workserver import WorkServer
from fsdecloud.net.address import Address
from fsdecloud.net.websocket import connect, serve
from fsdecloud.store.chain import open_chain
from fsdecloud.wire import work as wire

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import GENESIS_TIME, Maker, easy_network

VOLUME = bytes([2]) * 32
RECIPIENT = sign.public_key(bytes([3]) * 32)
SEED = b"s" * 32
KEY = sign.public_key(SEED)
TOKEN = b"t" * 32
NOW = GENESIS_TIME + 100_000
HARD = ((1 << 256) // (1 << 40)).to_bytes(32)


class World:
    """A daemon that gives out work."""

    def __init__(self, make, keeper):
        self.make, self.keeper = make, keeper
        self.mining = Mining(keeper, RECIPIENT)
        self.server = WorkServer(self.mining, TOKEN)
        self.sequence = 0

    def record(self):
        self.sequence += 1
        self.keeper.submit(self.make.anchor(VOLUME, self.sequence))

    async def until(self, condition):
        while not condition():
            changed = self.keeper.change_event()
            if condition():
                return
            await changed.wait()

    @asynccontextmanager
    async def serving(self, port=0):
        async with trio.open_nursery() as nursery:
            taken = await nursery.start(
                lambda task_status: serve(
                    "127.0.0.1", port, SEED, wire.SUBPROTOCOL, self.server.serve, task_status=task_status
                )
            )
            yield Address("127.0.0.1", taken, KEY)
            nursery.cancel_scope.cancel()


def work_test(tmp_path, test, **changes):
    make = Maker(easy_network(**changes))

    async def run():
        with trio.fail_after(60), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            async with trio.open_nursery() as nursery:
                world = World(make, Keeper(store, lambda: NOW))
                nursery.start_soon(world.mining.run)
                await test(world)
                nursery.cancel_scope.cancel()

    trio.run(run)


async def until(condition):
    """Look again and again until it is so; the test's own deadline ends it."""
    while not condition():  # noqa: ASYNC110 - what is looked at has no event
        await trio.sleep(0.01)


class Hand:
    """A miner that does what the test says."""

    def __init__(self, channel):
        self._channel = channel

    async def say(self, message):
        await self._channel.send(wire.encode_message(message))

    async def hear(self, kind=None):
        while True:
            message = wire.decode_from_daemon(await self._channel.receive())
            if kind is None or isinstance(message, kind):
                return message

    async def share(self, job, nonce):
        await self.say(wire.Share(job.number, nonce))
        answer = await self.hear(wire.Answer)
        assert (answer.number, answer.nonce) == (job.number, nonce)
        return answer.verdict


@asynccontextmanager
async def hand(address, token=TOKEN, version=wire.VERSION):
    async with connect(address, subprotocol=wire.SUBPROTOCOL) as channel:
        miner = Hand(channel)
        await miner.say(wire.Hello(version, wire.prove_token(token, channel.certificate_hash), "hand\x1b[1m"))
        yield miner


def find(job, target):
    nonce, _ = search(job.prefix, target, job.first, lambda: False, 1000)
    return nonce


@asynccontextmanager
async def remote(address, token=TOKEN, **options):
    """`decloud mine`, without the command."""
    notices = []
    mining = RemoteMining(address, token, "remote", CrewPlan(**options), notices.append)
    mining.notices = notices
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mining.run)
        yield mining
        nursery.cancel_scope.cancel()


def test_two_machines_mine_for_one_address(tmp_path):
    async def test(world):
        async with world.serving() as address, remote(address, workers=2) as a, remote(address) as b:
            for height in range(1, 9):
                world.record()
                await world.until(lambda height=height: world.keeper.tip.height == height)
            assert world.keeper.state().account(RECIPIENT).balance == 8 * world.make.document.subsidy
            await until(lambda: len(world.server.miners()) == 2)

            def found() -> int:
                return sum(miner.blocks for miner in world.server.miners())

            await until(lambda: found() >= 8)  # of two at one height, found at once, the later one may be better
            assert {miner.name for miner in world.server.miners()} == {"remote"}
            await until(lambda: a.verdicts[wire.Verdict.BLOCK] + b.verdicts[wire.Verdict.BLOCK] == found())
            assert not a.verdicts[wire.Verdict.WRONG] + b.verdicts[wire.Verdict.WRONG]

    work_test(tmp_path, test)


def test_shares_prove_work_before_there_is_a_block(tmp_path):
    """A miner that finds no block for long is seen to work, and by what its shares say they stand for."""

    async def test(world):
        async with world.serving() as address, remote(address) as miner:
            world.record()
            await until(lambda: miner.verdicts[wire.Verdict.SHARE] >= 3)
            [facts] = world.server.miners()
            assert facts.shares >= 3
            assert facts.hash_rate > 0
            assert (facts.blocks, world.keeper.tip.height) == (0, 0)
            assert not miner.verdicts[wire.Verdict.WRONG]

    work_test(tmp_path, test, first_target=HARD)


def test_a_stale_job_is_taken_back_at_once_and_a_new_one_given(tmp_path):
    async def test(world):
        async with world.serving() as address, hand(address) as miner:
            assert isinstance(await miner.hear(), wire.Rest)
            world.record()
            first = await miner.hear(wire.Job)
            header = wire.read_job(first)
            assert (header.height, header.parent) == (1, world.keeper.tip.id)
            other = world.make.add([world.make.anchor(VOLUME, 1)])
            await world.keeper.accept(encode_block(other.block))
            assert isinstance(await miner.hear(), wire.Rest)
            assert await miner.share(first, find(first, header.target)) is wire.Verdict.STALE
            world.record()
            assert wire.read_job(await miner.hear(wire.Job)).parent == other.point.id

    work_test(tmp_path, test)


def test_every_miner_has_nonces_of_its_own(tmp_path):
    async def test(world):
        world.record()
        async with world.serving() as address, hand(address) as a, hand(address) as b:
            jobs = [await miner.hear(wire.Job) for miner in (a, b)]
            assert jobs[0].prefix == jobs[1].prefix
            assert jobs[0].last < jobs[1].first or jobs[1].last < jobs[0].first
            outside = find(jobs[1], jobs[1].share)
            assert await a.share(jobs[0], outside) is wire.Verdict.WRONG

    work_test(tmp_path, test, first_target=HARD)


@pytest.mark.parametrize("wrong", ["token", "version"])
def test_a_miner_that_is_not_wanted_is_told_why(tmp_path, wrong):
    async def test(world):
        async with world.serving() as address:
            options = {"token": b"x" * 32} if wrong == "token" else {"version": 2}
            async with hand(address, **options) as miner:
                refused = await miner.hear()
                assert wrong in refused.reason
                with pytest.raises(PeerUnavailable):
                    await miner.hear()
            if wrong == "token":
                with pytest.RaisesGroup(pytest.RaisesExc(UsageError, match="refuses: the token")):
                    async with remote(address, token=b"x" * 32):
                        await trio.sleep_forever()
            assert world.server.miners() == ()

    work_test(tmp_path, test)


def test_fault_120_a_hostile_miner_is_dropped_and_costs_little(tmp_path):
    """Anything but a hello first, a second hello, bytes that are no message, wrong shares again and again."""

    async def test(world):
        world.record()
        async with world.serving() as address, hand(address) as honest:
            job = await honest.hear(wire.Job)
            for message in (
                wire.encode_message(wire.Share(1, bytes(8))),
                b"",
                b"\xc1" * 100,
                bytes(wire.MESSAGE_MAX + 1),
            ):
                async with connect(address, subprotocol=wire.SUBPROTOCOL) as channel:
                    await channel.send(message)
                    with pytest.raises(PeerUnavailable, match="1002"):
                        await channel.receive()
            async with hand(address) as miner:
                await miner.hear(wire.Job)
                await miner.say(wire.Hello(1, bytes(32), ""))
                with pytest.raises(PeerUnavailable, match="hello once"):
                    await miner.hear(wire.Answer)
            async with hand(address) as miner:
                own = await miner.hear(wire.Job)
                good = find(own, own.share)
                assert await miner.share(own, good) is wire.Verdict.SHARE
                wrong = [good, bytes(8), *(number.to_bytes(8) for number in range(own.first, own.first + 100))]
                wrong = [n for n in wrong if n == good or hash_header(own.prefix, n) > own.share]
                for nonce in wrong[: module.WRONG_MAX - 1]:
                    assert await miner.share(own, nonce) is wire.Verdict.WRONG
                with pytest.raises(PeerUnavailable, match="wrong shares"):
                    await miner.share(own, wrong[module.WRONG_MAX])
            assert await honest.share(job, find(job, job.share)) is wire.Verdict.SHARE
            assert [(m.name, m.shares) for m in world.server.miners()] == [("hand?[1m", 1)]

    work_test(tmp_path, test, first_target=HARD)


def test_a_flood_of_shares_waits_for_its_turn(tmp_path, monkeypatch):
    """However many are sent: after the burst they are read at the rate, and no answer is kept for later."""
    monkeypatch.setattr(module, "SHARE_BURST", 5.0)
    monkeypatch.setattr(module, "SHARE_RATE", 0.001)

    async def test(world):
        async with world.serving() as address, hand(address) as miner, hand(address) as other:
            for _ in range(50):
                await miner.say(wire.Share(99, bytes(8)))
            for _ in range(6):
                assert (await miner.hear(wire.Answer)).verdict is wire.Verdict.STALE
            world.record()
            job = await miner.hear()
            assert isinstance(job, wire.Job), "no other answer, and jobs still come"
            assert isinstance(await other.hear(wire.Job), wire.Job)

    work_test(tmp_path, test, first_target=HARD)


class DeafChannel:
    """A connection whose other side says hello and takes nothing. Both directions end together, as a socket's do."""

    def __init__(self):
        self.certificate_hash, self.remote = bytes(32), "deaf"
        self._broken = trio.Event()
        self._has_greeted = False

    async def receive(self):
        if not self._has_greeted:
            self._has_greeted = True
            await trio.lowlevel.checkpoint()
            return wire.encode_message(wire.Hello(wire.VERSION, wire.prove_token(TOKEN, bytes(32)), "deaf"))
        await self._broken.wait()
        raise PeerUnavailable("gone")

    async def send(self, _message):
        try:
            await self._broken.wait()
        except trio.Cancelled:
            self._broken.set()
            raise
        raise PeerUnavailable("gone")

    def break_off(self):
        self._broken.set()


@pytest.mark.parametrize("how", ["takes nothing", "breaks off"])
def test_a_miner_that_goes_in_the_middle_of_a_message_ends_alone(tmp_path, monkeypatch, how):
    if how == "takes nothing":
        monkeypatch.setattr(module, "SEND_TIMEOUT", 0.05)

    async def test(world):
        channel = DeafChannel()
        async with trio.open_nursery() as nursery:
            if how == "breaks off":
                nursery.start_soon(lambda: until_breaking(world, channel))
            with pytest.raises(PeerUnavailable, match="gone"):
                await world.server.serve(channel)
        assert world.server.miners() == ()
        assert world.mining.hash_rate == 0.0

    async def until_breaking(world, channel):
        await until(lambda: len(world.server.miners()) == 1)
        await trio.testing.wait_all_tasks_blocked()
        channel.break_off()

    work_test(tmp_path, test)


def test_shares_on_their_way_when_the_connection_goes_are_no_error():
    async def run():
        with trio.fail_after(10):
            channel = DeafChannel()
            mining = RemoteMining(Address("127.0.0.1", 1, KEY), TOKEN, "", CrewPlan(), lambda _text: None)
            connection = remote_module._Connection(channel, mining)
            channel._has_greeted = True
            connection._job = WorkerJob(1, 0, 9, bytes(32), b"\xff" * 32, b"prefix")
            connection.offer(1, bytes(8))
            connection.offer(2, bytes(8))
            assert len(connection._shares) == 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: breaking(channel))
                with pytest.raises(PeerUnavailable, match="gone"):
                    await connection.run()

    async def breaking(channel):
        await trio.testing.wait_all_tasks_blocked()
        channel.break_off()

    trio.run(run)


def test_a_miner_finds_its_daemon_again(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_module, "DELAY_MIN", 0.01)
    monkeypatch.setattr(remote_module, "DELAY_MAX", 0.05)

    async def test(world):
        async with world.serving() as address:
            port = address.port
        async with remote(address) as miner:
            await until(lambda: len(miner.notices) >= 3)
            assert all("next try" in notice for notice in miner.notices)
            for height in (1, 2):
                async with world.serving(port):
                    world.record()
                    await world.until(lambda height=height: world.keeper.tip.height == height)

    work_test(tmp_path, test)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\xc1junk", "not a work message"),
        (bytes(wire.MESSAGE_MAX + 1), "at most 1024 bytes"),
        (wire.encode_message(wire.Job(1, b"hash this for me", b"\x00" * 32, 0, 9)), "no header"),
        (wire.encode_message(wire.Rest()), "changes its mind"),
    ],
    ids=["junk", "large", "no header", "flood"],
)
def test_fault_120_a_hostile_daemon_gets_nothing(message, words, caplog, monkeypatch):
    """The miner says what is wrong and tries again later; its processes are not even started."""
    monkeypatch.setattr(remote_module, "DELAY_MIN", 0.001)

    async def hostile(channel):
        await channel.receive()
        while True:
            await channel.send(message)

    async def run():
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                port = await nursery.start(
                    lambda task_status: serve("127.0.0.1", 0, SEED, wire.SUBPROTOCOL, hostile, task_status=task_status)
                )
                async with remote(Address("127.0.0.1", port, KEY)) as miner:
                    await until(lambda: sum("next try" in notice for notice in miner.notices) >= 2)
                    assert miner.crew.hash_rate == 0.0
                nursery.cancel_scope.cancel()

    trio.run(run)
    assert words in caplog.text


def test_an_address_without_an_id_is_refused():
    with pytest.raises(UsageError, match="does not say which daemon"):
        RemoteMining(Address("127.0.0.1", 1), TOKEN, "", CrewPlan(), lambda _text: None)


# ---- how hard a share is ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("speed", [3e4, 1e6, 1e9, 1e12])
def test_the_share_target_follows_the_miner(speed):
    """Whatever its speed, a miner soon finds a share every few seconds, and the rate they prove is its own."""
    block = bytes(32)
    now = 0.0
    rate = ShareRate(now)
    assert rate.hash_rate(now) == 0.0
    target = rate.choose_target(block, now)
    for number in range(300):
        expected = (1 << 256) / (int.from_bytes(target) + 1)
        now += expected / speed
        is_due = rate.count(target)
        if is_due or number % 4 == 3:
            target = rate.choose_target(block, now)
    assert (1 << 256) / (int.from_bytes(target) + 1) / speed == pytest.approx(SHARE_EVERY, rel=0.3)
    assert rate.hash_rate(now) == pytest.approx(speed, rel=0.3)
    assert rate.shares == 300


def test_a_sudden_flood_makes_shares_harder():
    rate = ShareRate(0.0)
    target = rate.choose_target(bytes(32), 0.0)
    assert int.from_bytes(target) == (1 << 256) // FIRST_WORK - 1
    assert [rate.count(target) for _ in range(STEP)] == [False] * (STEP - 1) + [True]
    assert int.from_bytes(rate.choose_target(bytes(32), 0.001)) < int.from_bytes(target)
    assert rate.choose_target(b"\xff" * 32, 0.001) == b"\xff" * 32, "never harder than the block"
