"""The notifier: tells other processes by NOTIFY, and hears them by LISTEN.

In a thread of its own, so that it serves programs with an event loop, with several, and without any; on one connection,
never inside anybody's transaction, where NOTIFY would have commits wait for each other. What it carries is a hint:
everything works without it, only later. So nothing that goes wrong here ever reaches who tells.
"""

from __future__ import annotations

import asyncio
import atexit
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from scoop_outbox.store.carrier import Carrier, Pending, note_missing
from scoop_outbox.store.home import Home

CLOSE_TIMEOUT = 1.0
"""Seconds that a server gets to take what is to be told yet, when the connection is closed."""
MOST = 1_000
"""How many payloads of a channel wait to be sent: of more, all that is told is that there were any."""

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
        self._carrier: Carrier | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin as new: in a forked child the thread of its parent does not run."""
        if self._carrier is not None:
            _carriers.discard(self._carrier)
            self._carrier.disinherit()
        # Whoever drops the last reference to an application may hold it at this moment.
        self._lock = threading.RLock()
        self._channels: dict[str, None] = {}
        self._pending: Pending = {}
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
        carrier: Carrier | None = None
        try:
            carrier = Carrier(self)
            carrier.start()
        except (OSError, RuntimeError) as error:  # no descriptor or no thread is to be had; the next hint tries again
            if carrier is not None:
                carrier.disinherit()
            if self._problem != str(error):
                self._problem = str(error)
                note_missing(error)
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
        thread, until = self.stop(), time.monotonic() + CLOSE_TIMEOUT
        # Not in a thread of the loop's: those may all be busy with what waits for this.
        while thread is not None and thread.is_alive() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    def close_blocking(self) -> None:
        """Do as `close`, for code without an event loop."""
        thread = self.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT)

    def is_needed(self) -> bool:
        """Tell whether somebody needs to hear."""
        needed = self._is_needed()
        return needed is not None and needed()

    def take(self) -> Pending:
        """Return what is to be told, by channel; it is the caller's from now on."""
        with self._lock:
            pending, self._pending = self._pending, {}
            return pending

    def give_back(self, pending: Pending, carrier: Carrier) -> None:
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

    def hear(self, channel: str, payloads: Sequence[str]) -> None:
        """Take what was heard; with an empty channel anything may have been missed."""
        if (heard := self.heard()) is not None:
            heard(channel, payloads)

    def leave(self, carrier: Carrier, *, whatever: bool = False) -> bool:
        """Let a carrier go that has nothing to do, or `whatever` it has; answer False if it is to stay."""
        with self._lock:
            if self._carrier is not carrier:
                return True
            if not whatever and (self._pending or self.is_needed()):
                return False
            self._carrier = None
            return True


_carriers: weakref.WeakSet[Carrier] = weakref.WeakSet()


def _at_exit() -> None:
    """Have all that is to be told be told: what is launched last in a program is often all that it launches."""
    until = time.monotonic() + CLOSE_TIMEOUT
    carriers = list(_carriers)
    for carrier in carriers:
        carrier.stop()
    for carrier in carriers:
        carrier.join(max(until - time.monotonic(), 0.0))


atexit.register(_at_exit)
