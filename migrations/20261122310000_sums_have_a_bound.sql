-- No sum of what was used can be more than a bigint holds, whatever a provider or a manifest says: a settle that the database refuses for it
-- would be tried for ever. What would be more than 4000000000000000000, of whatever unit, counts as that much; so one more can still be added.

-- As before, within that bound.
CREATE OR REPLACE FUNCTION record_ai_calls(
    p_ids uuid[], p_tenants integer[], p_jobs uuid[], p_owners text[], p_steps text[], p_tasks text[], p_providers text[], p_models text[],
    p_credentials text[], p_outcomes text[], p_input bigint[], p_output bigint[], p_estimated boolean[], p_took bigint[], p_costs bigint[],
    p_at timestamptz[], p_days date[], p_reported text[], p_counts boolean[]
) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off SET lock_timeout = '4s'
    AS $$
DECLARE
    v_new uuid[];
BEGIN
    WITH written AS (
        INSERT INTO ai_call (id, tenant_id, job_id, owner, step, task, provider, model, credential, outcome, input_tokens, output_tokens,
                             estimated, took_ms, cost, at, reported_id)
        SELECT id, tenant, job, owner, step, task, provider, model, credential, outcome, input, output, estimated, took, cost, at, reported
        FROM unnest(p_ids, p_tenants, p_jobs, p_owners, p_steps, p_tasks, p_providers, p_models, p_credentials, p_outcomes, p_input, p_output,
                    p_estimated, p_took, p_costs, p_at, p_reported)
             AS e (id, tenant, job, owner, step, task, provider, model, credential, outcome, input, output, estimated, took, cost, at, reported)
        ORDER BY tenant, reported COLLATE "C", id
        ON CONFLICT DO NOTHING
        RETURNING id
    )
    SELECT coalesce(array_agg(id), '{}') INTO v_new FROM written;

    INSERT INTO ai_usage_day AS d (tenant_id, scope, day, provider, model, credential, calls, answered, estimated, unpriced, input_tokens,
                                   output_tokens, cost)
    SELECT tenant, s.scope, day, provider, model, credential, count(*), count(*) FILTER (WHERE outcome = 'answered'),
           count(*) FILTER (WHERE estimated), count(*) FILTER (WHERE cost IS NULL),
           least(sum(input), 4000000000000000000), least(sum(output), 4000000000000000000), least(coalesce(sum(cost), 0), 4000000000000000000)
    FROM unnest(p_ids, p_tenants, p_owners, p_providers, p_models, p_credentials, p_outcomes, p_input, p_output, p_estimated, p_costs, p_days)
         AS e (id, tenant, owner, provider, model, credential, outcome, input, output, estimated, cost, day)
    CROSS JOIN LATERAL (SELECT '' AS scope UNION ALL SELECT e.owner WHERE e.owner IS NOT NULL) s
    WHERE e.id IN (SELECT unnest(v_new))
    GROUP BY tenant, s.scope, day, provider, model, credential
    -- In one order for all, so that nobody waits crosswise.
    ORDER BY tenant, s.scope COLLATE "C", day, provider COLLATE "C", model COLLATE "C", credential COLLATE "C"
    ON CONFLICT (tenant_id, scope, day, provider, model, credential) DO UPDATE
        SET calls = d.calls + excluded.calls, answered = d.answered + excluded.answered, estimated = d.estimated + excluded.estimated,
            unpriced = d.unpriced + excluded.unpriced,
            input_tokens = least(d.input_tokens::numeric + excluded.input_tokens, 4000000000000000000),
            output_tokens = least(d.output_tokens::numeric + excluded.output_tokens, 4000000000000000000),
            cost = least(d.cost::numeric + excluded.cost, 4000000000000000000);

    IF EXISTS (SELECT FROM unnest(p_jobs, p_counts, p_costs) AS e (job, counts, cost) WHERE job IS NOT NULL AND counts AND cost > 0) THEN
        WITH spent AS MATERIALIZED (
            SELECT job, sum(cost) AS cost FROM unnest(p_ids, p_jobs, p_counts, p_costs) AS e (id, job, counts, cost)
            WHERE job IS NOT NULL AND counts AND cost > 0 AND id IN (SELECT unnest(v_new)) GROUP BY job
        ), held AS MATERIALIZED (
            -- Of several reservations of one scope the newest: their sum is what counts.
            SELECT r.id, s.cost FROM spent s
            CROSS JOIN LATERAL (
                SELECT DISTINCT ON (q.scope) q.id FROM usage_reservation q
                WHERE q.job_id = s.job AND q.metric = 'ai_cost' ORDER BY q.scope, q.id DESC
            ) r
            ORDER BY r.id
        )
        UPDATE usage_reservation r SET actual = least(coalesce(r.actual, 0) + h.cost, 4000000000000000000) FROM held h WHERE r.id = h.id;
    END IF;
    RETURN QUERY SELECT unnest(v_new);
