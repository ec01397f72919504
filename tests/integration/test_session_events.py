"""What listeners of `scope.session` hear: of the end of the step's transaction, when it has come."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from scoop_outbox import DistributedError, Retry, Scoop
from scoop_outbox.core.statement import Batch
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.store.pipeline import Pipeline
from scoop_outbox.store.session_events import hold_back, tell

LONG = 20.0
COLOURS = ("async", "blocking")


@pytest.fixture
def url(database_url: str) -> str:
    with psycopg.connect(database_url) as connection:
        connection.execute("create table t (n int primary key, later int unique deferrable initially deferred)")
    return database_url


class Heard:
    """What a session's listeners heard, each time with the rows that another connection sees."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.events: list[tuple[str, int]] = []

    def rows(self) -> int:
        with psycopg.connect(self.url) as connection:
            row = connection.execute("select count(*) from t").fetchone()
        assert row is not None
        return int(row[0])

    def listen(self, session: AsyncSession | Session) -> None:
        target = session.sync_session if isinstance(session, AsyncSession) else session
        for name in ("after_commit", "after_rollback"):
            event.listen(target, name, lambda _, name=name: self.events.append((name, self.rows())))


@pytest.fixture
def heard(url: str) -> Heard:
    return Heard(url)


INSERT = sa.text("insert into t values (:n, :later)")


def body_of(colour: str, statements: list[tuple[int, int]], heard: Heard, *, then: Callable[[Any], Any]) -> Any:
    """A step that listens to its session, inserts rows, and does something else."""

    async def asynchronous(scope: Any, message: Any) -> None:
        heard.listen(scope.session)
        for n, later in statements:
            await scope.session.execute(INSERT, {"n": n, "later": later})
        result = then(scope)
        if result is not None:
            await result

    def blocking(scope: Any, message: Any) -> None:
        heard.listen(scope.session)
        for n, later in statements:
            scope.session.execute(INSERT, {"n": n, "later": later})
        then(scope)

    return asynchronous if colour == "async" else blocking


def fails(scope: Any) -> None:
    raise ValueError("not today")


def demands(scope: Any) -> None:
    scope.launch("nobody", None, require_handlers=True)


def nothing(scope: Any) -> None:
    pass


def commits(scope: Any) -> Any:
    return scope.session.commit()


def rolls_back(scope: Any) -> Any:
    return scope.session.rollback()


def ends(scope: Any) -> Any:
    return scope.connection.execute("rollback")


ONE = [(1, 1)]
CASES: dict[str, tuple[list[tuple[int, int]], Callable[[Any], Any], list[tuple[str, int]]]] = {
    "returns": (ONE, nothing, [("after_commit", 1)]),
    "commits the session itself": (ONE, commits, [("after_commit", 1)]),
    "does nothing": ([], nothing, [("after_commit", 0)]),
    "raises": (ONE, fails, [("after_rollback", 0)]),
    "launches what nobody handles": (ONE, demands, [("after_rollback", 0)]),
    "breaks a deferred constraint": ([(1, 1), (2, 1)], nothing, [("after_rollback", 0)]),
    "ends the transaction": (ONE, ends, [("after_rollback", 0)]),
    # SQLAlchemy tells of the session's own rollback, when it happens; the rest is committed.
    "rolls the session back": (ONE, rolls_back, [("after_rollback", 0), ("after_commit", 0)]),
}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("case", CASES)
async def test_point_14_listeners_hear_of_the_step_s_own_end(url: str, heard: Heard, colour: str, case: str) -> None:
    statements, then, expected = CASES[case]
    app = Scoop("shop", database=url)
    saga = app.saga("root", on="R")
    saga.add_step("works", body_of(colour, statements, heard, then=then))
    saga.add_step("goes on", lambda scope, message: None)  # the commit and the next claim are one round trip
    async with app.running():
        handle = await app.launch("R", None)
        try:
            await handle.wait(LONG)
        except DistributedError:
            assert expected[-1][0] == "after_rollback"
        else:
            assert expected[-1][0] == "after_commit"
    assert heard.events == expected


@pytest.mark.parametrize("colour", COLOURS)
async def test_point_14_each_attempt_is_told_of_its_own_end(url: str, heard: Heard, colour: str) -> None:
    attempts: list[int] = []

    def at_first(scope: Any) -> None:
        attempts.append(scope.attempt)
        if len(attempts) < 3:
            raise ValueError("not yet")

    app = Scoop("shop", database=url)
    retry = Retry(attempts=3, backoff=0.001)
    app.saga("root", on="R").add_step("works", body_of(colour, ONE, heard, then=at_first), retry=retry)
    async with app.running():
        await (await app.launch("R", None)).wait(LONG)
    assert heard.events == [("after_rollback", 0), ("after_rollback", 0), ("after_commit", 1)]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("way", ["nested", "begin"])
