-- The registry: which workers are alive, which versions of which sagas they know, and what they could not execute.

-- name: register_worker
-- Also says that it is alive. Behind a pooler no process of the server's stands for a worker. The versions are locked in one order by all workers of a service.
with known as (
    insert into {schema}.saga_version as v (id, service, saga, steps, alive_until)
    select m.id, %(service)s, m.saga,
           array(select e.step from json_array_elements_text(m.steps::json) with ordinality as e (step, at) order by e.at),
           clock_timestamp() + %(alive)s::interval
    from unnest(%(versions)s::text[], %(sagas)s::text[], %(steps)s::text[]) as m (id, saga, steps)
    order by m.id
    on conflict (id) do update
    set steps = excluded.steps, alive_until = greatest(v.alive_until, excluded.alive_until)
)
insert into {schema}.worker (id, service, sagas, versions, backend, alive_until)
values (%(worker)s, %(service)s, %(sagas)s::text[], %(versions)s::text[],
        case when not %(pooled)s::bool then pg_backend_pid() end,
        clock_timestamp() + %(alive)s::interval)
on conflict (id) do update
set sagas = excluded.sagas, versions = excluded.versions, backend = excluded.backend, alive_until = excluded.alive_until
returning clock_timestamp()

-- name: forget_dead_workers
delete from {schema}.worker where service = %(service)s and alive_until < clock_timestamp() - interval '1 day'

-- name: read_workers
-- Whose connection is gone is not counted among those that share the mail, though it may be back in a moment.
select w.id, w.sagas, w.versions,
       w.backend is null or exists (select from pg_catalog.pg_stat_activity a where a.pid = w.backend)
from {schema}.worker w
where w.service = %(service)s and w.alive_until > statement_timestamp()
order by w.id

-- name: read_versions
select v.id, v.saga, v.steps
from {schema}.saga_version v
where v.id in (
    select unnest(w.versions) from {schema}.worker w
    where w.service = %(service)s and w.alive_until > statement_timestamp()
)
order by v.number desc

-- name: unregister_worker
-- Its versions end with it, unless others have them too: they will say so in a moment. What it was about to execute it
-- has not died of; what it still executes is locked, and left alone.
with gone as (
    delete from {schema}.worker where id = %(worker)s returning versions
), ended as (
    select v.id
    from gone g
    join {schema}.saga_version v on v.id = any(g.versions)
    where not exists (
        select from {schema}.worker w
        where w.service = v.service and w.id <> %(worker)s and v.id = any(w.versions)
          and w.alive_until > clock_timestamp()
    )
    order by v.id
    for update of v
), held as (
    select r.id from {schema}.run r where r.taken_by = %(worker)s order by r.id for update skip locked
), released as (
    update {schema}.run r set taken_by = null from held h where r.id = h.id
)
update {schema}.saga_version v set alive_until = clock_timestamp() from ended e where v.id = e.id

-- name: read_last_known
-- When somebody was last alive who knew a step of a saga, and the steps of one version.
select (
           select max(v.alive_until) from {schema}.saga_version v
           where v.service = %(service)s and v.saga = %(saga)s and %(needs)s = any(v.steps)
       ),
       (select steps from {schema}.saga_version where id = %(version)s),
       array(
           select distinct step from {schema}.step
           where run_id = %(run)s and kind = 'step' and state = 'committed'
       )

-- name: mark_taken
-- Before runs are executed whose mail is older than this worker, or than the death of another one: if this process
-- dies of one of them, whoever comes next finds the mark, counts an interruption, and lets the run wait longer each
-- time. The mark of a worker that is alive says nothing. The others are the caller's to execute, those too that have
-- ended meanwhile: the mail is still to be dropped. A run whose lock somebody holds is being executed, and is left alone.
with asked as (
    select r.id, r.state in ('running', 'rolling_back') as lives,
           r.state in ('running', 'rolling_back') and coalesce(r.taken_by <> %(worker)s, false)
           and not exists (
               select from {schema}.worker w
               where w.id = r.taken_by and w.alive_until > clock_timestamp() and (
                   w.backend is null or exists (select from pg_catalog.pg_stat_activity a where a.pid = w.backend)
               )
           ) as died
    from {schema}.run r
    where r.id = any(%(runs)s::uuid[])
    order by r.id
    for update of r skip locked
), marked as (
    update {schema}.run r set taken_by = %(worker)s
    from asked a
    where r.id = a.id and a.lives and not a.died
)
select id, died from asked

