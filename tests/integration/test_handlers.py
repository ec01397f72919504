"""Q13, Q68: who is subscribed and what waits for them is told, and whoever is gone for good can be forgotten."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from scoop_outbox import DistributedError, Message, RunState, Scoop, Scope
from scoop_outbox.app import service_of
from scoop_outbox.cli import main
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.message import Envelope
from scoop_outbox.operations.handlers import ForgetStatus, Handlers, Pending
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.fake_broker import FakeBroker
from tests.waiting import until


def ask(url: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode(), values).fetchall()


@pytest.fixture
def handlers(database_url: str) -> Iterator[Handlers]:
    with Handlers(database_url) as opened:
        yield opened


class Launcher:
    """A service whose saga launches on `reserve`, waits, and goes on; it notes what it does."""

    def __init__(self, url: str, *, copes: bool = False) -> None:
        self.did: list[str] = []
        self.url = url
        self.app = Scoop("launcher", database=url)
        saga = self.app.saga("order", on="orders")

        async def launch(scope: Scope, message: Message) -> None:
            scope.launch("reserve", message.payload, key="k")

        async def undo(scope: Scope, message: Message, error: Exception) -> None:
            self.did.append("undone")

        async def after(scope: Scope, message: Message) -> None:
            self.did.append(f"after {[result.value for result in scope.results]}")
            if message.payload == "fails":
                raise ValueError("after all")

        async def cope(scope: Scope, message: Message, error: Exception) -> None:
            self.did.append("coped")

        saga.add_step("launch", launch, compensate=undo, on_child_failure=cope if copes else None)
        saga.add_step("after", after)

    async def launches(self, payload: object = 1) -> Any:
        """Launch an order, and let it launch in turn; nobody takes that in."""
        before = ask(self.url, "select count(*) from child")[0][0]
        async with self.app.running(worker=False):
            handle = await self.app.launch("orders", payload)
            await until(lambda: ask(self.url, "select count(*) from run where message_id = %s", handle.id) == [(1,)])
        async with self.app.running(relay=False):
            await until(lambda: ask(self.url, "select count(*) from child")[0][0] > before)
        return handle


def stock(url: str, *names: str, steps: int = 1) -> Scoop:
    """The service `stock`, whose sagas listen on `reserve`."""
    app = Scoop("stock", database=url)
    for name in names or ("reserve",):
        saga = app.saga(name, on="reserve", ordered="key")
        for number in range(steps):
            saga.add_step(f"step {number}", lambda scope, message: scope.set_result("done"))
    return app


async def announced(app: Scoop) -> None:
    await app.announce()
    await app.close()


async def taken_in(app: Scoop, url: str) -> None:
    """Take in what lies in the outbox, and leave it there."""
    rows = ask(url, "select message_id::text, topic, key, body, headers from outbox")
    batch = [Envelope(row[0], row[1], row[2], bytes(row[3]), "application/json", row[4]) for row in rows]
    async with service_of(app).home.driver() as driver:
        await driver.run(take_in(batch, service_of(app).hints))
    await app.close()


async def test_who_is_subscribed_and_what_is_pending_is_listed(database_url: str, handlers: Handlers) -> None:
    app, launcher = stock(database_url, "a", "b"), Launcher(database_url)
    await announced(app)
    await launcher.launches()
    found = {one.saga: one for one in handlers.read()}
    assert list(found) == ["order", "a", "b"], "by service and saga"
    (since,) = ask(database_url, "select created_at from subscription where saga = 'a'")[0]
    one = found["a"]
    assert (one.service, one.topics, one.since, one.via_broker) == ("stock", ("reserve",), since, False)
    assert (one.waiting, one.unstarted, one.under_way, one.due, one.alive) == (1, 0, 0, 0, False)
    assert (found["order"].under_way, found["order"].waiting) == (1, 0)
    await taken_in(app, database_url)
    assert [(one.waiting, one.unstarted, one.due) for one in handlers.read("stock")] == [(0, 1, 1)] * 2
    assert [one.saga for one in handlers.read("stock", "b")] == ["b"]
    async with app.running(relay=False):
        await until(lambda: not any(one.unstarted for one in handlers.read("stock")))
        await until(lambda: all(one.alive for one in handlers.read("stock")))
        assert not any(one.alive for one in handlers.read("launcher"))
    await until(lambda: not any(one.alive for one in handlers.read("stock")))


async def test_what_is_not_there_cannot_be_forgotten(database_url: str, handlers: Handlers) -> None:
    await announced(stock(database_url))
    for name in (("nobody",), ("stock", "nobody")):
        assert handlers.forget(*name).status is ForgetStatus.UNKNOWN
    assert handlers.forget("stock", topic="elsewhere").status is ForgetStatus.UNKNOWN
    assert ask(database_url, "select count(*) from subscription") == [(1,)]


async def test_rev_07_who_is_forgotten_is_not_waited_for(database_url: str, handlers: Handlers) -> None:
    await announced(stock(database_url))
    done = handlers.forget("stock", "reserve")
    assert (done.status, done.waiting, done.unstarted, done.abandoned, done.left, done.open) == (
        *(ForgetStatus.FORGOTTEN, 0, 0, 0, 0, False),
    )
    assert [one.topics for one in done.handlers] == [("reserve",)]
    assert handlers.read() == []
    launcher = Launcher(database_url)
    async with launcher.app.running():
        await (await launcher.app.launch("orders", 1)).wait(20)
    # Whoever is started again is subscribed again.
    await announced(stock(database_url))
    assert [one.saga for one in handlers.read("stock")] == ["reserve"]


async def test_tp_07_what_is_pending_has_to_be_decided(database_url: str, handlers: Handlers) -> None:
    await announced(stock(database_url))
    launcher = Launcher(database_url)
    await launcher.launches()
    before = [ask(database_url, f"select * from {table}") for table in ("subscription", "child", "run")]  # noqa: S608
    refused = handlers.forget("stock")
    assert (refused.status, [one.pending for one in refused.handlers]) == (ForgetStatus.REFUSED_PENDING, [1])
    assert before == [ask(database_url, f"select * from {table}") for table in ("subscription", "child", "run")]  # noqa: S608


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("copes", [False, True])
async def test_q13_what_waits_fails_and_the_parent_handles_it(
    database_url: str, handlers: Handlers, started: bool, copes: bool
) -> None:
    app = stock(database_url)
    await announced(app)
    launcher = Launcher(database_url, copes=copes)
    handle = await launcher.launches()
    if started:
        await taken_in(app, database_url)
    done = handlers.forget("stock", pending=Pending.FAIL)
    assert (done.status, done.waiting, done.unstarted) == (ForgetStatus.FORGOTTEN, int(not started), int(started))
    async with launcher.app.running():
        if copes:
            await handle.wait(20)
            assert launcher.did == ["coped", "after []"]
        else:
            with pytest.raises(DistributedError, match="Child failure") as caught:
                await handle.wait(20)
            assert "service stock was forgotten before it had executed anything" in repr(caught.value.failure)
            assert launcher.did == ["undone"]
        states = {run.saga: run.state for run in (await launcher.app.status(handle.id)).runs}
        # The message is still in the outbox when nobody had taken it in: it starts nothing.
        await until(lambda: ask(database_url, "select count(*) from outbox") == [(0,)])
    assert states.get("reserve") == (RunState.ROLLED_BACK if started else None)
    assert ask(database_url, "select count(*) from run where service = 'stock'") == [(int(started),)]
    assert ask(database_url, "select (select count(*) from mailbox), (select count(*) from lane_entry)") == [(0, 0)]


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("payload", [1, "fails"])
async def test_q13_what_waits_is_skipped_and_is_never_asked_to_undo(
    database_url: str, handlers: Handlers, started: bool, payload: object
) -> None:
    app = stock(database_url)
    await announced(app)
    launcher = Launcher(database_url)
    handle = await launcher.launches(payload)
    if started:
        await taken_in(app, database_url)
    done = handlers.forget("stock", pending=Pending.SKIP)
    assert (done.status, done.waiting, done.unstarted) == (ForgetStatus.FORGOTTEN, int(not started), int(started))
    async with launcher.app.running():
        if payload == "fails":
            with pytest.raises(DistributedError, match="after all"):
                await handle.wait(20)
        else:
            await handle.wait(20)
    assert launcher.did == ["after []", *(["undone"] if payload == "fails" else [])]


async def test_only_the_saga_that_is_named_is_forgotten(database_url: str, handlers: Handlers) -> None:
    app = stock(database_url, "a", "b")
    await announced(app)
    launcher = Launcher(database_url)
    handle = await launcher.launches()
    assert handlers.forget("stock", "a", pending=Pending.SKIP).waiting == 1
    assert [(one.saga, one.waiting) for one in handlers.read("stock")] == [("b", 1)]
    only_b = stock(database_url, "b")
    async with launcher.app.running(), only_b.running(relay=False):
        await handle.wait(20)
    assert launcher.did == ["after ['done']"]


async def test_a_topic_that_a_saga_has_left_is_forgotten_alone(database_url: str, handlers: Handlers) -> None:
    app = stock(database_url)
    await announced(app)
    moved = Scoop("stock", database=database_url)
    moved.saga("reserve", on="reserve.new").add_step("only", lambda scope, message: None)
    await announced(moved)
    launcher = Launcher(database_url)
    await launcher.launches()
    done = handlers.forget("stock", "reserve", topic="reserve")
    assert (done.status, done.waiting) == (ForgetStatus.FORGOTTEN, 0)
    assert [(one.topics, one.waiting) for one in handlers.read("stock")] == [(("reserve.new",), 1)]


async def test_a_service_whose_workers_are_alive_is_forgotten_by_force_only(
    database_url: str, handlers: Handlers
) -> None:
    app = stock(database_url)
    async with app.running():
        await until(lambda: all(one.alive for one in handlers.read("stock")))
        assert handlers.forget("stock").status is ForgetStatus.REFUSED_ALIVE
        assert ask(database_url, "select count(*) from subscription") == [(1,)]
        assert handlers.forget("stock", force=True).status is ForgetStatus.FORGOTTEN
    assert ask(database_url, "select count(*) from subscription") == [(0,)]


async def test_runs_under_way_are_named_and_only_abandoned_when_that_is_said(
    database_url: str, handlers: Handlers
) -> None:
    app = stock(database_url, steps=2)
    await announced(app)
    launcher = Launcher(database_url)
    handle = await launcher.launches()
    await taken_in(app, database_url)
    ask(
        database_url,
        """update run set seq = 1, instance = 1, step = 'step 0', next_step = 'step 1' where service = 'stock'
           returning 1""",
    )
    refused = handlers.forget("stock", pending=Pending.FAIL)
    assert (refused.status, [(run.saga, run.state, run.step) for run in refused.active]) == (
        ForgetStatus.REFUSED_ACTIVE,
        [("reserve", RunState.RUNNING, "step 0")],
    )
    assert ask(database_url, "select count(*) from subscription where service = 'stock'") == [(1,)]
    done = handlers.forget("stock", abandon=True)
    assert (done.status, done.abandoned, done.unstarted) == (ForgetStatus.FORGOTTEN, 1, 0)
    async with launcher.app.running():
        with pytest.raises(DistributedError) as caught:
            await handle.wait(20)
    assert "nothing that it has done is undone" in repr(caught.value.failure)
    states = {run.saga: run.state for run in (await launcher.app.status(handle.id)).runs}
    assert states == {"order": RunState.ROLLBACK_FAILED, "reserve": RunState.ROLLBACK_FAILED}
    await launcher.app.close()


@pytest.mark.parametrize("state", ["parked", "rolling_back"])
async def test_what_is_parked_or_rolls_back_is_under_way(database_url: str, handlers: Handlers, state: str) -> None:
    app = stock(database_url)
    await announced(app)
    launcher = Launcher(database_url)
    await launcher.launches()
    await taken_in(app, database_url)
    ask(database_url, "update run set state = %s where service = 'stock' returning 1", state)
    if state == "parked":
        ask(database_url, "update run set reason = 'why' where service = 'stock' returning 1")
        ask(database_url, "delete from mailbox returning 1")
        ask(database_url, "delete from lane_entry returning 1")
    assert handlers.forget("stock").status is ForgetStatus.REFUSED_ACTIVE
    assert handlers.forget("stock", abandon=True).abandoned == 1


async def test_what_is_being_executed_at_this_moment_is_left_and_said(database_url: str, handlers: Handlers) -> None:
    app = stock(database_url)
    await announced(app)
    launcher = Launcher(database_url)
    await launcher.launches()
    await taken_in(app, database_url)
    with psycopg.connect(database_url) as worker:
        worker.execute("select from scoop_outbox.run where service = 'stock' for update")
        done = handlers.forget("stock", pending=Pending.SKIP)
    assert (done.status, done.unstarted, done.left) == (ForgetStatus.FORGOTTEN, 0, 1)
    # It can be called again, though nobody is subscribed.
    again = handlers.forget("stock", pending=Pending.SKIP)
    assert (again.status, again.unstarted, again.left) == (ForgetStatus.FORGOTTEN, 1, 0)
    assert handlers.read("stock") == []


@pytest.mark.parametrize("commits", [True, False])
async def test_what_a_transaction_adds_that_saw_the_subscription_is_ended_too(
    database_url: str, handlers: Handlers, commits: bool
) -> None:
    await announced(stock(database_url))
    launcher = Launcher(database_url)
    await launcher.launches()
    handlers.forget("stock", pending=Pending.SKIP)
    await announced(stock(database_url))
    with psycopg.connect(database_url) as slow:
        # It launches, and commits when the handler has been forgotten.
        slow.execute("update scoop_outbox.child set state = 'waiting', open = true")
        answers: list[Any] = []
        forgetting = threading.Thread(target=lambda: answers.append(handlers.forget("stock", pending=Pending.SKIP)))
        forgetting.start()
        await until(lambda: ask(database_url, "select count(*) from subscription where service = 'stock'") == [(0,)])
        if commits:
            slow.commit()
        else:
            slow.rollback()
    await until(lambda: not forgetting.is_alive(), 20)
    assert (answers[0].waiting, answers[0].open) == (int(commits), False)


async def test_a_transaction_that_stays_open_is_told_of(
    database_url: str, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoop_outbox.operations.handlers._TIMEOUT", 0.3)
    await announced(stock(database_url))
    with psycopg.connect(database_url) as slow:
        slow.execute("update scoop_outbox.home set created_at = created_at")
        assert handlers.forget("stock").open


async def test_more_than_one_transaction_can_end_is_ended(
    database_url: str, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoop_outbox.operations.handlers._AT_ONCE", 3)
    await announced(stock(database_url))
    launcher = Launcher(database_url)
    await launcher.launches()
    ask(
        database_url,
        """insert into child (message_id, service, saga, run_id, seq, ordinal)
           select gen_random_uuid(), 'stock', 'reserve', run_id, seq, n from child, generate_series(2, 10) n
           returning 1""",
    )
    assert handlers.forget("stock", pending=Pending.SKIP).waiting == 10


async def test_whoever_waits_for_a_root_does_not_wait_for_who_was_forgotten(
    database_url: str, handlers: Handlers
) -> None:
    app = stock(database_url, "a", "b")
    service_of(app).servers.broker, service_of(app).servers._broker_url = FakeBroker(), "fake://"
    await announced(app)
    handle = await app.launch("reserve", 1)
    handlers.forget("stock", "a")
    with pytest.raises(TimeoutError):
        await handle.wait(0.1)
    handlers.forget("stock")
    await handle.wait(5)
    await app.close()


# -- the command ----------------------------------------------------------------------------------------------------


def command(url: str, *arguments: str, answer: str | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["handlers", *arguments, "--database", url], input=answer)
    return done.exit_code, done.output


async def test_the_command_lists(database_url: str) -> None:
    assert command(database_url, "list") == (0, "no subscriptions\n")
    await announced(stock(database_url, "a", "b\nc"))
    code, shown = command(database_url, "list")
    head, *lines = shown.splitlines()
    assert code == 0
    assert head.split("\t") == [
        *("service", "saga", "topics", "since", "alive", "waiting", "unstarted", "under way", "due"),
    ]
    assert [line.split("\t")[:3] for line in lines] == [["stock", "a", "reserve"], ["stock", "b\\nc", "reserve"]]
    assert [line.split("\t")[4:] for line in lines] == [["no", "0", "0", "0", "0"]] * 2
    assert command(database_url, "list", "--service", "nobody") == (0, "no subscriptions\n")


def test_the_command_alone_lists(database_url: str) -> None:
    nothing = (0, "no subscriptions\n")
    done = CliRunner().invoke(main, ["handlers"], env={"SCOOP_OUTBOX_DATABASE": database_url})
    assert (done.exit_code, done.output) == nothing
    assert command(database_url) == nothing
    assert "forget" in CliRunner().invoke(main, ["handlers", "--help"]).output


async def test_the_command_says_what_it_did_or_why_not(database_url: str) -> None:
    app = stock(database_url)
    await announced(app)
    launcher = Launcher(database_url)
    await launcher.launches()
    assert command(database_url, "forget", "nobody") == (1, "Error: there is no handler nobody\n")
    code, said = command(database_url, "forget", "stock", "reserve")
    assert code == 1
    assert "reserve: 1 awaited messages, 0 unstarted runs" in said
    assert "pass --pending fail or --pending skip" in said
    assert command(database_url, "forget", "stock", "reserve", "--pending", "fail") == (
        0,
        "stock\treserve\treserve\tforgotten\n1 awaited messages and 0 unstarted runs failed, 0 runs abandoned\n",
    )


async def test_the_command_asks_whoever_sits_there(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await announced(stock(database_url))
    launcher = Launcher(database_url)
    await launcher.launches()
    monkeypatch.setattr(sys.modules["scoop_outbox.cli.handlers"], "_is_answered", lambda: True)
    code, said = command(database_url, "forget", "stock", answer="skip\n")
    assert code == 0, said
    assert "1 awaited messages and 0 unstarted runs skipped" in said


async def test_the_command_names_runs_under_way(database_url: str) -> None:
    app = stock(database_url)
    await announced(app)
    launcher = Launcher(database_url)
    await launcher.launches()
    await taken_in(app, database_url)
    ((run,),) = ask(database_url, "update run set seq = 1, step = 'step 0' where service = 'stock' returning id")
    code, said = command(database_url, "forget", "stock")
    assert code == 1
    assert f"{run}  reserve  running  after 'step 0'" in said
    assert "--abandon" in said
