"""Receives for one service, as one member of its group at a time, with one client on a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from confluent_kafka import KafkaError, Message

from scoop_outbox.broker import BrokerError, Delivery, Subscription, get_logger
from scoop_outbox_kafka.assignment import Assignment
from scoop_outbox_kafka.client import ClientThread
from scoop_outbox_kafka.membership import Membership
from scoop_outbox_kafka.problems import Problems
from scoop_outbox_kafka.record import delivery_of
from scoop_outbox_kafka.settings import Settings
from scoop_outbox_kafka.start import missing_topic, not_permitted_group, not_permitted_topic, parse_start

log = get_logger(__name__)

_GOODBYE = 10.0


class KafkaConsumer:
    """Receives for one service.

    The event loop calls what is public. All that concerns the client is done on the client's thread: there librdkafka
    calls back, while it is polled, into the membership and the problems.

    Args:
        settings: where, and how.
        subscription: what.
    """

    def __init__(self, settings: Settings, subscription: Subscription) -> None:
        """Make a consumer that is no member of its group yet.

        Raises:
            BrokerError: the settings do not go together, or the start cannot be understood.
        """
        parse_start(subscription.start)
        self._settings = settings
        self._subscription = subscription
        self._assignment = Assignment()
        self._problems = Problems(settings)
        self._ready: list[Delivery] = []
        self._closed = False
        self._error = ""
        self._membership: Membership | None = self._new_membership()
        self._thread = ClientThread("scoop-outbox-kafka-consumer")

    @property
    def problem(self) -> str | None:
        """What keeps this consumer from receiving just now."""
        group, membership, found = self._subscription.group, self._membership, self._problems.of_topics
        if membership is None or not membership.is_in_group:
            found.append(f"it is not in the group {group} yet")
        if (outage := self._problems.outage) is not None:
            found.insert(0, outage)
        elif membership is None or not membership.is_joined:
            found.insert(0, f"it has not joined the group {group} yet")
        return "; ".join(found) or None

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """Return messages as they come; see the protocol.

        Raises:
            BrokerError: a topic, a permission or the start is missing, or this process is a fork.
        """
        await self._thread.run(self._receive, limit, wait)
        # What was read when somebody stopped waiting for it is still here: read once, librdkafka has it no more.
        found, self._ready = self._ready[:limit], self._ready[limit:]
        return found

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Commit offsets, without waiting for the broker's word; see the protocol."""
        await self._thread.run(self._acknowledge, deliveries)

    async def pause(self) -> None:
        """Take no more, and stay a member of the group."""
        await self._thread.run(self._set_paused, True)  # noqa: FBT003 - the only argument there is

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self._thread.run(self._set_paused, False)  # noqa: FBT003 - as in pause

    async def close(self) -> None:
        """Commit what is acknowledged, and leave the group; a broker that does not answer is not waited for long."""
        if not self._thread.is_ours or self._closed:
            return
        self._closed = True
        try:
            await asyncio.wait_for(self._thread.run(self._close), _GOODBYE)
        except TimeoutError:
            log.warning(
                "kafka: leaving not confirmed, the group will time this member out (group %s)",
                self._subscription.group,
                extra={"group": self._subscription.group},
            )
        self._thread.end()

    def _new_membership(self) -> Membership:
        return Membership(self._settings, self._subscription, self._assignment, self._problems)

    # Everything below runs on the client's thread.

    def _receive(self, limit: int, wait: float) -> None:
        if self._ready:
            return
        if self._membership is None:
            self._membership = self._new_membership()
        membership = self._membership
        if not membership.is_joined and not membership.join(wait):
            return
        self._sort(membership.poll(limit, wait))
        if self._membership is membership:  # a fatal error has ended it otherwise
            membership.pause_if_due()
        if self._error and not self._ready:
            error, self._error = self._error, ""
            raise BrokerError(error)

    def _sort(self, messages: Sequence[Message]) -> None:
        """Keep what can be delivered, and note what is wrong."""
        for message in messages:
            error = message.error()
            if error is not None:
                self._on_message_error(message, error)
                continue
            part = str(message.topic()), int(message.partition() or 0)
            self._ready.append(delivery_of(message, self._assignment.generation(part), self._settings.identity_header))
            if self._problems.any:
                self._problems.reached()
                self._problems.clear_topic(part[0])

    def _on_message_error(self, message: Message, error: KafkaError) -> None:
        code, topic = error.code(), str(message.topic())
        if code == KafkaError._FATAL:  # noqa: SLF001 - its public name; only what error_cb gets says so by fatal()
            self._error = self._settings.redacted(f"Kafka has shut this consumer out: {error.str()}")
            self._abandon()
        elif code == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001 - its public name
            if self._membership is not None:
                self._membership.reposition((topic, int(message.partition() or 0)))
        elif code == KafkaError.GROUP_AUTHORIZATION_FAILED:
            self._error = not_permitted_group(self._subscription.group)
        elif code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):  # noqa: SLF001 - its public name
            self._problems.note_topic(topic, missing_topic(topic))
        elif code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self._problems.note_topic(topic, not_permitted_topic(topic))
        elif code != KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
            log.warning("kafka: client error (%s)", self._settings.redacted(error.str()))

    def _acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        if self._membership is not None:
            self._membership.acknowledge(one.tag for one in deliveries)

    def _set_paused(self, paused: bool) -> None:  # noqa: FBT001 - there is no third
        self._assignment.paused = paused
        if self._membership is not None:
            self._membership.apply_pause()

    def _close(self) -> None:
        membership, self._membership = self._membership, None
        if membership is not None:
            membership.leave()

    def _abandon(self) -> None:
        """Give a membership up; the next `receive` begins a new one."""
        membership, self._membership = self._membership, None
        if membership is not None:
            membership.abandon()
