-- What `scoop-outbox migrate` asks besides the migrations themselves: see store/migrate.py.

-- name: read_schema_exists
-- To create a schema that is there is refused without the right to create one, also with "if not exists".
select exists (select from pg_namespace where nspname = %(name)s)

-- name: read_backend
select pg_backend_pid()

-- name: limit_lock_waits
-- Until the end of the transaction. A lock that is waited for keeps everybody waiting who comes later, so the wait is
-- short. The work behind it takes as long as it takes: a limit that the user's role has for statements is not meant.
select set_config('lock_timeout', %(limit)s, true), set_config('statement_timeout', '0', true)

-- name: lock_migrations
-- One migration at a time. The lock is the transaction's.
select pg_advisory_xact_lock(%(lock)s)

-- name: read_blockers
-- Who keeps a server process waiting. Another connection has to ask: that one waits. A prepared transaction is process 0.
-- What others execute is not asked: their statements may have values in them that are nobody's business.
select b.pid, a.application_name, a.usename, a.backend_type, a.state, a.xact_start,
       extract(epoch from clock_timestamp() - a.xact_start)::float8
from (select distinct pid from unnest(pg_blocking_pids(%(pid)s)) as blocking (pid)) as b
left join pg_stat_activity as a using (pid)
order by a.xact_start, b.pid
