-- As before; and a job that waits for a breaker stands behind its limiting key only once it is let through, as with a switch or a pause.
CREATE OR REPLACE FUNCTION limit_jobs(p_jobs uuid[], p_now timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job j WHERE j.id = ANY (p_jobs) AND j.options ? 'limit') THEN
        RETURN;
    END IF;
    WITH wanted AS MATERIALIZED (
        SELECT j.id, j.tenant_id, j.priority, s.run_at, l.key, l.running, l.rate
        FROM unnest(p_jobs) AS e (id)
        JOIN job j ON j.id = e.id
        JOIN job_state s ON s.job_id = e.id
        CROSS JOIN LATERAL jsonb_to_record(j.options -> 'limit') AS l (key text, running integer, rate jsonb)
        WHERE j.options ? 'limit' AND s.state = 0 AND s.reason NOT IN (5, 7, 8) AND j.tenant_id = coalesce(current_tenant(), j.tenant_id)
    ), keys AS (
        -- One row a key, the newest job's word; sorted, so that no two batches wait for each other crosswise.
        INSERT INTO limit_key AS k (tenant_id, name, running, rate_jobs, rate_seconds, rate_burst, look_at, used_at)
        SELECT DISTINCT ON (tenant_id, key) tenant_id, key, running, (rate ->> 'jobs')::integer, (rate ->> 'seconds')::float8,
               (rate ->> 'burst')::integer, p_now, p_now
        FROM wanted ORDER BY tenant_id, key, id DESC
        ON CONFLICT (tenant_id, name) DO UPDATE
            SET running = excluded.running, rate_jobs = excluded.rate_jobs, rate_seconds = excluded.rate_seconds,
                rate_burst = excluded.rate_burst, look_at = least(k.look_at, p_now), used_at = p_now
        RETURNING k.id, k.tenant_id, k.name
    ), limited AS (
        INSERT INTO job_limited AS l (job_id, key_id, tenant_id, admitted, run_at, turn_at)
        SELECT w.id, k.id, w.tenant_id, false, w.run_at, w.run_at + w.priority * interval '30 seconds'
        FROM wanted w JOIN keys k ON k.tenant_id = w.tenant_id AND k.name = w.key
        ON CONFLICT (job_id) DO UPDATE SET admitted = false, run_at = excluded.run_at, turn_at = excluded.turn_at
    )
    UPDATE job_waiting b SET run_at = 'infinity' FROM wanted w WHERE b.job_id = w.id;
END
$$;
