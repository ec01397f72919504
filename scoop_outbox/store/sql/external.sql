-- External participants: what somebody outside says about their work.

-- name: read_outside
-- At the claim of an external participant, behind the lock of its run.
select kind, failure, result::text, note, source
from {schema}.request
where target = %(run)s and kind in ('complete', 'fail')

-- name: read_external
-- Whose work an id and a name mean: runs, and those that are still to begin or never will. A run's id is made as intake makes
-- it. Of each: whether it has been completed, its state, whether it is an external participant, what was said before, and
-- whether it was asked to give up.
with expected as (
    select message_id, service, saga, state
    from {schema}.child
    where message_id = %(target)s and home is null and child_run is null
      and state in ('waiting', 'cancelled', 'rolled_back')
    union
    select o.message_id, e.service, e.saga, 'waiting'
    from {schema}.expected_root o
    cross join lateral unnest(o.services, o.sagas) as e (service, saga)
    where o.message_id = %(target)s and not exists (
        select from {schema}.run r where r.message_id = o.message_id and r.service = e.service
    )
), found as (
    select id, message_id, service, saga, state, seq from {schema}.run where id = %(target)s
    union all
    select id, message_id, service, saga, state, seq from {schema}.run where message_id = %(target)s
    union all
    select (left(message_id::text, 19) || '8' || left(
               md5(concat_ws(e'\n', message_id, length(service), service || saga)), 15))::uuid,
           message_id, service, saga, state, 0
    from expected
)
select f.id, f.seq > 0, f.state,
       f.service = %(declared)s::text is true or exists (
           select from {schema}.subscription s
           where s.service = f.service and s.saga in (f.saga, %(name)s) and s.external
       ),
       (select q.kind from {schema}.request q where q.target = f.id and q.kind in ('complete', 'fail')),
       exists (select from {schema}.request q where q.kind = 'cancel' and q.target in (f.id, f.message_id))
from found f
where (%(service)s::text is null or f.service = %(service)s::text) and (f.saga = %(name)s or exists (
    select from {schema}.renamed n where n.service = f.service and n.former = f.saga and n.saga = %(name)s
))

-- name: read_external_in_outbox
-- Likewise of a message that is still in the outbox, which has no index for it: asked when nobody else knows of it.
select f.id, false, 'waiting', f.external,
       (select q.kind from {schema}.request q where q.target = f.id and q.kind in ('complete', 'fail')),
       exists (select from {schema}.request q where q.kind = 'cancel' and q.target in (f.id, f.message_id))
from (
    select distinct o.message_id, s.service, s.external,
           (left(o.message_id::text, 19) || '8' || left(
               md5(concat_ws(e'\n', o.message_id, length(s.service), s.service || s.saga)), 15))::uuid as id
    from {schema}.outbox o
    join {schema}.subscription s on s.topic = o.topic or o.topic = any(s.names) or o.topic ~ s.pattern
    cross join {schema}.home h
    where o.message_id = %(target)s and s.saga = %(name)s
      and not exists (select from {schema}.peer p where p.reply_to = o.topic)
      and not exists (
          select from json_array_elements(o.expects::json) e
          where e ->> 0 = s.service and e ->> 1 = s.saga and (e ->> 2)::uuid <> h.id
      )
      and (%(service)s::text is null or s.service = %(service)s::text)
) f

-- name: is_external_elsewhere
-- Whether another home handles a message, or was to.
select exists (
    select from {schema}.child
    where message_id = %(target)s and home is not null and saga = %(name)s
      and (%(service)s::text is null or service = %(service)s::text)
)

-- name: lock_external
-- Behind this lock nobody decides that the run gives up: what is said now counts. Those who execute it look again soon.
select state from {schema}.run where id = %(run)s for no key update

-- name: say_outside
-- Once: what is said first counts.
insert into {schema}.request (target, kind, failure, result, source)
values (%(run)s, %(kind)s, %(failure)s, %(result)s::json, %(source)s)
on conflict do nothing
returning id

-- name: post_outside
insert into {schema}.mailbox (service, saga, version, run_id, due)
select service, saga, version, id, clock_timestamp() from {schema}.run where id = %(run)s and state = 'running'
returning run_id, service, saga, version, 0.0::float8

-- name: say_outside_joined
-- On a connection whose settings and driver are the user's: one document, as `launch` takes it.
with given as (
    select d
    from (select convert_from((select %(document)b::bytea), 'UTF8')::json) as l (d)
), recorded as (
    insert into {schema}.failure (id, causes, type, message, source, document)
    select f.id, f.causes::uuid[], f.type, f.message, f.source, f.document::json
    from given
    cross join lateral json_to_recordset(d -> 'failures')
         as f (id uuid, causes text, type text, message text, source text, document text)
), said as (
    insert into {schema}.request (target, kind, failure, result, source)
    select (d ->> 'run')::uuid, d ->> 'kind', (d ->> 'failure')::uuid, (d ->> 'result')::json, d ->> 'source'
    from given
    on conflict do nothing
    returning target
), posted as (
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select r.service, r.saga, r.version, r.id, clock_timestamp()
    from said
    join {schema}.run r on r.id = said.target
    where r.state = 'running'
)
select true from said
