-- Jobs that wait and are no longer worth starting are found by when that was, whatever holds them up.
CREATE INDEX job_start_by ON job (start_by) WHERE start_by IS NOT NULL;
