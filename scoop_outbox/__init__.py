"""Structured cooperation for message-driven systems, on your own Postgres and Kafka or RabbitMQ.

A message handler is a *saga*: named steps, each one database transaction. The next step does not start until every
handler of every message launched by the step before has finished, all the way down.
"""

from scoop_outbox.answers import Answer
from scoop_outbox.app import Scoop
from scoop_outbox.context import Context
from scoop_outbox.core.run import RunState, StepKind
from scoop_outbox.daemon.running import Running
from scoop_outbox.errors import (
    BrokerError,
    ConflictingMessage,
    DatabaseError,
    DefinitionError,
    PayloadError,
    ScoopError,
    ScopeEnded,
    StepError,
    TransientError,
    UnhandledMessage,
    UnknownMessage,
)
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
from scoop_outbox.handle import Handle
from scoop_outbox.message import Draft, Message, Topic
from scoop_outbox.policy import Retry
from scoop_outbox.saga import GoTo, Repeat, Saga, Step
from scoop_outbox.scope import AsyncScope, BlockingScope, Result, Scope
from scoop_outbox.status import RunStatus, Status, StepStatus

__all__ = [
    "Answer",
    "AsyncScope",
    "BlockingScope",
    "BrokerError",
    "CancellationRequested",
    "ChildRollbackFailed",
    "ChildRolledBack",
    "ConflictingMessage",
    "Context",
    "DatabaseError",
    "DefinitionError",
    "DistributedError",
    "Draft",
    "Failure",
    "Frame",
    "GaveUp",
    "GoTo",
    "Handle",
    "Message",
    "ParentSaidSo",
    "PayloadError",
    "Repeat",
    "Result",
    "Retry",
    "RollbackRequested",
    "RunState",
    "RunStatus",
    "Running",
    "Saga",
    "Scoop",
    "ScoopError",
    "Scope",
    "ScopeEnded",
    "Status",
    "Step",
    "StepError",
    "StepKind",
    "StepStatus",
    "Topic",
    "TransientError",
    "UnhandledMessage",
    "UnknownMessage",
]
