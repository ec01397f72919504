"""Failures are seen: each in one line of the log, by the worker that has committed it, and in the metrics."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pydantic
import pytest
import pytest_asyncio
import sqlalchemy as sa

from scoop_outbox import DistributedError, Handle, Message, Running, RunState, Scoop, Scope, TransientError
from scoop_outbox.app import service_of
from scoop_outbox.daemon.counters import RunCounters
from scoop_outbox.daemon.worker import reports, roster, surroundings
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Shop, launches, raises
from tests.waiting import until

LOGGER = "scoop_outbox.daemon.worker.reports"
SECRET = "4111-1111"  # noqa: S105 - of nobody


class Lines:
    """What workers have said of runs."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "scoop_outbox")
        self._caplog = caplog

    @property
    def all(self) -> list[tuple[int, str]]:
        """Level and text of each, without ids."""
        said = [record for record in self._caplog.records if record.name == LOGGER]
        return [(record.levelno, re.sub(r"[0-9a-f-]{36}", "ID", record.getMessage())) for record in said]

    def about(self, saga: str) -> list[tuple[int, str]]:
        return [line for line in self.all if f"saga {saga}," in line[1]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    return Lines(caplog)


@pytest_asyncio.fixture
async def app(database_url: str) -> AsyncIterator[Scoop]:
    service = Scoop("shop", database=database_url)
    yield service
    await service.close()


def ask(url: str, text: str, *params: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def subject(saga: str, step: str, key: str = "-") -> str:
    return f"service shop, saga {saga}, run ID, message ID, key {key}, step {step}"


class CardDeclined(Exception):
    """A failure of the user's."""


DECLINED = f"{__name__}.CardDeclined"


@pytest.mark.everywhere
async def test_a_rollback_is_a_line_for_each_run_that_names_the_root_cause(mixed: Shop, lines: Lines) -> None:
    mixed.saga("order", "orders", None, launches("payments"), raises())
    mixed.saga("stock", "payments")
    mixed.step(mixed.app.sagas["stock"], "reserve")
    payment = mixed.saga("payment", "payments")
    mixed.step(payment, "pay", raises("no funds\nDETAIL: 4111-1111", CardDeclined))

    handle, _ = await mixed.fail("orders", key="A-1")

    runs = {run.saga: run for run in (await mixed.status(handle)).runs}
    order, payment_run = runs["order"], runs["payment"]
    said = [record.getMessage() for record in lines._caplog.records if record.name == LOGGER]
    assert f"run {order.id}, message {handle.id}, key A-1, " in said[1]
    assert f"run {payment_run.id}, message {payment_run.message_id}, key -, " in said[0]
    assert lines.about("payment") == [
        (logging.INFO, f"run: rolling back ({subject('payment', 'pay')}: {DECLINED}: no funds)")
    ]
    assert lines.about("order") == [
        (
            logging.WARNING,
            f"run: rolling back ({subject('order', '1', 'A-1')}: {DECLINED}: no funds, in payment[ID])",
        )
    ]
    # What was told to roll back has no failure of its own.
    assert [(level, text.partition(" (")[0]) for level, text in lines.about("stock")] == [
        (logging.DEBUG, "run: rolled back for its parent")
    ]


async def test_what_commits_is_counted_and_nothing_is_said(app: Scoop, lines: Lines) -> None:
    app.saga("order", on="orders").add_step("only", lambda scope, message: None)
    async with app.running() as running:
        for _ in range(3):
            await (await app.launch("orders", {})).wait(LONG)
        text = await running.metrics()
    assert lines.all == []
    label = 'saga="order",service="shop",state="committed"'
    assert f"scoop_outbox_runs_total{{{label}}} 3.0" in text
    assert f"scoop_outbox_run_seconds_count{{{label}}} 3.0" in text
    assert 'scoop_outbox_runs_total{saga="order",service="shop",state="rollback_failed"} 0.0' in text
    seconds = re.search(rf"scoop_outbox_run_seconds_sum{{{re.escape(label)}}} (\S+)", text)
    assert seconds is not None
    assert 0 < float(seconds[1]) < 3 * LONG


async def test_the_duration_of_a_run_ends_with_its_last_step(app: Scoop, database_url: str) -> None:
    old = "select 1 from scoop_outbox.message where clock_timestamp() - created_at > interval '0.3 s'"

    async def slow(scope: Scope, message: Message) -> None:
        await until(lambda: ask(database_url, old))

    app.saga("order", on="orders").add_step("slow", slow)
    async with app.running() as running:
        await (await app.launch("orders", {})).wait(LONG)
        assert running.worker is not None
        (seen,) = running.worker.reports.counters.seconds.values()
    assert 0.25 < seen.total < LONG


async def test_a_root_cause_of_the_exception_itself_is_told_beside_it(app: Scoop, lines: Lines) -> None:
    def fail(scope: Scope, message: Message) -> None:
        raise CardDeclined from KeyError("sku")

    app.saga("order", on="orders").add_step("only", fail)
    async with app.running():
        with pytest.raises(DistributedError):
            await (await app.launch("orders", {}, key="a\nb" * 300)).wait(LONG)
    ((_, text),) = lines.all
    assert text.endswith(f"step only: {DECLINED} (root cause: KeyError: 'sku'))")
    assert "\n" not in text
    assert len(text) < 600


async def test_what_databases_quote_is_not_in_the_line(app: Scoop, lines: Lines, database_url: str) -> None:
    ask(database_url, "create table sold (card text unique)")

    async def twice(scope: Any, message: Message) -> None:
        for _ in "12":
            await scope.session.execute(text("insert into sold values (:card)"), {"card": SECRET})

    from sqlalchemy import text  # noqa: PLC0415

    app.saga("order", on="orders").add_step("only", twice)
    async with app.running():
        with pytest.raises(DistributedError):
            await (await app.launch("orders", {})).wait(LONG)
    ((level, said),) = lines.all
    assert level == logging.WARNING
    assert 'duplicate key value violates unique constraint "sold_card_key"' in said
    assert SECRET not in said


@pytest.mark.parametrize("by", ["psycopg", "sqlalchemy", "pydantic"])
async def test_what_is_quoted_in_the_first_line_is_not_in_the_line_either(app: Scoop, lines: Lines, by: str) -> None:
    async def refused(scope: Any, message: Message) -> None:
        if by == "psycopg":
            await scope.connection.execute("select %s::int", (message.payload,))
        if by == "sqlalchemy":
            await scope.session.execute(sa.text("select cast(:card as int)"), {"card": message.payload})
        pydantic.TypeAdapter(dict[str, int]).validate_python({message.payload: "x"})

    app.saga("order", on="orders").add_step("only", refused)
    async with app.running():
        with pytest.raises(DistributedError) as caught:
            await (await app.launch("orders", SECRET)).wait(LONG)
    ((_, said),) = lines.all
    assert SECRET in (caught.value.message or "")
    assert SECRET not in said
    assert said.rpartition(".")[2].rstrip(")") in ("InvalidTextRepresentation", "ValidationError")


async def test_the_root_cause_is_told_however_deep_it_is(app: Scoop, lines: Lines) -> None:
    """Of a failure deeper than 32 levels those in the middle are left out, and what was raised is below them."""

    def deeper(scope: Scope, message: Message) -> None:
        if message.payload == 0:
            raise CardDeclined("no funds")
        scope.launch("orders", message.payload - 1)

    order = app.saga("order", on="orders")
    order.add_step("deeper", deeper)
    order.add_step("last", lambda scope, message: None)
    async with app.running():
        with pytest.raises(DistributedError, match=f"^root cause {DECLINED}: no funds ") as caught:
            await (await app.launch("orders", 40)).wait(LONG)
    assert caught.value.root_cause.type == DECLINED
    failed = [text for _, text in lines.all if text.startswith("run: rolling back (")]
    assert len(failed) == 41
    assert all(f": {DECLINED}: no funds" in text for text in failed)


async def test_what_cannot_be_rolled_back_is_an_error_at_each_level_and_a_gauge(mixed: Shop, lines: Lines) -> None:
    order = mixed.saga("order", "orders")
    mixed.step(order, "place", launches("payments"))
    mixed.step(order, "ship", raises("no truck"))
    mixed.step(mixed.saga("payment", "payments"), "pay", compensate=raises("the bank is closed", CardDeclined))
    async with mixed.running() as running:
        handle = await mixed.app.launch("orders", {})
        with pytest.raises(DistributedError):
            await handle.wait(LONG)
        assert isinstance(running, Running)
        assert await mixed.states(handle) == dict.fromkeys(("order", "payment"), RunState.ROLLBACK_FAILED)
        text = await running.metrics()
    stuck = [line for line in lines.all if "rollback failed" in line[1]]
    closed, told = f"{DECLINED}: the bank is closed", "it was to be rolled back for: RuntimeError: no truck"
    where = f"{subject('order', 'place')}: {closed}, in payment[ID]"
    assert stuck == [
        (logging.ERROR, f"run: rollback failed ({subject('payment', 'pay')}: {closed}; {told}, in order[ID])"),
        (logging.ERROR, f"run: rollback failed ({where}; {told})"),
    ]
    assert "scoop_outbox_runs_rollback_failed 2.0" in text
    assert 'scoop_outbox_runs_total{saga="order",service="shop",state="rollback_failed"} 1.0' in text
    assert "scoop_outbox_runs_parked 0.0" in text


@pytest.mark.parametrize("colour", ["async", "blocking"])
async def test_an_interruption_is_a_warning_with_host_and_step_and_the_servers_words(
    make_shop: MakeShop, colour: str, database_url: str, lines: Lines
) -> None:
    shop = make_shop(colour)
    calls: list[int] = []

    def lose(scope: Any, message: Message) -> None:
        calls.append(1)
        if len(calls) == 1:
            ask(database_url, "select pg_terminate_backend(%s, 5000)", scope.connection.info.backend_pid)

    shop.saga("order", "orders", None)
    shop.step(shop.app.sagas["order"], "crash", lose)
    await shop.run("orders", key="A-1")

    info = psycopg.connect(database_url)
    server = f"{info.info.host}:{info.info.port}" if not info.info.host.startswith("/") else info.info.host
    info.close()
    ((level, said),) = lines.all
    assert level == logging.WARNING
    assert said.startswith(
        f"run: interrupted, will be executed again ({subject('order', 'crash', 'A-1')}, at {server}, 1 in a row: "
    )
    assert "AdminShutdown 57P01: terminating connection due to administrator command" in said


async def test_what_a_callback_makes_of_a_lost_connection_does_not_hide_what_the_server_said(
    app: Scoop, database_url: str, lines: Lines
) -> None:
    calls: list[int] = []

    async def lose(scope: Any, message: Message) -> None:
        calls.append(1)
        if len(calls) == 1:
            ask(database_url, "select pg_terminate_backend(%s, 5000)", scope.connection.info.backend_pid)
            try:
                await scope.connection.execute("select 1")
            except psycopg.Error as error:
                raise CardDeclined(SECRET) from error

    app.saga("order", on="orders").add_step("only", lose)
    async with app.running():
        await (await app.launch("orders", {})).wait(LONG)
    ((_, said),) = lines.all
    assert "AdminShutdown 57P01" in said or "server closed the connection unexpectedly" in said
    assert "CardDeclined" not in said


async def test_an_interrupted_compensation_says_its_step(mixed: Shop, database_url: str, lines: Lines) -> None:
    calls: list[int] = []

    def lose(scope: Any, message: Message, error: Exception) -> None:
        calls.append(1)
        if len(calls) == 1:
            ask(database_url, "select pg_terminate_backend(%s, 5000)", scope.connection.info.backend_pid)

    order = mixed.saga("order", "orders")
    mixed.step(order, "pay", compensate=lose)
    mixed.step(order, "ship", raises())
    await mixed.fail("orders")
    assert [text.split(", at")[0] for level, text in lines.all if "interrupted" in text] == [
        f"run: interrupted, will be executed again ({subject('order', 'pay')}"
    ]


async def test_runs_that_are_interrupted_for_one_cause_do_not_fill_the_log(
    app: Scoop, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "QUIET", 3600.0)
    entered: list[int] = []

    def not_now(scope: Scope, message: Message) -> None:
        entered.append(1)
        raise TransientError(SECRET)

    app.saga("order", on="orders").add_step("only", not_now)
    async with app.running(grace=1):
        for _ in range(20):
            await app.launch("orders", {})
        await until(lambda: len(entered) >= 60, LONG)
    warned = [text for level, text in lines.all if level >= logging.WARNING]
    assert len(warned) == 1
    assert "TransientError" in warned[0]
    assert SECRET not in str(lines.all)
    assert len([level for level, _ in lines.all if level == logging.DEBUG]) >= 20


def test_a_cause_that_was_not_said_is_counted_when_it_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.clock import Clock  # noqa: PLC0415

    clock = Clock()
    monkeypatch.setattr(reports, "time", clock)
    seldom = reports.Seldom(10.0)
    assert seldom.take("a") == 0
    assert [seldom.take("a") for _ in range(3)] == [None] * 3
    assert seldom.take("b") == 0
    clock.now += 10
    assert seldom.take("a") == 3
    assert seldom.take("a") is None
    for number in range(5000):
        seldom.take(str(number))
    assert len(seldom._said) <= 1000


async def test_a_run_that_is_parked_is_an_error_and_counted_once(app: Scoop, database_url: str, lines: Lines) -> None:
    def lose(scope: Any, message: Message) -> None:
        ask(database_url, "select pg_terminate_backend(%s, 5000)", scope.connection.info.backend_pid)

    app.saga("order", on="orders").add_step("crash", lose)
    async with app.running(max_interruptions=2, grace=1) as running:
        handle = await app.launch("orders", {}, key="A-1")
        await until(lambda: parked(app, handle), LONG)
        text = await running.metrics()
    errors = [text for level, text in lines.all if level == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith(f"run: parked ({subject('order', 'crash', 'A-1')}, at ")
    assert "interrupted 2 times in a row without progress, the last time: " in errors[0]
    assert errors[0].endswith("then run: scoop-outbox retry ID)")
    assert 'scoop_outbox_runs_total{saga="order",service="shop",state="parked"} 1.0' in text
    assert "scoop_outbox_runs_parked 1.0" in text


async def parked(app: Scoop, handle: Handle) -> bool:
    return ask(service_of(app).home.url, "select 1 from scoop_outbox.run where state = 'parked'") == [(1,)]


def test_ends_are_counted_and_timed_but_for_those_that_may_go_on() -> None:
    ends = RunCounters(["order"])
    assert ends.counts["order", RunState.COMMITTED] == 0
    ends.note("order", RunState.COMMITTED, 0.5)
    ends.note("order", RunState.PARKED, None)
    assert ends.counts["order", RunState.PARKED] == 1
    assert list(ends.seconds) == [("order", RunState.COMMITTED)]
    assert ends.seconds["order", RunState.COMMITTED].total == 0.5


async def test_names_and_keys_that_are_odd_stay_in_the_line(app: Scoop, lines: Lines) -> None:
    app.saga("or\nder", on="orders").add_step("st\rep", raises("a\nb"))
    async with app.running():
        with pytest.raises(DistributedError):
            await (await app.launch("orders", {}, key=b"\xff\n")).wait(LONG)
    ((_, said),) = lines.all
    assert said.startswith(
        "run: rolling back (service shop, saga or\\nder, run ID, message ID, key b'\\xff\\n', step st\\rep:"
    )
    assert said.endswith(": RuntimeError: a)")


# What is around a worker ------------------------------------------------------------------------------------------


def around(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name == surroundings.__name__]


async def test_a_worker_warns_when_there_is_no_relay_for_long_and_says_when_one_comes(
    app: Scoop, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "scoop_outbox")
    monkeypatch.setattr(roster, "EVERY", 0.02)
    monkeypatch.setattr(surroundings, "UNRELAYED", 0.3)
    app.saga("order", on="orders").add_step("only", lambda scope, message: None)
    async with app.running(relay=False):
        await until(lambda: around(caplog))
        assert [level for level, _ in around(caplog)] == [logging.WARNING]
        assert "launched messages are not published" in around(caplog)[0][1]
        other = Scoop("relay", database=database_url)
        async with other.running(worker=False):
            await until(lambda: len(around(caplog)) == 2)
            assert around(caplog)[1] == (logging.INFO, "relay: found again")
        await until(lambda: len(around(caplog)) == 3)
        assert around(caplog)[2][0] == logging.WARNING


async def test_a_worker_with_a_relay_says_nothing(
    app: Scoop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "EVERY", 0.02)
    monkeypatch.setattr(surroundings, "UNRELAYED", 0.3)
    looks: list[bool] = []
    saw = surroundings.Relays.saw

    def noting(self: surroundings.Relays, *, there: bool) -> None:
        looks.append(there)
        saw(self, there=there)

    monkeypatch.setattr(surroundings.Relays, "saw", noting)
    app.saga("order", on="orders").add_step("only", lambda scope, message: None)
    async with app.running():
        await until(lambda: looks.count(True) > 30)
    assert around(caplog) == []


async def test_a_worker_warns_of_sagas_of_its_service_that_no_worker_has(
    app: Scoop, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "EVERY", 0.02)
    before = Scoop("shop", database=database_url)
    before.saga("gone", on="orders").add_step("only", lambda scope, message: None)
    before.saga("old-name", on="orders").add_step("only", lambda scope, message: None)
    await before.announce()
    await before.close()
    other = Scoop("other", database=database_url)
    other.saga("of another service", on="orders").add_step("only", lambda scope, message: None)
    await other.announce()
    await other.close()

    app.saga("order", on="orders", formerly=["old-name"]).add_step("only", lambda scope, message: None)
    async with app.running():
        await until(lambda: around(caplog))
    ((level, said),) = around(caplog)
    assert level == logging.WARNING
    assert said.startswith(
        "saga: subscribed, but not in the code of any living worker (service shop, saga gone, topics orders: "
    )
    assert said.endswith("scoop-outbox handlers forget shop gone)")


async def test_what_another_living_worker_has_is_no_warning_at_either_of_them(
    app: Scoop, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The worker that was there first sees the other's subscriptions before it sees the other.
    caplog.set_level(logging.INFO, "scoop_outbox")
    monkeypatch.setattr(roster, "EVERY", 0.02)
    looks: list[surroundings.Surroundings] = []
    started = asyncio.Event()
    look = surroundings.Surroundings.look

    async def gated(self: surroundings.Surroundings, driver: Any) -> bool:
        if looks and self is looks[0]:
            await started.wait()
        changed = await look(self, driver)
        looks.append(self)
        return changed

    monkeypatch.setattr(surroundings.Surroundings, "look", gated)
    before = Scoop("shop", database=database_url)
    before.saga("theirs", on="orders").add_step("only", lambda scope, message: None)
    app.saga("order", on="orders").add_step("only", lambda scope, message: None)
    await app.announce()
    async with before.running():
        await until(lambda: looks)
        async with app.running(relay=False):
            await until(lambda: around(caplog))
            started.set()
            await until(lambda: looks.count(looks[0]) > 2)
            assert [(level, said.partition(" (")[2]) for level, said in around(caplog)] == [
                (logging.INFO, "service shop, saga theirs)"),
                (logging.INFO, "service shop, saga order)"),
            ]
