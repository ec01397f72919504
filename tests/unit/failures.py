"""Failures for tests of what they are and of how much of them is kept."""

from scoop_outbox.failure import (
    Failure,
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
