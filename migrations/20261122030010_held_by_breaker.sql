-- no-transaction
-- The jobs that wait for one breaker, the longest first; and from breaker to breaker, past all that one of them has.
CREATE INDEX CONCURRENTLY job_held_by_breaker ON job_held (queue, breaker, job_id) WHERE breaker IS NOT NULL;
