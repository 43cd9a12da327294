-- What a kind's policy bounds beside attempts: a job's total time, and how often and how long it may be snoozed.
-- `job_state` stays narrow: a job that succeeds at once pays two zeros for this.
ALTER TABLE job_state
    -- What the total deadline counts from, once that is not simply when the job was due: written when a job waits again.
    ADD COLUMN counted_from timestamptz,
    ADD COLUMN snoozed_seconds integer NOT NULL DEFAULT 0,  -- asked for by its handler, since accepted or redriven
    ADD COLUMN snoozes smallint NOT NULL DEFAULT 0;
