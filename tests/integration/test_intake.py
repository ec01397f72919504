"""Intake with a broker that hands out what the test wants: each message once, and told only when it is stored."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoop_outbox import Scoop
from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.daemon.intake import membership as module
from scoop_outbox.daemon.intake.intake import Intake
from scoop_outbox.errors import BrokerError
from scoop_outbox.message import uuid7
from scoop_outbox.store.home import Home
from tests.fake_broker import FakeBroker, message
from tests.integration.taking_in import ask, kill, launch_below, once, runs, service, take_all_in, taking_in
from tests.waiting import until


async def test_messages_become_runs_and_are_acknowledged(database_url: str) -> None:
    app = service(database_url, sagas=("a", "b"))
    broker = FakeBroker([message(n) for n in range(3)], [message(n) for n in range(3, 6)])
    intake = await take_all_in(database_url, broker, app)
    assert runs(database_url) == once(range(6), "shop", "a", "b")
    assert broker.acknowledged == [f"orders[0]@{n}" for n in range(6)]
    assert (intake.counters.taken_in, intake.counters.dead_letters, intake.problem) == (6, 0, None)
    assert ask(database_url, "select count(*) from mailbox") == [(12,)]


async def test_a_message_is_acknowledged_only_when_it_is_committed(database_url: str) -> None:
    app = service(database_url)
    broker = FakeBroker([message(n) for n in range(3)])
    seen: list[int] = []
    broker.on_acknowledge = lambda _: seen.extend(ask(database_url, "select count(*) from message")[0])
    with psycopg.connect(database_url) as other:
        # Somebody else is just taking in the second message: intake waits in the middle of its transaction.
        other.execute(
            "insert into scoop_outbox.message (id, topic, body, content_type, headers) values (%s, 't', '', '', '{}')",
            (message(1).envelope.id,),
        )
        async with taking_in(database_url, broker, app):
            waiting = (
                "select 1 from pg_stat_activity where application_name = 'intake test' and wait_event_type = 'Lock'"
            )
            await until(lambda: ask(database_url, waiting))
            kill(database_url)
            await until(lambda: ask(database_url, waiting))
            assert broker.acknowledged == []
            assert runs(database_url) == {}
            other.rollback()
            await until(lambda: len(broker.acknowledged) == 3)
    assert seen == [3]
    assert runs(database_url) == once(range(3))
    assert len(broker.consumers) == 1


async def test_what_comes_again_starts_nothing(database_url: str) -> None:
    app = service(database_url, sagas=("a", "b"))
    known, event = uuid7(), {"ce_id": "x", "ce_source": "y"}
    batch = [message(1), message(2), message(3, message_id=known), message(4, headers=event)]
    # Another position, and the same message for all that its producer says.
    resent = [message(5, body=b"3", message_id=known), message(6, body=b"4", headers=event)]
    await take_all_in(database_url, FakeBroker([*batch, *batch], batch, resent, list(reversed(batch))), app)
    assert runs(database_url) == once([1, 2, 3, 4], "shop", "a", "b")
    assert ask(database_url, "select count(*) from dead_letter") == [(0,)]


async def test_a_message_whose_run_has_ended_starts_nothing_when_it_comes_again(database_url: str) -> None:
    app = service(database_url)
    await take_all_in(database_url, FakeBroker([message(1)]), app)
    async with app.running():
        await until(lambda: ask(database_url, "select state from run") == [("committed",)])
    await take_all_in(database_url, FakeBroker([message(1)]), app)
    assert ask(database_url, "select state from run") == [("committed",)]
    assert ask(database_url, "select count(*) from mailbox") == [(0,)]


async def test_services_of_one_home_take_in_the_same_messages_in_any_order_at_the_same_time(database_url: str) -> None:
    names = ("shop", "books", "mail")
    apps = [service(database_url, name, sagas=("a", "b")) for name in names]
    messages = [message(n) for n in range(300)]
    shuffled = [random.sample(messages, len(messages)) for _ in apps]
    async with AsyncExitStack() as stack:
        brokers = [FakeBroker(*(mine[n : n + 60] for n in range(0, 300, 60))) for mine in shuffled]
        intakes = [
            await stack.enter_async_context(taking_in(database_url, broker, app))
            for broker, app in zip(brokers, apps, strict=True)
        ]
        await until(lambda: all(len(broker.acknowledged) == 300 for broker in brokers), 30)
    assert runs(database_url) == {k: 1 for name in names for k in once(range(300), name, "a", "b")}
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    assert ask(database_url, deadlocks) == [(0,)]
    assert [intake.counters.taken_in for intake in intakes] == [300] * 3


async def test_members_of_a_group_may_be_given_the_same_messages_at_the_same_time(database_url: str) -> None:
    app = service(database_url, sagas=("a", "b"))
    messages = [message(n) for n in range(200)]
    async with AsyncExitStack() as stack:
        brokers = [FakeBroker(random.sample(messages, 200)) for _ in range(3)]
        for broker in brokers:
            await stack.enter_async_context(taking_in(database_url, broker, app))
        await until(lambda: all(len(broker.acknowledged) == 200 for broker in brokers), 30)
    assert runs(database_url) == once(range(200), "shop", "a", "b")
    assert ask(database_url, "select count(*) from mailbox") == [(400,)]
    assert ask(database_url, "select deadlocks from pg_stat_database where datname = current_database()") == [(0,)]


async def test_a_message_from_another_home_starts_a_root_although_it_has_a_lineage(database_url: str) -> None:
    app = service(database_url)
    here = ask(database_url, "select id::text from home")[0][0]
    foreign: dict[str, Any] = {"scoop_lineage": str(uuid7()), "scoop_context": {"tenant": "acme"}}
    batch = [
        message(1, message_id=uuid7(), scoop_home=str(uuid7()), **foreign),
        message(2, message_id=uuid7(), **foreign),
        message(3, message_id=uuid7(), scoop_home=here, **foreign),
    ]
    await take_all_in(database_url, FakeBroker(batch), app)
    rows = ask(
        database_url,
        """select m.body, r.parent_run, cardinality(r.lineage), r.context
           from run r join message m on m.id = r.message_id""",
    )
    # The third one is our own, of a run that does not wait for this saga: a late run, below that one.
    assert sorted(rows) == [
        (b"%d" % number, None, length, {"tenant": "acme"}) for number, length in [(1, 1), (2, 1), (3, 2)]
    ]
    assert ask(database_url, "select m.body from run r join message m on m.id = r.message_id where r.late") == [(b"3",)]


async def test_intake_pauses_at_the_high_water_mark_and_goes_on_at_the_low_one(database_url: str) -> None:
    app = service(database_url)
    broker = FakeBroker(*([message(10 * n + m) for m in range(10)] for n in range(10)))
    async with taking_in(database_url, broker, app, high=30, low=10) as intake:
        await until(lambda: intake.paused)
        await until(lambda: broker.consumers[0].paused)
        polls = broker.consumers[0].received
        await until(lambda: broker.consumers[0].received > polls + 3)  # it stays a member of the group
        assert 30 <= len(broker.acknowledged) <= 40
        before = len(broker.acknowledged)
        drop = "delete from mailbox where id in (select id from mailbox order by id limit %s) returning 1"
        ask(database_url, drop, 10)
        await until(lambda: broker.consumers[0].received > polls + 8)
        assert intake.paused, "above the low mark it stays as it is"
        assert len(broker.acknowledged) == before
        ask(database_url, drop, before - 20)
        await until(lambda: len(broker.acknowledged) > before)
        while len(broker.acknowledged) < 100:
            ask(database_url, "delete from mailbox returning 1")
            await asyncio.sleep(0.01)
        # The last ones may have made it pause once more.
        ask(database_url, "delete from mailbox returning 1")
        polls = broker.consumers[0].received
        await until(lambda: broker.consumers[0].received > polls + 1)  # it has counted anew since
        await until(lambda: not intake.paused)
    assert broker.pauses == broker.resumes >= 1
    assert runs(database_url) == once(range(100))


async def test_work_that_waits_for_its_children_does_not_keep_them_out(database_url: str) -> None:
    app = service(database_url, on="below")
    parents = app.saga("parent", on="orders")
    parents.add_step("launch", launch_below)
    parents.add_step("after", lambda scope, message: None)
    app.announce_sync()
    app.close_sync()
    broker = FakeBroker([message(n) for n in range(20)])
    async with taking_in(database_url, broker, app, high=10, low=5) as intake:
        await until(lambda: len(broker.acknowledged) == 20)
        await until(lambda: intake.paused)
        async with app.running(relay=False):
            # Every parent waits for a child that is still with the broker: what they wait for comes in.
            launched = "select message_id from child where state = 'waiting'"
            await until(lambda: len(ask(database_url, launched)) == 20)
            await until(lambda: not intake.paused)
            here = ask(database_url, "select id::text from home")[0][0]
            for seq, (child, headers) in enumerate(ask(database_url, "select message_id, headers from outbox")):
                carried = {name: value for name, value in headers.items() if name != "scoop-home"}
                broker.put(message(100 + seq, topic="below", message_id=child, scoop_home=here, **carried))
            ended = "select count(*) from run where state = 'committed'"
            await until(lambda: ask(database_url, ended) == [(40,)], 20)


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The database refuses connections while this holds something."""
    connect, down = Home.connect, list[bool]()

    async def connecting(self: Home) -> Any:
        if down:
            raise psycopg.OperationalError("connection refused")
        return await connect(self)

    monkeypatch.setattr(Home, "connect", connecting)
    return down


