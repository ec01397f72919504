"""From where on a shard of the outbox is read."""

from collections.abc import Collection

import pytest

from scoop_outbox.daemon import floors as floors_module
from scoop_outbox.daemon import sweep as sweep_module
from scoop_outbox.daemon.floors import Floors
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (floors_module, sweep_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


def delete(floors: Floors, *places: tuple[int, int], writers: Collection[str] = ()) -> None:
    floors.deleted(places)
    if floors.begin_to_move():
        floors.move(set(writers))


def test_a_backlog_is_read_on_where_it_was_left(clock: Clock) -> None:
    floors = Floors()
    floors.reached([1, 2], [(1, 10), (1, 20), (2, 15)], 0.01)
    assert [floors.of(1), floors.of(2), floors.of(3)] == [20, 15, 0]
    floors.keep({1})
    assert [floors.of(1), floors.of(2)] == [20, 0]


def test_what_was_deleted_long_ago_is_not_passed_over_again(clock: Clock) -> None:
    floors = Floors()
    delete(floors, (1, 8), (1, 10))
    clock.now += 10
    delete(floors, (1, 20))
    assert floors.of(1) == 0, "a transaction that is under way may still commit below"
    clock.now += 10
    delete(floors, (1, 30))
    assert floors.of(1) == 10
    clock.now += 5
    delete(floors, (1, 40))
    assert floors.of(1) == 10
    clock.now += 5
    delete(floors, (2, 5))
    assert floors.of(1) == 20
    assert floors.of(2) == 0


def test_after_a_long_pause_only_what_was_before_it_is_left_out(clock: Clock) -> None:
    floors = Floors()
    for seq in (10, 20, 30):
        delete(floors, (1, seq))
        clock.now += 3600
    assert floors.of(1) == 10


def test_who_has_written_below_and_has_not_ended_keeps_the_floor_down(clock: Clock) -> None:
    floors = Floors()
    delete(floors, (1, 10), writers=["long", "short"])
    for seq in (20, 30, 40):
        clock.now += 10
        delete(floors, (1, seq), writers=["long", "other"])
        assert floors.of(1) == 0
    clock.now += 10
    delete(floors, (1, 50), writers=["later"])
    assert floors.of(1) == 0, "what it has written is read first"
    clock.now += 10
    delete(floors, (1, 60))
    assert floors.of(1) == 10


def test_who_has_begun_to_write_later_keeps_down_what_was_deleted_later(clock: Clock) -> None:
    floors = Floors()
    delete(floors, (1, 10))
    clock.now += 10
    delete(floors, (1, 20), writers=["long"])
    for seq in (30, 40):
        clock.now += 10
        delete(floors, (1, seq), writers=["long"])
        assert floors.of(1) == 0


def test_what_is_held_back_is_not_passed_over_again(clock: Clock) -> None:
    floors = Floors()
    floors.reached([1, 2], [(1, 3), (2, 4)], 0.01)  # where they were tried, in vain
    for _ in range(4):
        floors.passed({1: 50, 2: 60}, busy=[2])
        delete(floors)
        clock.now += 10
    assert floors.of(1) == 50
    assert floors.of(2) == 4, "something of it is in hand"
    floors.keep(())
    assert floors.of(2) == 60
    floors.begin(1, 2)
    assert floors.of(1) == 2, "its time has come"


def test_what_is_deleted_while_it_is_asked_who_writes_counts_the_next_time(clock: Clock) -> None:
    floors = Floors()
    floors.deleted([(1, 10)])
    assert floors.begin_to_move()
    floors.deleted([(1, 20)])
    floors.move(set())
    for _ in range(2):
        clock.now += 10
        delete(floors)
    assert floors.of(1) == 10


def test_another_server_need_not_know_what_was_deleted(clock: Clock) -> None:
    floors = Floors()
    for seq in (10, 20, 30):
        delete(floors, (1, seq))
        clock.now += 10
    floors.sweep.begin()
    floors.sweep.looked(0.01)
    floors.distrust()
    assert floors.of(1) == 0
    assert floors.sweep.due


def test_a_shard_of_a_new_owner_is_read_from_the_beginning(clock: Clock) -> None:
    floors = Floors()
    for seq in (10, 20, 30, 40):
        delete(floors, (1, seq), (2, seq))
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
    for seq in (10, 20, 30, 40):
        delete(floors, (1, seq))
        clock.now += 10
    floors.begin(1, 0)
    assert floors.of(1) == 0
    floors.reached([1], [], 0.01)
    assert floors.of(1) == 20
