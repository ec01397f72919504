"""Who launches in a session has the relay told when it commits: once, and however long the session lives."""

import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from scoop_outbox import Scoop
from scoop_outbox.daemon.hints import ProcessHints
from tests.integration.relaying import left


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(ProcessHints, "outbox", lambda hints: told.append("outbox"))
    return told


@pytest.fixture
def app(database_url: str) -> Iterator[Scoop]:
    app = Scoop("launcher", database=database_url)
    yield app
    app.close_sync()


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    engine = sa.create_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg"))
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.fixture
async def async_session(database_url: str) -> AsyncIterator[AsyncSession]:
    engine = create_async_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg"))
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()


def listeners(session: Session) -> list[int]:
    events: Any = (session.dispatch.after_commit, session.dispatch.after_soft_rollback)
    return [len(list(one)) for one in events]


def test_c14_listeners_do_not_pile_up(app: Scoop, session: Session, told: list[str]) -> None:
    for number in range(1, 31):
        for _ in range(3):
            app.launch_sync("orders", number, session=session)
        if number % 3 == 0:
            session.rollback()
        else:
            session.commit()
    assert listeners(session) == [1, 1]
    assert len(told) == 20


async def test_c14_listeners_do_not_pile_up_on_an_async_session(
    app: Scoop, async_session: AsyncSession, told: list[str]
) -> None:
    for number in range(1, 31):
        for _ in range(3):
            await app.launch("orders", number, session=async_session)
        if number % 3 == 0:
            await async_session.rollback()
        else:
            await async_session.commit()
    assert listeners(async_session.sync_session) == [1, 1]
    assert len(told) == 20
    await app.close()


def test_c14_a_rollback_forgets(app: Scoop, session: Session, told: list[str]) -> None:
    app.launch_sync("orders", 1, session=session)
    session.rollback()
    session.execute(sa.text("select 1"))
    session.commit()
    assert told == []
    app.launch_sync("orders", 2, session=session)
    session.close()  # without a word: what was open is undone
    session.execute(sa.text("select 1"))
    session.commit()
    assert told == []


def test_c14_a_savepoint_is_no_commit(app: Scoop, session: Session, told: list[str]) -> None:
    with session.begin_nested():
        with session.begin_nested():
            app.launch_sync("orders", 1, session=session)
        assert told == []
    assert told == []
    session.commit()
    assert told == ["outbox"]


def test_c14_what_a_savepoint_takes_with_it_is_not_told(
    app: Scoop, session: Session, told: list[str], database_url: str
) -> None:
    savepoint = session.begin_nested()
    app.launch_sync("orders", 1, session=session)
    savepoint.rollback()
    around = session.begin_nested()
    with session.begin_nested():
        app.launch_sync("orders", 2, session=session)
    around.rollback()
    session.commit()
    assert told == []
    app.launch_sync("orders", 3, session=session)
    inner = session.begin_nested()
    app.launch_sync("orders", 4, session=session)
    inner.rollback()
    session.commit()
    assert told == ["outbox"]
    assert left(database_url) == 1


def test_c14_two_services_that_share_a_session_are_told_each(
    app: Scoop, session: Session, told: list[str], database_url: str
) -> None:
    other = Scoop("other", database=database_url)
    for service in (app, other, app, other):
        service.launch_sync("orders", 1, session=session)
    session.commit()
    assert told == ["outbox", "outbox"]
    other.close_sync()


def test_c14_a_session_that_nobody_ends_goes_away(app: Scoop, database_url: str) -> None:
    engine = sa.create_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
    with engine.connect() as connection:
        session = Session(connection)
        app.launch_sync("orders", 1, session=session)
        gone = weakref.ref(session)
        del session
        gc.collect()
        assert gone() is None
    engine.dispose()
