-- What a running job saved for its next attempt. One row a job, overwritten; gone soon after the job's end.
CREATE TABLE job_checkpoint (
    job_id    uuid PRIMARY KEY,
    tenant_id integer NOT NULL,
    token     bigint NOT NULL,                  -- of the claim that saved it
    saved_at  timestamptz NOT NULL,
    state     jsonb NOT NULL,                   -- the handler's own, small
    keeps     text                              -- the object whose unfinished upload the next attempt needs: no sweep takes it
) WITH (fillfactor = 50);
ALTER TABLE job_checkpoint ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY job_checkpoint_engine ON job_checkpoint TO offstage_engine USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON job_checkpoint TO offstage_engine;
