"""From where on a shard of the outbox is read."""

import pytest

from scoop_outbox.daemon import floors as floors_module
from scoop_outbox.daemon.floors import Floors
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(floors_module, "time", clock)
    return clock


def test_a_backlog_is_read_on_where_it_was_left(clock: Clock) -> None:
    floors = Floors()
    floors.reached([1, 2], [(1, 10), (1, 20), (2, 15)], 0.01)
    assert [floors.of(1), floors.of(2), floors.of(3)] == [20, 15, 0]
    floors.keep({1})
    assert [floors.of(1), floors.of(2)] == [20, 0]


def test_what_was_deleted_long_ago_is_not_passed_over_again(clock: Clock) -> None:
    floors = Floors()
    floors.deleted([(1, 8), (1, 10)])
    assert floors.of(1) == 0, "a transaction that is under way may still commit below"
    clock.now += 10
    floors.deleted([(1, 20)])
    assert floors.of(1) == 10
    clock.now += 5
    floors.deleted([(1, 30)])
    assert floors.of(1) == 10
    clock.now += 5
    floors.deleted([(2, 5)])
    assert floors.of(1) == 20
    assert floors.of(2) == 0


def test_after_a_long_pause_only_what_was_before_it_is_left_out(clock: Clock) -> None:
    floors = Floors()
    floors.deleted([(1, 10)])
    clock.now += 3600
    floors.deleted([(1, 20)])
    assert floors.of(1) == 10


def test_a_shard_of_a_new_owner_is_read_from_the_beginning(clock: Clock) -> None:
    floors = Floors()
    for seq in (10, 20, 30):
        floors.deleted([(1, seq), (2, seq)])
        clock.now += 10
    floors.reached([1], [(1, 40)], 0.01)
    floors.forget({1})
    assert [floors.of(1), floors.of(2)] == [0, 20]


def test_where_a_shard_is_to_be_read_again_is_kept_until_it_was(clock: Clock) -> None:
    floors = Floors()
    floors.reached([1], [(1, 50)], 0.01)
    floors.begin(1, 5)
    floors.keep(())
    assert floors.of(1) == 5
    floors.reached([1], [(1, 9)], 0.01)
    floors.keep(())
    assert floors.of(1) == 0


def test_a_shard_in_which_nothing_was_found_is_not_read_from_its_beginning_again(clock: Clock) -> None:
    floors = Floors()
    for seq in (10, 20, 30):
        floors.deleted([(1, seq)])
        clock.now += 10
    floors.begin(1, 0)
    assert floors.of(1) == 0
    floors.reached([1], [], 0.01)
    assert floors.of(1) == 20


def due(floors: Floors) -> bool:
    return floors.scan_due


def test_the_longer_it_takes_the_less_often_all_is_read_from_the_beginning(clock: Clock) -> None:
    floors = Floors()
    assert due(floors)
    floors.scanned()
    floors.reached([1], [], 0.01)
    clock.now += 5
    assert due(floors)
    floors.scanned()
    floors.reached([1], [], 2.0)
    clock.now += 39
    assert not due(floors)
    clock.now += 1
    assert due(floors)


def test_when_something_may_be_left_behind_all_is_read_at_once(clock: Clock) -> None:
    floors = Floors()
    floors.scanned()
    floors.scan_soon()
    assert due(floors)
    floors.reached([1], [], 1.0)
    assert due(floors), "until it has been"
