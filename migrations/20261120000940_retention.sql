-- How many dead letters of a kind are kept is counted from the newest.
CREATE INDEX job_unsuccessful_kind ON job_unsuccessful (tenant_id, kind, job_id);
