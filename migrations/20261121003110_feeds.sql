-- What users did, and the feeds of those who follow them.

-- Once, however many feeds it stands in.
CREATE TABLE activity (
    id            uuid PRIMARY KEY,             -- in the order in which they were told: feeds are read by it
    tenant_id     integer NOT NULL,
    actor         text COLLATE "C" NOT NULL,
    user_id       text COLLATE "C",             -- whose thing it was done to, where the product said so: it goes with them too
    verb          text NOT NULL CHECK (verb IN ('created', 'liked', 'followed', 'shared', 'commented')),
    object_type   text NOT NULL,
    object_id     text NOT NULL,
    title         text,
    url           text,
    data          jsonb NOT NULL,
    key_hash      bytea,                        -- of the actor and the request's idempotency key
    body_hash     bytea NOT NULL,
    after         text COLLATE "C" NOT NULL DEFAULT '', -- followers up to this one have it; empty once all have
    is_fanned_out boolean NOT NULL DEFAULT false,
    created_at    timestamptz NOT NULL
) WITH (fillfactor = 90);
CREATE INDEX activity_of_tenant ON activity (tenant_id, id);
CREATE INDEX activity_by_actor ON activity (tenant_id, actor, id);
CREATE INDEX activity_by_user ON activity (tenant_id, user_id) WHERE user_id IS NOT NULL;
CREATE UNIQUE INDEX activity_key ON activity (tenant_id, key_hash) WHERE key_hash IS NOT NULL;

-- The key is a feed's order, so a page costs the same however long the feed is.
CREATE TABLE feed_entry (
    tenant_id   integer NOT NULL,
    owner       text COLLATE "C" NOT NULL,
    activity_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, owner, activity_id)
);
-- What has had its time is found by it: ids begin with the time.
CREATE INDEX feed_entry_age ON feed_entry (activity_id);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['activity', 'feed_entry'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
    END LOOP;
END
$$;
-- Of a user who is being erased nothing is shown, in nobody's feed.
CREATE POLICY activity_api ON activity TO offstage_api
    USING (tenant_id = current_tenant()
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = activity.tenant_id AND e.user_id = activity.actor)
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = activity.tenant_id AND e.user_id = activity.user_id))
    WITH CHECK (tenant_id = current_tenant());
CREATE POLICY feed_entry_api ON feed_entry TO offstage_api
    USING (tenant_id = current_tenant()
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = feed_entry.tenant_id AND e.user_id = feed_entry.owner))
    WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT ON activity, feed_entry TO offstage_api;
