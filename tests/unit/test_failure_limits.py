"""How much of a failure is kept, and exceptions that are odd."""

import copy
import json
import traceback
from typing import Any
from uuid import uuid4

import pytest

from scoop_outbox import failure as limits
from scoop_outbox._failure import bounds
from scoop_outbox.failure import (
    DistributedError,
    Failure,
    Frame,
    Stored,
)
from tests.unit.failures import leaf, raised, round_trip


def test_a_class_whose_str_raises_breaks_nothing() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    message = Failure.of(Broken(), source="s").message
    assert message is not None
    assert message.endswith("Broken without a message: its __str__ raised>")


def test_notes_are_part_of_the_message() -> None:
    error = ValueError("text")
    error.add_note("more")
    error.add_note("and more")
    assert Failure.of(error, source="s").message == "text\nmore\nand more"


def test_q40_frames_are_capped() -> None:
    def dig(depth: int) -> None:
        if depth == 0:
            raise ValueError("deep")
        dig(depth - 1)

    with pytest.raises(ValueError, match="deep") as caught:
        dig(500)
    frames = Failure.of(caught.value, source="s").stack_trace
    assert len(frames) == limits.FRAME_LIMIT
    assert frames[0].function_name == "test_q40_frames_are_capped"
    assert frames[-1].line_number != frames[-2].line_number


def test_q40_texts_are_capped() -> None:
    failure = Failure.of(ValueError("x" * 10**6), source="s" * 10**4)
    assert failure.message is not None
    assert len(failure.message) == limits.MESSAGE_LIMIT
    assert failure.message.endswith("... [cut, 1000000 characters]")
    assert len(failure.source) == limits.NAME_LIMIT
    foreign = {"type": "T" * 10**4, "stackTrace": [{"fileName": "f" * 10**4}], "launchedAt": {"className": "c" * 10**4}}
    assert len(Failure.from_json(foreign).dumps()) < 5 * limits.NAME_LIMIT


def depth_of(failure: Failure) -> int:
    return 1 + max(map(depth_of, failure.causes), default=0)


def chain_of(failure: Failure) -> list[Failure]:
    return [failure, *chain_of(failure.causes[0])] if failure.causes else [failure]


def check_deep(failure: Failure, outermost: str, root: str) -> None:
    chain = chain_of(failure)
    assert len(chain) == depth_of(failure) == limits.DEPTH_LIMIT
    assert [one.type for one in chain].count("CausesLeftOut") == 1
    assert chain[0].message == outermost
    assert chain[-1].message == root
    assert round_trip(failure) == failure


def test_q40_depth_is_capped_and_root_causes_are_kept() -> None:
    error = ValueError("0")
    for number in range(1, 5000):
        above = ValueError(str(number))
        above.__cause__ = error
        error = above
    check_deep(Failure.of(error, source="s"), "4999", "0")


def test_q40_depth_stays_capped_level_by_level() -> None:
    failure = leaf("root")
    for number in range(100):
        failure = round_trip(Failure.child_rolled_back(str(number), [failure], source=f"run[{number}]"))
        assert depth_of(failure) <= limits.DEPTH_LIMIT
    check_deep(failure, "Child failure occurred while suspended in step [99]", "root")


def test_q40_depth_of_foreign_data_is_capped() -> None:
    data: dict[str, Any] = {"message": "root"}
    for number in range(200):
        data = {"message": str(number), "causes": [data]}
    check_deep(Failure.from_json(data), "199", "root")


