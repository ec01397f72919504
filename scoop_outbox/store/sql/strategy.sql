-- Strategies: what they look at, and whom they wait for. Asked only for sagas that have one of their own.

-- name: leave_behind
-- Children that have executed nothing are not waited for any longer: their run is a late one, or will be, when its message
-- comes. One that is taken in or begins at this moment is left alone: the parent looks again soon, and waits for it.
with given as (
    select * from unnest(%(messages)s::uuid[], %(services)s::text[], %(sagas)s::text[]) as g (message_id, service, saga)
), waiting as (
    select c.message_id, c.service, c.saga, null::uuid as child_run
    from {schema}.child c
    join given g on g.message_id = c.message_id and g.service = c.service and g.saga = c.saga
    where c.run_id = %(run)s and c.open and c.state = 'waiting' and c.home is null
    for update of c skip locked
), idle as (
    select c.message_id, c.service, c.saga, r.id as child_run
    from {schema}.child c
    join given g on g.message_id = c.message_id and g.service = c.service and g.saga = c.saga
    join {schema}.run r on r.id = c.child_run
    where c.run_id = %(run)s and c.open and c.state in ('started', 'cancelling') and r.seq = 0 and r.state = 'running'
    for update of c, r skip locked
), found as (
    select * from waiting union all select * from idle
), left_behind as (
    update {schema}.child c
    set state = 'left_behind', open = false, child_run = null
    from found f
    where c.message_id = f.message_id and c.service = f.service and c.saga = f.saga
    returning c.service, c.saga
), freed as (
    update {schema}.run r set parent_run = null, late = true from idle i where r.id = i.child_run
), again as (
    select r.id, r.service, r.saga, r.version, case when exists (select from found) then 0.0 else 1.0 end::float8 as delay
    from {schema}.run r
    where r.id = %(run)s
), posted as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select service, saga, version, id, clock_timestamp() + delay * interval '1 second' from again
)
select a.id, a.service, a.saga, a.version, a.delay, l.service, l.saga from again a left join left_behind l on true

-- name: read_open_children
-- What the strategy of a saga looks at: whom a run waits for, since when, and whether it has executed anything.
select c.message_id, c.service, c.saga,
       c.state <> 'waiting' and coalesce(
           (select r.seq > 0 or r.state <> 'running' from {schema}.run r where r.id = c.child_run), true),
       s.ended_at
from {schema}.child c
join {schema}.step s on s.run_id = c.run_id and s.seq = c.seq
where c.run_id = %(run)s and c.open
order by c.seq, c.ordinal, c.service, c.saga

-- name: read_participants read_participants_across
select t.topic, s.service, s.saga
from unnest(%(topics)s::text[]) as t (topic)
-- only: read_participants
join {schema}.subscription s on
-- both
-- only: read_participants_across
join (
    select topic, service, saga, pattern, names from {schema}.subscription
    union all
    select topic, service, saga, pattern, names from {schema}.peer_subscription
) s on
-- both
 s.topic = t.topic or t.topic = any(s.names) or t.topic ~ s.pattern
group by t.topic, s.service, s.saga
order by t.topic, s.service, s.saga

-- name: expect_children
-- Who is waited for, as the strategy of the launching saga says, in the place of those that are subscribed. What was launched
-- for another name of one of them is what it means: a saga that is renamed home by home is subscribed under both.
with given as (
    select (m.value ->> 'id')::uuid as id, (m.value ->> 'ordinal')::int as ordinal,
           (m.value ->> 'deadline')::timestamptz as deadline, h.value ->> 0 as service, h.value ->> 1 as saga
    from json_array_elements(convert_from((select %(document)s::bytea), 'UTF8')::json) m
    left join lateral json_array_elements(m.value -> 'handlers') h on true
), same as (
    select s.service, s.saga, f.former
    from (
        select service, saga, formerly from {schema}.subscription
        union all
        select service, saga, formerly from {schema}.peer_subscription
    ) s
    cross join lateral unnest(s.formerly) as f (former)
), meant as (
    -- `offset 0`: message by message, and only if anything is renamed.
    select g.id, g.service, g.saga, c.saga as launched
    from given g
    join same x on x.service = g.service and g.saga in (x.saga, x.former)
    cross join lateral (
        select saga from {schema}.child where message_id = g.id and service = g.service offset 0
    ) c
    where c.saga in (x.saga, x.former) and c.saga <> g.saga and not exists (
        select from {schema}.child k where k.message_id = g.id and k.service = g.service and k.saga = g.saga offset 0
    )
), gone as (
    delete from {schema}.child c
    where c.message_id in (select id from given)
      and not exists (
          select from given g where g.id = c.message_id and g.service = c.service and g.saga = c.saga
      )
      and not exists (
          select from meant m where m.id = c.message_id and m.service = c.service and m.launched = c.saga
      )
)
insert into {schema}.child (message_id, service, saga, run_id, seq, ordinal, deadline)
select id, service, saga, %(run)s, %(seq)s, ordinal, deadline
from given g
where service is not null and not exists (
    select from meant m where m.id = g.id and m.service = g.service and m.saga = g.saga
)
on conflict do nothing
