"""Structured cooperation for message-driven systems, on your own Postgres and Kafka or RabbitMQ.

A message handler is a *saga*: named steps, each one database transaction. The next step does not start until every
handler of every message launched by the step before has finished, all the way down.
"""

import typing as _typing
from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec

if _typing.TYPE_CHECKING:
    from scoop_outbox._options import StepOptions
    from scoop_outbox.answers import ActiveRun, Answer, RollbackAnswer
    from scoop_outbox.app import Scoop
    from scoop_outbox.broker.protocol import Resource
    from scoop_outbox.client.handle import Handle
    from scoop_outbox.context import Context
    from scoop_outbox.core.plans.pruner import ArchivedHierarchy
    from scoop_outbox.core.run import RunState, StepKind
    from scoop_outbox.daemon.running import Running
    from scoop_outbox.daemon.worker.alerts import StuckRun
    from scoop_outbox.errors import (
        AmbiguousId,
        BrokerError,
        ConflictingMessage,
        DatabaseError,
        DefinitionError,
        PayloadError,
        RunCancelled,
        ScoopError,
        ScopeEnded,
        StepError,
        StepTimeout,
        TransientError,
        UnhandledMessage,
        UnknownMessage,
    )
    from scoop_outbox.external import CompleteOptions, External, ExternalOptions, FailOptions
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
    from scoop_outbox.message import Draft, Message, Topic
    from scoop_outbox.operations.dead_letters import AsyncDeadLetters, DeadLetters
    from scoop_outbox.operations.doctor import AsyncDoctor, Doctor
    from scoop_outbox.operations.handlers import AsyncHandlers, Handlers
    from scoop_outbox.operations.retention import Pruning, PruningOptions
    from scoop_outbox.operations.runs import AsyncRuns, Runs
    from scoop_outbox.policy import Retry
    from scoop_outbox.saga import Saga, SagaOptions
    from scoop_outbox.scope import AsyncScope, BlockingScope, Result, Scope
    from scoop_outbox.status import ActionStatus, ChildElsewhere, RunStatus, Status, StepStatus
    from scoop_outbox.step import GoTo, Repeat, Step
    from scoop_outbox.strategy import AcknowledgedWithin, OpenChild, Outlook, Participant, StaticTopology, Strategy

__version__ = "0.1.0"

__all__ = [
    "AcknowledgedWithin",
    "ActionStatus",
    "ActiveRun",
    "AmbiguousId",
    "Answer",
    "ArchivedHierarchy",
    "AsyncDeadLetters",
    "AsyncDoctor",
    "AsyncHandlers",
    "AsyncRuns",
    "AsyncScope",
    "BlockingScope",
    "BrokerError",
    "CancellationRequested",
    "ChildElsewhere",
    "ChildRollbackFailed",
    "ChildRolledBack",
    "CompleteOptions",
    "ConflictingMessage",
    "Context",
    "DatabaseError",
    "DeadLetters",
    "DefinitionError",
    "DistributedError",
    "Doctor",
    "Draft",
    "External",
    "ExternalOptions",
    "FailOptions",
    "Failure",
    "Frame",
    "GaveUp",
    "GoTo",
    "Handle",
    "Handlers",
    "Message",
    "OpenChild",
    "Outlook",
    "ParentSaidSo",
    "Participant",
    "PayloadError",
    "Pruning",
    "PruningOptions",
    "Repeat",
    "Resource",
    "Result",
    "Retry",
    "RollbackAnswer",
    "RollbackRequested",
    "RunCancelled",
    "RunState",
    "RunStatus",
    "Running",
    "Runs",
    "Saga",
    "SagaOptions",
    "Scoop",
    "ScoopError",
    "Scope",
    "ScopeEnded",
    "StaticTopology",
    "Status",
    "Step",
    "StepError",
    "StepKind",
    "StepOptions",
    "StepStatus",
    "StepTimeout",
    "Strategy",
    "StuckRun",
    "Topic",
    "TransientError",
    "UnhandledMessage",
    "UnknownMessage",
]

# Imported when they are asked for: who only wants a command's help, or an error's name, needs no database driver. One
# of them takes most of a second of processor time.
_HOMES = {
    "scoop_outbox.answers": ("ActiveRun", "Answer", "RollbackAnswer"),
    "scoop_outbox.app": ("Scoop",),
    "scoop_outbox.broker.protocol": ("Resource",),
    "scoop_outbox.context": ("Context",),
    "scoop_outbox.core.plans.pruner": ("ArchivedHierarchy",),
    "scoop_outbox.core.run": ("RunState", "StepKind"),
    "scoop_outbox.daemon.running": ("Running",),
    "scoop_outbox.errors": (
        "AmbiguousId",
        "BrokerError",
        "ConflictingMessage",
        "DatabaseError",
        "DefinitionError",
        "PayloadError",
        "RunCancelled",
        "ScoopError",
        "ScopeEnded",
        "StepError",
        "StepTimeout",
        "TransientError",
        "UnhandledMessage",
        "UnknownMessage",
    ),
    "scoop_outbox.external": ("CompleteOptions", "External", "ExternalOptions", "FailOptions"),
    "scoop_outbox.failure": (
        "CancellationRequested",
        "ChildRollbackFailed",
        "ChildRolledBack",
        "DistributedError",
        "Failure",
        "Frame",
        "GaveUp",
        "ParentSaidSo",
        "RollbackRequested",
    ),
    "scoop_outbox.client.handle": ("Handle",),
    "scoop_outbox.message": ("Draft", "Message", "Topic"),
    "scoop_outbox.operations.dead_letters": ("AsyncDeadLetters", "DeadLetters"),
    "scoop_outbox.operations.doctor": ("AsyncDoctor", "Doctor"),
    "scoop_outbox.operations.handlers": ("AsyncHandlers", "Handlers"),
    "scoop_outbox.operations.runs": ("AsyncRuns", "Runs"),
    "scoop_outbox.operations.retention": ("Pruning", "PruningOptions"),
    "scoop_outbox.policy": ("Retry",),
    "scoop_outbox.saga": ("Saga", "SagaOptions"),
    "scoop_outbox.scope": ("AsyncScope", "BlockingScope", "Result", "Scope"),
    "scoop_outbox.status": ("ActionStatus", "ChildElsewhere", "RunStatus", "Status", "StepStatus"),
    "scoop_outbox.daemon.worker.alerts": ("StuckRun",),
    "scoop_outbox._options": ("StepOptions",),
    "scoop_outbox.step": ("GoTo", "Repeat", "Step"),
    "scoop_outbox.strategy": (
        "AcknowledgedWithin",
        "OpenChild",
        "Outlook",
        "Participant",
        "StaticTopology",
        "Strategy",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

if not _typing.TYPE_CHECKING:  # a type checker would take it for a promise that every name is there

    def __getattr__(name: str) -> object:
        """Import the module of a public name, once."""
        if name not in _HOME_OF:
            if not name.startswith("_") and _find_spec(f"{__name__}.{name}") is not None:
                return _import_module(f"{__name__}.{name}")  # a module that nobody has imported yet
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(_import_module(_HOME_OF[name]), name)
        return value

    def __dir__() -> list[str]:
        """List what is there once it is asked for, too."""
        return sorted({*globals(), *__all__})
