"""The tables: those of runs are in `run_tables`, those of other homes in `peer_tables`.

A message is written to `outbox` by the transaction that launches it, together with one row of `child` for each saga
that is subscribed to its topic: who is waited for is frozen there. A relay publishes and deletes it. Intake writes
`message` and one row of `run` for each saga, and posts mail. Workers follow the mail, execute runs, and write one
row of `step` for each execution. A run that ends updates its row of `child` and posts mail to its parent.

`outbox` and `mailbox` hold live work only and know only insert and delete: their cost does not depend on what has
been. Time is the database's clock; order within a run is `seq`.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSON

from scoop_outbox.errors import DefinitionError
from scoop_outbox.message import checked_name
from scoop_outbox.store.peer_tables import peer_tables
from scoop_outbox.store.run_tables import run_tables, time_column
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


def tables(schema: str = DEFAULT_SCHEMA) -> MetaData:
    """Return the tables as SQLAlchemy metadata, in the given schema."""
    metadata = MetaData(schema=schema)

    # This database's identity: one row, made by the migration. One that has a name cooperates with other homes: topics
    # of the broker that begin with `prefix` are what it is told on, and `revision` counts the changes of what it has
    # `announced` to them: who listens here.
    Table(
        "home",
        metadata,
        Column("id", Uuid, primary_key=True),
        time_column("created_at", nullable=False, default=True),
        Column("name", Text),
        Column("prefix", Text, nullable=False, server_default="scoop."),
        Column("revision", BigInteger, nullable=False, server_default=text("0")),
        Column("announced", Text),
        # The server and the database that it was in when it was named: a copy of it is somewhere else.
        Column("place", Text),
        # Whether other homes that have its sagas, too, are to be preferred.
        Column("draining", Boolean, nullable=False, server_default=text("false")),
    )

    # Saga X of service Y listens on topic T. Forgotten only by an explicit command, so that a service which is down
    # is waited for.
    Table(
        "subscription",
        metadata,
        Column("topic", Text, primary_key=True),
        Column("service", Text, primary_key=True),
        Column("saga", Text, primary_key=True),
        time_column("created_at", nullable=False, default=True),
        Column("ordered", Boolean, nullable=False, server_default=text("false")),
        # The regular expression of the topics that the topic stands for at the service's broker; null: for itself, and
        # for those that are other names of it.
        Column("pattern", Text),
        # Whether a broker brings the service its messages: a relay without one would pass it by.
        Column("via_broker", Boolean, nullable=False, server_default=text("false")),
        # The name that its lanes are made of, if it once had another one: what was ordered stays so.
        Column("lane", Text),
        Column("names", ARRAY(Text), nullable=False, server_default=text("'{}'")),
        # How long hierarchies of the saga's are kept, and their payload; null: as whoever prunes says.
        Column("retention", Interval),
        Column("retain_payload", Interval),
        # Whether somebody outside does the work, and says how it ended.
        Column("external", Boolean, nullable=False, server_default=text("false")),
        # Names that the saga had before, all of them: other homes of the service may still have them.
        Column("formerly", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    )

    # A saga that had another name: what was launched for that one, and handled by it, is this one's.
    Table(
        "renamed",
        metadata,
        Column("service", Text, primary_key=True),
        Column("former", Text, primary_key=True),
        Column("saga", Text, primary_key=True),
        time_column("created_at", nullable=False, default=True),
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
        time_column("created_at", nullable=False, default=True),
        # Which sagas of other homes are waited for, as their homes read it.
        Column("expects", Text),
    )

    # Which relay publishes a shard. The epoch grows with every change of owner, and is checked again when published
    # rows are deleted.
    Table(
        "outbox_shard",
        metadata,
        Column("shard", SmallInteger, primary_key=True, autoincrement=False),
        Column("owner", Uuid),
        Column("epoch", BigInteger, nullable=False, server_default=text("0")),
        time_column("expires_at", nullable=False),
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
        time_column("created_at", nullable=False, default=True),
    )

    # A message taken in: once, however many sagas handle it here. One that has been emptied starts nothing more, should
    # it come again: its payload was erased, or its hierarchy was pruned, which is remembered for a while.
    message = Table(
        "message",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("topic", Text, nullable=False),
        Column("key", Text),
        Column("body", LargeBinary, nullable=False),
        Column("content_type", Text, nullable=False),
        Column("headers", JSON, nullable=False),
        time_column("created_at", nullable=False, default=True),
        time_column("emptied_at"),
        time_column("forget_at"),
    )
    Index("message_pruned", message.c.forget_at, postgresql_where=message.c.forget_at.is_not(None))

    run_tables(metadata)
    peer_tables(metadata)

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
        time_column("started_at", nullable=False, default=True),
        time_column("alive_until", nullable=False),
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
        time_column("created_at", nullable=False, default=True),
        time_column("alive_until", nullable=False),
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
        time_column("created_at", nullable=False, default=True),
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
