"""Executing a run against a store of canned rows: which statements are asked, in which batches, and what for."""

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from scoop_outbox._emission import Emission, emission
from scoop_outbox.context import Context
from scoop_outbox.core.plans.claim import Executor
from scoop_outbox.core.plans.execute import STEPS_IN_A_ROW, Execution, execute
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import Batch, Call, Plan, Refused, Rows
from scoop_outbox.core.transition import Raised, Returned
from scoop_outbox.failure import Failure
from scoop_outbox.saga import Saga
from scoop_outbox.step import GoTo, Repeat
from scoop_outbox.store.failure_cache import KnownFailures

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
RUN, MESSAGE, PARENT = (uuid.UUID(int=number) for number in (1, 2, 3))
WHY = uuid.UUID(int=4)
KEPT: Rows = [(WHY, [], "Boom", "no", "child[other]", Failure("Boom", "no", "child[other]").dumps())]
CLAIM = ["begin", "claim_run", "savepoint", "read_children"]
AGAIN = ["commit_and_begin", "claim_again", "savepoint"]
UNDOING_AGAIN = [*AGAIN, "read_instance"]


async def coroutine(scope: Any, message: Any, error: Any = None) -> None: ...


def plain(scope: Any, message: Any, error: Any = None) -> None: ...


def saga() -> Saga:
    made = Saga("parent", "topic")
    made.add_step("first", coroutine, compensate=coroutine)
    made.add_step("second", coroutine)
    return made


@dataclass
class Told:
    """Hints that keep what they were told."""

    outboxes: int = 0
    mails: list[tuple[str, str, str, uuid.UUID, float]] = field(default_factory=list)
    hierarchies: int = 0

    def ended(self, message_id: uuid.UUID) -> None:
        self.hierarchies += 1

    def outbox(self) -> None:
        self.outboxes += 1

    def mail(self, service: str, saga: str, version: str, run_id: uuid.UUID, delay: float) -> None:
        self.mails.append((service, saga, version, run_id, delay))


def row(state: str = "running", **more: Any) -> tuple[Any, ...]:
    columns: dict[str, Any] = {
        "id": RUN, "message_id": MESSAGE, "service": "shop", "saga": "parent", "lineage": [RUN], "parent_run": None,
        "state": state, "step": None, "next_step": None, "seq": 0, "instance": 0, "iteration": 0, "attempt": 0,
        "handled": 0, "not_before": None, "undo_seq": None, "compensation_seq": None, "handler_seq": None,
        "context": None, "inherited": None, "failure": None, "obstacle": None, "result": None, "launched_at": None,
        "reason": None, "lane": None, "version": "", "interrupted": False,
        "giving_up": None, "deadlines": None, "own_deadline": None, "rollback_by": None,
        "body_seq": None, "finaliser_seq": None, "undo_from": None, "unresolved": None, "created": NOW,
        "parent_home": None,
        "now": NOW, "mail": [11, 12], "cancellation": None, "message": MESSAGE,
        "topic": "topic", "key": None, "body": b"{}",
        "content_type": "application/json", "headers": {}, "created_at": NOW,
    }  # fmt: skip
    assert set(more) <= set(columns)
    return tuple({**columns, **more}.values())


class Store:
    """Answers statements from a table of rows by name, and calls from a list of outcomes."""

    def __init__(self, rows: dict[str, Rows], *outcomes: Returned | Raised) -> None:
        self.rows: dict[str, Rows] = {
            "claim_again": [(NOW, False)],
            "read_children": [(False, *[None] * 10)],
            **rows,
        }
        self.outcomes = list(outcomes)
        self.batches: list[list[str]] = []
        self.params: dict[str, Any] = {}
        self.calls: list[Call] = []
        self.refuse: Callable[[Batch], bool] = lambda _: False

    def answer(self, batch: Batch) -> list[Rows]:
        self.batches.append([name for name, _ in batch])
        rows: list[Rows] = []
        for name, params in batch:
            self.params[name] = params
            rows.append(self.rows.get(name, []))
        return rows

    def drive(self, plan: Plan[Execution]) -> Execution:
        answer: Any = None
        refused: Refused | None = None
        while True:
            try:
                asked = plan.send(answer) if refused is None else plan.throw(refused)
            except StopIteration as done:
                end: Execution = done.value
                return end
            refused = None
            if isinstance(asked, Call):
                self.calls.append(asked)
                answer = self.outcomes.pop(0)
            elif self.refuse(asked):
                self.batches.append([name for name, _ in asked])
                refused = Refused(ValueError("refused"))
            else:
                answer = self.answer(asked)


