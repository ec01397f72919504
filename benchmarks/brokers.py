"""The brokers that are measured, and what the measurements over them have in common."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.control import Control
from scoop_outbox import Scoop
from scoop_outbox._emission import emission
from scoop_outbox.app import service_of
from scoop_outbox.broker.protocol import Publisher, PublishStatus, Receipt, Subscription
from scoop_outbox.core.plans.launch import launch_and_commit
from scoop_outbox.daemon.daemons import Daemons
from scoop_outbox.devservers._errors import ServerNotFoundError
from scoop_outbox.devservers.kafka import start_kafka
from scoop_outbox.devservers.rabbitmq import start_rabbitmq
from scoop_outbox.message import Envelope

KEYS = 64
BODY_BYTES = 1000
PARTITIONS = 8
SERVICE = "benchmark"

_BATCH = 1000
# Half of each body is the same in all, and half in none: so far messages of one topic can usually be compressed.
_SAME = random.randbytes(BODY_BYTES // 4 - 20).hex()
_READ = """
select o.message_id::text, o.topic, o.key, o.body, o.content_type, o.headers, h.id::text
from outbox o, home h where o.topic = %(topic)s order by o.seq
"""
_COLUMNS = "shard, message_id, topic, key, body, content_type, headers"
_STAGE = f"""
drop table if exists staged;
create table staged as select seq, {_COLUMNS} from outbox;
delete from outbox
"""
_RELEASE = f"insert into outbox ({_COLUMNS}) select {_COLUMNS} from staged order by seq"


class _Server(Protocol):
    @property
    def url(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A broker to be measured.

    Attributes:
        name: as the tables call it.
        scheme: of its URL.
        start: starts it in a folder.
        settings: what is added to its URL.
    """

    name: str
    scheme: str
    start: Callable[[Path], AbstractContextManager[_Server]]
    settings: str = ""

    @property
    def is_kafka(self) -> bool:
        return self.scheme == "kafka"


KAFKA = Kind("Kafka, one node", "kafka", start_kafka, f"?topology.partitions={PARTITIONS}")
CLUSTER = Kind(
    "Kafka, three nodes", "kafka", lambda folder: start_kafka(folder, nodes=3), f"?topology.partitions={PARTITIONS}"
)
RABBITMQ = Kind("RabbitMQ", "amqp", start_rabbitmq)
KINDS = (KAFKA, CLUSTER, RABBITMQ)


RUNNING: dict[str, str] = {}
"""URLs of brokers that run already, by scheme: they are used, and none is started."""


@contextmanager
def serving(kind: Kind, notes: list[str]) -> Iterator[str | None]:
    """Start a broker and yield its URL; or None, with a note of what to install, where it cannot be started."""
    if kind is CLUSTER and kind.scheme in RUNNING:
        notes.append(f"{kind.name} was not measured: another Kafka was given")
        yield None
        return
    if kind.scheme in RUNNING:
        yield RUNNING[kind.scheme] + kind.settings
        return
    with tempfile.TemporaryDirectory(prefix="scoop-outbox-benchmarks-") as folder:
        try:
            server = kind.start(Path(folder))
        except ServerNotFoundError as error:
            notes.append(f"{kind.name} was not measured: {error}")
            yield None
            return
        with server as started:
            yield started.url + kind.settings


def build(database: str, broker: str, *topics: str, group: str = SERVICE) -> Scoop:
    """Declare a service that does nothing with what comes on some topics."""
    app = Scoop(SERVICE, database=database, broker=broker, group=group, start="earliest")
    for number, topic in enumerate(topics):
        app.saga(f"saga-{number}", on=topic).add_step("only", _nothing)
    return app


async def _nothing(scope: object, message: object) -> None:
    """Do nothing."""


async def create(app: Scoop, topics: Sequence[str], *, group: str = SERVICE) -> None:
    """Create topics, and where the broker has queues, one that gets all that is published on them."""
    broker = service_of(app).broker
    assert broker is not None
    await broker.topology(topics, Subscription(SERVICE, group, tuple(topics), "earliest"), create=True)


def payload(number: int) -> dict[str, object]:
    """Return a payload whose body has about `BODY_BYTES` bytes."""
    return {"number": number, "same": _SAME, "own": random.randbytes(BODY_BYTES // 4).hex()}


async def stage(app: Scoop, control: Control, topic: str, count: int, *, keyed: bool) -> list[Envelope]:
    """Launch messages and lay them by, for `release`; return what will be published."""
    for first in range(0, count, _BATCH):
        batch = [
            emission(
                topic,
                payload(number),
                key=f"key-{number % KEYS}" if keyed else None,
                headers=None,
                context=None,
                awaited=False,
                depth=1,
            )
            for number in range(first, min(first + _BATCH, count))
        ]
        async with service_of(app).home.driver() as driver:
            await driver.run(launch_and_commit(batch, service_of(app).hints, via_broker=True))
    found = [
        Envelope(message_id, topic, key, bytes(body), content_type, {**headers, "scoop-home": home})
        for message_id, topic, key, body, content_type, headers, home in await control.all(_READ, {"topic": topic})
    ]
    await control.all(_STAGE)
    await control.settle("staged", "outbox")
    return found


async def release(control: Control) -> None:
    """Put into the outbox, at once, what was laid by."""
    await control.all(_RELEASE)


class Watched:
    """A publisher that notes when messages of one topic were acknowledged, by `time.monotonic`."""

    def __init__(self, publisher: Publisher, topic: str) -> None:
        self._publisher = publisher
        self._topic = topic
        self.acknowledged: dict[str, float] = {}

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        receipts = await self._publisher.publish(batch)
        now = time.monotonic()
        for envelope, receipt in zip(batch, receipts, strict=True):
            if receipt.status is PublishStatus.PERMANENT:
                raise RuntimeError(receipt.reason)
            if receipt.status is PublishStatus.ACKNOWLEDGED and envelope.topic == self._topic:
                self.acknowledged.setdefault(envelope.id, now)
        return receipts

    async def probe(self) -> str | None:
        return await self._publisher.probe()

    async def close(self) -> None:
        await self._publisher.close()


def watch(daemons: Daemons, topic: str) -> Watched:
    """Watch what the relay publishes from now on."""
    relay = daemons.relay
    assert relay is not None
    watched = relay._publisher = Watched(relay._publisher, topic)
    return watched
