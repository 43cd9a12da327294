-- Summaries of products' own databases: when each was last brought up to date, and what it took (`shared/src/ledger/summaries.rs`).
CREATE TABLE summary (
    tenant_id    integer NOT NULL REFERENCES tenant (id),
    name         text COLLATE "C" NOT NULL,     -- in the manifest
    started_at   timestamptz,                   -- the last attempt
    job_id       uuid,                          -- its job
    refreshed_at timestamptz,                   -- the last success
    took_ms      bigint,                        -- that success
    is_concurrent boolean,                      -- whether readers could go on meanwhile
    failing_since timestamptz,
    failures     integer NOT NULL DEFAULT 0,    -- in a row
    failure_code text,
    failure      text,
    PRIMARY KEY (tenant_id, name)
) WITH (fillfactor = 50);
ALTER TABLE summary ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY summary_engine ON summary TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY summary_api ON summary TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON summary TO offstage_engine;
GRANT SELECT ON summary TO offstage_api;
