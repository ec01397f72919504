"""Publishes batches with one synchronous producer on a thread of its own.

How the order within a key is kept, whatever fails. A key has one partition, and librdkafka sends the messages of a
partition in the order in which it was given them, one request at a time, and repeats a request until it is answered:
`message.timeout.ms` is 0, so that it gives nothing up by itself. So a message that was acknowledged has no earlier one
of its key that may still come, but for two cases.

The broker refuses a request for good. It refuses all messages in it, though perhaps one of them is too large. With
`enable.gapless.guarantee` this is fatal to the producer: nothing behind it was sent. A new producer is made, and what
was refused is sent again, each message alone, before what comes behind it.

The broker does not answer within `publish.timeout`. Then everything that waits is purged, the producer is thrown away,
and what was not acknowledged failed for now: the relay comes again with all of it, in order. What a frozen broker had
already been sent may be stored late; those are the messages that the next producer begins with, so that whoever knows
messages by their id sees each for the first time in order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException, Producer

from scoop_outbox.broker import ACKNOWLEDGED, Envelope, PublishStatus, Receipt, get_logger
from scoop_outbox_kafka.client import ClientThread, make
from scoop_outbox_kafka.record import Records
from scoop_outbox_kafka.rounds import Reports, Round
from scoop_outbox_kafka.settings import Settings
from scoop_outbox_kafka.topics import OF_TOPIC, Topics
from scoop_outbox_kafka.topology import raise_if_refused

log = get_logger(__name__)

_RENEW_AFTER = 3
_SIGN_OF_LIFE = 4.0

_OF_MESSAGE = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_MSG_SIZE,
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    KafkaError.POLICY_VIOLATION,
}
_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}  # noqa: SLF001 - their public names


class KafkaPublisher:
    """Publishes for one relay.

    Args:
        settings: where, and how.
        name: what the broker's operators see.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        """Make the producer; it connects by itself.

        Raises:
            BrokerError: the settings do not go together.
        """
        self._settings = settings
        self._name = name
        self._topics = Topics(settings.propagation)
        self._problem = ""
        self._told: deque[KafkaError] = deque(maxlen=10)  # what librdkafka said of the connections
        self._unanswered = 0  # how often in a row the broker has not said which topics there are
        self._reports = Reports()
        self._closed = False
        self._producer: Producer | None = self._open()
        self._thread = ClientThread("scoop-outbox-kafka-publisher")

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        """Publish messages in order, and return a receipt for each; see the protocol.

        Raises:
            BrokerError: this process is a fork of the one that opened the publisher.
        """
        return await self._thread.run(self._publish, batch)

    async def probe(self) -> str | None:
        """See whether a broker can be reached; see the protocol.

        Raises:
            BrokerError: it refuses user or certificate, or this process is a fork.
        """
        return await self._thread.run(self._probe)

    async def close(self) -> None:
        """Let go of the connections."""
        if self._thread.is_ours and not self._closed:
            self._closed = True
            await self._thread.run(self._drop)
            self._thread.end()

    def _open(self) -> Producer:
        self._reports = Reports()  # the last producer may still have something to say, of other messages
        return make(Producer, self._settings, {**self._settings.for_producer(self._name), "error_cb": self._on_error})

    def _on_error(self, error: KafkaError) -> None:
        self._told.append(error)
        if not self._problem or error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - its public name
            self._problem = self._settings.redacted(error.str())

    def _on_dead(self, error: KafkaError) -> None:
        self._problem = self._settings.redacted(error.str())

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge(in_queue=True, in_flight=True)

    def _probe(self) -> str | None:
        if self._producer is None:
            self._producer = self._open()
        self._told.clear()
        try:
            self._producer.list_topics(self._topics.to_ask_for, timeout=_SIGN_OF_LIFE)
        except KafkaException as error:
            self._producer.poll(0.1)  # what is behind it is told to _on_error
            raise_if_refused(self._settings, self._told)
            return self._problem or self._settings.redacted(error.args[0].str())
        self._problem = ""
        return None

    def _publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        deadline = time.monotonic() + self._settings.publish_timeout
        if self._producer is None:
            self._producer = self._open()
        receipts: list[Receipt | None] = [None] * len(batch)
        records = Records()
        alone: set[int] = set()
        while (without := [index for index, one in enumerate(receipts) if one is None]) and time.monotonic() < deadline:
            if not self._look_up({batch[index].topic for index in without}, deadline):
                break
            waiting = self._waiting(batch, without, receipts)
            if not waiting:
                break
            done = Round(self._producer, self._reports, records, deadline, self._on_dead)
            done.publish(batch, waiting, alone)
            progress = self._settle(batch, done, receipts, alone)
            if done.broken:
                self._renew(done)
            if not progress:
                break
        left = Receipt(PublishStatus.RETRIABLE, self._problem or "Kafka has not answered")
        return [receipt or left for receipt in receipts]

    def _waiting(self, batch: Sequence[Envelope], without: list[int], receipts: list[Receipt | None]) -> list[int]:
        """Return what is to be published of what has no receipt, after giving the receipts of refused topics."""
        refused = self._topics.refused
        if not refused:
            return without
        for index in without:
            receipts[index] = refused.get(batch[index].topic)
        return [index for index in without if receipts[index] is None]

    def _look_up(self, topics: set[str], deadline: float) -> bool:
        """See whether topics exist that nothing was published on lately; answer whether the broker can be reached."""
        assert self._producer is not None  # noqa: S101 - it was opened
        try:
            self._topics.look_up(self._producer, topics, deadline)
        except KafkaException as error:
            self._unreachable(error.args[0])
            return False
        self._unanswered = 0
        self._problem = ""
        return True

    def _unreachable(self, error: KafkaError) -> None:
        assert self._producer is not None  # noqa: S101 - it was opened
        self._producer.poll(0.1)  # what is behind it is told to _on_error
        self._problem = self._problem or self._settings.redacted(error.str())
        self._unanswered += 1
        if self._unanswered >= _RENEW_AFTER:
            # Seen once after a freeze: a producer that did not find its broker again. It holds nothing now.
            self._unanswered = 0
            self._drop()

    def _settle(self, batch: Sequence[Envelope], done: Round, receipts: list[Receipt | None], alone: set[int]) -> bool:
        """Turn reports into receipts; answer whether that got us any further."""
        acknowledged = done.acknowledged
        progress, refused = bool(acknowledged or done.unfit), False
        for index in acknowledged:
            receipts[index] = ACKNOWLEDGED
        for index, reason in done.unfit:
            receipts[index] = Receipt(PublishStatus.PERMANENT, reason)
        for index, error in done.failed:
            code = error.code()
            if code in OF_TOPIC:
                self._topics.refuse(batch[index].topic, error)
                refused = progress = True
            elif code in _OF_MESSAGE and index in alone:
                size = " (max.message.bytes of the topic)" if code == KafkaError.MSG_SIZE_TOO_LARGE else ""
                receipts[index] = Receipt(PublishStatus.PERMANENT, f"Kafka refuses it: {error.str()}{size}")
                progress = True
            elif code in _OF_MESSAGE:
                alone.add(index)
                progress = True
            elif code not in _PURGED:
                self._problem = self._settings.redacted(error.str())
        if refused:
            # Now: a topic that may be seen and not written to looks well when it is looked up again.
            self._waiting(batch, [index for index, one in enumerate(receipts) if one is None], receipts)
        return progress

    def _renew(self, done: Round) -> None:
        """Throw a producer away with all that it holds, and make a new one."""
        unanswered = done.unknown or sum(error.code() in _PURGED for _, error in done.failed)
        if unanswered:
            log.warning("kafka: no answer, publishing again (%d messages)", unanswered)
        self._drop()
        self._producer = self._open()
        # The broker is asked before it is sent anything, in case it does not answer; and a producer that is connected
        # already gets its id at once, not at its second attempt after half a second.
        self._topics.forget()