async def receive_while_down(url: str, down: list[bool], broker: FakeBroker, intake: Intake, number: int) -> None:
    """Have intake receive a message behind the loss of its database, and say that it cannot be stored."""
    await until(lambda: broker.consumers and broker.consumers[0].received)
    down.append(True)
    kill(url)
    broker.put(message(number))
    await until(lambda: "cannot be stored" in str(intake.problem), 20)


async def test_a_database_that_is_down_is_waited_for_and_the_place_in_the_group_is_kept(
    database_url: str, down: list[bool]
) -> None:
    app = service(database_url)
    broker = FakeBroker()
    async with taking_in(database_url, broker, app) as intake:
        await receive_while_down(database_url, down, broker, intake, 1)
        broker.put(message(2))
        polls = broker.consumers[0].received
        await until(lambda: broker.consumers[0].received > polls + 3)
        assert broker.consumers[0].paused
        assert broker.acknowledged == []
        down.clear()
        await until(lambda: len(broker.acknowledged) == 2, 20)
        await until(lambda: intake.problem is None)
        await until(lambda: not broker.consumers[0].paused)
    assert runs(database_url) == once([1, 2])
    assert len(broker.consumers) == 1


async def test_the_last_problem_is_told(database_url: str, down: list[bool]) -> None:
    app = service(database_url)
    broker = FakeBroker()
    async with taking_in(database_url, broker, app) as intake:
        await receive_while_down(database_url, down, broker, intake, 1)
        broker.failure = BrokerError("topic orders does not exist: create it")
        down.clear()
        await until(lambda: intake.problem == "topic orders does not exist: create it", 20)
        broker.failure = None
        await receive_while_down(database_url, down, broker, intake, 2)
        down.clear()
        await until(lambda: intake.problem is None, 20)


