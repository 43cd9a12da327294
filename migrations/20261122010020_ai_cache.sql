-- Answers of models that are kept for who asks exactly the same, where a task says so (`cache`). In Postgres and not in Redis, since an answer
-- is made of what a user wrote: it has to be found and removed when that user is erased.
CREATE TABLE ai_cache (
    tenant_id  integer NOT NULL,
    digest     bytea NOT NULL,               -- SHA-256 of the task, its models and the whole question
    owner      text,                         -- whose question it was first
    result     jsonb NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, digest)
);
CREATE INDEX ai_cache_expires ON ai_cache (expires_at);
CREATE INDEX ai_cache_owner ON ai_cache (tenant_id, owner) WHERE owner IS NOT NULL;
ALTER TABLE ai_cache ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY ai_cache_engine ON ai_cache TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY ai_cache_api ON ai_cache TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON ai_cache TO offstage_engine;
