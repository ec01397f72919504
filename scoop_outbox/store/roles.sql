-- Who may do what with the tables of scoop_outbox: roles without a login, to be granted to those that have one.
--
-- To be run by an administrator: in one transaction, at any time, again, and while everything is running. The roles are
-- named prefix_owner, prefix_worker and so on; what any of them could do before with tables of this schema is replaced.
-- Tables that are not there yet are passed over: run it again after a migration, or migrate with --roles, which does as
-- the second of the two blocks. That needs no administrator: its user is a member of the owner.
-- ---------------------------------------------------------------------------------------------------------------------

do $scoop_outbox$
declare
    prefix constant text := current_setting('scoop_outbox.roles');
    called constant text := current_setting('scoop_outbox.schema');
    member text;
    relation record;
begin
    foreach member in array array['owner', 'worker', 'relay', 'intake', 'pruner', 'launcher', 'operator', 'reader'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = prefix || '_' || member) then
            execute format('create role %I nologin', prefix || '_' || member);
        end if;
        execute format('grant connect on database %I to %I', current_database(), prefix || '_' || member);
    end loop;

    -- What an administrator gives away, he has to be a member of himself; a superuser is of everything.
    if not pg_has_role(current_user, prefix || '_owner', 'usage') then
        execute format('grant %I to current_user', prefix || '_owner');
    end if;
    if to_regnamespace(quote_ident(called)) is null then
        execute format('create schema %I', called);
    end if;
    if (select nspowner from pg_catalog.pg_namespace where nspname = called) <> to_regrole(quote_ident(prefix || '_owner')) then
        execute format('alter schema %I owner to %I', called, prefix || '_owner');
    end if;
    -- Only what is somebody else's: to change the owner of a table locks it, even if it changes nothing.
    for relation in
        select relname from pg_catalog.pg_class
        where relnamespace = to_regnamespace(quote_ident(called)) and relkind = 'r'
          and relowner <> to_regrole(quote_ident(prefix || '_owner'))
    loop
        execute format('alter table %I.%I owner to %I', called, relation.relname, prefix || '_owner');
    end loop;

    -- Whoever retires a handler has to see whether others are in the middle of a launch.
    if not pg_has_role(prefix || '_operator', 'pg_read_all_stats', 'member') then
        begin
            execute format('grant pg_read_all_stats to %I', prefix || '_operator');
        exception when insufficient_privilege then
            raise warning 'grant pg_read_all_stats to % failed: handlers forget needs it', prefix || '_operator';
        end;
    end if;
end
$scoop_outbox$;

-- ---------------------------------------------------------------------------------------------------------------------

do $scoop_outbox$
declare
    prefix constant text := current_setting('scoop_outbox.roles');
    called constant text := current_setting('scoop_outbox.schema');
    everybody constant text[] := array['worker', 'relay', 'intake', 'pruner', 'launcher', 'operator', 'reader'];
    member text;
    entry record;
    what text;
