-- Whom no mail is sent to any more: mailboxes that are gone, people who complained or unsubscribed. Of an address stands here a hash under
-- a key that is not in the database: a copy of it tells nobody's address, and nobody can try addresses against it.
CREATE TABLE suppression (
    id           uuid PRIMARY KEY,
    tenant_id    integer NOT NULL,
    address_hash bytea NOT NULL,                -- HMAC-SHA256 of tenant and normalised address
    category     text NOT NULL,                 -- '' is every category
    reason       text NOT NULL CHECK (reason IN ('bounce', 'complaint', 'unsubscribe', 'manual')),
    detail       text,                          -- what was said, without addresses
    created_at   timestamptz NOT NULL
);
CREATE UNIQUE INDEX suppression_address ON suppression (tenant_id, address_hash, category);

ALTER TABLE suppression ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY suppression_engine ON suppression TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY suppression_api ON suppression TO offstage_api
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON suppression TO offstage_engine;
GRANT SELECT, INSERT, DELETE ON suppression TO offstage_api;

-- A provider's hook names its product; what it says is believed by its signature only.
CREATE FUNCTION find_tenant(p_name text) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT t.id FROM tenant t WHERE t.name = p_name $$;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
ALTER FUNCTION find_tenant(text) OWNER TO offstage_engine;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
REVOKE ALL ON FUNCTION find_tenant(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_tenant(text) TO offstage_api;
