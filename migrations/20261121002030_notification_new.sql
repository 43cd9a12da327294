-- no-transaction
-- What is counted as unread, and listed as such, newest first.
CREATE INDEX CONCURRENTLY notification_new ON notification (tenant_id, owner, created_at DESC, id DESC)
    WHERE read_at IS NULL AND archived_at IS NULL;
