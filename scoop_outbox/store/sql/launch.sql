-- Launching: messages from a step or from outside are written into the outbox.

-- name: launch launch_across
-- Who is waited for is frozen here, in the launching transaction: the sagas that are subscribed now. In a home that
-- cooperates with others it is asked for theirs, too; that costs a quarter more, which nobody else shall pay.
-- This runs on connections whose settings and driver are the user's, so the messages are one document: what the encoding
-- of the client is, or how nulls and backslashes are read in arrays, cannot change it. The bodies lie beside it as they
-- are, one behind the other. What is asked of a parameter stands in a select, so that the planner does not see its value:
-- a plan for the one at hand always looked better than the one it keeps, and to make it took longer than to launch.
with launched as (
    select l.id, l.topic, l.key, substring(%(bodies)b::bytea from l.start + 1 for l.size) as body, l.content_type,
           l.headers, l.awaited, l.deadline, l.ordinal
    from rows from (
        json_to_recordset(convert_from(%(document)b::bytea, 'UTF8')::json)
            as (id uuid, topic text, key text, start int, size int, content_type text, headers text, awaited bool,
                deadline timestamptz)
    ) with ordinality as l (id, topic, key, start, size, content_type, headers, awaited, deadline, ordinal)
-- only: launch
), listening as (
    -- Once, however many of its topics are this one: a saga that has changed its topic is known under both.
    select t.topic, s.service, s.saga
    from (select distinct topic from launched) t
    join {schema}.subscription s on s.topic = t.topic or t.topic = any(s.names) or t.topic ~ s.pattern
    group by t.topic, s.service, s.saga
-- both
-- only: launch_across
), listed as (
    select t.topic, s.service, s.saga, s.home, s.draining, s.formerly
    from (select distinct topic from launched) t
    join (
        select topic, service, saga, pattern, names, formerly, h.id as home, h.draining
        from {schema}.subscription cross join {schema}.home h
        union all
        select topic, service, saga, pattern, names, formerly, home, coalesce(p.draining, false)
        from {schema}.peer_subscription left join {schema}.peer p on p.id = home
    ) s on s.topic = t.topic or t.topic = any(s.names) or t.topic ~ s.pattern
),
    -- use: grouped
, listening as (
    -- Homes of one service share what comes for it, but for those that are being drained, if there are others. What a saga is
    -- called in a home stands in the same place as that.
    select topic, service,
           coalesce(array_agg(home) filter (where not draining), array_agg(home)) as homes,
           coalesce(array_agg(saga) filter (where not draining), array_agg(saga)) as sagas
    from grouped
    group by topic, service, one
), assigned as (
    -- All messages of one key to one home, whoever launches them, and few of them to another one when homes are added or
    -- drained: rendezvous hashing. Intake chooses in the same way: see wire/sharing.py.
    select l.id, l.ordinal, l.awaited, l.deadline, s.service, n.saga, nullif(c.home, o.id) as home, c.home as target,
           case when c.home = o.id then o.prefix || 'control.' || o.name else p.reply_to end as reply_to
    from launched l
    join listening s on s.topic = l.topic
    cross join {schema}.home o
    cross join lateral (
        select case
            when cardinality(s.homes) = 1 then s.homes[1]
            else (
                select x.home from unnest(s.homes) as x (home)
                order by md5(x.home::text || coalesce(l.key, l.id::text)) collate "C" desc
                limit 1
            )
        end as home
    ) c
    join lateral unnest(s.homes, s.sagas) as n (home, saga) on n.home = c.home
    left join {schema}.peer p on p.id = c.home
), addressed as (
    -- Those of this home, too: one that has just joined the group knows nobody yet, and is told where it belongs.
    select id, json_agg(json_build_array(service, saga, target, reply_to) order by service, saga)::text as expects
    from assigned
    group by id
-- both
), expected as (
    -- only: launch
    insert into {schema}.child (message_id, service, saga, run_id, seq, ordinal, deadline)
    select l.id, s.service, s.saga, %(run)s::uuid, %(seq)s::int, l.ordinal, l.deadline
    from launched l
    join listening s on s.topic = l.topic
    where l.awaited
    -- both
    -- only: launch_across
    -- Nothing here is told of what handles a message from outside in another home: it is a child of the message.
    insert into {schema}.child (message_id, service, saga, run_id, seq, ordinal, deadline, home)
    select id, service, saga, case when awaited then %(run)s::uuid else id end, %(seq)s::int, ordinal, deadline, home
    from assigned
    where awaited or home is not null
    -- both
), rooted as (
    -- Where each service takes in at a time of its own, whoever waits for a root has to know which of them will.
    insert into {schema}.expected_root (message_id, services, sagas)
    select l.id, coalesce(array_agg(s.service) filter (where s.service is not null), array[]::text[]),
           coalesce(array_agg(s.saga) filter (where s.service is not null), array[]::text[])
    from launched l
    -- only: launch
    left join listening s on s.topic = l.topic
    -- both
    -- only: launch_across
    left join assigned s on s.id = l.id and s.home is null
    -- both
    where (select %(via_broker)s::bool) and not l.awaited
    group by l.id
), written as (
    insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers
    -- only: launch_across
    , expects
    -- both
    )
    select abs(hashtext(coalesce(l.key, l.id::text)) %% {shards}), l.id, l.topic, l.key, l.body, l.content_type,
           l.headers::json
    -- only: launch_across
           , a.expects
    -- both
    from launched l
    -- only: launch_across
    left join addressed a on a.id = l.id
    -- both
    order by l.ordinal
)
-- Those of which nobody is waited for, by their places. Counted by whoever asks: to do it here took a third longer.
select ordinal from launched where topic not in (select topic from listening)

