-- no-transaction
-- The jobs that wait for one breaker, in the order in which they are let go; and from breaker to breaker. In the place of
-- `job_held_by_breaker`, which programs before this one read.
CREATE INDEX CONCURRENTLY job_held_by_tries ON job_held (queue, breaker, tried, job_id) WHERE breaker IS NOT NULL;
