"""The tables of runs: what is executed, asked, waited for and due; see `schema` for how they belong together."""

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
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, TIMESTAMP

_NOW = text("clock_timestamp()")


def time_column(name: str, *, nullable: bool = True, default: bool = False) -> Column[Any]:
    """Return a column that holds a time of the database's clock; with `default`, that of the insert."""
    return Column(name, TIMESTAMP(timezone=True), nullable=nullable, server_default=_NOW if default else None)


def run_tables(metadata: MetaData) -> None:
    """Declare the tables of runs."""
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
        time_column("not_before"),
        Column("undo_seq", Integer),
        Column("compensation_seq", Integer),
        Column("context", JSON),
        Column("inherited", JSON),
        Column("failure", Uuid),
        time_column("failed_at"),
        Column("result", JSON),
        Column("launched_at", JSON),
        Column("reason", Text),
        time_column("created_at", nullable=False, default=True),
        time_column("ended_at"),
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
        time_column("rollback_by"),
        Column("abandoned", Boolean, nullable=False, server_default=text("false")),
        # Of a step that was left: its execution, until its finaliser and what that launched have ended; and the call.
        Column("body_seq", Integer),
        Column("finaliser_seq", Integer),
        # Its payload has been erased, and that of all its hierarchy: it can be looked at, and not undone.
        Column("erased", Boolean, nullable=False, server_default=text("false")),
        # Of a rollback that goes on past what cannot be undone: where that began, and why not.
        Column("undo_from", Integer),
        Column("unresolved", Uuid),
        # The home that is told what becomes of it, if another one waits for it.
        Column("parent_home", Uuid),
        # Leads with the message: it is the idempotency of intake, and how the runs of a message are found.
        Index("run_once", "message_id", "service", "saga", unique=True),
        # Below which run a late one belongs stands in its lineage alone.
        Index("run_late", text("(lineage[cardinality(lineage) - 1])"), postgresql_where=text("late")),
        CheckConstraint(
            "state in ('running', 'rolling_back', 'committed', 'rolled_back', 'rollback_failed', 'parked')",
            name="run_state",
        ),
    )
    # Where hierarchies begin, in order of time: for pruning. Written once, and not when the run ends.
    root = text("parent_run is null and not late")
    Index("run_root", run.c.service, run.c.saga, run.c.created_at, postgresql_where=root)
    # Small, and found without looking at all that has ended. Of columns that a run which goes on leaves as they are:
    # an index on its state would be written to each time that a run ends.
    Index("run_parked", run.c.service, run.c.saga, postgresql_where=run.c.reason.is_not(None))
    Index("run_stuck", run.c.service, postgresql_where=run.c.obstacle.is_not(None))
    Index("run_interrupted", run.c.service, postgresql_where=run.c.interruptions > 0)
    Index("run_taken", run.c.taken_by, postgresql_where=run.c.taken_by.is_not(None))

    # What somebody asks of a run: a person, or the parent of one that gives up. Insert only, and no row of `run` is
    # locked for it: a step holds that lock as long as it takes. `target` is a run, or a message and all its runs, also
    # those to come; `failure` is what they are told. `outcome` is what has become of a request to roll back: none while
    # it waits. One that ends with `above` is a question about it to other homes, and `note` the runs that they have
    # named. What a person does about a stuck run: who (`source`), why, and of which execution (`seq`). Who completed
    # an external participant, with which `result`, or why it failed: of its run, also of one that is still to come.
    request = Table(
        "request",
        metadata,
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("target", Uuid, nullable=False),
        Column("kind", Text, nullable=False),
        Column("failure", Uuid),
        time_column("created_at", nullable=False, default=True),
        Column("outcome", Text),
        Column("note", Text),
        Column("source", Text),
        Column("seq", Integer),
        Column("result", JSON),
    )
    # Once, and the first reason counts.
    Index("request_cancel", request.c.target, unique=True, postgresql_where=text("kind = 'cancel'"))
    waiting = text("kind = 'rollback' and outcome is null")
    Index("request_waiting", request.c.target, postgresql_where=waiting)
    said = text("kind in ('complete', 'fail')")
    Index("request_outside", request.c.target, unique=True, postgresql_where=said)
    Index("request_closed", request.c.target, postgresql_where=text("kind = 'rollback' and outcome is not null"))
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
        time_column("started_at", nullable=False),
        time_column("ended_at", nullable=False),
        Column("worker", Text, nullable=False),
    )

    # An expected child and how it ended; `run_id` and `seq` are the parent's, which one that is `healing` had stopped.
    # One that lives in another home is told of by that `home`, in reports whose `generation` grows. Of a message that
    # was launched from outside, only those are here that other homes handle; `run_id` is the message then.
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
        time_column("failed_at"),
        Column("consumed", Boolean, nullable=False, server_default=text("false")),
        Column("obstacle", Uuid),
        Column("delivered", Boolean, nullable=False, server_default=text("false")),
        time_column("deadline"),
        Column("healing", Boolean, nullable=False, server_default=text("false")),
        Column("home", Uuid),
        Column("generation", Integer, nullable=False, server_default=text("0")),
        # When its home last reported something new of it.
        time_column("reported_at"),
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
        time_column("due", nullable=False),
        Column("version", Text, nullable=False, server_default=text("''")),
        Index("mailbox_due", "service", "saga", "due"),
        Index("mailbox_run", "run_id"),
    )
