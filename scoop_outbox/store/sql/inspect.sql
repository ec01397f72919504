-- What people and waiting callers ask.

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
        select from {schema}.run x
        where x.message_id = asked.id and x.service = e.service and (x.saga = e.saga or exists (
            select from {schema}.renamed n
            where n.service = e.service
              and (n.former = e.saga and n.saga = x.saga or n.former = x.saga and n.saga = e.saga)
        ))
    )
) r on true
order by r.failed_at, r.saga

-- name: read_taken_in
select id, topic, key, body, content_type, headers, created_at from {schema}.message where id = %(message)s

-- name: read_hierarchy
with recursive tree as (
    select r.id, null::integer as launched_by from {schema}.run r where r.message_id = %(message)s
    union all
    select b.id, b.launched_by
    from tree t
    cross join lateral (
        select c.child_run as id, c.seq as launched_by
        from {schema}.child c
        where c.run_id = t.id and c.child_run is not null
        union all
        select l.id, null
        from {schema}.run l
        where l.late and l.lineage[cardinality(l.lineage) - 1] = t.id
    ) b
)
select r.id, r.service, r.saga, r.message_id, r.state, r.lineage, t.launched_by, r.step, r.next_step, r.failure, r.obstacle,
       r.reason, r.created_at, r.ended_at, m.topic, r.version, r.interruptions, r.interruption, r.late
from tree t
join {schema}.run r on r.id = t.id
join {schema}.message m on m.id = r.message_id
order by r.created_at, r.id

-- name: read_steps
select run_id, seq, step, kind, iteration, attempt, state, undoes, failure, started_at, ended_at, worker
from {schema}.step
where run_id = any(%(runs)s::uuid[])
order by ended_at, run_id, seq
