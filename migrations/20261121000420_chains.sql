-- Chains: jobs that were made because another one succeeded.
CREATE TABLE job_child (
    parent_id uuid NOT NULL,
    position  smallint NOT NULL,                -- in the parent's `then`, from 0
    job_id    uuid NOT NULL,
    tenant_id integer NOT NULL,
    PRIMARY KEY (parent_id, position)
);
ALTER TABLE job_child ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY job_child_engine ON job_child TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY job_child_api ON job_child TO offstage_api
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON job_child TO offstage_engine;
GRANT SELECT ON job_child TO offstage_api;

-- As before, and what is new: whose children a job's were, and ends that nobody acted upon yet, go with it.
CREATE OR REPLACE FUNCTION bury_jobs(p_tenant integer, p_jobs uuid[], p_discarded boolean, p_now timestamptz) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
BEGIN
    RETURN QUERY
    WITH doomed AS MATERIALIZED (
        SELECT s.job_id
        FROM unnest(p_jobs) AS e (id) JOIN job_state s ON s.job_id = e.id
        WHERE s.tenant_id = p_tenant
          -- A session that acts for a tenant can't name another one.
          AND s.tenant_id = coalesce(current_tenant(), p_tenant)
          AND s.state IN (3, 4, 5, 6) AND NOT (p_discarded AND s.state = 3)
          AND NOT EXISTS (SELECT FROM job_file f WHERE f.job_id = s.job_id AND f.deleted_at IS NULL)
          -- What follows its end comes first.
          AND NOT EXISTS (SELECT FROM job_ended n WHERE n.job_id = s.job_id)
        ORDER BY s.job_id FOR UPDATE OF s SKIP LOCKED
    ), tombstones AS (
        INSERT INTO job_tombstone (job_id, tenant_id, discarded, gone_at, kind, owner)
        SELECT j.id, j.tenant_id, p_discarded, p_now, j.kind, j.owner FROM doomed d JOIN job j ON j.id = d.job_id
    ), attempts AS (
        DELETE FROM job_attempt a USING doomed d WHERE a.job_id = d.job_id
    ), results AS (
        DELETE FROM job_result r USING doomed d WHERE r.job_id = d.job_id
    ), files AS (
        DELETE FROM job_file f USING doomed d WHERE f.job_id = d.job_id
    ), effects AS (
        DELETE FROM effect e USING doomed d
        WHERE e.job_id = d.job_id AND (e.published OR NOT (e.key LIKE 'object:%' OR e.key LIKE 'upload:%'))
    ), cancels AS (
        DELETE FROM job_cancel c USING doomed d WHERE c.job_id = d.job_id
    ), unsuccessful AS (
        DELETE FROM job_unsuccessful u USING doomed d WHERE u.job_id = d.job_id
    ), children AS (
        DELETE FROM job_child c USING doomed d WHERE c.parent_id = d.job_id
    ), states AS (
        DELETE FROM job_state s USING doomed d WHERE s.job_id = d.job_id
    ), jobs AS (
        DELETE FROM job j USING doomed d WHERE j.id = d.job_id
    )
    SELECT d.job_id FROM doomed d;
END
$$;
