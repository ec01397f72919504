"""Hints: after a commit, tell whoever may have work that there is some, or that what he waits for has ended.

Within a process they are direct. To other processes the notifier carries them, coalesced: who only launches or waits
tells and hears, too. Everything works without them, only later.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from scoop_outbox._forks import begins_anew
from scoop_outbox.daemon.loops import call_on
from scoop_outbox.daemon.unhandled import UnhandledLaunches
from scoop_outbox.store.home import Home
from scoop_outbox.store.notifier import Notifier

OUTBOX = "outbox"
ENDED = "ended"
WAITING = "waiting"
SAID = 20.0
"""Seconds after which a process says again that somebody waits in it."""
BELIEVED = 60.0
"""Seconds for which others believe it."""

Mail = Callable[[uuid.UUID, str, str, float], bool]
Wake = Callable[[], object]


def mail_channel(service: str) -> str:
    """Return what the mail of a service is signalled on: names are arbitrary, channel names are short."""
    return f"mail:{_short(service)}"


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


class ProcessHints:
    """The hints of one process. Safe to be called from any thread; relay and workers are woken on their own loop.

    Args:
        home: the database whose processes are told.

    Attributes:
        unhandled: what this process has launched on topics that nobody listens to.
    """

    def __init__(self, home: Home) -> None:
        """Start with nobody listening."""
        self._notifier = Notifier(home, f"scoop_outbox:{_short(home.schema)}:", self._heard, self._needs_to_hear)
        # Not waited for: whoever happens to collect the garbage may be an event loop.
        weakref.finalize(self, self._notifier.stop).atexit = False
        self._forget()
        begins_anew(self)

    def begin_anew(self) -> None:
        """Have nobody to tell: in a forked child neither daemons nor event loops of its parent run."""
        self._notifier.begin_anew()
        self._forget()

    def _forget(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._relay: Callable[[], bool] | None = None
        self._workers: dict[str, Mail] = {}
        self._wakes: dict[str, Wake] = {}
        self._awaited: dict[uuid.UUID, list[Wake]] = {}
        self._say_again = self._told_until = 0.0
        self._lock = threading.RLock()  # who waits may be given up by whoever collects the garbage, at any moment
        self.unhandled = UnhandledLaunches()

    def on_outbox(self, wake: Callable[[], bool]) -> None:
        """Call `wake` when messages are waiting; it answers whether this process will publish them itself."""
        self._relay = wake
        self._wakes[OUTBOX] = wake

    def on_mail(self, service: str, offer: Mail, wake: Wake) -> None:
        """Call `offer` for mail posted in this process; it answers whether this process will see to it itself.

        Call `wake` when another process says that the service has mail.
        """
        self._workers[service] = offer
        self._wakes[mail_channel(service)] = wake

    @contextmanager
    def awaiting(self, message_id: uuid.UUID, wake: Wake) -> Iterator[None]:
        """Call `wake`, in any thread, when a message may have been handled, here or in another process."""
        with self._lock:
            self._awaited.setdefault(message_id, []).append(wake)
        self._notifier.listen(ENDED)
        self.say_waiting()
        try:
            yield
        finally:
            with self._lock:
                waiting = self._awaited.get(message_id, [])
                if wake in waiting:
                    waiting.remove(wake)
                if not waiting:
                    self._awaited.pop(message_id, None)

    def say_waiting(self) -> None:
        """Say, now and then, that somebody waits here: else nobody tells of what has been handled elsewhere."""
        if (now := time.monotonic()) >= self._say_again and not self._notifier.home.pooled:  # it would hear nothing
            self._say_again = now + SAID
            self._notifier.notify(WAITING)

    @property
    def listening(self) -> bool:
        """Whether all that daemons and those who wait need to hear of other processes is heard."""
        return self._notifier.listening

    @property
    def hears_of_ends(self) -> bool:
        """Whether other processes are heard, so that who waits need not look often."""
        return self._notifier.hears(ENDED)

    def ended(self, message_id: uuid.UUID) -> None:
        """A message that began a hierarchy has been handled by one of those who handle it, or by nobody."""
        self._wake_awaiting(message_id)
        # A notification for each hierarchy took a sixth of the rate of a busy worker. Most of the time nobody waits.
        if time.monotonic() < self._told_until or not self._notifier.hears(WAITING):
            self._notifier.notify(ENDED, message_id.hex)

    def _wake_awaiting(self, message_id: uuid.UUID) -> None:
        if not self._awaited:
            return
        with self._lock:
            waiting = list(self._awaited.get(message_id, ()))
        for wake in waiting:
            wake()

    def channel(self, name: str) -> str:
        """Return what the server calls a channel."""
        return self._notifier.prefix + name

    async def close(self) -> None:
        """Close the connection for hints, unless daemons run or somebody waits; what is told later opens another."""
        await self._notifier.close()

    def close_blocking(self) -> None:
        """Do as `close`, for code without an event loop."""
        self._notifier.close_blocking()

    def detach(self) -> None:
        """Forget relay and workers: they have stopped."""
        self._relay = None
        self._workers.clear()
        self._wakes.clear()
        self._loop = None

    def outbox(self) -> None:
        """Messages were written to the outbox."""
        if not self._on_loop(self._outbox):
            self._notifier.notify(OUTBOX)

    def mail(self, service: str, saga: str, version: str, run_id: uuid.UUID, delay: float) -> None:
        """A run of `service`, of a version of its saga or of none yet, got mail that is due in `delay` seconds."""
        if not self._on_loop(self._mail, service, saga, version, run_id, delay):
            self._notifier.notify(mail_channel(service))

    def _on_loop(self, call: Callable[..., object], *args: Any) -> bool:
        """Call on the loop of the daemons; answer whether there is one."""
        loop = self._loop
        return loop is not None and call_on(loop, call, *args)

    def _outbox(self) -> None:
        if self._relay is None or not self._relay():
            self._notifier.notify(OUTBOX)

    def _mail(self, service: str, saga: str, version: str, run_id: uuid.UUID, delay: float) -> None:
        offer = self._workers.get(service)
        if offer is None or not offer(run_id, saga, version, delay):
            self._notifier.notify(mail_channel(service))

    async def run(self) -> None:
        """Wake relay and workers of this loop until cancelled."""
        self._loop = asyncio.get_running_loop()
        # Whoever waits says so again until then.
        self._told_until = max(self._told_until, time.monotonic() + 1.5 * SAID)
        for channel in (*self._wakes, WAITING):
            self._notifier.listen(channel)
        await self._loop.create_future()

    def _needs_to_hear(self) -> bool:
        return (self._loop is not None and not self._loop.is_closed()) or bool(self._awaited)

    def _heard(self, channel: str, payloads: Sequence[str]) -> None:
        """Be told by the notifier; in its thread."""
        if not channel:
            self._wake_all()
        elif channel == WAITING:
            now = time.monotonic()
            if now >= self._told_until:
                self._notifier.notify(ENDED)  # what has been handled a moment ago was told to nobody
            self._told_until = now + BELIEVED
        elif channel == ENDED:
            for payload in payloads:
                if not payload:
                    self._wake_all_awaiting()
                with contextlib.suppress(ValueError):  # anybody may notify
                    self._wake_awaiting(uuid.UUID(payload))
        elif (wake := self._wakes.get(channel)) is not None:
            self._on_loop(wake)

    def _wake_all(self) -> None:
        for wake in list(self._wakes.values()):
            self._on_loop(wake)
        self._wake_all_awaiting()

    def _wake_all_awaiting(self) -> None:
        for message_id in list(self._awaited):
            self._wake_awaiting(message_id)
