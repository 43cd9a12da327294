-- Tenants (products) and the keys their backends call with.
CREATE TABLE tenant (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    manifest    jsonb NOT NULL,
    -- SHA-256 of the manifest's canonical JSON: applying the same manifest twice changes nothing.
    digest      bytea NOT NULL,
    created_at  timestamptz NOT NULL,
    applied_at  timestamptz NOT NULL
);

CREATE TABLE api_key (
    id           uuid PRIMARY KEY,
    tenant_id    integer NOT NULL REFERENCES tenant (id),
    name         text NOT NULL,
    -- SHA-256 of the whole key. The key has 32 random characters, so a fast hash is enough: there is nothing to guess.
    hash         bytea NOT NULL UNIQUE,
    last_four    text NOT NULL,
    scopes       text[] NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    revoked_at   timestamptz,
    last_used_at timestamptz
);
CREATE INDEX api_key_tenant ON api_key (tenant_id);

ALTER TABLE tenant ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE api_key ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- The tenant of the transaction, set by `SET LOCAL offstage.tenant`. Unset or empty reads as no tenant at all, so a
-- statement that forgot to say whose it is sees nothing.
CREATE FUNCTION current_tenant() RETURNS integer
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT nullif(current_setting('offstage.tenant', true), '')::integer $$;

CREATE POLICY tenant_engine ON tenant TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY tenant_api ON tenant FOR SELECT TO offstage_api USING (id = current_tenant());
CREATE POLICY api_key_engine ON api_key TO offstage_engine USING (true) WITH CHECK (true);
-- No policy on api_key for the API: it reaches keys through the two functions below only.

GRANT SELECT, INSERT, UPDATE ON tenant, api_key TO offstage_engine;
GRANT SELECT ON tenant TO offstage_api;

-- Who calls? Answers for one hash, so the API's role can't list keys. Looks a key up before any tenant is known.
CREATE FUNCTION find_api_key(p_hash bytea)
    RETURNS TABLE (key_id uuid, tenant_id integer, tenant_name text, scopes text[], expires_at timestamptz, revoked_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT k.id, k.tenant_id, t.name, k.scopes, k.expires_at, k.revoked_at
        FROM api_key k JOIN tenant t ON t.id = k.tenant_id
        WHERE k.hash = p_hash
    $$;

-- Last use, to the minute: a busy key writes one row version a minute, not one a request.
CREATE FUNCTION touch_api_key(p_id uuid, p_now timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        UPDATE api_key SET last_used_at = p_now
        WHERE id = p_id AND (last_used_at IS NULL OR last_used_at < p_now - interval '1 minute')
    $$;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
ALTER FUNCTION find_api_key(bytea) OWNER TO offstage_engine;
ALTER FUNCTION touch_api_key(uuid, timestamptz) OWNER TO offstage_engine;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
REVOKE ALL ON FUNCTION find_api_key(bytea), touch_api_key(uuid, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_api_key(bytea), touch_api_key(uuid, timestamptz) TO offstage_api;
