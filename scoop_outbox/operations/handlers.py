"""Handlers: who is subscribed, what is pending for them, and forgetting them. Needs no application.

`Handlers` is for code without an event loop, `AsyncHandlers` for coroutines. What they do is in the same plans.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans import handlers as plans
from scoop_outbox.core.plans.failures import Known
from scoop_outbox.core.plans.handlers import ForgetStatus, Forgetting, Handler, Pending, UnderWay
from scoop_outbox.core.plans.homes import announce_home
from scoop_outbox.core.statement import Plan
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.standalone import AsyncOpenedDatabase, OpenedDatabase

__all__ = ["AsyncHandlers", "ForgetStatus", "Forgetting", "Handler", "Handlers", "Pending", "UnderWay"]

log = get_logger(__name__)

_AT_ONCE = 5_000
_LOOK_AGAIN = 0.1
_TIMEOUT = 10.0


class Handlers(OpenedDatabase):
    """The handlers of one database. Use it in a `with` block, or close it.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "handlers")

    def read(self, service: str | None = None, saga: str | None = None) -> list[Handler]:
        """Return who is subscribed, and of whom something is left, by service and saga.

        Args:
            service: only those of this service.
            saga: only those of this name.
        """
        return self._run(_read(service, saga))

    def forget(
        self,
        service: str,
        saga: str | None = None,
        *,
        topic: str | None = None,
        pending: Pending | None = None,
        force: bool = False,
        abandon: bool = False,
    ) -> Forgetting:
        """End subscriptions, and what waits for them.

        Nobody waits for these handlers from then on. Whoever waits for them now is told at once. Can be repeated: what
        an interruption has left is seen to by the next call. A service that is started again with such a saga is
        subscribed again.

        Args:
            service: whose handlers.
            saga: which one; None is all of the service.
            topic: forget only that the handlers listen on this topic, because they listen on another one now. What is
                pending for them stays.
            pending: what becomes of messages that are waited for, and of runs that have executed nothing. With `FAIL`
                they have failed, and whoever launched them handles that as any failure. With `SKIP` they count as
                done, without a result. Without it, forgetting is refused when there are any.
            force: forget although workers that have them are alive.
            abandon: forget although runs are under way. They end `rollback_failed`, and nothing they did is undone.

        Returns:
            What was done, or why nothing was. A refusal has changed nothing.
        """
        removal = _Removal(service, saga, topic, pending, self._home.failures, force=force, abandon=abandon)
        answer = self._run(removal.begin())
        if answer is None:
            while (pause := self._run(removal.retire())) is not None:
                time.sleep(pause)
            answer = self._run(removal.end())
        return answer


class AsyncHandlers(AsyncOpenedDatabase):
    """The handlers of one database, for coroutines: what `Handlers` does, where arguments and answers are explained.

    Use it in an `async with` block, or close it. Any number of coroutines may share one.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "handlers")

    async def read(self, service: str | None = None, saga: str | None = None) -> list[Handler]:
        """Do as `Handlers.read`."""
        return await self._run(_read(service, saga))

    async def forget(
        self,
        service: str,
        saga: str | None = None,
        *,
        topic: str | None = None,
        pending: Pending | None = None,
        force: bool = False,
        abandon: bool = False,
    ) -> Forgetting:
        """Do as `Handlers.forget`."""
        removal = _Removal(service, saga, topic, pending, self._home.failures, force=force, abandon=abandon)
        answer = await self._run(removal.begin())
        if answer is None:
            while (pause := await self._run(removal.retire())) is not None:  # noqa: ASYNC110 - it works in between
                await asyncio.sleep(pause)
            answer = await self._run(removal.end())
        return answer


class _Removal:
    """How handlers are forgotten, in transactions one after the other: `begin`, `retire` again and again, and `end`."""

    def __init__(
        self,
        service: str,
        saga: str | None,
        topic: str | None,
        pending: Pending | None,
        known: Known,
        *,
        force: bool,
        abandon: bool,
    ) -> None:
        self._whose = service, saga
        self._topic = topic
        self._pending = pending
        self._known = known
        self._force, self._abandon = force, abandon
        self._done = Forgetting(ForgetStatus.FORGOTTEN)
        self._ended = ""  # what tells the transactions that began before the subscriptions ended
        self._deadline = 0.0

    def begin(self) -> Plan[Forgetting | None]:
        """End the subscriptions; return the answer if that is all there is to be done, or if it is refused."""
        service, saga = self._whose
        found = tuple((yield from _read(service, saga)))
        if self._topic is not None:
            found = tuple(one for one in found if self._topic in one.topics)
        if not found:
            return Forgetting(ForgetStatus.UNKNOWN)
        if any(one.alive for one in found) and not self._force:
            return Forgetting(ForgetStatus.REFUSED_ALIVE, found)
        if self._topic is not None:
            yield from plans.unsubscribe(service, saga, self._topic)
            yield from announce_home()
            self._done = replace(self._done, handlers=found)
            return self._logged()
        active = tuple((yield from plans.read_under_way(service, saga)))
        if active and not self._abandon:
            return Forgetting(ForgetStatus.REFUSED_ACTIVE, found, active)
        if self._pending is None and any(one.pending for one in found):
            return Forgetting(ForgetStatus.REFUSED_PENDING, found, active)
        self._done = replace(self._done, handlers=found, active=active)
        self._ended = yield from plans.unsubscribe(service, saga, None)
        yield from announce_home()
        self._deadline = time.monotonic() + _TIMEOUT
        return None

    def retire(self) -> Plan[float | None]:
        """End some of what is pending, also what transactions add to it that had seen the subscriptions.

        Returns:
            In how many seconds to go on; None when nothing is left, or no more is waited for.
        """
        # Asked first: what is ended afterwards is all that those could add.
        is_open = yield from plans.is_older_open(self._ended)
        some = yield from plans.retire(
            *(*self._whose, self._pending or Pending.FAIL, self._known), begun=self._abandon, most=_AT_ONCE
        )
        done = self._done
        self._done = replace(
            done,
            waiting=done.waiting + some[0],
            unstarted=done.unstarted + some[1],
            abandoned=done.abandoned + some[2],
            open=is_open,
        )
        if any(some):
            return 0.0
        return _LOOK_AGAIN if is_open and time.monotonic() <= self._deadline else None

    def end(self) -> Plan[Forgetting]:
        """Return the answer, with what is left."""
        yield from plans.retire_roots(*self._whose)
        found = yield from plans.read_handlers(*self._whose)
        self._done = replace(self._done, left=sum(one.waiting + one.unstarted + one.under_way for one in found))
        return self._logged()

    def _logged(self) -> Forgetting:
        done, (service, saga) = self._done, self._whose
        log.warning(
            "subscription: forgotten (service %s: %s; %d messages and %d runs not begun: %s; %d runs abandoned)",
            service,
            ", ".join(f"{one.saga} on {self._topic or ', '.join(one.topics)}" for one in done.handlers),
            *(done.waiting, done.unstarted, self._pending, done.abandoned),
            extra={"service": service, "saga": saga, "topic": self._topic},
        )
        return done


def _read(service: str | None, saga: str | None) -> Plan[list[Handler]]:
    found = yield from plans.read_handlers(service, saga)
    alive = yield from plans.read_alive(service)
    return [replace(one, alive=(one.service, one.saga) in alive) for one in found]
