-- Browsers that can be pushed to. An endpoint is one browser's: it belongs to the user who registered it last.
CREATE TABLE push_subscription (
    id            uuid PRIMARY KEY,
    tenant_id     integer NOT NULL,
    owner         text NOT NULL,
    endpoint_hash bytea NOT NULL,               -- SHA-256: endpoints are too long for an index
    endpoint      text NOT NULL,                -- with the keys as good as a secret
    p256dh        bytea NOT NULL,
    auth          bytea NOT NULL,
    key_id        text NOT NULL,                -- of the VAPID key that it was made with
    created_at    timestamptz NOT NULL,
    registered_at timestamptz NOT NULL,         -- the last time; the oldest of too many gives way
    expires_at    timestamptz,                  -- as the browser said
    last_state    text CHECK (last_state IN ('sent', 'not_sent', 'unknown')),
    last_why      text,
    last_at       timestamptz
);
CREATE UNIQUE INDEX push_subscription_endpoint ON push_subscription (tenant_id, endpoint_hash);
CREATE INDEX push_subscription_owner ON push_subscription (tenant_id, owner, registered_at DESC);

ALTER TABLE push_subscription ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY push_subscription_engine ON push_subscription TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY push_subscription_api ON push_subscription TO offstage_api
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON push_subscription TO offstage_engine;
GRANT SELECT, INSERT, UPDATE, DELETE ON push_subscription TO offstage_api;
