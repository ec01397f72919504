-- Cooperation with other homes: who they are, what they are told, and what becomes of what they say.

-- name: read_identity
select id, name, prefix, revision, clock_timestamp() from {schema}.home

-- name: name_home
-- Once: whoever has been told the name tells this home something under it.
update {schema}.home set name = %(name)s where name is null returning true

-- name: may_read_place
-- A provider may have forbidden it.
select has_function_privilege('pg_catalog.pg_control_system()', 'execute')

-- name: read_place
-- Where this home was when it was named, and where it is: the cluster, which standbys share, and the database.
select h.place, c.system_identifier || ':' || d.oid
from {schema}.home h, pg_catalog.pg_control_system() c, pg_catalog.pg_database d
where d.datname = current_database()

-- name: store_place
update {schema}.home set place = %(place)s

-- name: find_namesake
-- Another home of our name that has been heard of.
select p.id from {schema}.peer p join {schema}.home h on p.name = h.name and p.id <> h.id

-- name: lock_identity
select id, name, prefix, revision, clock_timestamp(), announced, draining from {schema}.home for update

-- name: drain_home
-- What other homes have said before of what they wait for is no answer.
with changed as (
    update {schema}.home set draining = %(draining)s where draining <> %(draining)s returning true
)
update {schema}.peer set waiting = null where exists (select from changed)

-- name: read_listeners_here
-- Whom messages from other homes reach: those whom a broker brings theirs.
select topic, service, saga, pattern, names, formerly from {schema}.subscription where via_broker order by service, saga, topic

-- name: read_known_revisions
select id, revision from {schema}.peer where revision > 0 order by id

-- name: store_announced
update {schema}.home set revision = %(revision)s, announced = %(announced)s

-- name: send_control
insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers)
select abs(hashtext(%(key)s::text) %% {shards}), gen_random_uuid(), %(topic)s, %(key)s, %(body)s::bytea, 'application/json',
       json_build_object()

-- name: note_peers
-- Heard of once in a while is often enough: a row is not written for each message. How much earlier it was there when it was
-- said holds how long it was on its way, too: it is kept each time, as it is then.
insert into {schema}.peer as known (id, name, reply_to, lag)
select g.id, g.name, g.reply_to, clock_timestamp() - g.said_at::timestamptz
from unnest(%(homes)s::uuid[], %(names)s::text[], %(reply_to)s::text[], %(said_at)s::text[])
     as g (id, name, reply_to, said_at)
-- What is known is not offered: its row would be locked until the end, and those who take in what one home says wait in line.
where not exists (
    select from {schema}.peer p
    where p.id = g.id and p.name = g.name and p.reply_to = g.reply_to
      and p.heard_at >= clock_timestamp() - interval '1 minute'
)
order by g.id
on conflict (id) do update
set name = excluded.name, reply_to = excluded.reply_to, heard_at = clock_timestamp(), lag = excluded.lag
where (known.name, known.reply_to) is distinct from (excluded.name, excluded.reply_to)
   or known.heard_at < clock_timestamp() - interval '1 minute'

-- name: lock_peer
select revision from {schema}.peer where id = %(home)s for update

-- name: store_peer_revision
update {schema}.peer
set revision = %(revision)s, draining = %(draining)s,
    launching = case when %(draining)s then launching end
where id = %(home)s

-- name: read_launching
-- Whether a transaction is open that may launch for a home that is being drained: it was writing when this was asked first.
with writing as (
    -- use: writers
    and pid <> pg_backend_pid()
), noted as (
    update {schema}.peer p
    set launching = array(select virtualtransaction from writing)
    where p.id = %(home)s and p.draining and p.launching is null
    returning p.launching
)
select exists (select from writing where virtualtransaction = any(coalesce((select launching from noted), p.launching)))
from {schema}.peer p
where p.id = %(home)s

-- name: count_waiting
-- How many children in a home are waited for, and messages are on their way to it, up to a thousand each. It is asked behind
-- `read_launching`: what was being launched then, and is not any more, is seen.
select (
    select count(*) from (select from {schema}.child where open and home = p.id limit 1000) c
) + (
    select count(*) from (select from {schema}.outbox where topic = p.reply_to limit 1000) o
)
from {schema}.peer p
where p.id = %(home)s

-- name: drop_peer_subscriptions
delete from {schema}.peer_subscription p
where p.home = %(home)s and not exists (
    select from unnest(%(topics)s::text[], %(services)s::text[], %(sagas)s::text[]) as g (topic, service, saga)
    where g.topic = p.topic and g.service = p.service and g.saga = p.saga
)

