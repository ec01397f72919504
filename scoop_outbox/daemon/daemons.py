"""The daemons of one process, as whoever watches them sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.intake.intake import Intake
from scoop_outbox.daemon.maintenance import Maintenance
from scoop_outbox.daemon.relay.relay import Relay
from scoop_outbox.daemon.worker.worker import Worker


class Daemons:
    """The relay, the worker and the intake of one process, any of which may be missing.

    Attributes:
        relay: publishes, or None.
        worker: executes runs, or None.
        intake: takes in from a broker, or None.
        control: takes in from a broker what other homes say, or None.
        maintenance: removes what has ended long ago, or None.
        service: whose runs the worker executes.
        sagas: the names of its sagas.
        unhandled: what this process has launched on topics that nobody listens to, in numbers by topic.
    """

    def __init__(
        self,
        relay: Relay | None,
        worker: Worker | None,
        intake: Intake | None,
        service: str = "",
        sagas: Sequence[str] = (),
    ) -> None:
        """Hold what has been made; nothing runs yet."""
        self.relay = relay
        self.worker = worker
        self.intake = intake
        self.control: Intake | None = None
        self.maintenance: Maintenance | None = None
        self.service = service
        self.sagas = sagas
        self.hints: ProcessHints | None = None
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def unhandled(self) -> Mapping[str, int]:
        """See the class."""
        return {} if self.hints is None else self.hints.unhandled.counts

    @property
    def died(self) -> list[str]:
        """The names of those that have ended by an error; the log holds it."""
        return [task.get_name() for task in self.tasks if error_of(task) is not None]

    async def until_one_dies(self) -> None:
        """Wait until one of them has ended by an error. Nothing but a new start of the process mends that."""
        tasks = set(self.tasks)
        while not self.died:
            _, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def error_of(task: asyncio.Task[None]) -> BaseException | None:
    """Return what has ended a daemon, if an error has."""
    return task.exception() if task.done() and not task.cancelled() else None
