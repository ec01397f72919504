-- Who is subscribed, and under which name. Written when a service is announced.

-- name: lock_service
-- Processes of a service announce it one after the other.
select pg_advisory_xact_lock(hashtextextended(%(service)s::text, 1))

-- name: rename
-- Whoever had the former name had all those that came before it, too.
with declared as (
    select * from unnest(%(formers)s::text[], %(sagas)s::text[]) as d (former, saga)
), linked as (
    select former, saga from declared
    union
    select n.former, d.saga
    from declared d
    join {schema}.renamed n on n.service = %(service)s and n.saga = d.former
)
insert into {schema}.renamed (service, former, saga)
select %(service)s, former, saga from linked where former <> saga
on conflict do nothing

-- name: tell_apart
-- Sagas that are declared side by side are not the same one, whatever they were called.
delete from {schema}.renamed
where service = %(service)s and former = any(%(sagas)s::text[]) and saga = any(%(sagas)s::text[])

-- name: take_over_subscriptions
-- A saga is subscribed under one name at a time, that under which it was announced last: nobody is to handle a message
-- under both. So code that still has the old name takes over again when it is started once more.
with gone as (
    delete from {schema}.subscription s
    using {schema}.renamed n
    where s.service = %(service)s and s.saga <> all(%(sagas)s::text[]) and n.service = s.service
      and (n.former = s.saga and n.saga = any(%(sagas)s::text[])
           or n.saga = s.saga and n.former = any(%(sagas)s::text[]))
    returning s.*, case when n.former = s.saga then n.saga else n.former end as now
)
insert into {schema}.subscription
    (topic, service, saga, created_at, ordered, pattern, via_broker, lane, names, retention, retain_payload, formerly)
select distinct on (topic, now) topic, service, now, created_at, ordered, pattern, via_broker, coalesce(lane, saga), names,
       retention, retain_payload, array(
           select n.former from {schema}.renamed n
           where n.service = g.service and n.saga = g.now and n.former <> all(%(sagas)s::text[])
           order by n.former
       )
from gone g
order by topic, now, created_at
on conflict do nothing

-- name: subscribe
-- What is ordered stays so under another name, and on another topic. Whether a broker serves a saga is never unsaid:
-- a process that lacks the broker would take its messages away from it.
insert into {schema}.subscription as known
    (topic, service, saga, ordered, pattern, names, via_broker, lane, retention, retain_payload, external, formerly)
select a.topic, a.service, a.saga, a.ordered, a.pattern, array(select json_array_elements_text(a.names::json)),
       %(via_broker)s::bool, (
    select min(coalesce(s.lane, s.saga))
    from {schema}.subscription s
    where s.service = a.service and (s.saga = a.saga or exists (
        select from {schema}.renamed n
        where n.service = s.service
          and (n.former = s.saga and n.saga = a.saga or n.former = a.saga and n.saga = s.saga)
    ))
), a.retention * interval '1 second', a.retain_payload * interval '1 second', a.external, array(
    select n.former from {schema}.renamed n
    where n.service = a.service and n.saga = a.saga and n.former <> all(%(sagas)s::text[])
    order by n.former
)
from unnest(%(topics)s::text[], %(services)s::text[], %(sagas)s::text[], %(ordered)s::bool[], %(patterns)s::text[],
            %(names)s::text[], %(retentions)s::float8[], %(payload_retentions)s::float8[], %(external)s::bool[])
     as a (topic, service, saga, ordered, pattern, names, retention, retain_payload, external)
on conflict (topic, service, saga) do update
set ordered = excluded.ordered, pattern = excluded.pattern, names = excluded.names,
    via_broker = known.via_broker or excluded.via_broker, retention = excluded.retention,
    retain_payload = excluded.retain_payload, external = excluded.external, formerly = excluded.formerly
where (known.ordered, known.pattern, known.names, known.via_broker, known.retention, known.retain_payload, known.external,
       known.formerly)
      is distinct from (excluded.ordered, excluded.pattern, excluded.names, known.via_broker or excluded.via_broker,
                        excluded.retention, excluded.retain_payload, excluded.external, excluded.formerly)

-- name: read_former
select former, saga from {schema}.renamed
where service = %(service)s and saga = any(%(sagas)s::text[]) and former <> all(%(sagas)s::text[])

-- name: take_over
-- What has not ended goes on under the new name: found in what lives, not in what has been. A run that is being executed
-- at this moment is left; whoever has the new name executes it under the old one, too. Children in other homes keep the
-- name for which they were launched: their runs' ids are made of it.
with names as (
    select * from unnest(%(formers)s::text[], %(sagas)s::text[]) as n (former, saga)
), live as (
    select run_id from {schema}.mailbox where service = %(service)s and saga = any(%(formers)s::text[])
    union
    select run_id from {schema}.child where open
    union
    select run_id from {schema}.lane_entry
    union
    select id from {schema}.run
    where service = %(service)s and saga = any(%(formers)s::text[]) and reason is not null
), mine as (
    select r.id, r.message_id, r.saga as former, n.saga
    from live l
    join {schema}.run r on r.id = l.run_id
    join names n on n.former = r.saga
    where r.service = %(service)s and r.state in ('running', 'rolling_back', 'parked') and not exists (
        select from {schema}.run x where x.message_id = r.message_id and x.service = r.service and x.saga = n.saga
    ) and not exists (
        select from {schema}.child x where x.message_id = r.message_id and x.service = r.service and x.saga = n.saga
    )
    order by r.id
    limit %(most)s
    for update of r skip locked
), runs as (
    update {schema}.run r set saga = m.saga from mine m where r.id = m.id
), children as (
    update {schema}.child c
    set saga = m.saga
    from mine m
    where c.message_id = m.message_id and c.service = %(service)s and c.saga = m.former and c.home is null
), mail as (
    update {schema}.mailbox b set saga = m.saga from mine m where b.run_id = m.id and b.saga = m.former
), awaited as (
    select c.message_id, c.saga as former, n.saga
    from {schema}.child c
    join names n on n.former = c.saga
    where c.open and c.home is null and c.service = %(service)s and c.state = 'waiting' and not exists (
        select from {schema}.child x where x.message_id = c.message_id and x.service = c.service and x.saga = n.saga
    )
    order by c.message_id
    limit %(most)s
    for update of c skip locked
), waiting as (
    update {schema}.child c
    set saga = a.saga
    from awaited a
    where c.message_id = a.message_id and c.service = %(service)s and c.saga = a.former
)
select n.former, n.saga, (select count(*) from mine m where m.former = n.former and m.saga = n.saga),
       (select count(*) from awaited a where a.former = n.former and a.saga = n.saga)
from names n

-- name: list_services_via_broker
select distinct service from {schema}.subscription where via_broker order by service

-- name: read_subscribed
select distinct saga from {schema}.subscription
where service = %(service)s
  and (topic, saga) in (select * from unnest(%(topics)s::text[], %(sagas)s::text[]) as a (topic, saga))