-- name: store_peer_subscriptions
-- A pattern that Postgres cannot read is refused here: each launch would meet it.
insert into {schema}.peer_subscription as known (home, topic, service, saga, pattern, names, formerly)
select distinct on (g.topic, g.service, g.saga)
       %(home)s::uuid, g.topic, g.service, g.saga, g.pattern, array(select json_array_elements_text(g.names::json)),
       array(select json_array_elements_text(g.formerly::json))
from unnest(%(topics)s::text[], %(services)s::text[], %(sagas)s::text[], %(patterns)s::text[], %(names)s::text[],
            %(formerly)s::text[])
     as g (topic, service, saga, pattern, names, formerly)
where g.pattern is null or '' ~ g.pattern is not null
on conflict (home, topic, service, saga) do update
set pattern = excluded.pattern, names = excluded.names, formerly = excluded.formerly
where (known.pattern, known.names, known.formerly) is distinct from (excluded.pattern, excluded.names, excluded.formerly)

-- name: store_confirmed
-- Who knows a newer list than we have made was told it before we were restored from an older backup.
with noted as (
    update {schema}.peer set confirmed = greatest(confirmed, %(revision)s), waiting = %(waiting)s where id = %(home)s
)
update {schema}.home set revision = %(revision)s, announced = null where revision < %(revision)s returning true

-- name: find_peer
-- Also one that has been forgotten, if anybody still waits for children there.
select id from {schema}.peer where name = %(name)s or id::text = %(name)s
union
select home from {schema}.child where open and home::text = %(name)s
order by 1

-- name: drop_peer
delete from {schema}.peer where id = %(home)s

-- name: drop_peer_listeners
delete from {schema}.peer_subscription where home = %(home)s

-- name: retire_children_of_home
-- Parents look at once. Those that had committed stay as they are: nobody can undo them.
with chosen as (
    select message_id, service, saga
    from {schema}.child
    where open and home = %(home)s
    order by message_id
    limit %(most)s
    for update skip locked
), retired as (
    update {schema}.child c
    set state = case when c.state = 'rolling_back' then 'rollback_failed' else 'rolled_back' end, open = false,
        failure = coalesce(c.failure, %(failure)s::uuid),
        obstacle = case when c.state = 'rolling_back' then %(failure)s::uuid end, failed_at = clock_timestamp()
    from chosen x
    where c.message_id = x.message_id and c.service = x.service and c.saga = x.saga
    returning c.run_id, c.message_id, c.service, c.saga
), told as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select r.service, r.saga, r.version, r.id, clock_timestamp()
    from (select distinct run_id from retired) p
    join {schema}.run r on r.id = p.run_id
)
select count(*), exists (
    select from {schema}.child c
    where c.open and c.home = %(home)s and not exists (
        select from retired r where r.message_id = c.message_id and r.service = c.service and r.saga = c.saga
    )
)
from retired

-- name: read_unconfirmed
-- Which homes have not said that they know of the newest revision of our subscriptions.
select p.name from {schema}.peer p where p.revision > 0 and p.confirmed < (select revision from {schema}.home) order by p.name

-- name: look_at_homes
-- Other homes that are known, or in which children are waited for: these are counted among so many open ones. What is asked
-- this way is asked often, and costs no more as there is more.
with waited_for as (
    select o.home, count(*) as children
    from (select home from {schema}.child where open limit %(most)s) o
    where o.home is not null
    group by o.home
)
select coalesce(p.name, w.home::text), coalesce(w.children, 0),
       extract(epoch from clock_timestamp() - p.heard_at)::float8, extract(epoch from p.lag)::float8,
       coalesce(p.revision > 0 and p.confirmed < h.revision, false)
from {schema}.peer p
full join waited_for w on w.home = p.id
cross join {schema}.home h
order by 1, p.id

-- name: know_peers
-- Whoever waits can be told. Before any row of a child is written: whoever hears of a home notes it first, too.
insert into {schema}.peer (id, name, reply_to)
select distinct on (home) home, reply_to, reply_to
from unnest(%(homes)s::uuid[], %(reply_to)s::text[]) as g (home, reply_to)
order by home
on conflict do nothing

