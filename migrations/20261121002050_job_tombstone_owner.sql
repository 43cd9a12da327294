-- no-transaction
-- A user who is erased is erased from tombstones too.
CREATE INDEX CONCURRENTLY job_tombstone_owner ON job_tombstone (tenant_id, owner) WHERE owner IS NOT NULL;
