-- Which users have a key of their own for a provider: what they pay themselves is not reserved. Of each place asked about, so that one
-- statement answers for a batch of many tenants.
CREATE FUNCTION have_own_keys(p_tenants integer[], p_users text[], p_providers text[]) RETURNS TABLE (place bigint, has_key boolean)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
        SELECT e.place, EXISTS (SELECT FROM own_key k WHERE k.tenant_id = e.tenant AND k.user_id = e.name AND k.provider = e.provider)
        FROM unnest(p_tenants, p_users, p_providers) WITH ORDINALITY AS e (tenant, name, provider, place)
        ORDER BY e.place
    $$;
-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
ALTER FUNCTION have_own_keys(integer[], text[], text[]) OWNER TO offstage_engine;
REVOKE ALL ON FUNCTION have_own_keys(integer[], text[], text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION have_own_keys(integer[], text[], text[]) TO offstage_api, offstage_engine;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
