"""Receives for one service, as one member of its group, with one consumer on a thread of its own.

Everything that librdkafka calls back (rebalances, commits, errors) it calls on that thread, while it is polled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from scoop_outbox.broker import BrokerError, Delivery, Subscription
from scoop_outbox_kafka.assignment import Assignment
from scoop_outbox_kafka.client import ClientThread, make
from scoop_outbox_kafka.record import delivery_of
from scoop_outbox_kafka.settings import Settings
from scoop_outbox_kafka.start import (
    Part,
    bounds,
    committed,
    explain_silence,
    missing_topic,
    not_permitted_group,
    not_permitted_topic,
    parse_start,
    starts,
    unstarted,
)

log = logging.getLogger(__name__)

_ANSWER = 5.0
_LOOK_AGAIN = 1.0
_GOODBYE = 10.0

# Under their public names.
_CAUSES = {KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError._RESOLVE}  # noqa: SLF001
_UNREACHABLE = {KafkaError._ALL_BROKERS_DOWN, *_CAUSES}  # noqa: SLF001


class KafkaConsumer:
    """Receives for one service.

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
        self._wanted = subscription
        self._configuration = settings.for_consumer(f"scoop-{subscription.service}", subscription.group)
        strategies = str(self._configuration.get("partition.assignment.strategy", "cooperative"))
        self._incremental = "cooperative" in strategies
        self._assignment = Assignment()
        self._starts: dict[Part, int] = {}
        self._lost: set[Part] = set()
        self._ready: list[Delivery] = []
        self._closed = False
        self._paused = False
        self._joined = False
        self._home = False
        self._unsettled = False
        self._error = ""
        self._since: datetime | None = None
        self._why = ""
        self._topics: dict[str, str] = {}
        self._look_at = 0.0
        self._retry_at = 0.0
        self._consumer: Consumer | None = self._open()
        self._thread = ClientThread("scoop-outbox-kafka-consumer")

    @property
    def problem(self) -> str | None:
        """What keeps this consumer from receiving just now."""
        found = list(self._topics.values())
        if not self._home:
            found.append(f"it is not in the group {self._wanted.group} yet")
        if (since := self._since) is not None:
            found.insert(0, f"no broker can be reached since {since:%Y-%m-%d %H:%M:%S} UTC: {self._why}")
        elif not self._joined:
            found.insert(0, f"it has not joined the group {self._wanted.group} yet")
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
            log.warning("Kafka does not answer; the group %s notices by itself that we left", self._wanted.group)
        self._thread.end()

    def _open(self) -> Consumer:
        callbacks = {"error_cb": self._on_error, "on_commit": self._on_commit}
        return make(Consumer, self._settings, {**self._configuration, **callbacks})

    # Everything below runs on the consumer's thread.

    def _receive(self, limit: int, wait: float) -> None:
        if self._ready:
            return
        if self._consumer is None:
            self._consumer = self._open()
        consumer = self._consumer
        if not self._joined and not self._join(consumer, wait):
            return
        if self._since is not None:
            self._look(consumer)
        self._tell_again(consumer)
        for part in list(self._lost):
            self._reposition(consumer, part)
        # Not consume() alone: it waits until it has all that it was asked for, or the whole time.
        first = consumer.poll(wait)
        if first is not None:
            self._sort([first, *consumer.consume(limit - 1, 0)] if limit > 1 else [first])
        if self._unsettled:
            self._unsettled = False
            self._apply_pause(consumer)
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
            self._since = None
            if self._topics:
                self._topics.pop(part[0], None)

    def _join(self, consumer: Consumer, wait: float) -> bool:
        """Lay down where the group begins, and join it; answer whether the broker could be asked.

        A group that has members takes no offsets from others. Then a member commits the start when it is assigned
        the partition; until then it is kept here.
        """
        group = self._wanted.group
        timeout = min(max(wait, 2.0), _ANSWER)
        try:
            fresh = unstarted(consumer, group, self._wanted.topics, timeout)
            settings, configuration = self._settings, self._configuration
            self._starts = starts(consumer, settings, configuration, group, fresh, self._wanted.start, timeout)
        except KafkaException as error:
            consumer.poll(0.1)  # what is behind it is told to _on_error
            self._unreachable(error.args[0])
            explain_silence(error.args[0], self._settings, group, timeout)
            return False
        if self._starts:
            log.info(
                "the group %s begins on %s at %s", group, sorted({topic for topic, _ in fresh}), self._wanted.start
            )
            if self._commit(consumer, [TopicPartition(*part, offset) for part, offset in self._starts.items()]):
                # Kept no longer: a topic that is created anew begins at its beginning.
                self._starts = {}
        consumer.subscribe(
            list(self._wanted.topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        self._joined = True
        # With the newer protocol nobody says so to a member that gets nothing.
        self._home = str(self._configuration.get("group.protocol", "")).lower() == "consumer"
        self._since = None
        return True

    def _commit(self, consumer: Consumer, offsets: list[TopicPartition]) -> bool:
        """Commit and wait for the broker's word; answer whether it was yes."""
        try:
            answers = consumer.commit(offsets=offsets, asynchronous=False) or []
        except KafkaException as error:
            log.info("the group %s has not committed: %s", self._wanted.group, error.args[0].str())
            return False
        return all(one.error is None for one in answers)

    def _reposition(self, consumer: Consumer, part: Part) -> None:
        """Go on in a partition for which the group has no offset, or one that the topic does not have."""
        group, (topic, partition) = self._wanted.group, part
        if part not in self._assignment:
            self._lost.discard(part)
            return
        ours = [other for other in self._starts if other[0] == topic and other in self._assignment]
        try:
            known = committed(consumer, group, {part, *ours}, _ANSWER)
            low, high = bounds(consumer, part, _ANSWER)
        except KafkaException as error:
            self._unreachable(error.args[0])
            return
        at = known.get(part)
        # A partition that is new has nothing older than the group: it begins at its beginning.
        wanted = self._starts.get(part, low) if at is None else at
        target = wanted if low <= wanted <= high else low
        # All of the topic at once, and before anything is read: if this process dies now, the next one must not decide
        # anew, on what is there by then, nor take a partition without an offset for one that is new. But for those
        # where a member has got on meanwhile: they would begin again.
        begun = {other: self._starts[other] for other in ours if other not in known} | {part: target}
        if not self._commit(consumer, [TopicPartition(*each, offset) for each, offset in begun.items()]):
            return
        for other in ours:
            del self._starts[other]
        try:
            self._assign(consumer, TopicPartition(topic, partition, target))
        except KafkaException as error:
            log.info("cannot yet go on in %s[%d]: %s", topic, partition, error.args[0].str())
            return
        self._lost.discard(part)
        if at is not None and at != target:
            log.error(
                "the group %s was at offset %d of %s[%d], which is not there (retention, or the topic was made anew): "
                "it goes on with the oldest message that is, at %d",
                group,
                at,
                topic,
                partition,
                low,
            )

    def _assign(self, consumer: Consumer, place: TopicPartition) -> None:
        """Begin anew in one partition. A seek would be refused: librdkafka reads nothing in it any more."""
        if self._incremental:
            consumer.incremental_unassign([place])
            consumer.incremental_assign([place])
        else:
            others = [
                one for one in consumer.assignment() if (one.topic, one.partition) != (place.topic, place.partition)
            ]
            # A position that is none yet is the committed offset, as in any assignment.
            consumer.assign([*(consumer.position(others) if others else ()), place])
        if self._paused:
            self._apply_pause(consumer)

    def _acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self._assignment.acknowledge(one.tag for one in deliveries)
        if self._consumer is not None:
            self._tell(self._consumer)

    def _tell(self, consumer: Consumer) -> None:
        offsets = self._assignment.uncommitted()
        if not offsets:
            return
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.info("offsets are committed later: %s", error.args[0].str())
            return
        self._assignment.told(offsets)

    def _tell_again(self, consumer: Consumer) -> None:
        """Commit once more what the broker has not taken."""
        if time.monotonic() >= self._retry_at:
            self._retry_at = time.monotonic() + _LOOK_AGAIN
            self._tell(consumer)

    def _set_paused(self, paused: bool) -> None:  # noqa: FBT001 - there is no third
        self._paused = paused
        if self._consumer is not None:
            self._apply_pause(self._consumer)

    def _apply_pause(self, consumer: Consumer) -> None:
        parts = consumer.assignment()
        if parts:
            (consumer.pause if self._paused else consumer.resume)(parts)

    def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        offsets = self._assignment.uncommitted()
        if offsets and self._since is None:
            self._commit(consumer, offsets)
        self._assignment.clear()
        # Without this the group would miss us for the whole session timeout.
        consumer.close()

    def _on_assign(self, _: Consumer, parts: list[TopicPartition]) -> None:
        self._home = True
        self._assignment.gain((one.topic, one.partition) for one in parts)
        for one in parts:
            self._topics.pop(one.topic, None)
        # An assignment begins unpaused. It takes effect when this returns; a message may come through until then.
        self._unsettled = self._paused and bool(parts)

    def _on_revoke(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        gone = [(one.topic, one.partition) for one in parts]
        offsets = self._assignment.uncommitted(gone)
        if offsets:
            self._commit(consumer, offsets)
        self._forget(gone)

    def _on_lost(self, _: Consumer, parts: list[TopicPartition]) -> None:
        # Others have them already: a commit would be theirs to undo.
        self._home = False
        self._forget([(one.topic, one.partition) for one in parts])

    def _forget(self, parts: list[Part]) -> None:
        self._assignment.lose(parts)
        self._lost -= set(parts)

    def _on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        refused = offsets if error is not None else [one for one in offsets if one.error is not None]
        if refused:
            self._assignment.doubt(refused)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in _UNREACHABLE:
            self._unreachable(error)

    def _unreachable(self, error: KafkaError) -> None:
        if self._since is None:
            self._since = datetime.now(UTC)
            self._why = ""
        if not self._why or error.code() in _CAUSES:
            self._why = self._settings.redacted(error.str())

    def _look(self, consumer: Consumer) -> None:
        """See whether a broker can be reached again; librdkafka tells only when none can."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_AGAIN
        try:
            consumer.list_topics(self._wanted.topics[0], timeout=0.3)
        except KafkaException:
            return
        self._since = None

    def _on_message_error(self, message: Message, error: KafkaError) -> None:
        code, topic = error.code(), str(message.topic())
        if code == KafkaError._FATAL:  # noqa: SLF001 - its public name; only what error_cb gets says so by fatal()
            self._error = self._settings.redacted(f"Kafka has shut this consumer out: {error.str()}")
            self._leave()
        elif code == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001 - its public name
            self._lost.add((topic, int(message.partition() or 0)))
        elif code == KafkaError.GROUP_AUTHORIZATION_FAILED:
            self._error = not_permitted_group(self._wanted.group)
        elif code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):  # noqa: SLF001 - its public name
            self._topics[topic] = missing_topic(topic)
        elif code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self._topics[topic] = not_permitted_topic(topic)
        elif code != KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
            log.warning("Kafka: %s", self._settings.redacted(error.str()))

    def _leave(self) -> None:
        """Throw a consumer away; the next `receive` makes a new one."""
        consumer, self._consumer = self._consumer, None
        self._joined = self._home = False
        self._assignment.clear()
        self._lost.clear()
        if consumer is not None:
            consumer.close()
