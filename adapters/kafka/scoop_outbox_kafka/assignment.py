"""Which partitions a consumer has, and how far in them messages are acknowledged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from confluent_kafka import Consumer, TopicPartition

from scoop_outbox_kafka.record import Place
from scoop_outbox_kafka.start import Part


class Assignment:
    """The partitions of one consumer. An offset is that of the next message, as Kafka counts.

    Offsets are those that were received, plus one: they have gaps, where a transaction ended or a topic was compacted.

    Attributes:
        paused: whether no messages are to be taken from them; set before `apply_pause`.
    """

    def __init__(self) -> None:
        """Have nothing yet."""
        self.paused = False
        self._generations: dict[Part, int] = {}
        self._generation = 0
        self._acknowledged: dict[Part, tuple[int, int]] = {}
        self._committed: dict[Part, int] = {}

    def __contains__(self, part: Part) -> bool:
        return part in self._generations

    def gain(self, parts: Iterable[Part]) -> None:
        """Have some more."""
        self._generation += 1
        for part in parts:
            self._generations[part] = self._generation

    def lose(self, parts: Iterable[Part]) -> None:
        """Have some no longer; what was acknowledged there and not committed is forgotten."""
        for part in parts:
            self._generations.pop(part, None)
            self._acknowledged.pop(part, None)
            self._committed.pop(part, None)

    def clear(self) -> None:
        """Have nothing."""
        self.lose(list(self._generations))

    def generation(self, part: Part) -> int:
        """Return which assignment of a partition this is; 0 if it is not here."""
        return self._generations.get(part, 0)

    def acknowledge(self, places: Iterable[Place]) -> None:
        """Note that messages are stored. Those of partitions that were lost since, or lost and gained, are left out."""
        for place in places:
            part = place.topic, place.partition
            if self._generations.get(part) == place.generation:
                self._acknowledged[part] = place.offset + 1, place.epoch

    def uncommitted(self, parts: Iterable[Part] | None = None) -> list[TopicPartition]:
        """Return the offsets that the broker has not been told, or has not confirmed."""
        chosen = self._acknowledged if parts is None else [part for part in parts if part in self._acknowledged]
        return [
            _offset(part, *self._acknowledged[part])
            for part in chosen
            if self._committed.get(part) != self._acknowledged[part][0]
        ]

    def told(self, offsets: Sequence[TopicPartition]) -> None:
        """Note what the broker has been told."""
        for one in offsets:
            self._committed[one.topic, one.partition] = one.offset

    def doubt(self, offsets: Sequence[TopicPartition]) -> None:
        """Note that the broker has refused what it was told: it is told again."""
        for one in offsets:
            self._committed.pop((one.topic, one.partition), None)

    def apply_pause(self, client: Consumer) -> None:
        """Let a client take no messages from the partitions that it has, or take them, as `paused` says."""
        parts = client.assignment()
        if parts:
            (client.pause if self.paused else client.resume)(parts)


def _offset(part: Part, offset: int, epoch: int) -> TopicPartition:
    if epoch < 0:
        return TopicPartition(*part, offset)
    # With the epoch of its leader, the broker notices when what was read has been cut off since.
    return TopicPartition(*part, offset, leader_epoch=epoch)
