"""The feeder: reads which runs have mail that is due, for the slots of a worker. An index read: no lock, no write."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from scoop_outbox.daemon.polling import AdaptivePolling
from scoop_outbox.daemon.worker.cancellations import Cancellations
from scoop_outbox.daemon.worker.dispatcher import Dispatcher
from scoop_outbox.daemon.worker.interruptions import Interruptions
from scoop_outbox.daemon.worker.mail import MailReader
from scoop_outbox.daemon.worker.roster import Roster
from scoop_outbox.daemon.worker.surroundings import Surroundings
from scoop_outbox.saga import Saga
from scoop_outbox.store.async_driver import AsyncDriver

_AHEAD = 2
"""Runs that are read ahead for each slot, so that none waits while the feeder reads."""
_SPARED = 500
"""Most runs that are left to the others when helping them: they are read all the same, to be passed over."""
_LONG = 10.0
"""Seconds after which the mail of a run in hand does not count as lying there: it is as old as the step is long."""


class Feeder:
    """Feeds the dispatcher of one worker with runs that have mail.

    It owns the reading: how far back, which part of the mail is the worker's, and how long to wait from one look to the
    next. It is on the event loop alone, and needs no lock; what it shares with the slots is the dispatcher's.

    Args:
        service: whose mail.
        sagas: the worker's sagas by name.
        roster: who else reads it.
        surroundings: looked at now and then.
        interruptions: written down before anything is read: their runs are due later.
        dispatcher: is fed.
        cancellations: asked for with every look.
    """

    def __init__(
        self,
        service: str,
        sagas: Mapping[str, Saga],
        roster: Roster,
        surroundings: Surroundings,
        interruptions: Interruptions,
        dispatcher: Dispatcher,
        cancellations: Cancellations,
    ) -> None:
        """Read nothing yet."""
        self._roster = roster
        self._interruptions = interruptions
        self._dispatcher = dispatcher
        self._cancellations = cancellations
        self._surroundings = surroundings
        self._mail = MailReader(service, list(sagas), roster, interruptions)
        self._next_due: float | None = None  # in how many seconds, when it was read
        self._polling = AdaptivePolling()
        self._freed = asyncio.Event()

    async def introduce(self, driver: AsyncDriver) -> None:
        """Begin on a new connection: say that this worker is there, and look from the beginning."""
        await self._roster.introduce(driver)
        self.look_back()  # what was asked last may not have been answered

    async def leave(self, driver: AsyncDriver) -> None:
        """Let others take over at once what this worker would have executed."""
        await self._interruptions.write_down(driver)
        await self._roster.leave(driver)

    def look_back(self) -> None:
        """Look from the beginning next: there may be older mail for us than we know of."""
        self._mail.lookback.forget()

    async def feed(self, driver: AsyncDriver) -> None:
        """Read which runs have mail."""
        await self._interruptions.write_down(driver)
        await self._cancellations.look(driver)
        if self._roster.left <= 0 and await self._surroundings.look(driver):
            self.look_back()  # what was another's may lie further back
        await self._read(driver)
        if self._dispatcher.empty and self._roster.others and self._dispatcher.free > 0:
            await self._help_others(driver)

    async def _read(self, driver: AsyncDriver) -> None:
        """Read the oldest mail of each saga anew."""
        # Runs in hand or backing off keep their mail, and would hide what lies behind them.
        most = self._dispatcher.begin_reading() + len(self._interruptions) + _AHEAD * self._dispatcher.slots
        look = await self._mail.read(driver, most)
        in_hand = self._dispatcher.in_hand
        allowed = await self._mail.mark(driver, look.due, in_hand)
        # What has been in hand for long has mail that is as old.
        lies = [due.age for due in look.due if due.age < _LONG or due.run_id not in in_hand]
        self._mail.lookback.looked(max(lies, default=None))
        behind = {due.saga for due in look.due} if len(look.due) >= most else set()
        tried_in = self._dispatcher.replace(allowed, behind)
        self._next_due = min((one for one in (look.next_due, tried_in) if one is not None), default=None)

    async def _help_others(self, driver: AsyncDriver) -> None:
        """Help others when there is nothing of our own: a little at a time, for they may be quicker.

        What their slots can soon deal with would be claimed in vain, and so would what they find gone.
        """
        theirs = min(self._roster.others * (1 + _AHEAD) * self._dispatcher.slots, _SPARED)
        wanted = max(1, self._dispatcher.free // 4) + self._dispatcher.left_alone
        lying = await self._mail.read_left_lying(driver, theirs, wanted)
        self._dispatcher.add(await self._mail.mark(driver, lying, self._dispatcher.in_hand))

    async def rest(self, *, after_work: bool) -> None:
        """Wait until it is time to read again: soon, if the last look was `after_work`, or more can be done."""
        if after_work:
            self._polling.busy()
        if self._interruptions or self._dispatcher.stopping:
            return
        left = min(one for one in (self._roster.left, self._cancellations.left) if one is not None)
        if self._dispatcher.low:
            await self._polling.sleep(left if self._next_due is None else min(self._next_due, left))
            return
        self._freed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._freed.wait()

    async def hold_out(self, seconds: float) -> None:
        """Wait before the database is tried again, as long as when there is nothing to do, and `seconds` at most."""
        await self._polling.sleep(seconds)

    def wake(self) -> None:
        """Read at once: there is mail."""
        self._polling.wake()

    def queue_low(self) -> None:
        """End a wait for free slots: a thread has taken a run, and few are ready."""
        self._freed.set()

    def slot_freed(self) -> None:
        """End the wait if there is something to be written down, or too little that is ready."""
        if self._interruptions or self._dispatcher.low:
            self._freed.set()
            if self._interruptions or self._dispatcher.behind:
                self._polling.wake()

    def stop(self) -> None:
        """End every wait."""
        self._polling.wake()
        self._freed.set()