-- name: note_interruptions
-- In a transaction of its own: what was to be executed has been undone. The mail is due later, the longer the more often
-- it has happened since the run last made progress, so that others come first; in the end the run is parked, but for
-- what it asked for itself. From 40 ms to 30 s, by two fifths each time: twenty of them take about a minute, as long as a
-- server takes to restart. A run that has killed a process is marked at once as taken by somebody who is not alive:
-- its mail is not old any more, and whoever executes it next may die of it, too. Answers what the log says of each run:
-- the step is the next one, or the one that is undone next.
with told as (
    select *
    from unnest(%(runs)s::uuid[], %(reasons)s::text[], %(parks)s::bool[], %(takers)s::uuid[], %(chances)s::float8[])
         as t (id, reason, parks, taker, chance)
), held as (
    select r.id
    from {schema}.run r
    where r.id = any(%(runs)s::uuid[]) and r.state in ('running', 'rolling_back')
    order by r.id
    for update skip locked
), noted as (
    update {schema}.run r
    set interruptions = r.interruptions + 1, unwanted = r.unwanted + t.parks::int, interruption = t.reason,
        taken_by = t.taker,
        state = case when t.parks and r.unwanted + 1 >= %(most)s then 'parked' else r.state end,
        ended_at = case when t.parks and r.unwanted + 1 >= %(most)s then clock_timestamp() end,
        reason = case when t.parks and r.unwanted + 1 >= %(most)s
                      then 'interrupted ' || r.unwanted + 1 || ' times in a row without progress, the last time: '
                           || t.reason || '; mend the cause, then: scoop-outbox retry RUN'
                 end
    from held h
    join told t on t.id = h.id
    where r.id = h.id
    returning r.id, r.message_id, r.interruptions, r.unwanted, r.state, r.seq, r.next_step, r.undo_seq, t.chance
), dropped as (
    delete from {schema}.mailbox m using noted n where m.run_id = n.id and n.state = 'parked'
), delayed as (
    update {schema}.mailbox m
    set due = greatest(m.due, clock_timestamp() + n.chance * least(0.04 * power(1.4, least(n.interruptions - 1, 30)), 30)
                              * interval '1 second')
    from noted n
    where m.run_id = n.id and n.state <> 'parked'
)
select n.id, case when n.state = 'parked' then n.unwanted else n.interruptions end, n.state, n.message_id, m.key, n.seq,
       case
           when n.undo_seq is null then n.next_step
           else (
               select s.step from {schema}.step s
               where s.run_id = n.id and s.seq <= n.undo_seq and s.state = 'committed' and s.kind <> 'compensation'
               order by s.seq desc
               limit 1
           )
       end
from noted n
join {schema}.message m on m.id = n.message_id

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
-- A run goes on where it was parked; `anew` ones belong to no version any more: whoever takes it on decides. The mail is
-- for all versions: whoever finds it knows whose it is.
with freed as (
    update {schema}.run
    set state = case when undo_seq is null then 'running' else 'rolling_back' end, reason = null, needs = null,
        ended_at = null, interruptions = 0, unwanted = 0, interruption = null, taken_by = null,
        version = case when %(anew)s and needs is not null then '' else version end
    where id = any(%(runs)s::uuid[]) and state = 'parked'
    returning id, service, saga, version
)
insert into {schema}.mailbox (service, saga, run_id, due)
select service, saga, id, clock_timestamp() from freed
returning run_id, service, saga, version, 0.0::float8

-- name: read_state
select state from {schema}.run where id = %(run)s

-- name: count_troubled
select (select count(*) from (
            select from {schema}.run where service = %(service)s and reason is not null limit %(most)s
        ) p),
       (select count(*) from (
            select from {schema}.run where service = %(service)s and interruptions > 0 limit %(most)s
        ) i),
       (select count(*) from (
            select from {schema}.run where service = %(service)s and obstacle is not null limit %(most)s
        ) s)

-- name: list_parked
select id, saga, reason, needs, coalesce(ended_at, created_at) from {schema}.run
where service = %(service)s and reason is not null
limit %(most)s
