-- Stuck runs: what people do about them, and how the runs above go on. No lock is waited for.

-- part: to_be_undone
-- The execution of run `r` that is undone next.
select e.seq
from {schema}.step e
where e.run_id = r.id and e.seq <= coalesce(r.undo_from, r.undo_seq) and e.state = 'committed' and e.kind <> 'compensation'
  -- What the finaliser of a failed execution did stays.
  and not (e.kind = 'finaliser' and exists (
      select from {schema}.step b where b.run_id = e.run_id and b.seq = e.undoes and b.state = 'failed' offset 0
  ))
order by e.seq desc
limit 1

-- name: read_origins_below
-- The runs at which a rollback has failed, below a run that has stopped because of them, or that run itself.
with recursive stuck as (
    select r.id from {schema}.run r where r.id = %(run)s and r.state = 'rollback_failed' and not r.abandoned
    union
    select b.id
    from stuck s
    cross join lateral (
        select x.id
        from {schema}.run r
        join {schema}.child c on c.run_id = r.id
        join {schema}.run x on x.id = c.child_run and x.state = 'rollback_failed' and not x.abandoned
        where r.id = s.id and c.state = 'rollback_failed' and not c.consumed
          and (r.undo_from is not null or c.seq in (r.compensation_seq, r.handler_seq, r.finaliser_seq, (
              -- use: to_be_undone
          )))
    ) b
), below as (
    select s.id as above, c.child_run as id
    from stuck s
    join {schema}.child c on c.run_id = s.id and c.state = 'rollback_failed' and not c.consumed
)
select s.id
from stuck s
where not exists (select from below b join stuck x on x.id = b.id where b.above = s.id)

-- name: lock_stuck
select true from {schema}.run where id = %(run)s for update skip locked

-- name: read_stuck
-- Where the run stands, and whether people have asked for something already: of it, or of what is below it.
select r.state, r.abandoned, r.undo_seq is not null,
       exists (select from {schema}.request q where q.target = r.id and q.kind in ('retry', 'skip')),
       exists (select from {schema}.child c where c.run_id = r.id and c.open),
       r.body_seq, r.finaliser_seq, r.message_id, r.service, r.saga, r.lane, r.parent_home
from {schema}.run r
where r.id = %(run)s

-- name: read_why_stuck
select failure, obstacle from {schema}.run where id = %(run)s

-- name: lock_parent
-- A run that goes on again is waited for by its parent, which must not decide anything at that moment. Answers whether it
-- may: a parent that has handled what could not be undone does not wait.
select c.consumed or p.id is not null
from {schema}.run r
join {schema}.child c on c.message_id = r.message_id and c.service = r.service and c.saga = r.saga
left join lateral (
    select id from {schema}.run where id = c.run_id and not c.consumed for update skip locked
) p on true
where r.id = %(run)s

-- name: read_phase
-- The execution that is to be undone, and its children: whether some could not be, and whether some were not asked yet.
select s.seq, r.compensation_seq is not null, b.found is not null, u.found is not null
from {schema}.run r
cross join lateral (
    -- use: to_be_undone
) s
left join lateral (
    select true as found from {schema}.child c
    where c.run_id = r.id and c.seq = s.seq and c.state = 'rollback_failed' and not c.consumed
    limit 1
) b on true
left join lateral (
    select true as found from {schema}.child c where c.run_id = r.id and c.seq = s.seq and c.state = 'committed'
    limit 1
) u on true
where r.id = %(run)s

-- name: skip_finaliser
with skipped as (
    update {schema}.run set body_seq = null where id = %(run)s
)
update {schema}.child
set consumed = true
where run_id = %(run)s and seq = %(finaliser_seq)s and state in ('rolled_back', 'rollback_failed') and not consumed

