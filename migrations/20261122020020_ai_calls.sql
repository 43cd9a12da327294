-- Calls of models: one by one, and added up by day (R42, R46, R47).

CREATE TABLE ai_call (
    id            uuid PRIMARY KEY,             -- UUIDv7
    tenant_id     integer NOT NULL,
    job_id        uuid,                         -- NULL: made elsewhere, and told to us
    owner         text COLLATE "C",             -- the end user for whom; NULL: the backend's own
    step          text,                         -- of its job, by the key of its effect
    task          text,
    provider      text NOT NULL,
    model         text NOT NULL,
    credential    text NOT NULL,                -- product, user (a key that they brought), elsewhere
    outcome       text NOT NULL,                -- answered, or the error's code
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    estimated     boolean NOT NULL,             -- the provider did not say
    took_ms       bigint,
    cost          bigint,                       -- in millionths of the product's currency; NULL: nobody knows
    at            timestamptz NOT NULL,
    reported_id   text COLLATE "C"              -- of those made elsewhere, the teller's own
);
CREATE INDEX ai_call_of_tenant ON ai_call (tenant_id, at);
CREATE INDEX ai_call_of_owner ON ai_call (tenant_id, owner, at) WHERE owner IS NOT NULL;
CREATE INDEX ai_call_of_job ON ai_call (job_id) WHERE job_id IS NOT NULL;
CREATE UNIQUE INDEX ai_call_reported ON ai_call (tenant_id, reported_id) WHERE reported_id IS NOT NULL;
CREATE INDEX ai_call_age ON ai_call (at);

-- The same by day, for each user and ('') for the product: what is shown and exported is read here, however many calls there were.
CREATE TABLE ai_usage_day (
    tenant_id     integer NOT NULL,
    scope         text COLLATE "C" NOT NULL,
    day           date NOT NULL,                -- by the product's clocks
    provider      text COLLATE "C" NOT NULL,
    model         text COLLATE "C" NOT NULL,
    credential    text COLLATE "C" NOT NULL,
    calls         bigint NOT NULL,
    answered      bigint NOT NULL,
    estimated     bigint NOT NULL,              -- calls whose tokens are an estimate
    unpriced      bigint NOT NULL,              -- calls of which nobody knows what they cost
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cost          bigint NOT NULL,              -- of the others
    PRIMARY KEY (tenant_id, scope, day, provider, model, credential)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);

DO $$
DECLARE
    name text;
    owner_of text;
BEGIN
    FOREACH name IN ARRAY ARRAY['ai_call', 'ai_usage_day'] LOOP
        owner_of := CASE name WHEN 'ai_call' THEN 'owner' ELSE 'scope' END;
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()
                            AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = %I.tenant_id AND e.user_id = %I.%I))
                        WITH CHECK (tenant_id = current_tenant())', name || '_api', name, name, name, owner_of);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
        EXECUTE format('GRANT SELECT ON %I TO offstage_api', name);
    END LOOP;
END
$$;

-- Writes calls down, adds them to their days, and notes beside their jobs' reservations what they cost: all of it, or nothing. Those that were
-- told before (`p_reported`) count nothing; answers the ids of the others. `p_counts`: whether the product pays for it.
CREATE FUNCTION record_ai_calls(
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
           count(*) FILTER (WHERE estimated), count(*) FILTER (WHERE cost IS NULL), sum(input), sum(output), coalesce(sum(cost), 0)
    FROM unnest(p_ids, p_tenants, p_owners, p_providers, p_models, p_credentials, p_outcomes, p_input, p_output, p_estimated, p_costs, p_days)
         AS e (id, tenant, owner, provider, model, credential, outcome, input, output, estimated, cost, day)
    CROSS JOIN LATERAL (SELECT '' AS scope UNION ALL SELECT e.owner WHERE e.owner IS NOT NULL) s
    WHERE e.id IN (SELECT unnest(v_new))
    GROUP BY tenant, s.scope, day, provider, model, credential
    -- In one order for all, so that nobody waits crosswise.
    ORDER BY tenant, s.scope COLLATE "C", day, provider COLLATE "C", model COLLATE "C", credential COLLATE "C"
    ON CONFLICT (tenant_id, scope, day, provider, model, credential) DO UPDATE
        SET calls = d.calls + excluded.calls, answered = d.answered + excluded.answered, estimated = d.estimated + excluded.estimated,
            unpriced = d.unpriced + excluded.unpriced, input_tokens = d.input_tokens + excluded.input_tokens,
            output_tokens = d.output_tokens + excluded.output_tokens, cost = d.cost + excluded.cost;

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
        UPDATE usage_reservation r SET actual = coalesce(r.actual, 0) + h.cost FROM held h WHERE r.id = h.id;
    END IF;
    RETURN QUERY SELECT unnest(v_new);
END
$$;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname = 'record_ai_calls' LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO offstage_engine', function);
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', function);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO offstage_api, offstage_engine', function);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
