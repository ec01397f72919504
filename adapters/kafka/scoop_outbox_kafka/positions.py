"""Where a member goes on in partitions for which its group has no offset, or one that is not there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition

from scoop_outbox.broker import get_logger
from scoop_outbox_kafka.assignment import Assignment
from scoop_outbox_kafka.problems import Problems
from scoop_outbox_kafka.start import ANSWER, Part, bounds, commit, committed

log = get_logger(__name__)


class Positions:
    """The positions of one member that are to be found anew. Used on the thread of its client.

    Args:
        group: of which it is a member.
        assignment: the partitions that it has.
        problems: where it is noted that a broker does not answer.
        incremental: whether partitions come and go one by one, as with the cooperative strategies.
    """

    def __init__(self, group: str, assignment: Assignment, problems: Problems, *, incremental: bool) -> None:
        """Have lost none yet."""
        self._group = group
        self._assignment = assignment
        self._problems = problems
        self._incremental = incremental
        self._starts: dict[Part, int] = {}
        self._lost: set[Part] = set()

    def begin(self, starts: Mapping[Part, int]) -> None:
        """Keep where the group begins, until this member or another one may commit it."""
        self._starts = dict(starts)

    def lose(self, part: Part) -> None:
        """Note that librdkafka reads nothing in a partition: it does not know where."""
        self._lost.add(part)

    def forget(self, parts: Iterable[Part]) -> None:
        """Leave partitions to others."""
        self._lost.difference_update(parts)

    def find(self, client: Consumer) -> None:
        """Go on in the partitions that were lost, where a broker can be asked."""
        for part in list(self._lost):
            self._reposition(client, part)

    def _reposition(self, client: Consumer, part: Part) -> None:
        topic, partition = part
        if part not in self._assignment:
            self._lost.discard(part)
            return
        ours = [other for other in self._starts if other[0] == topic and other in self._assignment]
        try:
            known = committed(client, self._group, {part, *ours}, ANSWER)
            low, high = bounds(client, part, ANSWER)
        except KafkaException as error:
            self._problems.unreachable(error.args[0])
            return
        at = known.get(part)
        # A partition that is new has nothing older than the group: it begins at its beginning.
        wanted = self._starts.get(part, low) if at is None else at
        target = wanted if low <= wanted <= high else low
        # All of the topic at once, and before anything is read: if this process dies now, the next one must not decide
        # anew, on what is there by then, nor take a partition without an offset for one that is new. But for those
        # where a member has got on meanwhile: they would begin again.
        begun = {other: self._starts[other] for other in ours if other not in known} | {part: target}
        if not commit(client, self._group, [TopicPartition(*each, offset) for each, offset in begun.items()]):
            return
        for other in ours:
            del self._starts[other]
        try:
            self._assign(client, TopicPartition(topic, partition, target))
        except KafkaException as error:
            log.info(
                "kafka: position not known yet (%s[%d]: %s)",
                *(topic, partition, error.args[0].str()),
                extra={"topic": topic, "partition": partition},
            )
            return
        self._lost.discard(part)
        if at is not None and at != target:
            log.error(
                "kafka: position lost, going on with the oldest message (group %s was at offset %d of %s[%d], which is "
                "gone: retention, or a new topic; it goes on at %d)",
                *(self._group, at, topic, partition, low),
                extra={"group": self._group, "topic": topic, "partition": partition},
            )

    def _assign(self, client: Consumer, place: TopicPartition) -> None:
        """Begin anew in one partition. A seek would be refused: librdkafka reads nothing in it any more."""
        if self._incremental:
            client.incremental_unassign([place])
            client.incremental_assign([place])
        else:
            others = [
                one for one in client.assignment() if (one.topic, one.partition) != (place.topic, place.partition)
            ]
            # A position that is none yet is the committed offset, as in any assignment.
            client.assign([*(client.position(others) if others else ()), place])
        if self._assignment.paused:
            self._assignment.apply_pause(client)
