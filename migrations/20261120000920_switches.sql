-- Switches: outward effects are on unless one of these is off. Rows are kept when they are turned on again, so that who did what,
-- when and why can be read later.
CREATE TABLE outward_switch (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id integer,                          -- NULL: of every tenant
    kind      text,                             -- NULL: of every kind
    names     text[],                           -- the kind's name and its former ones, as jobs may carry them
    off_at    timestamptz NOT NULL,
    off_by    text NOT NULL,
    reason    text NOT NULL,
    on_at     timestamptz,                      -- NULL while it is off
    on_by     text
);
CREATE UNIQUE INDEX outward_switch_off ON outward_switch (coalesce(tenant_id, 0), coalesce(kind, '')) WHERE on_at IS NULL;

-- Jobs that wait for a switch. They stand in the backlog too, never due; here they are found by what a switch names.
CREATE TABLE job_held (
    job_id    uuid PRIMARY KEY,
    tenant_id integer NOT NULL,
    kind      text NOT NULL,
    queue     text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX job_held_by_kind ON job_held (queue, tenant_id, kind, job_id);

ALTER TABLE outward_switch ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE job_held ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY outward_switch_engine ON outward_switch TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY job_held_engine ON job_held TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY job_held_api ON job_held TO offstage_api
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE ON outward_switch TO offstage_engine;
-- What is cancelled is not held any more. Of the switches the API knows nothing: a job's reason tells its owner what there is to know.
GRANT SELECT, DELETE ON job_held TO offstage_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON job_held TO offstage_engine;

-- Whether outward effects of a tenant's jobs of a kind are switched off.
CREATE FUNCTION outward_is_off(p_tenant integer, p_kind text) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
        SELECT EXISTS (SELECT FROM outward_switch w
                       WHERE w.on_at IS NULL AND (w.tenant_id IS NULL OR w.tenant_id = p_tenant) AND (w.kind IS NULL OR p_kind = ANY (w.names)))
    $$;
