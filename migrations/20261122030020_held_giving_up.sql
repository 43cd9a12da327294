-- no-transaction
-- Those that have waited for a breaker for as long as they may.
CREATE INDEX CONCURRENTLY job_held_giving_up ON job_held (queue, gives_up_at) WHERE breaker IS NOT NULL;
