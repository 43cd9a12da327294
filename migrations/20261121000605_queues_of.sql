-- The queues in which a tenant's jobs of a kind stand, one probe of the index each. Who reads such jobs in their order merges those of
-- each of its queues.
CREATE FUNCTION queues_of(p_tenant integer, p_kind text) RETURNS SETOF text LANGUAGE sql STABLE AS $$
    WITH RECURSIVE queues (queue) AS (
        (SELECT j.queue FROM job j WHERE j.tenant_id = p_tenant AND j.kind = p_kind ORDER BY j.queue LIMIT 1)
        UNION ALL
        SELECT n.queue FROM queues q CROSS JOIN LATERAL (
            SELECT j.queue FROM job j WHERE j.tenant_id = p_tenant AND j.kind = p_kind AND j.queue > q.queue ORDER BY j.queue LIMIT 1
        ) n
    )
    SELECT queue FROM queues
$$;
