-- Retention: whole hierarchies that have ended are removed, and remembered for a while. No lock of a run is waited for.
--
-- Whoever prunes holds the row of the message at the top, then the rows of all runs, as they are found after that: who asks
-- for a rollback locks runs, too, and one of both finds that the other was faster. A message that is old may be taken in
-- for one more saga at this moment: intake locks its row, which is not there any more, or has been pruned.

-- part: still_to_come
-- Services that were subscribed when message `m` was first taken in, and that take in for themselves, but have not: a
-- broker keeps it for them, however long they are down.
exists (
    select from {schema}.subscription s
    where s.via_broker and s.created_at <= m.created_at
      and (s.topic = m.topic or m.topic = any(s.names) or m.topic ~ s.pattern)
      and not exists (select from {schema}.run x where x.message_id = m.id and x.service = s.service offset 0)
    offset 0
)

-- name: read_root_sagas
-- The sagas of hierarchies, one look at the index for each, and what they say of them. What has begun under a former name
-- is kept as the saga wants it that has taken over the name.
with recursive known (service, saga) as (
    (
        select service, saga from {schema}.run
        where parent_run is null and not late
        order by service, saga
        limit 1
    )
    union all
    select n.service, n.saga
    from known k
    cross join lateral (
        select service, saga from {schema}.run
        where parent_run is null and not late and (service, saga) > (k.service, k.saga)
        order by service, saga
        limit 1
    ) n
)
select k.service, k.saga, max(s.retention), max(s.retain_payload), clock_timestamp()
from known k
left join {schema}.subscription s on s.service = k.service and (s.saga = k.saga or exists (
    select from {schema}.renamed n where n.service = k.service and n.former = k.saga and n.saga = s.saga
))
group by k.service, k.saga
order by k.service, k.saga

-- name: find_old_roots
-- Messages at the top of what is old, in the order in which they were taken in.
select message_id, created_at, id
from {schema}.run
where parent_run is null and not late and service = %(service)s and saga = %(saga)s and created_at <= %(before)s
  and (created_at, id) > (%(after)s, %(after_run)s) and (not erased or not (select %(unerased)s::bool))
order by created_at, id
limit %(most)s

-- name: find_unhandled
-- Messages in the order of their ids, and whether they are old and nobody's: that of a hierarchy has a run, or a parent.
select m.id, m.forget_at is null and m.created_at <= %(before)s
             and not exists (select from {schema}.run r where r.message_id = m.id)
             and not exists (select from {schema}.child c where c.message_id = m.id)
             and not exists (
                 select from {schema}.expected_root o where o.message_id = m.id and cardinality(o.services) > 0
             )
             and not
                 -- use: still_to_come
from {schema}.message m
where m.id > %(after)s
order by m.id
limit %(most)s

-- name: lock_roots
-- Intake locks messages that are older than a minute before it starts anything for them once more: younger ones stay.
select id
from {schema}.message
where id = any((select %(roots)s::uuid[])::uuid[]) and forget_at is null
  and created_at < statement_timestamp() - interval '1 minute'
order by id
for update skip locked

