"""What is too large is refused in words where it is launched; what comes in too large is in nobody's way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest

from scoop_outbox import DefinitionError, Draft, PayloadError, Retry, RunState, Scoop
from scoop_outbox._emission import emission
from scoop_outbox.app import service_of
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.wire.limits import CEILING, MAX_BODY, TOGETHER, Limits
from tests.fake_broker import FakeBroker, message
from tests.waiting import until

LARGE = b"x" * 1001
MOST = 1000


def ask(url: str, question: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode()).fetchall()


@pytest.mark.parametrize("most", [0, -1, CEILING + 1])
def test_a_limit_that_cannot_be_kept_is_refused(most: int) -> None:
    with pytest.raises(DefinitionError, match=f"max_body={most}: it is a number of bytes from 1 to {CEILING}"):
        Scoop("shop", max_body=most)


def test_the_limit_is_64_mib_unless_it_is_set() -> None:
    def body(size: int) -> None:
        emission("orders", bytes(size), key=None, headers=None, context=None, awaited=False, depth=0)

    body(MAX_BODY)
    with pytest.raises(PayloadError, match=r"takes 67108865 bytes, and max_body is 67108864: .*launch what tells"):
        body(MAX_BODY + 1)


async def test_a_body_that_is_too_large_is_refused_at_the_launch_and_leaves_nothing(database_url: str) -> None:
    app = Scoop("shop", database=database_url, max_body=MOST)
    says = "the payload for topic 'orders' takes 1001 bytes, and max_body is 1000: .*pass a larger max_body"
    with pytest.raises(PayloadError, match=says):
        await app.launch("orders", LARGE)
    with pytest.raises(PayloadError, match=says):
        await asyncio.to_thread(app.launch_sync, "orders", LARGE)
    with pytest.raises(PayloadError, match="takes 1002 bytes"):
        await app.launch("orders", "x" * 1000)  # in JSON
    with pytest.raises(PayloadError, match="the context takes"):
        await app.launch("orders", 1, context={"a": "x" * MOST})
    await app.launch("orders", LARGE[:MOST])
    assert ask(database_url, "select length(body) from outbox") == [(MOST,)]
    await app.close()


async def test_a_limit_that_comes_with_another_broker_reaches_the_steps(database_url: str) -> None:
    home = service_of(Scoop("shop", database=database_url)).home
    home.limits = Limits(MOST, client=10)  # as `configure` does when a broker is named after the database was opened
    driver = await home.connect_for_steps()
    blocking = await asyncio.to_thread(home.connect_for_steps_blocking)
    try:
        assert (driver.limits.most, blocking.limits.most) == (10, 10)
    finally:
        await driver.close()
        await asyncio.to_thread(blocking.close)
        await home.dispose()


@pytest.mark.parametrize("coroutines", [True, False])
@pytest.mark.parametrize("what", ["launch", "launch on the global scope", "set_result", "context"])
async def test_a_step_that_launches_or_leaves_too_much_has_failed(
    database_url: str, coroutines: bool, what: str
) -> None:
    app = Scoop("shop", database=database_url, max_body=MOST)
    text = "x" * MOST

    def leave(scope: Any) -> None:
        match what:
            case "launch":
                scope.launch("others", LARGE)
            case "launch on the global scope":
                scope.launch_on_global_scope("others", LARGE)
            case "set_result":
                scope.set_result(text)
            case _:
                scope.context["a"] = text

    async def step(scope: Any, message: Any) -> None:
        leave(scope)

    def blocking_step(scope: Any, message: Any) -> None:
        leave(scope)

    app.saga("only", on="orders").add_step("first", step if coroutines else blocking_step, retry=Retry(attempts=1))
    async with app.running(grace=1):
        handle = await app.launch("orders", 1)
        with pytest.raises(Exception, match=r".") as failed:
            await handle.wait(20)
        (run,) = (await app.status(handle.id)).runs
    assert run.state is RunState.ROLLED_BACK
    assert failed.value.type.endswith("PayloadError")  # type: ignore[attr-defined]
    assert "max_body is 1000" in str(failed.value)
    assert ask(database_url, "select * from outbox") == []


class Lower:
    """A service that inherits a context which is larger than its own limit."""

    def __init__(self, url: str, *, coroutines: bool) -> None:
        self.called: list[str] = []
        self.parent = Scoop("shop", database=url)
        self.app = Scoop("warehouse", database=url, max_body=MOST)
        self._coroutines = coroutines
        self.parent.saga("root", on="orders").add_step(
            "first", lambda scope, message: scope.launch("parts", 1) and None
        )

    def callback(self, name: str, then: Any = None) -> Any:
        """A callback, in the colour of the test, that says that it was called."""

        def blocking(scope: Any, message: Any, error: Any = None) -> None:
            self.called.append(name)
            if then is not None:
                then(scope)

        async def asynchronous(scope: Any, message: Any, error: Any = None) -> None:
            blocking(scope, message, error)

        return asynchronous if self._coroutines else blocking


@pytest.mark.parametrize("coroutines", [True, False])
async def test_an_inherited_context_above_a_lower_limit_holds_up_no_step_and_no_rollback(
    database_url: str, coroutines: bool
) -> None:
    def fails(scope: Any) -> None:
        raise ValueError("not today")

    def changes(scope: Any) -> None:
        scope.context["undone"] = True

    lower = Lower(database_url, coroutines=coroutines)
    child = lower.app.saga("child", on="parts")
    look = lower.callback("looks", lambda scope: dict(scope.context))
    child.add_step("looks", look, compensate=lower.callback("undone", changes))
    child.add_step("launches", lower.callback("launches", lambda scope: scope.launch("nobody", 1, context={"a": 1})))
    child.add_step("fails", lower.callback("fails", fails))
    async with lower.parent.running(), lower.app.running(relay=False):
        handle = await lower.parent.launch("orders", 1, context={"tenant": "x" * 2 * MOST})
        with pytest.raises(Exception, match="not today"):
            await handle.wait(20)
        runs = (await lower.parent.status(handle.id)).runs
    assert [run.state for run in runs] == [RunState.ROLLED_BACK, RunState.ROLLED_BACK]
    assert lower.called == ["looks", "launches", "fails", "undone"]


def test_what_one_step_launches_together_has_a_limit() -> None:
    Limits().check_together(TOGETHER, "this launches")
    with pytest.raises(
        PayloadError, match=f"^this launches bodies, contexts and headers of {TOGETHER + 1} bytes in all"
    ):
        Limits().check_together(TOGETHER + 1, "this launches")


@pytest.mark.parametrize("text", ["", "x", '"', "\\", 'a"b\\"', "é", "🛒", "\n\x01", json.dumps({"a": ['"', "é"]})])
def test_a_header_is_counted_as_it_is_written(text: str) -> None:
    one = emission("t", b"123", key=None, headers={"h": text}, context=text, awaited=False, depth=0)
    document = json.dumps([json.dumps({"h": text, "c": text})])
    around = json.dumps([json.dumps({"h": "", "c": ""})])
    assert one.size == len(b"123") + len("h") + len(document) - len(around)


async def test_contexts_and_headers_count_in_what_is_launched_at_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoop_outbox.client.launcher.BYTES_AT_ONCE", 2 * MOST)
    app = Scoop("shop", database=database_url)
    text = "x" * MOST
    says = "with 2000 bytes of bodies, contexts and headers at once: launch the others in another call"
    for draft in (Draft("orders", 1, context={"a": text}), Draft("orders", 1, headers={"a": text})):
        with pytest.raises(PayloadError, match=says):
            await app.launch_many([draft, draft])
        with pytest.raises(PayloadError, match=says):
            await asyncio.to_thread(app.launch_many_sync, [draft, draft])
        await app.launch_many([draft])
    await app.launch_many([Draft("orders", 2 * text)])  # as `launch` takes it
    monkeypatch.setattr("scoop_outbox.wire.limits.TOGETHER", 2 * MOST)
    with pytest.raises(PayloadError, match=r"this launches bodies, contexts and headers of .* 2000 is the most"):
        await app.launch("orders", text, headers={"a": text})
    assert ask(database_url, "select count(*) from outbox") == [(3,)]
    await app.close()


async def test_what_one_step_launches_is_added_up(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoop_outbox.wire.limits.TOGETHER", 2 * MOST)
    app = Scoop("shop", database=database_url)
    said: list[str] = []

    async def step(scope: Any, message: Any) -> None:
        scope.launch("others", LARGE[:MOST])
        scope.launch_on_global_scope("others", LARGE[:MOST])
        for context in ({}, {"a": "x" * (MOST - len('{"a":""}') - 4 * 3)}):
            try:
                scope.launch("others", b"x", context=context)
            except PayloadError as error:
                said.append(str(error))

    app.saga("only", on="orders").add_step("first", step)
    async with app.running(grace=1):
        await (await app.launch("orders", 1)).wait(20)
    assert "step 'first' launches bodies, contexts and headers of 2001 bytes in all" in said[0]
    assert "step 'first' launches bodies, contexts and headers of 3001 bytes in all" in said[1]


async def test_a_body_that_comes_in_too_large_is_a_dead_letter_and_holds_up_nothing(database_url: str) -> None:
    broker = FakeBroker([message(1), message(2, body=LARGE), message(3)])
    app = Scoop("shop", database=database_url, max_body=MOST)
    app.saga("a", on="orders").add_step("only", lambda scope, message: None)
    service_of(app).servers.broker = broker
    async with app.running(relay=False, grace=1):
        await until(lambda: len(broker.acknowledged) == 3)
    ((position, reason, size),) = ask(database_url, "select position, reason, length(body) from dead_letter")
    assert (position, size) == ("orders[0]@2", 1001)
    assert reason == (
        "its body has 1001 bytes, and max_body of this service is 1000: pass a larger one to Scoop(), then replay this"
    )
    assert ask(database_url, "select count(*) from run") == [(2,)]


async def test_what_the_brokers_client_would_not_send_is_refused_at_the_launch(database_url: str) -> None:
    broker = FakeBroker()
    broker.most_bytes = MOST
    app = Scoop("shop", database=database_url)
    service_of(app).servers.broker = broker
    with pytest.raises(PayloadError, match="the broker's client sends no more than 1000"):
        await app.launch("orders", LARGE)
    await app.close()
