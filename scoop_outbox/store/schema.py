"""The tables, in one module. What a row of each is, and why it looks as it does.

A message is written to `outbox` by the transaction that launches it, together with one row of `child` for each saga
that is subscribed to its topic: who is waited for is frozen there. A relay publishes and deletes it. Intake writes
`message` and one row of `run` for each saga, and posts mail. Workers follow the mail, execute runs, and write one
row of `step` for each execution. A run that ends updates its row of `child` and posts mail to its parent.

`outbox` and `mailbox` hold live work only and know only insert and delete: their cost does not depend on what has
been. Time is the database's clock; order within a run is `seq`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, TIMESTAMP

from scoop_outbox.errors import DefinitionError
from scoop_outbox.message import checked_name
from scoop_outbox.store.storage import store_well

DEFAULT_SCHEMA = "scoop_outbox"

SHARDS = 8
"""Into how many shards the outbox is divided by key; each is published by one relay at a time, in order."""

SCHEMA_LIMIT = 63
"""Longest name of a schema in bytes: Postgres cuts what is longer off without a word."""


def checked_schema(name: str) -> str:
    """Return `name` if it can be the name of a schema.

    Raises:
        DefinitionError: it is no usable name, or is longer than `SCHEMA_LIMIT` bytes.
    """
    if len(checked_name("schema", name).encode()) > SCHEMA_LIMIT:
        raise DefinitionError(f"the schema name {name[:40]!r}... is longer than the limit of {SCHEMA_LIMIT} bytes")
    return name


_NOW = text("clock_timestamp()")


def _time(name: str, *, nullable: bool = True, default: bool = False) -> Column[Any]:
    return Column(name, TIMESTAMP(timezone=True), nullable=nullable, server_default=_NOW if default else None)


def tables(schema: str = DEFAULT_SCHEMA) -> MetaData:
    """Return the tables as SQLAlchemy metadata, in the given schema."""
    metadata = MetaData(schema=schema)

    # This database's identity: one row, made by the migration.
    Table(
        "home",
        metadata,
        Column("id", Uuid, primary_key=True),
        _time("created_at", nullable=False, default=True),
    )

    # Saga X of service Y listens on topic T. Forgotten only by an explicit command, so that a service which is down
    # is waited for.
    Table(
        "subscription",
        metadata,
        Column("topic", Text, primary_key=True),
        Column("service", Text, primary_key=True),
        Column("saga", Text, primary_key=True),
        _time("created_at", nullable=False, default=True),
        Column("ordered", Boolean, nullable=False, server_default=text("false")),
        # The regular expression of the topics that the topic stands for at the service's broker; null: for itself, and
        # for those that are other names of it.
        Column("pattern", Text),
        # Whether a broker brings the service its messages: a relay without one would pass it by.
        Column("via_broker", Boolean, nullable=False, server_default=text("false")),
        # The name that its lanes are made of, if it once had another one: what was ordered stays so.
        Column("lane", Text),
        Column("names", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    )

    # A saga that had another name: what was launched for that one, and handled by it, is this one's.
    Table(
        "renamed",
        metadata,
        Column("service", Text, primary_key=True),
        Column("former", Text, primary_key=True),
        Column("saga", Text, primary_key=True),
        _time("created_at", nullable=False, default=True),
    )

    # A message still to be published. Insert and delete only: no status, lease or attempts on the hot table.
    # A sequence without cache, so that numbers of one key ascend in the order of its transactions.
    Table(
        "outbox",
        metadata,
        Column("shard", SmallInteger, primary_key=True, autoincrement=False),
        Column("seq", BigInteger, Identity(always=True), primary_key=True),
        Column("message_id", Uuid, nullable=False),
        Column("topic", Text, nullable=False),
        Column("key", Text),
        Column("body", LargeBinary, nullable=False),
        Column("content_type", Text, nullable=False),
        Column("headers", JSON, nullable=False),
        _time("created_at", nullable=False, default=True),
    )

    # Which relay publishes a shard. The epoch grows with every change of owner, and is checked again when published
    # rows are deleted.
    Table(
        "outbox_shard",
        metadata,
        Column("shard", SmallInteger, primary_key=True, autoincrement=False),
        Column("owner", Uuid),
        Column("epoch", BigInteger, nullable=False, server_default=text("0")),
        _time("expires_at", nullable=False),
    )

    # A message that was launched from outside any run, to be carried by a broker: the sagas that were subscribed then.
    Table(
        "expected_root",
        metadata,
        Column("message_id", Uuid, primary_key=True),
        Column("services", ARRAY(Text), nullable=False),
        Column("sagas", ARRAY(Text), nullable=False),
    )

    # An id that a caller has given a message, which is launched once. The digest tells it from others of the topic.
    Table(
        "launched",
        metadata,
        Column("message_id", Uuid, primary_key=True),
        Column("topic", Text, nullable=False),
        Column("digest", Text, nullable=False),
        _time("created_at", nullable=False, default=True),
    )

    # A message taken in: once, however many sagas handle it here.
    Table(
        "message",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("topic", Text, nullable=False),
        Column("key", Text),
        Column("body", LargeBinary, nullable=False),
        Column("content_type", Text, nullable=False),
        Column("headers", JSON, nullable=False),
        _time("created_at", nullable=False, default=True),
    )

    # One execution of one saga for one message; see core/run.py for what the columns mean. JSON, not JSONB: it keeps
    # what was written, and an escaped NUL can be stored. `interruptions` counts how often in a row the run could not be
    # executed, for the reason in `interruption`, and `unwanted` those of them that it did not ask for; `taken_by` is
    # the worker that is about to execute it, written only where the one before may have died of it.
    run = Table(
        "run",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("message_id", Uuid, nullable=False),
        Column("service", Text, nullable=False),
        Column("saga", Text, nullable=False),
        Column("lineage", ARRAY(Uuid), nullable=False),
        Column("parent_run", Uuid),
        Column("state", Text, nullable=False, server_default=text("'running'")),
        Column("step", Text),
        Column("next_step", Text),
        Column("seq", Integer, nullable=False, server_default=text("0")),
        Column("instance", Integer, nullable=False, server_default=text("0")),
        Column("iteration", Integer, nullable=False, server_default=text("0")),
        Column("attempt", Integer, nullable=False, server_default=text("0")),
        Column("handled", Integer, nullable=False, server_default=text("0")),
        _time("not_before"),
        Column("undo_seq", Integer),
        Column("compensation_seq", Integer),
        Column("context", JSON),
        Column("inherited", JSON),
        Column("failure", Uuid),
        _time("failed_at"),
        Column("result", JSON),
        Column("launched_at", JSON),
        Column("reason", Text),
        _time("created_at", nullable=False, default=True),
        _time("ended_at"),
        Column("lane", Uuid),
        Column("version", Text, nullable=False, server_default=text("''")),
        Column("interruptions", Integer, nullable=False, server_default=text("0")),
        Column("interruption", Text),
        Column("taken_by", Uuid),
        Column("needs", Text),
        Column("obstacle", Uuid),
        Column("handler_seq", Integer),
        # Nobody waits for it: its saga was subscribed only after the message was launched.
        Column("late", Boolean, nullable=False, server_default=text("false")),
        Column("unwanted", Integer, nullable=False, server_default=text("0")),
        Column("giving_up", Uuid),
        Column("deadlines", JSON),
        Column("own_deadline", JSON),
        _time("rollback_by"),
        Column("abandoned", Boolean, nullable=False, server_default=text("false")),
        # Leads with the message: it is the idempotency of intake, and how the runs of a message are found.
        Index("run_once", "message_id", "service", "saga", unique=True),
        # Below which run a late one belongs stands in its lineage alone.
        Index("run_late", text("(lineage[cardinality(lineage) - 1])"), postgresql_where=text("late")),
        CheckConstraint(
            "state in ('running', 'rolling_back', 'committed', 'rolled_back', 'rollback_failed', 'parked')",
            name="run_state",
        ),
    )
    # Small, and found without looking at all that has ended. Of columns that a run which goes on leaves as they are:
    # an index on its state would be written to each time that a run ends.
    Index("run_parked", run.c.service, run.c.saga, postgresql_where=run.c.reason.is_not(None))
    Index("run_stuck", run.c.service, postgresql_where=run.c.obstacle.is_not(None))
    Index("run_interrupted", run.c.service, postgresql_where=run.c.interruptions > 0)
    Index("run_taken", run.c.taken_by, postgresql_where=run.c.taken_by.is_not(None))

    # What somebody asks of a run: a person, or the parent of one that gives up. Insert only, and no row of `run` is
    # locked for it: a step holds that lock as long as it takes. `target` is a run, or a message whose runs are all
    # meant, also those that do not exist yet; `failure` is what the runs are told. It stays, to be looked up later.
    # `outcome` is what has become of a request to roll back: none while it waits for what is active. What a person does
    # about a stuck run is carried out at once, and a row, too: who (`source`), why, and of which execution (`seq`).
    request = Table(
        "request",
        metadata,
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("target", Uuid, nullable=False),
        Column("kind", Text, nullable=False),
        Column("failure", Uuid),
        _time("created_at", nullable=False, default=True),
        Column("outcome", Text),
        Column("note", Text),
        Column("source", Text),
        Column("seq", Integer),
    )
    # Once, and the first reason counts.
    Index("request_cancel", request.c.target, unique=True, postgresql_where=text("kind = 'cancel'"))
    waiting = text("kind = 'rollback' and outcome is null")
    Index("request_waiting", request.c.target, postgresql_where=waiting)
    Index("request_action", request.c.target, postgresql_where=text("kind in ('retry', 'skip', 'abandon')"))

    # Why something failed, without its causes, which are referred to: each failure once, whoever is told of it. Type,
    # message and source are as people and queries read them, the document is whole.
    Table(
        "failure",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("causes", ARRAY(Uuid), nullable=False),
        Column("type", Text, nullable=False),
        Column("message", Text),
        Column("source", Text, nullable=False),
        Column("document", JSON, nullable=False),
    )

    # One execution of a step, child-failure handler or compensation: the plan of the rollback, the trace, the times.
    Table(
        "step",
        metadata,
        Column("run_id", Uuid, primary_key=True),
        Column("seq", Integer, primary_key=True, autoincrement=False),
        Column("step", Text, nullable=False),
        Column("kind", Text, nullable=False),
        Column("iteration", Integer, nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("state", Text, nullable=False),
        Column("failure", Uuid),
        Column("undoes", Integer),
        _time("started_at", nullable=False),
        _time("ended_at", nullable=False),
        Column("worker", Text, nullable=False),
    )

    # An expected child and how it ended; `run_id` and `seq` are the parent's, which one that is `healing` had stopped.
    child = Table(
        "child",
        metadata,
        Column("message_id", Uuid, primary_key=True),
        Column("service", Text, primary_key=True),
        Column("saga", Text, primary_key=True),
        Column("run_id", Uuid, nullable=False),
        Column("seq", Integer, nullable=False),
        Column("ordinal", Integer, nullable=False),
        Column("open", Boolean, nullable=False, server_default=text("true")),
        Column("state", Text, nullable=False, server_default=text("'waiting'")),
        Column("child_run", Uuid),
        Column("result", JSON),
        Column("failure", Uuid),
        _time("failed_at"),
        Column("consumed", Boolean, nullable=False, server_default=text("false")),
        Column("obstacle", Uuid),
        Column("delivered", Boolean, nullable=False, server_default=text("false")),
        _time("deadline"),
        Column("healing", Boolean, nullable=False, server_default=text("false")),
        Index("child_of_instance", "run_id", "seq"),
    )
    where = text("state = 'waiting' and deadline is not null"), text("state in ('rolled_back', 'rollback_failed')")
    Index("child_deadline", child.c.run_id, child.c.deadline, postgresql_where=where[0])
    Index("child_failed", child.c.run_id, child.c.seq, child.c.failed_at, postgresql_where=where[1])
    # The rule asks of this index alone whether a run still has to wait, however many children it had.
    Index("child_open", child.c.run_id, postgresql_where=child.c.open)

    # A run of an ordered saga that has not ended. `lane` is a service, a saga and a key, whatever their length; the
    # runs of a lane are executed one after the other, in the order of `seq`: that of taking in. Live work only.
    lane_entry = Table(
        "lane_entry",
        metadata,
        Column("run_id", Uuid, primary_key=True),
        Column("lane", Uuid, nullable=False),
        Column("seq", BigInteger, Identity(always=True), nullable=False),
        Column("held", Boolean, nullable=False, server_default=text("false")),
        Index("lane_entry_lane", "lane", "seq"),
    )
    Index("lane_entry_held", lane_entry.c.lane, unique=True, postgresql_where=lane_entry.c.held)

    # A wake-up. Live work only. `version` is the run's when the mail was posted: workers of another version that is
    # alive leave it alone; empty before the run's first step.
    Table(
        "mailbox",
        metadata,
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("service", Text, nullable=False),
        Column("saga", Text, nullable=False),
        Column("run_id", Uuid, nullable=False),
        _time("due", nullable=False),
        Column("version", Text, nullable=False, server_default=text("''")),
        Index("mailbox_due", "service", "saga", "due"),
        Index("mailbox_run", "run_id"),
    )

    # A process that executes runs, and what it knows: each of its sagas with the version that it has. It says every few
    # seconds that it is alive; `backend` is the server process of its feeder, which is gone at once when it dies;
    # none behind a pooler.
    Table(
        "worker",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("service", Text, nullable=False),
        Column("sagas", ARRAY(Text), nullable=False),
        Column("versions", ARRAY(Text), nullable=False),
        Column("backend", Integer),
        _time("started_at", nullable=False, default=True),
        _time("alive_until", nullable=False),
        Index("worker_of_service", "service"),
    )

    # A saga as some version of the code declares it. Kept when no worker has it any more: runs may still be of it.
    Table(
        "saga_version",
        metadata,
        Column("id", Text, primary_key=True),
        Column("service", Text, nullable=False),
        Column("saga", Text, nullable=False),
        Column("steps", ARRAY(Text), nullable=False),
        Column("number", BigInteger, Identity(always=True), nullable=False),
        _time("created_at", nullable=False, default=True),
        _time("alive_until", nullable=False),
        Index("saga_version_of_saga", "service", "saga"),
    )

    # What could not be published (by the relay) or taken in (by the intake of a service), with its bytes.
    dead_letter = Table(
        "dead_letter",
        metadata,
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("message_id", Uuid),
        Column("topic", Text, nullable=False),
        Column("key", Text),
        Column("body", LargeBinary, nullable=False),
        Column("content_type", Text, nullable=False),
        Column("headers", JSON, nullable=False),
        Column("origin", Text, nullable=False),
        Column("reason", Text, nullable=False),
        _time("created_at", nullable=False, default=True),
        Column("service", Text),
        Column("position", Text),
    )
    # A broker may hand a message over again and again: it is one dead letter of the service.
    Index(
        "dead_letter_once",
        dead_letter.c.message_id,
        dead_letter.c.service,
        unique=True,
        postgresql_where=text("origin = 'intake'"),
    )
    store_well(metadata)
    return metadata
