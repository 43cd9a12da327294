-- Circuit breakers of providers. Where they stand is Redis' (motion); here stands what became of them, for people, and what operators set.
CREATE TABLE breaker (
    name       text COLLATE "C" PRIMARY KEY,    -- tenant, provider and credential: what jobs wait for
    tenant_id  integer NOT NULL,
    provider   text NOT NULL,
    credential text NOT NULL,                   -- 'platform' or 'own'
    phase      text NOT NULL,                   -- 'closed', 'open', 'half_open', 'ramp'
    since      timestamptz NOT NULL,
    until      timestamptz,                     -- while it is open: when one call is tried
    calls      bigint NOT NULL,                 -- the window when it opened last
    failures   bigint NOT NULL,
    slow       bigint NOT NULL,
    opened     bigint NOT NULL                  -- how often it has
);

-- An operator's word, which goes before what was measured. Rows are kept when they are lifted, so that who did what, when and why can be
-- read later.
CREATE TABLE breaker_override (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id integer,                          -- NULL: of every tenant
    provider  text,                             -- NULL: of every provider
    mode      text NOT NULL CHECK (mode IN ('forced_open', 'metrics_only')),
    set_at    timestamptz NOT NULL,
    set_by    text NOT NULL,
    reason    text NOT NULL,
    lifted_at timestamptz,
    lifted_by text
);
CREATE UNIQUE INDEX breaker_override_in_force ON breaker_override (coalesce(tenant_id, -1), coalesce(provider, '')) WHERE lifted_at IS NULL;

-- Jobs that wait for a breaker are held like those that wait for a switch: in the backlog, never due. NULL: for a switch or a pause.
ALTER TABLE job_held ADD COLUMN breaker text, ADD COLUMN gives_up_at timestamptz;

ALTER TABLE breaker ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE breaker_override ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY breaker_engine ON breaker TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY breaker_api ON breaker FOR SELECT TO offstage_api USING (tenant_id = current_tenant());
CREATE POLICY breaker_override_engine ON breaker_override TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY breaker_override_api ON breaker_override FOR SELECT TO offstage_api USING (tenant_id IS NULL OR tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON breaker TO offstage_engine;
GRANT SELECT, INSERT, UPDATE ON breaker_override TO offstage_engine;
-- To explain what a job waits for.
GRANT SELECT ON breaker, breaker_override TO offstage_api;