begin
    foreach member in array everybody loop
        execute format('revoke all on all tables in schema %I from %I', called, prefix || '_' || member);
        execute format('grant usage on schema %I to %I', called, prefix || '_' || member);
    end loop;

    for entry in
        select members, to_regclass(format('%I.%I', called, relation)) as relation, privileges, hidden
        from (values
            ('worker relay intake pruner launcher operator reader', 'alembic_version', 'select', ''),
            ('worker relay intake pruner launcher operator reader', 'home', 'select', ''),
            ('worker relay intake pruner launcher operator reader', 'subscription', 'select', ''),
            ('worker intake pruner launcher operator reader', 'renamed', 'select', ''),

            -- To look, without what messages hold, and what sagas have made of it. Keys are shown.
            ('launcher reader operator worker', 'message', 'select', 'body headers'),
            ('launcher reader operator worker', 'outbox', 'select', 'body headers'),
            ('launcher reader worker', 'dead_letter', 'select', 'body headers'),
            ('launcher reader operator', 'run', 'select', 'context inherited result'),
            -- Who is executing it is found by that, and the transaction that has the lock.
            ('launcher reader operator', 'run', 'select (xmax)', ''),
            ('launcher reader operator', 'child', 'select', 'result'),
            ('launcher reader operator', 'request', 'select', 'result'),
            ('launcher reader operator', 'expected_root', 'select', ''),
            ('launcher reader operator', 'failure', 'select', ''),
            ('launcher reader operator', 'lane_entry', 'select', ''),
            ('launcher reader operator', 'mailbox', 'select', ''),
            ('launcher reader operator', 'outbox_shard', 'select', ''),
            ('launcher reader operator', 'saga_version', 'select', ''),
            ('launcher reader operator', 'step', 'select', ''),
            ('launcher reader operator', 'worker', 'select', ''),
            ('launcher reader operator', 'peer', 'select', ''),
            ('launcher reader operator', 'peer_subscription', 'select', ''),
            ('launcher reader operator', 'foreign_child', 'select', ''),

            -- To launch, and to wait for the result.
            ('launcher worker', 'outbox', 'insert', ''),
            ('launcher', 'child', 'insert (message_id, service, saga, run_id, seq, ordinal, deadline, home)', ''),
            ('launcher worker', 'expected_root', 'select, insert, update', ''),
            ('launcher worker', 'launched', 'select, insert, delete', ''),
            ('launcher', 'run', 'select (result)', ''),
            ('launcher', 'child', 'select (result)', ''),

            -- To make a service known, to take in, to execute. To lock a row, Postgres asks for the right to update some
            -- column of it.
            ('worker', 'subscription', 'insert, update, delete', ''),
            ('worker', 'renamed', 'insert, delete', ''),
            ('worker', 'outbox_shard', 'select', ''),
            ('worker', 'message', 'select, insert, update (emptied_at)', ''),
            ('worker', 'run', 'select, insert, update', ''),
            ('worker', 'step', 'select, insert, update', ''),
            ('worker', 'child', 'select, insert, update, delete', ''),
            ('worker', 'request', 'select, insert, update', ''),
            ('worker', 'failure', 'select, insert', ''),
            ('worker', 'mailbox', 'select, insert, update, delete', ''),
            ('worker', 'lane_entry', 'select, insert, update, delete', ''),
            ('worker', 'worker', 'select, insert, update, delete', ''),
            ('worker', 'saga_version', 'select, insert, update', ''),
            ('worker', 'dead_letter', 'insert', ''),

            -- To cooperate with other homes. Each process says what this home is called; only the first one is heard.
            ('worker', 'home', 'update', ''),
            ('relay', 'home', 'update (name, place)', ''),
            ('worker', 'peer', 'select, insert, update', ''),
            ('worker', 'peer_subscription', 'select, insert, update, delete', ''),
            ('worker', 'foreign_child', 'select, insert, update', ''),

            -- To publish.
            ('relay', 'outbox', 'select, delete', ''),
            ('relay', 'outbox_shard', 'select, update', ''),
            ('relay', 'dead_letter', 'insert', ''),

            -- And to ask other homes after children that have been silent for long.
            ('relay', 'child', 'select (message_id, service, saga, run_id, seq, open, home, generation, state, failure, reported_at)', ''),
            ('relay', 'run', 'select (id, giving_up, failure, context, rollback_by)', ''),
            ('relay', 'request', 'select (id, target, kind, failure, outcome)', ''),
            ('relay', 'failure', 'select', ''),
            ('relay', 'step', 'select (run_id, seq, ended_at)', ''),
            ('relay', 'peer', 'select', ''),
            ('relay', 'outbox', 'insert', ''),

            -- To take in and nothing else: a relay of the built-in broker does, and whoever replays a dead letter.
            ('intake operator', 'message', 'insert, update (emptied_at)', ''),
            ('intake', 'message', 'select (id, created_at, emptied_at, forget_at)', ''),
            ('intake operator', 'run', 'insert', ''),
            ('intake', 'run', 'select (id, message_id, service, saga, lane)', ''),
            ('intake', 'child', 'select (message_id, service, saga, state, child_run), update (state, child_run)', ''),
            ('intake operator', 'lane_entry', 'insert', ''),
            ('intake', 'lane_entry', 'select (run_id, lane)', ''),
            ('intake operator', 'mailbox', 'insert', ''),
            ('intake operator', 'foreign_child', 'insert', ''),
            ('intake', 'foreign_child', 'select', ''),

            -- To remove what has ended long ago, to erase its payload, and to read it for an archive.
            ('pruner', 'message', 'select, update, delete', ''),
            ('pruner', 'run', 'select, update (context, inherited, result, erased), delete', ''),
            ('pruner', 'step', 'select, delete', ''),
            ('pruner', 'child', 'select, update (result), delete', ''),
            ('pruner', 'request', 'select, update (result), delete', ''),
            ('pruner', 'failure', 'select, delete', ''),
            ('pruner', 'mailbox', 'select, delete', ''),
            ('pruner', 'expected_root', 'select, delete', ''),
            ('pruner', 'launched', 'select, delete', ''),
            ('pruner', 'foreign_child', 'select, delete', ''),
            ('pruner', 'peer', 'select', ''),
            ('pruner', 'outbox', 'insert', ''),

            -- To cancel, undo and mend runs, to end the work of others, to replay dead letters, to forget handlers.
            ('operator', 'run', 'update', ''),
            ('operator', 'child', 'update', ''),
            ('operator', 'request', 'insert, update', ''),
            ('operator', 'failure', 'insert', ''),
            ('operator', 'step', 'update', ''),
            ('operator', 'mailbox', 'delete', ''),
            ('operator', 'lane_entry', 'update, delete', ''),
            ('operator', 'outbox', 'insert', ''),
            ('operator', 'foreign_child', 'update', ''),
            ('operator', 'dead_letter', 'select, update (reason), delete', ''),
            ('operator', 'subscription', 'delete', ''),
            ('operator', 'peer', 'insert, update, delete', ''),
            ('operator', 'peer_subscription', 'insert, update, delete', ''),
            -- To tell other homes what runs are asked for, and what children have to be told again.
            ('operator', 'run', 'select (context, result)', ''),
            ('operator', 'home', 'update', ''),
            ('operator', 'expected_root', 'update', '')
        ) as given (members, relation, privileges, hidden)
    loop
        continue when entry.relation is null;
        what := entry.privileges;
        if entry.hidden <> '' then
            select format('select (%s)', string_agg(quote_ident(attname), ', ' order by attnum)) into what
            from pg_catalog.pg_attribute
            where attrelid = entry.relation and attnum > 0 and not attisdropped
              and attname <> all (string_to_array(entry.hidden, ' '));
        end if;
        foreach member in array string_to_array(entry.members, ' ') loop
            execute format('grant %s on table %s to %I', what, entry.relation, prefix || '_' || member);
        end loop;
    end loop;
end
$scoop_outbox$;