-- name: report_started
-- What was taken in for another home has begun; one message for all of a batch.
with given as (
    select * from unnest(%(ids)s::uuid[], %(homes)s::uuid[]) as g (id, home)
), begun as (
    select f.home, json_agg(json_build_object(
        'message', f.message_id, 'run', f.run_id, 'service', f.service, 'saga', f.saga, 'generation', 1, 'state', 'started'
    ) order by f.message_id) as children
    from given g
    join {schema}.foreign_child f on f.message_id = g.id and f.home = g.home
    where f.generation = 1 and not f.cancelled and f.service = %(service)s
    group by f.home
)
insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers)
select abs(hashtext(b.home::text) %% {shards}), gen_random_uuid(), p.reply_to, b.home::text,
       convert_to(json_build_object('version', 1, 'kind', 'news', 'from',
           -- use: sender
           , 'children', b.children)::text, 'UTF8'),
       'application/json', json_build_object()
from begun b
join {schema}.peer p on p.id = b.home
cross join {schema}.home h
returning true

-- name: tell_home
-- A run has ended that another home waits for.
with told as (
    update {schema}.foreign_child
    set generation = generation + 1
    where message_id = %(message)s and run_id = %(run)s
    returning message_id, service, saga, run_id, home, generation
)
insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers)
select abs(hashtext(t.message_id::text) %% {shards}), gen_random_uuid(), p.reply_to, t.message_id::text,
       convert_to(json_build_object('version', 1, 'kind', 'news', 'from',
           -- use: sender
           , 'children', json_build_array(
               case when %(result)s::text is null
                   then json_build_object(
                       'message', t.message_id, 'run', t.run_id, 'service', t.service, 'saga', t.saga,
                       'generation', t.generation, 'state', %(state)s::text,
                       'failure', %(failure)s::json, 'obstacle', %(obstacle)s::json,
                       'failedAt', case
                           when %(state)s::text = 'rolled_back' then (
                               select r.failed_at from {schema}.run r where r.id = t.run_id
                           )
                       end)
                   else json_build_object(
                       'message', t.message_id, 'run', t.run_id, 'service', t.service, 'saga', t.saga,
                       'generation', t.generation, 'state', %(state)s::text, 'result', %(result)s::json)
               end))::text, 'UTF8'),
       'application/json', json_build_object()
from told t
join {schema}.peer p on p.id = t.home
cross join {schema}.home h
returning true

-- name: report_abandoned
-- A run that could not be rolled back was given up: to a parent that has committed it is as good as done. Older homes take
-- it for a second report of the same.
with told as (
    update {schema}.foreign_child
    set generation = generation + 1
    where message_id = %(message)s and run_id = %(run)s
    returning message_id, service, saga, run_id, home, generation
)
insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers)
select abs(hashtext(t.message_id::text) %% {shards}), gen_random_uuid(), p.reply_to, t.message_id::text,
       convert_to(json_build_object('version', 1, 'kind', 'news', 'from',
           -- use: sender
           , 'children', json_build_array(json_build_object(
               'message', t.message_id, 'run', t.run_id, 'service', t.service, 'saga', t.saga,
               'generation', t.generation, 'state', 'rollback_failed', 'abandoned', true,
               'failure', %(failure)s::json, 'obstacle', %(obstacle)s::json)))::text, 'UTF8'),
       'application/json', json_build_object()
from told t
join {schema}.peer p on p.id = t.home
cross join {schema}.home h
returning true

-- name: report_reopened
-- Runs that had ended for another home are being rolled back, or rolled back further.
with told as (
    update {schema}.foreign_child f
    set generation = f.generation + 1
    from {schema}.run r
    where r.id = any(%(runs)s::uuid[]) and r.parent_home is not null and f.message_id = r.message_id and f.run_id = r.id
    returning f.message_id, f.service, f.saga, f.run_id, f.home, f.generation
)
insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers)
select abs(hashtext(t.message_id::text) %% {shards}), gen_random_uuid(), p.reply_to, t.message_id::text,
       convert_to(json_build_object('version', 1, 'kind', 'news', 'from',
           -- use: sender
           , 'children', json_build_array(json_build_object(
               'message', t.message_id, 'run', t.run_id, 'service', t.service, 'saga', t.saga,
               'generation', t.generation, 'state', 'rolling_back')))::text, 'UTF8'),
       'application/json', json_build_object()
from told t
join {schema}.peer p on p.id = t.home
cross join {schema}.home h
returning true

