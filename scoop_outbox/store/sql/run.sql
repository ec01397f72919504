-- Claiming a run, and writing what became of it. Everything here happens under the run's row lock.

-- name: claim_run
-- The locking select itself re-reads a row that changed since the statement's snapshot; a sub-select or a join
-- around it would return the old one, and steps would run twice. Mail may be as old as the snapshot: news and mail
-- come in one commit, and what is read of children is read by a later statement.
select r.id, r.message_id, r.service, r.saga, r.lineage, r.parent_run, r.state, r.step, r.next_step, r.seq,
       r.instance, r.iteration, r.attempt, r.handled, r.not_before, r.undo_seq, r.compensation_seq, r.handler_seq,
       r.context::text, r.inherited::text, r.failure, r.obstacle, r.result::text, r.launched_at, r.reason, r.lane,
       r.version, r.interruptions > 0 or r.taken_by is not null, r.giving_up, r.deadlines::text,
       r.own_deadline::text, r.rollback_by, r.body_seq, r.finaliser_seq, r.undo_from,
       r.unresolved, r.created_at, r.parent_home,
       clock_timestamp(), array(select b.id from {schema}.mailbox b where b.run_id = r.id),
       (select q.failure from {schema}.request q where q.kind = 'cancel' and q.target in (r.id, r.message_id)
        order by q.id limit 1),
       m.id, m.topic, m.key, m.body, m.content_type, m.headers, m.created_at
from {schema}.run r
join {schema}.message m on m.id = r.message_id
where r.id = %(run)s
for update of r skip locked

-- name: claim_again
-- By the worker that has just committed this very state: nobody has touched the run in between if it answers. Not even
-- its name: who ends a run under another one tells a parent that waits for this one.
select clock_timestamp(), exists (select from {schema}.request where kind = 'cancel' and target = %(run)s)
from {schema}.run
where id = %(run)s and seq = %(seq)s and state = %(state)s and saga = %(saga)s
for update skip locked

-- name: read_children
-- One row at least. While a child is open nothing else matters, and nothing else is read: `offset 0` keeps the
-- sub-select whole, so that the answer is asked for once and not for each child.
select o.open, c.message_id, c.saga, c.state, c.ordinal, c.result::text, c.failure, c.obstacle, c.failed_at, c.delivered,
       case when o.open then (
           select min(d.deadline) from {schema}.child d
           where d.run_id = %(run)s and d.state = 'waiting' and d.deadline is not null
       ) end
from (select exists (select from {schema}.child where run_id = %(run)s and open) as open) o
left join lateral (
    select *
    from {schema}.child
    where not o.open
      and run_id = %(run)s
      and seq = (select instance from {schema}.run where id = %(run)s)
      and (state <> 'committed' and not consumed or result is not null)
    offset 0
) c on true
order by c.ordinal

-- name: read_children_without_results
-- As `read_children` tells them, for whoever explains a run and may not see what its children have said.
select o.open, c.message_id, c.saga, c.state, c.ordinal, null, c.failure, c.obstacle, c.failed_at, c.delivered,
       case when o.open then (
           select min(d.deadline) from {schema}.child d
           where d.run_id = %(run)s and d.state = 'waiting' and d.deadline is not null
       ) end
from (select exists (select from {schema}.child where run_id = %(run)s and open) as open) o
left join lateral (
    select message_id, saga, state, ordinal, failure, obstacle, failed_at, delivered
    from {schema}.child
    where not o.open
      and run_id = %(run)s
      and seq = (select instance from {schema}.run where id = %(run)s)
      and state <> 'committed' and not consumed
    offset 0
) c on true
order by c.ordinal

-- name: read_untold
-- Whether a run that gives up has open children that do not know, and whether one of them lives in another home.
select exists (
    select from {schema}.child where run_id = %(run)s and open and state in ('waiting', 'started')
), exists (
    select from {schema}.child where run_id = %(run)s and open and home is not null
)

-- name: read_first_failure
-- The child of an instance that failed first, as `read_children` tells it.
select true, c.message_id, c.saga, c.state, c.ordinal, null, c.failure, c.obstacle, c.failed_at, c.delivered, null
from {schema}.child c
where c.run_id = %(run)s and c.seq = %(seq)s and c.state in ('rolled_back', 'rollback_failed') and not c.consumed
order by c.failed_at, c.ordinal
limit 1

