"""From where on a shard of the outbox is read."""

from collections.abc import Collection, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox.core.outbox import Place
from scoop_outbox.daemon import full_scan as sweep_module
from scoop_outbox.daemon.relay.relay import watermark as floors_module
from scoop_outbox.daemon.relay.watermark import MANY, Floors
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (floors_module, sweep_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


def look(
    floors: Floors,
    *places: Place,
    shards: Sequence[int] = (1, 2),
    full: Collection[int] = (),
    ends: Sequence[int] = (),
    writers: Collection[str] | None = None,
) -> None:
    floors.look(shards)
    if writers is not None:
        floors.writing(ends, set(writers))
    floors.reached(places, full, 0.01)


def test_as_long_as_it_is_not_known_who_writes_everything_is_read_from_the_beginning() -> None:
    floors = Floors()
    look(floors, (1, 10), (2, 20))
    assert [floors.of(1), floors.of(2)] == [0, 0]


def test_a_backlog_is_read_on_where_it_was_left() -> None:
    floors = Floors()
    look(floors, (1, 10), (2, 15), (1, 20), full=[1], ends=[100, 90], writers=())
    assert [floors.of(1), floors.of(2), floors.of(3)] == [20, 100, 0]


def test_what_was_found_has_been_given_when_it_is_asked_again() -> None:
    floors = Floors()
    look(floors, (1, 10), writers=())
    assert floors.of(1) == 0, "it was found behind the question"
    look(floors, writers=())
    assert floors.of(1) == 10


def test_whoever_writes_has_written_above_what_had_been_given_when_it_was_asked_before() -> None:
    floors = Floors()
    look(floors, ends=[10], writers=())
    look(floors, ends=[20], writers=["a"])
    assert floors.of(1) == 10
    look(floors, ends=[30], writers=["a", "b"])
    assert floors.of(1) == 10
    look(floors, ends=[40], writers=["b"])
    assert floors.of(1) == 20
    look(floors, ends=[50], writers=[])
    assert floors.of(1) == 50


def test_who_was_writing_before_the_first_question_may_have_written_anywhere() -> None:
    floors = Floors()
    for end in (10, 20):
        look(floors, ends=[end], writers=["long"])
        assert floors.of(1) == 0
    look(floors, ends=[30], writers=[])
    assert floors.of(1) == 30


def test_a_transaction_that_is_prepared_gets_another_name() -> None:
    floors = Floors()
    look(floors, ends=[10], writers=())
    look(floors, ends=[20], writers=["3/7"])
    look(floors, ends=[30], writers=["-1/712"])
    assert floors.of(1) == 10
    look(floors, ends=[40], writers=())
    assert floors.of(1) == 40


def test_without_a_question_nothing_moves_up() -> None:
    floors = Floors()
    look(floors, ends=[10], writers=())
    look(floors, (1, 15), (1, 20))
    assert floors.of(1) == 10


def test_it_is_asked_again_after_a_while_or_when_much_was_found(clock: Clock) -> None:
    floors, due = Floors(), []
    due.append(floors.due)
    look(floors, writers=())
    due.append(floors.due)
    clock.now += 1
    due.append(floors.due)
    look(floors, writers=())
    look(floors, *((1, seq) for seq in range(MANY)))
    due.append(floors.due)
    assert due == [True, False, True, True]


def test_another_server_need_not_know_what_was_deleted(clock: Clock) -> None:
    floors = Floors()
    look(floors, ends=[10], writers=["a"])
    look(floors, ends=[20], writers=())
    floors.sweep.begin()
    floors.sweep.looked(0.01)
    floors.distrust()
    assert floors.of(1) == 0
    assert floors.due
    assert floors.sweep.due
    look(floors, ends=[5], writers=())
    assert floors.of(1) == 5


def test_where_a_shard_is_to_be_read_again_is_kept_until_it_was() -> None:
    floors = Floors()
    look(floors, ends=[10], writers=())
    floors.begin({1: 5})
    assert [floors.of(1), floors.of(2)] == [5, 10]
    look(floors, shards=[2])
    assert floors.of(1) == 5
    look(floors, (1, 7), full=[1])
    assert floors.of(1) == 7
    look(floors)
    assert floors.of(1) == 10


def test_a_look_that_was_under_way_when_a_shard_was_begun_again_counts_for_nothing() -> None:
    floors = Floors()
    look(floors, ends=[10], writers=())
    floors.look([1, 2])
    floors.begin({1: 0})
    assert floors.still([1, 2]) == {2}
    floors.reached([(1, 11)], [], 0.01)
    assert [floors.of(1), floors.of(2)] == [0, 10]


_EVENTS = st.lists(st.sampled_from(["begin", "write", "commit", "ask", "look"]), max_size=60)


@given(_EVENTS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_each_look_finds_all_that_has_committed(events: list[str], random: Random, limit: int) -> None:
    """A model of the outbox: transactions get numbers and commit in any order; what is read in order is never late."""
    floors, given_out, visible, read = Floors(), 0, set[int](), set[int]()
    writing: dict[str, list[int]] = {}
    for number, event in enumerate(events):
        if event == "begin":
            writing[f"1/{number}"] = []
        elif event == "write" and writing:
            given_out += 1
            writing[random.choice(sorted(writing))].append(given_out)
        elif event == "commit" and writing:
            visible.update(writing.pop(random.choice(sorted(writing))))
        elif event in ("ask", "look"):
            floor = floors.look([0])[0]
            if event == "ask":
                floors.writing([max((seq for seq in visible if seq > floor), default=0)], set(writing))
            found = sorted(seq for seq in visible - read if seq > floor)[:limit]
            assert found == sorted(visible - read)[:limit], "something has been passed over"
            floors.reached([(0, seq) for seq in found], [0] if len(found) == limit else [], 0.0)
            read.update(found)
