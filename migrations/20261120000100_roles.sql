-- The roles that the two programs work under. Migrations run as the owner, who needs CREATEROLE (or the roles made beforehand).
-- Roles belong to the whole Postgres cluster, so another database of the same cluster may have made them: hence the guards.
-- They are made without LOGIN: a password is the operator's affair (`docs/operations.md`), never a migration's.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['offstage_api', 'offstage_engine'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END
$$;

-- The owner acts through the engine's policies too: row-level security is forced, so ownership alone sees no row.
DO $$
BEGIN
    IF NOT pg_has_role(current_user, 'offstage_engine', 'MEMBER') THEN
        EXECUTE format('GRANT offstage_engine TO %I', current_user);
    END IF;
END
$$;

GRANT USAGE ON SCHEMA public TO offstage_api, offstage_engine;
