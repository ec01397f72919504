-- Requests: what somebody asks of runs that go on. No row of `run` is locked for them.

-- name: is_asked_to_give_up
-- Whether somebody has cancelled a run, or its deadline is over.
select exists (select from {schema}.request where kind = 'cancel' and target = %(run)s::uuid)
       or coalesce(%(deadline)s::timestamptz <= clock_timestamp(), false)

-- name: read_giving_up
-- Which of some runs are to give up: somebody has cancelled them, or their deadline is over.
select u.run
from unnest(%(runs)s::uuid[], %(deadlines)s::text[]) as u (run, deadline)
where exists (select from {schema}.request where kind = 'cancel' and target = u.run)
   or u.deadline::timestamptz <= clock_timestamp()

-- name: read_target
-- The runs that an id means, by their own or by their message's: whether each can still give up, its state, whether
-- somebody has asked for its rollback, and whether its payload has been erased.
select r.id, r.state = 'running' or r.state = 'parked' and r.undo_seq is null, r.state,
       coalesce((select f.type = 'RollbackRequested' from {schema}.failure f where f.id = r.failure), false),
       r.erased
from (
    select id, state, undo_seq, failure, erased from {schema}.run where id = %(target)s
    union all
    select id, state, undo_seq, failure, erased from {schema}.run where message_id = %(target)s
) r

-- name: read_to_come
-- Whether somebody is known to handle a message who has not taken it in yet, and whether it is known here. Asked before
-- the runs are: of one that is taken in between the two, one or the other tells.
with known as (
    select exists (select from {schema}.message where id = %(target)s)
           or exists (select from {schema}.child where message_id = %(target)s) as taken
), expected as (
    select exists (
        select from {schema}.child
        where message_id = %(target)s and open and (state = 'waiting' or state = 'started' and home is not null)
    ) or exists (
        select from {schema}.expected_root o
        left join lateral unnest(o.services, o.sagas) as e (service, saga) on true
        where o.message_id = %(target)s and case
            when e.service is null then not (select taken from known)
            else not exists (
                select from {schema}.run x where x.message_id = o.message_id and x.service = e.service
            )
        end
    ) as come
)
select e.come, k.taken from known k, expected e

-- name: is_in_outbox
-- Looks through the outbox, which has no index for it: asked of messages that nobody else knows of.
-- What is being passed on to another home is handled there.
select exists (
    select from {schema}.outbox o
    where o.message_id = %(target)s and not exists (select from {schema}.peer p where p.reply_to = o.topic)
)

-- name: request_cancellation
-- The first reason counts.
insert into {schema}.request (target, kind, failure)
values (%(target)s, 'cancel', %(failure)s)
on conflict do nothing
returning id

-- name: deliver_cancellation
-- In a transaction after that of the request: a run of the message that begins between the two finds the request itself.
with asked as (
    select r.id, r.service, r.saga, r.version, q.failure
    from {schema}.request q
    cross join lateral (
        select id, service, saga, version, state, undo_seq from {schema}.run where id = q.target
        union all
        select id, service, saga, version, state, undo_seq from {schema}.run where message_id = q.target
    ) r
    where q.kind = 'cancel' and q.target = %(target)s
      and (r.state = 'running' or r.state = 'parked' and r.undo_seq is null)
), written as (
    insert into {schema}.request (target, kind, failure)
    select id, 'cancel', failure from asked
    order by id
    on conflict do nothing
)
insert into {schema}.mailbox (service, saga, version, run_id, due)
select service, saga, version, id, clock_timestamp() from asked
returning run_id, service, saga, version, 0.0::float8

-- name: read_in_the_way
-- What keeps the runs that an id means from being rolled back: runs that are active, at them, above them or below them,
-- and runs that could not be rolled back. Above is who waits, or has waited: a late run has nobody there. Below a run that
-- has ended, a child that is open is one that somebody else has asked to roll back.
with recursive asked as (
    select id, parent_run from {schema}.run where id = %(target)s
    union all
    select id, parent_run from {schema}.run where message_id = %(target)s
), above (id) as (
    (
        select parent_run from asked
        union
        select run_id from {schema}.child
        where message_id = %(target)s and (home is not null or open and state = 'waiting')
    )
    union
    select r.parent_run from above a join {schema}.run r on r.id = a.id
), below (id, looked_at) as (
    select id, true from asked
    union all
    select c.child_run, c.looked_at
    from below b
    cross join lateral (
        select child_run, open or state = 'rollback_failed' as looked_at
        from {schema}.child
        where run_id = b.id and child_run is not null
          and (open or state = 'committed' or state = 'rollback_failed' and not consumed)
        offset 0
    ) c
), found (id, is_above) as (
    select id, true from above where id is not null
    union all
    select id, false from below where looked_at
)
select *
from (
    select r.id, r.service, r.saga, r.state, f.is_above
    from found f
    join {schema}.run r on r.id = f.id
    where r.state in ('running', 'rolling_back', 'parked')
       or r.state = 'rollback_failed' and not f.is_above and not r.abandoned
    union all
    -- In other homes, as far as they have said.
    select coalesce(c.child_run, c.message_id), c.service, c.saga,
           case when not c.open or c.state = 'rolling_back' then c.state else 'running' end, false
    from (
        select c.*
        from below b
        cross join lateral (
            select child_run, message_id, service, saga, open, state, home, consumed
            from {schema}.child
            where run_id = b.id and home is not null
            offset 0
        ) c
        union all
        select child_run, message_id, service, saga, open, state, home, consumed
        from {schema}.child
        where message_id = %(target)s
    ) c
    where c.home is not null and (c.open or c.state = 'rollback_failed' and not c.consumed)
) a
order by state = 'rollback_failed'
limit %(most)s

