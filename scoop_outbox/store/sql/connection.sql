-- How connections behave on which no step runs, and so no statement of a user.

-- name: plan_once
-- What a statement of ours costs does not depend on its parameters, and to plan it takes longer than to execute it. A
-- plan is kept while tables grow, so it must not be one that reads all of a table that is still small.
select set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('jit', 'off', false),
       set_config('enable_seqscan', 'off', false)

-- name: search_indexes
-- For those that read queues in order. When statistics were gathered last, a queue was most likely empty, or nearly so:
-- then to read all of it and sort it looks as good as any plan, and it is carried out when there are a million rows.
select set_config('enable_bitmapscan', 'off', false),
       set_config('enable_sort', 'off', false)
