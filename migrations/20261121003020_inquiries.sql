-- Inquiries of the latest day, counted by who sends them. Of an address stands here a hash, as in `suppression`.
CREATE TABLE inquiry (
    id           uuid PRIMARY KEY,
    tenant_id    integer NOT NULL,
    address_hash bytea NOT NULL,
    key_hash     bytea,                         -- of the request's idempotency key: a repeat is not counted again
    created_at   timestamptz NOT NULL
);
CREATE INDEX inquiry_sender ON inquiry (tenant_id, address_hash, created_at);
CREATE INDEX inquiry_age ON inquiry (created_at);
ALTER TABLE inquiry ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY inquiry_engine ON inquiry TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY inquiry_api ON inquiry TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON inquiry TO offstage_engine;
GRANT SELECT, INSERT, DELETE ON inquiry TO offstage_api;
