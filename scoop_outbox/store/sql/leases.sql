-- Leases: which shards of the outbox a relay owns, and since which epoch.

-- name: acquire_shards
update {schema}.outbox_shard
set owner = %(owner)s, epoch = epoch + 1, expires_at = clock_timestamp() + %(lease)s::interval
where shard in (
    select shard from {schema}.outbox_shard where expires_at < clock_timestamp() for update skip locked
)
returning shard, epoch

-- name: renew_shards
update {schema}.outbox_shard s
set expires_at = clock_timestamp() + %(lease)s::interval
from unnest(%(shards)s::smallint[], %(epochs)s::bigint[]) as mine (shard, epoch)
where s.shard = mine.shard and s.epoch = mine.epoch
returning s.shard, s.epoch

-- name: release_shards
update {schema}.outbox_shard s
set owner = null, expires_at = '-infinity'
from unnest(%(shards)s::smallint[], %(epochs)s::bigint[]) as mine (shard, epoch)
where s.shard = mine.shard and s.epoch = mine.epoch

-- name: is_relayed
select exists (select from {schema}.outbox_shard where expires_at > clock_timestamp())
