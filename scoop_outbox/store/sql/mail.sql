-- Wake-ups: insert, read, delete. Live work only.
--
-- Mail is named by a list of ids in a select, so that the planner does not see how many there are: it takes a list that it
-- does not know to have ten elements, and a plan for the one at hand always looked better than the one it keeps. To make it
-- took longer than to execute it.

-- name: drop_mail
delete from {schema}.mailbox where id = any((select %(ids)s::bigint[])::bigint[])

-- name: drop_mail_if_waiting
-- Answers whether there is anything to wait for.
with waiting as (
    select exists (select from {schema}.child where run_id = %(run)s and open) as open
), dropped as (
    delete from {schema}.mailbox where id = any((select %(ids)s::bigint[])::bigint[]) and (select open from waiting)
)
select open from waiting

-- name: defer_mail
-- Behind everything that is due already.
update {schema}.mailbox set due = clock_timestamp() where id = any((select %(ids)s::bigint[])::bigint[])

-- name: post_timer
insert into {schema}.mailbox (service, saga, version, run_id, due)
values (%(service)s, %(saga)s, %(version)s, %(run)s, %(due)s)

-- name: address_mail
-- For a run that workers of another version execute than the mail says, so that they find it.
update {schema}.mailbox set version = %(version)s where id = any((select %(ids)s::bigint[])::bigint[]) and version <> %(version)s

-- name: read_due
-- Index reads in order of time, one for each saga: no lock, no write. The oldest mail of each saga comes first, then the
-- second oldest of each: a saga whose runs all wait for something must not keep the others from being executed, however
-- many they are. Runs are divided among the workers that know a saga by the last two bytes of their id; those that have
-- begun among the workers of their version. Mail of a version that only other workers have is theirs. What lies further
-- back than is looked is deleted mail that Postgres cannot clean up yet, or is found when everything is looked through.
-- The clock is the statement's, which an index can be searched with: what is due later is not looked through; the last
-- row, without a run, says when there is more.
(
    select m.run_id, s.saga, extract(epoch from statement_timestamp() - m.due)::float8,
           m.due <= %(suspect)s::timestamptz
    from unnest(%(sagas)s::text[], %(part)s::int[], %(parts)s::int[], %(own_part)s::int[], %(own_parts)s::int[])
         as s (saga, part, parts, own_part, own_parts)
    cross join lateral (
        select run_id, due, row_number() over (order by due) as rank
        from {schema}.mailbox
        where service = %(service)s and saga = s.saga and due <= statement_timestamp()
          and due > statement_timestamp() - %(back)s::interval and version <> all(%(others)s::text[])
          and (get_byte(uuid_send(run_id), 14) * 256 + get_byte(uuid_send(run_id), 15))
              %% case when version = '' then s.parts else s.own_parts end
              = case when version = '' then s.part else s.own_part end
        order by due
        limit %(most)s
    ) m
    order by m.rank, m.due
    limit %(most)s
)
union all
select null, null, extract(epoch from min(next.due) - clock_timestamp())::float8, false
from unnest(%(sagas)s::text[]) as s (saga)
cross join lateral (
    select due from {schema}.mailbox
    where service = %(service)s and saga = s.saga and due > statement_timestamp()
    order by due
    limit 1
) next

-- name: read_left_lying
-- What other workers of the service have not got round to, the newest first, with its age in seconds.
select m.run_id, s.saga, extract(epoch from statement_timestamp() - m.due)::float8, m.due <= %(suspect)s::timestamptz
from unnest(%(sagas)s::text[]) as s (saga)
cross join lateral (
    select run_id, due
    from {schema}.mailbox
    where service = %(service)s and saga = s.saga and due < statement_timestamp() - %(steal)s::interval
      and due > statement_timestamp() - %(back)s::interval and version <> all(%(others)s::text[])
    order by due desc
    limit %(most)s
) m
order by m.due desc
limit %(most)s

-- name: count_due
-- How much work lies waiting that can be done now, counted no further than it matters. What waits for others does not
-- count: to take in no more because of that could keep out what it waits for.
select count(*) from (
    select from {schema}.mailbox
    where service = %(service)s and saga = any(%(sagas)s::text[]) and due <= statement_timestamp()
    limit %(most)s
) due

