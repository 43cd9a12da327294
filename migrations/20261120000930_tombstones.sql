-- What is left of a job that retention pruned or somebody discarded: enough to tell its owner that it is gone, and when.
CREATE TABLE job_tombstone (
    job_id    uuid PRIMARY KEY,
    tenant_id integer NOT NULL,
    discarded boolean NOT NULL,
    gone_at   timestamptz NOT NULL,
    kind      text NOT NULL,
    owner     text
);
CREATE INDEX job_tombstone_age ON job_tombstone (gone_at);

ALTER TABLE job_tombstone ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY job_tombstone_engine ON job_tombstone TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY job_tombstone_api ON job_tombstone TO offstage_api
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON job_tombstone TO offstage_engine;
GRANT SELECT ON job_tombstone TO offstage_api;

-- Removes jobs of a tenant that have ended, with all that belongs to them, and answers which: what somebody else holds just now is
-- left out and nobody waits for anybody. A job whose file still stands is kept. `p_discarded`: a person wants dead letters gone, so
-- what has succeeded is left alone.
--
-- SECURITY DEFINER, as the engine: the API may not delete rows of these tables in any other way than as a whole.
--
-- What a run may have left in object storage stays in the effect ledger: the sweep finds it there, takes it for lost, as there is
-- no claim, and strikes it out once it is gone.
CREATE FUNCTION bury_jobs(p_tenant integer, p_jobs uuid[], p_discarded boolean, p_now timestamptz) RETURNS SETOF uuid
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
    ), states AS (
        DELETE FROM job_state s USING doomed d WHERE s.job_id = d.job_id
    ), jobs AS (
        DELETE FROM job j USING doomed d WHERE j.id = d.job_id
    )
    SELECT d.job_id FROM doomed d;
END
$$;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
ALTER FUNCTION bury_jobs(integer, uuid[], boolean, timestamptz) OWNER TO offstage_engine;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
REVOKE ALL ON FUNCTION bury_jobs(integer, uuid[], boolean, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bury_jobs(integer, uuid[], boolean, timestamptz) TO offstage_api, offstage_engine;
