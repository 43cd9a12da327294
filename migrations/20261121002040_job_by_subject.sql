-- no-transaction
-- Jobs about a user that are somebody else's, or nobody's; of most jobs the subject is the owner, who has an index already.
CREATE INDEX CONCURRENTLY job_by_subject ON job (tenant_id, subject, id) WHERE subject IS DISTINCT FROM owner;
