"""One attempt of a publisher to publish what has no receipt yet, and what its producer reports of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from scoop_outbox.broker import Envelope, wire
from scoop_outbox_kafka.record import Records

_POLL_EVERY = 200


class Reports:
    """What one producer reports: the messages that failed. It says nothing of the others.

    A call for each message that was acknowledged, with an object made for it, is what publishing cost most.
    """

    def __init__(self) -> None:
        """Have heard nothing yet."""
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


class Round:
    """One attempt to publish what has no receipt yet. Used on the thread of the producer.

    Args:
        producer: what publishes; all that it holds is of this round.
        reports: those of this producer.
        records: of this batch.
        deadline: when `publish.timeout` is over, by the monotonic clock.
        on_dead: told why the producer can do no more.

    Attributes:
        handed: what librdkafka has taken.
        failed: what it has reported, and what it did not take.
        unfit: what can never be a record.
        dead: the producer can do no more.
        unknown: of so many messages it is not known what became of them.
    """

    def __init__(
        self,
        producer: Producer,
        reports: Reports,
        records: Records,
        deadline: float,
        on_dead: Callable[[KafkaError], None],
    ) -> None:
        """Have handed nothing over yet."""
        self._producer = producer
        self._reports = reports
        self._records = records
        self._deadline = deadline
        self._on_dead = on_dead
        self.handed: list[int] = []
        self.failed = reports.failed
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

    def publish(self, batch: Sequence[Envelope], waiting: Sequence[int], alone: set[int]) -> None:
        """Publish in order until all is answered, something is refused, or the time is up.

        Args:
            batch: all messages that the publisher was given.
            waiting: the indexes of those to be published, in order.
            alone: the indexes of those that are sent with no other one in flight.
        """
        for indexes, lonely in _stretches(waiting, alone):
            if lonely:
                self._wait()
            if self.broken or (lonely and self._held):
                break
            if not self._hand_over(batch, indexes):
                break
            if lonely:
                self._wait()
        self._wait()
        if self._held:
            self._purge()

    @property
    def _held(self) -> int:
        """How many messages the producer has not been rid of: they wait, or nobody has been told that they failed."""
        return len(self._producer)

    def _hand_over(self, batch: Sequence[Envelope], indexes: Sequence[int]) -> bool:
        """Hand messages to librdkafka in order; answer whether it took all of them but those that it never will."""
        produce, record, handed = self._producer.produce, self._records.of, self.handed
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
                    if time.monotonic() >= self._deadline or self.broken:
                        return False
                    self._poll(0.05)
                except (KafkaException, TypeError, ValueError) as error:
                    if not self._note(index, error):
                        return False
                    break
            if not count % _POLL_EVERY:
                self._poll(0)
                if self.broken:
                    return False
        return True

    def _note(self, index: int, error: Exception) -> bool:
        """Note why librdkafka did not take a message; answer whether that concerns this one alone."""
        if not isinstance(error, KafkaException):
            self.unfit.append((index, f"it cannot be a record of Kafka ({type(error).__name__})"))
            return True
        reason: KafkaError = error.args[0]
        if reason.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            # librdkafka refused this one alone, and sent nothing.
            self.unfit.append((index, f"Kafka's client refuses it: {reason.str()} (message.max.bytes)"))
            return True
        self.failed.append((index, reason))
        return False

    def _poll(self, seconds: float, *, flush: bool = False) -> None:
        """Take what reports there are, waiting for the first; or, to flush, for all, and not for `linger.ms`."""
        try:
            (self._producer.flush if flush else self._producer.poll)(seconds)
        except KafkaException as error:
            # This producer has had it. The reports that it still has are for _purge.
            self._on_dead(error.args[0])
            self.dead = True

    def _wait(self) -> None:
        while self._held and not self.broken and (left := self._deadline - time.monotonic()) > 0:
            self._poll(min(left, 0.1), flush=True)

    def _purge(self) -> None:
        """Let the producer give up what it holds; all that it has not given up by then, it has published."""
        self.dead = True
        self._producer.purge(in_queue=True, in_flight=True)
        until = time.monotonic() + 1
        while self._held and time.monotonic() < until:
            self._poll(0.05)
        self.unknown = self._held


def _stretches(waiting: Sequence[int], alone: set[int]) -> Iterator[tuple[list[int], bool]]:
    """Divide what is to be published into what goes in a row, and what goes alone."""
    for lonely, found in groupby(waiting, alone.__contains__):
        if lonely:
            yield from (([index], True) for index in found)
        else:
            yield list(found), False