async def test_point_14_a_savepoint_of_the_step_s_is_no_end(url: str, heard: Heard, colour: str, way: str) -> None:
    before: list[list[tuple[str, int]]] = []

    async def asynchronous(scope: Any, message: Any) -> None:
        heard.listen(scope.session)
        async with scope.session.begin_nested() if way == "nested" else scope.session.begin():
            await scope.session.execute(INSERT, {"n": 1, "later": 1})
        before.append(list(heard.events))

    def blocking(scope: Any, message: Any) -> None:
        heard.listen(scope.session)
        with scope.session.begin_nested() if way == "nested" else scope.session.begin():
            scope.session.execute(INSERT, {"n": 1, "later": 1})
        before.append(list(heard.events))

    app = Scoop("shop", database=url)
    app.saga("root", on="R").add_step("works", asynchronous if colour == "async" else blocking)
    async with app.running():
        await (await app.launch("R", None)).wait(LONG)
    assert before == [[]]
    assert heard.events == [("after_commit", 1)]


@pytest.mark.parametrize("colour", COLOURS)
async def test_point_14_a_lost_connection_undoes(url: str, heard: Heard, colour: str) -> None:
    """Lost while the callback works, it is known that nothing was committed; the run is executed again."""

    def loses(scope: Any) -> Any:
        if heard.events:
            return None
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("select pg_terminate_backend(%s, 5000)", (scope.connection.info.backend_pid,))
        return scope.session.execute(sa.text("select 1"))

    app = Scoop("shop", database=url)
    app.saga("root", on="R").add_step("works", body_of(colour, ONE, heard, then=loses))
    async with app.running():
        await (await app.launch("R", None)).wait(LONG)
    assert heard.events == [("after_rollback", 0), ("after_commit", 1)]