-- name: read_foreign_children
-- Where children stand that another home asks about, and the number of the last report of each.
select f.message_id, f.run_id, f.service, f.saga, f.generation, f.cancelled, r.state, r.result::text, r.failure, r.obstacle,
       r.undo_seq is not null
from unnest(%(messages)s::uuid[], %(runs)s::uuid[]) as g (message, run)
join {schema}.foreign_child f on f.message_id = g.message and f.run_id = g.run
left join {schema}.run r on r.id = f.run_id
order by f.message_id, f.run_id

-- name: read_silent_children
-- Children in other homes that have been open for long, of homes that have been heard of since they were asked last. What
-- lives is looked through, and not what was. With why, and with what, they have been told to give up or to roll back; of a
-- message from outside there is no run: somebody has asked for it.
select p.reply_to, c.message_id, c.service, c.saga, c.generation, c.state, c.run_id,
       case c.state
           when 'cancelling' then coalesce(c.failure, r.giving_up, q.failure)
           when 'rolling_back' then coalesce(r.failure, q.failure)
       end,
       r.context::text, r.rollback_by
from {schema}.child c
join {schema}.peer p on p.id = c.home
left join {schema}.run r on r.id = c.run_id
left join lateral (
    select failure from {schema}.request where c.state = 'cancelling' and target = c.message_id and kind = 'cancel'
    union all
    select failure from {schema}.request
    where c.state = 'rolling_back' and target = c.message_id and kind = 'rollback' and outcome is null
    union all
    select failure from {schema}.request
    where c.state = 'rolling_back' and target = c.message_id and kind = 'rollback' and outcome is not null
      and failure is not null
    limit 1
) q on true
left join {schema}.step s on s.run_id = c.run_id and s.seq = c.seq
where c.open and c.home is not null and (c.message_id, c.service, c.saga) > (%(message)s, %(service)s, %(saga)s)
  and p.heard_at > %(heard_since)s and c.home = coalesce(%(home)s::uuid, c.home)
  -- Of a message from outside nobody has noted when it was launched: it is asked after as soon as anybody asks.
  and coalesce(greatest(s.ended_at, c.reported_at), '-infinity') < clock_timestamp() - %(silent)s::interval
order by c.message_id, c.service, c.saga
limit %(most)s

-- name: read_committed_elsewhere
-- Children that have committed in another home, or in all others, and whose parents are under way.
with living as (
    select run_id as id from {schema}.mailbox
    union
    select run_id from {schema}.child where open
    union
    select run_id from {schema}.lane_entry
)
select p.reply_to, c.message_id, c.service, c.saga, c.generation
from living l
join {schema}.child c on c.run_id = l.id and c.state = 'committed'
join {schema}.peer p on p.id = c.home and p.id = coalesce(%(home)s::uuid, p.id)
order by p.id, c.message_id, c.service, c.saga

-- name: release_foreign
-- Their parents have been pruned: they are kept, and pruned, as if they had begun hierarchies of their own.
update {schema}.run r
set parent_run = null, parent_home = null
from unnest(%(messages)s::uuid[], %(runs)s::uuid[]) as g (message, run)
where r.id = g.run and r.message_id = g.message and r.parent_home = %(home)s and r.state not in ('running', 'rolling_back')

-- name: read_sharing
-- Which homes share what comes for the sagas of a service on some topics: all in which a saga listens, under whatever name, but
-- for those that are being drained, if there are others; and how they are told. Nothing if the service has no other home.
with listed as (
    select t.topic, s.service, s.saga, s.home, s.draining, s.formerly
    from unnest((select %(topics)s::text[])) as t (topic)
    join (
        select topic, service, saga, pattern, names, formerly, h.id as home, h.draining
        from {schema}.subscription cross join {schema}.home h
        where service = (select %(service)s)
        union all
        select topic, service, saga, pattern, names, formerly, home, p.draining
        from {schema}.peer_subscription join {schema}.peer p on p.id = home
        where service = (select %(service)s)
    ) s on s.topic = t.topic or t.topic = any(s.names) or t.topic ~ s.pattern
    where exists (select from {schema}.peer_subscription where service = (select %(service)s))
),
    -- use: grouped
