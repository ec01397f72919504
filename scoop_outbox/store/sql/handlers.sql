-- Who is subscribed, what is pending for them, and retiring them. Counts go no further than anybody wants to know, and
-- what has not ended is found in what lives, not in what has been.

-- name: read_handlers
with live as (
    (select run_id from {schema}.mailbox limit %(most)s)
    union
    (select run_id from {schema}.child where open limit %(most)s)
    union
    (select run_id from {schema}.lane_entry limit %(most)s)
    union
    (select id from {schema}.run where reason is not null limit %(most)s)
), unfinished as (
    select r.service, r.saga, count(*) filter (where r.seq = 0 and r.state = 'running') as unstarted,
           count(*) filter (where r.seq > 0 or r.state <> 'running') as under_way
    from live l
    join {schema}.run r on r.id = l.run_id
    where r.state in ('running', 'rolling_back', 'parked')
    group by r.service, r.saga
), waiting as (
    select service, saga, count(*) as messages
    from (select service, saga from {schema}.child where open and state = 'waiting' limit %(most)s) c
    group by service, saga
), due as (
    select service, saga, count(*) as mail
    from (select service, saga from {schema}.mailbox where due <= statement_timestamp() limit %(most)s) b
    group by service, saga
), subscribed as (
    select service, saga, array_agg(topic order by topic) as topics, min(created_at) as since,
           bool_or(via_broker) as via_broker
    from {schema}.subscription
    group by service, saga
), names as (
    select service, saga from subscribed
    union
    select service, saga from unfinished
    union
    select service, saga from waiting
)
select n.service, n.saga, coalesce(s.topics, array[]::text[]), s.since, coalesce(s.via_broker, false),
       coalesce(w.messages, 0), coalesce(u.unstarted, 0), coalesce(u.under_way, 0), coalesce(d.mail, 0)
from names n
left join subscribed s on s.service = n.service and s.saga = n.saga
left join waiting w on w.service = n.service and w.saga = n.saga
left join unfinished u on u.service = n.service and u.saga = n.saga
left join due d on d.service = n.service and d.saga = n.saga
where (%(service)s::text is null or n.service = %(service)s::text)
  and (%(saga)s::text is null or n.saga = %(saga)s::text)
order by n.service, n.saga

-- name: read_alive
-- Which sagas living workers have.
select distinct w.service, h.saga
from {schema}.worker w
cross join unnest(w.sagas) as h (saga)
where w.alive_until > statement_timestamp() and (%(service)s::text is null or w.service = %(service)s::text)

-- name: read_under_way
with live as (
    select run_id from {schema}.mailbox where service = %(service)s
    union
    select run_id from {schema}.child where open
    union
    select run_id from {schema}.lane_entry
    union
    select id from {schema}.run where service = %(service)s and reason is not null
)
select r.id, r.saga, r.state, r.step
from live l
join {schema}.run r on r.id = l.run_id
where r.service = %(service)s and (%(saga)s::text is null or r.saga = %(saga)s::text)
  and (r.state = 'running' and r.seq > 0 or r.state in ('rolling_back', 'parked'))
order by r.created_at, r.id
limit %(most)s

-- name: unsubscribe
delete from {schema}.subscription
where service = %(service)s and (%(saga)s::text is null or saga = %(saga)s::text)
  and (%(topic)s::text is null or topic = %(topic)s::text)
returning topic, saga

-- name: read_transaction
select pg_current_xact_id()::text

-- name: is_older_open
-- Whether somebody launches or takes in who does not see yet what that transaction has done: who was given a number
-- before, or is about to be given one and has looked already.
select pg_snapshot_xmin(pg_current_snapshot()) <= %(transaction)s::text::xid8 or exists (
    select from pg_catalog.pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
      and age(backend_xmin) >= age((%(transaction)s::text::xid8)::xid)
)

-- name: retire_waiting
-- Parents look at once. What waits in another home is asked of that: see retire_elsewhere.
with chosen as (
    select message_id, service, saga
    from {schema}.child
    where open and state = 'waiting' and home is null and service = %(service)s and (%(saga)s::text is null or saga = %(saga)s::text)
    order by message_id
    limit %(most)s
    for update skip locked
), retired as (
    update {schema}.child c
    set state = %(state)s::text, open = false, consumed = (%(state)s::text = 'skipped'), failure = %(failure)s::uuid,
        failed_at = case when %(state)s::text <> 'skipped' then clock_timestamp() end
    from chosen x
    where c.message_id = x.message_id and c.service = x.service and c.saga = x.saga
    returning c.run_id
), told as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select r.service, r.saga, r.version, r.id, clock_timestamp()
    from (select distinct run_id from retired) p
    join {schema}.run r on r.id = p.run_id
)
select count(*) from retired

