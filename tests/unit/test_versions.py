"""Who executes a run while several versions of its saga are alive, as a table (behaviour Q66, Q79)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox.core.versions import Deployment, Version, executing_version, left_out
from scoop_outbox.saga import Saga

OLD, MINE, NEW = (
    Version("old", "order", ("a", "b")),
    Version("mine", "order", ("a", "check", "b")),
    Version("new", "order", ("a", "c")),
)

# The run's version, the step that is due, the living versions (the newest first), and whose workers execute it.
CASES: dict[str, tuple[str, str | None, tuple[Version, ...], Version | None]] = {
    "a run that has not begun": ("", "a", (NEW, MINE, OLD), MINE),
    "a run of our version": ("mine", "check", (NEW, MINE), MINE),
    "a run of our version of which nothing is due": ("mine", None, (NEW, MINE), MINE),
    "a run of another version that is alive": ("old", "b", (MINE, OLD), OLD),
    "its own version is alive, and does not know the step": ("old", "check", (MINE, OLD), MINE),
    "ours is its own, and does not know the step": ("mine", "c", (MINE, NEW), NEW),
    "a run of a version that is gone, and we are the newest": ("old", "b", (MINE,), MINE),
    "a newer one does not know the step": ("old", "b", (NEW, MINE), MINE),
    "a newer one knows it too": ("old", "a", (NEW, MINE), NEW),
    "we do not know it, an older one does": ("gone", "c", (MINE, NEW), NEW),
    "nobody knows it": ("old", "lost", (NEW, MINE), None),
    "nothing of the user's is due, and we are the newest": ("old", None, (MINE, NEW), MINE),
    "nothing of the user's is due, and another one is": ("old", None, (NEW, MINE), NEW),
    "it has not begun, as far as we know, and needs what we have not": ("", "lost", (MINE,), None),
    "of our version, which was labelled and has lost a step": ("mine", "lost", (MINE,), None),
    "nobody has been seen yet, not even ourselves": ("old", "b", (), MINE),
}


@pytest.mark.parametrize("name", CASES)
def test_q66_who_executes_a_run(name: str) -> None:
    version, needs, alive, expected = CASES[name]
    assert executing_version("order", version, needs, Deployment({"order": MINE}, {"order": alive})) is expected


def test_others_are_the_living_versions_of_our_sagas_that_we_have_not() -> None:
    elsewhere = Version("elsewhere", "refund", ("a",))
    deployment = Deployment({"order": MINE}, {"order": (NEW, MINE, OLD), "refund": (elsewhere,)})
    assert deployment.others == ["new", "old"]


LEFT_OUT: dict[str, tuple[str, str, str, str, list[str]]] = {
    "moved behind the one that is due": ("abc", "acb", "b", "a", ["c"]),
    "moved, but executed already": ("abc", "acb", "b", "ac", []),
    "added": ("ab", "acb", "b", "a", []),
    "removed": ("abc", "ac", "c", "ab", []),
    "nothing is still to come": ("abc", "cab", "c", "ab", []),
    "two of them": ("abcd", "acdb", "b", "a", ["c", "d"]),
    "the step is not of the run's version": ("abc", "axc", "x", "a", []),
    "unknown version": ("", "abc", "b", "a", []),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_q79_what_a_run_would_leave_out(name: str) -> None:
    before, after, needs, executed, expected = LEFT_OUT[name]
    assert left_out(before, after, needs, executed) == expected


@given(st.permutations("abcd"), st.permutations("abcd"), st.integers(0, 3))
def test_q79_a_run_that_moves_on_executes_every_step_that_both_have(before: Any, after: Any, done: int) -> None:
    executed, needs = before[:done], before[done]
    if not left_out(before, after, needs, executed):
        will_be = {*executed, *after[after.index(needs) :]}
        assert will_be == set("abcd")


def saga(*steps: str, version: str | None = None, name: str = "order") -> Saga:
    made = Saga(name, "orders", version=version)
    for step in steps:
        made.add_step(step, lambda scope, message: None)
    return made


def test_a_version_is_known_by_its_steps_in_order_or_by_what_the_user_calls_it() -> None:
    plain = Version.of("shop", saga("a", "b"))
    assert plain == Version.of("shop", saga("a", "b"))
    others = [
        Version.of("shop", saga("b", "a")),
        Version.of("shop", saga("a", "b", "c")),
        Version.of("shop", saga("a,b")),
        Version.of("shop", saga("a", "b", name="other")),
        Version.of("another", saga("a", "b")),
        Version.of("shop", saga("a", "b", version="2")),
    ]
    assert len({plain.id, *(one.id for one in others)}) == 7
    assert Version.of("shop", saga("a", version="2")).id == Version.of("shop", saga("b", version="2")).id
