"""Q5, Q73: how often a handler is told that a child could not be rolled back."""

from typing import Any

from scoop_outbox import RunState
from tests.scenarios.shop import Shop, launches, raises


async def test_q5_q73_what_was_delivered_is_told_again_with_what_is_new_and_one_answer_is_for_all(mixed: Shop) -> None:
    delivered: list[tuple[str, list[str]]] = []

    def hears(callback: str, *, then: bool) -> Any:
        def body(_: Any, __: Any, error: Any) -> None:
            delivered.append((callback, [cause.message for cause in error.causes if cause.type == "RuntimeError"]))
            if then:
                raise error

        return body

    root = mixed.saga("root", "R", None)
    mixed.step(
        root,
        "1",
        launches("A", "B"),
        on_child_failure=hears("forward", then=True),
        on_child_rollback_failure=hears("rollback", then=False),
    )
    failed = mixed.app.saga("failed", "A")
    mixed.step(failed, "0", compensate=raises("rb failed"))
    mixed.step(failed, "1", raises("why"))
    mixed.step(mixed.app.saga("told", "B"), "0", compensate=raises("rb told"))

    handle, _ = await mixed.fail("R")

    assert delivered == [("forward", ["rb failed"]), ("rollback", ["rb failed", "rb told"])]
    assert (await mixed.only(handle, "root")).state is RunState.ROLLED_BACK
    assert mixed.journal.entries[-2:] == ["root-rb1", "root-rb0"]
