"""A home that is written out: it says on the wire what a test tells it to, and keeps all that it is told."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

from scoop_outbox.broker import plugins
from scoop_outbox.broker.protocol import ACKNOWLEDGED, Consumer, Publisher, Subscription
from scoop_outbox.message import JSON, Envelope, uuid7
from tests.carriers import _OwnTopics
from tests.waiting import until

Json = dict[str, Any]

HOMES = "scoop.homes"
REASON: Json = {"type": "OutOfPaper", "message": "no form left", "source": "order[w]", "stackTrace": [], "causes": []}
SAID_SO: Json = {"type": "ParentSaidSo", "message": None, "source": "order[w]", "stackTrace": [], "causes": [REASON]}


def run_id(message: str, service: str, saga: str) -> str:
    """The id of a run, as docs/protocol.md says that it is computed."""
    digest = hashlib.md5(f"{message}\n{len(service)}\n{service}{saga}".encode(), usedforsecurity=False).hexdigest()
    return str(uuid.UUID(message[:19] + "8" + digest[:15]))


class Counterpart:
    """A home `orders`, with a saga `order` that nobody executes.

    Args:
        url: the broker.
        prefix: what the names of topics and groups begin with, at the broker.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self.id = str(uuid.uuid4())
        self.name = "orders"
        self.control = "scoop.control.orders"
        self.said: list[Json] = []
        self.messages: list[Envelope] = []
        self._broker = _OwnTopics(plugins.load(url), prefix)
        self._listening = Subscription("orders", "orders", (self.control, HOMES, "invoices.write"), "earliest")

    async def __aenter__(self) -> Self:
        await self._broker.prepare(self._listening)
        await self._broker.topology(["parcels.book", "scoop.control.courier"], None, create=True)
        self._publisher: Publisher = await self._broker.publisher("orders")
        self._consumer: Consumer = await self._broker.consumer(self._listening)
        self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._consumer.close()
        await self._publisher.close()

    async def _listen(self) -> None:
        while True:
            batch = await self._consumer.receive(100, 0.1)
            for one in batch:
                assert one.defect is None, one
                if one.envelope.topic == "invoices.write":
                    self.messages.append(one.envelope)
                elif (said := json.loads(one.envelope.body))["from"]["id"] != self.id:
                    self.said.append(said)
            await self._consumer.acknowledge(batch)

    async def publish(self, *batch: Envelope) -> None:
        receipts = await self._publisher.publish(batch)
        assert [one.status for one in receipts] == [ACKNOWLEDGED.status] * len(batch), receipts

    async def say(self, kind: str, topic: str = "scoop.control.courier", **members: Any) -> Envelope:
        """Publish a control message."""
        sender = {"id": self.id, "name": self.name, "replyTo": self.control}
        said = {"version": 1, "kind": kind, "from": sender, **members}
        envelope = Envelope(str(uuid7()), topic, self.id, json.dumps(said).encode(), JSON, {"scoop-home": self.id})
        await self.publish(envelope)
        return envelope

    async def introduce(self) -> None:
        """Announce a saga on `invoices.write`, and wait until both sides know of each other."""
        mine: Json = {"topic": "invoices.write", "pattern": None, "names": [], "service": "billing", "saga": "invoice"}
        await until(lambda: self.kinds("subscriptions"), 30)
        known = {said["from"]["id"]: said["revision"] for said in self.kinds("subscriptions")}
        await self.say("subscriptions", HOMES, revision=1, subscriptions=[mine], known=known)
        await until(lambda: self.kinds("confirmed"), 30)

    def message(self, payload: object, message_id: str | None = None, **headers: str) -> Envelope:
        """A message that a step of `order` has launched, and for which it waits for the saga `book` of the courier."""
        ours = {
            "scoop-home": self.id,
            "scoop-lineage": str(uuid.uuid4()),
            "scoop-expects": json.dumps([["courier", "book"]]),
            "scoop-reply-to": self.control,
        }
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        body = json.dumps(payload).encode()
        return Envelope(message_id or str(uuid7()), "parcels.book", None, body, JSON, {**ours, **given})

    async def launch(self, payload: object, **headers: str) -> str:
        """Publish such a message, and return its id."""
        message = self.message(payload, **headers)
        await self.publish(message)
        return message.id

    async def order(self, order: str, message: str, generation: int, **members: Any) -> None:
        """Give an order about the courier's run for a message."""
        child = {"message": message, "run": run_id(message, "courier", "book"), "service": "courier", "saga": "book"}
        members.setdefault("reason", SAID_SO if order == "roll_back" else REASON)
        await self.say("orders", order=order, children=[{**child, "generation": generation}], **members)

    def kinds(self, kind: str) -> list[Json]:
        return [said for said in self.said if said["kind"] == kind]

    def news(self, message: str) -> list[Json]:
        """What was told of the courier's run for a message, in the order of its generations, each once."""
        of = [child for said in self.kinds("news") for child in said["children"] if child["message"] == message]
        return [one for _, one in sorted({child["generation"]: child for child in of}.items())]

    def states(self, message: str) -> list[str]:
        return [child["state"] for child in self.news(message)]

    async def told(self, message: str, *states: str) -> Json:
        """Wait until just these states were reported of a message, and return the last report."""
        await until(lambda: self.states(message)[: len(states)] == list(states), 30)
        assert self.states(message) == list(states)
        return self.news(message)[-1]

    async def asked(self, order: str) -> Json:
        """Wait for an order, and return it."""

        def found() -> Sequence[Json]:
            return [said for said in self.kinds("orders") if said["order"] == order]

        await until(found, 30)
        (one,) = found()
        return one
