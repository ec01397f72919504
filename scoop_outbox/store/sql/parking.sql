-- Parked runs: which of them can go on again.

-- name: read_parked
-- Runs that wait for a worker that knows what they need, and the steps that they have executed.
select r.id, r.saga, r.version, r.needs, r.undo_seq is not null,
       (select v.steps from {schema}.saga_version v where v.id = r.version),
       array(
           select distinct s.step from {schema}.step s
           where s.run_id = r.id and s.kind = 'step' and s.state = 'committed'
       )
from unnest(%(sagas)s::text[], %(steps)s::text[]) as k (saga, step)
join {schema}.run r on r.service = %(service)s and r.saga = k.saga and r.needs = k.step and r.reason is not null
limit %(most)s

-- name: unpark
-- A run goes on where it was parked; `anew` ones belong to no version any more: whoever takes it on decides. Their rollback
-- may take as long as any. The mail is for all versions: whoever finds it knows whose it is.
with freed as (
    update {schema}.run
    set state = case when undo_seq is null then 'running' else 'rolling_back' end, reason = null, needs = null,
        ended_at = null, interruptions = 0, unwanted = 0, interruption = null, taken_by = null,
        version = case when %(anew)s and needs is not null then '' else version end,
        rollback_by = case when %(anew)s then null else rollback_by end
    where id = any(%(runs)s::uuid[]) and state = 'parked'
    returning id, service, saga, version
)
insert into {schema}.mailbox (service, saga, run_id, due)
select service, saga, id, clock_timestamp() from freed
returning run_id, service, saga, version, 0.0::float8

-- name: count_stuck
select (select count(*) from (
            select from {schema}.run where service = %(service)s and reason is not null limit %(most)s
        ) p),
       (select count(*) from (
            select from {schema}.run where service = %(service)s and interruptions > 0 limit %(most)s
        ) i),
       (select count(*) from (
            select from {schema}.run where service = %(service)s and obstacle is not null and not abandoned
            limit %(most)s
        ) s)

-- name: list_parked
select id, saga, reason, needs, coalesce(ended_at, created_at) from {schema}.run
where service = %(service)s and reason is not null
limit %(most)s
