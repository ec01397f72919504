"""The notifier: tells other processes by NOTIFY, and hears them by LISTEN.

In a thread of its own, so that it serves programs with an event loop, with several, and without any; on one connection,
never inside anybody's transaction, where NOTIFY would have commits wait for each other. What it carries is a hint:
everything works without it, only later. So nothing that goes wrong here ever reaches who tells.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import selectors
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import PGnotify

from scoop_outbox.store.connect import in_words
from scoop_outbox.store.home import Home

log = logging.getLogger(__name__)

COALESCE = 0.005
"""Seconds from one sending to the next: what is told meanwhile is told together."""
RECONNECT = 1.0
"""Seconds after which a connection that is missing is tried for again."""
IDLE = 60.0
"""Seconds after which a connection is closed that nobody listens on, and on which nothing was sent."""
PATIENCE = 1.0
"""Seconds that a server gets to take what is to be told yet, when the connection is closed."""
MOST = 1_000
"""How many payloads of a channel wait to be sent: of more, all that is told is that there were any."""
LONGEST = 7_000
"""Characters of the payloads that are told in one. Postgres takes less than 8,000."""

# Limits of the role are meant for statements, not for a connection that is idle on purpose.
_SET_UP = """
select set_config(name, case name when 'plan_cache_mode' then 'force_generic_plan' else '0' end, false) from pg_settings
where name in ('statement_timeout', 'lock_timeout', 'idle_session_timeout', 'transaction_timeout', 'plan_cache_mode')
"""
_NOTIFY = "select pg_notify(channel, payload) from unnest(%s::text[], %s::text[]) as told (channel, payload)"
_MISSING = "the connection for signals between processes is missing: %s; meanwhile work is found by polling"
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # poll() needs no descriptor of its own

Heard = Callable[[str, Sequence[str]], None]
"""Called with channel and payloads; with an empty channel when anything may have been missed."""


class Notifier:
    """Carries hints between this process and the others. Safe to be called from any thread, and raises nothing.

    It connects at the first hint. Neither an application that is dropped nor a program that ends has to close it.

    Args:
        home: the database whose processes tell each other.
        prefix: ahead of the names of all channels.
        heard: a bound method, called in the notifier's thread. Only a weak reference is kept.
        is_needed: a bound method, which tells whether somebody needs to hear. Likewise.
    """

    def __init__(self, home: Home, prefix: str, heard: Heard, is_needed: Callable[[], bool]) -> None:
        """Connect to nothing yet."""
        self.home = home
        self.prefix = prefix
        self.heard = weakref.WeakMethod(heard)
        self._is_needed = weakref.WeakMethod(is_needed)
        self._carrier: _Carrier | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin as new: in a forked child the thread of its parent does not run."""
        if self._carrier is not None:
            self._carrier.disinherit()
        # Whoever drops the last reference to an application may hold it at this moment.
        self._lock = threading.RLock()
        self._channels: dict[str, None] = {}
        self._pending: dict[str, dict[str, None]] = {}
        self._carrier = None
        self._problem = ""

    def hears(self, channel: str) -> bool:
        """Tell whether a channel is listened to just now."""
        carrier = self._carrier
        return carrier is not None and channel in carrier.listened

    @property
    def listening(self) -> bool:
        """Whether there is something to hear, and all of it is listened to just now."""
        carrier, channels = self._carrier, self.channels()
        return carrier is not None and bool(channels) and carrier.listened.issuperset(channels)

    def notify(self, channel: str, payload: str = "") -> None:
        """Tell whoever listens on a channel, soon. The same payload is told once, if it is not gone yet.

        Args:
            channel: ASCII.
            payload: ASCII, without commas and short. An empty one says that there is something, not what.
        """
        if sys.is_finalizing():
            return  # other threads do not run any more
        with self._lock:
            silent = not self._pending
            told = self._pending.setdefault(channel, {})
            if len(told) >= MOST or not payload:
                told.clear()
                payload = ""
            if "" not in told:
                told[payload] = None
            if silent or self._carrier is None:
                self._wake()

    def listen(self, channel: str) -> None:
        """Hear of a channel from now on, or soon: `heard` is called when it is so."""
        if sys.is_finalizing():
            return
        with self._lock:
            if channel not in self._channels or self._carrier is None:
                self._channels[channel] = None
                self._wake()

    def _wake(self) -> None:
        if self._carrier is not None:
            self._carrier.wake()
            return
        carrier: _Carrier | None = None
        try:
            carrier = _Carrier(self)
            carrier.start()
        except (OSError, RuntimeError) as error:  # no descriptor or no thread is to be had; the next hint tries again
            if carrier is not None:
                carrier.disinherit()
            if self._problem != str(error):
                self._problem = str(error)
                log.warning(_MISSING, error)
            return
        self._problem = ""
        self._carrier = carrier
        _carriers.add(carrier)

    def revive(self) -> None:
        """Begin another thread where one has ended by a surprise, if there is something to tell or to hear."""
        with self._lock:
            if self._carrier is None and (self._pending or self.is_needed()):
                self._wake()

    def stop(self) -> threading.Thread | None:
        """Tell what is to be told yet, and close the connection, unless somebody needs to hear.

        What is told afterwards opens another.

        Returns:
            The thread that does so.
        """
        with self._lock:
            if self._carrier is None or self.is_needed():
                return None
            carrier, self._carrier = self._carrier, None
            self._channels = {}
            carrier.stop()
            return carrier

    async def close(self) -> None:
        """Do as `stop`, and wait for it a moment. A server that does not answer is left to itself."""
        thread, until = self.stop(), time.monotonic() + PATIENCE
        # Not in a thread of the loop's: those may all be busy with what waits for this.
        while thread is not None and thread.is_alive() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    def close_blocking(self) -> None:
        """Do as `close`, for code without an event loop."""
        thread = self.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE)

    def is_needed(self) -> bool:
        """Tell whether somebody needs to hear."""
        needed = self._is_needed()
        return needed is not None and needed()

    def take(self) -> dict[str, dict[str, None]]:
        """Return what is to be told, by channel; it is the caller's from now on."""
        with self._lock:
            pending, self._pending = self._pending, {}
            return pending

    def give_back(self, pending: dict[str, dict[str, None]], carrier: _Carrier) -> None:
        """Take back what a carrier could not tell."""
        with self._lock:
            for channel, payloads in pending.items():
                told = self._pending.setdefault(channel, {})
                told.update(payloads)
                if "" in told or len(told) > MOST:
                    self._pending[channel] = {"": None}
            if self._carrier not in (None, carrier):
                self._wake()

    def channels(self) -> list[str]:
        """Return what is to be listened to."""
        with self._lock:
            return list(self._channels)

    def leave(self, carrier: _Carrier, *, whatever: bool = False) -> bool:
        """Let a carrier go that has nothing to do, or `whatever` it has; answer False if it is to stay."""
        with self._lock:
            if self._carrier is not carrier:
                return True
            if not whatever and (self._pending or self.is_needed()):
                return False
            self._carrier = None
            return True


