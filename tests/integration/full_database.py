"""A database that has a past, and a lot of work: tables with hundreds of thousands of rows each."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.integration.statement_kinds import BIG

FINISHED, WAITING, FAMILY = 300_000, 100_000, 10
FANOUT = 2_000_000
"""A run with 40,000 children, half of which have ended."""
STUCK = 4_000_000
"""A run whose rollback has failed, as has that of its children."""

FILL = f"""
create function r(n bigint) returns uuid immutable parallel safe language sql
    return ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;
create function m(n bigint) returns uuid immutable parallel safe language sql
    return ('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid;

insert into subscription (topic, service, saga)
select 'topic ' || n, 'shop', 'saga ' || n from generate_series(1, 200) n;
insert into subscription (topic, service, saga, ordered) values ('topic in order', 'shop', 'in order', true);

insert into message (id, topic, body, content_type, headers)
select m(n), 'topic 1', '\\x31', 'application/json', '{{}}' from generate_series(1, {FINISHED + WAITING}) n;

insert into run (id, message_id, service, saga, lineage, parent_run, state, step, seq, instance)
select r(n), m(n), 'shop', 'saga 1', array[r(n - n % {FAMILY}), r(n)], nullif(r(n - n % {FAMILY}), r(n)),
       case when n <= {FINISHED} then 'committed' else 'running' end, 'first', 1, 1
from generate_series(1, {FINISHED + WAITING}) n;

insert into step (run_id, seq, step, kind, iteration, attempt, state, started_at, ended_at, worker)
select r(n), 1, 'first', 'step', 0, 0, 'committed', now(), now(), 'w'
from generate_series(1, {FINISHED + WAITING}) n;

insert into child (message_id, service, saga, run_id, seq, ordinal, open, state, child_run)
select m(n), 'shop', 'saga 1', r(n - n % {FAMILY}), 1, n % {FAMILY}, n > {FINISHED},
       case when n <= {FINISHED} then 'committed' else 'started' end, r(n)
from generate_series(1, {FINISHED + WAITING}) n where n % {FAMILY} <> 0;

insert into foreign_child (message_id, service, saga, run_id, home, generation)
select m(n), 'shop', 'saga 1', r(n), '00000000-0000-0000-0000-000000000007', 2
from generate_series(1, {FINISHED + WAITING}) n;

create function f(n bigint) returns uuid immutable parallel safe language sql
    return ('00000000-0000-7000-a000-' || lpad(to_hex(n), 12, '0'))::uuid;
insert into failure (id, causes, type, message, source, document)
select f(n),
       case when n % {FAMILY} = 0 then array(select f(n + k) from generate_series(1, {FAMILY} - 1) k)
            else array[]::uuid[] end,
       'Boom', 'no', 'saga 1[w]', '{{"type":"Boom"}}'
from generate_series(1, {FINISHED}) n;

insert into run (id, message_id, service, saga, lineage, step, seq, instance)
values (r({FANOUT}), m({FANOUT}), 'shop', 'saga 1', array[r({FANOUT})], 'first', 1, 1);
insert into child (message_id, service, saga, run_id, seq, ordinal, open, state, child_run)
select m({FANOUT} + n), 'shop', 'saga 1', r({FANOUT}), 1, n, n > 20000,
       case when n <= 20000 then 'committed' else 'started' end, r({FANOUT} + n)
from generate_series(1, 40000) n;

insert into run (id, message_id, service, saga, lineage, parent_run, state, step, seq, instance, undo_seq, obstacle)
select r({STUCK} + n), m({STUCK} + n), 'shop', 'saga 1', array[r({STUCK})], nullif(r({STUCK}), r({STUCK} + n)),
       'rollback_failed', 'first', 1, 1, 1, f(1)
from generate_series(0, {FAMILY}) n;
insert into step (run_id, seq, step, kind, iteration, attempt, state, started_at, ended_at, worker)
select r({STUCK} + n), 1, 'first', 'step', 0, 0, 'committed', now(), now(), 'w' from generate_series(0, {FAMILY}) n;
insert into child (message_id, service, saga, run_id, seq, ordinal, open, state, child_run)
select m({STUCK} + n), 'shop', 'saga 1', r({STUCK}), 1, n, false, 'rollback_failed', r({STUCK} + n)
from generate_series(1, {FAMILY}) n;
insert into request (target, kind, source) select r(n), 'retry', 'anna' from generate_series(1, {FINISHED}) n;

insert into mailbox (service, saga, run_id, due)
select 'shop', 'saga 1', r(n), now() + interval '1 hour' + (n::bigint * 7919 % 1000003) * interval '1 second'
from generate_series(1, {FINISHED}) n;
insert into mailbox (service, saga, run_id, due)
select case when n <= 20 then 'shop' else 'other' end, 'saga 1', r({FINISHED} + n), now() - interval '1 minute'
from generate_series(1, 1000) n;

insert into lane_entry (run_id, lane, held)
select r({FINISHED} + n), case when n <= 50000 then r(1) else r(n) end, n = 1 or n > 50000
from generate_series(1, {WAITING}) n;

insert into request (target, kind, failure) select r(n), 'cancel', f(n) from generate_series(1, {FINISHED}) n;
insert into request (target, kind, failure, outcome)
select m(n), 'rollback', f(n), case when n % 1000 <> 7 then 'accepted' end from generate_series(1, {FINISHED}) n;

insert into outbox (shard, message_id, topic, body, content_type, headers)
select n % 8, m({FINISHED + WAITING} + n), 'topic 1', '\\x31', 'application/json', '{{}}'
from generate_series(1, {FINISHED}) n;
"""  # noqa: S608 - of our own numbers


@contextmanager
def filled(postgres_url: str, template_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Connect to a database that has a past, and a lot of work; it is dropped at the end."""
    name = f"scoop_outbox_full_{secrets.token_hex(8)}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        create = sql.SQL("create database {} template {}")
        admin.execute(create.format(sql.Identifier(name), sql.Identifier(template_database)))
        url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(sql.SQL("set search_path to {}, public").format(sql.Identifier(DEFAULT_SCHEMA)))
                for table in BIG:  # nothing here needs to survive a crash, and plans are the same
                    connection.execute(sql.SQL("alter table {} set unlogged").format(sql.Identifier(table)))
                connection.execute(FILL.encode())
                connection.execute("analyze")
                yield connection
        finally:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def run_id(number: int) -> UUID:
    return UUID(f"00000000-0000-7000-8000-{number:012x}")


def failure_id(number: int) -> UUID:
    return UUID(f"00000000-0000-7000-a000-{number:012x}")


def message_id(number: int) -> UUID:
    return UUID(f"00000000-0000-7000-9000-{number:012x}")
