-- Intake: messages become runs, each message once.

-- name: take_in take_in_across
-- A run's id is made of its message, service and saga, behind the time that the message's id begins with: taking a
-- message in again cannot start a second run, and whoever knows the message knows its runs. The length of the service's
-- name says where the saga's begins: names may hold whatever could stand between them.
with arrived as (
    -- In the same order in every process, whatever the order in which they came: services that share a home, and
    -- members of a group, take in the same messages at the same time, and would wait for each other in a circle.
    select distinct on (id) *
    from unnest(%(ids)s::uuid[], %(topics)s::text[], %(keys)s::text[], %(bodies)s::bytea[],
                %(content_types)s::text[], %(headers)s::text[], %(lineages)s::text[], %(contexts)s::text[],
                %(launched_at)s::text[], %(deadlines)s::text[]
                -- only: take_in_across
                , %(homes)s::uuid[], %(above)s::text[], %(expects)s::text[]
                -- both
                )
         with ordinality
         as m (id, topic, key, body, content_type, headers, lineage, context, launched_at, deadlines
               -- only: take_in_across
               , home, above, expects
               -- both
               , ordinal)
    order by id, ordinal
), taken as (
    insert into {schema}.message (id, topic, key, body, content_type, headers)
    select id, topic, key, body, content_type, headers::json from arrived order by id
    on conflict do nothing
    returning id
), held as (
    -- Whoever prunes, or erases, takes only messages that are older than a minute. He is not waited for: what he has in
    -- hand starts nothing. Behind the inserts, which do wait for him, holding nothing that he wants.
    select m.id
    from {schema}.message m
    where (select count(*) from taken) >= 0 and m.id = any(%(ids)s::uuid[])
      and m.created_at < statement_timestamp() - interval '1 minute' and m.emptied_at is null
    for share skip locked
), listening as (
    select t.topic, s.service, s.saga, bool_or(s.ordered) as ordered, min(coalesce(s.lane, s.saga)) as lane
    from (select distinct topic from arrived) t
    join {schema}.subscription s on s.topic = t.topic or t.topic = any(s.names) or t.topic ~ s.pattern
    where %(service)s::text is null or s.service = %(service)s::text
    group by t.topic, s.service, s.saga
), expected as (
    -- Who is waited for was frozen at the launch. The update reads each row again once it has its lock: whoever was
    -- retired at this moment is not started. And it comes after the messages, on which others that take in the same
    -- ones wait in the order of ids: rows are updated in no particular order. Who was left behind, if only at this
    -- moment, is late: it stays so, and what is asked of the row is asked of what it is now.
    update {schema}.child c
    set state = case c.state when 'waiting' then 'started' else c.state end,
        child_run = case c.state when 'waiting' then (left(m.id::text, 19) || '8' || left(
                        md5(concat_ws(e'\n', m.id, length(c.service), c.service || c.saga)), 15))::uuid end
    from arrived m
    where (select count(*) from taken) >= 0
      and c.message_id = any(%(ids)s::uuid[]) and c.message_id = m.id and c.state in ('waiting', 'left_behind')
      and m.lineage is not null and (%(service)s::text is null or c.service = %(service)s::text)
      -- only: take_in_across
      and c.home is null
      -- both
    returning m.id, m.topic, m.key, m.lineage, m.context, m.launched_at, m.deadlines, c.service, c.saga,
              c.state = 'left_behind' as late
-- only: take_in_across
), invited as (
    -- Whom another home waits for, as it has said. Whoever was cancelled before has a row already, and is not started.
    insert into {schema}.foreign_child (message_id, service, saga, run_id, home)
    select m.id, x.service, x.saga, (left(m.id::text, 19) || '8' || left(
               md5(concat_ws(e'\n', m.id, length(x.service), x.service || x.saga)), 15))::uuid, m.home
    from arrived m
    cross join lateral (
        -- Of several homes of a service one is to handle it.
        select e.value ->> 0 as service, e.value ->> 1 as saga
        from json_array_elements(m.expects::json) e
        where (e.value ->> 2)::bool
    ) x
    where m.home is not null and x.service = %(service)s::text
    order by m.id, x.service, x.saga
    on conflict do nothing
    returning message_id, service, saga, run_id, home
-- both
), known as (
    -- Launched for a name that a saga had once, it is the saga's all the same, also in its order.
    select topic, service, saga, ordered, lane from listening
    union all
    select l.topic, l.service, n.former, l.ordered, l.lane
    from {schema}.renamed n
    join listening l on l.service = n.service and l.saga = n.saga
    where not exists (select from listening x where x.topic = l.topic and x.service = n.service and x.saga = n.former)
), unexpected as materialized (
    -- Who else is subscribed when it is first taken in handles it too, by this service if it takes in for itself: as a
    -- root, or as a late run that nobody waits for. Who was told once, under whatever name, is not told again.
    select m.id, m.key, m.lineage, m.context, m.launched_at, m.deadlines, s.service, s.saga, s.ordered, s.lane,
           m.lineage is not null as late
    from arrived m
    join listening s on s.topic = m.topic
    where case when %(service)s::text is null
               then exists (select from taken t where t.id = m.id)
               else not exists (
                   -- `offset 0`: message by message, and not by reading all runs of the service.
                   select from {schema}.run r where r.message_id = m.id and r.service = %(service)s::text offset 0
               )
          end
      -- only: take_in_across
      -- Of a message that another home waits for, too. Who is waited for is its child, under whatever name, or has been
      -- cancelled: if only at this moment, so that it is the message that is asked, and not the row.
      -- Nor does one start here that is to start in another home of its service.
      and (m.expects is null or not exists (
          select from json_array_elements(m.expects::json) e
          where (m.home is not null or not (e.value ->> 2)::bool)
            and e.value ->> 0 = s.service and (e.value ->> 1 = s.saga or exists (
              select from {schema}.renamed n
              where n.service = s.service
                and (n.former = e.value ->> 1 and n.saga = s.saga or n.former = s.saga and n.saga = e.value ->> 1)
          ))
      ) and not exists (
          select from {schema}.foreign_child f where f.message_id = m.id and f.service = s.service and f.cancelled
      ))
      -- both
      -- What was ended before it was taken in starts nothing, of nobody.
      and (m.lineage is null or not exists (
          select from {schema}.child c
          where c.message_id = m.id and (
              c.child_run is null and c.state in ('cancelled', 'rolled_back')
              or c.service = s.service and (c.saga = s.saga or exists (
                  select from {schema}.renamed n
                  where n.service = s.service
                    and (n.former = c.saga and n.saga = s.saga or n.former = s.saga and n.saga = c.saga)
              ))
          )
      ))
), handled as (
    select e.id, e.key, e.lineage, e.context, e.launched_at, e.deadlines, e.service, e.saga,
           coalesce(k.ordered, false) as ordered, coalesce(k.lane, e.saga) as lane, e.late
           -- only: take_in_across
           , null::uuid as home
           -- both
    from expected e
    left join known k on k.topic = e.topic and k.service = e.service and k.saga = e.saga
    union all
    -- only: take_in_across
    select m.id, m.key, m.above, m.context, m.launched_at, m.deadlines, i.service, i.saga,
           coalesce(k.ordered, false), coalesce(k.lane, i.saga), false, i.home
    from invited i
    join arrived m on m.id = i.message_id
    left join known k on k.topic = m.topic and k.service = i.service and k.saga = i.saga
    union all
    -- both
    -- What comes again when its hierarchy has been pruned, or its payload erased, starts nothing: its row says so, or there is
    -- none, no run above it, and a message at the top that has been pruned: the id of a run there begins as its message's.
    -- Behind everything else: most messages are expected, and nothing of this is asked for them.
    select u.*
    -- only: take_in_across
    , null::uuid
    -- both
    from unexpected u
    where case when u.late then exists (
              select from {schema}.run p where p.id = right(u.lineage, 36)::uuid
          ) or not exists (
              select from {schema}.message x
              where x.id between (left(u.lineage, 19) || '8000000000000000')::uuid
                             and (left(u.lineage, 19) || 'bfffffffffffffff')::uuid
                and x.forget_at is not null
          ) else true end
      and not exists (
          select from {schema}.message x
          where x.id = u.id and x.created_at < statement_timestamp() - interval '1 minute'
            and not exists (select from held h where h.id = x.id)
          offset 0
      )
), started as (
    insert into {schema}.run
        (id, message_id, service, saga, lineage, parent_run, context, launched_at, deadlines, lane, late
        -- only: take_in_across
        , parent_home
        -- both
        )
    select n.id, h.id, h.service, h.saga, n.above || n.id, case when not h.late then n.above[cardinality(n.above)] end,
           h.context::json, h.launched_at::json, h.deadlines::json,
           -- A run does not wait for one above it, which waits for it.
           case when h.ordered and (h.late or not exists (
               select from {schema}.lane_entry t where t.lane = l.lane and t.run_id = any(n.above)
           )) then l.lane end,
           h.late
           -- only: take_in_across
           , h.home
           -- both
    from handled h
    cross join lateral (
        select (left(h.id::text, 19) || '8' || left(
                   md5(concat_ws(e'\n', h.id, length(h.service), h.service || h.saga)), 15))::uuid as id,
               coalesce(string_to_array(h.lineage, ',')::uuid[], array[]::uuid[]) as above
    ) n
    cross join lateral (select md5(md5(h.service) || md5(h.lane) || md5(h.key))::uuid as lane) l
    order by h.id, h.service, h.saga
    on conflict do nothing
    returning id, message_id, service, saga, lane
), queued as (
    -- Whoever is first of its lane is seen when it is claimed: see take_lane.
    insert into {schema}.lane_entry (run_id, lane)
    select s.id, s.lane from started s join arrived m on m.id = s.message_id where s.lane is not null order by m.ordinal
), posted as (
    insert into {schema}.mailbox (service, saga, run_id, due)
    select s.service, s.saga, s.id, clock_timestamp()
    from started s
    join arrived m on m.id = s.message_id
    order by m.ordinal, s.service, s.saga
)
select id, service, saga, message_id from started

