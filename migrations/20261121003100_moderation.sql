-- Reports on content, what moderators did about it, and who is suspended by it.

-- Kept until the user whose content it is is erased.
CREATE TABLE report (
    id           uuid PRIMARY KEY,
    tenant_id    integer NOT NULL,
    reporter     text COLLATE "C",              -- NULL: the product itself, or somebody who was erased
    user_id      text COLLATE "C",              -- whose content it is, where the product said so
    content_type text NOT NULL,
    content_id   text NOT NULL,
    reason       text NOT NULL CHECK (reason IN ('spam', 'inappropriate', 'copyright', 'other')),
    details      text,                          -- the reporter's words: they go with the reporter
    status       text NOT NULL CHECK (status IN ('pending', 'reviewed', 'resolved', 'dismissed')),
    key_hash     bytea,                         -- of the reporter and the request's idempotency key
    body_hash    bytea NOT NULL,                -- of what was asked for
    created_at   timestamptz NOT NULL,
    changed_at   timestamptz NOT NULL
);
-- Lists are read newest first: of all, by status, by whose content it is.
CREATE INDEX report_of_tenant ON report (tenant_id, id);
CREATE INDEX report_by_status ON report (tenant_id, status, id);
CREATE INDEX report_by_user ON report (tenant_id, user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX report_by_reporter ON report (tenant_id, reporter) WHERE reporter IS NOT NULL;
CREATE UNIQUE INDEX report_key ON report (tenant_id, key_hash) WHERE key_hash IS NOT NULL;

-- History: a row for each thing a moderator did, and for each suspension that ended. Rows are added and never changed, but for the name of
-- a moderator who is erased.
CREATE TABLE moderation_action (
    id           uuid PRIMARY KEY,
    tenant_id    integer NOT NULL,
    report_id    uuid,                          -- the report it was about, if any
    user_id      text COLLATE "C",              -- whom it was about
    content_type text,
    content_id   text,
    action       text CHECK (action IN ('approve', 'reject', 'flag', 'suspend', 'ban', 'lift', 'end')), -- NULL: only the report's status changed
    status       text CHECK (status IN ('pending', 'reviewed', 'resolved', 'dismissed')), -- what the report became
    until        timestamptz,                   -- of a suspension
    notes        text,
    moderator    text COLLATE "C",              -- NULL: not said, the house itself, or somebody who was erased
    key_hash     bytea,
    body_hash    bytea NOT NULL,
    created_at   timestamptz NOT NULL,
    CHECK ((action IS NOT DISTINCT FROM 'suspend') = (until IS NOT NULL))
);
CREATE INDEX moderation_action_of_report ON moderation_action (tenant_id, report_id, id) WHERE report_id IS NOT NULL;
CREATE INDEX moderation_action_of_user ON moderation_action (tenant_id, user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX moderation_action_by_moderator ON moderation_action (tenant_id, moderator) WHERE moderator IS NOT NULL;
CREATE UNIQUE INDEX moderation_action_key ON moderation_action (tenant_id, key_hash) WHERE key_hash IS NOT NULL;

-- Who is suspended or banned now: one row a user, of the latest action that made it so. A job ends a suspension; that job names the action,
-- so one whose suspension was lifted, made longer or taken over by another finds nothing to end.
CREATE TABLE suspension (
    tenant_id integer NOT NULL,
    user_id   text COLLATE "C" NOT NULL,
    action_id uuid NOT NULL UNIQUE,
    until     timestamptz,                      -- NULL: banned
    job_id    uuid,                             -- the job that ends it
    since     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, user_id)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['report', 'moderation_action', 'suspension'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        -- Of a user who is being erased nothing is shown.
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api
                        USING (tenant_id = current_tenant()
                               AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = %I.tenant_id AND e.user_id = %I.user_id))
                        WITH CHECK (tenant_id = current_tenant())', name || '_api', name, name, name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT, UPDATE (status, changed_at) ON report TO offstage_api;
GRANT SELECT, INSERT ON moderation_action TO offstage_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON suspension TO offstage_api;
