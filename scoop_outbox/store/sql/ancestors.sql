-- Ancestors in other homes: whether all runs above a part of a hierarchy have ended, which its homes know together.

-- name: read_top_elsewhere
-- The run at or above a target whose parent lives in another home, and that home; unless it has said that all above it have
-- ended, which stays so. A home that was forgotten is not asked. Last, whether the target is a message that was launched there.
with recursive reached (id) as (
    (
        select id from {schema}.run where id = %(target)s
        union
        select id from {schema}.run where message_id = %(target)s
        union
        select run_id from {schema}.child where message_id = %(target)s and home is not null
    )
    union
    select r.parent_run from reached a join {schema}.run r on r.id = a.id
)
select f.message_id, f.run_id, f.service, f.saga, f.generation, p.reply_to, p.name,
       f.message_id = %(target)s and f.run_id <> %(target)s
from reached a
join {schema}.run r on r.id = a.id and r.parent_home is not null
join {schema}.foreign_child f on f.message_id = r.message_id and f.run_id = r.id
join {schema}.peer p on p.id = r.parent_home
where not exists (
    select from {schema}.request
    where kind = 'rollback' and outcome is not null and outcome = 'ended above' and target = %(target)s
)
order by 8 desc
limit 1

-- name: ask_above
-- A question, which stays as a request that has been answered so: the same one when the same is asked again.
with found as (
    select id from {schema}.request
    where kind = 'rollback' and outcome is not null and outcome in ('asked above', 'refused above')
      and target = %(target)s::uuid
    order by id desc
    limit 1
), again as (
    update {schema}.request q set outcome = 'asked above', note = null from found f where q.id = f.id returning q.id
), new as (
    insert into {schema}.request (target, kind, outcome)
    select %(target)s::uuid, 'rollback', 'asked above' where not exists (select from found)
    returning id
)
select id from again union all select id from new

-- name: read_answer_from_above
select outcome, note from {schema}.request where id = %(question)s

-- name: store_answer_from_above
-- That all have ended stays true, whenever it was asked.
update {schema}.request
set outcome = %(outcome)s, note = %(note)s
where id = %(question)s and kind = 'rollback'
  and (outcome = 'asked above' or outcome = 'refused above' and %(outcome)s = 'ended above')

-- name: read_above_child
-- What is above a child in another home, as far as it is here: runs that have not ended, and the one whose parent lives in
-- another home again, with that home.
with recursive above (id) as (
    select run_id from {schema}.child where message_id = %(message)s and service = %(service)s and saga = %(saga)s
    union
    select r.parent_run from above a join {schema}.run r on r.id = a.id
)
select r.id, r.service, r.saga, r.state, r.state in ('running', 'rolling_back', 'parked'),
       f.message_id, f.service, f.saga, f.generation, p.reply_to
from above a
join {schema}.run r on r.id = a.id
left join {schema}.foreign_child f on f.message_id = r.message_id and f.run_id = r.id and r.parent_home is not null
left join {schema}.peer p on p.id = r.parent_home
where r.state in ('running', 'rolling_back', 'parked') or p.id is not null and f.run_id is not null
limit %(most)s