-- name: read_instance
-- What is to be undone next, with a row for each failed child that stands in the way. Without `offset 0`, whoever plans this
-- while hardly any child is committed has all of them read, each time.
with instance as (
    select s.run_id, s.seq, s.step, s.kind, s.iteration, r.compensation_seq, r.handler_seq
    from {schema}.run r
    join {schema}.step s on s.run_id = r.id and s.seq <= r.undo_seq
    where r.id = %(run)s and s.state = 'committed' and s.kind <> 'compensation'
      -- What the finaliser of a failed execution did stays.
      and not (s.kind = 'finaliser' and exists (
          select from {schema}.step b where b.run_id = s.run_id and b.seq = s.undoes and b.state = 'failed' offset 0
      ))
    order by s.seq desc
    limit 1
)
select i.seq, i.step, i.kind, i.iteration,
       exists (select from {schema}.child c where c.run_id = i.run_id and c.seq = i.seq and c.state = 'committed' offset 0),
       exists (
           select from {schema}.child c
           where c.run_id = i.run_id and c.seq = i.seq and c.state = 'committed' and c.home is not null
           offset 0
       ),
       (select h.failure from {schema}.step h where h.run_id = i.run_id and h.seq = i.handler_seq),
       f.seq, f.message_id, f.saga, f.state, f.ordinal, null, f.failure, f.obstacle, f.failed_at, f.delivered
from instance i
left join lateral (
    select c.seq, c.message_id, c.saga, c.state, c.ordinal, c.failure, c.obstacle, c.failed_at, c.delivered
    from {schema}.child c
    where c.run_id = i.run_id and c.seq = i.seq and c.state = 'rollback_failed' and not c.consumed
    union all
    select c.seq, c.message_id, c.saga, c.state, c.ordinal, c.failure, c.obstacle, c.failed_at, c.delivered
    from {schema}.child c
    where c.run_id = i.run_id and c.seq in (i.compensation_seq, i.handler_seq)
      and c.state in ('rolled_back', 'rollback_failed')
) f on true
order by f.failed_at, f.ordinal

-- name: read_body
-- The execution whose finaliser is to be called, with a row for each failed child of the call: one at least.
select s.seq, s.step, s.iteration,
       f.seq, f.message_id, f.saga, f.state, f.ordinal, null, f.failure, f.obstacle, f.failed_at, f.delivered
from {schema}.step s
left join lateral (
    select c.seq, c.message_id, c.saga, c.state, c.ordinal, c.failure, c.obstacle, c.failed_at, c.delivered
    from {schema}.child c
    where c.run_id = s.run_id and c.seq = %(finaliser_seq)s and c.state in ('rolled_back', 'rollback_failed')
      and not c.consumed
) f on true
where s.run_id = %(run)s and s.seq = %(body_seq)s
order by f.failed_at, f.ordinal

-- part: unless_it_gives_up
-- What the callback of a run that has been asked to give up has done is not committed, unless it is shielded: then the
-- statement fails, and with it the transaction. So it is with what has come too late. No other statement could keep the
-- commit behind it in the same round trip from taking place.
and not ((select %(yields)s::bool) and coalesce((
    select ('asked to give up by request ' || q.id)::bool
    from {schema}.request q
    where q.kind = 'cancel' and q.target = %(run)s
    union all
    select ('later than ' || d.deadline)::bool
    from (select %(deadline)s::timestamptz as deadline) d
    where d.deadline <= clock_timestamp()
    limit 1
), false))

-- name: advance_run
-- What most transactions of the engine consist of: a step has been executed, and the run goes on or has finished.
-- Both end at the time of the statement: its parts are executed in no particular order.
with recorded as (
    insert into {schema}.step (run_id, seq, step, kind, iteration, attempt, state, started_at, ended_at, worker)
    values (%(run)s, %(seq)s, %(step)s, 'step', %(iteration)s, %(attempt)s, 'committed', %(started_at)s,
            statement_timestamp(), %(worker)s)
)
update {schema}.run
set state = %(state)s, step = %(step)s, next_step = %(next_step)s, seq = %(seq)s, instance = %(seq)s,
    iteration = %(iteration)s, attempt = 0, handled = 0, not_before = null, context = %(context)s,
    result = %(result)s, ended_at = case when %(ended)s then statement_timestamp() end,
    version = %(version)s, interruptions = 0, unwanted = 0, interruption = null,
    taken_by = null, own_deadline = %(own_deadline)s::json, body_seq = %(body_seq)s
where id = %(run)s
-- use: unless_it_gives_up

