-- Launching, taking in, relaying.

-- name: launch
-- Who is waited for is frozen here, in the launching transaction: the sagas that are subscribed now.
with launched as (
    select *
    from unnest(%(ids)s::uuid[], %(topics)s::text[], %(keys)s::text[], %(bodies)s::bytea[],
                %(content_types)s::text[], %(headers)s::text[], %(awaited)s::bool[])
         with ordinality as l (id, topic, key, body, content_type, headers, awaited, ordinal)
), expected as (
    insert into {schema}.child (message_id, service, saga, run_id, seq, ordinal)
    select l.id, s.service, s.saga, %(run)s::uuid, %(seq)s, l.ordinal
    from launched l
    join {schema}.subscription s on s.topic = l.topic
    where l.awaited
)
insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers)
select abs(hashtext(coalesce(l.key, l.id::text)) %% {shards}), l.id, l.topic, l.key, l.body, l.content_type,
       l.headers::json
from launched l
order by l.ordinal

-- name: read_subscribed
select topic, service, saga from {schema}.subscription where topic = any(%(topics)s)

-- name: read_expected
select message_id, service, saga from {schema}.child where message_id = any(%(ids)s) and state = 'waiting'

-- name: take_in
with taken as (
    insert into {schema}.message (id, topic, key, body, content_type, headers)
    select id, topic, key, body, content_type, headers::json
    from unnest(%(ids)s::uuid[], %(topics)s::text[], %(keys)s::text[], %(bodies)s::bytea[],
                %(content_types)s::text[], %(headers)s::text[])
         as m (id, topic, key, body, content_type, headers)
    on conflict do nothing
), started as (
    insert into {schema}.run (id, message_id, service, saga, lineage, parent_run, context, launched_at)
    select id, message_id, service, saga, lineage::uuid[], parent_run::uuid, context::json, launched_at::json
    from unnest(%(runs)s::uuid[], %(messages)s::uuid[], %(services)s::text[], %(sagas)s::text[],
                %(lineages)s::text[], %(parents)s::text[], %(contexts)s::text[], %(launched_at)s::text[])
         as r (id, message_id, service, saga, lineage, parent_run, context, launched_at)
    on conflict do nothing
    returning id, message_id, service, saga
), known as (
    update {schema}.child c
    set state = 'started', child_run = s.id
    from started s
    where c.message_id = s.message_id and c.service = s.service and c.saga = s.saga and c.state = 'waiting'
)
insert into {schema}.mailbox (service, saga, run_id, due)
select service, saga, id, clock_timestamp() from started
returning run_id, service, saga

-- name: read_outbox
select o.*
from unnest(%(shards)s::smallint[], %(floors)s::bigint[]) as s (shard, floor)
cross join lateral (
    select shard, seq, message_id, topic, key, body, content_type, headers
    from {schema}.outbox
    where shard = s.shard and seq > s.floor
    order by seq
    limit %(most)s
) o
order by seq

-- name: delete_published
-- A relay that lost its shard deletes nothing: what it published will be published again by the new owner, and
-- taken in once.
delete from {schema}.outbox o
using unnest(%(shards)s::smallint[], %(seqs)s::bigint[]) as p (shard, seq),
      unnest(%(owned)s::smallint[], %(epochs)s::bigint[]) as e (shard, epoch)
join {schema}.outbox_shard s on s.shard = e.shard and s.epoch = e.epoch
where o.shard = p.shard and o.seq = p.seq and s.shard = o.shard

-- name: bury_unpublishable
with buried as (
    delete from {schema}.outbox o
    using {schema}.outbox_shard s
    where o.shard = %(shard)s and o.seq = %(seq)s and s.shard = o.shard and s.epoch = %(epoch)s
    returning o.message_id, o.topic, o.key, o.body, o.content_type, o.headers
)
insert into {schema}.dead_letter (message_id, topic, key, body, content_type, headers, origin, reason)
select message_id, topic, key, body, content_type, headers, 'relay', %(reason)s from buried

-- name: acquire_shards
update {schema}.outbox_shard
set owner = %(owner)s, epoch = epoch + 1, expires_at = clock_timestamp() + %(lease)s
where shard in (
    select shard from {schema}.outbox_shard where expires_at < clock_timestamp() for update skip locked
)
returning shard, epoch

-- name: renew_shards
update {schema}.outbox_shard s
set expires_at = clock_timestamp() + %(lease)s
from unnest(%(shards)s::smallint[], %(epochs)s::bigint[]) as mine (shard, epoch)
where s.shard = mine.shard and s.epoch = mine.epoch
returning s.shard, s.epoch

-- name: release_shards
update {schema}.outbox_shard s
set owner = null, expires_at = '-infinity'
from unnest(%(shards)s::smallint[], %(epochs)s::bigint[]) as mine (shard, epoch)
where s.shard = mine.shard and s.epoch = mine.epoch
