-- When the worker that ran a job gave its last sign of life before it was lost: the claim that has the job running again tells how
-- long that took. NULL for every other job; `job_dispatched` is small.
ALTER TABLE job_dispatched ADD COLUMN lost_at timestamptz;
