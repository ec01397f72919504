"""What the unit tests of a relay's parts share: leases and a database that answer as a test says."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from scoop_outbox.core.plans.outbox import Flow, Outgoing, Place
from scoop_outbox.core.statement import Rows
from scoop_outbox.message import Envelope
from scoop_outbox.store.callbacks import Interrupted


def outgoing(*flows: tuple[int, int, str]) -> Outgoing:
    """Return messages by shard, number and topic."""
    envelopes = [Envelope(str(seq), topic, None, b"", "text/plain", {}) for _, seq, topic in flows]
    return Outgoing([(shard, seq) for shard, seq, _ in flows], envelopes)


def on_topic(*places: Place) -> Outgoing:
    """Return messages that are all on one topic."""
    return outgoing(*((shard, seq, "topic") for shard, seq in places))


def rows_of(batch: Outgoing) -> Rows:
    """Return the rows that a database answers with."""
    return [
        (shard, seq, one.id, one.topic, one.key, one.body, one.content_type, "{}", None, None)
        for (shard, seq), one in zip(batch.places, batch.envelopes, strict=True)
    ]


class FakeDriver:
    """Executes plans: answers each statement by its name, with no rows unless told otherwise, or with an error.

    Attributes:
        rows: what is answered.
        failing: statements that fail.
        asked: the statements in order, with their parameters.
    """

    def __init__(self, **rows: Rows) -> None:
        self.rows: dict[str, Rows] = dict(rows)
        self.failing: set[str] = set()
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.running = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def run(self, plan: Any) -> Any:
        answers = None
        try:
            while True:
                answers = [await self._answer(one) for one in plan.send(answers)]
        except StopIteration as end:
            return end.value

    async def _answer(self, one: Any) -> Rows:
        self.asked.append((one.name, one.params))
        self.running.set()
        await self.may_answer.wait()
        if one.name in self.failing:
            raise Interrupted("the server went away")
        return self.rows.get(one.name, [])

    @property
    def names(self) -> list[str]:
        """The names of the statements that were asked."""
        return [name for name, _ in self.asked]

    def params(self, name: str) -> Mapping[str, Any]:
        """Return with what a statement was asked last."""
        return [params for asked, params in self.asked if asked == name][-1]


class FakeLeases:
    """Leases that are as a test says.

    Attributes:
        epochs: the shards that are owned, and since which epoch.
        gained, lost: what `keep` finds.
        doubted: how often they were doubted.
        released: whether they were given up.
    """

    def __init__(self, shards: Iterable[int] = range(8)) -> None:
        self.epochs = dict.fromkeys(shards, 5)
        self.gained: set[int] = set()
        self.lost: set[int] = set()
        self.doubted = 0
        self.released = False

    def doubt(self) -> None:
        self.doubted += 1

    async def keep(self, _: object) -> tuple[set[int], set[int]]:
        self.epochs = {shard: 6 for shard in (*self.epochs, *self.gained) if shard not in self.lost - self.gained}
        return self.gained, self.lost

    async def release(self, driver: FakeDriver) -> None:
        if "release_shards" in driver.failing:
            raise Interrupted("the server went away")
        driver.asked.append(("release_shards", {}))
        self.epochs, self.released = {}, True


def blocked(*flows: Flow) -> dict[Flow, int]:
    """Return flows whose first message failed, each at number 1."""
    return dict.fromkeys(flows, 1)
