-- Uniqueness: of jobs of one tenant, owner and kind that name the same key, one at a time is accepted: while it is unfinished, or for a
-- period. Who holds a key is looked up at the moment somebody else wants it, under the row's lock; no job's end writes here.
CREATE TABLE job_unique (
    tenant_id integer NOT NULL,
    owner     text NOT NULL,                    -- '' for none: a unique index takes no NULL for equal
    kind      text NOT NULL,
    key       text NOT NULL,
    job_id    uuid NOT NULL,                    -- who holds the key
    until     timestamptz,                      -- NULL: for as long as it has not ended
    PRIMARY KEY (tenant_id, owner, kind, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);

ALTER TABLE job_unique ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY job_unique_engine ON job_unique TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY job_unique_api ON job_unique TO offstage_api
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON job_unique TO offstage_engine;
GRANT SELECT ON job_unique TO offstage_api;

-- Whether a key is free to be taken from who holds it. Asked in a statement of its own after the row was locked: the snapshot of the
-- statement that waited for the lock may be older than the holder.
CREATE FUNCTION unique_is_free(p_holder uuid, p_until timestamptz, p_now timestamptz) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
        SELECT CASE WHEN p_until IS NULL THEN NOT EXISTS (SELECT FROM job_state s WHERE s.job_id = p_holder AND s.state < 3)
                    ELSE p_until <= p_now END
    $$;

-- As before, and what is new: unique keys. Who wants one that another holds inserts nothing and learns the holder (`winner_hash` is NULL
-- then: the bodies may differ). Its idempotency key leads to the holder from then on.
--
-- Keys are locked in one order by everybody: idempotency keys, then unique keys, each sorted. `NOT IN` and `(… IN …) IS TRUE` over an array
-- are hashed whatever the planner thinks of its length; joined by nested loops, 5,000 members would take a second.
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
    p_followed     boolean[],
    p_unique_keys  text[],
    p_unique_until timestamptz[]
) RETURNS TABLE (lost_id uuid, winner_id uuid, winner_hash bytea)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan SET lock_timeout = '4s'
    AS $$
