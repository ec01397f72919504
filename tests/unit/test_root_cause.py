"""Which failures are root causes, and how a line names them."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest

from scoop_outbox._failure.bounds import REPEATED
from scoop_outbox._failure.root_cause import Origin, in_a_line, root_cause_text, root_causes, trail
from scoop_outbox.failure import Failure

KEY = Failure("KeyError", "'x'", "pick[w1]")
PALLETS = Failure("OutOfPallets", "no pallet", "pick[w1]", causes=(KEY,))
SCALES = Failure("Broken", "the scales\nare broken", "weigh[w2]")


def rolled_back(*causes: Failure, saga: str = "place") -> Failure:
    return Failure.child_rolled_back("place", causes, source=f"{saga}[w3]")


def deep(levels: int) -> Failure:
    """Return the failure of a root so many levels above the run that failed."""
    failure = PALLETS
    for _ in range(levels):
        failure = rolled_back(failure)
    return failure


def chain(length: int) -> Failure:
    """Return the failure of a step whose exception was raised from another one, and so on."""
    failure = KEY
    for number in range(length):
        failure = Failure("Broken", str(number), "pick[w1]", causes=(failure,))
    return failure


HANDLED = Failure("Broken", "cannot reserve", "reserve[w4]", causes=(rolled_back(PALLETS, saga="reserve"),))
ASKED = Failure("CancellationRequested", "no more wanted", "support")

CASES: dict[str, tuple[Failure, list[Failure]]] = {
    "a step's own": (PALLETS, [PALLETS]),
    "a child's": (rolled_back(PALLETS), [PALLETS]),
    "a grandchild's": (rolled_back(rolled_back(PALLETS)), [PALLETS]),
    "two children's": (rolled_back(PALLETS, SCALES), [PALLETS, SCALES]),
    "the same of two children": (rolled_back(rolled_back(PALLETS), PALLETS), [PALLETS]),
    "what a handler raised instead": (rolled_back(HANDLED), [PALLETS]),
    "a parent's, for its child": (Failure.parent_said_so(SCALES, source="pick[w1]"), [SCALES]),
    "somebody's who cancels": (Failure.gave_up([ASKED], source="place[w3]"), [ASKED]),
    "repeated": (rolled_back(Failure("ChildRolledBack", "x", "s[w]", (REPEATED,)), SCALES), [SCALES]),
    "nobody knows whose": ((lost := rolled_back()), [lost]),
    "deeper than what is kept": (deep(40), [PALLETS]),
    "deeper, of two children": (
        rolled_back(*(Failure("CausesLeftOut", "levels", "scoop_outbox", causes=(one,)) for one in (PALLETS, SCALES))),
        [PALLETS, SCALES],
    ),
    "deeper, of what a handler raised instead": (rolled_back(replace(HANDLED, causes=(deep(40),))), [PALLETS]),
    "a step's own that was raised from too much": ((told := rolled_back(chain(40))), [told.causes[0]]),
    "left out": (rolled_back(Failure("CausesLeftOut", "more", "scoop_outbox"), SCALES), [SCALES]),
}


@pytest.mark.parametrize("case", CASES)
def test_root_causes(case: str) -> None:
    failure, expected = CASES[case]
    assert root_causes(failure) == expected
    way = trail(failure)
    assert way[0] is failure
    assert way[-1] == expected[0]
    assert all(below in above.causes for above, below in pairwise(way))


LINES: dict[str, tuple[Failure, Origin | None, str]] = {
    "without a place": (PALLETS, None, "OutOfPallets: no pallet (saga 'pick')"),
    "with one": (
        PALLETS,
        Origin("depot", "pick", "take"),
        "OutOfPallets: no pallet (service 'depot', saga 'pick', step 'take')",
    ),
    "of no step": (PALLETS, Origin("depot", "pick", None), "OutOfPallets: no pallet (service 'depot', saga 'pick')"),
    "of several lines": (SCALES, None, "Broken: the scales... (saga 'weigh')"),
    "without a message": (Failure("Quiet", " \n", "a[b][w]"), None, "Quiet: <no message> (saga 'a[b]')"),
    "of a person": (ASKED, None, "CancellationRequested: no more wanted (saga 'support')"),
    "that is long": (Failure("Long", "x" * 1000, "s[w]"), None, f"Long: {'x' * 300}... (saga 's')"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_line(case: str) -> None:
    failure, origin, expected = LINES[case]
    assert in_a_line(failure, origin) == expected


def test_point_8_the_text_of_an_exception_begins_with_the_root_cause() -> None:
    error = rolled_back(PALLETS, SCALES).to_exception()
    said = "[place[w3]] ChildRolledBack: Child failure occurred while suspended in step [place]"
    assert str(error) == f"root cause OutOfPallets: no pallet (saga 'pick') and 1 more; {said}"
    assert error.root_cause == PALLETS
    error.origin = Origin("depot", "pick", "take")
    named = "root cause OutOfPallets: no pallet (service 'depot', saga 'pick', step 'take') and 1 more"
    assert str(error) == f"{named}; {said}"
    assert str(copy.copy(error)) == str(error)
    assert [str(cause) for cause in error.causes] == [str(PALLETS), str(SCALES)]


def test_point_8_a_root_cause_itself_is_told_with_its_place() -> None:
    assert root_cause_text(SCALES) == str(SCALES)
    origin = Origin("depot", "weigh", "put on")
    expected = "[weigh[w2]] Broken: the scales (service 'depot', saga 'weigh', step 'put on')\nare broken"
    assert root_cause_text(SCALES, origin) == expected