@pytest.mark.parametrize(
    "count, text",
    [
        (5000, lambda number: f"{number} cannot be delivered: " + "x" * 600),
        (5000, lambda number: f"{number} " + "\N{GRINNING FACE}\0\ud800" * 30),
        (300, lambda number: f"{number} " + "x" * 10**5),
        (300, lambda number: f"{number} " + "\N{GRINNING FACE}\0\ud800" * 1000),
        (300, lambda number: f"{number}"),
        (50, lambda number: f"{number} " + "x" * 10**5),
    ],
)
def test_q40_every_cause_keeps_its_type_and_the_beginning_of_its_message(count: int, text: Any) -> None:
    causes = [leaf(text(number), f"child[{uuid4()}]") for number in range(count)]
    failure = Failure.child_rolled_back("S", causes, source="root[1]")
    assert len(failure.dumps()) <= limits.SIZE_LIMIT
    assert round_trip(failure) == failure
    assert [cause.type for cause in failure.causes] == ["RuntimeError"] * count
    for number, cause in enumerate(failure.causes):
        whole = text(number)
        assert cause.message is not None
        assert cause.message.split(" ")[0].removesuffix("...") == str(number)
        assert len(json.dumps(cause.message)) - 2 >= min(len(whole), limits.BRIEF_MESSAGE_LIMIT - 12)
        assert cause.message == whole or "..." in cause.message
    short = [cause for cause in failure.causes if not cause.stack_trace]
    assert bool(short) == (failure.stack_trace == (bounds.DETAILS_LEFT_OUT,))
    assert isinstance(failure.to_exception().__cause__, ExceptionGroup)


@pytest.mark.parametrize(
    "name, place",
    [
        ("shop.errors.PaymentRefused", None),
        ("a" * 5000 + ".Refused", Frame("f" * 10**4, 1, "c" * 10**4, "g" * 10**4)),
        ("\N{GRINNING FACE}" * 500, None),
    ],
)
def test_q40_whatever_five_thousand_causes_are_called(name: str, place: Frame | None) -> None:
    causes = [Failure(name, f"number {n}", "s" * 2000, (Frame("f", 1, "c", "g"),) * 60, (), place) for n in range(5000)]
    failure = Failure.child_rolled_back("S", causes, source="root[1]").with_launched_at(place)
    assert len(failure.dumps()) <= limits.SIZE_LIMIT
    assert [cause.message for cause in failure.causes] == [f"number {n}" for n in range(5000)]
    assert all(name.endswith(cause.type.removeprefix("...")) for cause in failure.causes)


def test_q40_children_go_before_grandchildren() -> None:
    def child(number: int) -> Failure:
        below = [leaf(f"{number} {n} " + "x" * 1000, f"gc[{uuid4()}]") for n in range(5)]
        return Failure.child_rolled_back(f"step of {number}", below, source=f"child[{number}]")

    failure = Failure.child_rolled_back("S", [child(number) for number in range(1500)], source="root[1]")
    assert len(failure.dumps()) <= limits.SIZE_LIMIT
    assert round_trip(failure) == failure
    assert [cause.source for cause in failure.causes] == [f"child[{number}]" for number in range(1500)]


def test_q40_what_has_no_room_at_all_is_counted() -> None:
    causes = [leaf(f"{number} " + "x" * 600, f"child[{uuid4()}]") for number in range(8_000)]
    failure = Failure.child_rolled_back("S", causes, source="root[1]")
    assert len(failure.dumps()) <= limits.SIZE_LIMIT
    assert round_trip(failure) == failure
    *kept, rest = failure.causes
    assert len(kept) > 5000
    assert (rest.type, rest.message) == ("CausesLeftOut", f"{8_000 - len(kept)} more causes are left out here")


def test_q40_the_frames_of_what_was_raised_over_thousands_are_kept() -> None:
    error = ValueError("mine")
    causes = [leaf(f"{number} " + "x" * 600, f"child[{uuid4()}]") for number in range(5000)]
    error.__cause__ = Failure.child_rolled_back("S", causes, source="root[1]").to_exception()
    failure = Failure.of(raised(error), source="root[1]")
    assert failure.message == "mine"
    assert "raised" in [frame.function_name for frame in failure.stack_trace]
    assert len(failure.causes[0].causes) == 5000


def test_q40_the_largest_failure_is_within_the_limit() -> None:
    text = "\N{GRINNING FACE}" * 10**5
    frame = {"fileName": text, "lineNumber": 1, "className": text, "functionName": text}
    data: dict[str, Any] = {}
    for _ in range(40):
        one = {"type": text, "source": text, "message": text, "stackTrace": [frame] * 100, "launchedAt": frame}
        data = {**one, "causes": [data] * 3}
    failure = Failure.from_json(data)
    assert len(failure.dumps()) <= limits.SIZE_LIMIT