-- name: record_step
insert into {schema}.step
    (run_id, seq, step, kind, iteration, attempt, state, failure, undoes, started_at, ended_at, worker)
values
    (%(run)s, %(seq)s, %(step)s, %(kind)s, %(iteration)s, %(attempt)s, %(state)s, %(failure)s, %(undoes)s,
     %(started_at)s, clock_timestamp(), %(worker)s)

-- name: mark_undone
update {schema}.step set state = 'compensated' where run_id = %(run)s and seq = %(seq)s and state = 'committed'

-- name: record_failures
-- Each once and without its causes, which are referred to. Type, message and source are as people and queries read them.
insert into {schema}.failure (id, causes, type, message, source, document)
select id, causes::uuid[], type, message, source, document::json
from unnest(%(ids)s::uuid[], %(causes)s::text[], %(types)s::text[], %(messages)s::text[], %(sources)s::text[],
            %(documents)s::text[])
     as f (id, causes, type, message, source, document)

-- name: read_failures
-- Failures and what lies below them, each once, level by level; so many of them, and so many bytes of documents.
with recursive reached as (
    select f.id, f.causes from {schema}.failure f where f.id = any(%(failures)s::uuid[])
    union
    select f.id, f.causes from reached r join {schema}.failure f on f.id = any(r.causes)
), counted as (
    select *, row_number() over () as place from (select * from reached limit %(most)s) r
)
select f.id, f.causes, f.type, f.message, f.source,
       case when sum(octet_length(f.document::text)) over (order by c.place) <= %(bytes)s then f.document::text end
from counted c
join {schema}.failure f on f.id = c.id
order by c.place

-- name: update_run
-- A context or result that is as it was is not written again: it may be large.
update {schema}.run
set state = %(state)s, step = %(step)s, next_step = %(next_step)s, seq = %(seq)s, instance = %(instance)s,
    iteration = %(iteration)s, attempt = %(attempt)s, handled = %(handled)s, not_before = %(not_before)s,
    undo_seq = %(undo_seq)s, compensation_seq = %(compensation_seq)s, handler_seq = %(handler_seq)s,
    context = case when %(context_changed)s then %(context)s::json else context end, inherited = null,
    failure = %(failure)s, obstacle = %(obstacle)s,
    result = case when %(result_changed)s then %(result)s::json else result end, reason = %(reason)s,
    needs = %(needs)s, version = %(version)s, interruptions = 0, unwanted = 0, interruption = null,
    taken_by = null,
    failed_at = case when %(failed)s then clock_timestamp() else failed_at end,
    ended_at = case when %(ended)s then clock_timestamp() end, giving_up = %(giving_up)s,
    own_deadline = %(own_deadline)s::json, rollback_by = %(rollback_by)s, body_seq = %(body_seq)s,
    finaliser_seq = %(finaliser_seq)s, undo_from = %(undo_from)s, unresolved = %(unresolved)s
where id = %(run)s
-- use: unless_it_gives_up

-- name: consume_failures
update {schema}.child
set consumed = true
where run_id = %(run)s and seq = %(seq)s and state in ('rolled_back', 'rollback_failed') and not consumed

-- name: deliver_failures
-- The run was told of these on its way forward: its rollback is not told again.
update {schema}.child
set delivered = true
where run_id = %(run)s and seq = %(seq)s and state = 'rollback_failed' and not consumed

-- part: order_elsewhere
-- What is asked of children in other homes, one message for each of these homes.
insert into {schema}.outbox (shard, message_id, topic, key, body, content_type, headers)
select abs(hashtext(%(run)s::uuid::text) %% {shards}), gen_random_uuid(), p.reply_to, %(run)s::uuid::text,
       convert_to(json_build_object(
           'version', 1, 'kind', 'orders',
           'from',
           -- use: sender
           , 'order', %(order)s::text, 'children', o.children, 'reason', %(reason)s::json,
           'context', %(context)s::json, 'rollbackBy', %(rollback_by)s::timestamptz
       )::text, 'UTF8'), 'application/json', json_build_object()
from (
    select e.home, json_agg(json_build_object(
        'message', e.message_id, 'service', e.service, 'saga', e.saga, 'generation', e.generation,
        'run', (left(e.message_id::text, 19) || '8' || left(
                   md5(concat_ws(e'\n', e.message_id, length(e.service), e.service || e.saga)), 15))::uuid
    ) order by e.message_id) as children
    -- In portions that a broker takes.
    from (select *, row_number() over (partition by home order by message_id) / 1000 as portion from elsewhere) e
    group by e.home, e.portion
) o
join {schema}.peer p on p.id = o.home
cross join {schema}.home h

