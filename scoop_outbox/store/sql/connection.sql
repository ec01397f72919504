-- How connections behave on which no step runs, and so no statement of a user.

-- name: plan_once
-- What a statement of ours costs does not depend on its parameters, and to plan it takes longer than to execute it. A
-- plan is kept while tables grow, so it must not be one that reads all of a table that is still small.
select set_config('plan_cache_mode', 'force_generic_plan', %(local)s::bool),
       set_config('jit', 'off', %(local)s::bool),
       set_config('enable_seqscan', 'off', %(local)s::bool)

-- name: set_limits
-- The engine's own, whatever those of the role are: they are meant for other statements.
select set_config('statement_timeout', '50s', %(local)s::bool),
       set_config('lock_timeout', '20s', %(local)s::bool)

-- name: search_indexes
-- For those that read queues in order. When statistics were gathered last, a queue was most likely empty, or nearly so:
-- then to read all of it and sort it looks as good as any plan, and it is carried out when there are a million rows.
select set_config('enable_bitmapscan', 'off', %(local)s::bool),
       set_config('enable_sort', 'off', %(local)s::bool)

-- What a user's callback may leave on a connection, and how it is removed: see store/session_reset.py.

-- name: reset_session_authorization
reset session authorization

-- name: reset_role
reset role

-- name: reset_settings
reset all

-- name: discard_temporary
discard temp

-- name: discard_sequences
discard sequences

-- name: release_session
-- Answers whether nothing is left. What is rare is not removed, so that no other step pays for it: the connection is
-- not used again. And what was prepared by name cannot be deallocated without our own statements.
select not exists (select from pg_listening_channels())
       and not exists (select from pg_cursor() where is_holdable)
       and not exists (select from pg_prepared_statement() where not starts_with(name, 'scoop_')),
       pg_advisory_unlock_all()

-- name: release_locks
-- Behind a pooler, where nobody can keep one.
select pg_advisory_unlock_all()

-- name: wait_for_backend
-- Answers with a row, a moment later, as long as the server is not done with a connection that was given up.
select pg_sleep(0.01) from pg_stat_activity where pid = %(pid)s
