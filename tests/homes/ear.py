"""A home that hears what a test says on its control channel, in whatever order, without a broker."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.core.plans.homes import Identity, read_identity
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, Statement, ask
from scoop_outbox.daemon.intake.control import ControlInbox
from scoop_outbox.failure import Failure
from scoop_outbox.message import Envelope
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.wire.control import ChildRef, Kind, Sender, body_of
from scoop_outbox.wire.headers import EXPECTS, HOME, REPLY_TO
from tests.fake_broker import message
from tests.integration.taking_in import Silent

CHANNEL = "scoop.control.here"
SERVICE, SAGA, TOPIC = "stock", "reserve", "stock.requested"
_numbers = itertools.count()


class Child(NamedTuple):
    """A message, and a saga that handles it in another home than the one that has launched it."""

    message: uuid.UUID
    service: str = SERVICE
    saga: str = SAGA

    @property
    def run(self) -> uuid.UUID:
        """The id of the run, as docs/protocol.md says it."""
        text = f"{self.message}\n{len(self.service)}\n{self.service}{self.saga}"
        return uuid.UUID(f"{str(self.message)[:19]}8{hashlib.md5(text.encode()).hexdigest()[:15]}")  # noqa: S324

    def said(self, generation: int, **more: Any) -> dict[str, Any]:
        """This child in a control message."""
        return {**ChildRef(self.message, self.run, self.service, self.saga, generation).to_json(), **more}


class Peer:
    """Another home, as a test plays it."""

    def __init__(self, name: str = "there") -> None:
        self.sender = Sender(uuid.uuid4(), name, f"scoop.control.{name}")

    def says(self, kind: Kind | str, **members: Any) -> Delivery:
        """A control message, as the broker delivers it."""
        known = Kind(kind) if kind in list(Kind) else Kind.NEWS
        said = json.loads(body_of(self.sender, known, members))
        return delivered(json.dumps({**said, "kind": str(kind), **members}).encode())

    def news(self, *children: Mapping[str, Any]) -> Delivery:
        return self.says(Kind.NEWS, children=list(children))

    def orders(self, order: str, *children: Mapping[str, Any], **more: Any) -> Delivery:
        return self.says(Kind.ORDERS, order=order, children=list(children), **more)

    def launched(self, child: Child, *others: Child) -> Envelope:
        """The message that starts a child here for a run of this home."""
        headers = {
            HOME: str(self.sender.id),
            REPLY_TO: self.sender.reply_to,
            EXPECTS: json.dumps([[one.service, one.saga] for one in (child, *others)]),
            "scoop-lineage": str(uuid.UUID(int=1)),
        }
        return Envelope(str(child.message), TOPIC, None, b"1", "application/json", headers)


def delivered(body: bytes, home: str | None = None) -> Delivery:
    """A message on the control channel with this body, published by a home: the one that it says it is from."""
    if home is None:
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            home = json.loads(body)["from"]["id"]
    ours: dict[str, Any] = {"scoop_home": home} if isinstance(home, str) else {}
    return message(next(_numbers), topic=CHANNEL, body=body, message_id=uuid.uuid4(), **ours)


def failure(text: str) -> dict[str, Any]:
    """A failure, as another home tells it."""
    return Failure("OutOfStock", text, "elsewhere").to_json()


class Ear:
    """A home of the name `here`, and one connection to it for all that it hears.

    Args:
        url: its database.
    """

    def __init__(self, url: str) -> None:
        self.home = Home(url, DEFAULT_SCHEMA, "ear")
        self._opened: AsyncDriver | None = None
        self.inbox = ControlInbox(self.home, CHANNEL, Silent())
        self._raw = psycopg.connect(url, autocommit=True, options=f"-c search_path={DEFAULT_SCHEMA}")
        self.execute("update home set name = 'here' where name is null")
        self.execute(
            "insert into subscription (service, topic, saga, via_broker) values (%s, %s, %s, true) "
            "on conflict do nothing",
            *(SERVICE, TOPIC, SAGA),
        )

    async def hear(self, *deliveries: Delivery) -> None:
        """Take in what was said, all of it in one batch."""
        driver = await self._driver()
        await self.inbox.open(driver)
        await self.inbox.store(driver, deliveries)

    async def take_in(self, *envelopes: Envelope) -> None:
        """Take in messages for the service here, as its intake does."""
        await self.run(take_in(envelopes, Silent(), service=SERVICE, home=await self.identity()))

    async def identity(self) -> Identity:
        return await (await self._driver()).run(read_identity())

    async def write(self, *statements: Statement) -> None:
        """Run statements of the library in a transaction."""
        await self.run(_transaction(statements))

    async def run(self, plan: Plan[Any]) -> None:
        await (await self._driver()).run(plan)

    async def _driver(self) -> AsyncDriver:
        if self._opened is None:
            self._opened = await self.home.connect()
        return self._opened

    def ask(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._raw.execute(question.encode(), values).fetchall()

    def execute(self, order: str, *values: Any) -> None:
        self._raw.execute(order.encode(), values)

    def count(self, table: str) -> int:
        ((number,),) = self.ask(f"select count(*) from {table}")  # noqa: S608
        return int(number)

    def said(self, kind: Kind) -> list[dict[str, Any]]:
        """What this home has written for other homes, of one kind."""
        bodies = [json.loads(body) for (body,) in self.ask("select body from outbox order by seq")]
        return [one for one in bodies if one["kind"] == kind]

    @contextmanager
    def holding(self, table: str) -> Iterator[None]:
        """Let nobody write into a table meanwhile."""
        with psycopg.connect(self.home.url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
            connection.execute(sql.SQL("lock table {} in share mode").format(sql.Identifier(table)))
            yield

    def waiting(self) -> int:
        """How many connections wait for a lock."""
        question = (
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        ((number,),) = self.ask(question)
        return int(number)

    async def close(self) -> None:
        self._raw.close()
        if self._opened is not None:
            await self._opened.close()
        await self.home.dispose()


def _transaction(statements: tuple[Statement, ...]) -> Plan[None]:
    yield from ask(BEGIN, *statements, COMMIT)
