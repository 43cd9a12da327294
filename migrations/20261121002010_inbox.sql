-- The inbox: what is put away, and in which order notifications came to be there.
ALTER TABLE notification
    ADD COLUMN archived_at timestamptz,
    -- The transaction that wrote it. Times of writing are not the order of becoming visible, nor is this; but who knows the oldest
    -- transaction under way knows that nothing comes below it any more. NULL in rows from before there was a stream.
    ADD COLUMN position bigint;
ALTER TABLE notification ALTER COLUMN position SET DEFAULT (pg_current_xact_id()::text::bigint);
GRANT UPDATE (archived_at) ON notification TO offstage_api;

-- What some tenants' users were told by transactions after `p_after`. The API's streams read this once for all who listen, and row-level
-- security shows one tenant a transaction.
CREATE FUNCTION notifications_after(p_after bigint, p_tenants integer[], p_most integer)
    RETURNS TABLE (id uuid, tenant_id integer, owner text, "position" bigint, type text, title text, message text, data jsonb,
                   read_at timestamptz, clicked_at timestamptz, archived_at timestamptz, created_at timestamptz)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    -- A plan for any `p_after` would expect a third of the table, and start workers for it: 12 ms rather than 0.1.
    SET plan_cache_mode = force_custom_plan SET max_parallel_workers_per_gather = 0 SET jit = off SET enable_seqscan = off
    AS $$
BEGIN
    RETURN QUERY
        SELECT n.id, n.tenant_id, n.owner, n.position, n.type, n.title, n.message, n.data, n.read_at, n.clicked_at, n.archived_at, n.created_at
        FROM notification n
        WHERE n.position > p_after AND n.tenant_id = ANY (p_tenants)
          AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = n.tenant_id AND e.user_id = n.owner)
        ORDER BY n.position, n.id LIMIT p_most;
END
$$;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
ALTER FUNCTION notifications_after(bigint, integer[], integer) OWNER TO offstage_engine;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
REVOKE ALL ON FUNCTION notifications_after(bigint, integer[], integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION notifications_after(bigint, integer[], integer) TO offstage_api;
