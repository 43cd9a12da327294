-- The life of a published file after its job has succeeded: removed at its owner's wish or at its time, found by a page whose
-- address can be taken back; and what its owner is told.

ALTER TABLE job_file
    -- When its owner asked for it to be deleted. From then on nobody gets it; the sweep deletes the object.
    ADD COLUMN removed_at timestamptz,
    -- Deletions of the object that failed, and when to try again.
    ADD COLUMN deletion_failures smallint NOT NULL DEFAULT 0,
    ADD COLUMN retry_at timestamptz,
    -- What opens the file's page (`/d/…`) to whoever has it: 32 random letters and digits, some 190 bits, as ASCII. NULL once it
    -- was taken back. It stands here as it is, not hashed, since the owner is shown the address again at any time; a hash
    -- would protect nothing, for whoever reads this row can read what the file was made of.
    ADD COLUMN page_token bytea;

-- What is due to be deleted, whatever the reason.
DROP INDEX job_file_expiry;
CREATE INDEX job_file_due ON job_file (least(expires_at, removed_at)) WHERE deleted_at IS NULL;
-- By the hash, so that how long a search takes tells nothing of how much of a token was right.
CREATE UNIQUE INDEX job_file_page ON job_file (sha256(page_token)) WHERE page_token IS NOT NULL;

GRANT UPDATE (removed_at, page_token) ON job_file TO offstage_api;

-- The page's door knows no tenant: whoever has the address may enter. So these two look a file up across tenants, by the
-- token's hash alone, and tell no more than the page shows.
CREATE FUNCTION find_file_page(p_hash bytea)
    RETURNS TABLE (product text, object_key text, file_name text, content_type text, bytes bigint, sha256 bytea, completed_at timestamptz,
                   expires_at timestamptz, removed_at timestamptz, deleted_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT t.name, f.object_key, f.file_name, f.content_type, f.bytes, f.sha256, f.completed_at, f.expires_at, f.removed_at, f.deleted_at
        FROM job_file f JOIN tenant t ON t.id = f.tenant_id
        WHERE f.page_token IS NOT NULL AND sha256(f.page_token) = p_hash
    $$;

-- Counts a download through the page; false where the file, or its page, has gone meanwhile.
CREATE FUNCTION count_page_download(p_hash bytea, p_now timestamptz) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        WITH counted AS (
            UPDATE job_file f SET downloads = f.downloads + 1
            WHERE f.page_token IS NOT NULL AND sha256(f.page_token) = p_hash
              AND f.deleted_at IS NULL AND f.removed_at IS NULL AND f.expires_at > p_now
            RETURNING 1
        )
        SELECT EXISTS (SELECT 1 FROM counted)
    $$;

-- What a run meant to leave in object storage, until it is published or swept away: the index is as small as what is under way.
ALTER TABLE effect
    -- What was intended stands as the job's file; nothing is left to be swept.
    ADD COLUMN published boolean NOT NULL DEFAULT false,
    -- When the sweep first removed what a lost run had left. It comes back once more, when nothing of that run can still be on
    -- its way, before it strikes the effect out.
    ADD COLUMN swept_at timestamptz,
    -- When the sweep looks at it next; at once when NULL.
    ADD COLUMN sweep_at timestamptz;
CREATE INDEX effect_object ON effect (intended_at) WHERE NOT published AND (key LIKE 'object:%' OR key LIKE 'upload:%');

-- What end users are told in the product. Written in the same transaction as the change that it tells of.
CREATE TABLE notification (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id  integer NOT NULL,
    owner      text NOT NULL,
    type       text NOT NULL CHECK (type IN ('like', 'follow', 'share', 'comment', 'mention', 'system')),
    title      text NOT NULL CHECK (char_length(title) BETWEEN 1 AND 255),
    message    text NOT NULL,
    data       jsonb NOT NULL DEFAULT '{}',
    read_at    timestamptz,
    clicked_at timestamptz,
    created_at timestamptz NOT NULL
);
CREATE INDEX notification_inbox ON notification (tenant_id, owner, created_at DESC, id DESC);
CREATE INDEX notification_unread ON notification (tenant_id, owner) WHERE read_at IS NULL;

ALTER TABLE notification ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY notification_engine ON notification TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY notification_api ON notification TO offstage_api
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON notification TO offstage_engine;
GRANT SELECT, UPDATE (read_at, clicked_at) ON notification TO offstage_api;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
ALTER FUNCTION find_file_page(bytea) OWNER TO offstage_engine;
ALTER FUNCTION count_page_download(bytea, timestamptz) OWNER TO offstage_engine;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
REVOKE ALL ON FUNCTION find_file_page(bytea), count_page_download(bytea, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_file_page(bytea), count_page_download(bytea, timestamptz) TO offstage_api;
