"""Taking messages in: each once, and only by the sagas that are to handle it."""

import asyncio
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from scoop_outbox import Message, RunState, Scoop, Scope
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.message import Envelope, uuid7
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.waiting import until


@dataclass
class Told:
    mails: list[uuid.UUID] = field(default_factory=list)

    def outbox(self) -> None: ...
    def ended(self, message_id: uuid.UUID) -> None: ...

    def mail(self, service: str, saga: str, version: str, run_id: uuid.UUID, delay: float) -> None:
        self.mails.append(run_id)


def ask(url: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode(), values).fetchall()


def counts(url: str) -> dict[str, Any]:
    questions = {table: f"select count(*) from {table}" for table in ("message", "run", "mailbox", "child")}  # noqa: S608
    return {table: ask(url, question)[0][0] for table, question in questions.items()}


def envelope(topic: str = "orders", **headers: str) -> Envelope:
    return Envelope(str(uuid7()), topic, None, b"1", "application/json", headers)


def listening(url: str, service: str, topic: str, *sagas: str) -> Scoop:
    app = Scoop(service, database=url)
    for name in sagas:
        app.saga(name, on=topic).add_step("only", lambda scope, message: None)
    return app


@pytest.fixture
async def home(database_url: str) -> Any:
    home = Home(database_url, DEFAULT_SCHEMA, "test")
    yield home
    await home.dispose()


async def test_hp_06_a_message_becomes_one_run_for_each_saga_of_each_service(database_url: str, home: Home) -> None:
    for app in (listening(database_url, "shop", "orders", "a", "b"), listening(database_url, "books", "orders", "a")):
        app.announce_sync()
        app.close_sync()
    told = Told()
    async with home.driver() as driver:
        await driver.run(take_in([envelope(), envelope(), envelope("elsewhere")], told))
    runs = ask(database_url, "select service, saga, state, cardinality(lineage), parent_run from run")
    assert Counter(runs) == {
        ("shop", "a", "running", 1, None): 2,
        ("shop", "b", "running", 1, None): 2,
        ("books", "a", "running", 1, None): 2,
    }
    assert counts(database_url) == {"message": 3, "run": 6, "mailbox": 6, "child": 0}
    assert sorted(told.mails) == sorted(run for (run,) in ask(database_url, "select run_id from mailbox"))


async def test_the_same_envelopes_again_start_nothing(database_url: str, home: Home) -> None:
    app = listening(database_url, "shop", "orders", "a", "b")
    await app.announce()
    batch = [envelope() for _ in range(20)]
    async with home.driver() as driver:
        await driver.run(take_in(batch, Told()))
        before = counts(database_url)
        told = Told()
        await driver.run(take_in(batch, told))
        await driver.run(take_in(list(reversed(batch)), told))
    assert counts(database_url) == before == {"message": 20, "run": 40, "mailbox": 40, "child": 0}
    assert told.mails == []
    await app.close()


async def test_the_same_envelopes_at_the_same_time_start_once(database_url: str, home: Home) -> None:
    app = listening(database_url, "shop", "orders", "a", "b")
    await app.announce()
    batch = [envelope() for _ in range(50)]

    async def once() -> list[uuid.UUID]:
        told = Told()
        async with home.driver() as driver:
            await driver.run(take_in(batch, told))
        return told.mails

    mails = await asyncio.gather(*(once() for _ in range(4)))
    assert counts(database_url) == {"message": 50, "run": 100, "mailbox": 100, "child": 0}
    assert len([run for told in mails for run in told]) == 100
    await app.close()


async def test_q16_a_saga_that_subscribes_later_gets_nothing_that_is_delivered_again(
    database_url: str, home: Home
) -> None:
    one = envelope()
    for sagas, runs in ((["a"], 1), (["a", "b"], 1)):
        app = listening(database_url, "shop", "orders", *sagas)
        await app.announce()
        async with home.driver() as driver:
            await driver.run(take_in([one], Told()))
        assert counts(database_url)["run"] == runs
        await app.close()


async def test_an_envelope_that_is_twice_in_a_batch_starts_once(database_url: str, home: Home) -> None:
    app = listening(database_url, "shop", "orders", "a")
    await app.announce()
    one = envelope()
    async with home.driver() as driver:
        await driver.run(take_in([one, one, one], Told()))
    assert counts(database_url) == {"message": 1, "run": 1, "mailbox": 1, "child": 0}
    await app.close()