END
$$;

-- As before, within that bound.
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
           array_agg(true) AS estimated, array_agg(NULL::bigint) AS took, array_agg(least((e.intent ->> 'cost')::numeric, 4000000000000000000)::bigint) AS costs,
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

-- As before, within that bound.
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
        SELECT e.*, least(4000000000000000000, CASE WHEN e.incurred THEN coalesce(e.actual, 0)
                         WHEN EXISTS (SELECT FROM job_state s WHERE s.job_id = e.job_id AND s.state = 3) THEN coalesce(e.actual, e.amount)
                         ELSE 0 END) AS due
        FROM ended e
    ), charged AS (
        INSERT INTO usage_charge (job_id, tenant_id, scope, metric, amount, periods, starts, until, charged_at)
        SELECT job_id, tenant_id, scope, metric, due, periods, starts, until, p_now FROM final WHERE due <> 0
    ), back AS (
        SELECT f.tenant_id, f.scope, f.metric, p.period, p.starts, sum(f.due::numeric - f.amount) AS change
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
        UPDATE usage_counter c SET used = least(c.used + b.change, 4000000000000000000)
        FROM jsonb_to_recordset(v_back)
             AS b (tenant_id integer, scope text, metric text, period smallint, starts timestamptz, change numeric)
        WHERE c.tenant_id = b.tenant_id AND c.scope = b.scope AND c.metric = b.metric AND c.period = b.period AND c.starts_at = b.starts;
    END IF;
    RETURN v_ended;
END
$$;

-- As before, within that bound.
CREATE OR REPLACE FUNCTION forget_usage(p_before timestamptz, p_limit bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
DECLARE
    v_rows   bigint := 0;
    v_count  bigint;
    v_scope  record;
BEGIN
    -- By user and metric: what they used then counts in no other counters, but in totals.
    FOR v_scope IN
        SELECT DISTINCT tenant_id, scope, metric FROM (
            SELECT tenant_id, scope, metric FROM usage_counter WHERE until < p_before ORDER BY until LIMIT p_limit
        ) c ORDER BY tenant_id, scope, metric
    LOOP
        -- One that is still reserved from waits for its job.
        CONTINUE WHEN EXISTS (SELECT FROM usage_reservation r
                              WHERE r.tenant_id = v_scope.tenant_id AND r.scope = v_scope.scope AND r.metric = v_scope.metric AND r.until < p_before);
        WITH gone AS (
            DELETE FROM usage_charge c
            WHERE c.tenant_id = v_scope.tenant_id AND c.scope = v_scope.scope AND c.metric = v_scope.metric AND c.until < p_before
            RETURNING c.amount, c.periods, c.charged_at
        ), carried AS (
            INSERT INTO usage_charge (tenant_id, scope, metric, amount, periods, starts, until, charged_at)
            SELECT v_scope.tenant_id, v_scope.scope, v_scope.metric, least(sum(g.amount), 4000000000000000000), '{3}', ARRAY['epoch'::timestamptz], 'infinity', max(g.charged_at)
            FROM gone g WHERE 3 = ANY (g.periods) HAVING sum(g.amount) <> 0
        )
        SELECT count(*) INTO v_count FROM gone;
        v_rows := v_rows + v_count;
        DELETE FROM usage_counter c
        WHERE c.tenant_id = v_scope.tenant_id AND c.scope = v_scope.scope AND c.metric = v_scope.metric AND c.until < p_before;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        v_rows := v_rows + v_count;
    END LOOP;
    RETURN v_rows;
END
$$;

-- As before, within that bound.
CREATE OR REPLACE VIEW usage_drift WITH (security_invoker = true) AS
    WITH held AS (
        SELECT e.tenant_id, e.scope, e.metric, p.period, p.starts AS starts_at, least(sum(e.amount), 4000000000000000000)::bigint AS amount
        FROM (SELECT tenant_id, scope, metric, amount, periods, starts FROM usage_reservation
              UNION ALL SELECT tenant_id, scope, metric, amount, periods, starts FROM usage_charge) e
        CROSS JOIN LATERAL unnest(e.periods, e.starts) AS p (period, starts)
        GROUP BY e.tenant_id, e.scope, e.metric, p.period, p.starts
    )
    SELECT tenant_id, scope, metric, period, starts_at, coalesce(c.used, 0) AS counted, coalesce(h.amount, 0) AS held
    FROM usage_counter c FULL JOIN held h USING (tenant_id, scope, metric, period, starts_at)
    WHERE coalesce(c.used, 0) <> coalesce(h.amount, 0);
