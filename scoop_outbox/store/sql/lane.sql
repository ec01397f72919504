-- Runs that wait for each other, because their saga is ordered by key. Live work only.
--
-- A lane is a service, a saga and a key; it has one holder at a time. Whoever looks who is next does so behind the
-- lane's lock, which is taken by a statement of its own: the statement that looks then sees what those before did.

-- name: lock_lane
select pg_advisory_xact_lock(hashtextextended(%(lane)s::uuid::text, 0))

-- name: read_lane_entry
-- A run that is not ordered any more, or never was, holds nothing and waits for nobody.
select held from {schema}.lane_entry where run_id = %(run)s

-- name: take_lane
-- Takes the lane if nobody has it and nobody came before; else drops the mail that was read: the holder will post
-- some when it ends. A run that was taken in later may have been quicker (transactions commit in any order), so who
-- holds the lane is asked as well as who came first.
with mine as (
    select lane, seq from {schema}.lane_entry where run_id = %(run)s
), free as (
    select m.lane
    from mine m
    where not exists (select from {schema}.lane_entry h where h.lane = m.lane and h.held)
      and not exists (select from {schema}.lane_entry e where e.lane = m.lane and e.seq < m.seq)
), taken as (
    update {schema}.lane_entry t set held = true from free f where t.run_id = %(run)s returning 1
), dropped as (
    delete from {schema}.mailbox where id = any((select %(mail)s::bigint[])::bigint[]) and not exists (select from free)
)
select count(*) > 0 from taken

-- name: leave_lane
-- The lane goes to the one that came next. Nothing happens when the run has left it already.
with ended as (
    delete from {schema}.lane_entry where run_id = %(run)s returning lane
), following as (
    update {schema}.lane_entry t
    set held = true
    from ended e
    cross join lateral (
        select run_id from {schema}.lane_entry n where n.lane = e.lane and n.run_id <> %(run)s order by n.seq limit 1
    ) next
    where t.run_id = next.run_id
      and not exists (select from {schema}.lane_entry h where h.lane = e.lane and h.held and h.run_id <> %(run)s)
    returning t.run_id
)
insert into {schema}.mailbox (service, saga, version, run_id, due)
select r.service, r.saga, r.version, r.id, clock_timestamp() from following f join {schema}.run r on r.id = f.run_id
returning run_id, service, saga, version, 0.0::float8
