"""The seam to a broker: narrow, and with `message`, `headers` and `errors` all that an adapter imports of us.

docs/writing-an-adapter.md tells what an adapter has to do; `scoop_outbox.testing.contract` tests that it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from scoop_outbox.message import Envelope


class Feature(Enum):
    """What a broker can do; the contract suite tests what is declared, and that the rest is refused in words."""

    ORDER_PER_KEY = auto()  # messages of a key come in the order of their publishing, however many consumers there are
    KNOWS_TOPICS = auto()  # a message for a topic that does not exist, or that nobody can get, fails for good
    LIMITS_SIZE = auto()  # a message that is too large fails for good
    REBALANCES = auto()  # consumers of a group are assigned parts of a topic, and are told when that changes
    STARTS_ANYWHERE = auto()  # a topic keeps what was published before a group came: where to begin must be said


class PublishStatus(Enum):
    """What a broker says of one message."""

    ACKNOWLEDGED = auto()  # it is the broker's now, durably
    RETRIABLE = auto()  # the same message may go through later: no connection, no leader, no room
    PERMANENT = auto()  # it will never go through: too large, no such topic, not permitted


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the broker says of one message, with the broker's reason when it failed."""

    status: PublishStatus
    reason: str = ""


ACKNOWLEDGED = Receipt(PublishStatus.ACKNOWLEDGED)


class Publisher(Protocol):
    """Publishes. One relay uses one publisher, one batch at a time."""

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        """Publish messages in order, and return a receipt for each, in the same order.

        A message that fails for now takes the later messages of its key with it: they are not published, and get
        the same status, so that the order within a key is kept when the relay tries again. A message may reach the
        broker more than once; it must never be acknowledged without having reached it. Returns within about ten
        seconds even if the broker does not answer: what is still unanswered failed for now.
        """

    async def probe(self) -> str | None:
        """Ask the broker for a sign of life; return what keeps it from taking messages now, or None if nothing does.

        Called while nothing is being published. Returns within about five seconds even if the broker does not answer.

        Raises:
            BrokerError: it will never take anything like this; what is wrong, and how to mend it.
        """

    async def close(self) -> None:
        """Let go of connections. What was not acknowledged will be published again."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that a broker handed over and has not yet been told about.

    Attributes:
        envelope: the message, as well as it could be read.
        position: where it stood, for people: `orders[3]@1742`.
        defect: why it cannot be taken in; None when it can.
        tag: whatever the adapter needs to acknowledge it.
    """

    envelope: Envelope
    position: str
    defect: str | None = None
    tag: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a service wants to receive.

    Attributes:
        service: who asks; names the client to the broker's operators.
        group: the consumer group, or queue. Consumers of one group share its messages; each group gets every message.
        topics: whose messages.
        start: where a group begins that has never been here: `earliest`, `latest`, a time in ISO 8601, or
            `group:NAME`, at the offsets of another group. None leaves it to the broker, which may refuse.
    """

    service: str
    group: str
    topics: tuple[str, ...]
    start: str | None = None


class Consumer(Protocol):
    """Receives for one service. One intake uses one consumer, one call at a time."""

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """Return up to `limit` messages, in the order in which they came, waiting at most `wait` seconds for the first.

        Connects by itself, and again when the connection was lost.

        Raises:
            BrokerError: it will never work like this; what is wrong, and how to mend it.
        """

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Tell the broker that these are stored durably and need not come again.

        They are what `receive` returned, in that order, none left out. What the broker meanwhile gave to others is
        passed over: they get it again, and taking it in again changes nothing.
        """

    async def pause(self) -> None:
        """Take no more from the broker, and stay a member of the group. `receive` may still return what was here."""

    async def resume(self) -> None:
        """Go on after `pause`."""

    async def close(self) -> None:
        """Leave; what was not acknowledged is delivered again, to this service."""

    @property
    def problem(self) -> str | None:
        """What keeps this consumer from receiving just now; None when all is well."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A thing that has to exist at the broker: a topic, an exchange, a queue, a binding.

    Attributes:
        text: what it is, for people.
        exists: whether it does; None when the broker cannot be asked.
    """

    text: str
    exists: bool | None


class Broker(Protocol):
    """What an adapter's entry point returns, called with a URL and the user's settings.

    The entry point raises `BrokerError` when URL or settings are wrong, and opens nothing.
    """

    @property
    def features(self) -> frozenset[Feature]:
        """What this broker can do."""

    @property
    def most_bytes(self) -> int | None:
        """The most bytes of a body that its client sends, where that is known without asking the broker."""

    def names(self, topic: str) -> Sequence[str]:
        """Return the other ways in which a topic can be written: what is launched under one is for its sagas, too."""

    def published_as(self, topic: str) -> str:
        """Return what the publisher writes into the header `scoop-topic` of messages on a topic: it may be signed."""

    def pattern(self, topic: str) -> str | None:
        """Return the regular expression of all topics whose messages a saga on `topic` gets.

        None when it is only that topic, and its other names: expressions are slower to compare, at each launch.

        It is read by Python and by Postgres, and matches whole topics: write `^` in front, `$` behind, and nothing that
        either of them does not know. A step that launches a message on such a topic waits for the saga, so it must
        not match what the broker does not bring. Messages come in under the topic on which they were published.
        """

    async def publisher(self, name: str) -> Publisher:
        """Open a publisher; `name` is what the broker's operators see.

        Raises:
            BrokerError: the settings are wrong; a broker that is merely down is no error here.
        """

    async def consumer(self, subscription: Subscription) -> Consumer:
        """Open a consumer.

        Raises:
            BrokerError: the settings are wrong; a broker that is merely down is no error here.
        """

    async def prepare(self, subscription: Subscription) -> str | None:
        """See to it that what is published from now on reaches the group, also while none of its members is there.

        A service is announced, and waited for, when this has returned None. So where the group begins, if it has never
        been on a topic, has to be laid down at the broker when this returns; where it is already, it stays. May be
        called at any time: while members of the group are at work, and by several processes at once.

        Returns:
            None when it is so now; else what keeps the broker from being asked, which is tried again later.

        Raises:
            BrokerError: it will never be so: a topic or queue is missing, something is not permitted, or no start is
                given and one is needed; what is wrong, and how to mend it.
        """

    async def topology(
        self, topics: Sequence[str], subscription: Subscription | None, *, create: bool
    ) -> list[Resource]:
        """Return what has to exist to publish on `topics` and to receive a subscription, and create what does not.

        Args:
            topics: what is published on.
            subscription: what is received, if anything.
            create: whether to create what is missing; then `exists` tells what was there before.

        Raises:
            BrokerError: the broker cannot be reached, does not permit it, or has something of the name that is
                different.
        """
