-- What dead letters are looked for by, beside the job's id: so that one sort of trouble is found, and redriven, among a million
-- others without reading them.
ALTER TABLE job_unsuccessful
    ADD COLUMN kind       text,
    ADD COLUMN queue      text,
    ADD COLUMN error_code text,             -- of the last run, where it failed
    ADD COLUMN ended_at   timestamptz;

-- Programs of the release before write rows without these until the roll-out is over; no filter finds those, their id does.
UPDATE job_unsuccessful u SET kind = j.kind, queue = j.queue, ended_at = s.finished_at,
    error_code = CASE WHEN u.state = 4 THEN (SELECT a.error ->> 'code' FROM job_attempt a WHERE a.job_id = u.job_id ORDER BY a.run DESC LIMIT 1) END
FROM job j, job_state s WHERE j.id = u.job_id AND s.job_id = u.job_id;

CREATE INDEX job_unsuccessful_code ON job_unsuccessful (tenant_id, state, error_code, job_id);