def test_q40_long_messages_are_shortened_before_causes_are_left_out() -> None:
    causes = [leaf("x" * 10**5, f"child[{number}]") for number in range(50)]
    failure = Failure.child_rolled_back("S", causes, source="root[1]")
    assert len(failure.causes) == 50
    assert {len(cause.message or "") for cause in failure.causes} == {limits.LEAN_MESSAGE_LIMIT}


def test_d39_repeated_subtrees_are_kept_once() -> None:
    reason = Failure.parent_said_so(leaf("reason"), source="root[1]")
    children = [
        Failure.child_rollback_failed("S", [leaf("stuck", f"c[{n}]"), reason], source=f"c[{n}]") for n in range(100)
    ]
    failure = Failure.child_rollback_failed("S", children, source="root[1]")
    assert failure.dumps().count('"reason"') == 1
    assert len(failure.causes) == 100
    repeated = failure.causes[99].causes[1]
    assert (repeated.type, repeated.source) == ("ParentSaidSo", "root[1]")
    assert repeated.stack_trace == (limits.REPEATED,)
    assert round_trip(failure) == failure


def test_d39_exceptions_that_share_causes_do_not_explode() -> None:
    error: Exception = ValueError("root")
    for number in range(30):
        twins = [ValueError(f"{number} left"), ValueError(f"{number} right")]
        for twin in twins:
            twin.__cause__ = error
        error = ExceptionGroup(str(number), twins)
    failure = Failure.of(error, source="s")
    assert len(failure.dumps()) <= limits.SIZE_LIMIT


def test_fs_02_causes_that_are_made_lazily_are_the_same() -> None:
    below = Failure.child_rolled_back("T", [leaf("a"), leaf("b")], source="child[1]")
    failure = Failure.parent_said_so(below, source="root[1]").with_launched_at(Frame("f.py", 1, "m", "f"))
    assert traceback.format_exception(failure.to_exception(lazily=True)) == traceback.format_exception(
        failure.to_exception()
    )
    lazy = failure.to_exception(lazily=True)
    assert lazy == failure.to_exception()
    assert lazy.causes is lazy.causes
    assert lazy.__cause__ is lazy.causes[0]
    assert copy.copy(failure.to_exception(lazily=True)).causes[0].failure == below
    assert Failure.of(raised(failure.to_exception(lazily=True)), source="x") is failure


@pytest.mark.parametrize("lazily", [True, False])
def test_fs_02_an_exception_may_be_raised_from_something_else(lazily: bool) -> None:
    failure = Failure.parent_said_so(leaf("a"), source="root[1]")
    other = KeyError("other")
    with pytest.raises(DistributedError) as caught:
        raise failure.to_exception(lazily=lazily) from other
    assert caught.value.__cause__ is other
    assert [cause.message for cause in caught.value.causes] == ["a"]
    assert caught.value.__cause__ is other
    caught.value.__cause__ = None
    assert caught.value.__cause__ is None


def test_fs_02_what_is_kept_somewhere_is_the_same_however_much_was_read() -> None:
    kept = Stored(uuid4(), uuid4())
    whole, cut = Failure("T", "long", "s", stored=kept), Failure("T", "l...", "s", stored=kept)
    assert Failure.parent_said_so(whole, source="r").contains(cut)
    assert not Failure.parent_said_so(whole, source="r").contains(
        Failure("T", "l...", "s", stored=Stored(uuid4(), kept.id))
    )
    assert cut.with_launched_at(None) is cut
    assert cut.with_launched_at(Frame("f", 1, "c", "g")).stored is None
    assert Failure.parent_said_so(whole, source="r").causes[0].stored == kept
    assert "stored" not in repr(whole)
    assert whole.to_json() == Failure("T", "long", "s").to_json()


def test_d35_nul_and_lone_surrogates_are_escapes() -> None:
    failure = Failure.of(ValueError("nul \0, lone \ud800, pair \ud83d\ude00"), source="s\0")
    text = failure.dumps()
    assert text.isascii()
    assert "\0" not in text
    assert round_trip(failure) == failure
    assert failure.message == "nul \0, lone \ud800, pair \N{GRINNING FACE}"