async def test_an_envelope_that_comes_again_after_its_run_has_ended_starts_nothing(
    database_url: str, home: Home
) -> None:
    app = listening(database_url, "shop", "orders", "a")
    async with app.running():
        handle = await app.launch("orders", 1, headers={"h": "v"})
        await handle.wait(20)
        again = Envelope(str(handle.id), "orders", None, b"1", "application/json", {"h": "v"})
        told = Told()
        async with home.driver() as driver:
            await driver.run(take_in([again], told))
        assert told.mails == []
    assert counts(database_url) == {"message": 1, "run": 1, "mailbox": 0, "child": 0}


async def test_q13_q67_who_is_waited_for_is_frozen_at_the_launch_and_who_comes_later_handles_it_late(
    database_url: str,
) -> None:
    app = Scoop("shop", database=database_url)
    handled: list[str] = []
    root = app.saga("root", on="R")

    @root.step
    async def launches(scope: Scope, message: Message) -> None:
        scope.launch("C", message.payload)

    @root.step
    async def goes_on(scope: Scope, message: Message) -> None:
        handled.append(f"root {message.payload}")

    early = app.saga("early", on="C")

    @early.step
    async def handle_early(scope: Scope, message: Message) -> None:
        handled.append(f"early {message.payload}")

    late_app = Scoop("late", database=database_url)
    late = late_app.saga("late", on="C")

    @late.step
    async def handle_late(scope: Scope, message: Message) -> None:
        handled.append(f"late {message.payload}")

    async with app.running(worker=False):
        first = await app.launch("R", 1)
        await until(lambda: counts(database_url)["run"] == 1)
    async with app.running(relay=False):
        await until(lambda: counts(database_url)["child"] == 1)
    await late_app.announce()
    async with app.running(), late_app.running(relay=False):
        await first.wait(20)
        await until(lambda: "late 1" in handled)
        assert sorted(handled) == ["early 1", "late 1", "root 1"]
        second = await app.launch("R", 2)
        await second.wait(20)
        third = await app.launch("C", 3)
        await third.wait(20)
    assert sorted(handled[3:5]) == ["early 2", "late 2"]
    assert handled[5] == "root 2"
    assert sorted(handled[6:]) == ["early 3", "late 3"]
    runs = (await app.status(first.id)).runs
    assert sorted((run.saga, run.state, run.late) for run in runs) == [
        ("early", RunState.COMMITTED, False),
        ("late", RunState.COMMITTED, True),
        ("root", RunState.COMMITTED, False),
    ]
    (late_run,) = (run for run in runs if run.late)
    assert late_run.parent == next(run.id for run in runs if run.saga == "root")
    again = (await app.status(second.id)).runs
    assert not any(run.late for run in again), "from the second on it is waited for"
    await app.close()


async def test_q67_a_message_of_a_run_that_did_not_expect_its_handler_starts_a_late_run_once(
    database_url: str, home: Home
) -> None:
    app = listening(database_url, "shop", "orders", "a")
    await app.announce()
    parent = uuid7()
    one = envelope(**{"scoop-lineage": str(parent)})
    async with home.driver() as driver:
        for _ in range(2):
            await driver.run(take_in([one], Told()))
    assert counts(database_url) == {"message": 1, "run": 1, "mailbox": 1, "child": 0}
    assert ask(database_url, "select late, parent_run, lineage[1] from run") == [(True, None, parent)]
    await app.close()


async def test_a_message_keeps_its_own_headers_and_bytes(database_url: str, home: Home) -> None:
    body = bytes(range(256))
    headers = {"trace": "o'clock \0 🛒", "scoop-context": '{"a":1}'}
    one = Envelope(str(uuid7()), "orders", "k'ey", body, "application/x", headers)
    app = listening(database_url, "shop", "orders", "a")
    await app.announce()
    async with home.driver() as driver:
        await driver.run(take_in([one], Told()))
    message = await app.message(uuid.UUID(one.id))
    assert (message.topic, message.key, message.body, message.payload) == ("orders", "k'ey", body, body)
    assert message.headers == {"trace": "o'clock \0 🛒"}
    assert ask(database_url, "select context::text from run") == [('{"a":1}',)]
    await app.close()