-- name: read_unhandled
-- What nobody of the service handles, has handled or was to handle must not vanish; unless its hierarchy has been pruned.
select m.id
from unnest(%(ids)s::uuid[], %(lineages)s::text[]) as m (id, lineage)
where not exists (select from {schema}.message x where x.id = m.id and x.emptied_at is not null)
  and case when m.lineage is null then true else exists (
      select from {schema}.run p where p.id = right(m.lineage, 36)::uuid
  ) or not exists (
      select from {schema}.message x
      where x.id between (left(m.lineage, 19) || '8000000000000000')::uuid
                     and (left(m.lineage, 19) || 'bfffffffffffffff')::uuid
        and x.forget_at is not null
  ) end
  and not exists (select from {schema}.run r where r.message_id = m.id and r.service = %(service)s)
  and not exists (select from {schema}.foreign_child f where f.message_id = m.id and f.service = %(service)s)
  and not exists (
      select from {schema}.child c
      where c.message_id = m.id
        and (c.service = %(service)s or c.child_run is null and c.state in ('cancelled', 'rolled_back'))
  )

-- name: read_listening
select distinct t.topic, s.saga
from unnest(%(topics)s::text[]) as t (topic)
join {schema}.subscription s on s.topic = t.topic or t.topic = any(s.names) or t.topic ~ s.pattern
where s.service = %(service)s

-- name: bury_incoming
-- A message that comes again is the same dead letter.
insert into {schema}.dead_letter
    (message_id, topic, key, body, content_type, headers, origin, service, position, reason)
select id, topic, key, body, content_type, headers::json, 'intake', %(service)s, position, reason
from unnest(%(ids)s::uuid[], %(topics)s::text[], %(keys)s::text[], %(bodies)s::bytea[], %(content_types)s::text[],
            %(headers)s::text[], %(positions)s::text[], %(reasons)s::text[])
     as m (id, topic, key, body, content_type, headers, position, reason)
on conflict do nothing
