-- How often a job that waits for a circuit breaker has been put off: who was so less goes first, so that a job whose question makes its
-- provider fail is not the probe for ever.
ALTER TABLE job_held ADD COLUMN tried smallint NOT NULL DEFAULT 0;
