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
