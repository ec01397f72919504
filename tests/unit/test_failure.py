"""Failures as data: what is kept while they travel, and within which limits."""

import copy
import json
import traceback
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scoop_outbox
from scoop_outbox import failure as limits
from scoop_outbox._failure import bounds
from scoop_outbox.failure import (
    CancellationRequested,
    ChildRollbackFailed,
    ChildRolledBack,
    DistributedError,
    Failure,
    Frame,
    GaveUp,
    ParentSaidSo,
    RollbackRequested,
    Stored,
)


class MyException(Exception):
    pass


def raised(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301  # to get a traceback
    except BaseException as caught:  # noqa: BLE001  # whatever it is
        return caught


def leaf(message: str = "boom", source: str = "grandchild[1]") -> Failure:
    return Failure.of(raised(RuntimeError(message)), source=source)


def round_trip(failure: Failure) -> Failure:
    return Failure.loads(failure.dumps())


# What crosses the wire ------------------------------------------------------------------------------------------


def test_fs_01_a_foreign_failure_becomes_an_exception() -> None:
    error = Failure.from_json(
        {
            "type": "ExitStatus",
            "source": "external-system",
            "message": "Non-zero exit status returned from process",
            "stackTrace": [{"fileName": "script.sh", "lineNumber": 42}],
        }
    ).to_exception()
    assert type(error) is DistributedError
    assert str(error) == "[external-system] ExitStatus: Non-zero exit status returned from process"
    assert (error.type, error.source) == ("ExitStatus", "external-system")
    assert error.failure.stack_trace == (Frame("script.sh", 42, None, None),)
    assert error.causes == ()
    frame = error.__traceback__
    assert frame is not None
    assert frame.tb_lineno == 42
    assert frame.tb_frame.f_globals["__name__"] == "<unknown class>"
    assert frame.tb_frame.f_code.co_name == "<unknown class>.<unknown function>"
    assert frame.tb_frame.f_code.co_filename == "<script.sh>"


def test_fs_01_what_is_missing_or_makes_no_sense_has_placeholders() -> None:
    empty = Failure("<unknown type>", None, "<unknown source>")
    assert Failure.from_json({}) == empty
    assert str(empty) == "[<unknown source>] <unknown type>: <no message>"
    nonsense = {"type": None, "stackTrace": [None, 1], "causes": ["x", {}], "launchedAt": 3}
    assert Failure.from_json(nonsense) == Failure("<unknown type>", None, "<unknown source>", causes=(empty,))
    assert Failure.from_json({"stackTrace": "x", "causes": None}) == empty
    assert Failure.from_json({"message": 3, "type": 4, "source": 5}) == Failure("4", "3", "5")
    assert Frame.from_json({"lineNumber": "7", "fileName": 8}) == Frame("8", None, None, None)
    assert Frame.from_json({"lineNumber": True}).line_number is None
    assert Frame.from_json({"lineNumber": 10**30}).line_number is None


@pytest.mark.parametrize("text", ["", "null", "[]", '"x"', "{", "[" * 100_000, '{"causes":[' * 100_000])
def test_fs_01_what_is_no_failure_at_all_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Failure.loads(text)


def test_fs_02_data_json_data_exception_data_is_the_identity() -> None:
    error = ValueError("Test exception")
    error.__cause__ = raised(MyException("Root"))
    data = Failure.of(raised(error), source="test-system")
    again = Failure.of(round_trip(data).to_exception(), source="somebody else")
    assert again == data
    assert again.to_json() == data.to_json()
    assert str(again) == "[test-system] ValueError: Test exception"
    assert [cause.type for cause in again.causes] == [f"{__name__}.MyException"]
    assert again.causes[0].source == "test-system"
    assert [frame.function_name for frame in again.stack_trace] == ["raised"]


def test_fs_02_json_fields() -> None:
    data = Failure("T", "m", "s", (Frame("f.py", 1, "mod", "C.f"),), (Failure("U", None, "t"),))
    assert data.to_json() == {
        "message": "m",
        "type": "T",
        "source": "s",
        "stackTrace": [{"fileName": "f.py", "lineNumber": 1, "className": "mod", "functionName": "C.f"}],
        "causes": [{"message": None, "type": "U", "source": "t", "stackTrace": [], "causes": []}],
    }
    place = Frame("g.py", 2, None, None)
    assert data.with_launched_at(place).to_json()["launchedAt"] == place.to_json()
    assert round_trip(data.with_launched_at(place)).launched_at == place
    assert data.with_launched_at(place).with_launched_at(None).to_json() == data.to_json()


def test_fs_02_types_are_named_as_tracebacks_name_them() -> None:
    class Local(Exception):
        pass

    assert Failure.of(KeyError("k"), source="s").type == "KeyError"
    assert Failure.of(json.JSONDecodeError("m", "", 0), source="s").type == "json.decoder.JSONDecodeError"
    name = "test_fs_02_types_are_named_as_tracebacks_name_them.<locals>.Local"
    assert Failure.of(Local(), source="s").type == f"{__name__}.{name}"


def test_fs_03_nothing_is_relabelled_while_travelling() -> None:
    place = Frame("f.py", 1, "m", "f")
    remote = leaf().with_launched_at(place).to_exception()
    assert Failure.of(raised(remote), source="parent[2]") is remote.failure
    wrapped = MyException("mine")
    wrapped.__cause__ = raised(remote)
    failure = Failure.of(raised(wrapped), source="parent[2]")
    assert failure.source == "parent[2]"
    assert failure.causes == (remote.failure,)
    assert failure.causes[0].launched_at == place
    assert failure.causes[0].message == "boom"


def test_fs_03_a_new_place_of_launch_replaces_the_old_one() -> None:
    old, new = Frame("f.py", 1, "m", "f"), Frame("f.py", 2, "m", "f")
    remote = leaf().with_launched_at(old).to_exception()
    assert Failure.of(remote, source="s", launched_at=new).launched_at == new
    assert Failure.of(ValueError(), source="s", launched_at=new).launched_at == new


def test_fs_04_cause_first_then_the_members_of_a_group() -> None:
    group = ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [ValueError("b")])])
    group.__cause__ = KeyError("why")
    failure = Failure.of(group, source="s")
    assert [cause.type for cause in failure.causes] == ["KeyError", "ValueError", "ExceptionGroup"]
    assert [cause.message for cause in failure.causes[2].causes] == ["b"]


