"""LP, GT: what was executed several times, or out of order, is undone execution by execution, the last one first."""

from typing import Any

import pytest

from scoop_outbox import GoTo, Repeat
from tests.scenarios.shop import Shop, launches, raises

Script = dict[tuple[str, int], Any]
"""What a step returns, by its name and how often it has been executed before; an exception is raised."""

DONE = RuntimeError("enough")
LOOPS: dict[str, tuple[list[str], Script, list[str], list[str]]] = {
    "lp_05": (
        ["loop"],
        {("loop", 0): Repeat(), ("loop", 1): Repeat(), ("loop", 2): DONE},
        ["loop 0", "loop 1", "loop 2"],
        ["loop 1", "loop 0"],
    ),
    "lp_06": (["loop", "fails"], {("fails", 0): DONE}, ["loop 0", "fails 0"], ["loop 0"]),
    "lp_07": (
        ["loop", "middle", "fails"],
        {("loop", 0): Repeat(), ("loop", 1): Repeat(), ("fails", 0): DONE},
        ["loop 0", "loop 1", "loop 2", "middle 0", "fails 0"],
        ["middle 0", "loop 2", "loop 1", "loop 0"],
    ),
    "lp_08": (
        ["a", "b", "fails"],
        {("a", 0): Repeat(), ("b", 0): Repeat(), ("fails", 0): DONE},
        ["a 0", "a 1", "b 0", "b 1", "fails 0"],
        ["b 1", "b 0", "a 1", "a 0"],
    ),
}
JUMPS: dict[str, tuple[list[str], Script, list[str], list[str]]] = {
    "gt_04": (
        ["a", "b", "c"],
        {("c", 0): GoTo("a"), ("a", 1): GoTo("c"), ("c", 1): DONE},
        ["a 0", "b 0", "c 0", "a 0", "c 0"],
        ["a 0", "c 0", "b 0", "a 0"],
    ),
    "gt_08": (["a", "b", "c", "d"], {("a", 0): GoTo("c"), ("d", 0): DONE}, ["a 0", "c 0", "d 0"], ["c 0", "a 0"]),
    "gt_09": (
        ["a", "b", "c"],
        {("a", 0): GoTo("c"), ("c", 0): GoTo("b"), ("c", 1): DONE},
        ["a 0", "c 0", "b 0", "c 0"],
        ["b 0", "c 0", "a 0"],
    ),
    "gt_10": (
        ["a", "b", "c"],
        {("a", 0): GoTo("c"), ("c", 0): Repeat(), ("c", 1): DONE},
        ["a 0", "c 0", "c 1"],
        ["c 0", "a 0"],
    ),
}


def declare(shop: Shop, steps: list[str], script: Script, done: list[str], undone: list[str]) -> None:
    """Declare a saga whose steps do what a script says, and note the iterations that they and compensations see."""
    times = dict.fromkeys(steps, 0)
    root = shop.app.saga("root", "R")

    def body(name: str) -> Any:
        def executes(scope: Any, _: Any) -> Any:
            done.append(f"{name} {scope.iteration}")
            times[name] += 1
            told = script.get((name, times[name] - 1))
            if isinstance(told, Exception):
                raise told
            return told

        return executes

    def undo(name: str) -> Any:
        return lambda scope, *_: undone.append(f"{name} {scope.iteration}")

    for name in steps:
        shop.step(root, name, body(name), compensate=undo(name))


@pytest.mark.parametrize("case", LOOPS)
async def test_lp_05_lp_06_lp_07_lp_08_q24_iterations_are_undone_with_their_own_numbers(mixed: Shop, case: str) -> None:
    steps, script, expected, undone = LOOPS[case]
    seen: tuple[list[str], list[str]] = [], []
    declare(mixed, steps, script, *seen)

    await mixed.fail("R")

    assert seen == (expected, undone)


@pytest.mark.parametrize("case", JUMPS)
async def test_gt_04_gt_08_gt_09_gt_10_executions_are_undone_in_reverse_whatever_the_jumps(
    mixed: Shop, case: str
) -> None:
    steps, script, expected, undone = JUMPS[case]
    seen: tuple[list[str], list[str]] = [], []
    declare(mixed, steps, script, *seen)

    await mixed.fail("R")

    assert seen == (expected, undone)


async def test_gt_05_each_iteration_undoes_its_own_children(mixed: Shop) -> None:
    def loops(scope: Any, _: Any) -> Repeat | None:
        scope.launch("C", scope.iteration)
        return Repeat() if scope.iteration == 0 else None

    def undoes(_: Any, message: Any, __: Any) -> None:
        mixed.journal(f"undo {message.payload}")

    root = mixed.saga("root", "R", loops)
    mixed.step(root, "1", raises("no"))
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0", compensate=undoes)

    await mixed.fail("R")

    assert mixed.journal == [
        *("root-0", "child-0", "root-0", "child-0", "root-1"),
        *("child-rb0", "undo 1", "root-rb0", "child-rb0", "undo 0", "root-rb0"),
    ]


async def test_cf_15_a_hierarchy_in_which_a_failure_was_handled_is_undone_on_request(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("C", "D"), on_child_failure=lambda *_: None)
    mixed.saga("fails", "C", raises("no"))
    mixed.saga("works", "D", None)

    handle = await mixed.run("R")
    async with mixed.running():
        assert (await mixed.app.rollback(handle.id)).answer.fulfils
        with pytest.raises(Exception, match="RollbackRequested"):
            await handle.wait(20)

    assert mixed.journal.entries[-2:] == ["works-rb0", "root-rb0"]
    assert mixed.journal.count("fails-rb0") == 0