, called as (
    -- What a saga is called in some home, or was: a launcher may not have heard of its newest name.
    select topic, one, saga as name from grouped
    union
    select g.topic, g.one, f.name
    from grouped g
    join listed l on l.topic = g.topic and l.saga = g.saga
    cross join lateral unnest(l.formerly) as f (name)
    where not exists (select from listed x where x.topic = g.topic and x.saga = f.name)
), sharing as (
    select distinct g.topic, g.one, g.home
    from grouped g
    where not g.draining or not exists (
        select from grouped o where o.topic = g.topic and o.one = g.one and not o.draining
    )
)
select n.topic, n.saga, array_agg(s.home),
       array_agg(array[p.id::text, p.reply_to]) filter (where p.id is not null),
       array(select c.name from called c where c.topic = n.topic and c.one = n.one and c.name <> n.saga)
from (select distinct topic, saga, one from grouped) n
join sharing s on s.topic = n.topic and s.one = n.one
left join {schema}.peer p on p.id = s.home
group by n.topic, n.saga, n.one

-- name: forward
-- To each home in the order in which it came, as far as keys say that there is one. Under the message's own id: so whoever
-- asks for that finds where it is.
insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers)
select abs(hashtext(g.key) %% {shards}), g.id, g.topic, g.key, g.body, 'application/json', json_build_object()
from unnest(%(ids)s::uuid[], %(topics)s::text[], %(keys)s::text[], %(bodies)s::bytea[]) with ordinality
     as g (id, topic, key, body, ordinal)
order by g.ordinal

-- name: apply_news
-- A report counts if its number is higher than that of the last one: whatever comes late, twice or in another order does
-- nothing. Insert only for the parents' runs, as within a home; a parent is woken once, however many children are told of.
-- A child that has ended goes on only by being rolled back: whichever report says so first counts for those before it.
with given as (
    select distinct on (message, run) *
    from json_to_recordset(convert_from(%(document)s::bytea, 'UTF8')::json)
         as g (message uuid, run uuid, home uuid, generation int, state text, result text, failure uuid, obstacle uuid,
               failed_at timestamptz, abandoned bool)
    order by message, run, generation desc
), found as (
    select c.message_id, c.service, c.saga, g.run, g.home, g.generation, g.state, g.result, g.failure, g.obstacle,
           g.failed_at, coalesce(g.abandoned, false) as abandoned
    from given g
    join {schema}.child c on c.message_id = g.message and c.home is not null
    where g.generation > c.generation
      and g.run = (left(c.message_id::text, 19) || '8' || left(
                      md5(concat_ws(e'\n', c.message_id, length(c.service), c.service || c.saga)), 15))::uuid
      and (c.open or g.state in ('rolling_back', 'rolled_back', 'rollback_failed') and (
          c.state = 'committed' or c.state = 'rollback_failed' and not c.consumed
      ))
      -- Its message may still be on its way: who asks where a child is may be quicker.
      and not (g.state = 'unknown' and c.state = 'waiting')
    order by c.message_id, c.service, c.saga
    for update of c
), told as (
    update {schema}.child c
    set generation = f.generation, home = f.home, reported_at = clock_timestamp(),
        child_run = case when f.state in ('cancelled', 'unknown') then c.child_run else f.run end,
        state = case
            when f.state = 'started' then case when c.state = 'waiting' then 'started' else c.state end
            when f.state = 'unknown' then 'rollback_failed'
            when f.state = 'cancelled' and c.failure is not null then 'rolled_back'
            else f.state
        end,
        open = f.state in ('started', 'rolling_back'),
        result = f.result::json,
        failure = case when f.state in ('cancelled', 'started') then coalesce(c.failure, f.failure) else f.failure end,
        obstacle = case when f.state = 'unknown' then f.failure else f.obstacle end,
        failed_at = case
            when f.state not in ('started', 'rolling_back', 'committed') then least(f.failed_at, clock_timestamp())
        end,
        healing = case
            when c.open and f.state <> 'rolling_back' then c.healing
            else exists (select from {schema}.run p where p.id = c.run_id and p.state = 'rollback_failed' offset 0)
        end,
        -- As `abandon` does where parent and child live in one home. Of a message from outside there is no parent.
        consumed = c.consumed or f.abandoned and f.state = 'rollback_failed' and not exists (
            select from {schema}.run p where p.id = c.run_id and p.state <> 'committed' offset 0
        )
    from found f
    where c.message_id = f.message_id and c.service = f.service and c.saga = f.saga
    returning c.run_id, c.message_id, c.service, c.saga, c.open
), ended as (
    select distinct run_id, message_id = run_id as is_root from told where not open
), others as (
    select e.run_id, (
        select count(*) from (
            select from {schema}.child c
            where c.run_id = e.run_id and c.open and not exists (
                select from told t
                where not t.open and t.message_id = c.message_id and t.service = c.service and t.saga = c.saga
            )
            limit 100
        ) o
    ) as open
    from ended e
    where not e.is_root
), woken as (
    select r.id, r.service, r.saga, r.version, o.open * 0.002::float8 as delay
    from others o
    join {schema}.run r on r.id = o.run_id
), posted as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select service, saga, version, id, clock_timestamp() + delay * interval '1 second' from woken order by id
)
select id, service, saga, version, delay from woken
union all
select run_id, null, null, null, 0 from ended where is_root