class _Carrier(threading.Thread):
    """The thread of a notifier, from one opening to the next.

    Attributes:
        listened: the channels that are listened to on the present connection.
    """

    def __init__(self, notifier: Notifier) -> None:
        super().__init__(name="scoop_outbox notifier", daemon=True)
        self._notifier = notifier
        self._home = notifier.home
        self._stopping = False
        self._used = time.monotonic()
        self.listened: set[str] = set()
        self._wakes, self._woken = socket.socketpair()
        for end in (self._wakes, self._woken):
            end.settimeout(0)

    def wake(self) -> None:
        with suppress(OSError):  # it is full: then it is awake; or closed
            self._wakes.send(b"!")

    def stop(self) -> None:
        self._stopping = True
        self.wake()

    def disinherit(self) -> None:
        """Close what there is of this thread where it does not run: it could not start, or is a parent's."""
        _carriers.discard(self)
        for end in (self._wakes, self._woken):
            end.close()

    def run(self) -> None:
        """Carry until stopped, or until there is nothing to do; a connection that is lost is replaced."""
        try:
            self._serve()
        except Exception:
            log.exception("the thread that carries signals between processes has failed; another one begins")
            time.sleep(RECONNECT)
        finally:
            self.listened = set()
            self._notifier.leave(self, whatever=True)
            self._wakes.close()
            self._woken.close()
        if not self._stopping:
            self._notifier.revive()

    def _serve(self) -> None:
        problem = ""
        while True:
            try:
                with self._home.connect_bare(f"{self._home.application}:signals") as connection:
                    if problem:
                        log.info("the connection for signals between processes is there again")
                        problem = ""
                    self._carry(connection)
                    return
            except Exception as error:
                if (reason := in_words(self._home.url, error)) != problem and not self._stopping:
                    expected = isinstance(error, (psycopg.Error, OSError))
                    log.warning(_MISSING, reason, exc_info=None if expected else error)
                    problem = reason
            self.listened = set()
            if not self._pause():
                return

    def _pause(self) -> bool:
        """Wait before the next try; answer whether there is to be one: for something is to be told, or to be heard."""
        until = time.monotonic() + RECONNECT
        while not self._stopping and (left := until - time.monotonic()) > 0:
            self._woken.settimeout(left)
            with suppress(TimeoutError):
                self._woken.recv(4096)
        self._woken.settimeout(0)
        return not (self._stopping or self._notifier.leave(self))

    def _carry(self, connection: psycopg.Connection[Any]) -> None:
        """Send and hear on a connection, until it is not needed any more."""
        if not self._home.pooled:
            connection.prepare_threshold = 0
            connection.execute(_SET_UP, prepare=False)
        own = connection.info.backend_pid
        heard: list[PGnotify] = []
        connection.pgconn.notify_handler = heard.append
        not_before = 0.0
        with _Selector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(connection.fileno(), selectors.EVENT_READ)
            while True:
                self._listen(connection)
                stopping, now = self._stopping, time.monotonic()
                if (stopping or now >= not_before) and self._send(connection):
                    self._used = now
                    not_before = now + COALESCE
                self._hear(connection, heard, own)
                if stopping or self._is_idle(now):
                    return
                # What was told while `now` was too early lies waiting, and nobody says so again.
                selector.select(not_before - now if now < not_before else max(self._used + IDLE - now, 0.0))
                self._drain()
                connection.pgconn.consume_input()

    def _is_idle(self, now: float) -> bool:
        if now - self._used < IDLE:
            return False
        self._used = now
        return self._notifier.leave(self)

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        if self._home.pooled:
            return  # whoever has the connection next would hear it
        new = [channel for channel in self._notifier.channels() if channel not in self.listened]
        for channel in new:
            connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._notifier.prefix + channel)))
        if new:
            self.listened = self.listened.union(new)
            self._tell("", ())  # what came before LISTEN was active

    def _send(self, connection: psycopg.Connection[Any]) -> bool:
        pending = self._notifier.take()
        if not pending:
            return False
        told = [(channel, joined) for channel, payloads in pending.items() for joined in _joined(payloads)]
        channels, payloads = [self._notifier.prefix + channel for channel, _ in told], [joined for _, joined in told]
        try:
            with connection.pipeline():
                connection.execute(_NOTIFY, (channels, payloads))
                for channel in sorted(self.listened)[:1]:  # once more: pg_stat_activity shows what it did last
                    connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._notifier.prefix + channel)))
        except BaseException:
            self._notifier.give_back(pending, self)
            raise
        return True

    def _hear(self, connection: psycopg.Connection[Any], heard: list[PGnotify], own: int) -> None:
        while (one := connection.pgconn.notifies()) is not None:
            heard.append(one)
        for one in heard:
            if one.be_pid != own:
                channel = one.relname.decode().removeprefix(self._notifier.prefix)
                self._tell(channel, one.extra.decode().split(","))
        heard.clear()

    def _tell(self, channel: str, payloads: Sequence[str]) -> None:
        if (heard := self._notifier.heard()) is not None:
            heard(channel, payloads)


def _joined(payloads: Iterable[str]) -> Iterator[str]:
    """Put payloads together, as many as one notification takes."""
    joined = ""
    for payload in payloads:
        if joined and len(joined) + len(payload) >= LONGEST:
            yield joined
            joined = ""
        joined = f"{joined},{payload}" if joined else payload
    yield joined


_carriers: weakref.WeakSet[_Carrier] = weakref.WeakSet()


def _at_exit() -> None:
    """Have all that is to be told be told: what is launched last in a program is often all that it launches."""
    until = time.monotonic() + PATIENCE
    carriers = list(_carriers)
    for carrier in carriers:
        carrier.stop()
    for carrier in carriers:
        carrier.join(max(until - time.monotonic(), 0.0))


atexit.register(_at_exit)
