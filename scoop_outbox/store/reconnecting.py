"""A daemon's connection to its database: open, or opened again after a failure.

Relay, worker and intake run for as long as their process does, whatever happens to the database meanwhile. Each has one
of these, and a loop like this one:

    while not stopping:
        try:
            driver = await database.connect()
            ...  # one round of work
            database.answered()
        except DATABASE_ERRORS as error:
            await sleep(await database.failed(error))
    await database.close()
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable

from scoop_outbox.policy import exponential
from scoop_outbox.store.connect import in_words
from scoop_outbox.store.time_limit import TimeLimitedDriver

SHORTEST = 0.2
"""Seconds from the first failure in a row to the next try."""
LONGEST = 5.0
"""Seconds from any failure to the next try, at most, unless the owner says otherwise."""


class ReconnectingDriver:
    """Holds one driver for its owner, opens another when there is none or it is not usable, and tells why it cannot.

    Used by one task at a time. It never retries by itself, and never sleeps: its owner does, and may do something else
    meanwhile, such as keeping its place in a consumer group.

    Args:
        url: the database's, for the reason that is told: without its password.
        open_driver: opens a driver: `home.connect` or `home.connect_to_queues`.
        owner: who uses it, for the log: "relay", "worker", "intake" or "built-in broker".
        log: the owner's logger. A reason is logged as a warning once, and again when it has changed.
        prepare: called with each new driver before its owner gets it. If it raises, the driver is closed, and the next
            call of `connect` opens another.
        longest: seconds from one failure to the next try, at most.
        service: whose the owner is, if it is one service's: a field of the log line.
    """

    def __init__(
        self,
        url: str,
        open_driver: Callable[[], Awaitable[TimeLimitedDriver]],
        owner: str,
        log: logging.Logger,
        prepare: Callable[[TimeLimitedDriver], Awaitable[None]] | None = None,
        longest: float = LONGEST,
        service: str | None = None,
    ) -> None:
        """Open nothing yet."""
        self._url = url
        self._open_driver = open_driver
        self._owner = owner
        self._log = log
        self._prepare = prepare
        self._longest = longest
        self._service = service
        self._driver: TimeLimitedDriver | None = None
        self._failures = 0  # in a row
        self._reason: str | None = None

    @property
    def driver(self) -> TimeLimitedDriver | None:
        """The driver, if there is one and it is usable; nothing is opened."""
        driver = self._driver
        return driver if driver is not None and driver.usable else None

    @property
    def problem(self) -> str | None:
        """Why the database cannot be used, or for how long it has not answered; None when all is well."""
        driver = self._driver  # read once: the port asks on a thread of its own
        return self._reason or (None if driver is None else driver.problem)

    async def connect(self) -> TimeLimitedDriver:
        """Return the driver; open one if there is none, or if it is not usable any more.

        Raises:
            DATABASE_ERRORS: none can be opened or prepared; to be handed to `failed`.
        """
        if (driver := self.driver) is None:
            await self.close()
            self._driver = driver = await self._open_driver()
            if self._prepare is not None:
                try:
                    await self._prepare(driver)
                except BaseException:
                    await self.close()
                    raise
        return driver

    def answered(self) -> None:
        """Note that the database has done what was asked of it: `problem` is over, and the next failure the first."""
        self._failures = 0
        self._reason = None

    async def failed(self, error: Exception) -> float:
        """Tell why the database cannot be used, unless that was the last thing told, and close the driver.

        Args:
            error: one of `DATABASE_ERRORS`.

        Returns:
            How many seconds to wait before the next `connect`: twice as many with each failure in a row.
        """
        reason = in_words(self._url, error)
        if reason != self._reason:
            self._log.warning(
                "database: unavailable, reconnecting (%s: %s)",
                *(self._owner, reason),
                extra={"reason": reason, "service": self._service},
            )
            self._reason = reason
        self._failures += 1
        await self.close()
        return exponential(SHORTEST, self._failures, self._longest)

    async def close(self) -> None:
        """Close the driver, if there is one, whatever state its connection is in. `connect` opens another."""
        driver, self._driver = self._driver, None
        if driver is not None:
            with contextlib.suppress(Exception):
                await driver.close()
