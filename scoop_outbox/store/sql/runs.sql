-- Lists of runs, for operators. The step is the one that a run waits in, that is due, or that is to be undone next.

-- part: that_fit
-- But for their keys.
    where r.state = any(%(states)s::text[])
      and (%(service)s::text is null or r.service = %(service)s::text)
      and (%(saga)s::text is null or r.saga = %(saga)s::text)
      and (%(older)s::interval is null or r.created_at <= statement_timestamp() - %(older)s::interval)
      and (%(text)s::text is null
           or position(lower(%(text)s::text) in lower(r.reason)) > 0
           or coalesce(r.obstacle, r.failure) is not null and exists (
               select from {schema}.failure f
               where f.id in (r.obstacle, r.failure)
                 and position(lower(%(text)s::text) in lower(concat_ws(': ', f.type, f.message))) > 0
           ))

-- part: listed
select r.id, r.message_id, r.service, r.saga, r.state,
       case
           when r.undo_seq is not null then (
               select s.step from {schema}.step s
               where s.run_id = r.id and s.seq <= r.undo_seq and s.state = 'committed' and s.kind <> 'compensation'
               order by s.seq desc
               limit 1
           )
           when exists (select from {schema}.child c where c.run_id = r.id and c.open) then r.step
           else coalesce(r.next_step, r.step)
       end,
       m.key, r.reason, f.type, f.message, r.created_at, r.ended_at, statement_timestamp() - r.created_at,
       array(
           select distinct coalesce(p.name, c.home::text)
           from (select home from {schema}.child o where o.run_id = r.id and o.open limit 1000) c
           left join {schema}.peer p on p.id = c.home
           where c.home is not null
           order by 1
       )
from chosen c
join {schema}.run r on r.id = c.id
join {schema}.message m on m.id = r.message_id
left join {schema}.failure f on f.id = coalesce(r.obstacle, r.failure)
order by case when %(oldest)s::bool then r.created_at end, r.created_at desc, r.id desc

-- name: list_found_runs
-- What lives, and what is stuck, each if it is asked for: found without looking at what has ended.
with found as (
    (select run_id as id from {schema}.mailbox where %(live)s::bool)
    union
    (select run_id from {schema}.child where open and %(live)s::bool)
    union
    (select run_id from {schema}.lane_entry where %(live)s::bool)
    union
    (select id from {schema}.run where reason is not null and %(stuck)s::bool)
    union
    (select id from {schema}.run
     where obstacle is not null and %(stuck)s::bool and (not abandoned or %(abandoned)s::bool))
), chosen as (
    select r.id
    from found n
    join {schema}.run r on r.id = n.id
    -- use: that_fit
      and (cardinality(%(keys)s::text[]) = 0 or exists (
          select from {schema}.message m where m.id = r.message_id and m.key = any(%(keys)s::text[]) offset 0
      ))
    order by case when %(oldest)s::bool then r.created_at end, r.created_at desc, r.id desc
    limit %(most)s
)
-- use: listed

-- name: list_runs
-- All of them, ended ones too. There is no index by time, nor one by key: each run is looked at, and for a key each message.
with chosen as (
    select r.id
    from {schema}.run r
    -- use: that_fit
      and (cardinality(%(keys)s::text[]) = 0
           or r.message_id in (select id from {schema}.message where key = any(%(keys)s::text[])))
    order by case when %(oldest)s::bool then r.created_at end, r.created_at desc, r.id desc
    limit %(most)s
)
-- use: listed
