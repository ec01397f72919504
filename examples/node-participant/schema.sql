-- What a home remembers. These tables stand beside those of the service, in one database: what a step writes, what it
-- launches, and how far its run has come, are committed together or not at all.

create table if not exists home (
    id text not null,
    name text not null,
    -- What this home has announced, and how often that has changed.
    revision integer not null default 0,
    subscriptions text not null default '[]'
) strict;

-- The other homes that have announced themselves, and what their sagas listen on.
create table if not exists peer (
    id text primary key,
    reply_to text not null,
    revision integer not null,
    subscriptions text not null
) strict;

-- A message that a saga of ours handles. An order may be here before its message: `cancelled` is a tombstone, for which
-- the message starts nothing, and `unknown` keeps the generation that this home has answered with.
create table if not exists run (
    id text primary key,
    message text not null,
    saga text not null,
    state text not null check (state in (
        'running', 'committed', 'rolling_back', 'rolled_back', 'rollback_failed', 'cancelled', 'unknown')),
    -- Steps that are done and not undone.
    position integer not null default 0,
    -- Whether there is something to do, as far as is known: a look at it does no harm.
    due integer not null default 0,
    -- Where the parent's home hears of it; null if nobody waits.
    reply_to text,
    -- Grows with all that is reported; and the last report.
    generation integer not null default 0,
    told text,
    -- What came with the message.
    envelope text,
    body blob,
    context text,
    -- What became of it.
    result text,
    failure text,
    obstacle text,
    rollback_by text
) strict;

create index if not exists run_due on run (due) where due = 1;

-- A message that a step has launched, and a saga that handles it, in whichever home.
create table if not exists child (
    run text primary key,
    message text not null,
    service text not null,
    saga text not null,
    reply_to text not null,
    parent text not null references run (id),
    -- The position that the parent's run had reached with the step that launched it.
    position integer not null,
    state text not null default 'waiting',
    generation integer not null default 0,
    -- The last order that was given.
    ordered text,
    result text,
    failure text,
    obstacle text
) strict;

create index if not exists child_parent on child (parent, position);

-- What is still to be published.
create table if not exists outbox (
    number integer primary key,
    topic text not null,
    key text,
    headers text not null,
    body blob not null,
    tries integer not null default 0
) strict;

-- What could not be taken in, and why.
create table if not exists dead_letter (
    number integer primary key,
    topic text not null,
    headers text not null,
    body blob not null,
    reason text not null
) strict;
