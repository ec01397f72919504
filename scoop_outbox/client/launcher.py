"""Launching from outside any saga: one message, or many in one statement; in its own transaction or the caller's."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import TypedDict

from scoop_outbox._deadlines import Timeouts
from scoop_outbox._emission import Emission, emission
from scoop_outbox._inside import refuse_launch
from scoop_outbox.client.handle import Handle
from scoop_outbox.client.service import Service
from scoop_outbox.core.plans.claim import Unhandled
from scoop_outbox.core.plans.homes import read_identity
from scoop_outbox.core.plans.launch import Here, launch, launch_and_commit
from scoop_outbox.core.plans.subscriptions import TakenOver, list_services_via_broker
from scoop_outbox.core.statement import Plan
from scoop_outbox.daemon.announcer import note
from scoop_outbox.errors import PayloadError
from scoop_outbox.message import Draft, dump_json
from scoop_outbox.store.connect import map_missing_tables
from scoop_outbox.store.external_transaction import AsyncTransaction, Transaction, run_joined, run_joined_blocking
from scoop_outbox.wire.limits import CEILING, Limits

MOST_AT_ONCE = 10_000
"""How many messages `launch_many` takes: one statement holds all of them in memory, here and on the server."""

BYTES_AT_ONCE = CEILING
"""How many bytes of bodies, contexts and headers `launch_many` takes. Postgres reads no statement above 1 GiB."""

_ABOVE = 3
"""Frames from `_emission` to the method of `Scoop` that was called: a failure names the line above that one."""


class _Way(TypedDict):
    """What the plans of launching take besides the messages."""

    source: str
    via_broker: bool
    across: bool
    here: Here | None


class Launcher:
    """Launches the messages of one service.

    Args:
        service: whose messages they are; it is made known before its first launch.
    """

    def __init__(self, service: Service) -> None:
        """Launch nothing yet."""
        self._service = service
        self._carried = False

    def handle(self, message_id: uuid.UUID) -> Handle:
        """Return the handle of a message."""
        return Handle(message_id, self._service.home, self._service.servers.outcomes)

    async def launch(
        self, drafts: Iterable[Draft], session: AsyncTransaction | None, *, detached: bool
    ) -> list[Handle]:
        """Launch messages, all or none, for the caller of a method of `Scoop`, where is said what it raises."""
        refuse_launch(session, detached=detached)
        launched = _emissions(drafts, self._service.servers.limits)
        if launched:
            await self._launch(launched, session)
        return [self.handle(one.message_id) for one in launched]

    def launch_sync(self, drafts: Iterable[Draft], session: Transaction | None, *, detached: bool) -> list[Handle]:
        """Do as `launch`, for code without an event loop."""
        refuse_launch(session, detached=detached)
        launched = _emissions(drafts, self._service.servers.limits)
        if launched:
            self._launch_sync(launched, session)
        return [self.handle(one.message_id) for one in launched]

    async def _launch(self, launched: Sequence[Emission], session: AsyncTransaction | None) -> None:
        await self._introduce()
        home, hints = self._service.home, self._service.hints
        way = self._way(launched)
        unhandled: Unhandled
        if session is not None:
            whose = home.whose
            with map_missing_tables(home.url):
                plan = launch(launched, **way)
                unhandled = await run_joined(plan, session, home.queries, hints.outbox, whose)
        else:
            async with home.claiming_driver() if _claims(launched) else home.driver() as driver:
                unhandled = await driver.run(launch_and_commit(launched, hints, **way))
        self._note_unhandled(unhandled)

    def _launch_sync(self, launched: Sequence[Emission], session: Transaction | None) -> None:
        self._introduce_sync()
        home, hints = self._service.home, self._service.hints
        way = self._way(launched)
        unhandled: Unhandled
        if session is not None:
            whose = home.whose
            with map_missing_tables(home.url):
                plan = launch(launched, **way)
                unhandled = run_joined_blocking(plan, session, home.queries, hints.outbox, whose)
        else:
            with home.blocking_claiming_driver() if _claims(launched) else home.blocking_driver() as driver:
                unhandled = driver.run(launch_and_commit(launched, hints, **way))
        self._note_unhandled(unhandled)

    def _note_unhandled(self, topics: Unhandled) -> None:
        if topics:
            via_broker = self._service.broker is not None
            self._service.hints.unhandled.note(topics, self._service.name, via_broker=via_broker)

    async def _introduce(self) -> None:
        """Before the first launch: make this service known, unless it is for a broker to say whether it can receive."""
        home = self._service.home
        if not self._service.announcer.done:
            self._service.check()
            async with home.driver() as driver:
                note(self._service.name, await driver.run(self._introducing()))
        if self._carried_by_broker and home.cooperation.is_due:
            async with home.driver() as driver:
                home.cooperation.learn((await driver.run(read_identity())).name)

    def _introduce_sync(self) -> None:
        home = self._service.home
        if not self._service.announcer.done:
            self._service.check()
            with home.blocking_driver() as driver:
                note(self._service.name, driver.run(self._introducing()))
        if self._carried_by_broker and home.cooperation.is_due:
            with home.blocking_driver() as driver:
                home.cooperation.learn(driver.run(read_identity()).name)

    def _introducing(self) -> Plan[Sequence[TakenOver]]:
        announcer = self._service.announcer
        if not self._service.servers.names_a_broker:
            self._carried = self._service.name in (yield from list_services_via_broker())
        if self._carried_by_broker:
            announcer.done = (yield from announcer.look()) >= announcer.names
            return ()
        taken_over = yield from announcer.plan()
        announcer.done = True
        return taken_over

    @property
    def _carried_by_broker(self) -> bool:
        """Whether a broker carries what this service launches, though this process may not have been told of it."""
        return self._service.broker is not None or self._carried

    def _way(self, launched: Sequence[Emission]) -> _Way:
        """Return how messages are launched by this process."""
        return {
            "source": self._service.name,
            "via_broker": self._carried_by_broker,
            "across": self._service.home.cooperation.active,
            "here": self._here(launched),
        }

    def _here(self, launched: Sequence[Emission]) -> Here | None:
        """Return which sagas of this service will handle messages, if nobody else knows them yet."""
        announcer = self._service.announcer
        if announcer.done:
            return None
        listening = {topic: announcer.listening(topic) for topic in {one.topic for one in launched}}
        return Here(self._service.name, listening)


def _claims(launched: Sequence[Emission]) -> bool:
    """Tell whether the caller has given one of the messages its id, so that others may be launching under it."""
    return any(one.given for one in launched)


def _emissions(drafts: Iterable[Draft], limits: Limits) -> list[Emission]:
    """Return messages that are launched at once."""
    launched: list[Emission] = []
    size = 0
    for draft in drafts:
        launched.append(_emission(draft, limits))
        size += launched[-1].size
        # A message that is the only one is taken, however large `limits` let it be.
        if len(launched) > MOST_AT_ONCE or (size > BYTES_AT_ONCE and len(launched) > 1):
            raise PayloadError(
                f"launch_many takes at most {MOST_AT_ONCE} messages with {BYTES_AT_ONCE} bytes of bodies, contexts and "
                "headers at once: launch the others in another call, with the same session if they belong together"
            )
    return launched


def _emission(draft: Draft, limits: Limits) -> Emission:
    """Return a message that is launched from outside any run."""
    text = None if draft.context is None else dump_json(dict(draft.context), "the context")
    limits.check(len(text or ""), "the context")
    one = emission(
        draft.topic,
        draft.payload,
        key=draft.key,
        headers=draft.headers,
        context=text,
        awaited=False,
        depth=_ABOVE + 1,
        require_handlers=draft.require_handlers,
        handled_by=draft.handled_by,
        message_id=draft.id,
        dedup_key=draft.dedup_key,
        timeouts=Timeouts.of(draft.timeout, draft.deadline, draft.rollback_timeout),
        limits=limits,
    )
    limits.check_together(one.size, "this launches")
    return one
