"""A process that receives, acknowledges some of it, says so, and waits to be killed."""

from __future__ import annotations

import asyncio
import json
import sys

from scoop_outbox.broker import plugins
from scoop_outbox.broker.protocol import Delivery, Subscription


async def main(facts: str) -> None:
    """Do what the facts say: see `Receiving`."""
    told = json.loads(facts)
    subscription = Subscription(**{**told["subscription"], "topics": tuple(told["subscription"]["topics"])})
    consumer = await plugins.load(told["url"], told["settings"]).consumer(subscription)
    got: list[Delivery] = []
    while len(got) < told["receive"]:
        got += await consumer.receive(100, 0.5)
    await consumer.acknowledge(got[: told["acknowledge"]])
    sys.stdout.write("received\n")
    sys.stdout.flush()
    while True:
        await consumer.receive(100, 0.5)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
