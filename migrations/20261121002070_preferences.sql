-- What users want to be told of, by category and channel: their own words, and only where they said something. Read when something is
-- sent, for many users at a time by the key.
CREATE TABLE preference (
    tenant_id  integer NOT NULL,
    user_id    text COLLATE "C" NOT NULL,
    category   text COLLATE "C" NOT NULL,
    in_app     boolean,                         -- NULL: as the product has it
    push       boolean,
    mail       boolean,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, user_id, category)
);
ALTER TABLE preference ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY preference_engine ON preference TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY preference_api ON preference TO offstage_api
    USING (tenant_id = current_tenant()
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = preference.tenant_id AND e.user_id = preference.user_id))
    WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON preference TO offstage_engine, offstage_api;