-- name: mark_taken
-- Before runs are executed whose mail is older than this worker, or than the death of another one: if this process
-- dies of one of them, whoever comes next finds the mark, counts an interruption, and lets the run wait longer each
-- time. The mark of a worker that is alive says nothing. The others are the caller's to execute, those too that have
-- ended meanwhile: the mail is still to be dropped. A run whose lock somebody holds is being executed, and is left alone.
with asked as (
    select r.id, r.state in ('running', 'rolling_back') as lives,
           r.state in ('running', 'rolling_back') and coalesce(r.taken_by <> %(worker)s, false)
           and not exists (
               select from {schema}.worker w
               where w.id = r.taken_by and w.alive_until > clock_timestamp() and (
                   w.backend is null or exists (select from pg_catalog.pg_stat_activity a where a.pid = w.backend)
               )
           ) as died
    from {schema}.run r
    where r.id = any(%(runs)s::uuid[])
    order by r.id
    for update of r skip locked
), marked as (
    update {schema}.run r set taken_by = %(worker)s
    from asked a
    where r.id = a.id and a.lives and not a.died
)
select id, died from asked

-- name: note_interruptions
-- In a transaction of its own: what was to be executed has been undone. The mail is due later, the longer the more often
-- it has happened since the run last made progress, so that others come first; in the end the run is parked, but for
-- what it asked for itself. From 40 ms to 30 s, by two fifths each time: twenty of them take about a minute, as long as a
-- server takes to restart. A run that has killed a process is marked at once as taken by somebody who is not alive:
-- its mail is not old any more, and whoever executes it next may die of it, too. Answers what the log says of each run:
-- the step is the next one, or the one that is undone next.
with told as (
    select *
    from unnest(%(runs)s::uuid[], %(reasons)s::text[], %(parks)s::bool[], %(takers)s::uuid[], %(chances)s::float8[],
                %(timeouts)s::float8[])
         as t (id, reason, parks, taker, chance, timeout)
), held as (
    select r.id
    from {schema}.run r
    where r.id = any(%(runs)s::uuid[]) and r.state in ('running', 'rolling_back')
    order by r.id
    for update skip locked
), noted as (
    update {schema}.run r
    set interruptions = r.interruptions + 1, unwanted = r.unwanted + t.parks::int, interruption = t.reason,
        taken_by = t.taker,
        state = case when t.parks and r.unwanted + 1 >= %(most)s then 'parked' else r.state end,
        ended_at = case when t.parks and r.unwanted + 1 >= %(most)s then clock_timestamp() end,
        reason = case when t.parks and r.unwanted + 1 >= %(most)s
                      then 'interrupted ' || r.unwanted + 1 || ' times in a row without progress, the last time: '
                           || t.reason || '; mend the cause, then: scoop-outbox retry RUN'
                 end
    from held h
    join told t on t.id = h.id
    where r.id = h.id
    returning r.id, r.message_id, r.interruptions, r.unwanted, r.state, r.seq, r.next_step, r.undo_seq, t.chance,
              r.service, r.saga, r.version,
              least((r.deadlines -> 'happyPath' ->> 'deadline')::timestamptz,
                    (r.own_deadline ->> 'deadline')::timestamptz,
                    -- What its saga says is kept with it only since it has executed something.
                    r.created_at + t.timeout * interval '1 second') as deadline
), dropped as (
    -- What is due later stays: a deadline, by which it gives up.
    delete from {schema}.mailbox m
    using noted n
    where m.run_id = n.id and n.state = 'parked' and m.due <= clock_timestamp()
), timed as (
    -- What has come while it was executed was dropped unread: somebody may have cancelled it, or it is late by now.
    insert into {schema}.mailbox (service, saga, version, run_id, due)
    select n.service, n.saga, n.version, n.id, case when c.cancelled then clock_timestamp() else n.deadline end
    from noted n
    cross join lateral (
        select exists (
            select from {schema}.request q where q.kind = 'cancel' and q.target in (n.id, n.message_id)
        ) as cancelled
    ) c
    where n.state = 'parked' and n.undo_seq is null and (c.cancelled or n.deadline is not null)
), delayed as (
    update {schema}.mailbox m
    set due = greatest(m.due, clock_timestamp() + n.chance * least(0.04 * power(1.4, least(n.interruptions - 1, 30)), 30)
                              * interval '1 second')
    from noted n
    where m.run_id = n.id and n.state <> 'parked'
)
select n.id, case when n.state = 'parked' then n.unwanted else n.interruptions end, n.state, n.message_id, m.key, n.seq,
       case
           when n.undo_seq is null then n.next_step
           else (
               select s.step from {schema}.step s
               where s.run_id = n.id and s.seq <= n.undo_seq and s.state = 'committed' and s.kind <> 'compensation'
               order by s.seq desc
               limit 1
           )
       end
from noted n
join {schema}.message m on m.id = n.message_id
