"""What is printed: one traceback across services, by everything that prints tracebacks."""

import io
import linecache
import logging
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import pytest

from scoop_outbox._failure.traceback import LEFT_OUT, cut, cut_frames, frames_of, traceback_of
from scoop_outbox.failure import ChildRolledBack, DistributedError, Failure, Frame

HERE = "tests/unit/test_remote_traceback.py"
"""How this file is called in failures: as its module is, whatever folder it lies in."""


class CardDeclined(Exception):
    pass


class Scope:
    """Records where a message was launched, as the real one does."""

    launched_at: Frame

    def launch(self, topic: str) -> None:
        self.launched_at = Frame.of_caller(1)


scope = Scope()


def place_order() -> None:
    scope.launch("orders")


def reserve_stock() -> None:
    scope.launch("stock.reserve")


def notify() -> None:
    scope.launch("mail.send")


def charge() -> None:
    check_card()


def check_card() -> None:
    raise CardDeclined("no funds")


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip() == text)


def launched(step: Any) -> Frame:
    step()
    return scope.launched_at


def charge_failed(source: str = "charge[3]") -> Failure:
    with pytest.raises(CardDeclined) as caught:
        charge()
    failure = Failure.of(caught.value, source=source)
    # What called charge() here would be the engine.
    return Failure.loads(Failure(failure.type, failure.message, source, failure.stack_trace[1:]).dumps())


def chain() -> Failure:
    """Three services deep, each level read from JSON as the next service reads it."""
    failure = charge_failed().with_launched_at(launched(reserve_stock))
    failure = Failure.child_rolled_back("reserve", [Failure.loads(failure.dumps())], source="stock[2]")
    failure = failure.with_launched_at(launched(place_order))
    failure = Failure.child_rolled_back("order", [Failure.loads(failure.dumps())], source="shop[1]")
    return Failure.loads(failure.with_launched_at(Frame("/srv/web.py", 7, "web", "checkout")).dumps())


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


CHAIN = f"""\
Traceback (most recent call last):
  File "{HERE}", line {line_of("check_card()")}, in charge
    check_card()
  File "{HERE}", line {line_of('raise CardDeclined("no funds")')}, in check_card
    raise CardDeclined("no funds")
scoop_outbox.DistributedError: [charge[3]] {__name__}.CardDeclined: no funds

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "{HERE}", line {line_of('scope.launch("stock.reserve")')}, in reserve_stock
    scope.launch("stock.reserve")
scoop_outbox.ChildRolledBack: [stock[2]] ChildRolledBack: Child failure occurred while suspended in step [reserve]

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "{HERE}", line {line_of('scope.launch("orders")')}, in place_order
    scope.launch("orders")
scoop_outbox.ChildRolledBack: root cause {__name__}.CardDeclined: no funds (saga 'charge'); [shop[1]] ChildRolledBack: \
Child failure occurred while suspended in step [order]
launched at /srv/web.py:7 in checkout
"""


def test_one_traceback_across_services_root_cause_first_with_the_launches() -> None:
    assert printed(chain().to_exception()) == CHAIN


def test_logging_prints_the_same() -> None:
    stream = io.StringIO()
    logger = logging.Logger("test")  # noqa: LOG001  # one that nothing else listens to
    logger.addHandler(logging.StreamHandler(stream))
    try:
        raise chain().to_exception()
    except DistributedError:
        logger.exception("the order failed")
    text = stream.getvalue()
    assert text.startswith("the order failed\n" + CHAIN.partition("Traceback (most recent call last):\n")[0])
    assert f"line {line_of('check_card()')}, in charge" in text
    assert "launched at /srv/web.py:7 in checkout" in text


def test_an_uncaught_exception_prints_the_same() -> None:
    script = "import sys; from scoop_outbox.failure import Failure; raise Failure.loads(sys.argv[1]).to_exception()"
    done = subprocess.run([sys.executable, "-c", script, chain().dumps()], capture_output=True, text=True, check=False)
    local = '  File "<string>", line 1, in <module>\n'
    before, _, after = done.stderr.rpartition(local)
    assert (before + after).strip() == CHAIN.strip()