-- name: reopen
-- What has failed begins again from its beginning, or what comes after it. Attempts are counted anew, and it may take
-- as long as any rollback of it may.
with again as (
    update {schema}.run
    set state = 'rolling_back', obstacle = null,
        -- One that was ended on its way forward has all of it to undo.
        undo_seq = coalesce(%(undo_seq)s::integer, undo_from, undo_seq, seq), undo_from = null, unresolved = null,
        giving_up = null, attempt = 0, handled = 0, not_before = null, compensation_seq = null, handler_seq = null,
        finaliser_seq = null, ended_at = null, reason = null, needs = null, interruptions = 0, unwanted = 0, interruption = null, taken_by = null, rollback_by = null
    where id = %(run)s and (state = 'rollback_failed' and not abandoned or state = 'parked' and undo_seq is not null)
    returning id, service, saga, version, message_id
), awaited as (
    update {schema}.child c
    set state = 'rolling_back', open = true,
        healing = exists (select from {schema}.run p where p.id = c.run_id and p.state = 'rollback_failed' offset 0)
    from again a
    where c.message_id = a.message_id and c.service = a.service and c.saga = a.saga
      and c.state = 'rollback_failed' and not c.consumed
), healed as (
    update {schema}.child c set healing = false from again a where c.run_id = a.id and c.healing
)
insert into {schema}.mailbox (service, saga, version, run_id, due)
select service, saga, version, id, clock_timestamp() from again
returning run_id, service, saga, version, 0.0::float8

-- name: replace_failure
-- What a run rolls back for, when that was that children could not be rolled back, and they have been.
update {schema}.run set failure = %(failure)s where id = %(run)s and state = 'rolling_back'

-- name: is_healed
-- Whether a run that has stopped because of children can go on: they have been rolled back since. `offset 0` keeps the
-- sub-selects whole, so that what is asked of children is asked of those of one execution.
with phase as (
    select r.id, case when r.undo_from is null
        then array[r.compensation_seq, r.handler_seq, r.finaliser_seq, (
            -- use: to_be_undone
        )]
        else array(select e.seq from {schema}.step e where e.run_id = r.id and e.state = 'committed')
    end as seqs
    from {schema}.run r
    where r.id = %(run)s and r.state = 'rollback_failed' and not r.abandoned
    offset 0
)
select not exists (select from {schema}.child where run_id = %(run)s and open) and exists (
    select from phase p
    cross join lateral (
        select h.run_id, h.seq from {schema}.child h
        where h.run_id = p.id and h.seq = any(p.seqs) and h.healing and h.state = 'rolled_back'
        offset 0
    ) h
    where not exists (
        select from {schema}.child c
        where c.run_id = h.run_id and c.seq = h.seq and c.state = 'rollback_failed' and not c.consumed
    )
)

-- name: abandon
-- Nothing more is done about the run. One that is parked ends; its parent is told by the statement that always does so.
-- A parent that has committed, of which a part was to be undone, counts it as undone: nothing keeps it from being so.
with gone as (
    update {schema}.run
    set abandoned = true, state = 'rollback_failed', failure = coalesce(failure, %(failure)s),
        obstacle = coalesce(obstacle, %(failure)s), reason = null, needs = null, not_before = null, giving_up = null,
        failed_at = case when state = 'parked' then clock_timestamp() else failed_at end,
        ended_at = case when state = 'parked' then clock_timestamp() else ended_at end, interruptions = 0, unwanted = 0,
        interruption = null, taken_by = null
    where id = %(run)s and state in ('rollback_failed', 'parked')
    returning id, message_id, failure
), forgotten as (
    delete from {schema}.mailbox b using gone g where b.run_id = g.id
), handled as (
    update {schema}.child c
    set consumed = true
    from gone g
    where c.message_id = g.message_id and c.child_run = g.id and c.state in ('rolling_back', 'rollback_failed')
      and exists (select from {schema}.run p where p.id = c.run_id and p.state = 'committed' offset 0)
)
select failure from gone

-- name: record_action
insert into {schema}.request (target, kind, note, source, seq)
values (%(run)s, %(kind)s, %(note)s, %(source)s, %(seq)s)