-- name: read_elsewhere
-- How the sagas of other homes stand that handle a message.
select state from {schema}.child where message_id = %(target)s and home is not null

-- name: is_rollback_waiting
select exists (
    select from {schema}.request where kind = 'rollback' and outcome is null and target = %(target)s
)

-- name: hold_runs
-- The locks that it takes to roll runs back, without waiting for anybody; answers whether all were there to be had. A parent that
-- has ended cannot order its children to roll back as long as this one is held. Of one that is active, none is needed: see below.
with wanted as (
    select id, parent_run from {schema}.run where id = any(%(runs)s::uuid[])
), above as (
    select p.id
    from {schema}.run p
    where p.id in (
        select parent_run from wanted
        union all
        -- Of those who handle the message in other homes.
        select run_id from {schema}.child where message_id = %(target)s and home is not null
    ) and p.state not in ('running', 'rolling_back', 'parked')
), held_above as (
    select p.id from {schema}.run p where p.id in (select id from above) for share skip locked
), held as (
    select r.id from {schema}.run r where r.id in (select id from wanted) for update skip locked
)
select (select count(*) from above) = (select count(*) from held_above)
       and (select count(*) from wanted) = (select count(*) from held)

-- name: pause
-- Outside of any transaction: somebody holds a lock that most hold for a moment only.
select pg_sleep(%(seconds)s)

-- name: roll_back_runs
-- As the parent would order it, who has ended and does not hear of it: but its row of the child opens, so that a rollback of
-- its own waits for the child, and finds in the end that there is nothing left to order. Behind `hold_runs`.
with found as (
    select r.id, r.message_id
    from {schema}.run r
    where r.id = any(%(runs)s::uuid[]) and r.state = 'committed' and not r.erased and not exists (
        select from {schema}.run p
        where p.id = r.parent_run and p.state in ('running', 'rolling_back', 'parked')
        offset 0
    )
    order by r.id
    for update of r
), opened as (
    update {schema}.child c
    set state = 'rolling_back', open = true
    from found f
    where c.message_id = f.message_id and c.child_run = f.id and c.state = 'committed'
), told as (
    update {schema}.run r
    set state = 'rolling_back', failure = %(failure)s, undo_seq = r.seq, attempt = 0, handled = 0,
        failed_at = clock_timestamp(), ended_at = null
    from found f
    where r.id = f.id
    returning r.id, r.service, r.saga, r.version
), posted as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select service, saga, version, id, clock_timestamp() from told
)
select id, service, saga, version, 0.0::float8 from told

-- name: store_rollback
-- It waits until it is closed; then it stays, to be looked up. Once for each target, but no index says so: whoever asks would
-- wait for a transaction of a user's that has asked the same, and a second one is closed with the first.
insert into {schema}.request (target, kind, failure)
select %(target)s::uuid, 'rollback', %(failure)s::uuid
where not exists (
    select from {schema}.request where kind = 'rollback' and outcome is null and target = %(target)s::uuid
)
returning id

-- name: store_rollback_joined
-- On a connection whose settings and driver are the user's: one document, as `launch` takes it.
with given as (
    select d
    from (select convert_from((select %(document)b::bytea), 'UTF8')::json) as l (d)
), recorded as (
    insert into {schema}.failure (id, causes, type, message, source, document)
    select (d ->> 'failure')::uuid, array[]::uuid[], d ->> 'type', d ->> 'message', d ->> 'source',
           (d ->> 'document')::json
    from given
)
insert into {schema}.request (target, kind, failure)
select (d ->> 'target')::uuid, 'rollback', (d ->> 'failure')::uuid
from given
where not exists (
    select from {schema}.request
    where kind = 'rollback' and outcome is null and target = (select (d ->> 'target')::uuid from given)
)
returning true

-- name: close_rollback
update {schema}.request
set outcome = %(outcome)s
where kind = 'rollback' and outcome is null and target = %(target)s

-- name: read_waiting_rollbacks
-- Those whose own runs have all ended, by target, but for those that are left alone for now. Whether others are active is for
-- whoever looks at each. `offset 0`: request by request, and not by reading all runs.
select q.target, q.failure
from {schema}.request q
where q.kind = 'rollback' and q.outcome is null and q.target > %(after)s
  and q.target <> all((select %(resting)s::uuid[])::uuid[])
  and not exists (
      select from {schema}.run r
      where r.id = q.target and r.state in ('running', 'rolling_back', 'parked')
      offset 0
  )
  and not exists (
      select from {schema}.run r
      where r.message_id = q.target and r.state in ('running', 'rolling_back', 'parked')
      offset 0
  )
order by q.target
limit %(most)s
