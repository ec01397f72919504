"""Signals: after a commit, tell whoever may have work that there is some.

Within a process they are direct; to other processes they are NOTIFY, empty, coalesced, on a connection of their own
and never inside anybody's transaction, where it would serialise commits. Everything works without them, only later.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from scoop_outbox.daemon.unhandled import UnhandledLaunches
from scoop_outbox.forks import begins_anew
from scoop_outbox.store.connect import in_words
from scoop_outbox.store.home import Home

log = logging.getLogger(__name__)

OUTBOX = "outbox"
_COALESCE = 0.005
_RECONNECT = 1.0
_TO_SEND = "that tells other processes of work"
_TO_LISTEN = "that hears of work from other processes"

Mail = Callable[[uuid.UUID, str, str, float], bool]


def mail_channel(service: str) -> str:
    """Return what the mail of a service is signalled on: names are arbitrary, channel names are short."""
    return f"mail:{_short(service)}"


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


class Signals:
    """The hints of one process. Safe to be called from any thread; acts on the loop that it was started on.

    Args:
        home: the database whose processes are told.

    Attributes:
        unhandled: what this process has launched on topics that nobody listens to.
    """

    def __init__(self, home: Home) -> None:
        """Start with nobody listening."""
        self._home = home
        self._flush: asyncio.Event
        self._prefix = f"scoop_outbox:{_short(home.schema)}:"
        self.begin_anew()
        begins_anew(self)

    def begin_anew(self) -> None:
        """Have nobody to tell: in a forked child neither daemons nor event loops of its parent run."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._relay: Callable[[], bool] | None = None
        self._workers: dict[str, Mail] = {}
        self._wakes: dict[str, Callable[[], object]] = {}
        self._outcomes: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []
        self._pending: set[str] = set()
        self._own_pid = 0
        self.unhandled = UnhandledLaunches()

    def on_outbox(self, wake: Callable[[], bool]) -> None:
        """Call `wake` when messages are waiting; it answers whether this process will publish them itself."""
        self._relay = wake
        self._wakes[OUTBOX] = wake

    def on_mail(self, service: str, offer: Mail, wake: Callable[[], None]) -> None:
        """Call `offer` for mail posted in this process; it answers whether this process will see to it itself.

        Call `wake` when another process says that the service has mail.
        """
        self._workers[service] = offer
        self._wakes[mail_channel(service)] = wake

    def on_ended(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Call `wake` on `loop` when a hierarchy has ended in this process."""
        self._outcomes.append((loop, wake))

    def ended(self) -> None:
        """A hierarchy has ended: a root run, and with it everything below."""
        for entry in list(self._outcomes):
            loop, wake = entry
            if loop is self._loop and threading.get_ident() == self._thread:
                wake()
                continue
            try:
                loop.call_soon_threadsafe(wake)
            except RuntimeError:  # it is closed: nobody waits there any more
                self._outcomes.remove(entry)

    def detach(self) -> None:
        """Forget relay and workers: they have stopped."""
        self._relay = None
        self._workers.clear()
        self._wakes.clear()
        self._loop = None

    def outbox(self) -> None:
        """Messages were written to the outbox."""
        self._on_loop(self._outbox)

    def mail(self, service: str, saga: str, version: str, run_id: uuid.UUID, delay: float) -> None:
        """A run of `service`, of a version of its saga or of none yet, got mail that is due in `delay` seconds."""
        self._on_loop(self._mail, service, saga, version, run_id, delay)

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        loop = self._loop
        if loop is None:
            return
        if threading.get_ident() == self._thread:
            call(*args)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is nobody left to be told
                loop.call_soon_threadsafe(call, *args)

    def _outbox(self) -> None:
        if self._relay is None or not self._relay():
            self._notify(OUTBOX)

    def _mail(self, service: str, saga: str, version: str, run_id: uuid.UUID, delay: float) -> None:
        offer = self._workers.get(service)
        if offer is None or not offer(run_id, saga, version, delay):
            self._notify(mail_channel(service))

    def _notify(self, channel: str) -> None:
        self._pending.add(channel)
        self._flush.set()

    async def run(self) -> None:
        """Carry signals until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._flush = asyncio.Event()  # one application may run in one loop after the other; an event belongs to one
        async with asyncio.TaskGroup() as group:
            group.create_task(self._patiently(self._send, _TO_SEND), name="scoop_outbox signals: send")
            group.create_task(self._patiently(self._listen, _TO_LISTEN), name="scoop_outbox signals: listen")

    async def _patiently(self, carry: Callable[[psycopg.AsyncConnection[Any]], Any], what: str) -> None:
        """Keep a connection for `carry`, and take a new one when it breaks."""
        problem = ""
        while True:
            try:
                connection = await self._home.listen(f"{self._home.application}:signals")
                if problem:
                    log.info("the connection %s is there again", what)
                    problem = ""
                async with connection:
                    if what is _TO_LISTEN and self._home.pooled:
                        return  # whoever has the connection next would hear it
                    await carry(connection)
            except psycopg.Error as error:
                if (reason := in_words(self._home.url, error)) != problem:
                    log.warning("the connection %s is missing: %s; meanwhile work is found by polling", what, reason)
                    problem = reason
                await asyncio.sleep(_RECONNECT)

    async def _send(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._own_pid = connection.info.backend_pid
        while True:
            await self._flush.wait()
            self._flush.clear()
            channels, self._pending = self._pending, set()
            try:
                for channel in channels:
                    await connection.execute("select pg_notify(%s, '')", (self._prefix + channel,))
            except psycopg.Error:
                self._pending |= channels
                self._flush.set()
                raise
            await asyncio.sleep(_COALESCE)

    async def _listen(self, connection: psycopg.AsyncConnection[Any]) -> None:
        for channel in self._wakes:
            await connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._prefix + channel)))
        # What came before LISTEN was active is found by this look.
        for wake in self._wakes.values():
            wake()
        async for notify in connection.notifies():
            wake_up = self._wakes.get(notify.channel.removeprefix(self._prefix))
            if notify.pid != self._own_pid and wake_up is not None:
                wake_up()
