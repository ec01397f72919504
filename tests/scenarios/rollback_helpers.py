"""What the scenarios of failures are written with: failures as shapes that can be compared, and sagas they share."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from scoop_outbox import Failure
from tests.scenarios.shop import Shop, launches, raises

SIMULATED = "Simulated failure to test rollback"

_SOURCE = re.compile(r"(.+)\[[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\]")


class Shape(NamedTuple):
    """What a failure tells at one level; the source without the id of the worker, which no test can know."""

    type: str
    saga: str
    message: str | None
    causes: tuple["Shape", ...] = ()


def shape(failure: Failure | None) -> Shape:
    """The shape of a failure; every level has to say which saga and which worker recorded it."""
    assert failure is not None
    source = _SOURCE.fullmatch(failure.source)
    assert source, failure.source
    return Shape(failure.type, source[1], failure.message, tuple(shape(cause) for cause in failure.causes))


def simulated(saga: str, message: str = SIMULATED, *causes: Shape) -> Shape:
    return Shape("RuntimeError", saga, message, causes)


def child_rolled_back(saga: str, step: str, *causes: Shape) -> Shape:
    return Shape("ChildRolledBack", saga, f"Child failure occurred while suspended in step [{step}]", causes)


def child_rollback_failed(saga: str, step: str, *causes: Shape) -> Shape:
    message = f"Child rollback failure occurred while suspended in step [{step}]"
    return Shape("ChildRollbackFailed", saga, message, causes)


def parent_said_so(saga: str, cause: Shape) -> Shape:
    return Shape("ParentSaidSo", saga, None, (cause,))


def children_of(step: str, iteration: int = 0) -> str:
    """How the phase of a rollback is called in which the children of a step instance are rolled back."""
    return f"Rollback of {step}[{iteration}] (rolling back child scopes)"


def fails(_: Any, __: Any) -> None:
    """The body of a step that fails as the scenarios' steps do unless they say otherwise."""
    raise RuntimeError(SIMULATED)


def after(shop: Shop, *entries: str) -> Any:
    """The body of a callback that returns once the journal has all these entries."""

    def body(*_: object) -> Iterator[Any]:
        yield lambda: all(shop.journal.count(entry) for entry in entries)

    return body


X0 = simulated("c2")
X1 = child_rolled_back("root", "1", X0)
X2 = parent_said_so("root", X1)
X3 = parent_said_so("c1", X2)
"""The failures of RB-05, as RB-17 lets them travel."""


def declare_n_deep(shop: Shop, *, broken: bool = False) -> None:
    """Declare the sagas of RB-05; with `broken`, those of RF-01, where the deepest compensation raises."""
    root = shop.saga("root", "R", None)
    shop.step(root, "1", launches("C"), on_child_failure=True, on_child_rollback_failure=True)
    c1 = shop.saga("c1", "C", None)
    shop.step(c1, "1", launches("G"), on_child_failure=True, on_child_rollback_failure=True)
    shop.step(c1, "2")
    shop.saga("c2", "C", None, fails)
    gc = shop.app.saga("gc", "G")
    shop.step(gc, "0", compensate=raises("Rollback failure") if broken else True)
    # The failure of its uncle must have happened before: that it waits is what the scenario is about.
    shop.step(gc, "1", after(shop, "c2-rb0"))