def test_fs_04_context_counts_unless_it_is_suppressed() -> None:
    error = ValueError("second")
    error.__context__ = KeyError("first")
    assert [cause.type for cause in Failure.of(error, source="s").causes] == ["KeyError"]
    error.__suppress_context__ = True
    assert Failure.of(error, source="s").causes == ()
    error.__cause__ = TypeError("the cause")
    assert [cause.type for cause in Failure.of(error, source="s").causes] == ["TypeError"]


def test_fs_04_a_cause_of_itself_is_ignored() -> None:
    error = ValueError("x")
    error.__cause__ = error
    assert Failure.of(error, source="s").causes == ()
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    failure = Failure.of(first, source="s")
    assert [cause.message for cause in failure.causes] == ["second"]
    assert failure.causes[0].causes == ()


@pytest.mark.parametrize("message", [None, "", " \n\t"])
def test_fs_04_a_missing_or_blank_message_has_a_placeholder(message: str | None) -> None:
    assert str(Failure("T", message, "s").to_exception()) == "[s] T: <no message>"
    assert Failure.of(ValueError(), source="s").message is None


def test_fs_05_exceptions_compare_by_value() -> None:
    one, same = leaf().to_exception(), round_trip(leaf()).to_exception()
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same}) == 1
    base = Failure("T", "m", "s", (Frame("f", 1, "c", "g"),), (Failure("U", None, "t"),))
    others = [
        Failure("T2", "m", "s", base.stack_trace, base.causes),
        Failure("T", "m2", "s", base.stack_trace, base.causes),
        Failure("T", "m", "s2", base.stack_trace, base.causes),
        Failure("T", "m", "s", (), base.causes),
        Failure("T", "m", "s", base.stack_trace, ()),
    ]
    assert len({base.to_exception(), *(other.to_exception() for other in others)}) == 6
    assert base.to_exception() == base.with_launched_at(Frame("f", 1, "c", "g")).to_exception()
    assert base.to_exception() != ValueError()
    assert copy.copy(one) == one