-- name: raise_generations
-- A home that was restored from a backup counts on from where its parent's home has heard of it. What has been rolled back
-- is not what was reported under that number, or nobody would ask: it is reported under the next one. Answers what.
with found as (
    select f.message_id, f.service, f.saga, g.generation + case when e.ended then 1 else 0 end as generation, e.ended
    from unnest(%(messages)s::uuid[], %(runs)s::uuid[], %(generations)s::int[]) as g (message, run, generation)
    join {schema}.foreign_child f on f.message_id = g.message and f.run_id = g.run and f.generation <= g.generation
    cross join lateral (
        -- `offset 0`: run by run, and not by reading all that were.
        select exists (
            select from {schema}.run r where r.id = f.run_id and r.state in ('rolled_back', 'rollback_failed') offset 0
        )
    ) as e (ended)
    where e.ended or f.generation < g.generation
    order by f.message_id, f.service, f.saga
    for update of f
), raised as (
    update {schema}.foreign_child f
    set generation = n.generation
    from found n
    where f.message_id = n.message_id and f.service = n.service and f.saga = n.saga and f.generation < n.generation
    returning f.run_id, n.ended
)
select run_id from raised where ended

-- name: read_unknown_children
select g.run
from unnest(%(messages)s::uuid[], %(runs)s::uuid[]) as g (message, run)
where not exists (
    select from {schema}.foreign_child f
    left join {schema}.run r on r.id = f.run_id
    where f.message_id = g.message and f.run_id = g.run and (f.cancelled or not r.erased)
)

-- name: roll_back_foreign
-- As a parent orders it that lives here: see ask_children.
with found as (
    -- Whoever orders is who waits for it: nobody else has anything to say to it.
    select r.id
    from {schema}.run r
    where r.id = any(%(runs)s::uuid[]) and r.parent_home = %(home)s and r.state = 'committed' and not r.erased
    order by r.id
    for update
), told as (
    update {schema}.run r
    set state = 'rolling_back', failure = %(failure)s, inherited = %(context)s, undo_seq = r.seq, attempt = 0,
        rollback_by = %(rollback_by)s, handled = 0, failed_at = clock_timestamp(), ended_at = null
    from found f
    where r.id = f.id
    returning r.id, r.service, r.saga, r.version
), posted as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select service, saga, version, id, clock_timestamp() from told
)
select id, service, saga, version, 0.0::float8 from told

-- name: bury_foreign
-- What has not been taken in never will be: its message starts nothing. Answers which; and whose row somebody has written
-- at this moment, so that it is not seen yet.
with given as (
    select * from unnest(%(messages)s::uuid[], %(services)s::text[], %(sagas)s::text[], %(runs)s::uuid[],
                         %(generations)s::int[]) as g (message, service, saga, run, generation)
), missing as (
    select g.* from given g
    where not exists (
        select from {schema}.foreign_child f where f.message_id = g.message and f.run_id = g.run
    )
), buried as (
    insert into {schema}.foreign_child (message_id, service, saga, run_id, home, generation, cancelled)
    select message, service, saga, run, %(home)s::uuid, generation + 1, true from missing order by message, service, saga
    on conflict do nothing
    returning run_id
)
select m.run, b.run_id is not null from missing m left join buried b on b.run_id = m.run

-- name: cancel_foreign
-- As a parent asks it that lives here: see cancel_children.
with begun as (
    select r.id, r.service, r.saga, r.version
    from {schema}.run r
    where r.id = any(%(runs)s::uuid[]) and r.parent_home = %(home)s
      and (r.state = 'running' or r.state = 'parked' and r.undo_seq is null)
), asked as (
    insert into {schema}.request (target, kind, failure)
    select id, 'cancel', %(failure)s from begun order by id
    on conflict do nothing
)
insert into {schema}.mailbox (service, saga, version, run_id, due)
select service, saga, version, id, clock_timestamp() from begun
returning run_id, service, saga, version, 0.0::float8
