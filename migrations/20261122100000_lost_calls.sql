-- Calls of models of which nobody knows what became: their worker died, or their job was cancelled while they were under way. They may have
-- been made, so they are charged as all that they can have taken, which stands with their intention in `effect`.
--
-- A call has one id from its intention on: whoever writes it down first, its own run or the one who misses it, does so for good.

-- Writes down those of some jobs that no run works at any more, and those that a later run has listed as unknown; answers how many.
CREATE FUNCTION charge_lost_calls(p_jobs uuid[], p_now timestamptz) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
DECLARE
    v record;
BEGIN
    SELECT count(*) AS calls, array_agg((e.intent ->> 'call')::uuid) AS ids, array_agg(e.tenant_id) AS tenants, array_agg(e.job_id) AS jobs,
           array_agg(j.owner) AS owners, array_agg(e.key) AS steps, array_agg(e.intent ->> 'task') AS tasks,
           array_agg(e.intent ->> 'provider') AS providers, array_agg(e.intent ->> 'model') AS models,
           array_agg(e.intent ->> 'payer') AS payers, array_agg('lost'::text) AS outcomes,
           array_agg((e.intent ->> 'input_tokens')::bigint) AS input, array_agg((e.intent ->> 'output_tokens')::bigint) AS output,
           array_agg(true) AS estimated, array_agg(NULL::bigint) AS took, array_agg((e.intent ->> 'cost')::bigint) AS costs,
           array_agg(p_now) AS at, array_agg((e.intent ->> 'day')::date) AS days, array_agg(NULL::text) AS reported,
           array_agg(e.intent ->> 'payer' = 'product') AS counts
    INTO v
    FROM (
        SELECT e.* FROM effect e
        WHERE e.job_id = ANY (p_jobs) AND e.key LIKE 'ai:%' AND e.receipt IS NULL AND e.intent ? 'call'
          AND e.tenant_id = coalesce(current_tenant(), e.tenant_id)
          AND (e.state = 2 OR NOT EXISTS (SELECT FROM job_state s WHERE s.job_id = e.job_id AND s.state = 2))
          AND NOT EXISTS (SELECT FROM ai_call c WHERE c.id = (e.intent ->> 'call')::uuid)
        ORDER BY e.job_id, e.key
    ) e
    LEFT JOIN job j ON j.id = e.job_id;
    IF v.calls > 0 THEN
        PERFORM record_ai_calls(v.ids, v.tenants, v.jobs, v.owners, v.steps, v.tasks, v.providers, v.models, v.payers, v.outcomes, v.input,
                                v.output, v.estimated, v.took, v.costs, v.at, v.days, v.reported, v.counts);
    END IF;
    RETURN v.calls;
END
$$;

-- As before; and what a job's lost calls can have taken is charged with the rest.
CREATE OR REPLACE FUNCTION settle_usage(p_jobs uuid[], p_now timestamptz) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
DECLARE
    v_ended bigint;
    v_back  jsonb;
BEGIN
    -- What almost all jobs need is this look at an index.
    IF NOT EXISTS (SELECT FROM usage_reservation r WHERE r.job_id = ANY (p_jobs)) THEN
        RETURN 0;
    END IF;
    -- Beside their reservations, before those become charges.
    IF EXISTS (SELECT FROM usage_reservation r WHERE r.job_id = ANY (p_jobs) AND r.metric = 'ai_cost') THEN
        PERFORM charge_lost_calls(p_jobs, p_now);
    END IF;
    WITH ended AS (
        DELETE FROM usage_reservation r
        WHERE r.job_id = ANY (p_jobs) AND r.tenant_id = coalesce(current_tenant(), r.tenant_id)
          AND NOT EXISTS (SELECT FROM job_state s WHERE s.job_id = r.job_id AND s.state < 3)
        RETURNING r.*
    ), final AS MATERIALIZED (
        SELECT e.*, CASE WHEN e.incurred THEN coalesce(e.actual, 0)
                         WHEN EXISTS (SELECT FROM job_state s WHERE s.job_id = e.job_id AND s.state = 3) THEN coalesce(e.actual, e.amount)
                         ELSE 0 END AS due
        FROM ended e
    ), charged AS (
        INSERT INTO usage_charge (job_id, tenant_id, scope, metric, amount, periods, starts, until, charged_at)
        SELECT job_id, tenant_id, scope, metric, due, periods, starts, until, p_now FROM final WHERE due <> 0
    ), back AS (
        SELECT f.tenant_id, f.scope, f.metric, p.period, p.starts, sum(f.due - f.amount) AS change
        FROM final f CROSS JOIN LATERAL unnest(f.periods, f.starts) AS p (period, starts)
        WHERE f.due <> f.amount
        GROUP BY f.tenant_id, f.scope, f.metric, p.period, p.starts
    )
    SELECT (SELECT count(*) FROM final), (SELECT jsonb_agg(to_jsonb(b)) FROM back b) INTO v_ended, v_back;

    -- Most successes are charged what was reserved: no counter changes.
    IF v_back IS NOT NULL THEN
        -- In the order in which everybody takes them.
        PERFORM FROM jsonb_to_recordset(v_back) AS b (tenant_id integer, scope text, metric text, period smallint, starts timestamptz)
            JOIN usage_counter c ON c.tenant_id = b.tenant_id AND c.scope = b.scope AND c.metric = b.metric AND c.period = b.period
                                AND c.starts_at = b.starts
            ORDER BY c.tenant_id, c.scope, c.metric, c.period, c.starts_at FOR UPDATE OF c;
        UPDATE usage_counter c SET used = c.used + b.change
        FROM jsonb_to_recordset(v_back)
             AS b (tenant_id integer, scope text, metric text, period smallint, starts timestamptz, change bigint)
        WHERE c.tenant_id = b.tenant_id AND c.scope = b.scope AND c.metric = b.metric AND c.period = b.period AND c.starts_at = b.starts;
    END IF;
    RETURN v_ended;
END
$$;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
ALTER FUNCTION charge_lost_calls(uuid[], timestamptz) OWNER TO offstage_engine;
REVOKE ALL ON FUNCTION charge_lost_calls(uuid[], timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION charge_lost_calls(uuid[], timestamptz) TO offstage_engine;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
