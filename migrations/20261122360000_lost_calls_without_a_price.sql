-- As before; a call of a model that has no price costs nobody knows what, and not the bound: `least` passes over what is NULL.
CREATE OR REPLACE FUNCTION charge_lost_calls(p_jobs uuid[], p_now timestamptz) RETURNS bigint
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
           array_agg(least((e.intent ->> 'input_tokens')::numeric, 4000000000000000000)::bigint) AS input,
           array_agg(least((e.intent ->> 'output_tokens')::numeric, 4000000000000000000)::bigint) AS output,
           array_agg(true) AS estimated, array_agg(NULL::bigint) AS took, array_agg(CASE WHEN e.intent ->> 'cost' IS NOT NULL THEN least((e.intent ->> 'cost')::numeric, 4000000000000000000)::bigint END) AS costs,
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
