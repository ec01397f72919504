-- What people and waiting callers ask.

-- name: read_roots
-- Whether messages have been taken in, and how their own runs ended. One row at least for each. A run that is to be
-- and is not there yet counts as running. Results may be large: they are read when all runs of a message have ended.
select asked.id, m.id is not null or o.message_id is not null, r.saga, r.state, r.failure, r.obstacle,
       case when r.state = 'committed'
             and count(*) filter (where r.state in ('running', 'rolling_back', 'parked')) over (partition by asked.id) = 0
            then r.result::text end, m.forget_at is not null
from unnest(%(messages)s::uuid[]) as asked (id)
left join {schema}.message m on m.id = asked.id
left join {schema}.expected_root o on o.message_id = asked.id
left join lateral (
    select state, failure, obstacle, failed_at, service, saga, result from {schema}.run where message_id = asked.id
    union all
    -- In other homes.
    select case when c.open then 'running' when c.state in ('cancelled', 'skipped') then 'committed' else c.state end,
           case when c.open or c.state = 'cancelled' then null else c.failure end,
           case when c.open then null else c.obstacle end, c.failed_at, c.service, c.saga, c.result
    from {schema}.child c
    where c.message_id = asked.id and c.run_id = asked.id and c.home is not null
    union all
    select 'running', null, null, null, e.service, e.saga, null
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
order by r.failed_at, r.service, r.saga

-- name: is_known
-- Whether a message has been taken in, or somebody is to take it in, and its hierarchy has not been pruned.
select exists (select from {schema}.message where id = %(message)s and forget_at is null)
       or exists (select from {schema}.expected_root where message_id = %(message)s)
          and not exists (select from {schema}.message where id = %(message)s)

-- name: read_origins
-- In which service, saga and step failures happened, below runs of some messages. The trails are all failures on the way
-- from there to the origins: only children that failed with one of them are followed.
with recursive tree as (
    select id from {schema}.run where message_id = any(%(messages)s::uuid[])
    union
    select c.child_run
    from tree t
    join {schema}.child c on c.run_id = t.id
    where c.child_run is not null and (c.failure = any(%(trails)s::uuid[]) or c.obstacle = any(%(trails)s::uuid[]))
)
select o.id, r.service, r.saga,
       coalesce((select s.step from {schema}.step s where s.run_id = r.id and s.failure = o.id order by s.seq desc limit 1),
                r.step)
from tree t
join {schema}.run r on r.id = t.id
join unnest(%(origins)s::uuid[]) as o (id) on o.id in (r.failure, r.obstacle)

-- part: open_runs
-- The runs below a message, or a run, that have not ended. Only what is open is looked at, and of that no more than matters to
-- somebody who reads it.
with recursive open as (
    select id from {schema}.run
    where message_id = %(message)s and state in ('running', 'rolling_back', 'parked')
    union
    select id from {schema}.run
    where id = %(run)s and state in ('running', 'rolling_back', 'parked')
    union all
    select c.child_run
    from open p
    join {schema}.child c on c.run_id = p.id and c.open and c.child_run is not null
), found as (
    select id from open limit 1000
)

-- name: read_open_runs
-- First those that wait for no other one, as nothing goes on before they do, the longest idle first; behind them those that
-- sleep, for they do as they should.
-- use: open_runs
select r.id, r.message_id, r.parent_run, r.service, r.saga, r.state, r.step, r.next_step, w.children,
       extract(epoch from clock_timestamp() - coalesce(s.ended_at, r.created_at))::float8 as idle,
       extract(epoch from r.not_before - clock_timestamp())::float8, r.attempt, r.reason, r.interruptions, r.interruption,
       coalesce((select not t.held from {schema}.lane_entry t where t.run_id = r.id), false),
       exists (select from {schema}.worker k where k.service = r.service and k.alive_until > clock_timestamp()),
       coalesce(h.name, r.parent_home::text), count(*) over ()
from found f
join {schema}.run r on r.id = f.id
left join {schema}.peer h on h.id = r.parent_home
cross join lateral (
    select count(*) as children from (select from {schema}.child c where c.run_id = r.id and c.open limit 1000) c
) w
left join lateral (
    select ended_at from {schema}.step where run_id = r.id order by seq desc limit 1
) s on true
order by w.children > 0, coalesce(r.not_before > clock_timestamp() and r.attempt = 0, false), idle desc, r.id
limit %(most)s

-- name: read_not_taken_in
-- Which sagas are waited for below a message, or a run, that have not been handed theirs yet, whether it is a dead letter
-- of their service, and whether a relay is alive.
-- use: open_runs
, missing as (
    select c.message_id, c.run_id, c.service, c.saga
    from found f
    join {schema}.child c on c.run_id = f.id and c.open and c.child_run is null and c.home is null
    union all
    select o.message_id, null, e.service, e.saga
    from {schema}.expected_root o
    cross join unnest(o.services, o.sagas) as e (service, saga)
    where o.message_id = %(message)s
      and not exists (select from {schema}.run x where x.message_id = o.message_id and x.service = e.service)
    union all
    select %(message)s::uuid, null, null, null
    where %(message)s::uuid is not null
      and not exists (select from {schema}.message where id = %(message)s)
      and not exists (select from {schema}.expected_root where message_id = %(message)s)
)
select m.message_id, m.run_id, m.service, m.saga,
       (select d.id from {schema}.dead_letter d
        where d.message_id = m.message_id and d.origin = 'intake' and (m.service is null or d.service = m.service)
        order by d.id desc limit 1),
       exists (select from {schema}.outbox_shard where expires_at > clock_timestamp()), count(*) over ()
from missing m
limit %(most)s

-- name: read_open_elsewhere
-- What is waited for in other homes below a message, or a run, as these have said it last. First that of which nothing has been
-- heard, then the longest silent.
-- use: open_runs
, waiting as (
    select c.message_id, c.run_id, c.seq, c.service, c.saga, c.state, c.home, c.child_run, c.reported_at
    from found f
    join {schema}.child c on c.run_id = f.id and c.open and c.home is not null
    union all
    select c.message_id, c.run_id, c.seq, c.service, c.saga, c.state, c.home, c.child_run, c.reported_at
    from {schema}.child c
    where c.message_id = %(message)s and c.run_id = c.message_id and c.open and c.home is not null
), shown as (
    select w.*, count(*) over () as waiting
    from waiting w
    order by w.reported_at nulls first, w.message_id, w.service, w.saga
    limit %(most)s
)
select w.message_id, nullif(w.run_id, w.message_id), w.service, w.saga, w.state, w.home, p.name, w.child_run,
       extract(epoch from clock_timestamp() - s.ended_at)::float8,
       extract(epoch from clock_timestamp() - w.reported_at)::float8,
       extract(epoch from clock_timestamp() - p.heard_at)::float8, w.waiting
from shown w
left join {schema}.peer p on p.id = w.home
left join {schema}.step s on s.run_id = w.run_id and s.seq = w.seq
order by w.reported_at nulls first, w.message_id, w.service, w.saga

-- name: read_taken_in
select id, topic, key, body, content_type, headers, created_at
from {schema}.message
where id = %(message)s and emptied_at is null

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
       r.reason, r.created_at, r.ended_at, m.topic, r.version, r.interruptions, r.interruption, r.late,
       r.giving_up, r.abandoned, r.deadlines::text, r.own_deadline::text, r.rollback_by,
       coalesce(p.name, r.parent_home::text),
       case when r.state = 'running' and r.attempt = 0 and r.not_before > clock_timestamp() then r.not_before end
from tree t
join {schema}.run r on r.id = t.id
join {schema}.message m on m.id = r.message_id
left join {schema}.peer p on p.id = r.parent_home
order by r.created_at, r.id

-- name: read_children_elsewhere
-- Children in other homes, as these have said it last: of runs, and of messages that were launched from outside.
select c.message_id, c.service, c.saga, c.home, p.name, c.state, c.open, nullif(c.run_id, c.message_id),
       case when c.run_id <> c.message_id then c.seq end, c.child_run, s.ended_at, c.reported_at, c.failure, c.obstacle
from {schema}.child c
left join {schema}.peer p on p.id = c.home
left join {schema}.step s on s.run_id = c.run_id and s.seq = c.seq
where c.run_id = any(%(runs)s::uuid[]) and c.home is not null
order by c.message_id, c.service, c.saga

-- name: read_steps
select run_id, seq, step, kind, iteration, attempt, state, undoes, failure, started_at, ended_at, worker
from {schema}.step
where run_id = any(%(runs)s::uuid[])
order by ended_at, run_id, seq

-- name: read_actions
-- What people have done about runs that were stuck, and said of the work of external participants.
select target, kind, created_at, source, note, seq
from (
    -- Not all columns: who only looks may not read what was said as a result.
    select id, target, kind, created_at, source, note, seq
    from {schema}.request
    where target = any(%(runs)s) and kind in ('retry', 'skip', 'abandon')
    union all
    select id, target, kind, created_at, source, note, seq
    from {schema}.request
    where target = any(%(runs)s) and kind in ('complete', 'fail')
) q
order by id

-- name: find_ids
-- Messages and runs whose ids lie in a range, which is how a prefix is looked for; of a run, its message too.
(select 'message', id, null::uuid from {schema}.message where id between %(low)s and %(high)s order by id limit %(most)s)
union
(select distinct 'message', message_id, null::uuid from {schema}.child
 where message_id between %(low)s and %(high)s order by message_id limit %(most)s)
union
(select 'message', message_id, null::uuid from {schema}.expected_root
 where message_id between %(low)s and %(high)s order by message_id limit %(most)s)
union
(select 'run', id, message_id from {schema}.run where id between %(low)s and %(high)s order by id limit %(most)s)
order by 2

-- name: find_ids_in_transit
-- Looks through the outbox and the dead letters, which have no index for it.
(select 'message', message_id, null::uuid from {schema}.outbox
 where message_id between %(low)s and %(high)s order by message_id limit %(most)s)
union
(select 'message', message_id, null::uuid from {schema}.dead_letter
 where message_id between %(low)s and %(high)s order by message_id limit %(most)s)
order by 2

-- name: read_whereabouts
-- Where messages are: taken in, pruned, in the outbox, or given up, by a relay or by the intake of a service. The outbox is looked
-- through unless all of them have been taken in: it has no index for it.
select id, case when forget_at is null then 'taken in' else 'pruned' end, topic, key,
       case when forget_at is null then created_at else emptied_at end, null::bigint, null::text, null::text
from {schema}.message where id = any(%(messages)s::uuid[])
union all
select message_id, 'outbox', topic, key, created_at, null, null, null
from {schema}.outbox
where message_id = any(%(messages)s::uuid[])
  and (select count(*) from {schema}.message where id = any(%(messages)s::uuid[])) < cardinality(%(messages)s::uuid[])
union all
select message_id, 'dead letter', topic, key, created_at, id, service, reason
from {schema}.dead_letter where message_id = any(%(messages)s::uuid[])

-- name: read_unstarted
-- Who was to handle a message and has no run for it: below these runs, and of the message at the top.
select c.message_id, c.service, c.saga, c.state, c.run_id, c.seq
from {schema}.child c
where c.run_id = any(%(runs)s::uuid[]) and c.child_run is null and c.home is null
union all
select o.message_id, e.service, e.saga, 'waiting', null, null
from {schema}.expected_root o
cross join unnest(o.services, o.sagas) as e (service, saga)
where o.message_id = %(message)s
  and not exists (select from {schema}.run x where x.message_id = o.message_id and x.service = e.service)
order by 6, 1, 2, 3

-- name: read_situations
-- What runs may wait for besides children: their turn in a lane, a time, mail, and whoever holds the lock of their row. Who
-- locks a row writes its transaction into it, and holds the lock of that transaction as long as it lasts: nobody has to be
-- waited for to learn that. What others execute is not asked: their statements may have values in them.
select r.id, r.message_id, r.service, r.saga, r.lineage, r.parent_run, r.state, r.step, r.next_step, r.seq, r.instance,
       r.iteration, r.attempt, r.handled, r.not_before, r.undo_seq, r.compensation_seq, r.handler_seq, r.failure,
       r.obstacle, r.giving_up,
       (select q.failure from {schema}.request q where q.kind = 'cancel' and q.target in (r.id, r.message_id)
        order by q.id limit 1),
       (select q.failure from {schema}.request q where q.target = r.id and q.kind in ('complete', 'fail')),
       r.reason, r.version, r.needs, r.deadlines::text, r.own_deadline::text, r.rollback_by, r.body_seq,
       r.finaliser_seq, r.interruptions, r.interruption, r.ended_at, r.abandoned, clock_timestamp(),
       (select min(b.due) from {schema}.mailbox b where b.run_id = r.id),
       l.queued, l.first, l.before,
       exists (
           select from {schema}.subscription s
           where s.service = r.service and s.external and (s.saga = r.saga or exists (
               select from {schema}.renamed n where n.service = r.service and n.former = r.saga and n.saga = s.saga
           ))
       ),
       (select q.kind from {schema}.request q where q.target = r.id and q.kind in ('complete', 'fail')),
       k.pid, a.application_name, a.usename, a.backend_type, a.state, a.xact_start,
       extract(epoch from clock_timestamp() - a.xact_start)::float8
from {schema}.run r
left join lateral (
    select not t.held as queued,
           coalesce(
               (select h.run_id from {schema}.lane_entry h where h.lane = t.lane and h.held),
               (select n.run_id from {schema}.lane_entry n where n.lane = t.lane order by n.seq limit 1)
           ) as first,
           (select count(*) from (
               select from {schema}.lane_entry n where n.lane = t.lane and n.seq < t.seq limit 1000
           ) n) as before
    from {schema}.lane_entry t
    where t.run_id = r.id
) l on true
left join lateral (
    select coalesce(pid, 0) as pid
    from pg_catalog.pg_locks
    where locktype = 'transactionid' and granted and transactionid = r.xmax
    limit 1
) k on true
left join pg_catalog.pg_stat_activity a on a.pid = k.pid
where r.id = any(%(runs)s::uuid[])
order by r.created_at, r.id

-- name: read_executing
-- Which of these runs are being executed at this moment, and since when. As in `read_situations`, it is asked who has locked
-- their rows; a worker is told from others by the name of its connection.
select r.id, a.xact_start
from {schema}.run r
join pg_catalog.pg_locks k on k.locktype = 'transactionid' and k.granted and k.transactionid = r.xmax
join pg_catalog.pg_stat_activity a on a.pid = k.pid
where r.id = any(%(runs)s::uuid[])
  and a.application_name = left('scoop_outbox ' || r.service, 63)

-- name: read_stuck_below
-- The runs of a message, or a run, and those below that could not be rolled back.
with recursive stuck as (
    select id from {schema}.run where message_id = %(message)s
    union
    select id from {schema}.run where id = %(run)s
    union all
    select c.child_run
    from stuck s
    join {schema}.child c on c.run_id = s.id and c.state = 'rollback_failed' and c.child_run is not null
)
select id from stuck limit %(most)s
