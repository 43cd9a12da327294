-- Accepts a batch of jobs of several tenants in one statement: what concurrent requests share (group commit).
-- SECURITY DEFINER, as the engine: row-level security knows one tenant a transaction, a batch has many. The API passes
-- the tenant that it authenticated for each member.
--
-- The caller has sorted the batch by key and removed repeats of one key within it (ON CONFLICT can't touch a row twice).
-- Keys are taken first; who loses inserts nothing and learns the winner's job and body hash, read in a second statement
-- because the first one's snapshot can't see a row that another transaction committed meanwhile. An expired key is free.
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
    p_key_expiries timestamptz[]
) RETURNS TABLE (lost_id uuid, winner_id uuid, winner_hash bytea)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
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
                    p_run_at, p_start_by, p_states, p_reasons)
             AS e (id, tenant, owner, subject, kind, queue, priority, payload, attempts, created_at, run_at, start_by, state, reason)
        WHERE id <> ALL (v_lost)
    ), kept AS (
        INSERT INTO job (id, tenant_id, priority, max_attempts, created_at, start_by, kind, queue, owner, subject, payload)
        SELECT id, tenant, priority, attempts, created_at, start_by, kind, queue, owner, subject, payload::jsonb FROM entry
    ), hot AS (
        INSERT INTO job_state (job_id, tenant_id, run_at, changed_at, state, reason, attempts_allowed)
        SELECT id, tenant, run_at, created_at, state, reason, attempts FROM entry
    ), backlog AS (
        INSERT INTO job_waiting (job_id, tenant_id, run_at, priority, reason, queue)
        SELECT id, tenant, run_at, priority, reason, queue FROM entry WHERE state = 0
    )
    INSERT INTO job_dispatched (job_id, tenant_id, dispatched_at, priority, queue)
    SELECT id, tenant, now(), priority, queue FROM entry WHERE state = 1;

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
ALTER FUNCTION accept_jobs(timestamptz, uuid[], integer[], text[], text[], text[], text[], smallint[], text[], smallint[], timestamptz[],
    timestamptz[], timestamptz[], smallint[], smallint[], text[], bytea[], timestamptz[]) OWNER TO offstage_engine;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
REVOKE ALL ON FUNCTION accept_jobs(timestamptz, uuid[], integer[], text[], text[], text[], text[], smallint[], text[], smallint[], timestamptz[],
    timestamptz[], timestamptz[], smallint[], smallint[], text[], bytea[], timestamptz[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accept_jobs(timestamptz, uuid[], integer[], text[], text[], text[], text[], smallint[], text[], smallint[], timestamptz[],
    timestamptz[], timestamptz[], smallint[], smallint[], text[], bytea[], timestamptz[]) TO offstage_api;
