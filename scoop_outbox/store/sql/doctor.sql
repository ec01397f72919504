-- What `scoop-outbox doctor` asks about this home and others. It looks through what lives, and not through what was.

-- name: examine_peers
-- Other homes that are known or in which children are waited for. A child's silence begins with its last report, or with its
-- launch; that of one that was launched from outside is not known before the first.
with awaited as (
    select c.home, count(*) as children, min(coalesce(c.reported_at, s.ended_at)) as since
    from {schema}.child c
    left join {schema}.step s on s.run_id = c.run_id and s.seq = c.seq
    where c.open and c.home is not null
    group by c.home
), living as (
    select run_id as id from {schema}.mailbox
    union
    select run_id from {schema}.child where open
    union
    select run_id from {schema}.lane_entry
), wanted as (
    select r.parent_home as home, count(*) as runs
    from living l
    join {schema}.run r on r.id = l.id
    where r.parent_home is not null and r.state in ('running', 'rolling_back')
    group by r.parent_home
)
select coalesce(p.id, a.home, w.home), p.name, p.reply_to, coalesce(p.revision, 0), coalesce(p.confirmed, 0),
       extract(epoch from clock_timestamp() - p.heard_at)::float8, extract(epoch from p.lag)::float8,
       (select count(*) from {schema}.peer_subscription s where s.home = p.id),
       coalesce(a.children, 0), extract(epoch from clock_timestamp() - a.since)::float8, coalesce(w.runs, 0),
       coalesce(p.draining, false)
from {schema}.peer p
full join awaited a on a.home = p.id
full join wanted w on w.home = coalesce(p.id, a.home)
order by p.name, 1

-- name: read_lost_children
-- Runs that are stuck because another home did not know a child of theirs when it was asked.
select c.home, coalesce(min(p.name), c.home::text), count(*), min(c.run_id::text)
from {schema}.run r
join {schema}.child c on c.run_id = r.id and c.home is not null and c.state = 'rollback_failed'
join {schema}.failure f on f.id = c.obstacle and f.type = %(type)s
left join {schema}.peer p on p.id = c.home
where r.obstacle is not null and not r.abandoned
group by c.home
order by c.home

-- name: count_control_letters
-- What other homes have said and could not be understood, and what they were to be told and could not be published.
select origin, count(*), max(id)
from {schema}.dead_letter
where origin = 'intake' and service = %(channel)s
   or origin = 'relay' and (topic = %(homes)s or starts_with(topic, %(channels)s))
group by origin
order by origin

-- name: read_draining
-- What a home that is being drained has left. That a run was committed for another home, which may ask to undo it until it
-- has pruned its parent, is looked for in all that was.
-- Work outside leaves a run without mail: its state says that it goes on. And who has launched from outside waits, too.
with unfinished as (
    select from {schema}.run
    where state in ('running', 'rolling_back', 'parked') or obstacle is not null and not abandoned
    union all
    select from {schema}.child where open and run_id = message_id
    union all
    select from {schema}.expected_root e
    where cardinality(e.services) > 0 and not exists (select from {schema}.message m where m.id = e.message_id)
)
select h.draining, (select count(*) from {schema}.outbox), (select count(*) from {schema}.dead_letter),
       (select count(*) from unfinished), (
    select count(*) from (
        select from {schema}.run where parent_home is not null and state = 'committed' and not erased limit 1000
    ) r
)
from {schema}.home h

-- name: read_sagas_only_here
-- Whom nobody takes over from.
select distinct s.service, s.saga
from {schema}.subscription s
where s.via_broker and not exists (
    select from {schema}.peer_subscription o
    join {schema}.peer p on p.id = o.home
    where o.topic = s.topic and o.service = s.service and not p.draining
      and (o.saga = s.saga or o.saga = any(s.formerly) or s.saga = any(o.formerly))
)
order by 1, 2

-- name: read_awaiting
select coalesce(p.name, p.id::text), coalesce(p.confirmed >= h.revision, false), p.waiting
from {schema}.peer p
cross join {schema}.home h
order by 1
