"""From where on a shard of the outbox is read."""

from collections.abc import Collection, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox.core.plans.outbox import Place
from scoop_outbox.daemon import full_scan as full_scan_module
from scoop_outbox.daemon.relay import watermark as watermark_module
from scoop_outbox.daemon.relay.watermark import MANY, Watermarks
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (watermark_module, full_scan_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


def scan(
    marks: Watermarks,
    *places: Place,
    shards: Sequence[int] = (1, 2),
    full: Collection[int] = (),
    allocated: Sequence[int] = (),
    writers: Collection[str] | None = None,
) -> None:
    marks.start_scan(shards)
    if writers is not None:
        marks.record_writers(allocated, set(writers))
    marks.record_scan(places, full, 0.01)


def test_as_long_as_it_is_not_known_who_writes_everything_is_read_from_the_beginning() -> None:
    marks = Watermarks()
    scan(marks, (1, 10), (2, 20))
    assert [marks.low(1), marks.low(2)] == [0, 0]


def test_a_backlog_is_read_on_where_it_was_left() -> None:
    marks = Watermarks()
    scan(marks, (1, 10), (2, 15), (1, 20), full=[1], allocated=[100, 90], writers=())
    assert [marks.low(1), marks.low(2), marks.low(3)] == [20, 100, 0]


def test_what_was_found_is_allocated_when_it_is_asked_again() -> None:
    marks = Watermarks()
    scan(marks, (1, 10), writers=())
    assert marks.low(1) == 0, "it was found behind the question"
    scan(marks, writers=())
    assert marks.low(1) == 10


def test_a_new_writer_only_holds_numbers_above_the_last_allocated() -> None:
    marks = Watermarks()
    scan(marks, allocated=[10], writers=())
    scan(marks, allocated=[20], writers=["a"])
    assert marks.low(1) == 10
    scan(marks, allocated=[30], writers=["a", "b"])
    assert marks.low(1) == 10
    scan(marks, allocated=[40], writers=["b"])
    assert marks.low(1) == 20
    scan(marks, allocated=[50], writers=[])
    assert marks.low(1) == 50


def test_who_was_writing_before_the_first_question_may_have_written_anywhere() -> None:
    marks = Watermarks()
    for end in (10, 20):
        scan(marks, allocated=[end], writers=["long"])
        assert marks.low(1) == 0
    scan(marks, allocated=[30], writers=[])
    assert marks.low(1) == 30


def test_a_transaction_that_is_prepared_gets_another_name() -> None:
    marks = Watermarks()
    scan(marks, allocated=[10], writers=())
    scan(marks, allocated=[20], writers=["3/7"])
    scan(marks, allocated=[30], writers=["-1/712"])
    assert marks.low(1) == 10
    scan(marks, allocated=[40], writers=())
    assert marks.low(1) == 40


def test_without_a_question_nothing_moves_up() -> None:
    marks = Watermarks()
    scan(marks, allocated=[10], writers=())
    scan(marks, (1, 15), (1, 20))
    assert marks.low(1) == 10


def test_it_is_asked_again_after_a_while_or_when_much_was_found(clock: Clock) -> None:
    marks, due = Watermarks(), []
    due.append(marks.due)
    scan(marks, writers=())
    due.append(marks.due)
    clock.now += 1
    due.append(marks.due)
    scan(marks, writers=())
    scan(marks, *((1, seq) for seq in range(MANY)))
    due.append(marks.due)
    assert due == [True, False, True, True]


def test_another_server_need_not_know_what_was_deleted(clock: Clock) -> None:
    marks = Watermarks()
    scan(marks, allocated=[10], writers=["a"])
    scan(marks, allocated=[20], writers=())
    marks.full_scan.begin()
    marks.full_scan.looked(0.01)
    marks.reset()
    assert marks.low(1) == 0
    assert marks.due
    assert marks.full_scan.due
    scan(marks, allocated=[5], writers=())
    assert marks.low(1) == 5


def test_where_a_shard_is_to_be_read_again_is_kept_until_it_was() -> None:
    marks = Watermarks()
    scan(marks, allocated=[10], writers=())
    marks.lower({1: 5})
    assert [marks.low(1), marks.low(2)] == [5, 10]
    scan(marks, shards=[2])
    assert marks.low(1) == 5
    scan(marks, (1, 7), full=[1])
    assert marks.low(1) == 7
    scan(marks)
    assert marks.low(1) == 10


def test_a_scan_that_was_under_way_when_a_shard_was_begun_again_counts_for_nothing() -> None:
    marks = Watermarks()
    scan(marks, allocated=[10], writers=())
    marks.start_scan([1, 2])
    marks.lower({1: 0})
    assert marks.still_valid([1, 2]) == {2}
    marks.record_scan([(1, 11)], [], 0.01)
    assert [marks.low(1), marks.low(2)] == [0, 10]


_EVENTS = st.lists(st.sampled_from(["begin", "write", "commit", "ask", "scan"]), max_size=60)


@given(_EVENTS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_each_scan_finds_all_that_has_committed(events: list[str], random: Random, limit: int) -> None:
    """A model of the outbox: transactions get numbers and commit in any order; what is read in order is never late."""
    marks, given_out, visible, read = Watermarks(), 0, set[int](), set[int]()
    writing: dict[str, list[int]] = {}
    for number, event in enumerate(events):
        if event == "begin":
            writing[f"1/{number}"] = []
        elif event == "write" and writing:
            given_out += 1
            writing[random.choice(sorted(writing))].append(given_out)
        elif event == "commit" and writing:
            visible.update(writing.pop(random.choice(sorted(writing))))
        elif event in ("ask", "scan"):
            floor = marks.start_scan([0])[0]
            if event == "ask":
                marks.record_writers([max((seq for seq in visible if seq > floor), default=0)], set(writing))
            found = sorted(seq for seq in visible - read if seq > floor)[:limit]
            assert found == sorted(visible - read)[:limit], "something has been passed over"
            marks.record_scan([(0, seq) for seq in found], [0] if len(found) == limit else [], 0.0)
            read.update(found)