def test_fs_06_wrappers_have_no_frames_but_requests_have() -> None:
    cause = leaf()
    for wrapper in (
        Failure.child_rolled_back("S", [cause], source="s"),
        Failure.child_rollback_failed("S", [cause], source="s"),
        Failure.parent_said_so(cause, source="s"),
        Failure.gave_up([cause], source="s"),
    ):
        assert wrapper.stack_trace == ()
        assert Failure.of(raised(wrapper.to_exception()), source="x") == wrapper
    request = Failure("CancellationRequested", "too late", "ops", (Frame.of_caller(0),)).to_exception()
    assert isinstance(request, CancellationRequested)
    assert request.failure.stack_trace[0].function_name == "test_fs_06_wrappers_have_no_frames_but_requests_have"
    assert request.__traceback__ is not None


def test_fixed_texts_and_classes() -> None:
    causes = (leaf("a"), leaf("b"))
    rolled_back = Failure.child_rolled_back("S", causes, source="root[1]")
    stuck = Failure.child_rollback_failed("S", causes, source="root[1]")
    said_so = Failure.parent_said_so(causes[0], source="root[1]")
    gave_up = Failure.gave_up(causes, source="root[1]")
    assert rolled_back.message == "Child failure occurred while suspended in step [S]"
    assert stuck.message == "Child rollback failure occurred while suspended in step [S]"
    assert said_so.message is None
    assert gave_up.message is None
    kinds = [type(failure.to_exception()) for failure in (rolled_back, stuck, said_so, gave_up)]
    assert kinds == [ChildRolledBack, ChildRollbackFailed, ParentSaidSo, GaveUp]
    assert type(Failure("RollbackRequested", None, "ops").to_exception()) is RollbackRequested
    assert type(Failure("shop.ChildRolledBack", None, "s").to_exception()) is DistributedError
    assert repr(said_so.to_exception()) == "ParentSaidSo('[root[1]] ParentSaidSo: <no message>')"
    assert stuck.to_exception().to_json() == stuck.to_json()


def test_fixed_classes_are_importable_where_tracebacks_say() -> None:
    kinds: list[type[DistributedError]] = [DistributedError, *DistributedError.__subclasses__()]
    for kind in kinds:
        assert getattr(scoop_outbox, kind.__name__) is kind
        assert kind.__module__ == "scoop_outbox"


# How failures are made of one another -----------------------------------------------------------------------------


def test_rb_16_several_failing_children_are_all_kept_in_order() -> None:
    causes = [leaf(f"number {number}", f"child[{number}]") for number in range(5)]
    failure = round_trip(Failure.child_rolled_back("0", causes, source="root[1]"))
    assert list(failure.causes) == causes
    error = failure.to_exception()
    assert [cause.message for cause in error.causes] == [f"number {number}" for number in range(5)]
    assert isinstance(error.__cause__, ExceptionGroup)
    assert error.__cause__.exceptions == error.causes


def test_rb_17_the_reason_travels_down_and_grows_by_one_per_level() -> None:
    x0 = leaf("Simulated failure to test rollback", "c2[1]")
    x1 = Failure.child_rolled_back("1", [x0], source="root[1]")
    x2 = round_trip(Failure.parent_said_so(x1, source="root[1]"))
    x3 = round_trip(Failure.parent_said_so(x2, source="c1[1]"))
    chain = [x3, *x3.causes, *x3.causes[0].causes, *x3.causes[0].causes[0].causes]
    assert [failure.type for failure in chain] == ["ParentSaidSo", "ParentSaidSo", "ChildRolledBack", "RuntimeError"]
    assert chain[-1] == x0


def test_rf_01_containment_is_recursive_and_by_value() -> None:
    x0 = leaf("Simulated failure to test rollback", "c2[1]")
    x1 = Failure.child_rolled_back("1", [x0], source="root[1]")
    x2 = round_trip(Failure.parent_said_so(x1, source="root[1]"))
    y0 = leaf("Rollback failure", "gc[1]")
    y1 = round_trip(Failure.child_rollback_failed("Rollback of 1[0]", [y0, x2], source="c1[1]"))
    assert list(y1.causes) == [y0, x2]
    assert all(y1.contains(inside) for inside in (x0, x1, x2, y0, y1))
    assert y1.contains(x1.with_launched_at(Frame("f", 1, "c", "g")))
    assert not y1.contains(leaf("Rollback failure", "gc[2]"))
    assert not x1.contains(x2)


