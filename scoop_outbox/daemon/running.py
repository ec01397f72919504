"""What `app.running()` gives: the daemons of a process, and how they are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scoop_outbox.daemon.daemons import Daemons
from scoop_outbox.daemon.intake.intake import Intake
from scoop_outbox.daemon.relay.relay import Relay
from scoop_outbox.daemon.worker.worker import Worker
from scoop_outbox.store.home import Home

if TYPE_CHECKING:
    from scoop_outbox.daemon.monitoring.health import Health


class Running(Daemons):
    """The relay, the worker and the intake of this process, and the answers that `--port` gives about them.

    A program that has a web server of its own answers on it with `ready`, `problems` and `metrics`. They are called on
    the event loop that `running` was entered on, as often as anybody asks: the database is asked once a second at most,
    and they come back within three seconds though it may not answer.

    Attributes:
        relay, worker, intake, maintenance, service, sagas, unhandled: as in `Daemons`.
    """

    def __init__(
        self,
        home: Home,
        relay: Relay | None,
        worker: Worker | None,
        intake: Intake | None,
        service: str = "",
        sagas: Sequence[str] = (),
    ) -> None:
        """Made by `app.running()`."""
        super().__init__(relay, worker, intake, service, sagas)
        self._home = home
        self._stopping = self._stopped = False

    @functools.cached_property
    def _health(self) -> Health:
        # Most programs never ask, and need neither the client of Prometheus nor an HTTP server.
        from scoop_outbox.daemon.monitoring.health import Health  # noqa: PLC0415

        health = Health(self._home)
        health.watch(self)
        health.stopping, health.closed = self._stopping, self._stopped
        return health

    async def ready(self) -> bool:
        """Tell whether this process can do its work just now: what `/readyz` says."""
        return not await self.problems()

    async def problems(self) -> dict[str, str]:
        """Return what keeps this process from its work just now, by what it is about: what `/readyz` says."""
        return await self._health.problems()

    async def metrics(self) -> str:
        """Return the metrics: what `/metrics` says, as `text/plain; version=0.0.4; charset=utf-8`."""
        _, body = await self._health.metrics("")
        return body.decode()

    def not_ready(self) -> None:
        """Called when the daemons begin to stop: this process is not ready any more."""
        self._stopping = True
        if "_health" in vars(self):
            self._health.stopping = True

    async def close(self) -> None:
        """Called at the end: nobody asks the database any more."""
        self._stopped = True
        if "_health" in vars(self):
            await self._health.close()
