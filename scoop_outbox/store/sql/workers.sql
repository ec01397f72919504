-- Workers: who is alive, what each knows, and what a worker sees around it.

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

-- name: read_strangers
-- Sagas of a service that a worker of it does not have, what they are subscribed to, and whether another worker has them.
select s.saga, s.topic, exists (
           select from {schema}.worker w
           where w.service = %(service)s and s.saga = any(w.sagas) and w.alive_until > clock_timestamp()
       )
from {schema}.subscription s
where s.service = %(service)s and s.saga <> all(%(sagas)s::text[])
limit %(most)s