-- name: claim_ids
-- An id that a caller gives a message is claimed by the transaction that launches it, once. A claim of the same id that is
-- made meanwhile waits until that transaction has ended: in the same order everywhere, or two would wait in a circle. This
-- and the next two run on the caller's connection, too, as `launch` does: places in the document are answered.
with given as (
    select *
    from rows from (
        json_to_recordset(convert_from((select %(claims)b::bytea), 'UTF8')::json) as (id uuid, topic text, digest text)
    ) with ordinality as g (id, topic, digest, place)
), claimed as (
    insert into {schema}.launched (message_id, topic, digest)
    select g.id, g.topic, g.digest
    from given g
    where not exists (select from {schema}.message m where m.id = g.id)
      and not exists (select from {schema}.expected_root o where o.message_id = g.id)
      and not exists (select from {schema}.child c where c.message_id = g.id)
    order by g.id
    on conflict do nothing
    returning message_id
)
select g.place from given g join claimed c on c.message_id = g.id

-- name: read_launched
-- Whether the ids are claimed, for messages on these topics, and for these messages.
select g.place, l.message_id is not null, l.topic is not distinct from g.topic, l.digest is not distinct from g.digest
from rows from (
    json_to_recordset(convert_from((select %(claims)b::bytea), 'UTF8')::json) as (id uuid, topic text, digest text)
) with ordinality as g (id, topic, digest, place)
left join {schema}.launched l on l.message_id = g.id
order by g.place

-- name: release_ids
delete from {schema}.launched l
using json_to_recordset(convert_from((select %(claims)b::bytea), 'UTF8')::json) as g (id uuid)
where l.message_id = g.id
returning true

-- name: read_listeners read_listeners_across
-- Pairs of places in two lists: topics, and the sagas that may have to be subscribed to them, in whatever home.
select t.place, n.place
from json_array_elements_text(convert_from(%(document)b::bytea, 'UTF8')::json -> 'topics') with ordinality as t (topic, place)
-- only: read_listeners
join {schema}.subscription s on
-- both
-- only: read_listeners_across
join (
    select topic, saga, pattern, names from {schema}.subscription
    union all
    select topic, saga, pattern, names from {schema}.peer_subscription
) s on
-- both
 s.topic = t.topic or t.topic = any(s.names) or t.topic ~ s.pattern
left join json_array_elements_text(convert_from(%(document)b::bytea, 'UTF8')::json -> 'sagas') with ordinality
     as n (saga, place) on n.saga = s.saga

-- name: expect_here
-- A process that is to launch before its own service has been announced knows that the service will handle it.
with given as (
    select d ->> 'service' as service, (m ->> 'id')::uuid as id, m ->> 'saga' as saga
    from (select convert_from(%(document)b::bytea, 'UTF8')::json) as l (d)
    cross join lateral json_array_elements(d -> 'handlers') as m
)
update {schema}.expected_root o
set services = o.services || e.services, sagas = o.sagas || e.sagas
from (
    select m.id, array_agg(m.service) as services, array_agg(m.saga) as sagas
    from given m
    where not exists (
        select from {schema}.expected_root k, unnest(k.services, k.sagas) as n (service, saga)
        where k.message_id = m.id and n.service = m.service and n.saga = m.saga
    )
    group by m.id
) e
where o.message_id = e.id
returning true
