"""Announcer: makes a service's subscriptions known, once what is launched for them can reach it.

A service that was announced first and asked its broker afterwards was waited for though its queue did not exist, its
start was refused, or it began behind the message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import Broker, Subscription
from scoop_outbox.core.plans.homes import Identity, announce_home, name_home
from scoop_outbox.core.plans.subscriptions import Spelling, TakenOver, announce, read_subscribed
from scoop_outbox.core.statement import Plan
from scoop_outbox.saga import Saga
from scoop_outbox.store.async_driver import AsyncDriver

log = get_logger(__name__)


class Announcer:
    """Announces one service.

    Args:
        broker: who brings it its messages; None is the built-in one, with which it can always receive.
        subscription: what it receives.
        sagas: its sagas by name.
        home: the name under which its home cooperates with others; None is the one that it has, if it has one.

    Attributes:
        names: of these sagas.
        done: whether it has been announced.
        problem: what kept its broker from being asked when that was last tried; None when nothing did.
    """

    def __init__(
        self, broker: Broker | None, subscription: Subscription, sagas: Mapping[str, Saga], home: str | None = None
    ) -> None:
        """Announce nothing yet."""
        self._home = home
        self._broker = broker
        self._subscription = subscription
        self._sagas: Sequence[Saga] = list(sagas.values())
        self._spellings = {} if broker is None else spellings(broker, subscription.topics)
        self.names = frozenset(sagas)
        self.done = not sagas and home is None
        self.problem: str | None = None

    async def announce(self, driver: AsyncDriver) -> bool:
        """Announce the service if it can receive, and answer whether it has been announced now or before.

        It has not when the broker cannot be asked: then it is tried again later.

        Raises:
            BrokerError: the service will never receive like this; what is wrong, and how to mend it.
        """
        if self.done:
            return True
        identity = await driver.run(name_home(self._home))
        self.problem = await self.prepare(identity)
        if self.problem is not None:
            return False
        note(self._subscription.service, await driver.run(self.plan()))
        self.done = True
        return True

    async def prepare(self, identity: Identity) -> str | None:
        """See to it that messages for the service, and what other homes say, are kept at the broker from now on.

        Returns:
            None when it is so; else what keeps the broker from being asked.

        Raises:
            BrokerError: it will never be so; what is wrong, and how to mend it.
        """
        if self._broker is None:
            return None
        problem = None
        if self._sagas:
            problem = await self._broker.prepare(self._subscription)
        if problem is None and identity.name is not None:
            problem = await self._broker.prepare(control_subscription(identity))
        return problem

    async def is_known(self, driver: AsyncDriver) -> bool:
        """Tell whether the home knows the service as it is now, because it was announced before."""
        return (await driver.run(self.look())) >= self.names

    def look(self) -> Plan[frozenset[str]]:
        """Return the plan that reads which of the sagas are known already."""
        return read_subscribed(self._subscription.service, self._sagas)

    def plan(self) -> Plan[list[TakenOver]]:
        """Return the plan that announces the service, whatever its broker says."""
        via_broker = self._broker is not None
        taken_over: list[TakenOver] = []
        if self._sagas:
            service = self._subscription.service
            taken_over = yield from announce(service, self._sagas, self._spellings, via_broker=via_broker)
        if via_broker:  # the built-in broker reaches no other home
            yield from announce_home(begins=True)
        return taken_over

    def listening(self, topic: str) -> list[str]:
        """Return the names of the sagas that listen on a topic."""
        return [
            saga.name for saga in self._sagas if self._spellings.get(saga.topic, Spelling()).means(saga.topic, topic)
        ]


def control_subscription(identity: Identity) -> Subscription:
    """Return what a home receives on its control channel: what is said to it, and to all."""
    channel = identity.control_topic
    assert channel is not None  # noqa: S101 - who has no name is told nothing
    return Subscription(f"home {identity.name}", channel, (channel, identity.homes_topic), "earliest")


def spellings(broker: Broker, topics: Iterable[str]) -> dict[str, Spelling]:
    """Return how topics may be written at a broker."""
    return {topic: Spelling(tuple(broker.names(topic)), broker.pattern(topic)) for topic in topics}


def note(service: str, taken_over: Sequence[TakenOver]) -> None:
    """Say what sagas have taken over from names that they had before."""
    for one in taken_over:
        log.info(
            "saga: renamed (service %s, saga %s, formerly %s: took over %d runs under way and %d awaited messages)",
            *(service, one.saga, one.former, one.runs, one.waiting),
            extra={"service": service, "saga": one.saga, "former_saga": one.former},
        )