-- name: ask_children
-- Only children that committed are asked: one that failed has rolled itself back, one that never started has
-- nothing to undo. In reverse, those of one message at a time.
with asked as (
    -- Of a home that was forgotten nobody is left who could roll it back.
    update {schema}.child c
    set state = case when h.known then 'rolling_back' else 'rollback_failed' end, open = h.known,
        failure = case when h.known then c.failure else %(failure)s end,
        obstacle = case when h.known then c.obstacle else %(failure)s end,
        failed_at = case when h.known then c.failed_at else clock_timestamp() end
    from (
        select k.message_id, k.service, k.saga,
               k.home is null or exists (select from {schema}.peer p where p.id = k.home) as known
        from {schema}.child k
        where k.run_id = %(run)s and k.seq = %(seq)s and k.state = 'committed'
    ) h
    where c.message_id = h.message_id and c.service = h.service and c.saga = h.saga
      and c.run_id = %(run)s and c.seq = %(seq)s and c.state = 'committed'
      and (not (select %(reverse)s::bool) or c.ordinal = (
          select max(l.ordinal) from {schema}.child l
          where l.run_id = %(run)s and l.seq = %(seq)s and l.state = 'committed'
      ))
    returning c.child_run, c.message_id, c.service, c.saga, c.home, c.generation, c.open
), elsewhere as (
    select * from asked where home is not null and open
), ordered as (
    -- use: order_elsewhere
), told as (
    update {schema}.run r
    set state = 'rolling_back', failure = %(failure)s, inherited = %(context)s, undo_seq = r.seq, attempt = 0,
        rollback_by = %(rollback_by)s, handled = 0, failed_at = clock_timestamp(), ended_at = null
    from asked a
    where r.id = a.child_run and r.state = 'committed' and a.home is null
    returning r.id, r.service, r.saga, r.version
), posted as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select service, saga, version, id, clock_timestamp() from told
)
select id, service, saga, version, 0.0::float8 from told

-- name: cancel_children
-- A child that has not started becomes a tombstone: its message starts nothing. One that has is asked to give up, by a
-- request and mail; it may hold the lock of its own row. Children whose rows somebody else holds, who takes them in or
-- ends them at this moment, are not waited for (they may be many, locked in any order): the parent looks again soon. In
-- another home nobody here knows whether it has started: it is open until that home has answered.
with found as (
    select message_id, service, saga, state,
           case when home is null then state = 'waiting'
                else not exists (select from {schema}.peer p where p.id = home) end as buried
    from {schema}.child
    where run_id = %(run)s and open and state in ('waiting', 'started')
    for update skip locked
), told as (
    update {schema}.child c
    set state = case when f.buried then 'cancelled' else 'cancelling' end, open = not f.buried,
        failure = case when f.buried then %(failure)s::uuid end,
        failed_at = case when f.buried then clock_timestamp() end
    from found f
    where c.message_id = f.message_id and c.service = f.service and c.saga = f.saga
    returning c.child_run, c.message_id, c.service, c.saga, c.open, c.home, c.generation
), elsewhere as (
    select * from told where home is not null and open
), ordered as (
    -- use: order_elsewhere
), asked as (
    insert into {schema}.request (target, kind, failure)
    select child_run, 'cancel', %(failure)s from told where open and home is null
    -- As everywhere: somebody else may ask the same runs at the same time.
    order by child_run
    on conflict do nothing
), posted as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select coalesce(r.service, t.service), coalesce(r.saga, t.saga), coalesce(r.version, ''), t.child_run,
           clock_timestamp()
    from told t
    left join {schema}.run r on r.id = t.child_run
    where t.open and t.home is null
    returning run_id, service, saga, version, 0.0::float8 as delay
), again as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select r.service, r.saga, r.version, r.id, clock_timestamp() + interval '20 milliseconds'
    from {schema}.run r
    where r.id = %(run)s and (select count(*) from told) < (
        select count(*) from {schema}.child where run_id = %(run)s and open and state in ('waiting', 'started')
    )
    returning run_id, service, saga, version, 0.02::float8 as delay
)
select * from posted union all select * from again

