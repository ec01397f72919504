-- The home: which one a connection leads to.

-- name: read_home
select id from {schema}.home

-- name: find_home
-- Asked on a connection of a user's, which may lead to a database without any table of ours.
select current_database()::text, exists (
    select from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = %(schema)s::text and c.relname = 'home'
)

-- name: read_revision
select version_num from {schema}.alembic_version
