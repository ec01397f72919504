"""The log of a command: lines for people, and lines that are JSON, whatever a record holds."""

import io
import json
import logging
import threading
import uuid
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from scoop_outbox._log import get_logger
from scoop_outbox.cli.log import ConsoleFormatter, JsonFormatter, _log_exception_of_thread, _log_unraisable

AT = 1796027860.1234  # 2026-11-30T08:37:40.123Z
RUN = uuid.UUID(int=1)


def record(text: str, *args: object, logger: str = "scoop_outbox.daemon.intake", **more: Any) -> logging.LogRecord:
    made = logging.getLogger(logger).makeRecord(logger, logging.WARNING, __file__, 1, text, args, None, **more)
    made.created = AT
    return made


def line_of(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(made)
    assert "\n" not in line
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(found, dict)
    return found


def test_a_line_is_an_object_with_its_fields() -> None:
    extra = {"service": "shop", "run_id": RUN, "key": None}
    assert line_of(record("intake: paused (%d runs due, high water mark %d)", 12, 10, extra=extra)) == {
        "time": "2026-11-30T08:37:40.123Z",
        "level": "warning",
        "logger": "scoop_outbox.daemon.intake",
        "event": "intake: paused",
        "detail": "12 runs due, high water mark 10",
        "service": "shop",
        "run_id": str(RUN),
    }


def test_an_event_without_a_detail_has_none() -> None:
    assert "detail" not in line_of(record("process: stopped"))
    assert line_of(record("process: stopped"))["event"] == "process: stopped"


def test_a_detail_may_have_parentheses_in_it() -> None:
    found = line_of(record("run: parked (%s)", "Refused: (no (pallet) left)"))
    assert (found["event"], found["detail"]) == ("run: parked", "Refused: (no (pallet) left)")


def test_what_others_log_is_not_taken_apart() -> None:
    found = line_of(record("it took %d s (more than usual)", 3, logger="shop.billing", extra={"customer": 7}))
    assert (found["event"], found["customer"]) == ("it took 3 s (more than usual)", 7)
    assert "detail" not in found


def test_what_every_line_has_is_not_replaced_by_a_field() -> None:
    found = line_of(record("process: stopped", extra={"time": "noon", "level": "low", "event": "none"}))
    assert (found["time"], found["level"], found["event"]) == (
        "2026-11-30T08:37:40.123Z",
        "warning",
        "process: stopped",
    )


def fail() -> None:
    raise ValueError("broken\nin two lines")


def test_an_exception_is_text_with_its_traceback() -> None:
    with pytest.raises(ValueError, match="broken") as failed:
        fail()
    caught = (failed.type, failed.value, failed.tb)
    made = logging.getLogger("x").makeRecord("x", logging.ERROR, __file__, 1, "it: failed", (), caught)
    text = line_of(made)["exception"]
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("ValueError: broken\nin two lines")


class Cycle:
    def __str__(self) -> str:
        return "a cycle"


class Detached:
    """As an object of an ORM whose text takes a query."""

    def __str__(self) -> str:
        raise RuntimeError("no session")


def cycle() -> dict[str, object]:
    found: dict[str, object] = {}
    found["again"] = found
    return found


@pytest.mark.parametrize(
    "extra",
    [
        {"key": b"\xff\x00"},
        {"key": "\x00\u2028\ud800"},
        {"topics": {"orders"}},
        {"seconds": float("nan")},
        {"counts": {(1, 2): 3}},
        {"found": cycle()},
        {"found": Cycle()},
        {"found": Detached()},
        {"found": Detached(), "seconds": float("nan")},
    ],
    ids=[
        "bytes",
        "control characters",
        "a set",
        "not a number",
        "keys that are no text",
        "a cycle",
        "an object",
        "detached",
        "both",
    ],
)
def test_whatever_a_field_holds_the_line_is_json(extra: Mapping[str, object]) -> None:
    found = line_of(record("intake: paused (%s)", "é\n\x1b[31m\udcff", extra=extra))
    assert found["event"] == "intake: paused"
    assert found.keys() > extra.keys()


def test_a_field_that_the_program_gives_each_record_is_ours_in_our_lines(caplog: pytest.LogCaptureFixture) -> None:
    make = logging.getLogRecordFactory()

    def of_the_program(*args: Any, **named: Any) -> logging.LogRecord:
        made = make(*args, **named)
        vars(made).update(service="billing", host="web-7")
        return made

    logging.setLogRecordFactory(of_the_program)
    try:
        get_logger("scoop_outbox.test").warning("intake: paused (%d)", 1, extra={"service": "shop"})
        get_logger("scoop_outbox.test").warning("intake: resumed", stack_info=True)
    finally:
        logging.setLogRecordFactory(make)
    paused, resumed = caplog.records
    assert (vars(paused)["service"], vars(paused)["host"], paused.getMessage()) == (
        "shop",
        "web-7",
        "intake: paused (1)",
    )
    assert (vars(resumed)["service"], resumed.lineno > 1, resumed.module) == ("billing", True, "test_log")
    assert resumed.stack_info is not None


def test_a_thread_that_ends_by_itself_is_no_line_and_one_that_fails_is(caplog: pytest.LogCaptureFixture) -> None:
    for kind in (SystemExit, ValueError):
        _log_exception_of_thread(threading.ExceptHookArgs((kind, kind("7"), None, None)))
    assert [one.getMessage() for one in caplog.records] == ["process: exception not caught (ValueError)"]


def test_what_a_finaliser_raises_is_a_line_without_the_object(caplog: pytest.LogCaptureFixture) -> None:
    told = SimpleNamespace(exc_type=ValueError, exc_value=None, exc_traceback=None, object="secret", err_msg=None)
    _log_unraisable(told)
    (one,) = caplog.records
    assert (one.levelname, one.getMessage()) == ("ERROR", "process: exception ignored (ValueError)")
    assert "secret" not in JsonFormatter().format(one)


def test_on_a_console_our_lines_begin_with_their_component() -> None:
    made = record("intake: paused (%d runs due)", 12, extra={"service": "shop"})
    assert ConsoleFormatter().format(made) == "2026-11-30T08:37:40.123Z WARNING  intake: paused (12 runs due)"


def test_on_a_console_lines_of_others_name_their_logger() -> None:
    assert ConsoleFormatter().format(record("hello", logger="shop.billing")) == (
        "2026-11-30T08:37:40.123Z WARNING  shop.billing: hello"
    )


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where a logger that nothing else listens to writes its JSON."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("scoop_outbox.test_log")
    logger.addHandler(handler)
    logger.propagate = False
    yield written
    logger.removeHandler(handler)
    logger.propagate = True


def test_a_line_is_written_as_one_line(stream: io.StringIO) -> None:
    logging.getLogger("scoop_outbox.test_log").error("run: parked (%s)", "two\nlines", extra={"service": "shop"})
    assert [json.loads(line)["detail"] for line in stream.getvalue().splitlines()] == ["two\nlines"]
