-- What people ask and order about dead letters. None of it is asked while all is well.

-- name: list_dead_letters
select id, created_at, message_id, origin, service, topic, position, reason, octet_length(body)
from {schema}.dead_letter
where id > %(after)s
  and (%(origin)s::text is null or origin = %(origin)s::text)
  and (%(topic)s::text is null or topic = %(topic)s::text)
  and (%(service)s::text is null or service = %(service)s::text)
order by id
limit %(most)s

-- name: newest_dead_letter
select coalesce(max(id), 0) from {schema}.dead_letter

-- name: read_dead_letter
-- Locked: whoever replays or drops it at the same time waits, and then finds nothing.
select id, created_at, message_id, origin, service, topic, position, reason, octet_length(body), key, body,
       content_type, headers
from {schema}.dead_letter
where id = %(letter)s
for update

-- name: drop_dead_letters
delete from {schema}.dead_letter where id = any(%(letters)s::bigint[]) returning id

-- name: is_handled
select exists (select from {schema}.run where message_id = %(message)s and service = %(service)s)

-- name: relaunch
-- Behind what is in the outbox already: its turn has passed.
insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers, expects)
select abs(hashtext(coalesce(key, message_id::text)) %% {shards}), message_id, topic, key, body, content_type, headers, (
    -- As its launch has said: see `addressed` there.
    select json_agg(json_build_array(x.service, x.saga, x.home, x.reply_to) order by x.service, x.saga)::text
    from (
        select c.service, c.saga, coalesce(c.home, h.id) as home,
               case when c.home is null then h.prefix || 'control.' || h.name else p.reply_to end as reply_to
        from {schema}.child c
        left join {schema}.peer p on p.id = c.home
        where c.message_id = d.message_id
        union
        select r.service, r.saga, h.id, h.prefix || 'control.' || h.name
        from {schema}.expected_root e, unnest(e.services, e.sagas) as r (service, saga)
        where e.message_id = d.message_id
    ) x
    where h.name is not null
)
from {schema}.dead_letter d
cross join {schema}.home h
where d.id = %(letter)s
