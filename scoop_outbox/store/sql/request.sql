-- Requests: what somebody asks of runs that go on. No row of `run` is locked for them.

-- name: read_target
-- The runs that an id means, by their own or by their message's: whether each can still give up, and its state.
select r.id, r.state = 'running' or r.state = 'parked' and r.undo_seq is null, r.state
from (
    select * from {schema}.run where id = %(target)s
    union all
    select * from {schema}.run where message_id = %(target)s
) r

-- name: read_to_come
-- Whether somebody is known to handle a message who has not taken it in yet, and whether anybody has.
with known as (
    select exists (select from {schema}.message where id = %(target)s) as taken
), expected as (
    select exists (
        select from {schema}.child where message_id = %(target)s and open and state = 'waiting'
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
select exists (select from {schema}.outbox where message_id = %(target)s)

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
        select * from {schema}.run where id = q.target
        union all
        select * from {schema}.run where message_id = q.target
    ) r
    where q.kind = 'cancel' and q.target = %(target)s
      and (r.state = 'running' or r.state = 'parked' and r.undo_seq is null)
), written as (
    insert into {schema}.request (target, kind, failure)
    select id, 'cancel', failure from asked
    on conflict do nothing
)
insert into {schema}.mailbox (service, saga, version, run_id, due)
select service, saga, version, id, clock_timestamp() from asked
returning run_id, service, saga, version, 0.0::float8
