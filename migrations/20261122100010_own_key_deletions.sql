-- From when to when a user had a key that they have deleted: a job that was accepted meanwhile is not done at the product's expense.
-- Holds nothing of the key.
CREATE TABLE own_key_deletion (
    tenant_id  integer NOT NULL,
    user_id    text COLLATE "C" NOT NULL,
    provider   text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    deleted_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, user_id, provider, deleted_at)
);
CREATE INDEX own_key_deletion_age ON own_key_deletion (deleted_at);

ALTER TABLE own_key_deletion ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_key_deletion_engine ON own_key_deletion TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY own_key_deletion_api ON own_key_deletion TO offstage_api
    USING (tenant_id = current_tenant()
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = own_key_deletion.tenant_id AND e.user_id = own_key_deletion.user_id))
    WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON own_key_deletion TO offstage_engine;
GRANT SELECT, INSERT ON own_key_deletion TO offstage_api;
