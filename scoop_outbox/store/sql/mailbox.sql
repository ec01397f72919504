-- Wake-ups: insert, read, delete. Live work only.
--
-- Mail is named by a list of ids in a select, so that the planner does not see how many there are: it takes a list that it
-- does not know to have ten elements, and a plan for the one at hand always looked better than the one it keeps. To make it
-- took longer than to execute it.

-- name: drop_mail
delete from {schema}.mailbox where id = any((select %(ids)s::bigint[])::bigint[])

-- name: drop_mail_if_waiting
-- Answers whether there is anything to wait for.
with waiting as (
    select exists (select from {schema}.child where run_id = %(run)s and open) as open
), dropped as (
    delete from {schema}.mailbox where id = any((select %(ids)s::bigint[])::bigint[]) and (select open from waiting)
)
select open from waiting

-- name: defer_mail
-- Behind everything that is due already.
update {schema}.mailbox set due = clock_timestamp() where id = any((select %(ids)s::bigint[])::bigint[])

-- name: post_timer
insert into {schema}.mailbox (service, saga, version, run_id, due)
values (%(service)s, %(saga)s, %(version)s, %(run)s, %(due)s)

-- name: address_mail
-- For a run that workers of another version execute than the mail says, so that they find it.
update {schema}.mailbox set version = %(version)s where id = any((select %(ids)s::bigint[])::bigint[]) and version <> %(version)s

-- name: read_due
-- Index reads in order of time, one for each saga: no lock, no write. The oldest mail of each saga comes first, then the
-- second oldest of each: a saga whose runs all wait for something must not keep the others from being executed, however
-- many they are. Runs are divided among the workers that know a saga by the last two bytes of their id; those that have
-- begun among the workers of their version. Mail of a version that only other workers have is theirs. What lies further
-- back than is looked is deleted mail that Postgres cannot clean up yet, or is found when everything is looked through.
-- The clock is the statement's, which an index can be searched with: what is due later is not looked through; the last
-- row, without a run, says when there is more.
(
    select m.run_id, s.saga, extract(epoch from statement_timestamp() - m.due)::float8,
           m.due <= %(suspect)s::timestamptz
    from unnest(%(sagas)s::text[], %(part)s::int[], %(parts)s::int[], %(own_part)s::int[], %(own_parts)s::int[])
         as s (saga, part, parts, own_part, own_parts)
    cross join lateral (
        select run_id, due, row_number() over (order by due) as rank
        from {schema}.mailbox
        where service = %(service)s and saga = s.saga and due <= statement_timestamp()
          and due > statement_timestamp() - %(back)s::interval and version <> all(%(others)s::text[])
          and (get_byte(uuid_send(run_id), 14) * 256 + get_byte(uuid_send(run_id), 15))
              %% case when version = '' then s.parts else s.own_parts end
              = case when version = '' then s.part else s.own_part end
        order by due
        limit %(most)s
    ) m
    order by m.rank, m.due
    limit %(most)s
)
union all
select null, null, extract(epoch from min(next.due) - clock_timestamp())::float8, false
from unnest(%(sagas)s::text[]) as s (saga)
cross join lateral (
    select due from {schema}.mailbox
    where service = %(service)s and saga = s.saga and due > statement_timestamp()
    order by due
    limit 1
) next

-- name: read_left_lying
-- What other workers of the service have not got round to, the newest first, with its age in seconds.
select m.run_id, s.saga, extract(epoch from statement_timestamp() - m.due)::float8, m.due <= %(suspect)s::timestamptz
from unnest(%(sagas)s::text[]) as s (saga)
cross join lateral (
    select run_id, due
    from {schema}.mailbox
    where service = %(service)s and saga = s.saga and due < statement_timestamp() - %(steal)s::interval
      and due > statement_timestamp() - %(back)s::interval and version <> all(%(others)s::text[])
    order by due desc
    limit %(most)s
) m
order by m.due desc
limit %(most)s

-- name: count_due
-- How much work lies waiting that can be done now, counted no further than it matters. What waits for others does not
-- count: to take in no more because of that could keep out what it waits for.
select count(*) from (
    select from {schema}.mailbox
    where service = %(service)s and saga = any(%(sagas)s::text[]) and due <= statement_timestamp()
    limit %(most)s
) due
