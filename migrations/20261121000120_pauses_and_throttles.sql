-- What an operator, or a tenant for its own jobs, holds up: pauses stop jobs from starting, throttles bound how many start in a time.
-- A row names what it is for; NULL is any. Pauses are kept when they are over, so that who did what, when and why can be read later.
CREATE TABLE pause (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id  integer,
    queue      text,
    kind       text,
    names      text[],                          -- the kind's name and its former ones, as jobs may carry them
    paused_at  timestamptz NOT NULL,
    paused_by  text NOT NULL,
    reason     text NOT NULL,
    resumed_at timestamptz,
    resumed_by text
);
CREATE UNIQUE INDEX pause_in_force ON pause (coalesce(tenant_id, -1), coalesce(queue, ''), coalesce(kind, '')) WHERE resumed_at IS NULL;

CREATE TABLE throttle (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id    integer,
    queue        text,
    rate_jobs    integer NOT NULL,
    rate_seconds integer NOT NULL,
    rate_burst   integer NOT NULL,
    set_at       timestamptz NOT NULL,
    set_by       text NOT NULL
);
CREATE UNIQUE INDEX throttle_scope ON throttle (coalesce(tenant_id, -1), coalesce(queue, ''));

ALTER TABLE pause ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE throttle ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY pause_engine ON pause TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY throttle_engine ON throttle TO offstage_engine USING (true) WITH CHECK (true);
-- A tenant sees what holds its jobs up, and changes what is its own.
CREATE POLICY pause_api_reads ON pause FOR SELECT TO offstage_api USING (tenant_id IS NULL OR tenant_id = current_tenant());
CREATE POLICY pause_api_adds ON pause FOR INSERT TO offstage_api WITH CHECK (tenant_id = current_tenant());
CREATE POLICY pause_api_changes ON pause FOR UPDATE TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY throttle_api_reads ON throttle FOR SELECT TO offstage_api USING (tenant_id IS NULL OR tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON pause, throttle TO offstage_engine;
GRANT SELECT, INSERT, UPDATE ON pause TO offstage_api;
GRANT SELECT ON throttle TO offstage_api;

-- Whether a tenant's jobs of a kind in a queue are paused.
CREATE FUNCTION is_paused(p_tenant integer, p_queue text, p_kind text) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
        SELECT EXISTS (SELECT FROM pause p
                       WHERE p.resumed_at IS NULL AND (p.tenant_id IS NULL OR p.tenant_id = p_tenant)
                         AND (p.queue IS NULL OR p.queue = p_queue) AND (p.kind IS NULL OR p_kind = ANY (p.names)))
    $$;