-- name: read_trees
-- Of each hierarchy all its runs; whether all of them have ended for good, and nobody waits for anything of them; when the
-- last one ended; and who handles the message at the top.
with recursive tree (root, id, message_id) as (
    select message_id, id, message_id
    from {schema}.run
    where message_id = any((select %(roots)s::uuid[])::uuid[])
    union all
    select t.root, b.id, b.message_id
    from tree t
    cross join lateral (
        select c.child_run as id, c.message_id
        from {schema}.child c
        where c.run_id = t.id and c.child_run is not null
        union all
        select l.id, l.message_id
        from {schema}.run l
        where l.late and l.lineage[cardinality(l.lineage) - 1] = t.id
    ) b
), told as (
    select t.root, array_agg(r.id) as runs, max(r.ended_at) as ended_at,
           bool_and(
               (r.state in ('committed', 'rolled_back') or r.state = 'rollback_failed' and r.abandoned)
               and not exists (select from {schema}.child c where c.run_id = r.id and c.open)
               and not exists (
                   select from {schema}.request q
                   where q.kind = 'rollback' and q.outcome is null and q.target in (t.id, t.message_id)
               )
               -- Whoever was left behind begins when its message comes.
               and not exists (
                   select from {schema}.child c
                   where c.run_id = r.id and c.state = 'left_behind'
                     and not exists (
                         select from {schema}.run x
                         where x.message_id = c.message_id and x.service = c.service and x.saga = c.saga
                         offset 0
                     )
                     and exists (
                         select from {schema}.subscription s where s.service = c.service and s.saga = c.saga
                     )
               )
           ) as ended,
           bool_or(r.erased) as erased,
           array_agg(r.service) filter (where r.message_id = t.root) as services,
           array_agg(r.saga) filter (where r.message_id = t.root) as sagas
    from tree t
    join {schema}.run r on r.id = t.id
    group by t.root
)
select t.root, t.runs,
       t.ended and not exists (
           select from {schema}.expected_root o
           cross join unnest(o.services) as e (service)
           where o.message_id = t.root
             and not exists (select from {schema}.run x where x.message_id = t.root and x.service = e.service)
       ) and not exists (
           select from {schema}.message m
           where m.id = t.root and
               -- use: still_to_come
           offset 0
       ),
       t.ended_at, t.services, t.sagas, t.erased
from told t
order by t.root

-- name: lock_ended
-- Whatever has happened to a run since it was looked at, it has ended later.
select id
from {schema}.run
where id = any((select %(runs)s::uuid[])::uuid[]) and ended_at <= %(before)s
  and (state in ('committed', 'rolled_back') or state = 'rollback_failed' and abandoned)
order by id
for update skip locked

-- name: release_elsewhere
-- Children in other homes may be pruned there, too, now that nobody waits for them, and nobody will ask for their rollback.
with children as (
    select c.message_id, c.service, c.saga, c.home, c.child_run, c.generation
    from {schema}.child c
    where c.run_id = any((select %(runs)s::uuid[] || %(roots)s::uuid[])::uuid[])
      and c.home is not null and c.child_run is not null and exists (select from {schema}.peer)
)
insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers)
select abs(hashtext(c.home::text) %% {shards}), gen_random_uuid(), p.reply_to, c.home::text,
       convert_to(json_build_object(
           'version', 1, 'kind', 'orders',
           'from',
           -- use: sender
           , 'order', 'release', 'children', c.children
       )::text, 'UTF8'), 'application/json', json_build_object()
from (
    select home, json_agg(json_build_object(
        'message', message_id, 'run', child_run, 'service', service, 'saga', saga, 'generation', generation
    )) as children
    -- In portions that a broker takes.
    from (select *, row_number() over (partition by home order by message_id) / 1000 as portion from children) k
    group by home, portion
) c
join {schema}.peer p on p.id = c.home
cross join {schema}.home h