def executor(*sagas: Saga, coroutines: bool = True, hints: Told | None = None) -> Executor:
    known = KnownFailures()
    return Executor("shop", {one.name: one for one in sagas}, "w1", hints or Told(), coroutines, lambda: 0.0, known)


def returned(value: object = None, emissions: Sequence[Emission] = ()) -> Returned:
    return Returned(value, emissions, None, None)


def raised(error: Exception) -> Raised:
    return Raised(error, Failure.of(error, source="parent[w1]"), None)


def launched(*, awaited: bool = True) -> Emission:
    return emission("other", 1, key=None, headers=None, context=None, awaited=awaited, depth=1)


def test_hp_01_two_steps_and_the_end_take_two_transactions_and_three_round_trips() -> None:
    store, hints = Store({"claim_run": [row()]}, returned(), returned()), Told()
    assert store.drive(execute(RUN, executor(saga(), hints=hints))) is Execution.DONE
    assert store.batches == [
        CLAIM,
        ["release_savepoint", "advance_run", *AGAIN],
        ["release_savepoint", "advance_run", "drop_mail", "commit"],
    ]
    assert [(call.step, call.iteration, call.attempt) for call in store.calls] == [("first", 0, 0), ("second", 0, 0)]
    assert [call.key for call in store.calls] == [f"{RUN}:1:step", f"{RUN}:2:step"]
    assert store.calls[0].source == "parent[w1]"
    ended = store.params["advance_run"]
    assert (ended["state"], ended["seq"], ended["ended"]) == ("committed", 2, True)
    assert store.params["drop_mail"] == {"ids": [11, 12]}
    assert hints == Told(hierarchies=1)


def test_a_child_that_ends_tells_its_parent_and_hints_at_its_mail() -> None:
    child = row(parent_run=PARENT, lineage=[PARENT, RUN], step="first", next_step="second", seq=1, instance=1)
    told: Rows = [(PARENT, "shop", "above", "v1", 0.25)]
    store, hints = Store({"claim_run": [child], "tell_parent": told}, returned()), Told()
    store.drive(execute(RUN, executor(saga(), hints=hints)))
    assert store.batches[-1] == ["release_savepoint", "advance_run", "tell_parent", "drop_mail", "commit"]
    parameters = store.params["tell_parent"]
    assert (parameters["message"], parameters["state"], parameters["failure"]) == (MESSAGE, "committed", None)
    assert hints.mails == [("shop", "above", "v1", PARENT, 0.25)]


def test_a_step_that_launched_is_suspended_in_one_round_trip() -> None:
    sent = [launched(), launched(awaited=False)]
    store = Store({"claim_run": [row()], "drop_mail_if_waiting": [(True,)]}, returned(None, sent))
    hints = Told()
    assert store.drive(execute(RUN, executor(saga(), hints=hints))) is Execution.DONE
    assert store.batches == [CLAIM, ["release_savepoint", "advance_run", "launch", "drop_mail_if_waiting", "commit"]]
    parameters = store.params["launch"]
    messages = json.loads(parameters["document"])
    assert [message["awaited"] for message in messages] == [True, False]
    assert (parameters["run"], parameters["seq"]) == (RUN, 1)
    assert ["scoop-lineage" in json.loads(message["headers"]) for message in messages] == [True, False]
    assert hints.outboxes == 1


