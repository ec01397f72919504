"""The thread of a notifier: it has one connection, and sends and hears on it, from one opening to the next."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import psycopg
from psycopg import sql
from psycopg.pq import PGnotify

from scoop_outbox._log import get_logger
from scoop_outbox.store.connect import in_words
from scoop_outbox.store.home import Home

log = get_logger(__name__)

COALESCE = 0.005
"""Seconds from one sending to the next: what is told meanwhile is told together."""
RECONNECT = 1.0
"""Seconds after which a connection that is missing is tried for again."""
IDLE = 60.0
"""Seconds after which a connection is closed that nobody listens on, and on which nothing was sent."""
LONGEST = 7_000
"""Characters of the payloads that are told in one. Postgres takes less than 8,000."""

# Limits of the role are meant for statements, not for a connection that is idle on purpose.
_SET_UP = """
select set_config(name, case name when 'plan_cache_mode' then 'force_generic_plan' else '0' end, false) from pg_settings
where name in ('statement_timeout', 'lock_timeout', 'idle_session_timeout', 'transaction_timeout', 'plan_cache_mode')
"""
_NOTIFY = "select pg_notify(channel, payload) from unnest(%s::text[], %s::text[]) as told (channel, payload)"
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # poll() needs no descriptor of its own

Pending = dict[str, dict[str, None]]
"""What is to be told: payloads by channel, each once, in order."""


class Cargo(Protocol):
    """What a carrier carries: what is to be told, and what is to be heard. Asked from the carrier's thread.

    Attributes:
        home: the database whose processes tell each other.
        prefix: ahead of the names of all channels.
    """

    home: Home
    prefix: str

    def take(self) -> Pending:
        """Return what is to be told, by channel; it is the caller's from now on."""

    def give_back(self, pending: Pending, carrier: Carrier) -> None:
        """Take back what a carrier could not tell."""

    def channels(self) -> list[str]:
        """Return what is to be listened to."""

    def hear(self, channel: str, payloads: Sequence[str]) -> None:
        """Take what was heard; with an empty channel anything may have been missed."""

    def leave(self, carrier: Carrier, *, whatever: bool = False) -> bool:
        """Let a carrier go that has nothing to do, or `whatever` it has; answer False if it is to stay."""

    def revive(self) -> None:
        """Begin another thread where one has ended by a surprise, if there is something to tell or to hear."""


class Carrier(threading.Thread):
    """The thread of a notifier, from one opening to the next.

    Attributes:
        listened: the channels that are listened to on the present connection.
    """

    def __init__(self, cargo: Cargo) -> None:
        """Run nothing yet."""
        super().__init__(name="scoop_outbox notifier", daemon=True)
        self._cargo = cargo
        self._home = cargo.home
        self._stopping = False
        self._used = time.monotonic()
        self.listened: set[str] = set()
        self._wakes, self._woken = socket.socketpair()
        for end in (self._wakes, self._woken):
            end.settimeout(0)

    def wake(self) -> None:
        """Have it look what there is to do."""
        with suppress(OSError):  # it is full: then it is awake; or closed
            self._wakes.send(b"!")

    def stop(self) -> None:
        """Have it tell what is to be told yet, and end."""
        self._stopping = True
        self.wake()

    def disinherit(self) -> None:
        """Close what there is of this thread where it does not run: it could not start, or is a parent's."""
        for end in (self._wakes, self._woken):
            end.close()

    def run(self) -> None:
        """Carry until stopped, or until there is nothing to do; a connection that is lost is replaced."""
        try:
            self._serve()
        except Exception:
            log.exception("notifier: thread failed, starting another one")
            time.sleep(RECONNECT)
        finally:
            self.listened = set()
            self._cargo.leave(self, whatever=True)
            self._wakes.close()
            self._woken.close()
        if not self._stopping:
            self._cargo.revive()

    def _serve(self) -> None:
        problem = ""
        while True:
            try:
                with self._home.connect_bare(f"{self._home.application}:notifier") as connection:
                    if problem:
                        log.info("notifier: connected again")
                        problem = ""
                    self._carry(connection)
                    return
            except Exception as error:  # noqa: BLE001 - it is logged, and the thread goes on
                if (reason := in_words(self._home.url, error)) != problem and not self._stopping:
                    expected = isinstance(error, (psycopg.Error, OSError))
                    note_missing(reason, None if expected else error)
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
        return not (self._stopping or self._cargo.leave(self))

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
        return self._cargo.leave(self)

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        if self._home.pooled:
            return  # whoever has the connection next would hear it
        new = [channel for channel in self._cargo.channels() if channel not in self.listened]
        for channel in new:
            connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._cargo.prefix + channel)))
        if new:
            self.listened = self.listened.union(new)
            self._cargo.hear("", ())  # what came before LISTEN was active

    def _send(self, connection: psycopg.Connection[Any]) -> bool:
        pending = self._cargo.take()
        if not pending:
            return False
        told = [(channel, joined) for channel, payloads in pending.items() for joined in _joined(payloads)]
        channels, payloads = [self._cargo.prefix + channel for channel, _ in told], [joined for _, joined in told]
        try:
            with connection.pipeline():
                connection.execute(_NOTIFY, (channels, payloads))
                for channel in sorted(self.listened)[:1]:  # once more: pg_stat_activity shows what it did last
                    connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._cargo.prefix + channel)))
        except BaseException:
            self._cargo.give_back(pending, self)
            raise
        return True

    def _hear(self, connection: psycopg.Connection[Any], heard: list[PGnotify], own: int) -> None:
        while (one := connection.pgconn.notifies()) is not None:
            heard.append(one)
        for one in heard:
            if one.be_pid != own:
                channel = one.relname.decode().removeprefix(self._cargo.prefix)
                self._cargo.hear(channel, one.extra.decode().split(","))
        heard.clear()


def note_missing(reason: object, error: BaseException | None = None) -> None:
    """Warn that there is no connection for the notifier; `error` is logged with its traceback."""
    log.warning("notifier: not connected, work of other processes is found by polling (%s)", reason, exc_info=error)


def _joined(payloads: Iterable[str]) -> Iterator[str]:
    """Put payloads together, as many as one notification takes."""
    joined = ""
    for payload in payloads:
        if joined and len(joined) + len(payload) >= LONGEST:
            yield joined
            joined = ""
        joined = f"{joined},{payload}" if joined else payload
    yield joined
