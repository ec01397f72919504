"""What is wrong is refused with words that say what to do, and leaves nothing behind; what is odd works."""

import asyncio
import dataclasses
import json
import logging
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from scoop_outbox import (
    BrokerError,
    DatabaseError,
    DefinitionError,
    DistributedError,
    GoTo,
    Message,
    PayloadError,
    Retry,
    RunState,
    Scoop,
    ScoopError,
    Scope,
    Topic,
)
from scoop_outbox.app import service_of

ONCE = Retry(attempts=1)


@dataclasses.dataclass
class Order:
    id: int


@dataclasses.dataclass
class Other:
    id: int


ORDERS = Topic("orders", Order)


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Scoop]:
    app = Scoop("shop", database=database_url)
    yield app
    await app.close()


def ask(app: Scoop, question: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(service_of(app).home.url) as connection:
        return connection.execute(question.encode()).fetchall()


def written(app: Scoop) -> int:
    count: int = ask(app, "select count(*) from scoop_outbox.outbox")[0][0]
    return count


# Launching from outside ------------------------------------------------------------------------------------------

BAD: list[tuple[Any, Any, dict[str, Any], type[ScoopError], str]] = [
    ("orders", object(), {}, PayloadError, "object is not JSON serializable. Use plain values"),
    ("orders", float("nan"), {}, PayloadError, "the payload for topic 'orders' cannot be encoded as JSON"),
    ("orders", {1, 2}, {}, PayloadError, "set is not JSON serializable"),
    ("orders", {"a": b"bytes"}, {}, PayloadError, "bytes is not JSON serializable"),
    ("orders", {"a": [{"b": object}]}, {}, PayloadError, "type is not JSON serializable"),
    ("orders", {(1, 2): 3}, {}, PayloadError, "keys must be str"),
    (ORDERS, {"id": 1}, {}, PayloadError, "topic 'orders' carries Order, not dict"),
    (ORDERS, Other(1), {}, PayloadError, "topic 'orders' carries Order, not Other"),
    (ORDERS, b"{}", {}, PayloadError, "topic 'orders' carries Order, not bytes"),
    (ORDERS, Order(object()), {}, PayloadError, "does not fit Order: it cannot be written as JSON"),  # type: ignore[arg-type]
    (7, 1, {}, DefinitionError, "a topic name is text, not int"),
    (None, 1, {}, DefinitionError, "a topic name is text, not NoneType"),
    ("", 1, {}, DefinitionError, "a topic name must not be empty"),
    ("a\0b", 1, {}, DefinitionError, "holds a NUL character, which Postgres cannot store"),
    ("\ud800", 1, {}, DefinitionError, "lone surrogate"),
    ("x" * 256, 1, {}, DefinitionError, "takes 256 bytes in UTF-8, more than the limit of 255"),
    ("🛒" * 64, 1, {}, DefinitionError, "takes 256 bytes in UTF-8, more than the limit of 255"),
    ("orders", 1, {"key": 7}, PayloadError, "a message key is text of at most 1024 bytes"),
    ("orders", 1, {"key": "a\0b"}, PayloadError, "a message key is text of at most 1024 bytes"),
    ("orders", 1, {"key": "\ud800"}, PayloadError, "a message key is text of at most 1024 bytes"),
    ("orders", 1, {"key": "🛒" * 257}, PayloadError, "a message key is text of at most 1024 bytes"),
    ("orders", 1, {"headers": {"a": 1}}, PayloadError, "names and values are text; encode other values yourself"),
    ("orders", 1, {"headers": {"scoop-x": "1"}}, PayloadError, "are ours; use another name"),
    ("orders", 1, {"context": {"a": object()}}, PayloadError, "the context cannot be encoded as JSON"),
]


@pytest.mark.parametrize("topic, payload, more, kind, says", BAD)
async def test_what_cannot_be_launched_is_refused_and_leaves_nothing(
    app: Scoop, topic: Any, payload: Any, more: dict[str, Any], kind: type[ScoopError], says: str
) -> None:
    def launch_sync() -> None:
        app.launch_sync(topic, payload, **more)

    for attempt in (app.launch(topic, payload, **more), asyncio.to_thread(launch_sync)):
        with pytest.raises(kind) as error:
            await attempt
        assert says in str(error.value)
        str(error.value).encode()
    assert written(app) == 0


async def test_what_cannot_be_joined_is_refused_and_leaves_nothing(app: Scoop) -> None:
    sessions: list[Any] = [7, object(), "session", app]
    for session in sessions:
        with pytest.raises(DatabaseError, match=r"cannot join \w+: pass an SQLAlchemy AsyncSession"):
            await app.launch("orders", 1, session=session)
        with pytest.raises(DatabaseError, match=r"cannot join \w+: pass an SQLAlchemy Session"):
            await asyncio.to_thread(app.launch_sync, "orders", 1, session=session)
    with (
        psycopg.connect(service_of(app).home.url) as blocking,
        pytest.raises(DatabaseError, match=r"for blocking ones there is launch_sync\(\)"),
    ):
        await app.launch("orders", 1, session=blocking)  # type: ignore[arg-type]  # that is the point
    assert written(app) == 0


# Launching from a step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic, payload, more, kind, says", BAD)
async def test_a_step_that_launches_what_cannot_be_launched_fails_and_launches_nothing(
    app: Scoop, topic: Any, payload: Any, more: dict[str, Any], kind: type[ScoopError], says: str
) -> None:
    saga = app.saga("saga", on="start")

    @saga.step
    async def only(scope: Scope, message: Message) -> None:
        scope.launch("good", 1)
        scope.launch(topic, payload, **more)

    async with app.running():
        handle = await app.launch("start", 1)
        with pytest.raises(DistributedError) as error:
            await handle.wait(20)
    assert error.value.failure.type.endswith(kind.__name__)
    assert says in (error.value.failure.message or "")
    assert ask(app, "select topic from scoop_outbox.message") == [("start",)]
    assert written(app) == 0


@pytest.mark.parametrize("value", [0, "text", object(), GoTo, [], GoTo("nowhere")])
async def test_gt_11_a_step_that_returns_nonsense_fails(app: Scoop, value: object) -> None:
    saga = app.saga("saga", on="start")
    undone: list[str] = []

    @saga.step
    async def first(scope: Scope, message: Message) -> None: ...

    @first.compensate
    async def undo(scope: Scope, message: Message, error: Exception) -> None:
        undone.append("first")

    @saga.step
    def nonsense(scope: Scope, message: Message) -> Any:
        scope.launch("good", 1)
        return value

    async with app.running():
        with pytest.raises(DistributedError, match="step 'nonsense'") as error:
            await (await app.launch("start", 1)).wait(20)
    assert error.value.failure.type.endswith("StepError")
    assert undone == ["first"]
    assert ask(app, "select topic from scoop_outbox.message") == [("start",)]


@pytest.mark.parametrize("what", ["context", "result"])
async def test_a_step_that_leaves_what_cannot_be_stored_fails(app: Scoop, what: str) -> None:
    saga = app.saga("saga", on="start")

    @saga.step
    async def only(scope: Scope, message: Message) -> None:
        scope.launch("good", 1)
        if what == "context":
            scope.context["x"] = object()
        else:
            scope.set_result(object())

    async with app.running():
        with pytest.raises(DistributedError, match=f"the {what} cannot be encoded as JSON"):
            await (await app.launch("start", 1)).wait(20)
    assert ask(app, "select topic from scoop_outbox.message") == [("start",)]


async def test_a_body_that_does_not_fit_fails_the_step_that_looks_at_it(app: Scoop) -> None:
    saga = app.saga("saga", on=ORDERS)

    @saga.step
    async def only(scope: Scope, message: Message) -> None:
        assert message.payload.id == 1

    async with app.running():
        await (await app.launch(ORDERS, Order(1))).wait(20)
        with pytest.raises(DistributedError, match="a message on topic 'orders' does not fit Order"):
            await (await app.launch("orders", {"nothing": "that fits"})).wait(20)


# Names and values that are odd, and work ------------------------------------------------------------------------

ODD = [
    "o'clock",
    'say "hi"',
    "50% %s %(name)s",
    "{schema} \\ $1 -- ; drop table scoop_outbox.run",
    "🛒 größe 日本",
    "line\nbreak\ttab",
    "x" * 255,
    "é" * 127 + "x",
    " spaces ",
]


@pytest.mark.parametrize("name", ODD)
async def test_d33_d35_odd_names_work_forward_and_back(database_url: str, name: str) -> None:
    app = Scoop(name, database=database_url)
    saga = app.saga(name, on=name)
    done: list[str] = []
    below = f"{name}!" if len(name.encode()) < 255 else "child"

    async def does(scope: Scope, message: Message) -> None:
        scope.context[name] = name
        scope.launch(below, name, key=name, headers={name: name})
        done.append("step")

    async def undoes(scope: Scope, message: Message, error: Exception) -> None:
        assert scope.context[name] == name
        done.append("undone")

    def fails(scope: Scope, message: Message) -> None:
        raise ValueError(name)

    saga.add_step(name, does, compensate=undoes)
    saga.add_step("fails", fails)
    child = app.saga("child", on=below)

    @child.step(name)
    def handles(scope: Scope, message: Message) -> None:
        assert (message.payload, message.key, message.headers) == (name, name, {name: name})
        assert scope.context[name] == name
        done.append("child")

    @handles.compensate
    def undoes_child(scope: Scope, message: Message, error: Exception) -> None:
        done.append("child undone")

    async with app.running():
        handle = await app.launch(name, name, key=name, headers={name: name})
        with pytest.raises(DistributedError) as error:
            await handle.wait(20)
    assert error.value.failure.message == name
    assert done == ["step", "child", "child undone", "undone"]
    runs = (await app.status(handle.id)).runs
    assert [(run.saga, run.service, run.state) for run in runs] == [
        (name, name, RunState.ROLLED_BACK),
        ("child", name, RunState.ROLLED_BACK),
    ]
    assert [step.step for step in runs[0].steps] == [name, "fails", name]
    await app.close()


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\udcff\0", "🛒", "x" * 1_000_000])
async def test_d35_text_that_postgres_cannot_store_travels_in_payload_context_result_and_failure(
    app: Scoop, text: str
) -> None:
    saga = app.saga("saga", on="start")
    seen: list[object] = []

    @saga.step
    async def first(scope: Scope, message: Message) -> None:
        assert message.payload == text
        scope.context[text[:20]] = text
        scope.launch("child", text)

    @saga.step
    async def second(scope: Scope, message: Message) -> None:
        seen.append([result.value for result in scope.results])
        seen.append(scope.context[text[:20]])
        raise ValueError(text)

    @app.saga("child", on="child").step
    def answers(scope: Scope, message: Message) -> None:
        scope.set_result(message.payload)

    async with app.running():
        with pytest.raises(DistributedError) as error:
            await (await app.launch("start", text)).wait(20)
    assert seen == [[text], text]
    assert (error.value.failure.message or "")[:1000] == text[:1000]
    assert json.loads(error.value.failure.dumps())


# Databases and brokers -------------------------------------------------------------------------------------------

SECRET = "s3cr3t-pass"  # noqa: S105 - that it is never shown is what is tested


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


@pytest.mark.parametrize(
    "url, says",
    [
        (f"mysql://user:{SECRET}@host/db", "starts with mysql://"),
        (f"postgresql+asyncpg://user:{SECRET}@host/db", "starts with postgresql+asyncpg://"),
        (f"http://user:{SECRET}@host/db", "starts with http://"),
        (f"{SECRET}", "cannot be parsed"),
        (f"user:{SECRET}@host/db", "cannot be parsed"),
        (f"postgresql://user:{SECRET}@host:port/db", "cannot be parsed"),
        ("://", "cannot be parsed"),
    ],
)
def test_a_url_that_is_wrong_is_refused_when_it_is_given(url: str, says: str) -> None:
    with pytest.raises(DatabaseError, match="postgresql://user:password@host:5432/database") as error:
        Scoop("shop", database=url)
    assert says in str(error.value)
    with pytest.raises(DatabaseError):
        Scoop("shop").configure(database=url)
    assert SECRET not in shown(error.value)


UNREACHABLE = [
    f"postgresql://user:{SECRET}@127.0.0.1:1/db",
    f"postgresql://127.0.0.1:1/db?user=user&password={SECRET}",
    f"postgres://user:{SECRET}@127.0.0.1:1/db?connect_timeout=2",
]


@pytest.fixture
def no_debug(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, logger="scoop_outbox"):
        yield caplog


@pytest.mark.parametrize("url", UNREACHABLE)
async def test_a_database_that_cannot_be_reached(url: str, no_debug: pytest.LogCaptureFixture) -> None:
    app = Scoop("shop", database=url)
    app.saga("saga", on="start").add_step("only", lambda scope, message: None)

    async def runs() -> None:
        async with app.running():
            pass

    for attempt in (app.launch("start", 1), asyncio.to_thread(app.launch_sync, "start", 1), runs(), app.migrate()):
        with pytest.raises(
            DatabaseError, match=r"cannot connect to postgresql://.*127\.0\.0\.1:1/db.*Is the server run"
        ) as error:
            await attempt
        assert SECRET not in str(error.value)
        assert SECRET not in shown(error.value)
    assert SECRET not in repr(app)
    assert SECRET not in repr(service_of(app).home)
    assert SECRET not in repr(app.handle(service_of(app).home.process_id))
    assert SECRET not in no_debug.text
    await app.close()


async def test_a_database_that_does_not_exist_or_lets_nobody_in(postgres_url: str) -> None:
    nowhere = make_url(postgres_url).set(database="there_is_none").render_as_string(hide_password=False)
    with pytest.raises(DatabaseError, match='database "there_is_none" does not exist'):
        await Scoop("shop", database=nowhere).launch("start", 1)
    stranger = make_url(postgres_url).set(username="nobody", password=SECRET).render_as_string(hide_password=False)
    with pytest.raises(DatabaseError, match="cannot connect to postgresql://nobody") as error:
        await Scoop("shop", database=stranger).launch("start", 1)
    assert SECRET not in shown(error.value)


async def test_without_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCOOP_OUTBOX_DATABASE", raising=False)
    app = Scoop("shop")
    with pytest.raises(DatabaseError, match="service 'shop' has no database: pass database='postgresql://"):
        await app.launch("start", 1)
    with pytest.raises(DatabaseError, match="or set SCOOP_OUTBOX_DATABASE"):
        async with app.running():
            pass


@pytest.mark.parametrize(
    "url, says",
    [
        (f"pigeon://user:{SECRET}@loft", "no broker is known for the scheme 'pigeon': use kafka://"),
        (f"{SECRET}", "the broker URL has no scheme; it looks like kafka://host:9092 or amqp://"),
        (f"kafka://[{SECRET}", "the broker URL cannot be parsed"),
    ],
)
def test_a_broker_that_nobody_knows(url: str, says: str) -> None:
    with pytest.raises(BrokerError) as error:
        Scoop("shop", broker=url)
    assert says in str(error.value)
    assert SECRET not in str(error.value)
    with pytest.raises(BrokerError):
        Scoop("shop").configure(broker=url)


async def test_numbers_that_make_no_sense(app: Scoop) -> None:
    app.saga("saga", on="start").add_step("only", lambda scope, message: None)
    with pytest.raises(DefinitionError, match="slots=0: a worker needs at least one"):
        async with app.running(slots=0):
            pass


async def test_a_high_water_mark_below_which_nothing_comes_in_is_refused(database_url: str) -> None:
    app = Scoop("shop", database=database_url)
    app.saga("order", on="orders").add_step("only", lambda scope, message: None)
    with pytest.raises(DefinitionError, match="high_water=0: nothing would ever be taken in"):
        async with app.running(high_water=0):
            pass
