-- What people and waiting callers ask.

-- name: subscribe
insert into {schema}.subscription as known (topic, service, saga, ordered, pattern, brokered)
select *, %(brokered)s::bool
from unnest(%(topics)s::text[], %(services)s::text[], %(sagas)s::text[], %(ordered)s::bool[], %(patterns)s::text[])
on conflict (topic, service, saga) do update
set ordered = excluded.ordered, pattern = excluded.pattern, brokered = excluded.brokered
where (known.ordered, known.pattern, known.brokered)
      is distinct from (excluded.ordered, excluded.pattern, excluded.brokered)

-- name: read_brokered
select distinct service from {schema}.subscription where brokered order by service

-- name: read_revision
select version_num from {schema}.alembic_version

-- name: read_roots
-- Whether messages have been taken in, and how their own runs ended. One row at least for each. A run that is to be
-- and is not there yet counts as running.
select asked.id, m.id is not null or o.message_id is not null, r.state, r.failure, r.obstacle
from unnest(%(messages)s::uuid[]) as asked (id)
left join {schema}.message m on m.id = asked.id
left join {schema}.root o on o.message_id = asked.id
left join lateral (
    select state, failure, obstacle, failed_at, saga from {schema}.run where message_id = asked.id
    union all
    select 'running', null, null, null, e.saga
    from unnest(o.services, o.sagas) as e (service, saga)
    where not exists (
        select from {schema}.run x where x.message_id = asked.id and x.service = e.service and x.saga = e.saga
    )
) r on true
order by r.failed_at, r.saga

-- name: read_taken_in
select id, topic, key, body, content_type, headers, created_at from {schema}.message where id = %(message)s

-- name: read_hierarchy
with recursive tree as (
    select r.id, null::integer as launched_by from {schema}.run r where r.message_id = %(message)s
    union all
    select c.child_run, c.seq from tree t join {schema}.child c on c.run_id = t.id where c.child_run is not null
)
select r.id, r.service, r.saga, r.message_id, r.state, r.lineage, t.launched_by, r.step, r.next_step, r.failure, r.obstacle,
       r.reason, r.created_at, r.ended_at, m.topic, r.version, r.interruptions, r.interruption
from tree t
join {schema}.run r on r.id = t.id
join {schema}.message m on m.id = r.message_id
order by r.created_at, r.id

-- name: read_steps
select run_id, seq, step, kind, iteration, attempt, state, undoes, failure, started_at, ended_at, worker
from {schema}.step
where run_id = any(%(runs)s)
order by ended_at, run_id, seq