def test_hp_10_a_launch_that_nobody_handles_is_not_waited_for() -> None:
    rows: dict[str, Rows] = {"claim_run": [row()], "drop_mail_if_waiting": [(False,)]}
    store = Store(rows, returned(None, [launched()]), returned())

    def committed(batch: Batch) -> bool:
        if "launch" in [name for name, _ in batch]:
            store.rows["claim_run"] = [row(step="first", next_step="second", seq=1, instance=1)]
        return False

    store.refuse = committed
    assert store.drive(execute(RUN, executor(saga()))) is Execution.DONE
    assert store.batches[1:] == [
        ["release_savepoint", "advance_run", "launch", "drop_mail_if_waiting", "commit"],
        CLAIM,
        ["release_savepoint", "advance_run", "drop_mail", "commit"],
    ]


def test_rb_01_a_step_that_raised_is_recorded_and_the_run_rolls_back_at_once() -> None:
    undo: Rows = [(1, "first", "step", 0, False, False, *[None] * 11)]
    suspended = row(step="first", next_step="second", seq=1, instance=1)
    store = Store({"claim_run": [suspended], "read_instance": undo}, raised(ValueError("boom")), returned())

    assert store.drive(execute(RUN, executor(saga()))) is Execution.DONE
    assert store.batches == [
        CLAIM,
        ["record_failures", "record_step", "update_run", *UNDOING_AGAIN],
        ["release_savepoint", "record_step", "update_run", "mark_undone", "drop_mail", "commit"],
    ]
    assert [call.callback for call in store.calls] == [coroutine, coroutine]
    compensation = store.calls[1]
    assert (compensation.step, compensation.key) == ("first", f"{RUN}:1:compensation")
    assert "boom" in str(compensation.error)
    assert store.params["update_run"]["state"] == "rolled_back"
    written = store.params["record_failures"]
    assert store.params["update_run"]["failure"] in written["ids"]
    assert "boom" in written["documents"][0]


@pytest.mark.parametrize("coroutines", [True, False])
def test_a_callback_of_the_other_colour_is_handed_over_before_anything_is_done(coroutines: bool) -> None:
    one = Saga("parent", "topic")
    one.add_step("first", plain if coroutines else coroutine)
    store = Store({"claim_run": [row()]})
    assert store.drive(execute(RUN, executor(one, coroutines=coroutines))) is Execution.OTHER_COLOUR
    assert store.batches == [CLAIM, ["rollback"]]
    assert store.calls == []


@pytest.mark.parametrize("coroutines", [True, False])
def test_a_sleep_is_of_neither_colour(coroutines: bool) -> None:
    one = Saga("parent", "topic")
    one.sleep("sleep", 5)
    store = Store({"claim_run": [row()]})
    assert store.drive(execute(RUN, executor(one, coroutines=coroutines))) is Execution.DONE
    assert store.calls == []
    assert store.batches[1:] == [["record_step", "update_run", "drop_mail", "post_timer", "commit"]]


def test_a_run_of_both_colours_is_handed_over_between_its_steps() -> None:
    mixed = Saga("parent", "topic")
    mixed.add_step("first", coroutine)
    mixed.add_step("second", plain)
    store = Store({"claim_run": [row()]}, returned(), returned())
    assert store.drive(execute(RUN, executor(mixed))) is Execution.OTHER_COLOUR
    assert store.batches == [CLAIM, ["release_savepoint", "advance_run", *AGAIN], ["rollback"]]
    store.rows["claim_run"] = [row(step="first", next_step="second", seq=1, instance=1)]
    assert store.drive(execute(RUN, executor(mixed, coroutines=False))) is Execution.DONE
    assert [call.step for call in store.calls] == ["first", "second"]


def test_a_run_that_another_worker_holds_keeps_its_mail() -> None:
    store = Store({"claim_run": []})
    assert store.drive(execute(RUN, executor(saga()))) is Execution.NOTHING
    assert store.batches == [CLAIM, ["rollback"]]


def test_a_run_of_a_saga_that_is_not_known_here_keeps_its_mail() -> None:
    store = Store({"claim_run": [row()]})
    assert store.drive(execute(RUN, executor())) is Execution.NOTHING
    assert store.batches == [CLAIM, ["rollback"]]