-- name: retire_runs
-- One that has executed nothing ends as if it had never begun. What others have begun is not undone, and says so.
with live as (
    select run_id from {schema}.mailbox where service = %(service)s
    union
    select run_id from {schema}.child where open
    union
    select run_id from {schema}.lane_entry
    union
    select id from {schema}.run where service = %(service)s and reason is not null
), chosen as (
    select r.id, r.message_id, r.service, r.saga, r.failure, r.state = 'running' and r.seq = 0 as unstarted
    from live l
    join {schema}.run r on r.id = l.run_id
    where r.service = %(service)s and (%(saga)s::text is null or r.saga = %(saga)s::text)
      and r.state in ('running', 'rolling_back', 'parked')
      and (%(begun)s::bool or r.state = 'running' and r.seq = 0)
    order by r.id
    limit %(most)s
    for update of r skip locked
), ended as (
    update {schema}.run r
    set state = case when not c.unstarted then 'rollback_failed'
                     when %(state)s::text = 'skipped' then 'committed' else 'rolled_back' end,
        failure = case when c.unstarted then %(failure)s::uuid else coalesce(r.failure, %(begun_failure)s::uuid) end,
        obstacle = case when not c.unstarted then %(begun_failure)s::uuid end,
        reason = null, needs = null, not_before = null, failed_at = clock_timestamp(), ended_at = clock_timestamp(),
        interruptions = 0, unwanted = 0, interruption = null, taken_by = null
    from chosen c
    where r.id = c.id
), told as (
    update {schema}.child p
    set state = case when c.unstarted then %(state)s::text else 'rollback_failed' end, open = false,
        consumed = (c.unstarted and %(state)s::text = 'skipped'),
        failure = case when c.unstarted then %(failure)s::uuid else coalesce(c.failure, %(begun_failure)s::uuid) end,
        obstacle = case when not c.unstarted then %(begun_failure)s::uuid end,
        failed_at = clock_timestamp()
    from chosen c
    where p.message_id = c.message_id and p.service = c.service and p.saga = c.saga and p.open
    returning p.run_id
), reported as (
    update {schema}.foreign_child f
    set generation = f.generation + 1
    from chosen c
    where f.message_id = c.message_id and f.run_id = c.id
    returning f.message_id, f.run_id, f.service, f.saga, f.home, f.generation, c.unstarted
), sent as (
    insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers)
    select abs(hashtext(t.message_id::text) %% {shards}), gen_random_uuid(), p.reply_to, t.message_id::text,
           convert_to(json_build_object('version', 1, 'kind', 'news', 'from',
               -- use: sender
               , 'children', json_build_array(json_build_object(
                   'message', t.message_id, 'run', t.run_id, 'service', t.service, 'saga', t.saga,
                   'generation', t.generation, 'state', case
                       when not t.unstarted then 'rollback_failed'
                       when %(state)s::text = 'skipped' then 'committed'
                       else 'rolled_back'
                   end,
                   'failure', case when t.unstarted then %(said)s::json else %(begun_said)s::json end,
                   'obstacle', case when not t.unstarted then %(begun_said)s::json end)))::text, 'UTF8'),
           'application/json', json_build_object()
    from reported t
    join {schema}.peer p on p.id = t.home
    cross join {schema}.home h
), forgotten as (
    delete from {schema}.mailbox b using chosen c where b.run_id = c.id
), let_go as (
    delete from {schema}.lane_entry t using chosen c where t.run_id = c.id
), posted as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select r.service, r.saga, r.version, r.id, clock_timestamp()
    from (select distinct run_id from told) p
    join {schema}.run r on r.id = p.run_id
    where not exists (select from chosen c where c.id = r.id)
)
select count(*) filter (where unstarted), count(*) filter (where not unstarted) from chosen

-- name: retire_roots
-- Whoever waits for a root does not wait for who will never begin with it.
update {schema}.expected_root o
set services = k.services, sagas = k.sagas
from (
    select r.message_id, coalesce(array_agg(n.service) filter (where n.stays), array[]::text[]) as services,
           coalesce(array_agg(n.saga) filter (where n.stays), array[]::text[]) as sagas
    from {schema}.expected_root r
    cross join lateral (
        select e.service, e.saga,
               e.service <> %(service)s or e.saga <> coalesce(%(saga)s::text, e.saga) or exists (
                   select from {schema}.run x
                   where x.message_id = r.message_id and x.service = e.service and x.saga = e.saga
               ) as stays
        from unnest(r.services, r.sagas) as e (service, saga)
    ) n
    where %(service)s = any(r.services)
    group by r.message_id
    having not bool_and(n.stays)
) k
where o.message_id = k.message_id
