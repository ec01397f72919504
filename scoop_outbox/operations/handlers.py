"""Handlers: who is subscribed, what is pending for them, and forgetting them. Needs no application."""

from __future__ import annotations

import time
from dataclasses import replace

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans import handlers as plans
from scoop_outbox.core.plans.handlers import ForgetStatus, Forgetting, Handler, Pending, UnderWay
from scoop_outbox.store.blocking_driver import BlockingDriver
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.standalone import OpenedDatabase

__all__ = ["ForgetStatus", "Forgetting", "Handler", "Handlers", "Pending", "UnderWay"]

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
        with self._home.blocking_driver() as driver:
            return self._read(driver, service, saga)

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
        with self._home.blocking_driver() as driver:
            found = tuple(self._read(driver, service, saga))
            if topic is not None:
                found = tuple(one for one in found if topic in one.topics)
            if not found:
                return Forgetting(ForgetStatus.UNKNOWN)
            if any(one.alive for one in found) and not force:
                return Forgetting(ForgetStatus.REFUSED_ALIVE, found)
            if topic is not None:
                driver.run(plans.unsubscribe(service, saga, topic))
                done = Forgetting(ForgetStatus.FORGOTTEN, found)
            else:
                active = tuple(driver.run(plans.read_under_way(service, saga)))
                if active and not abandon:
                    return Forgetting(ForgetStatus.REFUSED_ACTIVE, found, active)
                if pending is None and any(one.pending for one in found):
                    return Forgetting(ForgetStatus.REFUSED_PENDING, found, active)
                ended = driver.run(plans.unsubscribe(service, saga, None))
                done = self._retire(driver, service, saga, pending or Pending.FAIL, ended, begun=abandon)
                done = replace(done, handlers=found, active=active)
        log.warning(
            "subscription: forgotten (service %s: %s; %d messages and %d runs not begun: %s; %d runs abandoned)",
            service,
            ", ".join(f"{one.saga} on {topic or ', '.join(one.topics)}" for one in found),
            *(done.waiting, done.unstarted, pending, done.abandoned),
            extra={"service": service, "saga": saga, "topic": topic},
        )
        return done

    def _retire(
        self, driver: BlockingDriver, service: str, saga: str | None, pending: Pending, ended: str, *, begun: bool
    ) -> Forgetting:
        """End what is pending, and what transactions add to it that had seen the subscriptions."""
        waiting = unstarted = abandoned = 0
        deadline = time.monotonic() + _TIMEOUT
        while True:
            # Asked first: what is ended afterwards is all that those could add.
            is_open = driver.run(plans.is_older_open(ended))
            some = driver.run(plans.retire(service, saga, pending, self._home.failures, begun=begun, most=_AT_ONCE))
            waiting, unstarted, abandoned = waiting + some[0], unstarted + some[1], abandoned + some[2]
            if any(some):
                continue
            if not is_open or time.monotonic() > deadline:
                break
            time.sleep(_LOOK_AGAIN)
        driver.run(plans.retire_roots(service, saga))
        left = sum(
            one.waiting + one.unstarted + one.under_way for one in driver.run(plans.read_handlers(service, saga))
        )
        return Forgetting(
            ForgetStatus.FORGOTTEN, waiting=waiting, unstarted=unstarted, abandoned=abandoned, left=left, open=is_open
        )

    def _read(self, driver: BlockingDriver, service: str | None, saga: str | None) -> list[Handler]:
        found = driver.run(plans.read_handlers(service, saga))
        alive = driver.run(plans.read_alive(service))
        return [replace(one, alive=(one.service, one.saga) in alive) for one in found]
