"""Which runs a worker starts, in which order, and which it leaves alone."""

from __future__ import annotations

import threading
import uuid

import pytest

from scoop_outbox.core.plans.execute import Execution
from scoop_outbox.daemon.worker import dispatcher as dispatcher_module
from scoop_outbox.daemon.worker.dispatcher import Dispatcher, Offer, Slot
from scoop_outbox.daemon.worker.mail import Due
from scoop_outbox.daemon.worker.run_queue import RunQueue
from scoop_outbox.message import uuid7

A, B, C, D = (uuid7() for _ in range(4))


def dispatcher_of(slots: int = 1, *, interrupted: tuple[uuid.UUID, ...] = ()) -> Dispatcher:
    """A dispatcher whose feeder has read, and found nothing."""
    dispatcher = Dispatcher(slots, ["a", "b"], interrupted)
    dispatcher.replace([], set())
    return dispatcher


def due(*runs: uuid.UUID, saga: str = "a") -> list[Due]:
    """Runs with mail."""
    return [Due(run, saga, 0.0, suspect=False) for run in runs]


def test_ready_runs_fill_the_free_slots_in_the_order_in_which_they_were_read() -> None:
    dispatcher = dispatcher_of(2)
    dispatcher.replace(due(A, B, C), set())
    assert dispatcher.take_ready() == [(A, "a"), (B, "a")]
    assert (dispatcher.busy, dispatcher.free, dispatcher.take_ready()) == (2, 0, [])
    assert dispatcher.finish(Slot(A, "a"), Execution.DONE) == [(C, "a")]
    assert dispatcher.counters.claims == 3


def test_what_was_read_replaces_what_was_ready_and_what_helps_others_comes_behind_it() -> None:
    dispatcher = dispatcher_of(3)
    dispatcher.replace(due(A), set())
    dispatcher.replace(due(B), set())
    dispatcher.add(due(C))
    assert dispatcher.take_ready() == [(B, "a"), (C, "a")]
    assert dispatcher.empty


def test_what_is_in_hand_or_done_or_interrupted_does_not_become_ready() -> None:
    dispatcher = dispatcher_of(4, interrupted=(C,))
    dispatcher.begin_reading()
    dispatcher.offer(A, "a")
    dispatcher.offer(B, "a")
    dispatcher.finish(Slot(B, "a"), Execution.DONE)
    dispatcher.replace(due(A, B, C, D), set())
    assert dispatcher.take_ready() == [(D, "a")]


def test_a_run_that_was_done_before_the_feeder_began_to_read_may_start_again() -> None:
    dispatcher = dispatcher_of()
    dispatcher.offer(A, "a")
    dispatcher.finish(Slot(A, "a"), Execution.DONE)
    dispatcher.begin_reading()
    dispatcher.replace(due(A), set())
    assert dispatcher.take_ready() == [(A, "a")]


@pytest.mark.parametrize("done", [None, Execution.NOTHING])
def test_a_run_with_which_nothing_could_be_done_is_left_alone_for_a_while(done: Execution | None) -> None:
    dispatcher = dispatcher_of()
    dispatcher.offer(A, "a")
    dispatcher.finish(Slot(A, "a"), done)
    assert dispatcher.begin_reading() == dispatcher.left_alone == 1
    tried_in = dispatcher.replace(due(A), set())
    assert tried_in is not None
    assert 0 < tried_in < 1
    assert dispatcher.take_ready() == []
    assert dispatcher.counters.empty_claims == (1 if done is Execution.NOTHING else 0)
    assert dispatcher.offer(A, "a") is Offer.STARTS, "there is news for it"
    assert dispatcher.left_alone == 0


def test_an_interrupted_run_is_not_left_alone_but_written_down() -> None:
    dispatcher = dispatcher_of(interrupted=(A,))
    dispatcher.replace(due(B), set())
    assert dispatcher.offer(A, "a") is Offer.BEHIND
    dispatcher.replace([], set())
    assert dispatcher.offer(A, "a") is Offer.NOTED
    assert dispatcher.busy == 0
    dispatcher.finish(Slot(A, "a"), None)
    assert dispatcher.left_alone == 0


def test_mail_of_a_run_in_hand_starts_it_again_when_it_is_done() -> None:
    dispatcher = dispatcher_of()
    assert dispatcher.offer(A, "a") is Offer.STARTS
    assert dispatcher.offer(A, "a") is Offer.NOTED
    assert dispatcher.finish(Slot(A, "a"), Execution.NOTHING) == [(A, "a")]
    assert dispatcher.finish(Slot(A, "a"), Execution.DONE) == []


