"""Which offsets a consumer commits, as partitions come and go and commits are refused."""

from confluent_kafka import TopicPartition
from scoop_outbox_kafka.assignment import Assignment
from scoop_outbox_kafka.record import Place

ONE, TWO = ("topic", 0), ("topic", 1)


def place(assignment: Assignment, part: tuple[str, int], offset: int, epoch: int = -1) -> Place:
    return Place(*part, offset, epoch, assignment.generation(part))


def offsets(found: list[TopicPartition]) -> dict[int, int]:
    return {one.partition: one.offset for one in found}


def test_the_offset_behind_the_last_message_is_committed_once() -> None:
    assignment = Assignment()
    assignment.gain([ONE, TWO])
    assignment.acknowledge([place(assignment, ONE, 4), place(assignment, TWO, 7), place(assignment, ONE, 9)])
    told = assignment.uncommitted()
    assert offsets(told) == {0: 10, 1: 8}
    assignment.told(told)
    assert assignment.uncommitted() == []
    assignment.acknowledge([place(assignment, ONE, 12)])
    assert offsets(assignment.uncommitted()) == {0: 13}


def test_what_was_refused_is_committed_again() -> None:
    assignment = Assignment()
    assignment.gain([ONE, TWO])
    assignment.acknowledge([place(assignment, ONE, 4), place(assignment, TWO, 7)])
    told = assignment.uncommitted()
    assignment.told(told)
    assignment.doubt(told[1:])
    assert offsets(assignment.uncommitted()) == {1: 8}


def test_partitions_that_were_lost_are_not_committed() -> None:
    assignment = Assignment()
    assignment.gain([ONE, TWO])
    held = [place(assignment, ONE, 4), place(assignment, TWO, 7)]
    assignment.acknowledge(held)
    assert offsets(assignment.uncommitted([TWO])) == {1: 8}
    assignment.lose([TWO])
    assert TWO not in assignment
    assert offsets(assignment.uncommitted()) == {0: 5}
    # It comes back, and with it what was held: only what is got anew counts.
    assignment.gain([TWO])
    assignment.acknowledge(held)
    assert offsets(assignment.uncommitted()) == {0: 5}
    assignment.acknowledge([place(assignment, TWO, 7)])
    assert offsets(assignment.uncommitted()) == {0: 5, 1: 8}
    assignment.clear()
    assert assignment.uncommitted() == []


def test_the_epoch_of_the_leader_is_committed_with_it() -> None:
    assignment = Assignment()
    assignment.gain([ONE])
    assignment.acknowledge([place(assignment, ONE, 4, epoch=3)])
    (offset,) = assignment.uncommitted()
    assert offset.leader_epoch == 3
