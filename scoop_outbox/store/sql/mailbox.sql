-- Wake-ups: insert, read, delete. Live work only.

-- name: drop_mail
delete from {schema}.mailbox where id = any(%(ids)s)

-- name: drop_mail_if_waiting
-- Answers whether there is anything to wait for.
with waiting as (
    select exists (select from {schema}.child where run_id = %(run)s and open) as open
), dropped as (
    delete from {schema}.mailbox where id = any(%(ids)s) and (select open from waiting)
)
select open from waiting

-- name: defer_mail
-- Behind everything that is due already.
update {schema}.mailbox set due = clock_timestamp() where id = any(%(ids)s)

-- name: post_timer
insert into {schema}.mailbox (service, saga, run_id, due) values (%(service)s, %(saga)s, %(run)s, %(due)s)

-- name: read_due
-- Plain index reads in order of time: no lock, no join, no write. What is due comes first; the one row that is not due
-- yet says how long to sleep. Runs are divided among the workers of a service by the last two bytes of their id. The clock
-- is the statement's, which an index can be searched with: what is due later is not looked through. Mail of sagas
-- that this process does not know is left to processes that do, and must not hide what lies behind it. What lies further
-- back than is looked is deleted mail that Postgres cannot clean up yet, or is found when everything is looked through.
select run_id, saga, extract(epoch from due - clock_timestamp())::float8
from (
    (
        select run_id, saga, due
        from {schema}.mailbox
        where service = %(service)s and due <= statement_timestamp()
          and due > statement_timestamp() - %(back)s::interval and saga = any(%(sagas)s)
          and (get_byte(uuid_send(run_id), 14) * 256 + get_byte(uuid_send(run_id), 15)) %% %(parts)s = %(part)s
        order by due
        limit %(most)s
    )
    union all
    (
        select run_id, saga, due
        from {schema}.mailbox
        where service = %(service)s and due > statement_timestamp()
        order by due
        limit 1
    )
) m
order by due

-- name: read_left_lying
-- What other workers of the service have not got round to, the newest first, with its age in seconds.
select run_id, saga, extract(epoch from statement_timestamp() - due)::float8
from {schema}.mailbox
where service = %(service)s and due < statement_timestamp() - %(steal)s::interval
  and due > statement_timestamp() - %(back)s::interval and saga = any(%(sagas)s)
order by due desc
limit %(most)s

-- name: count_workers
select pid, pid = pg_backend_pid()
from pg_catalog.pg_stat_activity
where application_name = %(name)s and datname = current_database()
order by pid

-- name: name_connection
select set_config('application_name', %(name)s, false)

-- name: count_due
-- How much work lies waiting that can be done now, counted no further than it matters. What waits for others does not
-- count: to take in no more because of that could keep out what it waits for.
select count(*) from (
    select from {schema}.mailbox
    where service = %(service)s and saga = any(%(sagas)s) and due <= statement_timestamp()
    limit %(most)s
) due