def test_pytest_prints_it(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "from scoop_outbox.failure import Failure\n"
        f"def test_it():\n    raise Failure.loads({chain().dumps()!r}).to_exception()\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "-p", "no:randomly", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(test)], capture_output=True, text=True, check=False)
    wanted = [
        '>       raise CardDeclined("no funds")',
        "CardDeclined: no funds",
        '>       scope.launch("stock.reserve")',
        "step [reserve]",
        '>       scope.launch("orders")',
        "launched at /srv/web.py:7 in checkout",
    ]
    text = " ".join(done.stdout.split())
    places = [text.find(" ".join(line.lstrip("> ").split())) for line in wanted]
    assert -1 not in places, done.stdout
    assert places == sorted(places)
    assert "INTERNALERROR" not in done.stdout


def test_raising_adds_the_local_frames_in_front() -> None:
    with pytest.raises(ChildRolledBack) as caught:
        raise chain().to_exception()
    assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)] == [
        "test_raising_adds_the_local_frames_in_front",
        "place_order",
    ]


def test_several_causes_are_a_group_and_each_tells_where_it_was_launched() -> None:
    causes = [
        charge_failed("charge[3]").with_launched_at(launched(reserve_stock)),
        charge_failed("mail[4]").with_launched_at(launched(notify)),
    ]
    error = Failure.child_rolled_back("order", causes, source="shop[1]").to_exception()
    group = error.__cause__
    assert isinstance(group, ExceptionGroup)
    assert group.exceptions == error.causes
    text = printed(error)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "| ExceptionGroup: 2 children failed (2 sub-exceptions)"
    first = line_of('scope.launch("stock.reserve")')
    second = line_of('scope.launch("mail.send")')
    assert f"| launched at {HERE}:{first} in reserve_stock" in lines
    assert f"| launched at {HERE}:{second} in notify" in lines
    assert text.index("[charge[3]]") < text.index("[mail[4]]") < text.index("[shop[1]]")
    assert lines[-5:-1] == [
        f'File "{HERE}", line {first}, in reserve_stock',
        'scope.launch("stock.reserve")',
        f'File "{HERE}", line {second}, in notify',
        'scope.launch("mail.send")',
    ]


def test_several_causes_of_one_launch_show_it_once() -> None:
    place = launched(reserve_stock)
    causes = [charge_failed(source).with_launched_at(place) for source in ("charge[3]", "audit[4]")]
    text = printed(Failure.child_rolled_back("order", causes, source="shop[1]").to_exception())
    assert text.count('scope.launch("stock.reserve")') == 1
    assert "launched at" not in text


def test_a_repeated_failure_is_shown_in_full_once() -> None:
    reason = Failure.parent_said_so(charge_failed(), source="shop[1]")
    children = [
        Failure.child_rollback_failed("undo", [Failure("E", "stuck", source), reason], source=source)
        for source in ("a[1]", "b[2]")
    ]
    failure = Failure.child_rollback_failed("undo", children, source="shop[1]")
    text = printed(failure.to_exception())
    assert text.count('raise CardDeclined("no funds")') == 1
    assert text.count("<already shown in full>") == 1
    assert all(failure.contains(child) for child in children)
    assert failure.contains(reason)
    assert failure.contains(charge_failed())


def test_source_lines_have_no_marks_under_unrelated_columns() -> None:
    assert "^" not in printed(chain().to_exception())
    assert "~" not in printed(chain().to_exception())


def pickled(error: BaseException) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301  # our own


def test_pickle_keeps_causes_tracebacks_and_notes() -> None:
    copy = pickled(chain().to_exception())
    assert copy == chain().to_exception()
    assert printed(copy) == CHAIN
    inner = copy.causes[0]
    assert pickled(inner).__dict__.get("__notes__", []) == []


def test_code_of_another_language_shows_its_names_and_placeholders() -> None:
    frames = [
        Frame("OrderService.java", 12, "com.shop.OrderService", "place"),
        Frame("script.sh", 42, None, None),
        Frame(None, None, None, None),
    ]
    assert traceback.format_tb(traceback_of(frames)) == [
        '  File "<OrderService.java>", line 12, in com.shop.OrderService.place\n',
        '  File "<script.sh>", line 42, in <unknown class>.<unknown function>\n',
        '  File "<unknown filename>", line 0, in <unknown class>.<unknown function>\n',
    ]


