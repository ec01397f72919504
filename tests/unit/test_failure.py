"""Failures as data: what is kept while they travel, and within which limits."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scoop_outbox
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
)
from tests.unit.failures import MyException, leaf, raised, round_trip

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
    assert [cause.type for cause in again.causes] == ["tests.unit.failures.MyException"]
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