AT_THE_COMMIT: dict[str, tuple[bool, type[psycopg.Error], list[tuple[str, int]]]] = {
    # Nobody knows whether it took place. It did: the run is not executed again.
    "lost": (True, psycopg.OperationalError, []),
    "deadlock": (False, psycopg.errors.DeadlockDetected, [("after_rollback", 0), ("after_commit", 1)]),
}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("case", AT_THE_COMMIT)
async def test_point_14_a_commit_of_which_nobody_knows_is_not_told(
    url: str, heard: Heard, colour: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes_place, error, expected = AT_THE_COMMIT[case]
    run = Pipeline.run
    failed: list[bool] = []

    def failing(pipeline: Pipeline, batch: Batch) -> Any:
        names = [asked.name for asked in batch]
        if failed or "release_savepoint" not in names or "advance_run" not in names:
            return (yield from run(pipeline, batch))
        failed.append(True)
        if takes_place:
            yield from run(pipeline, batch)
        raise error("at the commit")

    monkeypatch.setattr(Pipeline, "run", failing)
    app = Scoop("shop", database=url)
    app.saga("root", on="R").add_step("works", body_of(colour, ONE, heard, then=nothing))
    async with app.running():
        await (await app.launch("R", None)).wait(LONG)
    assert failed
    assert heard.rows() == 1
    assert heard.events == expected


@pytest.mark.parametrize("colour", COLOURS)
async def test_point_14_what_a_listener_raises_is_logged(
    url: str, heard: Heard, colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(session: Session) -> None:
        raise OSError("the mail server is away")

    def listens(scope: Any) -> None:
        session = scope.session.sync_session if colour == "async" else scope.session
        event.listen(session, "after_commit", breaks, insert=True)

    app = Scoop("shop", database=url)
    app.saga("root", on="R").add_step("works", body_of(colour, ONE, heard, then=listens))
    with caplog.at_level(logging.ERROR):
        async with app.running():
            handle = await app.launch("R", None)
            await handle.wait(LONG)
    assert heard.events == [("after_commit", 1)]
    (record,) = [record for record in caplog.records if record.exc_info]
    text = record.getMessage()
    assert text.startswith("run: session listener failed (after_commit of saga 'root', run ")
    assert text.endswith(", step 'works': its transaction is committed all the same)")


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), BaseException()], ids=repr)
@pytest.mark.parametrize("name", ["after_commit", "after_rollback"])
async def test_what_a_listener_raises_ends_no_worker(
    url: str, heard: Heard, colour: str, error: BaseException, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A `sys.exit()` in a listener ended the process, with everything that it was executing."""

    def breaks(session: Session) -> None:
        raise error

    def listens(scope: Any) -> None:
        session = scope.session.sync_session if colour == "async" else scope.session
        event.listen(session, name, breaks, insert=True)
        session.info.clear()
        if name == "after_rollback":
            raise ValueError("not today")

    app = Scoop("shop", database=url)
    saga = app.saga("root", on="R")
    saga.add_step("works", body_of(colour, ONE, heard, then=listens))
    saga.add_step("goes on", lambda scope, message: None)
    app.saga("other", on="O").add_step("only", lambda scope, message: None)
    with caplog.at_level(logging.ERROR):
        async with app.running():
            handle = await app.launch("R", None)
            if name == "after_commit":
                await handle.wait(LONG)
            else:
                with pytest.raises(DistributedError, match="not today"):
                    await handle.wait(LONG)
            await (await app.launch("O", None)).wait(LONG)
    assert heard.events == [("after_commit", 1) if name == "after_commit" else ("after_rollback", 0)]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage().startswith(f"run: session listener failed ({name} of saga ")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
async def test_a_stop_of_the_worker_is_passed_on_through_listeners(stop: BaseException) -> None:
    def breaks(_: Session) -> None:
        raise stop

    async def told() -> None:
        session = Session()
        hold_back(session)
        event.listen(session, "after_commit", breaks)
        if isinstance(stop, asyncio.CancelledError):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        try:
            tell(session, committed=True)
        except BaseException as error:  # noqa: BLE001 - asyncio would end the test run
            passed_on.append(error)

    passed_on: list[BaseException] = []
    await asyncio.gather(asyncio.create_task(told()), return_exceptions=True)
    assert passed_on == [stop]


@pytest.fixture
def everywhere(heard: Heard) -> Iterator[None]:
    """Listen to all sessions of the program, as an application does."""

    def committed(session: Session) -> None:
        heard.events.append(("after_commit", heard.rows()))

    event.listen(Session, "after_commit", committed)
    yield
    event.remove(Session, "after_commit", committed)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.usefixtures("everywhere")
async def test_point_14_listeners_of_all_sessions_hear_it(url: str, heard: Heard, colour: str) -> None:
    app = Scoop("shop", database=url)
    app.saga("root", on="R").add_step("works", body_of(colour, ONE, Heard(url), then=commits))
    async with app.running():
        await (await app.launch("R", None)).wait(LONG)
    assert heard.events == [("after_commit", 1)]


@pytest.mark.parametrize("colour", COLOURS)
async def test_point_14_listeners_of_other_kinds_are_as_in_any_session(url: str, colour: str) -> None:
    heard: list[str] = []

    def listen(scope: Any) -> None:
        session: Any = scope.session.sync_session if colour == "async" else scope.session
        for name in ("before_commit", "after_begin", "after_transaction_end", "after_commit"):
            event.listen(session, name, lambda *_, name=name: heard.append(name))

        def gone(_: Session) -> None:
            heard.append("gone")

        event.listen(session, "after_commit", gone)
        assert event.contains(session, "after_commit", gone)
        assert gone in list(session.dispatch.after_commit)
        event.remove(session, "after_commit", gone)
        event.listen(session, "after_commit", lambda _: heard.append("once"), once=True)

    async def asynchronous(scope: Any, message: Any) -> None:
        listen(scope)
        await scope.session.execute(INSERT, {"n": 1, "later": 1})

    def blocking(scope: Any, message: Any) -> None:
        listen(scope)
        scope.session.execute(INSERT, {"n": 1, "later": 1})

    app = Scoop("shop", database=url)
    app.saga("root", on="R").add_step("works", asynchronous if colour == "async" else blocking)
    async with app.running():
        await (await app.launch("R", None)).wait(LONG)
    assert heard == ["after_begin", "before_commit", "after_transaction_end", "after_commit", "once"]


@pytest.mark.parametrize("colour", COLOURS)
async def test_point_14_a_launch_in_the_step_s_session_is_told_when_it_is_there(
    url: str, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay looked for it before it was committed, found nothing, and heard no more of it."""
    seen: list[int] = []
    outbox = ProcessHints.outbox

    def committed() -> int:
        with psycopg.connect(url) as connection:
            rows = connection.execute(
                "select message_id from scoop_outbox.outbox where topic = 'later' "
                "union select id from scoop_outbox.message where topic = 'later'"
            ).fetchall()
        return len(rows)

    def told(hints: ProcessHints) -> None:
        seen.append(committed())
        outbox(hints)

    app = Scoop("shop", database=url)

    async def asynchronous(scope: Any, message: Any) -> None:
        for number in range(3):
            await app.launch("later", number, session=scope.session)

    def blocking(scope: Any, message: Any) -> None:
        for number in range(3):
            app.launch_sync("later", number, session=scope.session)

    app.saga("root", on="R").add_step("works", asynchronous if colour == "async" else blocking)
    handle = await app.launch("R", None)
    monkeypatch.setattr(ProcessHints, "outbox", told)
    async with app.running():
        await handle.wait(LONG)
    assert seen == [3]
