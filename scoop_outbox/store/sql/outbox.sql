-- The outbox: reading what is to be published, and deleting what was.

-- name: read_outbox
-- No more bytes of a shard than are asked for, but for the one row with which they are reached: what lies behind it is
-- looked at, but its body is not fetched. In coalesce, because nothing is known of how many rows a condition leaves there:
-- believed to leave few, of an outbox with one topic, it led to a plan that sorts everything.
select shard, seq, message_id::text, topic, key, body, content_type, headers::text, expects,
       case when expects is not null then (select prefix || 'control.' || name from {schema}.home) end
from unnest(%(shards)s::smallint[], %(low)s::bigint[]) as s (of, low)
cross join lateral (
    select array(
        select topic from unnest(%(blocked_shards)s::smallint[], %(blocked_topics)s::text[]) as c (shard, topic)
        where c.shard = s.of
    ) as topics
) blocked
cross join lateral (
    select *, sum(octet_length(body)) over (order by seq rows unbounded preceding) - octet_length(body) as before
    from (
        select shard, seq, message_id, topic, key, body, content_type, headers, expects
        from {schema}.outbox
        where shard = s.of and seq > s.low and coalesce(topic <> all (blocked.topics), true)
          -- Searched for, in a sorted array: compared with all of them, a thousand in hand took longer than the rest.
          and (%(in_hand)s::bigint[])[width_bucket(seq, %(in_hand)s::bigint[])] is distinct from seq
        order by seq
        limit %(most)s
    ) above
) o
where before < %(bytes)s

-- name: read_ends
-- Where the shards end now, if that is above their low watermarks.
select o.seq
from unnest(%(shards)s::smallint[], %(low)s::bigint[]) as s (of, low)
cross join lateral (
    select seq from {schema}.outbox where shard = s.of and seq > s.low order by seq desc limit 1
) o

-- name: read_writers
-- use: writers

-- name: delete_published
-- A relay that lost its shard deletes nothing: what it published will be published again by the new owner, and
-- taken in once. The numbers of a shard come as the text of an array: that is one search of the index for each shard.
-- In a subquery that stays one: what is known of a table that is empty most of the time would lead to another plan. And
-- between the lowest and the highest: Postgres before 17 may search for the shard alone, and compare all that it finds.
with deleted as (
    delete from {schema}.outbox
    where ctid = any (array(
        select o.ctid
        from unnest(%(shards)s::smallint[], %(seqs)s::text[]) as p (shard, seqs)
        join unnest(%(owned)s::smallint[], %(epochs)s::bigint[]) as e (shard, epoch) on e.shard = p.shard
        join {schema}.outbox_shard s on s.shard = e.shard and s.epoch = e.epoch
        cross join lateral (
            select min(n) as low, max(n) as high, array_agg(n) as numbers from unnest(p.seqs::bigint[]) as n
        ) b
        cross join lateral (
            select ctid
            from {schema}.outbox
            where shard = p.shard and seq between b.low and b.high and seq = any (b.numbers)
            offset 0
        ) o
    ))
    returning 1
)
select count(*) from deleted

-- name: bury_unpublishable
with buried as (
    delete from {schema}.outbox o
    using unnest(%(shards)s::smallint[], %(seqs)s::bigint[], %(reasons)s::text[]) as p (shard, seq, reason),
          unnest(%(owned)s::smallint[], %(epochs)s::bigint[]) as e (shard, epoch)
    join {schema}.outbox_shard s on s.shard = e.shard and s.epoch = e.epoch
    where o.shard = p.shard and o.seq = p.seq and s.shard = o.shard
    returning o.message_id, o.topic, o.key, o.body, o.content_type, o.headers, p.reason, o.seq
), written as (
    insert into {schema}.dead_letter (message_id, topic, key, body, content_type, headers, origin, reason)
    select message_id, topic, key, body, content_type, headers, 'relay', reason from buried order by seq
    returning 1
)
select count(*) from written

-- name: look_at_outbox
-- How many rows wait, counted no further than `most` in each shard, and for how long the oldest one has: what this
-- costs does not depend on how many there are.
select coalesce(sum(waiting.count), 0)::bigint,
       coalesce(extract(epoch from clock_timestamp() - min(oldest.created_at)), 0)::float8
from generate_series(0, {shards} - 1) as s (shard)
cross join lateral (
    select count(*) as count from (select from {schema}.outbox where shard = s.shard order by seq limit %(most)s) w
) waiting
left join lateral (
    select created_at from {schema}.outbox where shard = s.shard order by seq limit 1
) oldest on true
