-- no-transaction
-- As `job_held_by_kind`, without those that wait for a breaker: there may be very many, and no switch concerns them.
CREATE INDEX CONCURRENTLY job_held_by_switch ON job_held (queue, tenant_id, kind, job_id) WHERE breaker IS NULL;
