"""Publishes batches with one synchronous producer on a thread of its own.

How the order within a key is kept, whatever fails. A key has one partition, and librdkafka sends the messages of a
partition in the order in which it was given them, one request at a time, and repeats a request until it is answered:
`message.timeout.ms` is 0, so that it gives nothing up by itself. So a message that was acknowledged has no earlier one
of its key that may still come, but for two cases.

The broker refuses a request for good. It refuses all messages in it, though perhaps one of them is too large. With
`enable.gapless.guarantee` this is fatal to the producer: nothing behind it was sent. A new producer is made, and what
was refused is sent again, each message alone, before what comes behind it.

The broker does not answer within our patience. Then everything that waits is purged, the producer is thrown away, and
what was not acknowledged failed for now: the relay comes again with all of it, in order. What a frozen broker had
already been sent may be stored late; those are the messages that the next producer begins with, so that whoever knows
messages by their id sees each for the first time in order.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from scoop_outbox.broker import ACKNOWLEDGED, Envelope, PublishStatus, Receipt, wire
from scoop_outbox_kafka.client import ClientThread, make
from scoop_outbox_kafka.record import Records
from scoop_outbox_kafka.settings import Settings
from scoop_outbox_kafka.topics import OF_TOPIC, Topics
from scoop_outbox_kafka.topology import raise_if_refused

log = logging.getLogger(__name__)

_POLL_EVERY = 200
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


class _Reports:
    """What one producer reports: the messages that failed. It says nothing of the others.

    A call for each message that was acknowledged, with an object made for it, is what publishing cost most.
    """

    def __init__(self) -> None:
        self.failed: list[tuple[int, KafkaError]] = []
        self._callbacks: list[Callable[[KafkaError | None, Message], None]] = []

    def callbacks(self, count: int) -> Sequence[Callable[[KafkaError | None, Message], None]]:
        """Return what librdkafka shall call, while it is polled, when the message at an index has failed."""
        missing = range(len(self._callbacks), count)
        self._callbacks += [partial(self._note, index) for index in missing]
        return self._callbacks

    def _note(self, index: int, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self.failed.append((index, error))


class _Round:
    """One attempt to publish what has no receipt yet.

    Attributes:
        handed: what librdkafka has taken.
        failed: what it has reported, and what it did not take.
        unfit: what can never be a record.
        dead: the producer can do no more.
        unknown: of so many messages it is not known what became of them.
    """

    def __init__(self, failed: list[tuple[int, KafkaError]]) -> None:
        self.handed: list[int] = []
        self.failed = failed
        self.unfit: list[tuple[int, str]] = []
        self.dead = False
        self.unknown = 0

    @property
    def broken(self) -> bool:
        """Whether nothing more is to be handed to this producer."""
        return self.dead or bool(self.failed)

    @property
    def acknowledged(self) -> list[int]:
        """What was handed over and has not failed, once the producer holds nothing any more."""
        if self.unknown:
            return []
        failed = {index for index, _ in self.failed}
        return [index for index in self.handed if index not in failed] if failed else self.handed


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
        self._records = Records()
        self._reports = _Reports()
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
        self._reports = _Reports()  # the last producer may still have something to say, of other messages
        return make(Producer, self._settings, {**self._settings.for_producer(self._name), "error_cb": self._on_error})

    def _on_error(self, error: KafkaError) -> None:
        self._told.append(error)
        if not self._problem or error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - its public name
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
        deadline = time.monotonic() + self._settings.patience
        if self._producer is None:
            self._producer = self._open()
        receipts: list[Receipt | None] = [None] * len(batch)
        self._records = Records()
        alone: set[int] = set()
        while (without := [index for index, one in enumerate(receipts) if one is None]) and time.monotonic() < deadline:
            if not self._look_up({batch[index].topic for index in without}, deadline):
                break
            waiting = self._waiting(batch, without, receipts)
            if not waiting:
                break
            done = self._round(batch, waiting, alone, deadline)
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

    def _round(self, batch: Sequence[Envelope], waiting: Sequence[int], alone: set[int], deadline: float) -> _Round:
        """Publish in order until all is answered, something is refused, or patience ends."""
        current = _Round(self._reports.failed)
        for indexes, lonely in _stretches(waiting, alone):
            if lonely:
                self._wait(current, deadline)
            if current.broken or (lonely and self._held):
                break
            if not self._hand_over(current, batch, indexes, deadline):
                break
            if lonely:
                self._wait(current, deadline)
        self._wait(current, deadline)
        if self._held:
            self._purge(current)
        return current

    @property
    def _held(self) -> int:
        """How many messages the producer has not been rid of: they wait, or nobody has been told that they failed."""
        assert self._producer is not None  # noqa: S101 - it was opened
        return len(self._producer)

    def _hand_over(self, current: _Round, batch: Sequence[Envelope], indexes: Sequence[int], deadline: float) -> bool:
        """Hand messages to librdkafka in order; answer whether it took all of them but those that it never will."""
        assert self._producer is not None  # noqa: S101 - it was opened
        produce, record, handed = self._producer.produce, self._records.of, current.handed
        callbacks = self._reports.callbacks(len(batch))
        for count, index in enumerate(indexes, 1):
            envelope = batch[index]
            topic, key = envelope.topic, envelope.key
            octets = None if key is None else wire.key_octets(key)
            while True:
                try:
                    value, headers = record(envelope)
                    produce(topic, value, octets, on_delivery=callbacks[index], headers=headers)
                    handed.append(index)
                    break
                except BufferError:
                    # Its queue is full. The same message again, or a later one would overtake it.
                    if time.monotonic() >= deadline or current.broken:
                        return False
                    self._poll(current, 0.05)
                except (KafkaException, TypeError, ValueError) as error:
                    if not self._note(current, index, error):
                        return False
                    break
            if not count % _POLL_EVERY:
                self._poll(current, 0)
                if current.broken:
                    return False
        return True

    @staticmethod
    def _note(current: _Round, index: int, error: Exception) -> bool:
        """Note why librdkafka did not take a message; answer whether that concerns this one alone."""
        if not isinstance(error, KafkaException):
            current.unfit.append((index, f"it cannot be a record of Kafka ({type(error).__name__})"))
            return True
        reason: KafkaError = error.args[0]
        if reason.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            # librdkafka refused this one alone, and sent nothing.
            current.unfit.append((index, f"Kafka's client refuses it: {reason.str()} (message.max.bytes)"))
            return True
        current.failed.append((index, reason))
        return False

    def _poll(self, current: _Round, seconds: float, *, flush: bool = False) -> None:
        """Take what reports there are, waiting for the first; or, to flush, for all, and not for `linger.ms`."""
        assert self._producer is not None  # noqa: S101 - it was opened
        try:
            (self._producer.flush if flush else self._producer.poll)(seconds)
        except KafkaException as error:
            # This producer has had it. The reports that it still has are for _purge.
            self._problem = self._settings.redacted(error.args[0].str())
            current.dead = True

    def _wait(self, current: _Round, deadline: float) -> None:
        while self._held and not current.broken and (left := deadline - time.monotonic()) > 0:
            self._poll(current, min(left, 0.1), flush=True)

    def _purge(self, current: _Round) -> None:
        """Let the producer give up what it holds; all that it has not given up by then, it has published."""
        assert self._producer is not None  # noqa: S101 - it was opened
        current.dead = True
        self._producer.purge(in_queue=True, in_flight=True)
        until = time.monotonic() + 1
        while self._held and time.monotonic() < until:
            self._poll(current, 0.05)
        current.unknown = self._held

    def _settle(self, batch: Sequence[Envelope], done: _Round, receipts: list[Receipt | None], alone: set[int]) -> bool:
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

    def _renew(self, done: _Round) -> None:
        """Throw a producer away with all that it holds, and make a new one."""
        unanswered = done.unknown or sum(error.code() in _PURGED for _, error in done.failed)
        if unanswered:
            log.warning("Kafka has not answered for %d messages; they are published again", unanswered)
        self._drop()
        self._producer = self._open()
        # The broker is asked before it is sent anything, in case it does not answer; and a producer that is connected
        # already gets its id at once, not at its second attempt after half a second.
        self._topics.forget()


def _stretches(waiting: Sequence[int], alone: set[int]) -> Iterator[tuple[list[int], bool]]:
    """Divide what is to be published into what goes in a row, and what goes alone."""
    for lonely, found in groupby(waiting, alone.__contains__):
        if lonely:
            yield from (([index], True) for index in found)
        else:
            yield list(found), False