-- name: prune
-- The rows of hierarchies, and the failures that they were told of, which nobody else refers to. Of a message at the top, or
-- of one whose id somebody has given it, the row stays for a while.
with recursive gone_runs as (
    delete from {schema}.run where id = any((select %(runs)s::uuid[])::uuid[]) returning failure, obstacle, giving_up, unresolved
), gone_steps as (
    delete from {schema}.step where run_id = any((select %(runs)s::uuid[])::uuid[]) returning failure
), gone_children as (
    -- Of the message at the top, too: those of other homes that handle it.
    delete from {schema}.child where run_id = any((select %(runs)s::uuid[] || %(roots)s::uuid[])::uuid[])
    returning message_id, service, saga, child_run, failure, obstacle
), gone_mail as (
    delete from {schema}.mailbox where run_id = any((select %(runs)s::uuid[])::uuid[])
), target (id) as (
    select unnest((select %(runs)s::uuid[])) union all select unnest((select %(roots)s::uuid[]))
    union all select message_id from gone_children
), gone_cancellations as (
    delete from {schema}.request where target = any(array(select id from target)) and kind = 'cancel' returning failure
), gone_rollbacks as (
    delete from {schema}.request
    where target = any(array(select id from target)) and kind = 'rollback' and outcome is not null
    returning failure
), gone_actions as (
    delete from {schema}.request
    where target = any(array(select id from target)) and kind in ('retry', 'skip', 'abandon')
    returning failure
), gone_words as (
    delete from {schema}.request
    where target = any(array(
        select id from target
        union all
        select (left(message_id::text, 19) || '8' || left(
                   md5(concat_ws(e'\n', message_id, length(service), service || saga)), 15))::uuid
        from gone_children
        where child_run is null
    )) and kind in ('complete', 'fail')
    returning failure
), remembered (id) as (
    select unnest((select %(roots)s::uuid[]))
    union
    select message_id from {schema}.launched where message_id = any(array(select message_id from gone_children))
), gone_messages as (
    delete from {schema}.message
    where id = any(array(select message_id from gone_children except select id from remembered))
), kept_messages as (
    update {schema}.message
    set body = '', headers = json_build_object(), key = null, emptied_at = clock_timestamp(),
        forget_at = clock_timestamp() + %(remember)s::interval
    where id = any(array(select id from remembered))
), gone_expected as (
    delete from {schema}.expected_root where message_id = any((select %(roots)s::uuid[])::uuid[])
), named (id) as (
    select failure from gone_runs union select obstacle from gone_runs union select giving_up from gone_runs
    union select unresolved from gone_runs
    union select failure from gone_steps union select failure from gone_children union select obstacle from gone_children
    union select failure from gone_cancellations union select failure from gone_rollbacks
    union select failure from gone_actions union select failure from gone_words
), reached (id, causes) as (
    select id, causes from {schema}.failure where id = any(array(select id from named))
    union
    select f.id, f.causes
    from reached r
    cross join lateral (select id, causes from {schema}.failure where id = any(r.causes) offset 0) f
)
delete from {schema}.failure where id = any(array(select id from reached))

-- name: erase_payload
-- What the messages held, and what was made of it: contexts and results. The trace stays.
with messages (id) as (
    select unnest((select %(roots)s::uuid[]))
    union
    select message_id from {schema}.child where run_id = any((select %(runs)s::uuid[])::uuid[])
), emptied as (
    update {schema}.message m set body = '', headers = json_build_object(), emptied_at = clock_timestamp()
    from messages k
    where m.id = k.id
), results as (
    update {schema}.child set result = null
    where run_id = any((select %(runs)s::uuid[] || %(roots)s::uuid[])::uuid[]) and result is not null
), said as (
    update {schema}.request set result = null
    where target = any((select %(runs)s::uuid[])::uuid[]) and kind in ('complete', 'fail') and result is not null
)
update {schema}.run set context = null, inherited = null, result = null, erased = true
where id = any((select %(runs)s::uuid[])::uuid[])

-- name: is_extended
-- Whether somebody has begun below runs since they were looked at. Asked behind `prune`, which holds the messages.
select exists (
    select from {schema}.run l
    where l.late and l.lineage[cardinality(l.lineage) - 1] = any((select %(runs)s::uuid[])::uuid[])
      and l.id <> all((select %(runs)s::uuid[])::uuid[])
) or exists (
    select from {schema}.run r
    where r.message_id = any((select %(roots)s::uuid[])::uuid[]) and r.id <> all((select %(runs)s::uuid[])::uuid[])
)