def test_mail_waits_behind_what_has_been_waiting_for_longer() -> None:
    dispatcher = dispatcher_of(2)
    dispatcher.replace([], {"a"})
    assert dispatcher.behind
    assert dispatcher.offer(A, "a") is Offer.BEHIND
    assert dispatcher.offer(B, "b") is Offer.STARTS
    dispatcher.replace(due(C), set())
    assert dispatcher.offer(A, "a") is Offer.BEHIND


def test_mail_is_queued_when_no_slot_is_free() -> None:
    dispatcher = dispatcher_of()
    assert dispatcher.offer(A, "a") is Offer.STARTS
    assert dispatcher.offer(B, "b") is Offer.QUEUED
    assert dispatcher.finish(Slot(A, "a"), Execution.DONE) == [(B, "b")]


def test_before_the_feeder_has_read_everything_is_behind() -> None:
    assert Dispatcher(1, ["a"], ()).offer(A, "a") is Offer.BEHIND


@pytest.mark.parametrize("behind, ready, low", [(False, 0, True), (False, 1, False), (True, 2, True), (True, 3, False)])
def test_few_ready_runs_are_too_few_only_if_there_is_more_to_be_read(behind: bool, ready: int, low: bool) -> None:
    dispatcher = dispatcher_of(4)
    dispatcher.replace(due(*(uuid7() for _ in range(ready))), {"a"} if behind else set())
    assert dispatcher.low is low


def test_a_thread_moves_on_to_the_next_run_of_its_colour_and_to_no_other() -> None:
    dispatcher = dispatcher_of()
    dispatcher.offer(A, "a")
    dispatcher.replace([*due(B), *due(C, saga="b")], set())
    slot = Slot(A, "a")
    assert dispatcher.move_on(slot, {"a"})
    assert (slot.run_id, slot.saga, dispatcher.busy) == (B, "a", 1)
    assert A not in dispatcher.in_hand
    assert not dispatcher.move_on(slot, {"a"})
    assert slot.run_id == B
    assert dispatcher.finish(slot, Execution.DONE) == [(C, "b")]
    dispatcher.replace(due(A, B), set())
    assert dispatcher.take_ready() == [], "both are done"


def test_a_thread_whose_run_has_got_mail_does_not_move_on() -> None:
    dispatcher = dispatcher_of()
    dispatcher.offer(A, "a")
    dispatcher.offer(A, "a")
    dispatcher.replace(due(B), set())
    assert not dispatcher.move_on(Slot(A, "a"), {"a"})


def test_nothing_starts_once_it_is_stopped() -> None:
    dispatcher = dispatcher_of(2)
    dispatcher.offer(A, "a")
    dispatcher.offer(A, "a")
    dispatcher.replace(due(B), set())
    dispatcher.stop()
    assert not dispatcher.move_on(Slot(A, "a"), {"a"})
    assert dispatcher.finish(Slot(A, "a"), Execution.DONE) == []
    assert dispatcher.take_ready() == []
    assert dispatcher.offer(C, "b") is Offer.NOTED
    assert dispatcher.busy == 0


def test_threads_that_move_on_while_the_feeder_reads_execute_each_run_once() -> None:
    dispatcher = dispatcher_of(4)
    runs = [uuid7() for _ in range(400)]
    dispatcher.replace(due(*runs), set())
    executed: list[uuid.UUID] = []

    def execute(slot: Slot) -> None:
        executed.append(slot.run_id)
        while dispatcher.move_on(slot, {"a"}):
            executed.append(slot.run_id)

    threads = [threading.Thread(target=execute, args=(Slot(*run),)) for run in dispatcher.take_ready()]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        _ = dispatcher.left_alone
    for thread in threads:
        thread.join()
    assert sorted(executed) == sorted(runs)
    assert dispatcher.counters.claims == len(runs)


def test_a_run_that_a_finaliser_offers_while_it_is_taken_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[Offer] = []

    class Collecting(RunQueue):
        def take(self) -> tuple[uuid.UUID, str]:
            run = super().take()
            offered.append(dispatcher.offer(*run))  # as garbage that is collected at this moment may do
            return run

    monkeypatch.setattr(dispatcher_module, "RunQueue", Collecting)
    dispatcher = dispatcher_of(2)
    dispatcher.replace(due(A), set())
    assert dispatcher.take_ready() == []
    assert (offered, dispatcher.busy) == ([Offer.STARTS], 1)
