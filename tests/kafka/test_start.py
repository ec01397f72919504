"""Where a group begins, asked of a cluster of which one broker does not know yet what another one does."""

from typing import Any, NamedTuple

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from scoop_outbox_kafka.settings import read_settings
from scoop_outbox_kafka.start import Part, committed, starts

SETTINGS = read_settings("kafka://localhost", {})
PART: Part = ("orders", 0)
PASSING = [
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
]


class Found(NamedTuple):
    topic: str
    partition: int
    offset: int
    error: KafkaError | None


class Answers:
    """A consumer that is told some errors, of the question or of the partition, and then what it asked for."""

    def __init__(self, *errors: int, of_the_partition: bool = False) -> None:
        self._errors = [KafkaError(code) for code in errors]
        self._of_the_partition = of_the_partition

    def get_watermark_offsets(self, _: TopicPartition, **__: float) -> tuple[int, int]:
        self._fail()
        return 3, 7

    def offsets_for_times(self, wanted: list[TopicPartition], **_: float) -> list[Found]:
        return self._found(wanted, 5)

    def committed(self, wanted: list[TopicPartition], **_: float) -> list[Found]:
        return self._found(wanted, 6)

    def _fail(self) -> None:
        if self._errors:
            raise KafkaException(self._errors.pop(0))

    def _found(self, wanted: list[TopicPartition], offset: int) -> list[Found]:
        if self._of_the_partition and self._errors:
            return [Found(one.topic, one.partition, -1001, self._errors[0]) for one in wanted]
        self._fail()
        return [Found(one.topic, one.partition, offset, None) for one in wanted]


def begin(consumer: Any, start: str) -> dict[Part, int]:
    return starts(consumer, SETTINGS, {}, "shop", [PART], start, 5)


@pytest.mark.parametrize("code", PASSING)
@pytest.mark.parametrize("start, offset", [("earliest", 3), ("latest", 7), ("2026-01-31T12:00:00Z", 5)])
def test_who_is_asked_may_only_be_about_to_know(code: int, start: str, offset: int) -> None:
    assert begin(Answers(code, code), start) == {PART: offset}


def test_a_group_is_asked_again_while_its_coordinator_moves() -> None:
    answers: Any = Answers(*PASSING)
    assert committed(answers, "shop", [PART], 5) == {PART: 6}


def test_other_errors_are_told_at_once() -> None:
    with pytest.raises(KafkaException) as raised:
        begin(Answers(KafkaError.TOPIC_AUTHORIZATION_FAILED), "earliest")
    assert raised.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_a_partition_that_cannot_be_asked_for_a_time_is_not_begun_at_its_end() -> None:
    with pytest.raises(KafkaException):
        begin(Answers(KafkaError.TOPIC_AUTHORIZATION_FAILED, of_the_partition=True), "2026-01-31T12:00:00Z")