-- name: forget_pruned
with due as (
    select id from {schema}.message
    where forget_at <= statement_timestamp()
    order by forget_at
    limit %(most)s
    for update skip locked
), gone as (
    delete from {schema}.message m using due d where m.id = d.id returning m.id
), released as (
    delete from {schema}.launched l using gone g where l.message_id = g.id
), forgotten as (
    delete from {schema}.foreign_child f using gone g where f.message_id = g.id
), buried as (
    -- Whose message has not come in a month. A broker that keeps messages for longer would start it.
    delete from {schema}.foreign_child where cancelled and created_at < statement_timestamp() - interval '1 month'
)
select count(*) from gone

-- name: is_pruned
-- Whether an id is that of a message whose hierarchy has been pruned, or of a run of its: such an id begins as the message's
-- does, and can be made again of the message, the service and the saga.
select exists (select from {schema}.message where id = %(target)s::uuid and forget_at is not null)
       or exists (
           select from {schema}.message m
           cross join (
               select service, saga from {schema}.subscription
               union
               select service, former from {schema}.renamed
           ) s
           where m.id between (left(%(target)s::uuid::text, 19) || '8000000000000000')::uuid
                          and (left(%(target)s::uuid::text, 19) || 'bfffffffffffffff')::uuid
             and m.forget_at is not null
             and %(target)s::uuid = (left(m.id::text, 19) || '8' || left(
                     md5(concat_ws(e'\n', m.id, length(s.service), s.service || s.saga)), 15))::uuid
       )

-- name: read_archive
-- All rows of hierarchies, as they are, for whoever keeps them elsewhere.
with recursive tree as (
    select * from unnest(%(runs)s::uuid[], %(roots)s::uuid[]) as t (id, root)
), top as (
    select unnest(%(tops)s::uuid[]) as root
), message as (
    select root, root as id from top
    union
    select t.root, c.message_id from tree t join {schema}.child c on c.run_id = t.id
), target as (
    select root, id from tree union all select root, id from message
), asked as (
    select t.root, q from target t join {schema}.request q on q.target = t.id and q.kind = 'cancel'
    union all
    select t.root, q from target t
    join {schema}.request q on q.target = t.id and q.kind = 'rollback' and q.outcome is not null
    union all
    select t.root, q from target t
    join {schema}.request q on q.target = t.id and q.kind in ('retry', 'skip', 'abandon')
    union all
    select t.root, q from target t join {schema}.request q on q.target = t.id and q.kind in ('complete', 'fail')
), reached (root, id, causes) as (
    select n.root, f.id, f.causes
    from (
        select t.root, unnest(array[r.failure, r.obstacle, r.giving_up, r.unresolved]) as id
        from tree t join {schema}.run r on r.id = t.id
        union
        select t.root, s.failure from tree t join {schema}.step s on s.run_id = t.id
        union
        select t.root, unnest(array[c.failure, c.obstacle]) from tree t join {schema}.child c on c.run_id = t.id
        union
        select root, (q).failure from asked
    ) n
    cross join lateral (select id, causes from {schema}.failure where id = n.id offset 0) f
    union
    select r.root, f.id, f.causes
    from reached r
    cross join lateral (select id, causes from {schema}.failure where id = any(r.causes) offset 0) f
)
select k.root, 'message', row_to_json(m)::text from message k join {schema}.message m on m.id = k.id
union all
select t.root, 'run', row_to_json(r)::text from tree t join {schema}.run r on r.id = t.id
union all
select t.root, 'step', row_to_json(s)::text from tree t join {schema}.step s on s.run_id = t.id
union all
select t.root, 'child', row_to_json(c)::text from tree t join {schema}.child c on c.run_id = t.id
union all
select a.root, 'request', row_to_json(a.q)::text from asked a
union all
select t.root, 'expected_root', row_to_json(o)::text from top t join {schema}.expected_root o on o.message_id = t.root
union all
select r.root, 'failure', f.row
from reached r
cross join lateral (select row_to_json(f)::text as row from {schema}.failure f where f.id = r.id offset 0) f
