-- What a job may carry beside its payload (`shared/src/job/options.rs`): a key that limits it, what follows its end. NULL for
-- most jobs, and then nothing below costs them anything.
ALTER TABLE job
    ADD COLUMN options  jsonb,
    -- Its end is of interest to somebody: it leaves a row in `job_ended`.
    ADD COLUMN followed boolean NOT NULL DEFAULT false;

-- Ends that somebody has to act upon: written by the statement that ends the job, taken by `ledger::ended` in the transaction
-- that acts. So what follows an end happens once, whatever crashes. A job that was redriven ends again, with a higher version.
CREATE TABLE job_ended (
    job_id    uuid NOT NULL,
    version   integer NOT NULL,
    tenant_id integer NOT NULL,
    state     smallint NOT NULL,
    ended_at  timestamptz NOT NULL,
    PRIMARY KEY (job_id, version)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);

-- Keys by which jobs are limited: how many of them run at a time, how many start in a time. The newest job's word counts.
CREATE TABLE limit_key (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id  integer NOT NULL,
    name       text NOT NULL,
    running    integer,                         -- NULL: any number
    rate_jobs  integer,                         -- so many starts ...
    rate_seconds double precision,              -- ... in so many seconds; NULL: any rate
    rate_burst integer,                         -- starts at once after a pause
    -- When the next start is due if all goes evenly (GCRA's theoretical arrival time), by Postgres' clock.
    next_start timestamptz NOT NULL DEFAULT '-infinity',
    -- When somebody should look whether jobs of this key may go on, by business time; never while nothing can have changed.
    look_at    timestamptz NOT NULL DEFAULT 'infinity',
    used_at    timestamptz NOT NULL,
    UNIQUE (tenant_id, name)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX limit_key_look ON limit_key (look_at) WHERE look_at < 'infinity';

-- Jobs that have a limiting key, from acceptance to their end, but while a switch or a pause holds them. Those admitted may be dispatched: they are
-- queued, running, or due in the backlog. The others stand in the backlog too, never due.
CREATE TABLE job_limited (
    job_id    uuid PRIMARY KEY,
    key_id    bigint NOT NULL,
    tenant_id integer NOT NULL,
    admitted  boolean NOT NULL,
    run_at    timestamptz NOT NULL,
    -- Its place: when it was due, and half a minute later for each priority below high, so that low is not starved.
    turn_at   timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX job_limited_turn ON job_limited (key_id, admitted, turn_at, job_id);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['job_ended', 'limit_key', 'job_limited'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())',
                       name || '_api', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
    END LOOP;
END
$$;
GRANT SELECT ON limit_key, job_limited TO offstage_api; -- to explain what a job waits for

-- Puts those of some jobs that wait and have a limiting key behind that key: whoever makes jobs wait calls this in the same
-- transaction. A job that a switch or a pause holds stands behind its key once it is released.
CREATE FUNCTION limit_jobs(p_jobs uuid[], p_now timestamptz) RETURNS void
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
        WHERE j.options ? 'limit' AND s.state = 0 AND s.reason NOT IN (5, 7) AND j.tenant_id = coalesce(current_tenant(), j.tenant_id)
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

-- What the end, or the putting off, of some jobs means to others: a limiting key has room again, and whoever follows them is told.
-- Whoever takes jobs out of `queued` and `running` calls this in the same transaction, behind the statement that did.
CREATE FUNCTION leave_jobs(p_jobs uuid[], p_now timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
BEGIN
    INSERT INTO job_ended (job_id, version, tenant_id, state, ended_at)
    SELECT s.job_id, s.version, s.tenant_id, s.state, coalesce(s.finished_at, p_now)
    FROM unnest(p_jobs) AS e (id) JOIN job j ON j.id = e.id JOIN job_state s ON s.job_id = e.id
    WHERE j.followed AND s.state > 2 AND j.tenant_id = coalesce(current_tenant(), j.tenant_id)
    ON CONFLICT DO NOTHING;

    WITH gone AS (
        DELETE FROM job_limited l USING unnest(p_jobs) AS e (id), job_state s
        WHERE l.job_id = e.id AND s.job_id = e.id AND s.state NOT IN (1, 2) AND l.tenant_id = coalesce(current_tenant(), l.tenant_id)
        RETURNING l.key_id
    ), keys AS MATERIALIZED (
        SELECT k.id FROM limit_key k WHERE k.id IN (SELECT key_id FROM gone) ORDER BY k.id FOR UPDATE
    )
    UPDATE limit_key k SET look_at = least(k.look_at, p_now) FROM keys WHERE k.id = keys.id;

    PERFORM limit_jobs(p_jobs, p_now);
END
$$;

-- As before, and what is new: jobs carry options.
CREATE FUNCTION accept_jobs(
    p_now          timestamptz,
    p_ids          uuid[],
    p_tenants      integer[],
    p_owners       text[],
    p_subjects     text[],
    p_kinds        text[],
    p_queues       text[],
    p_priorities   smallint[],
    p_payloads     text[],
    p_attempts     smallint[],
    p_created_at   timestamptz[],
    p_run_at       timestamptz[],
    p_start_by     timestamptz[],
    p_states       smallint[],
    p_reasons      smallint[],
    p_keys         text[],
    p_key_hashes   bytea[],
    p_key_expiries timestamptz[],
    p_options      text[],
    p_followed     boolean[]
) RETURNS TABLE (lost_id uuid, winner_id uuid, winner_hash bytea)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan SET lock_timeout = '4s'
    AS $$
DECLARE
    v_lost  uuid[] := '{}';
    v_found bigint;
BEGIN
    IF array_remove(p_keys, NULL) <> '{}' THEN
        WITH won AS (
            INSERT INTO idempotency_key AS k (tenant_id, owner, key, job_id, body_hash, expires_at)
            SELECT tenant, coalesce(owner, ''), key, id, hash, expiry
            FROM unnest(p_ids, p_tenants, p_owners, p_keys, p_key_hashes, p_key_expiries) AS e (id, tenant, owner, key, hash, expiry)
            WHERE key IS NOT NULL
            ORDER BY tenant, owner, key
            ON CONFLICT ON CONSTRAINT idempotency_key_pkey DO UPDATE
                SET job_id = excluded.job_id, body_hash = excluded.body_hash, expires_at = excluded.expires_at
                WHERE k.expires_at <= p_now
            RETURNING k.job_id
        )
        SELECT coalesce(array_agg(e.id), '{}') INTO v_lost
        FROM unnest(p_ids, p_keys) AS e (id, key)
        WHERE e.key IS NOT NULL AND NOT EXISTS (SELECT 1 FROM won WHERE won.job_id = e.id);
    END IF;

    WITH entry AS MATERIALIZED (
        SELECT *
        FROM unnest(p_ids, p_tenants, p_owners, p_subjects, p_kinds, p_queues, p_priorities, p_payloads, p_attempts, p_created_at,
                    p_run_at, p_start_by, p_states, p_reasons, p_options, p_followed)
             AS e (id, tenant, owner, subject, kind, queue, priority, payload, attempts, created_at, run_at, start_by, state, reason,
                   options, followed)
        WHERE id <> ALL (v_lost)
    ), kept AS (
        INSERT INTO job (id, tenant_id, priority, max_attempts, created_at, start_by, kind, queue, owner, subject, payload, options, followed)
        SELECT id, tenant, priority, attempts, created_at, start_by, kind, queue, owner, subject, payload::jsonb, options::jsonb, followed
        FROM entry
    ), hot AS (
        INSERT INTO job_state (job_id, tenant_id, run_at, changed_at, state, reason, attempts_allowed)
        SELECT id, tenant, run_at, created_at, state, reason, attempts FROM entry
    ), backlog AS (
        INSERT INTO job_waiting (job_id, tenant_id, run_at, priority, reason, queue)
        SELECT id, tenant, run_at, priority, reason, queue FROM entry WHERE state = 0
    )
    INSERT INTO job_dispatched (job_id, tenant_id, dispatched_at, priority, queue)
    SELECT id, tenant, now(), priority, queue FROM entry WHERE state = 1;

    IF array_remove(p_options, NULL) <> '{}' THEN
        PERFORM limit_jobs(p_ids, p_now);
    END IF;

    IF v_lost <> '{}' THEN
        RETURN QUERY
            SELECT e.id, k.job_id, k.body_hash
            FROM unnest(p_ids, p_tenants, p_owners, p_keys) AS e (id, tenant, owner, key)
            JOIN idempotency_key k ON k.tenant_id = e.tenant AND k.owner = coalesce(e.owner, '') AND k.key = e.key
            WHERE e.id = ANY (v_lost);
        GET DIAGNOSTICS v_found = ROW_COUNT;
        -- A winner's key that expired and was tidied away between the two statements: the batch is tried again as a whole,
        -- for a loser without a winner would look accepted.
        IF v_found < cardinality(v_lost) THEN
            RAISE EXCEPTION 'an idempotency key expired while its winner was looked up' USING ERRCODE = 'serialization_failure';
        END IF;
    END IF;
END
$$;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND proname IN ('accept_jobs', 'limit_jobs', 'leave_jobs')
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO offstage_engine', function);
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', function);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO offstage_api, offstage_engine', function);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