-- name: cancel_elsewhere
-- The sagas of other homes that handle a message, if somebody cancels that: they have failed with this if they have not
-- started.
with elsewhere as (
    update {schema}.child
    set state = 'cancelling', failure = %(failure)s
    where message_id = %(run)s and open and home is not null and state in ('waiting', 'started')
    returning message_id, service, saga, home, generation
)
-- use: order_elsewhere
returning true

-- name: retire_elsewhere
-- Likewise what waits for a handler that is forgotten.
with chosen as (
    select message_id, service, saga
    from {schema}.child
    where open and state = 'waiting' and home is not null and service = %(service)s
      and (%(saga)s::text is null or saga = %(saga)s::text)
    order by message_id
    limit %(most)s
    for update skip locked
), elsewhere as (
    update {schema}.child c
    set state = 'cancelling', failure = %(failure)s
    from chosen x
    where c.message_id = x.message_id and c.service = x.service and c.saga = x.saga
    returning c.message_id, c.service, c.saga, c.home, c.generation
), sent as (
    -- use: order_elsewhere
)
select count(*) from elsewhere

-- name: roll_back_elsewhere
-- Likewise those that have committed, if somebody asks for the rollback of the message.
with elsewhere as (
    update {schema}.child
    set state = 'rolling_back', open = true
    where message_id = %(run)s and home is not null and state = 'committed' and not exists (
        select from {schema}.run p
        where p.id = run_id and p.state in ('running', 'rolling_back', 'parked')
        offset 0
    )
    returning message_id, service, saga, home, generation
)
-- use: order_elsewhere
returning true

-- name: expire_children
-- Children that have not started by a deadline of their own have failed: their message, when it comes, starts nothing.
-- One that is taken in at this moment may have started: the parent looks again soon, and when the next one is late. One in
-- another home may have started, too: it has failed with this when that home says that it had not.
with now as materialized (
    select clock_timestamp() as at
), late as (
    select message_id, service, saga
    from {schema}.child
    where run_id = %(run)s and state = 'waiting' and deadline <= (select at from now)
    for update skip locked
), ended as (
    update {schema}.child c
    set state = case when c.home is null then 'rolled_back' else 'cancelling' end, open = c.home is not null,
        failure = %(failure)s, failed_at = (select at from now)
    from late l
    where c.message_id = l.message_id and c.service = l.service and c.saga = l.saga
    returning c.message_id, c.service, c.saga, c.home, c.generation
), elsewhere as (
    select * from ended where home is not null
), ordered as (
    -- use: order_elsewhere
), next as (
    -- Whoever fails has others to tell: the parent looks at once.
    select n.at as due, n.at from now n where exists (select from late)
    union all
    select greatest(min(c.deadline), n.at + interval '20 milliseconds'), n.at
    from now n
    cross join {schema}.child c
    where c.run_id = %(run)s and c.state = 'waiting' and c.deadline is not null and not exists (select from late)
    group by n.at
), posted as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select r.service, r.saga, r.version, r.id, n.due
    from next n
    join {schema}.run r on r.id = %(run)s
)
select r.id, r.service, r.saga, r.version, extract(epoch from n.due - n.at)::float8
from next n
join {schema}.run r on r.id = %(run)s

-- name: tell_parent
-- Insert only: children that end at the same moment never wait for each other. One that sees open siblings posts
-- its mail a little in the future, the more of them the later, so that a fan-out of thousands does not wake its
-- parent thousands of times; the last one posts it for now. Failures are told in the order in which they happened; of a
-- run that is stuck, that it is: if it is healed, its failure is told in its own place.
with ended as (
    update {schema}.child
    set state = %(state)s, open = false, result = %(result)s, failure = %(failure)s, obstacle = %(obstacle)s,
        failed_at = case
            when (select %(state)s::text) = 'rollback_failed' then clock_timestamp()
            else (select failed_at from {schema}.run where id = %(run)s)
        end
    where message_id = %(message)s and service = %(service)s and saga = %(saga)s and open
    returning run_id
), siblings as (
    select count(*) as others
    from ended e
    cross join lateral (
        select from {schema}.child c
        where c.run_id = e.run_id and c.open
          and (c.message_id, c.service, c.saga) <> (%(message)s, %(service)s, %(saga)s)
        limit 100
    ) o
), posted as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select r.service, r.saga, r.version, r.id, clock_timestamp() + s.others * interval '2 milliseconds'
    from ended e
    join {schema}.run r on r.id = e.run_id
    cross join siblings s
    returning service, saga, version, run_id
)
select p.run_id, p.service, p.saga, p.version, (s.others * 0.002)::float8 from posted p cross join siblings s
