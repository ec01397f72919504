"""Options of steps: what a step says besides its callbacks, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypedDict, get_args

from scoop_outbox._deadlines import positive
from scoop_outbox.errors import DefinitionError

Order: TypeAlias = Literal["together", "reverse"]
"""In which order the messages of a step are rolled back."""
Transaction: TypeAlias = Literal["separate", "step"]
"""In which transaction the finaliser of a step that has failed is called."""


class StepOptions(TypedDict, total=False):
    """What a step says about giving up, its children, its time and its finaliser; each may be left out.

    Attributes:
        shield: a cancellation neither discards the step nor reaches what it has launched: the run gives up when all of
            that has ended, and compensates it.
        complete_on_give_up: a cancellation does not discard the step, for its effects outside the database can be taken
            back by its compensation only. What it has launched gives up, unlike that of a `shield`.
        fail_fast: when a message that the step has launched has failed, the others give up.
        rollback_children: `together`, as it is by itself, rolls back at the same time what the step has launched, as it
            was executed. `reverse` rolls back one message after the other, the last one first; sagas that handle the
            same message are rolled back together. Messages before one that cannot be rolled back are left as they are.
        interrupt: an `async def` is cancelled at its next await, within a second or two, when its run gives up. Unless
            it is given, a cancellation interrupts no step, which is asked at its end, or at `scope.checkpoint()`.
        timeout: seconds that an execution of the step may take, or it has failed with `StepTimeout`. An `async def` is
            cancelled; a `def` loses its connection, and its statement is cancelled at the server.
        finally_transaction: what becomes of the finaliser's own work when the step has failed. `separate`, as it is by
            itself, keeps it: the finaliser is called in a transaction of its own. `step` calls it in that of the step,
            with which all is undone that it does in the database and launches.
    """

    shield: bool
    complete_on_give_up: bool
    interrupt: bool
    fail_fast: bool
    rollback_children: Order
    timeout: float | timedelta | None
    finally_transaction: Transaction


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a step as they were given, or as they are by themselves; the timeout in seconds."""

    shield: bool = False
    complete_on_give_up: bool = False
    fail_fast: bool = False
    rollback_children: Order = "together"
    timeout: float | None = None
    finally_transaction: Transaction = "separate"
    interrupt: bool = False

    @classmethod
    def of(cls, given: StepOptions) -> Options:
        """Check options.

        Raises:
            DefinitionError: one is unknown, or what it says is.
        """
        known = [one.name for one in fields(cls)]
        for name in given:
            if name not in known:
                raise DefinitionError(f"option {name!r} of a step is unknown; there are {', '.join(known)}")
        checked: Any = {**given, "timeout": positive("timeout", given.get("timeout"))}
        return cls(**checked)

    def __post_init__(self) -> None:
        """Refuse words that are unknown."""
        if self.rollback_children not in get_args(Order):
            raise DefinitionError(
                f"rollback_children={self.rollback_children!r} is unknown; 'together' tells all of them at once, and "
                "'reverse' one message after the other, the last one first"
            )
        if self.finally_transaction not in get_args(Transaction):
            raise DefinitionError(
                f"finally_transaction={self.finally_transaction!r} is unknown; 'separate' keeps what the finaliser "
                "of a step that has failed does, and 'step' undoes it with what the step has done"
            )


DEFAULT_OPTIONS = Options()