def test_rf_01_containment_sees_through_marks_of_repetition() -> None:
    shared = leaf("shared")
    reason = Failure.child_rolled_back("1", [shared], source="root[1]")
    failure = Failure.child_rollback_failed("2", [shared, reason], source="c1[1]")
    assert failure.causes[1] != reason
    assert failure.contains(reason)


SEED_2_FRAME = {
    "fileName": "/srv/grandchild.py",
    "lineNumber": 31,
    "className": "grandchild",
    "functionName": "second_grandchild_step",
}
SEED_2_GRANDCHILD: dict[str, Any] = {
    "type": "MyException",
    "causes": [],
    "source": "grandchild-handler[id]",
    "message": "My exception message",
    "stackTrace": [SEED_2_FRAME],
}
SEED_2_CHILD: dict[str, Any] = {
    "type": "ChildRolledBack",
    "causes": [SEED_2_GRANDCHILD],
    "source": "child-handler[id]",
    "message": "Child failure occurred while suspended in step [Second child step]",
    "stackTrace": [],
}
SEED_2_PARENT: dict[str, Any] = {
    "type": "ChildRolledBack",
    "causes": [SEED_2_CHILD],
    "source": "parent-handler[id]",
    "message": "Child failure occurred while suspended in step [First parent step]",
    "stackTrace": [],
}


def test_seed_2_the_three_documents() -> None:
    frame = Frame("/srv/grandchild.py", 31, "grandchild", "second_grandchild_step")
    failure = Failure("MyException", "My exception message", "grandchild-handler[id]", (frame,))
    assert failure.to_json() == SEED_2_GRANDCHILD
    failure = Failure.child_rolled_back("Second child step", [round_trip(failure)], source="child-handler[id]")
    assert failure.to_json() == SEED_2_CHILD
    failure = Failure.child_rolled_back("First parent step", [round_trip(failure)], source="parent-handler[id]")
    assert failure.to_json() == SEED_2_PARENT
    assert Failure.from_json(SEED_2_PARENT) == failure
    assert failure.to_exception().causes[0].causes[0].to_json() == SEED_2_GRANDCHILD


# Odd exceptions, and limits ---------------------------------------------------------------------------------------


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


# Any failure whatever ---------------------------------------------------------------------------------------------

# Two halves next to each other are one character in JSON: of the surrogates, only low ones are drawn.
texts = st.text(st.one_of(st.characters(), st.characters(min_codepoint=0xDC00, max_codepoint=0xDFFF), st.just("\0")))
lines = st.integers(-(2**31), 2**31 - 1)
frames = st.builds(
    Frame, st.none() | texts, st.none() | lines, st.none() | texts, st.none() | texts
)  # fmt: skip
leaves = st.builds(
    Failure,
    type=texts,
    message=st.none() | texts,
    source=texts,
    stack_trace=st.lists(frames, max_size=3).map(tuple),
    launched_at=st.none() | frames,
)
failures = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda one, causes: Failure(one.type, one.message, one.source, one.stack_trace, tuple(causes), one.launched_at),
        leaves,
        st.lists(inner, max_size=3),
    ),
    max_leaves=6,
)


@given(failures)
def test_fs_02_any_failure_survives_json_and_being_an_exception(failure: Failure) -> None:
    again = round_trip(failure)
    assert again == failure
    assert again.to_json() == failure.to_json()
    assert failure.dumps().isascii()
    error = again.to_exception()
    assert Failure.of(error, source="x").to_json() == failure.to_json()
    assert [cause.failure for cause in error.causes] == list(failure.causes)
    assert failure.contains(failure)
    assert all(failure.contains(cause) for cause in failure.causes)


@given(st.text(st.characters(exclude_categories=[]) | st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF)))
def test_fs_02_any_message_survives(text: str) -> None:
    failure = Failure.of(ValueError(text), source="s")
    assert round_trip(failure) == failure


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "message",
                    "type",
                    "source",
                    "stackTrace",
                    "causes",
                    "launchedAt",
                    "fileName",
                    "lineNumber",
                    "className",
                ]
            ),
            inner,
        )
    ),
    max_leaves=15,
)


@given(
    st.dictionaries(st.sampled_from(["message", "type", "source", "stackTrace", "causes", "launchedAt"]), json_values)
)
def test_fs_01_any_json_object_is_some_failure(data: dict[str, Any]) -> None:
    failure = Failure.from_json(data)
    assert round_trip(failure) == failure
    assert str(failure.to_exception()) == str(failure)
