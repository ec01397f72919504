-- The engine ends its transactions itself, so that ending one and beginning the next is one round trip.

-- name: begin
begin isolation level read committed

-- name: commit
commit

-- name: commit_and_begin
commit and chain

-- name: rollback
rollback

-- name: savepoint
savepoint scoop_step

-- name: release_savepoint
-- Fails when the callback has ended the transaction behind the engine's back, and with it the run's lock.
release savepoint scoop_step

-- name: rollback_to_savepoint
rollback to savepoint scoop_step

-- name: without_waiting_for_disk
set local synchronous_commit = off

-- name: read_epoch
-- The clock in microseconds since 1970: on the caller's connection, too, whose settings may write a time in any form.
select (extract(epoch from clock_timestamp()) * 1000000)::bigint

-- name: read_clock
select clock_timestamp()
