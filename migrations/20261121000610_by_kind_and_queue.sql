-- no-transaction
-- Lists by queue, beside those by kind: a kind's jobs may stand in several queues (its own, the one it had before, those that a caller
-- named), and a queue without any of a kind should not cost a walk through all of that kind.
CREATE INDEX CONCURRENTLY job_by_kind_and_queue ON job (tenant_id, kind, queue, id);