DECLARE
    v_repeated uuid[] := '{}';  -- by their idempotency keys
    v_second   uuid[] := '{}';  -- by their unique keys
    v_taken    uuid[];
    v_found    bigint;
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
        SELECT coalesce(array_agg(e.id), '{}') INTO v_repeated
        FROM unnest(p_ids, p_keys) AS e (id, key)
        WHERE e.key IS NOT NULL AND e.id NOT IN (SELECT job_id FROM won);
    END IF;

    IF array_remove(p_unique_keys, NULL) <> '{}' THEN
        WITH fresh AS (
            INSERT INTO job_unique AS u (tenant_id, owner, kind, key, job_id, until)
            -- Of several in this batch the first stands for all.
            SELECT DISTINCT ON (tenant, coalesce(owner, ''), kind, key) tenant, coalesce(owner, ''), kind, key, id, until
            FROM unnest(p_ids, p_tenants, p_owners, p_kinds, p_unique_keys, p_unique_until) AS e (id, tenant, owner, kind, key, until)
            WHERE key IS NOT NULL AND e.id NOT IN (SELECT unnest(v_repeated))
            ORDER BY tenant, coalesce(owner, ''), kind, key, id
            -- Changes nothing, and locks: what is there stays in one hand until we are through.
            ON CONFLICT ON CONSTRAINT job_unique_pkey DO UPDATE SET job_id = u.job_id WHERE false
            RETURNING u.job_id
        )
        SELECT coalesce(array_agg(e.id), '{}') INTO v_second
        FROM unnest(p_ids, p_unique_keys) AS e (id, key)
        WHERE e.key IS NOT NULL AND e.id NOT IN (SELECT unnest(v_repeated))
          AND e.id NOT IN (SELECT job_id FROM fresh);

        IF v_second <> '{}' THEN
            WITH heir AS MATERIALIZED (
                SELECT DISTINCT ON (tenant, coalesce(owner, ''), kind, key) tenant, coalesce(owner, '') AS owner, kind, key, e.id, until
                FROM unnest(p_ids, p_tenants, p_owners, p_kinds, p_unique_keys, p_unique_until) AS e (id, tenant, owner, kind, key, until)
                WHERE (e.id IN (SELECT unnest(v_second))) IS TRUE
                ORDER BY tenant, coalesce(owner, ''), kind, key, e.id
            ), taken AS (
                UPDATE job_unique u SET job_id = h.id, until = h.until FROM heir h
                WHERE u.tenant_id = h.tenant AND u.owner = h.owner AND u.kind = h.kind AND u.key = h.key
                  -- Not from one of this very batch, which has no state yet.
                  AND u.job_id NOT IN (SELECT unnest(p_ids))
                  AND unique_is_free(u.job_id, u.until, p_now)
                RETURNING u.job_id
            )
            SELECT coalesce(array_agg(job_id), '{}') INTO v_taken FROM taken;
            SELECT coalesce(array_agg(s.id), '{}') INTO v_second
            FROM unnest(v_second) AS s (id) WHERE s.id NOT IN (SELECT unnest(v_taken));
        END IF;

        IF v_second <> '{}' THEN
            UPDATE idempotency_key k SET job_id = u.job_id
            FROM unnest(p_ids, p_tenants, p_owners, p_kinds, p_unique_keys, p_keys) AS e (id, tenant, owner, kind, key, again)
            JOIN job_unique u ON u.tenant_id = e.tenant AND u.owner = coalesce(e.owner, '') AND u.kind = e.kind AND u.key = e.key
            WHERE (e.id IN (SELECT unnest(v_second))) IS TRUE
              AND k.tenant_id = e.tenant AND k.owner = coalesce(e.owner, '') AND k.key = e.again AND k.job_id = e.id;
        END IF;
    END IF;

    WITH entry AS MATERIALIZED (
        SELECT *
        FROM unnest(p_ids, p_tenants, p_owners, p_subjects, p_kinds, p_queues, p_priorities, p_payloads, p_attempts, p_created_at,
                    p_run_at, p_start_by, p_states, p_reasons, p_options, p_followed)
             AS e (id, tenant, owner, subject, kind, queue, priority, payload, attempts, created_at, run_at, start_by, state, reason,
                   options, followed)
        WHERE e.id NOT IN (SELECT unnest(v_repeated))
          AND e.id NOT IN (SELECT unnest(v_second))
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

    IF EXISTS (SELECT FROM unnest(p_options) AS o (options) WHERE options LIKE '%"limit"%') THEN
        PERFORM limit_jobs(p_ids, p_now);
    END IF;

    IF v_repeated <> '{}' THEN
        RETURN QUERY
            SELECT e.id, k.job_id, k.body_hash
            FROM unnest(p_ids, p_tenants, p_owners, p_keys) AS e (id, tenant, owner, key)
            JOIN idempotency_key k ON k.tenant_id = e.tenant AND k.owner = coalesce(e.owner, '') AND k.key = e.key
            WHERE (e.id IN (SELECT unnest(v_repeated))) IS TRUE;
        GET DIAGNOSTICS v_found = ROW_COUNT;
        -- A winner's key that expired and was tidied away between the two statements: the batch is tried again as a whole,
        -- for a loser without a winner would look accepted.
        IF v_found < cardinality(v_repeated) THEN
            RAISE EXCEPTION 'an idempotency key expired while its winner was looked up' USING ERRCODE = 'serialization_failure';
        END IF;
    END IF;

    IF v_second <> '{}' THEN
        -- All of them are there: their rows are locked since they were found taken.
        RETURN QUERY
            SELECT e.id, u.job_id, NULL::bytea
            FROM unnest(p_ids, p_tenants, p_owners, p_kinds, p_unique_keys) AS e (id, tenant, owner, kind, key)
            JOIN job_unique u ON u.tenant_id = e.tenant AND u.owner = coalesce(e.owner, '') AND u.kind = e.kind AND u.key = e.key
            WHERE (e.id IN (SELECT unnest(v_second))) IS TRUE;
    END IF;
END
$$;

-- Before jobs run again that have ended: those that are unique while unfinished must hold their key again. Answers those that may not,
-- with who holds it. Of several with one key the first gets it. The caller holds the rows of their states.
CREATE FUNCTION hold_unique(p_jobs uuid[], p_now timestamptz) RETURNS TABLE (refused_id uuid, holder_id uuid)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM unnest(p_jobs) AS e (id) JOIN job j ON j.id = e.id WHERE j.options ? 'unique') THEN
        RETURN;
    END IF;
    -- Whether they are there or not: locked from here on.
    INSERT INTO job_unique AS u (tenant_id, owner, kind, key, job_id)
    SELECT DISTINCT ON (j.tenant_id, coalesce(j.owner, ''), j.kind, j.options #>> '{unique,key}')
           j.tenant_id, coalesce(j.owner, ''), j.kind, j.options #>> '{unique,key}', j.id
    FROM unnest(p_jobs) AS e (id) JOIN job j ON j.id = e.id
    WHERE j.options ? 'unique' AND NOT j.options -> 'unique' ? 'for_seconds' AND j.tenant_id = coalesce(current_tenant(), j.tenant_id)
    ORDER BY j.tenant_id, coalesce(j.owner, ''), j.kind, j.options #>> '{unique,key}', j.id
    ON CONFLICT ON CONSTRAINT job_unique_pkey DO UPDATE SET job_id = u.job_id WHERE false;

    UPDATE job_unique u SET job_id = h.id, until = NULL
    FROM (
        SELECT DISTINCT ON (j.tenant_id, coalesce(j.owner, ''), j.kind, j.options #>> '{unique,key}')
               j.tenant_id, coalesce(j.owner, '') AS owner, j.kind, j.options #>> '{unique,key}' AS key, j.id
        FROM unnest(p_jobs) AS e (id) JOIN job j ON j.id = e.id
        WHERE j.options ? 'unique' AND NOT j.options -> 'unique' ? 'for_seconds' AND j.tenant_id = coalesce(current_tenant(), j.tenant_id)
        ORDER BY j.tenant_id, coalesce(j.owner, ''), j.kind, j.options #>> '{unique,key}', j.id
    ) h
    WHERE u.tenant_id = h.tenant_id AND u.owner = h.owner AND u.kind = h.kind AND u.key = h.key AND u.job_id <> h.id
      AND unique_is_free(u.job_id, u.until, p_now);

    RETURN QUERY
        SELECT j.id, u.job_id
        FROM unnest(p_jobs) AS e (id) JOIN job j ON j.id = e.id
        JOIN job_unique u ON u.tenant_id = j.tenant_id AND u.owner = coalesce(j.owner, '') AND u.kind = j.kind
                         AND u.key = j.options #>> '{unique,key}'
        WHERE j.options ? 'unique' AND NOT j.options -> 'unique' ? 'for_seconds' AND u.job_id <> j.id;
END
$$;

-- Whether a job that has ended may run again as far as its unique key goes; by what stands now, to choose among many. Who runs it again
-- asks `hold_unique`, which is sure.
CREATE FUNCTION unique_may_run(p_job uuid, p_now timestamptz) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
        SELECT NOT EXISTS (
            SELECT FROM job j JOIN job_unique u ON u.tenant_id = j.tenant_id AND u.owner = coalesce(j.owner, '') AND u.kind = j.kind
                                               AND u.key = j.options #>> '{unique,key}'
            WHERE j.id = p_job AND j.options ? 'unique' AND NOT j.options -> 'unique' ? 'for_seconds'
              AND u.job_id <> j.id AND NOT unique_is_free(u.job_id, u.until, p_now))
    $$;

-- The form without unique keys was in no release.
DROP FUNCTION accept_jobs(timestamptz, uuid[], integer[], text[], text[], text[], text[], smallint[], text[], smallint[], timestamptz[],
    timestamptz[], timestamptz[], smallint[], smallint[], text[], bytea[], timestamptz[], text[], boolean[]);

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN
        SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname IN ('accept_jobs', 'hold_unique')
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO offstage_engine', function);
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', function);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO offstage_api, offstage_engine', function);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
