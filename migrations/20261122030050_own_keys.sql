-- Keys for providers that users bring along (R45): sealed (`shared/src/vault`), and of the key itself its last four characters.
CREATE TABLE own_key (
    tenant_id  integer NOT NULL,
    user_id    text COLLATE "C" NOT NULL,
    provider   text COLLATE "C" NOT NULL,       -- 'openai', 'anthropic', 'google', 'huggingface'
    id         uuid NOT NULL UNIQUE,            -- of this row; its circuit breaker is named by it
    version    integer NOT NULL,                -- raised with each key that is put in the place of another
    sealed     bytea NOT NULL,
    wrapped_by smallint NOT NULL,               -- the version of the installation's key, for the rotation
    last_four  text NOT NULL,
    status     smallint NOT NULL,               -- 0 not checked yet, 1 active, 2 invalid
    reason     text,                            -- what the provider said, where it is invalid
    checked_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, user_id, provider)
);
-- Those that an old key wraps are found by their distance from the current one.
CREATE INDEX own_key_wrapped_by ON own_key (wrapped_by, id);

-- How often a user had keys checked: saving and testing together five times an hour.
CREATE TABLE own_key_check (
    id         uuid PRIMARY KEY,
    tenant_id  integer NOT NULL,
    user_id    text COLLATE "C" NOT NULL,
    checked_at timestamptz NOT NULL
);
CREATE INDEX own_key_check_by_user ON own_key_check (tenant_id, user_id, checked_at);
CREATE INDEX own_key_check_by_time ON own_key_check (checked_at);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['own_key', 'own_key_check'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api
                        USING (tenant_id = current_tenant()
                               AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = %I.tenant_id AND e.user_id = %I.user_id))
                        WITH CHECK (tenant_id = current_tenant())',
                       name || '_api', name, name, name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT, UPDATE, DELETE ON own_key TO offstage_api;
GRANT SELECT, INSERT ON own_key_check TO offstage_api;
