-- End users as recipients: who they are, what they are to the product, whom they follow.
--
-- Names of users are compared byte by byte (`COLLATE "C"`): lists of many are read page by page in their order.
CREATE TABLE end_user (
    tenant_id  integer NOT NULL,
    id         text COLLATE "C" NOT NULL,       -- what `owner` is elsewhere
    email      text,
    name       text,
    time_zone  text,                            -- an IANA name, in the database's own spelling
    locale     text,                            -- a BCP 47 tag
    push       boolean NOT NULL,                -- their switch for all pushes
    mail       boolean NOT NULL,                -- and for all mail
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 90);

-- Read by role, 100,000 users of one included: the key is the list's order.
CREATE TABLE end_user_role (
    tenant_id integer NOT NULL,
    role      text COLLATE "C" NOT NULL,
    user_id   text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, role, user_id)
);
CREATE INDEX end_user_role_of ON end_user_role (tenant_id, user_id);

CREATE TABLE follow (
    tenant_id  integer NOT NULL,
    followed   text COLLATE "C" NOT NULL,
    follower   text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, followed, follower)
);
CREATE INDEX follow_by_follower ON follow (tenant_id, follower, followed);

-- Users who are being erased. As long as a row names one, nothing of theirs exists for the API (the policies below); once nothing is
-- left, the row goes too, for it holds the name. So the table is small: who reads jobs reads it along.
CREATE TABLE erasure (
    job_id       uuid PRIMARY KEY,              -- the job that does it
    tenant_id    integer NOT NULL,
    user_id      text COLLATE "C" NOT NULL,
    requested_at timestamptz NOT NULL,
    UNIQUE (tenant_id, user_id)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['end_user', 'end_user_role', 'follow', 'erasure'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())',
                       name || '_api', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT, UPDATE, DELETE ON end_user TO offstage_api;
GRANT SELECT, INSERT, DELETE ON end_user_role, follow TO offstage_api;
GRANT SELECT, INSERT, UPDATE (job_id, user_id) ON erasure TO offstage_api;

-- From the moment an erasure is asked for nobody reads anything of that user through the API, whatever door they take. The table is
-- all but empty: it is read once a statement.
ALTER POLICY job_api ON job
    USING (tenant_id = current_tenant()
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = job.tenant_id AND e.user_id = job.owner)
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = job.tenant_id AND e.user_id = job.subject));
ALTER POLICY notification_api ON notification
    USING (tenant_id = current_tenant()
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = notification.tenant_id AND e.user_id = notification.owner));
ALTER POLICY batch_api ON batch
    USING (tenant_id = current_tenant()
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = batch.tenant_id AND e.user_id = batch.owner));

-- As before, and what is new: the page of an erased user's file is shut.
CREATE OR REPLACE FUNCTION find_file_page(p_hash bytea)
    RETURNS TABLE (product text, object_key text, file_name text, content_type text, bytes bigint, sha256 bytea, completed_at timestamptz,
                   expires_at timestamptz, removed_at timestamptz, deleted_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT t.name, f.object_key, f.file_name, f.content_type, f.bytes, f.sha256, f.completed_at, f.expires_at, f.removed_at, f.deleted_at
        FROM job_file f JOIN tenant t ON t.id = f.tenant_id
        WHERE f.page_token IS NOT NULL AND sha256(f.page_token) = p_hash
          AND NOT EXISTS (SELECT FROM job j JOIN erasure e ON e.tenant_id = j.tenant_id AND e.user_id IN (j.owner, j.subject)
                          WHERE j.id = f.job_id)
    $$;
