"""CX and RV: what flows down a hierarchy and along a run, and what a child leaves for its parent."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from scoop_outbox import DistributedError, PayloadError, Repeat, Result, Retry, RunState
from tests.scenarios.rollback_helpers import SIMULATED, fails, shape, simulated
from tests.scenarios.shop import Shop, launches, nothing, raises

pytestmark = pytest.mark.parametrize("colour", ["async", "mixed"])

ODD_TEXTS = {
    "nul": "before\0after",
    "emoji": "👩‍🚀 and 🏴‍☠️, 中文, العربية",
    "lone surrogate": "half \ud83d of a pair",
    "long": "x" * 10_000,
    "looks like JSON": '{"a": [null, "\\u0000"]}',
    "escapes": 'tab\t lf\n cr\r quote" backslash\\ slash/ \b\f',
    "empty": "",
}
odd_text = pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())


async def test_cx_01_context_flows_down_and_into_the_rollback(shop: Shop) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def grows(entry: str, key: str) -> Any:
        def body(scope: Any, *_: Any) -> None:
            scope.context[key] += 1
            seen.append((entry, dict(scope.context)))

        return body

    def first(scope: Any, message: Any) -> None:
        seen.append(("root-0 before", dict(scope.context)))
        grows("root-0", "P")(scope, message)
        scope.launch("C", None, context={"K": 0})

    def second(scope: Any, message: Any) -> None:
        grows("root-1", "P")(scope, message)
        raise RuntimeError(SIMULATED)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", first, compensate=grows("root-rb0", "P"))
    shop.step(root, "1", second)
    child = shop.app.saga("child", "C")
    for name in ("0", "1"):
        shop.step(child, name, grows(f"child-{name}", "K"), compensate=grows(f"child-rb{name}", "K"))

    await shop.fail("R", context={"P": 0})

    assert seen == [
        ("root-0 before", {"P": 0}),
        ("root-0", {"P": 1}),
        ("child-0", {"K": 1, "P": 1}),
        ("child-1", {"K": 2, "P": 1}),
        ("root-1", {"P": 2}),
        ("child-rb1", {"K": 3, "P": 2}),
        ("child-rb0", {"K": 4, "P": 2}),
        ("root-rb0", {"P": 3}),
    ]


async def test_cx_02_in_a_rollback_the_parents_values_win(shop: Shop) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def sees(entry: str, then: Any = nothing, **values: int) -> Any:
        def body(scope: Any, message: Any, *_: Any) -> None:
            seen.append((entry, dict(scope.context)))
            scope.context.update(values)
            then(scope, message)

        return body

    def first(scope: Any, _: Any) -> None:
        scope.context["F"] = 1
        scope.launch("C", None)
        scope.context["F"] = 5

    root = shop.app.saga("root", "R")
    shop.step(root, "0", first, compensate=sees("root-rb0"))
    shop.step(root, "1", sees("root-1", fails, F=7))
    child = shop.app.saga("child", "C")
    shop.step(child, "0", sees("child-0", F=100, B=1), compensate=sees("child-rb0"))
    shop.step(child, "1", sees("child-1", B=2), compensate=sees("child-rb1", B=3))

    await shop.fail("R")

    assert seen == [
        ("child-0", {"F": 1}),
        ("child-1", {"F": 100, "B": 1}),
        ("root-1", {"F": 5}),
        ("child-rb1", {"F": 7, "B": 2}),
        ("child-rb0", {"F": 7, "B": 3}),
        ("root-rb0", {"F": 7}),
    ]


async def test_cx_03_a_message_takes_the_context_of_its_launch_and_nothing_comes_back(shop: Shop) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def first(scope: Any, _: Any) -> None:
        scope.context["M"] = 1
        scope.launch("C", None, context={"Ch": 2})
        scope.context["M"] = 3

    def of_child(scope: Any, _: Any) -> None:
        seen.append(("child", dict(scope.context)))
        scope.context["M"] = 10

    def second(scope: Any, _: Any) -> None:
        seen.append(("root", dict(scope.context)))

    shop.saga("root", "R", first, second)
    shop.saga("child", "C", of_child)

    await shop.run("R")

    assert seen == [("child", {"M": 1, "Ch": 2}), ("root", {"M": 3})]


async def test_cx_03_each_message_has_a_snapshot_of_its_own(shop: Shop) -> None:
    seen: dict[int, int] = {}

    def emits(scope: Any, _: Any) -> None:
        for number in range(3):
            scope.context["n"] = number
            scope.launch("C", number)

    def of_child(scope: Any, message: Any) -> None:
        seen[message.payload] = scope.context["n"]

    shop.saga("root", "R", emits)
    shop.saga("child", "C", of_child)

    await shop.run("R")

    assert seen == {0: 0, 1: 1, 2: 2}


async def test_a_key_of_the_context_may_have_any_name(shop: Shop) -> None:
    seen: list[dict[str, Any]] = []

    def first(scope: Any, _: Any) -> None:
        scope.context["self"] = 1  # was taken for an argument, and the rollback of the child was parked
        scope.launch("C", None, context={"self": 2})

    def undoes(scope: Any, *_: object) -> None:
        seen.append(dict(scope.context))

    shop.saga("root", "R", first, raises("no"))
    shop.step(shop.app.saga("child", "C"), "0", compensate=undoes)

    await shop.fail("R")

    assert seen == [{"self": 1}]


async def test_cx_06_d27_all_that_is_given_with_a_launch_counts(shop: Shop) -> None:
    given: list[dict[str, Any]] = [{"F": 2}, {"F": 2, "G": 2}, {"F": 2, "G": None, "H": {"deep": [2]}, "new": 2}]
    inherited = {"F": 1, "G": 1, "H": {"deep": [1]}, "kept": 1}
    seen: dict[int, dict[str, Any]] = {}
    left: list[dict[str, Any]] = []

    def first(scope: Any, _: Any) -> None:
        scope.context["kept"] = 1
        for number, context in enumerate(given):
            scope.launch("C", number, context=context)

    def of_child(scope: Any, message: Any) -> None:
        seen[message.payload] = dict(scope.context)

    def second(scope: Any, _: Any) -> None:
        left.append(dict(scope.context))

    shop.saga("root", "R", first, second)
    shop.saga("child", "C", of_child)

    await shop.run("R", context={key: value for key, value in inherited.items() if key != "kept"})

    assert seen == {number: {**inherited, **context} for number, context in enumerate(given)}
    assert left == [inherited]


@pytest.mark.everywhere
async def test_hp_13_a_global_launch_inherits_no_context(shop: Shop) -> None:
    seen: list[dict[str, Any]] = []
    launched: list[uuid.UUID] = []

    def emits(scope: Any, _: Any) -> None:
        scope.context["own"] = 1
        launched.append(scope.launch_on_global_scope("G", None, context={"passed": 2}))

    def notes(scope: Any, _: Any) -> None:
        seen.append(dict(scope.context))

    shop.saga("root", "R", emits)
    shop.saga("other", "G", notes)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await handle.wait(20)
        await shop.app.handle(launched[0]).wait(20)

    assert seen == [{"passed": 2}]


async def test_r11_a_key_can_be_removed_from_the_context(shop: Shop) -> None:
    seen: list[dict[str, Any]] = []

    def removes(scope: Any, _: Any) -> None:
        del scope.context["a"]

    def notes(scope: Any, _: Any) -> None:
        seen.append(dict(scope.context))

    shop.saga("root", "R", removes, notes)

    await shop.run("R", context={"a": 1, "b": None})

    assert seen == [{"b": None}]


@odd_text
async def test_if_08_d35_context_and_payload_may_hold_any_text(shop: Shop, text: str) -> None:
    seen: list[Any] = []

    def emits(scope: Any, message: Any) -> None:
        seen.append((message.payload, dict(scope.context)))
        scope.context[f"own {text[:100]}"] = text
        scope.launch("C", [text], context={"more": {text[:100]: text}})

    def of_child(scope: Any, message: Any) -> None:
        seen.append((message.payload, dict(scope.context)))
        scope.set_result(text)

    def second(scope: Any, _: Any) -> None:
        seen.append([result.value for result in scope.results])
        raise RuntimeError(SIMULATED)

    def undo(scope: Any, message: Any, *_: Any) -> None:
        seen.append((message.payload, dict(scope.context)))

    own = {f"own {text[:100]}": text}
    shop.step(shop.app.saga("root", "R"), "0", emits, compensate=undo)
    shop.step(shop.app.sagas["root"], "1", second)
    shop.step(shop.app.saga("child", "C"), "0", of_child, compensate=undo)

    handle, _ = await shop.fail("R", {text[:100]: text}, context={"given": text})

    more = {"more": {text[:100]: text}}
    assert seen == [
        ({text[:100]: text}, {"given": text}),
        ([text], {"given": text, **own, **more}),
        [text],
        ([text], {"given": text, **own, **more}),
        ({text[:100]: text}, {"given": text, **own}),
    ]
    assert len(shop.journal.entries) == 5
    assert await shop.states(handle) == dict.fromkeys(("root", "child"), RunState.ROLLED_BACK)


@odd_text
async def test_if_08_d35_the_message_of_an_exception_may_be_any_text(shop: Shop, text: str) -> None:
    def boom(*_: Any) -> None:
        raise RuntimeError(text)

    shop.saga("root", "R", launches("C"))
    shop.saga("child", "C", None, boom)

    handle, error = await shop.fail("R")

    # Each was called once: nothing was executed again and again because it could not be stored.
    assert shop.journal == ["root-0", "child-0", "child-1", "child-rb0", "root-rb0"]
    assert shape((await shop.only(handle, "child")).failure) == simulated("child", text or None)  # type: ignore[arg-type]
    assert error.causes[0].message == (text or None)
    assert str(error.causes[0])


async def test_r1_a_context_that_cannot_be_stored_is_a_failure_of_the_step(shop: Shop) -> None:
    def spoils(scope: Any, _: Any) -> None:
        scope.context["n"] = object()

    shop.saga("root", "R", None, spoils)

    _, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-rb0"]
    assert error.type == f"{PayloadError.__module__}.PayloadError"


# -- results ------------------------------------------------------------------------------------------------------


def leaves(value: Any) -> Any:
    """The body of a step that leaves a result."""

    def body(scope: Any, _: Any) -> None:
        scope.set_result(value)

    return body


class Results:
    """The body of a step that notes which results it finds."""

    def __init__(self) -> None:
        self.found: list[list[Result]] = []

    def __call__(self, scope: Any, *_: Any) -> None:
        self.found.append(list(scope.results))

    @property
    def values(self) -> list[dict[str, Any]]:
        return [{result.saga: result.value for result in results} for results in self.found]


async def test_rv_01_the_next_step_finds_what_a_child_left(shop: Shop) -> None:
    emitted: list[uuid.UUID] = []
    results = Results()

    def emits(scope: Any, _: Any) -> None:
        emitted.append(scope.launch("C", None))

    shop.saga("root", "R", emits, results)
    shop.saga("child", "C", leaves({"answer": 42}))

    await shop.run("R")

    assert results.found == [[Result("child", emitted[0], {"answer": 42})]]


async def test_rv_02_each_handler_has_its_own_result(shop: Shop) -> None:
    results = Results()
    shop.saga("root", "R", launches("C", "D"), results)
    shop.saga("one", "C", leaves(1))
    shop.saga("two", "D", leaves(2))
    shop.saga("three", "D", leaves(3))

    await shop.run("R")

    assert results.values == [{"one": 1, "two": 2, "three": 3}]
    assert results.found[0][0].saga == "one"


async def test_rv_03_a_handler_that_left_nothing_has_no_result(shop: Shop) -> None:
    results = Results()
    shop.saga("root", "R", launches("C"), results)
    shop.saga("silent", "C", None)
    shop.saga("left_null", "C", leaves(None))
    shop.saga("left_zero", "C", leaves(0))

    await shop.run("R")

    (found,) = results.values
    assert found.get("silent") is None
    assert found["left_zero"] == 0
    assert found.get("left_null", "missing") is None


async def test_rv_04_one_result_holds_as_many_values_as_it_has_names(shop: Shop) -> None:
    results = Results()
    shop.saga("root", "R", launches("C"), results)
    shop.saga("child", "C", leaves({"v": 1, "w": [2]}))

    await shop.run("R")

    assert results.values == [{"child": {"v": 1, "w": [2]}}]


async def test_q52_results_come_in_the_order_of_emission_whoever_was_faster(shop: Shop) -> None:
    emitted: list[uuid.UUID] = []
    results = Results()

    def emits(scope: Any, _: Any) -> None:
        emitted.extend(scope.launch("C", number) for number in range(3))

    def last_comes_first(scope: Any, message: Any) -> Iterator[Any]:
        yield lambda: message.payload == 2 or shop.journal.count(f"done-{message.payload + 1}")
        scope.set_result(message.payload)
        shop.journal(f"done-{message.payload}")

    shop.saga("root", "R", emits, results)
    shop.saga("child", "C", last_comes_first)

    await shop.run("R")

    # Two messages of one saga are two results.
    assert results.found == [[Result("child", emitted[number], number) for number in range(3)]]
    assert shop.journal.of("done") == ["done-2", "done-1", "done-0"]


async def test_q52_rv_07_only_what_was_emitted_since_the_last_suspension_counts(shop: Shop) -> None:
    results = Results()

    def loops(scope: Any, message: Any) -> Any:
        results(scope, message)
        scope.launch("C", scope.iteration)
        return Repeat() if scope.iteration == 0 else None

    def leaves_payload(scope: Any, message: Any) -> None:
        scope.set_result(message.payload)

    shop.saga("root", "R", loops, results, results)
    shop.saga("child", "C", leaves_payload)

    await shop.run("R")

    assert results.values == [{}, {"child": 0}, {"child": 1}, {}]


async def test_rv_05_a_result_is_for_the_direct_parent(shop: Shop) -> None:
    of_root, of_child = Results(), Results()
    shop.saga("root", "R", launches("C"), of_root)
    shop.saga("child", "C", launches("G"), of_child)
    shop.saga("gc", "G", leaves("deep"))

    await shop.run("R")

    assert of_child.values == [{"gc": "deep"}]
    assert of_root.values == [{}]


async def test_rv_06_the_last_result_of_a_run_counts(shop: Shop) -> None:
    results = Results()

    def leaves_two(scope: Any, _: Any) -> None:
        scope.set_result("second")
        scope.set_result("third")

    shop.saga("root", "R", launches("C"), results)
    shop.saga("child", "C", leaves("first"), leaves_two, None)

    await shop.run("R")

    assert results.values == [{"child": "third"}]


async def test_rv_05_a_result_vanishes_with_the_attempt_that_left_it(shop: Shop) -> None:
    results = Results()

    def boom(scope: Any, _: Any) -> None:
        if scope.attempt == 0:
            scope.set_result("of the failed attempt")
            raise RuntimeError(SIMULATED)

    shop.saga("root", "R", launches("C"), results)
    child = shop.app.saga("child", "C")
    shop.step(child, "0", leaves("committed"))
    shop.step(child, "1", boom, retry=Retry(attempts=2, backoff=0.01))

    await shop.run("R")

    assert results.values == [{"child": "committed"}]


async def test_q52_after_a_handled_failure_the_results_are_those_of_the_children_that_committed(shop: Shop) -> None:
    results = Results()
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=nothing)
    shop.step(root, "1", results)
    shop.saga("failed", "C", leaves("of a rolled-back child"), fails)
    shop.saga("fine", "C", leaves("fine"))

    await shop.run("R")

    assert shop.journal.of("root") == ["root-0", "root-hcf0", "root-1"]
    assert results.values == [{"fine": "fine"}]


async def test_q52_if_the_handler_emitted_the_results_are_those_of_its_children(shop: Shop) -> None:
    results = Results()
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=launches("D"))
    shop.step(root, "1", results)
    shop.saga("failed", "C", fails)
    shop.saga("fine", "C", leaves("of the step"))
    shop.saga("emitted", "D", leaves("of the handler"))

    await shop.run("R")

    assert results.values == [{"emitted": "of the handler"}]


async def test_q52_a_value_that_is_no_json_is_a_failure_of_the_step(shop: Shop) -> None:
    shop.saga("root", "R", None, leaves(object()))

    with pytest.raises(DistributedError, match="the result cannot be encoded as JSON"):
        await shop.run("R")

    assert shop.journal == ["root-0", "root-1", "root-rb0"]