async def test_a_broker_that_refuses_is_asked_again_and_says_why(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = service(database_url)
    broker = FakeBroker([message(1)])
    broker.failure = BrokerError("topic orders does not exist: create it")
    async with taking_in(database_url, broker, app) as intake:
        await until(lambda: len(broker.consumers) > 1)
        await until(lambda: intake.problem == "topic orders does not exist: create it")
        broker.failure = None
        await until(lambda: broker.acknowledged)
        await until(lambda: intake.problem is None)
    assert "intake: cannot receive (service shop: topic orders does not exist: create it" in caplog.text
    assert all(consumer.closed for consumer in broker.consumers)


@pytest.mark.parametrize(
    "failure, name",
    [(KeyError("partition"), "KeyError"), (asyncio.CancelledError(), "StrayCancellationError")],
)
async def test_an_adapter_with_a_bug_does_not_end_intake(database_url: str, failure: BaseException, name: str) -> None:
    app = service(database_url)
    broker = FakeBroker([message(1)])
    broker.failure = failure
    async with taking_in(database_url, broker, app) as intake:
        await until(lambda: len(broker.consumers) > 1)
        await until(lambda: intake.problem == f"{name}, see the log")
        broker.failure = None
        await until(lambda: broker.acknowledged)
    assert runs(database_url) == once([1])


async def test_what_was_stored_and_not_acknowledged_is_taken_in_again_and_starts_nothing(database_url: str) -> None:
    app = service(database_url)
    broker = FakeBroker([message(n) for n in range(5)])
    failures = [BrokerError("the connection is gone")]

    def fail_once(_: Sequence[Delivery]) -> None:
        if failures:
            raise failures.pop()

    broker.on_acknowledge = fail_once
    async with taking_in(database_url, broker, app) as intake:
        await until(lambda: len(broker.acknowledged) == 5)
    assert len(broker.consumers) == 2
    assert intake.counters.taken_in == 10
    assert runs(database_url) == once(range(5))


async def test_stopping_leaves_the_group_behind_the_batch_in_hand(database_url: str) -> None:
    app = service(database_url)
    broker = FakeBroker([message(1)], [message(2)])
    async with taking_in(database_url, broker, app) as intake:
        broker.on_acknowledge = lambda _: intake.stop()
        await until(lambda: broker.consumers and broker.consumers[0].closed)
    assert broker.acknowledged == ["orders[0]@1"]
    assert runs(database_url) == once([1])
    assert [len(batch) for batch in broker.batches] == [1]


async def test_large_messages_are_stored_in_several_transactions(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 2500)
    app = service(database_url)
    batch = [message(n, body=bytes([65 + n]) * 1000, content_type="text/plain") for n in range(10)]
    batch[4] = message(4, body=b"E" * 10_000, content_type="text/plain")
    broker = FakeBroker(batch)
    await take_all_in(database_url, broker, app)
    rows = ask(database_url, "select xmin::text, length(body) from message")
    sizes = Counter[str]()
    for transaction, size in rows:
        sizes[transaction] += size
    assert sorted(sizes.values()) == [1000, 2000, 2000, 2000, 2000, 10_000]
    assert sum(runs(database_url).values()) == 10


async def test_ordered_sagas_take_their_order_from_the_batch(database_url: str) -> None:
    app = Scoop("shop", database=database_url)
    app.saga("a", on="orders", ordered="key").add_step("only", lambda scope, message: None)
    app.announce_sync()
    app.close_sync()
    numbers = random.sample(range(100), 30)
    # Ids that have nothing to do with the order.
    broker = FakeBroker([message(n, key=b"k", message_id=uuid.uuid4()) for n in numbers])
    await take_all_in(database_url, broker, app)
    rows = ask(
        database_url,
        "select m.body from lane_entry e join run r on r.id = e.run_id join message m on m.id = r.message_id "
        "order by e.seq",
    )
    assert [int(body) for (body,) in rows] == numbers


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_delivered_again_each_message_has_one_run_of_each_saga(
    database_url: str, data: st.DataObject
) -> None:
    numbers = st.integers(0, 11)
    batches = data.draw(st.lists(st.lists(numbers, min_size=1, max_size=8), max_size=6), "batches of two members")
    others = data.draw(st.lists(st.lists(numbers, min_size=1, max_size=8), max_size=6), "batches of the other one")
    breaks = data.draw(st.sets(st.integers(0, 5), max_size=2), "acknowledgements that fail")
    example = uuid.uuid4().hex  # the database is the same for all examples

    async def run() -> None:
        async with AsyncExitStack() as stack:
            members = []
            for mine in (batches, others):
                broker = FakeBroker(*([message(n, topic=example) for n in batch] for batch in mine))
                broker.on_acknowledge = partial(rebalances, iter(range(100)))
                await stack.enter_async_context(taking_in(database_url, broker, app))
                members.append((broker, sum(map(len, mine))))
            await until(lambda: all(len(broker.acknowledged) == count for broker, count in members), 20)

    def rebalances(calls: Iterator[int], _: Sequence[Delivery]) -> None:
        if next(calls) in breaks:
            raise BrokerError("the partition has gone to somebody else")

    app = service(database_url, example, on=example, sagas=("a", "b"))
    asyncio.run(run())
    found = {key: count for key, count in runs(database_url).items() if key[0] == example}
    wanted = sorted({n for mine in (batches, others) for batch in mine for n in batch})
    assert found == once(wanted, example, "a", "b")
