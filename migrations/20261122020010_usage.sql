-- Metering: how much of each metric was used, in each period, by each user and by a product as a whole (docs/usage.md, docs/adr/0010).
--
-- What holds, and is shown by the view `usage_drift`: a counter is the sum of what stands in `usage_reservation` and `usage_charge` for it.
--
-- Periods: 0 hour, 1 day, 2 month, 3 total. Scope: a user's name; '' is the product as a whole.

-- The one place where requests of one user meet: locked by key, in the order of the key, by whoever reserves or gives back. `used` has no
-- index, so that its updates stay heap-only.
CREATE TABLE usage_counter (
    tenant_id integer NOT NULL,
    scope     text COLLATE "C" NOT NULL,
    metric    text COLLATE "C" NOT NULL,
    period    smallint NOT NULL,
    starts_at timestamptz NOT NULL,             -- the epoch for `total`
    until     timestamptz NOT NULL,             -- the end of the month that it is in, some time after which it is forgotten; far off for totals
    used      bigint NOT NULL,
    PRIMARY KEY (tenant_id, scope, metric, period, starts_at)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX usage_counter_until ON usage_counter (until);

-- What jobs that have not ended may yet use: there from the commit that accepts a job to the one that ends it.
CREATE TABLE usage_reservation (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id      uuid NOT NULL,
    tenant_id   integer NOT NULL,
    scope       text COLLATE "C" NOT NULL,
    metric      text COLLATE "C" NOT NULL,
    amount      bigint NOT NULL,                -- the most that it may come to: what its counters hold for it
    actual      bigint,                         -- what is known to have been used
    incurred    boolean NOT NULL,               -- charged as used, however the job ends; otherwise as reserved, and only if it succeeds
    periods     smallint[] NOT NULL,            -- its counters
    starts      timestamptz[] NOT NULL,
    until       timestamptz NOT NULL,
    reserved_at timestamptz NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX usage_reservation_job ON usage_reservation (job_id);
-- For erasure, and for what a user has under way.
CREATE INDEX usage_reservation_scope ON usage_reservation (tenant_id, scope);

-- What was used. Of jobs that were charged nothing there is nothing.
CREATE TABLE usage_charge (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id     uuid,                            -- NULL: many small ones of an earlier time, carried over
    tenant_id  integer NOT NULL,
    scope      text COLLATE "C" NOT NULL,
    metric     text COLLATE "C" NOT NULL,
    amount     bigint NOT NULL,
    periods    smallint[] NOT NULL,
    starts     timestamptz[] NOT NULL,
    until      timestamptz NOT NULL,
    charged_at timestamptz NOT NULL
);
CREATE INDEX usage_charge_job ON usage_charge (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX usage_charge_scope ON usage_charge (tenant_id, scope, metric, until);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['usage_counter', 'usage_reservation', 'usage_charge'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        -- Of a user who is being erased nothing is shown.
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()
                            AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = %I.tenant_id AND e.user_id = %I.scope))
                        WITH CHECK (tenant_id = current_tenant())', name || '_api', name, name, name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
        EXECUTE format('GRANT SELECT ON %I TO offstage_api', name);
    END LOOP;
END
$$;

-- Which plan each user is on, and whether a request was accepted before under its idempotency key or its unique key: what must be known
-- before anything is reserved. `position` is the request's place, from 1.
CREATE FUNCTION before_usage(p_now timestamptz, p_tenants integer[], p_owners text[], p_kinds text[], p_keys text[], p_unique_keys text[])
    RETURNS TABLE (place bigint, plan text, add_ons text[], is_repeat boolean)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
        SELECT e.place, u.plan, u.add_ons,
               EXISTS (SELECT FROM idempotency_key k
                       WHERE k.tenant_id = e.tenant AND k.owner = coalesce(e.owner, '') AND k.key = e.key AND k.expires_at > p_now)
               OR EXISTS (SELECT FROM job_unique q
                          WHERE q.tenant_id = e.tenant AND q.owner = coalesce(e.owner, '') AND q.kind = e.kind AND q.key = e.unique_key
                            AND NOT unique_is_free(q.job_id, q.until, p_now))
        FROM unnest(p_tenants, p_owners, p_kinds, p_keys, p_unique_keys) WITH ORDINALITY AS e (tenant, owner, kind, key, unique_key, place)
        LEFT JOIN end_user u ON u.tenant_id = e.tenant AND u.id = e.owner
        ORDER BY e.place
    $$;

-- Reserves what jobs may use, each wholly or not at all, in the order in which they stand: who comes first gets what is left. A line is one
-- counter of one job; the lines of a job stand together. `p_limits` below 0: none. Answers the lines that were over their limits, with
-- what is used there; the first of each job.
--
-- All counters are locked in the order of their keys before the first is looked at, so that no two callers wait for each other crosswise,
-- and so that one statement admits as many as there are, however many race.
CREATE FUNCTION reserve_usage(
    p_now      timestamptz,
    p_jobs     uuid[],
    p_tenants  integer[],
    p_scopes   text[],
    p_metrics  text[],
    p_amounts  bigint[],
    p_incurred boolean[],
    p_periods  smallint[],
    p_starts   timestamptz[],
    p_untils   timestamptz[],
    p_limits   bigint[]
) RETURNS TABLE (refused_line integer, refused_used bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off SET lock_timeout = '4s'
    AS $$
DECLARE
    v_counter  integer[];   -- of each line: the place of its counter
    v_counters integer;
    v_used     bigint[];    -- of each counter
    v_before   bigint[];
    v_admitted boolean[];   -- of each line
    v_lines    integer := coalesce(cardinality(p_jobs), 0);
    v_line     integer := 1;
    v_last     integer;
    v_over     integer;
BEGIN
    IF v_lines = 0 THEN
        RETURN;
    END IF;
    INSERT INTO usage_counter (tenant_id, scope, metric, period, starts_at, until, used)
    SELECT tenant, scope, metric, period, starts, max(until), 0
    FROM unnest(p_tenants, p_scopes, p_metrics, p_periods, p_starts, p_untils) AS e (tenant, scope, metric, period, starts, until)
    GROUP BY tenant, scope, metric, period, starts
    ORDER BY tenant, scope COLLATE "C", metric COLLATE "C", period, starts
    ON CONFLICT DO NOTHING;

    -- The place of each line's counter in the order of the keys. By rank and not by a join: of nested loops over 512 lines that was most of all
    -- (measured: 63 of 99 ms).
    SELECT array_agg(counter ORDER BY line), max(counter) INTO v_counter, v_counters
    FROM (
        SELECT line, dense_rank() OVER (ORDER BY tenant, scope COLLATE "C", metric COLLATE "C", period, starts)::integer AS counter
        FROM unnest(p_tenants, p_scopes, p_metrics, p_periods, p_starts) WITH ORDINALITY AS e (tenant, scope, metric, period, starts, line)
    ) ranked;

    -- Locked in that order, and read as they stand once they are locked.
    WITH wanted AS MATERIALIZED (
        SELECT DISTINCT tenant, scope, metric, period, starts
        FROM unnest(p_tenants, p_scopes, p_metrics, p_periods, p_starts) AS e (tenant, scope, metric, period, starts)
    ), locked AS MATERIALIZED (
        SELECT c.tenant_id, c.scope, c.metric, c.period, c.starts_at, c.used
        FROM wanted w
        JOIN usage_counter c ON c.tenant_id = w.tenant AND c.scope = w.scope AND c.metric = w.metric AND c.period = w.period
                            AND c.starts_at = w.starts
        ORDER BY c.tenant_id, c.scope, c.metric, c.period, c.starts_at
        FOR UPDATE OF c
    )
    SELECT array_agg(l.used ORDER BY l.tenant_id, l.scope, l.metric, l.period, l.starts_at) INTO v_used FROM locked l;
    -- A counter that was forgotten between the two statements; the caller tries again.
    IF cardinality(v_used) IS DISTINCT FROM v_counters THEN
        RAISE EXCEPTION 'a counter went while it was reserved from' USING ERRCODE = 'serialization_failure';
    END IF;
    v_before := v_used;
    v_admitted := array_fill(true, ARRAY[v_lines]);

    WHILE v_line <= v_lines LOOP
        v_last := v_line;
        v_over := NULL;
        LOOP
            IF v_over IS NULL AND p_limits[v_last] >= 0 AND v_used[v_counter[v_last]] + p_amounts[v_last] > p_limits[v_last] THEN
                v_over := v_last;
            END IF;
            EXIT WHEN v_last = v_lines OR p_jobs[v_last + 1] <> p_jobs[v_last];
            v_last := v_last + 1;
        END LOOP;
        FOR i IN v_line .. v_last LOOP
            IF v_over IS NULL THEN
                v_used[v_counter[i]] := v_used[v_counter[i]] + p_amounts[i];
            ELSE
                v_admitted[i] := false;
            END IF;
        END LOOP;
        IF v_over IS NOT NULL THEN
            refused_line := v_over;
            refused_used := v_used[v_counter[v_over]];
            RETURN NEXT;
        END IF;
        v_line := v_last + 1;
    END LOOP;

    UPDATE usage_counter c SET used = n.used
    FROM (
        SELECT DISTINCT e.tenant, e.scope, e.metric, e.period, e.starts, v_used[e.counter] AS used
        FROM unnest(p_tenants, p_scopes, p_metrics, p_periods, p_starts, v_counter) AS e (tenant, scope, metric, period, starts, counter)
        WHERE v_used[e.counter] <> v_before[e.counter]
    ) n
    WHERE c.tenant_id = n.tenant AND c.scope = n.scope AND c.metric = n.metric AND c.period = n.period AND c.starts_at = n.starts;

    INSERT INTO usage_reservation (job_id, tenant_id, scope, metric, amount, incurred, periods, starts, until, reserved_at)
    SELECT job, tenant, scope, metric, max(amount), bool_or(incurred), array_agg(period ORDER BY line), array_agg(starts ORDER BY line),
           min(until), p_now
    FROM unnest(p_jobs, p_tenants, p_scopes, p_metrics, p_amounts, p_incurred, p_periods, p_starts, p_untils, v_admitted) WITH ORDINALITY
         AS e (job, tenant, scope, metric, amount, incurred, period, starts, until, admitted, line)
    WHERE admitted
    GROUP BY job, tenant, scope, metric
    ORDER BY min(line);
END
$$;

-- Ends the reservations of those of some jobs that have ended, or are gone: what was used becomes a charge, and the rest is given back. Called
-- in the transaction that ends them, behind the statement that did; what nobody ended so is found by the sweep. Answers how many.
CREATE FUNCTION settle_usage(p_jobs uuid[], p_now timestamptz) RETURNS bigint
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

-- Forgets counters and charges whose months were over before a time, some at a time: all of one counter with it, so that nothing is out
-- of balance in between. What counts in a total is carried over. Answers how many rows.
CREATE FUNCTION forget_usage(p_before timestamptz, p_limit bigint) RETURNS bigint
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
            SELECT v_scope.tenant_id, v_scope.scope, v_scope.metric, sum(g.amount), '{3}', ARRAY['epoch'::timestamptz], 'infinity', max(g.charged_at)
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

-- Counters that are not what they must be: none, ever. What is carried over and what is forgotten keeps it so.
CREATE VIEW usage_drift WITH (security_invoker = true) AS
    WITH held AS (
        SELECT e.tenant_id, e.scope, e.metric, p.period, p.starts AS starts_at, sum(e.amount)::bigint AS amount
        FROM (SELECT tenant_id, scope, metric, amount, periods, starts FROM usage_reservation
              UNION ALL SELECT tenant_id, scope, metric, amount, periods, starts FROM usage_charge) e
        CROSS JOIN LATERAL unnest(e.periods, e.starts) AS p (period, starts)
        GROUP BY e.tenant_id, e.scope, e.metric, p.period, p.starts
    )
    SELECT tenant_id, scope, metric, period, starts_at, coalesce(c.used, 0) AS counted, coalesce(h.amount, 0) AS held
    FROM usage_counter c FULL JOIN held h USING (tenant_id, scope, metric, period, starts_at)
    WHERE coalesce(c.used, 0) <> coalesce(h.amount, 0);
GRANT SELECT ON usage_drift TO offstage_api, offstage_engine;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND proname IN ('before_usage', 'reserve_usage', 'settle_usage', 'forget_usage')
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO offstage_engine', function);
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', function);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO offstage_api, offstage_engine', function);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
