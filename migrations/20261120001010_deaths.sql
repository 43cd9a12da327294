-- How often a process of a job's own died under it, while the worker that had started it lived on: proof that it is the job that
-- kills. `crashes` counts lost workers, which says little about any one of the jobs they ran.
ALTER TABLE job_state ADD COLUMN deaths smallint NOT NULL DEFAULT 0;
