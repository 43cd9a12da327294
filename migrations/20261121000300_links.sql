-- Addresses that show one job to whoever has them, for browsers: unguessable, expiring, taken back at will. Of the token only its
-- hash is kept: a copy of the database opens nothing.
CREATE TABLE job_link (
    hash       bytea PRIMARY KEY,               -- SHA-256 of the token
    job_id     uuid NOT NULL,
    tenant_id  integer NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX job_link_job ON job_link (job_id);
CREATE INDEX job_link_expiry ON job_link (expires_at);

ALTER TABLE job_link ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY job_link_engine ON job_link TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY job_link_api ON job_link TO offstage_api
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON job_link TO offstage_engine;
GRANT SELECT, INSERT, DELETE ON job_link TO offstage_api;

-- The door of these addresses knows no tenant: whoever has the token may enter, and the hash alone leads to its one job.
CREATE FUNCTION find_job_link(p_hash bytea, p_now timestamptz)
    RETURNS TABLE (job_id uuid, tenant_id integer, expires_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT l.job_id, l.tenant_id, l.expires_at FROM job_link l WHERE l.hash = p_hash AND l.expires_at > p_now $$;

-- Of jobs that changed, those of some tenants: what the API needs to tell those who listen to all of a tenant's jobs. A change is told
-- by the job's id alone, and row-level security shows one tenant a transaction.
CREATE FUNCTION tenants_of_jobs(p_jobs uuid[], p_tenants integer[]) RETURNS TABLE (job_id uuid, tenant_id integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
        SELECT s.job_id, s.tenant_id FROM unnest(p_jobs) AS e (id) JOIN job_state s ON s.job_id = e.id WHERE s.tenant_id = ANY (p_tenants)
    $$;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
ALTER FUNCTION find_job_link(bytea, timestamptz) OWNER TO offstage_engine;
ALTER FUNCTION tenants_of_jobs(uuid[], integer[]) OWNER TO offstage_engine;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
REVOKE ALL ON FUNCTION find_job_link(bytea, timestamptz), tenants_of_jobs(uuid[], integer[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_job_link(bytea, timestamptz), tenants_of_jobs(uuid[], integer[]) TO offstage_api;
