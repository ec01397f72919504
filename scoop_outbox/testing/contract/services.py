"""Services over a broker: parents wait, failures travel, work is shared, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from scoop_outbox import Message, Scoop, Scope
from scoop_outbox.broker.protocol import Feature
from scoop_outbox.failure import DistributedError
from scoop_outbox.message import JSON, Envelope, uuid7
from scoop_outbox.testing.contract.harness import Power
from scoop_outbox.testing.contract.selection import Contract, needs
from scoop_outbox.testing.contract.system import System, publish_twice
from scoop_outbox.testing.contract.trial import until

_ENDS = 40.0
_HEADERS = {"kind": "order", "empty": "", "greeting": "Grüße"}
_SENT: list[tuple[str | bytes | None, bytes]] = [
    (None, b""),
    ("key", bytes(range(256))),
    ("schlüssel", "Grüße".encode()),
    (b"\xff\x00key", b"\x00\x00\x00\x00\x2a\x02\xff"),
]


def noting(app: Scoop, name: str, topic: str, note: Callable[[str], None]) -> None:
    """Declare a saga of one step that notes its name, and what it was given, when it runs and when it is undone."""
    saga = app.saga(name, on=topic)

    async def step(scope: Scope, message: Message) -> None:
        note(f"{name} {message.payload}")

    async def undo(scope: Scope, message: Message, error: Exception) -> None:
        note(f"undo {name} {message.payload}")

    saga.add_step("note", step, compensate=undo)


def family(system: System, *, fail: str | None = None) -> tuple[Scoop, Scoop, Scoop]:
    """Declare a parent that launches one message for two services, and then, once both are done, another for one."""
    orders, stock, payments = system.service("orders"), system.service("stock"), system.service("payments")
    parent, first, second = system.topic("parent"), system.topic("first"), system.topic("second")
    saga = orders.saga("parent", on=parent)

    async def begin(scope: Scope, message: Message) -> None:
        system.journal.append("begin")
        scope.launch(first, message.payload, key="k")

    async def go_on(scope: Scope, message: Message) -> None:
        system.journal.append("go on")
        scope.launch(second, message.payload, key="k")

    async def end(scope: Scope, message: Message) -> None:
        system.journal.append("end")

    async def undo_begin(scope: Scope, message: Message, error: Exception) -> None:
        system.journal.append("undo begin")

    async def undo_go_on(scope: Scope, message: Message, error: Exception) -> None:
        system.journal.append("undo go on")

    saga.add_step("begin", begin, compensate=undo_begin)
    saga.add_step("go on", go_on, compensate=undo_go_on)
    saga.add_step("end", end)

    def note(what: str) -> None:
        system.journal.append(what)
        if what == fail:
            raise ValueError("out of luck")

    noting(stock, "stock", first, note)
    noting(payments, "payments", first, note)
    noting(payments, "invoice", second, note)
    return orders, stock, payments


class Services(Contract):
    """Tests of services that run undisturbed."""

    async def test_a_parent_waits_for_the_children_of_two_services(self, system: System) -> None:
        orders, stock, payments = family(system)

        async with system.running(orders, stock, payments):
            handle = await orders.launch(system.topic("parent"), 7)
            await handle.wait(_ENDS)

        journal = system.journal
        assert [journal[0], set(journal[1:3]), journal[3:]] == [
            "begin",
            {"stock 7", "payments 7"},
            ["go on", "invoice 7", "end"],
        ]

    async def test_a_failure_travels_and_everything_is_undone_in_reverse(self, system: System) -> None:
        orders, stock, payments = family(system, fail="invoice 7")

        async with system.running(orders, stock, payments):
            handle = await orders.launch(system.topic("parent"), 7)
            with pytest.raises(DistributedError) as caught:
                await handle.wait(_ENDS)

        assert "out of luck" in "".join(str(cause) for cause in _chain(caught.value))
        journal = system.journal
        assert journal[3:6] == ["go on", "invoice 7", "undo go on"]
        assert set(journal[6:8]) == {"undo stock 7", "undo payments 7"}
        assert journal[8:] == ["undo begin"]

    async def test_two_services_each_get_every_message(self, system: System) -> None:
        one, two, topic = system.service("one"), system.service("two"), system.topic("shared")
        noting(one, "one", topic, system.journal.append)
        noting(two, "two", topic, system.journal.append)

        async with system.running(one, two):
            handles = [await one.launch(topic, number, key=str(number % 5)) for number in range(20)]
            for handle in handles:
                await handle.wait(_ENDS)

        assert system.counts() == dict.fromkeys([f"{name} {n}" for name in ("one", "two") for n in range(20)], 1)

    async def test_what_is_launched_is_what_is_handled_byte_for_byte(self, system: System) -> None:
        app, topic = system.service("app"), system.topic("bytes")
        came: dict[str, Message] = {}

        async def keep(scope: Scope, message: Message) -> None:
            came[message.headers["number"]] = message

        app.saga("keep", on=topic).add_step("keep", keep)
        async with system.running(app):
            handles = [
                await app.launch(topic, body, key=key, headers={**_HEADERS, "number": str(number)})
                for number, (key, body) in enumerate(_SENT)
            ]
            for handle in handles:
                await handle.wait(_ENDS)

        assert [(came[str(number)].key, came[str(number)].body) for number in range(len(_SENT))] == _SENT
        for message in came.values():
            assert {name: message.headers[name] for name in _HEADERS} == _HEADERS
            assert message.payload == message.body

    async def test_what_is_published_twice_runs_once(self, system: System) -> None:
        app, topic = system.service("app"), system.topic("twice")
        noting(app, "once", topic, system.journal.append)
        first, last = (Envelope(str(uuid7()), topic, "k", body, JSON, {}) for body in (b"1", b"2"))

        async with system.running(app):
            async with system.publisher(app) as publisher:
                await publish_twice(publisher, first)
                await until(lambda: "once 1" in system.journal, "it ran")
                await publish_twice(publisher, first)
                await publish_twice(publisher, last)
            await until(lambda: "once 2" in system.journal, "the other ran")
            # Whatever was published before has been taken in, or is about to be: nothing tells when.
            await asyncio.sleep(0.5)

        assert system.counts() == {"once 1": 1, "once 2": 1}

    async def test_two_processes_of_a_service_share_its_work(self, system: System) -> None:
        topic, workers = system.topic("work"), set[str]()
        both = asyncio.Event()

        def process(name: str) -> Scoop:
            app = system.service("app")
            saga = app.saga("work", on=topic)

            async def step(scope: Scope, message: Message) -> None:
                workers.add(name)
                if len(workers) > 1:
                    both.set()
                # Each can do only some at a time: nothing goes on until the other takes part.
                await asyncio.wait_for(both.wait(), _ENDS)

            async def note(scope: Scope, message: Message) -> None:
                system.journal.append(str(message.payload))

            saga.add_step("work", step)
            saga.add_step("note", note)
            return app

        one, two = process("one"), process("two")
        await system.create(one)
        async with one.running(slots=2), two.running(slots=2):
            handles = [await one.launch(topic, number, key=str(number)) for number in range(20)]
            for handle in handles:
                await handle.wait(_ENDS)

        assert workers == {"one", "two"}
        assert system.counts() == dict.fromkeys(map(str, range(20)), 1)

    async def test_a_relay_is_stopped_and_started(self, system: System) -> None:
        app, topic = system.service("app"), system.topic("relayed")
        noting(app, "app", topic, system.journal.append)
        await system.create(app)

        async with app.running(relay=False):
            handle = await app.launch(topic, 1)
            with pytest.raises(TimeoutError):
                await handle.wait(0.5)
        async with app.running():
            await handle.wait(_ENDS)
        between = await app.launch(topic, 2)
        async with app.running():
            await between.wait(_ENDS)

        assert system.journal == ["app 1", "app 2"]

    @needs(Feature.KNOWS_TOPICS)
    async def test_a_message_for_an_unknown_topic_stops_no_other(self, system: System) -> None:
        app, topic = system.service("app"), system.topic("known")
        noting(app, "app", topic, system.journal.append)

        async with system.running(app):
            await app.launch(system.topic("missing"), 0, key="k")
            handle = await app.launch(topic, 1, key="k")
            await handle.wait(_ENDS)

        assert system.journal == ["app 1"]

    @needs(Power.FOREIGN)
    async def test_a_foreign_message_starts_a_root_once_however_often_it_comes(self, system: System) -> None:
        topic = system.topic("foreign")
        # Two groups of one service, as while it moves from one to the other: each gets the message.
        old, new = system.service("app", group="old"), system.service("app", group="new")
        noting(old, "app", topic, system.journal.append)
        noting(new, "app", topic, system.journal.append)
        await system.create(old, new)

        headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "kind": "order"}
        for number in (1, 2):
            await system.harness.publish_foreign(topic, b"key", str(number).encode(), headers)
        for app in (old, new):
            async with app.running() as daemons:
                intake = daemons.intake
                assert intake is not None
                await until(lambda intake=intake: intake.counters.taken_in >= 2, "both have come in")  # type: ignore[misc]
                await until(lambda: len(system.journal) >= 2, "both have run")

        assert system.counts() == {"app 1": 1, "app 2": 1}


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and all that caused it."""
    causes = [*getattr(error, "exceptions", ()), *getattr(error, "causes", ()), error.__cause__]
    return [error, *(found for cause in causes if isinstance(cause, BaseException) for found in _chain(cause))]