@pytest.mark.parametrize("state", [s for s in RunState if s.ended and s is not RunState.ROLLBACK_FAILED])
def test_mail_of_an_ended_run_is_dropped_and_nothing_else_is_done(state: RunState) -> None:
    store = Store({"claim_run": [row(state, step="first", seq=1, instance=1)]})
    assert store.drive(execute(RUN, executor(saga()))) is Execution.NOTHING
    assert store.batches == [CLAIM, ["drop_mail", "commit"]]
    assert store.params["drop_mail"] == {"ids": [11, 12]}


STUCK = row("rollback_failed", step="first", seq=1, instance=1, undo_seq=1)


def test_a_run_that_has_stopped_because_of_children_looks_whether_it_can_go_on() -> None:
    store = Store({"claim_run": [STUCK], "is_healed": [(False,)]})
    assert store.drive(execute(RUN, executor(saga()))) is Execution.NOTHING
    assert store.batches == [CLAIM, ["is_healed"], ["drop_mail", "commit"]]


def test_a_run_whose_parent_is_being_decided_about_looks_again_soon() -> None:
    store, hints = Store({"claim_run": [STUCK], "is_healed": [(True,)], "lock_parent": [(False,)]}), Told()
    assert store.drive(execute(RUN, executor(saga(), hints=hints))) is Execution.NOTHING
    assert store.batches == [CLAIM, ["is_healed"], ["lock_parent"], ["drop_mail", "post_timer", "commit"]]
    assert hints.mails == [("shop", "parent", "", RUN, 0.02)]


def test_a_run_with_an_open_child_waits() -> None:
    suspended = row(step="first", next_step="second", seq=1, instance=1)
    store = Store({"claim_run": [suspended], "read_children": [(True, *[None] * 10)]})
    assert store.drive(execute(RUN, executor(saga()))) is Execution.DONE
    assert store.batches == [CLAIM, ["drop_mail", "commit"]]


def test_a_retry_that_is_not_due_posts_its_timer_again() -> None:
    later = NOW.replace(hour=13)
    store, hints = Store({"claim_run": [row(attempt=1, seq=1, not_before=later)]}), Told()
    assert store.drive(execute(RUN, executor(saga(), hints=hints))) is Execution.DONE
    assert hints.mails == [("shop", "parent", "", RUN, 3600.0)]
    assert store.batches == [CLAIM, ["drop_mail", "post_timer", "commit"]]
    assert store.params["post_timer"]["due"] == later


def test_children_are_told_to_roll_back_and_their_workers_hinted_at() -> None:
    back = row("rolling_back", step="second", seq=2, instance=2, undo_seq=2, failure=WHY)
    asked = uuid.UUID(int=8)
    rows: dict[str, Rows] = {
        "claim_run": [back],
        "read_failures": KEPT,
        "read_instance": [(1, "first", "step", 0, True, False, *[None] * 11)],
        "ask_children": [(asked, "other", "child", "v1", 0.0)],
        "drop_mail_if_waiting": [(True,)],
    }
    store, hints = Store(rows), Told()
    assert store.drive(execute(RUN, executor(saga(), hints=hints))) is Execution.DONE
    assert store.batches == [
        CLAIM,
        ["read_failures"],
        ["read_instance"],
        ["record_failures", "ask_children", "drop_mail_if_waiting", "commit"],
    ]
    assert hints.mails == [("other", "child", "v1", asked, 0.0)]


def test_cx_01_a_rollback_ordered_by_the_parent_sees_its_context_on_top() -> None:
    back = row(
        "rolling_back", step="first", seq=1, instance=1, undo_seq=1, context='{"a":1,"b":1}', inherited='{"b":2}'
    )
    store = Store(
        {"claim_run": [back], "read_instance": [(1, "first", "step", 0, False, False, *[None] * 11)]}, returned()
    )
    plan = execute(RUN, executor(saga()))
    asked = next(plan)
    while not isinstance(asked, Call):
        asked = plan.send(store.answer(asked))
    assert dict(Context(asked.run.context)) == {"a": 1, "b": 2}
    plan.close()


