-- What statements of several files say alike.

-- part: sender
-- The home that speaks, `h`, in a control message.
json_build_object('id', h.id, 'name', h.name, 'replyTo', h.prefix || 'control.' || h.name, 'at', clock_timestamp())

-- part: writers
-- Whoever writes into the outbox: he holds this lock on it until the transaction ends. Relays do as well, but not for long.
select virtualtransaction
from pg_locks
where locktype = 'relation' and mode = 'RowExclusiveLock' and granted
  and database = (select oid from pg_database where datname = current_database())
  and relation = (
      select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = {schema_name} and c.relname = 'outbox'
  )

-- part: grouped
-- Who is `listed`, with the name that stands for a saga, `one`. A saga that is renamed home by home is one, whatever it is called
-- in which of them: names of which one was another, also over a third. Those that a home has side by side are two. Where
-- nothing is renamed, a look at what is listed says so.
alike as (
    select n.topic, n.service, p.saga, p.other
    from listed n
    join listed o on o.topic = n.topic and o.service = n.service and o.saga = any(n.formerly)
    cross join lateral (values (n.saga, o.saga), (o.saga, n.saga)) as p (saga, other)
    where cardinality(n.formerly) > 0 and not exists (
        select from listed x
        join listed y on y.topic = x.topic and y.service = x.service and y.home = x.home and y.saga = o.saga
        where x.topic = n.topic and x.service = n.service and x.saga = n.saga
    )
), grouped as (
    select distinct l.topic, l.service, l.saga, l.home, l.draining, case when exists (select from alike) then (
        with recursive known (saga) as (
            select l.saga
            union
            select a.other from known k join alike a on a.topic = l.topic and a.service = l.service and a.saga = k.saga
        )
        select min(saga) from known
    ) else l.saga end as one
    from listed l
)
