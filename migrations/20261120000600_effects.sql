-- The effect ledger: what a job does to the outside world. The key is written before the step, the receipt after it, so
-- that a rerun knows what was done and what can't be known.
-- state 0 intended, 1 done, 2 unknown.
CREATE TABLE effect (
    job_id      uuid NOT NULL,
    key         text NOT NULL,                  -- unique within the job: 'object:<token>', 'message', …
    tenant_id   integer NOT NULL,
    token       bigint NOT NULL,                -- of the claim that intended it
    state       smallint NOT NULL DEFAULT 0,
    intended_at timestamptz NOT NULL,
    finished_at timestamptz,
    intent      jsonb,                          -- what is needed to undo or to ask (an object's key and its upload id)
    receipt     jsonb,                          -- what the outside answered (an ETag, a Message-ID)
    PRIMARY KEY (job_id, key)
);
ALTER TABLE effect ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY effect_engine ON effect TO offstage_engine USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON effect TO offstage_engine;