def test_lp_10_a_run_that_repeats_lets_others_have_their_turn() -> None:
    store = Store({"claim_run": [row()]}, *[returned(Repeat())] * STEPS_IN_A_ROW)
    assert store.drive(execute(RUN, executor(saga()))) is Execution.DONE
    assert [call.iteration for call in store.calls] == list(range(STEPS_IN_A_ROW))
    assert store.batches[-1] == ["release_savepoint", "advance_run", "defer_mail", "commit"]


def test_a_refused_commit_is_a_failure_of_the_step() -> None:
    store = Store({"claim_run": [row()]}, returned())
    store.refuse = lambda batch: "advance_run" in [name for name, _ in batch]
    assert store.drive(execute(RUN, executor(saga()))) is Execution.DONE
    assert store.batches == [
        CLAIM,
        ["release_savepoint", "advance_run", *AGAIN],
        CLAIM,
        ["record_failures", "record_step", "update_run", *UNDOING_AGAIN],
        ["update_run", "drop_mail", "commit"],
    ]
    assert store.params["record_step"]["state"] == "failed"
    assert store.params["record_step"]["failure"] in store.params["record_failures"]["ids"]
    assert "refused" in store.params["record_failures"]["documents"][0]
    assert store.params["update_run"]["state"] == "rolled_back"


@pytest.mark.parametrize("meanwhile", [[], [row("committed", step="second", seq=2, instance=2)]])
def test_a_refused_commit_is_forgotten_if_another_worker_was_faster(meanwhile: Rows) -> None:
    store = Store({"claim_run": [row()]}, returned())

    def refuse(batch: Batch) -> bool:
        refused = "advance_run" in [name for name, _ in batch]
        if refused:
            store.rows["claim_run"] = meanwhile
        return refused

    store.refuse = refuse
    assert store.drive(execute(RUN, executor(saga()))) is Execution.DONE
    assert store.batches[1:3] == [["release_savepoint", "advance_run", *AGAIN], CLAIM]
    assert not {"record_step", "update_run"} & {name for batch in store.batches for name in batch}


def test_a_run_that_was_touched_between_two_steps_is_left_to_its_mail() -> None:
    store = Store({"claim_run": [row()], "claim_again": []}, returned())
    assert store.drive(execute(RUN, executor(saga()))) is Execution.DONE
    assert store.batches == [CLAIM, ["release_savepoint", "advance_run", *AGAIN], ["rollback"]]
    assert store.params["claim_again"] == {"run": RUN, "seq": 1, "state": "running", "saga": "parent"}


def test_a_refusal_without_a_callback_is_an_error_of_ours() -> None:
    store = Store({"claim_run": [row(step="first", seq=1, instance=1)]})
    store.refuse = lambda batch: "commit" in [name for name, _ in batch]
    with pytest.raises(Refused):
        store.drive(execute(RUN, executor(saga())))


def test_a_step_that_is_gone_parks_the_run_with_the_reason() -> None:
    store = Store({"claim_run": [row(step="first", next_step="gone", seq=1, instance=1, parent_run=PARENT)]})
    assert store.drive(execute(RUN, executor(saga()))) is Execution.DONE
    assert store.batches == [CLAIM, ["update_run", "drop_mail", "commit"]]
    assert store.params["update_run"]["state"] == "parked"
    assert "no living worker knows step 'gone'" in store.params["update_run"]["reason"]
    assert store.params["update_run"]["needs"] == "gone"


def test_what_a_step_may_return_is_checked_before_it_counts_as_returned() -> None:
    store = Store({"claim_run": [row()]}, returned(GoTo("second")), returned())
    store.drive(execute(RUN, executor(saga())))
    check = store.calls[0].check
    assert check(GoTo("second")) == "second"
    with pytest.raises(Exception, match="does not have"):
        check(GoTo("nowhere"))


def test_children_are_read_after_the_lock_was_granted() -> None:
    store = Store({"claim_run": []})
    store.drive(execute(RUN, executor(saga())))
    assert store.batches[0].index("claim_run") < store.batches[0].index("read_children")
