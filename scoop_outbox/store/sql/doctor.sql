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
       coalesce(a.children, 0), extract(epoch from clock_timestamp() - a.since)::float8, coalesce(w.runs, 0)
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