def test_a_python_file_that_does_not_exist_here_shows_no_source() -> None:
    assert traceback.format_tb(traceback_of([Frame("/no/such/file.py", 3, "shop", "Order.place")])) == [
        '  File "/no/such/file.py", line 3, in Order.place\n'
    ]


def test_printing_reads_no_file_but_python_files(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    text = printed(Failure("E", "m", "s", (Frame(str(secret), 1, None, "f"),)).to_exception())
    assert "hunter2" not in text
    assert str(secret) not in linecache.cache


@pytest.mark.parametrize("name", ["a\0b.py", "a\nb.py", "\ud800.py", "<x\0>", "", "\x1b[31m"])
@pytest.mark.parametrize("line", [None, -2, 0, 2**31 - 1])
def test_names_that_no_file_has_can_be_printed(name: str, line: int | None) -> None:
    text = printed(Failure("E", "m", "s", (Frame(name, line, name, name),)).to_exception())
    assert len(text.splitlines()) == 3
    assert not {"\0", "\ud800", "\x1b"} & set(text)
    assert len(str(Frame(name, line, name, name)).splitlines()) == 1


def test_of_caller_counts_from_the_caller() -> None:
    def inner() -> tuple[Frame, Frame]:
        return Frame.of_caller(0), Frame.of_caller(1)

    own, above = inner()
    name = "test_of_caller_counts_from_the_caller"
    assert (own.file_name, own.class_name) == (HERE, __name__)
    assert own.function_name == f"{name}.<locals>.inner"
    assert above.function_name == name
    assert above.line_number == line_of("own, above = inner()")
    assert Frame.of_caller(10**6) == Frame(None, None, None, None)


def module(name: str, source: str) -> ModuleType:
    """Return a module that pretends to be at a certain place."""
    made = ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), made.__dict__)  # noqa: S102  # the point of this helper
    return made


def stack_of(*names: str) -> TracebackType:
    """Return the traceback of functions of these modules that call one another, then of one that raises."""
    call = module(names[-1], "def fail(): raise ValueError('x')").fail
    for name in reversed(names[:-1]):
        caller = module(name, "def make(call):\n    def run():\n        call()\n    return run")
        call = caller.make(call)
    with pytest.raises(ValueError, match="x") as caught:
        call()
    assert caught.value.__traceback__ is not None
    assert caught.value.__traceback__.tb_next is not None
    return caught.value.__traceback__.tb_next


@pytest.mark.parametrize(
    "stack, shown",
    [
        (["shop"], ["shop"]),
        (["scoop_outbox.daemon.drivers", "shop"], ["shop"]),
        (["scoop_outbox.a", "asyncio.threads", "concurrent.futures.thread", "scoop_outbox.b", "shop"], ["shop"]),
        (["scoop_outbox.a", "shop", "scoop_outbox.scope"], ["shop", "scoop_outbox.scope"]),
        (["scoop_outbox.a", "shop", "asyncio.tasks"], ["shop", "asyncio.tasks"]),
        (["asyncio.runners", "shop"], ["asyncio.runners", "shop"]),
        (["scoop_outbox.a", "scoop_outbox_shop.orders"], ["scoop_outbox_shop.orders"]),
        (["scoop_outbox.a", "scoop_outbox.demo.sagas"], ["scoop_outbox.demo.sagas"]),
        (["scoop_outbox.a", "scoop_outbox.b"], ["scoop_outbox.a", "scoop_outbox.b"]),
    ],
)
def test_the_stack_begins_with_the_users_function(stack: list[str], shown: list[str]) -> None:
    assert [frame.class_name for frame in frames_of(stack_of(*stack))] == shown


def test_long_stacks_keep_the_outermost_and_the_innermost_frames() -> None:
    frames = tuple(Frame("f.py", number, "m", "f") for number in range(1000))
    kept = cut_frames(frames, 64)
    assert kept == (*frames[:16], LEFT_OUT, *frames[-47:])
    assert cut_frames(kept, 64) == kept
    assert cut_frames(frames[:64], 64) == frames[:64]


def test_long_texts_are_cut_with_a_mark() -> None:
    assert cut("x" * 100, 100) == "x" * 100
    assert cut("x" * 101, 100) == "x" * 75 + "... [cut, 101 characters]"
    assert len(cut(cut("x" * 5000, 100), 100)) == 100
